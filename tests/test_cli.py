from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.main import get_command

import egcnn
from egcnn.checkpoint import Trained, save
from egcnn.cli import app, main
from egcnn.comparison import KINDS
from egcnn.data import BRATS, open_dataset, write_volume
from egcnn.data.phantom import PHANTOMS, write_brats
from egcnn.data.transforms import PreprocessingSettings
from egcnn.demo import run_demo
from egcnn.errors import InputError
from egcnn.nn import BACKBONES, BackboneSettings, NetworkSettings, build_network
from egcnn.regions import Regions
from egcnn.terminal import Bar
from egcnn.training import PRESETS, plan, read_config

from .tolerances import HEADER

COMMANDS = [command.callback.__name__ for command in app.registered_commands if command.callback]
SHAPE = (16, 18, 17)
SMALL = NetworkSettings(BackboneSettings(filters=4, blocks_down=(1, 1), blocks_up=(1,)))
PATCH = PreprocessingSettings((16, 16, 16))


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    code = caught.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture(scope="module")
def brats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "brats"
    write_brats(root, 3, shape=SHAPE, seed=1)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "any.ckpt"
    torch.manual_seed(0)
    save(
        path,
        Trained(
            network=build_network(SMALL, 4, 3),
            settings=SMALL,
            preprocessing=PATCH,
            regions=BRATS,
            modalities=("t1", "t1ce", "t2", "flair"),
        ),
    )
    return path


@pytest.mark.slow
def test_train_predict_evaluate(
    brats: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    code = run(
        *("train", brats, "-o", folder, "--epochs", "1", "--filters", "4", "--batch-size", "1"),
        *("--patch", "16,16,16", "--set", "flip_axes=", "--set", "spacing=null", "--device", "cpu"),
        *("--cache", tmp_path / "cache"),
    )
    said = capfd.readouterr()
    assert code == 0, said.err
    assert said.err == ""
    assert len(list((tmp_path / "cache").glob("*.pt"))) == 3
    assert "3 labelled cases" in said.out
    assert "epoch 1/1  loss " in said.out
    assert str(folder / "best.ckpt") in said.out
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["preprocessing"]["patch"] == [16, 16, 16]
    assert config["config"]["preprocessing"]["spacing"] is None
    assert config["config"]["augmentation"]["flip_axes"] == []

    predictions = tmp_path / "predictions"
    best = folder / "best.ckpt"
    assert run("predict", best, brats, "-o", predictions, "--split", "validation", "--edges") == 0
    held_out = config["split"]["validation"]
    expected = [f"{name}{part}.nii.gz" for name in held_out for part in ("", "_edges")]
    assert sorted(os.listdir(predictions)) == sorted(expected)
    image = nib.load(brats / "HGG" / held_out[0] / f"{held_out[0]}_t1.nii.gz")
    labels = nib.load(predictions / f"{held_out[0]}.nii.gz")
    edges = nib.load(predictions / f"{held_out[0]}_edges.nii.gz")
    assert labels.shape == image.shape
    assert edges.shape == (*image.shape, 3)
    for written in (labels, edges):
        np.testing.assert_allclose(written.affine, image.affine)
    assert edges.get_data_dtype() == np.uint8
    assert 0 <= edges.get_fdata().min() <= edges.get_fdata().max() <= 1
    assert set(np.unique(labels.get_fdata())) <= {0, 1, 2, 4}

    averaged = tmp_path / "averaged"
    both = f"{best},{folder / 'last.ckpt'}"
    assert run("predict", both, brats, "-o", averaged, "--flips", "--probabilities") == 0
    assert len(os.listdir(averaged)) == 6
    assert run("predict", both, brats, "-o", averaged, "--split", "train") == 1
    assert "2 checkpoints, whose splits may differ" in capfd.readouterr().err

    capfd.readouterr()
    scores = tmp_path / "scores"
    assert run("evaluate", predictions, brats, "-o", scores) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert all(name in said.out for name in ("WT", "TC", "ET", "Dice", "edge head", "±"))
    assert f"{3 - len(held_out)} of 3 labelled cases have no prediction" in said.out
    summary = json.loads((scores / "metrics.json").read_text())["summary"]
    assert set(summary) == {"WT", "TC", "ET", "mean"}
    assert (scores / "metrics.csv").read_text().startswith("case,region,dice,")

    # A second run into the folder needs --resume or --overwrite.
    assert run("train", brats, "-o", folder) == 1
    assert "holds a run already" in capfd.readouterr().err
    assert run("train", brats, "-o", folder, "--resume", "--lr", "7") == 1
    assert "lr: 7.0, but the run in" in capfd.readouterr().err
    assert run("train", brats, "-o", folder, "--resume", "--overwrite") == 1
    assert run("train", brats, "-o", tmp_path / "none", "--resume") == 1
    assert "holds no run" in capfd.readouterr().err


def test_export(
    brats: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Weights without pickle predict the same."""
    pytest.importorskip("safetensors")
    weights = tmp_path / "a.safetensors"
    assert run("export", model, "-o", weights) == 0
    assert capfd.readouterr().out == f"{weights}\n"
    case = brats / "HGG" / sorted(os.listdir(brats / "HGG"))[0]
    for checkpoint, folder in ((model, "one"), (weights, "other")):
        assert run("predict", checkpoint, case, "-o", tmp_path / folder) == 0
    one, other = (
        np.asarray(nib.load(tmp_path / folder / f"{case.name}.nii.gz").dataobj)
        for folder in ("one", "other")
    )
    np.testing.assert_array_equal(one, other)
    capfd.readouterr()
    # Said before the network is read.
    assert run("export", tmp_path / "none.ckpt", "-o", tmp_path / "a.pth") == 1
    assert "suffix '.pth'; expected .pt2, .onnx or .safetensors" in capfd.readouterr().err


@pytest.mark.slow
def test_json_and_the_progress_bar(
    brats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown: list[tuple[float, float, str]] = []
    monkeypatch.setattr(Bar, "update", lambda _, *progress: shown.append(progress))

    def ask(*arguments: str | Path) -> tuple[dict[str, Any], str]:
        """What a command prints, and the last text of its bar, which has come to its end."""
        shown.clear()
        assert run(*arguments, "--json") == 0
        done = [done for done, *_ in shown]
        assert done == sorted(done) or arguments[0] == "compare"  # which begins anew to predict
        assert shown[-1][0] == shown[-1][1]
        return json.loads(capfd.readouterr().out), shown[-1][2]

    size = ("--set", "filters=2", "--set", "patch=16,16,16", "--epochs", "2", "--device", "cpu")
    summary, text = ask("train", brats, "-o", tmp_path / "run", *size)
    assert Path(summary["last"]).is_file()
    assert [row["epoch"] for row in summary["history"]] == [1, 2]
    assert re.fullmatch(r"epoch 2/2  validation 1/1  Dice 0\.\d{3}  [\d.]+ [kM]voxels/s", text)
    assert re.match(r"epoch 1/2  loss \d\.\d{3} \(semantic 0.*\)  [\d.]+ [kM]voxels/s", shown[1][2])
    predicted, text = ask("predict", summary["last"], brats, "-o", tmp_path / "p", "--overlap", "0")
    assert all(Path(case["labels"]).is_file() for case in predicted["predictions"])
    assert len(predicted["predictions"]) == 3
    assert re.fullmatch(r"PHANTOM_002, case 3 of 3  window (\d+)/\1  [\d.]+ [kM]voxels/s", text)
    scores, text = ask("evaluate", tmp_path / "p", brats, "--workers", "0")
    assert scores == json.loads((tmp_path / "p" / "metrics.json").read_text())
    assert re.fullmatch(r"scoring cases  Dice 0\.\d{3}  [\d.]+ cases/s", text)
    compared, text = ask(
        *("compare", brats, "-o", tmp_path / "c", *size, "--backbones", "unet", "--arms", "none"),
        *("--seeds", "1", "--epochs", "1"),
    )
    assert len(compared["runs"]) == 1
    assert all((tmp_path / folder / "report.html").is_file() for folder in "pc")
    assert text == "run 1 of 1, unet-seed0: predicting"


@pytest.mark.slow
def test_the_preset_gives_way_to_options(
    brats: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    size = ("--filters", "2", "--patch", "16,16,16", "--epochs", "1", "--device", "cpu")
    options = ("--preset", "paper", "--set", "loss.edge_weight=0.7", "--seed", "3")
    assert run("train", brats, "-o", folder, *size, *options) == 0
    config = read_config(folder).config
    stream = config.network.edge_stream
    assert (stream.activation, stream.residual) == ("relu_sigmoid", "none")
    assert (config.loss.edge.weight_negatives, config.loss.edge_weight) == (True, 0.7)
    assert config.seed == 3
    assert run("train", brats, "-o", tmp_path / "default", *size) == 0
    capfd.readouterr()
    assert run("train", brats, "-o", tmp_path / "default", "--resume", "--preset", "paper") == 1
    assert "a run is resumed as it was started" in capfd.readouterr().err


def test_a_backbone_with_the_consistency_loss_alone(brats: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    size = ("--filters", "2", "--patch", "16,16,16", "--epochs", "1", "--device", "cpu")
    assert (
        run("train", brats, "-o", folder, *size, "--no-edge", "--set", "consistency_weight=1") == 0
    )
    header = (folder / "history.csv").read_text().splitlines()[0].split(",")
    assert "consistency" in header
    assert "edge" not in header
    assert "sobel_f1_WT" in header
    assert "edge_f1_WT" not in header


@pytest.mark.slow
def test_compare_knows_its_arms(
    brats: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    size = ("--set", "filters=2", "--set", "patch=16,16,16", "--epochs", "1", "--device", "cpu")
    arms = ("--backbones", "unet", "--arms", "none,egcnn", "--seeds", "1", "--vary", "gate = voxel")
    assert run("compare", brats, "-o", tmp_path / "c", *size, *arms) == 0
    said = capfd.readouterr().out
    assert all(text in said for text in ("EG-CNN - none", "gate=voxel - EG-CNN", "Thickness"))
    assert run("compare", brats, "-o", tmp_path / "c", "--arms", "all") == 1
    assert "--arms: 'all' is unknown" in capfd.readouterr().err
    assert run("compare", brats, "-o", tmp_path / "c", "--vary", "seed=1") == 1
    assert "--vary seed=1" in capfd.readouterr().err


def test_every_kind_of_input(brats: Path, model: Path, tmp_path: Path) -> None:
    cases = {case.name: case for case in open_dataset(brats).cases}
    first, second, third = cases.values()
    volumes = [nib.load(path) for path in second.images]
    stacked = np.stack([np.asarray(volume.dataobj) for volume in volumes], -1)
    write_volume(stacked, volumes[0].affine, tmp_path / "stacked.nii.gz")
    joined = ",".join(map(str, third.images))
    assert (
        run(
            *("predict", model, first.images[0].parent, tmp_path / "stacked.nii.gz", joined),
            *("-o", tmp_path / "one"),
        )
        == 0
    )
    assert run("predict", model, brats, "-o", tmp_path / "all") == 0
    assert sorted(os.listdir(tmp_path / "all")) == [f"{name}.nii.gz" for name in cases]
    same = {first.name: first.name, "stacked": second.name, third.name: third.name}
    assert sorted(os.listdir(tmp_path / "one")) == sorted(f"{name}.nii.gz" for name in same)
    for one, other in same.items():
        np.testing.assert_array_equal(
            nib.load(tmp_path / "one" / f"{one}.nii.gz").get_fdata(),
            nib.load(tmp_path / "all" / f"{other}.nii.gz").get_fdata(),
        )


def test_json_names_the_cases_that_were_predicted(
    brats: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Where the voxels of the second of three cannot be read."""
    texts: list[str] = []
    monkeypatch.setattr(Bar, "update", lambda _, done, total, text: texts.append(text))
    root = shutil.copytree(brats, tmp_path / "brats")
    first, damaged, third = open_dataset(root).cases
    file = damaged.images[2]
    file.write_bytes(file.read_bytes()[:-2000])
    assert run("predict", model, root, "-o", tmp_path / "p", "--json") == 1
    said = capfd.readouterr()
    assert f"{file.name}: truncated" in said.err
    for case, made in zip((first, third), json.loads(said.out)["predictions"], strict=True):
        assert (made["case"], Path(made["labels"]).name) == (case.name, f"{case.name}.nii.gz")
    assert texts[-1].startswith(f"{third.name}, case 3 of 3  window")


def test_flips_are_those_of_every_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = []
    for name, axes in (("a", [0]), ("b", [2, 0]), ("c", [0, 2]), ("d", None)):
        config = {} if axes is None else {"config": {"augmentation": {"flip_axes": axes}}}
        network = build_network(SMALL, 1, 3)
        trained = Trained(network, SMALL, PATCH, BRATS, ("MRI",), {"run": config})
        save(file := tmp_path / f"{name}.ckpt", trained)
        files.append(file)
    values = np.random.default_rng(0).normal(size=(8, 9, 8)).astype(np.float32)
    write_volume(values, np.eye(4), tmp_path / "x.nii.gz")

    def predict(*members: Path) -> int:
        joined = ",".join(map(str, members))
        return run("predict", joined, tmp_path / "x.nii.gz", "-o", tmp_path / "p", "--flips")

    a, b, c, d = files
    assert predict(b, c) == 0
    assert predict(a, b) == 1
    said = capfd.readouterr().err
    assert f"{a} was trained with the axes (0,) mirrored, {b} with (0, 2)" in said
    assert predict(b, d) == 1
    assert f"checkpoint: {d}: flips: the checkpoint does not say" in capfd.readouterr().err


def test_predict_never_replaces_its_inputs(
    brats: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scans, of today"
    folder.mkdir()
    volumes = [nib.load(path) for path in open_dataset(brats).cases[0].images]
    stacked = np.stack([np.asarray(volume.dataobj) for volume in volumes], -1)
    for name in ("a", "b"):
        write_volume(stacked, volumes[0].affine, folder / f"{name}.nii.gz")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert run("predict", model, folder, "-o", folder) == 1
    assert "a.nii.gz: is an input" in capfd.readouterr().err
    assert run("predict", model, folder / "a.nii.gz", "-o", tmp_path / "one") == 0
    assert run("predict", model, folder, "-o", tmp_path / "all") == 0
    assert sorted(os.listdir(tmp_path / "all")) == ["a.nii.gz", "b.nii.gz"]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_evaluate_loses_nothing_to_the_terminal(
    brats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad_output: IO[str]
) -> None:
    case = open_dataset(brats).cases[0]
    assert case.label is not None
    (tmp_path / "p").mkdir()
    shutil.copy(case.label, tmp_path / "p" / f"{case.name}.nii.gz")
    monkeypatch.setattr(sys, "stdout", bad_output)
    assert run("evaluate", tmp_path / "p", brats, "-o", tmp_path / "scores") == 0
    assert sorted(os.listdir(tmp_path / "scores")) == ["metrics.csv", "metrics.json", "report.html"]


def test_evaluate_writes_the_same_files_with_json(
    brats: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    case = open_dataset(brats).cases[0]
    assert case.label is not None
    shutil.copy(case.label, tmp_path / f"{case.name}.nii.gz")
    scores = tmp_path / "scores"
    assert run("evaluate", tmp_path, brats, "-o", scores, "--workers", "0", "--json") == 0
    assert json.loads(capfd.readouterr().out)["summary"]["WT"]["dice"]["mean"] == 1
    assert sorted(os.listdir(scores)) == ["metrics.csv", "metrics.json", "report.html"]


def test_scores_do_not_need_the_report(
    brats: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(brats, tmp_path / "brats")
    case = open_dataset(root).cases[0]
    assert case.label is not None
    (tmp_path / "p").mkdir()
    shutil.copy(case.label, tmp_path / "p" / f"{case.name}.nii.gz")
    for image in case.images:
        image.write_bytes(image.read_bytes()[:-2000])
    evaluation = ["evaluate", tmp_path / "p", root, "--workers", "0"]
    assert run(*evaluation) == 0
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == str(tmp_path / "p" / "metrics.json")
    assert len(said.err.splitlines()) == 1
    assert ".nii.gz: truncated" in said.err
    assert run("report", tmp_path / "p") == 1
    capfd.readouterr()
    (tmp_path / "p" / "report.html").write_text("mine")
    assert run(*evaluation, "--json") == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["summary"]["WT"]["dice"]["mean"] == 1
    assert len(said.err.splitlines()) == 1
    assert "report.html was not written by egcnn report" in said.err
    assert (tmp_path / "p" / "report.html").read_text() == "mine"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_comparison_does_not_need_the_report(
    brats: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
) -> None:
    written = [tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c.json"]
    written[-1].write_text("{}")
    monkeypatch.setattr("egcnn.comparison.compare", lambda *_, **__: None)
    monkeypatch.setattr("egcnn.comparison.write_comparison", lambda *_: written)
    for name in ("rows", "edge_rows", "difference_rows"):
        monkeypatch.setattr(f"egcnn.comparison.{name}", lambda _: [{"a": "b"}])
    assert run("compare", brats, "-o", tmp_path, *options) == 0
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == ("{}" if options else str(written[-1]))
    assert said.err.count("\n") == 1
    assert f"egcnn report {tmp_path}" in said.err


def bad_inputs(brats: Path, model: Path, tmp: Path) -> dict[str, tuple[list[object], str]]:
    """Arguments, and text that the line on stderr must contain."""
    case = open_dataset(brats).cases[0]
    empty, short = tmp / "empty.nii.gz", tmp / "short.nii.gz"
    empty.touch()
    nan = tmp / "nan.nii.gz"
    volume = np.random.default_rng(0).normal(size=(*SHAPE, 4)).astype(np.float32)
    write_volume(volume, np.eye(4), short)
    short.write_bytes(short.read_bytes()[:3000])
    volume[0, 0, 0, 2] = np.nan
    write_volume(volume, np.eye(4), nan)
    foreign = tmp / "foreign.ckpt"
    torch.save({"a": 1}, foreign)
    plain = tmp / "plain.ckpt"
    settings = replace(SMALL, edge=False)
    save(plain, Trained(build_network(settings, 4, 3), settings, PATCH, BRATS, ("a",) * 4))
    (tmp / "nothing").mkdir()
    (tmp / "listed").mkdir()
    described = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "organ"},
        "training": [{"image": "./gone.nii.gz", "label": "./gone_label.nii.gz"}],
    }
    (tmp / "listed" / "dataset.json").write_text(json.dumps(described))
    out = ["-o", tmp / "out"]
    predict = ["predict", model]
    return {
        "no such data": (["train", tmp / "void", *out], "no such folder"),
        "unknown layout": (["train", tmp / "nothing", *out], "no known dataset"),
        "missing file": (["train", tmp / "listed", *out], "gone.nii.gz"),
        "patch": (["train", brats, *out, "--patch", "16,16"], "--patch: '16,16'; expected three"),
        "flip axes": (["train", brats, *out, "--set", "flip_axes=x"], "flip_axes=x: 'x'; expected"),
        "no entry": (["train", brats, *out, "--set", "lr_decay=1"], "lr_decay: no such entry"),
        "backbone": (["train", brats, *out, "--backbone", "resnet"], "backbone: 'resnet'"),
        "gate": (["train", brats, *out, "--set", "gate=pixel"], "'pixel'; expected one of channel"),
        "no checkpoint": (["predict", tmp / "none.ckpt", brats, *out], "none.ckpt does not exist"),
        "long list": (
            ["predict", ",".join(f"{number:0100}.ckpt" for number in range(9)), brats, *out],
            "0.ckpt does not exist",
        ),
        "foreign": (["predict", foreign, brats, *out], "was not written by egcnn"),
        "no edges": (["predict", plain, brats, *out, "--edges"], "no edge stream"),
        "empty": ([*predict, empty, *out], "empty.nii.gz: the file is empty"),
        "truncated": ([*predict, short, *out], "short.nii.gz: truncated"),
        "nan": ([*predict, nan, *out], "nan.nii.gz (channel 2): 1 of"),
        "missing input": ([*predict, tmp / "no.nii.gz", *out], "no.nii.gz: no such file"),
        "too few files": (
            [*predict, f"{case.images[0]},{case.images[1]}", *out],
            "2 files; this network takes 4 modalities (t1, t1ce, t2, flair)",
        ),
        "too few channels": ([*predict, case.images[0], *out], "1 channels; expected 4"),
        "same names": ([*predict, brats, case.images[0].parent, *out], "two cases are named"),
        "no run beside": ([*predict, brats, *out, "--split", "train"], "has no config.json"),
        "split": ([*predict, brats, *out, "--split", "test"], "--split: 'test'"),
        "device": ([*predict, brats, *out, "--device", "tpu"], "device: 'tpu'"),
        "no predictions": (["evaluate", tmp / "nothing", brats], "holds no label map"),
        "few cases": (["demo", *out, "--cases", "1"], "cases: 1; expected at least 2"),
    }


def test_bad_input_is_one_line(
    brats: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, (arguments, says) in bad_inputs(brats, model, tmp_path).items():
        code = run(*arguments)  # type: ignore[arg-type]
        said = capfd.readouterr()
        assert code == 1, name
        assert says in said.err, name
        assert said.err.startswith("error: "), name
        assert said.err.count("\n") == 1, name
        assert "Traceback" not in said.err + said.out, name
    assert not list(tmp_path.glob("out/*.nii.gz"))


@pytest.mark.slow
def test_a_label_that_training_cannot_use(
    brats: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Raised inside Lightning and MONAI, which wrap it in exceptions of their own.
    for workers in ("0", "1"):
        root = tmp_path / f"data{workers}"
        (case, *_) = write_brats(root, 3, shape=SHAPE, seed=2)
        assert case.label is not None
        labels = np.full(SHAPE, 7, np.uint8)
        write_volume(labels, nib.load(case.images[0]).affine, case.label)
        code = run(
            *("train", root, "-o", tmp_path / f"run{workers}", "--epochs", "1", "--filters", "4"),
            *("--set", f"workers={workers}", "--device", "cpu"),
        )
        said = capfd.readouterr()
        assert code == 1
        assert said.err.splitlines()[-1].startswith(f"error: {case.label}: label value 7")
        assert "Traceback" not in said.err


def test_an_error_from_a_worker_process_is_unpacked() -> None:
    from egcnn.cli.root import _message

    text = (
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent "
        'call last):\n  File "x.py", line 1\negcnn.errors.InputError: a.nii.gz: no good\n\n'
        "The above exception was the direct cause of the following exception:\nRuntimeError: x"
    )
    assert _message(RuntimeError(text)) == "a.nii.gz: no good"
    text = (
        "Caught InputError in DataLoader worker process 0.\nOriginal Traceback (most recent "
        'call last):\n  File "x.py", line 1\negcnn.errors.InputError: its cause\n\n'
        "The above exception was the direct cause of the following exception:\n\n"
        'Traceback (most recent call last):\n  File "x.py", line 2\n'
        "egcnn.errors.InputError: a.pt: no room"
    )
    assert _message(InputError(text)) == "a.pt: no room"
    assert _message(RuntimeError("a defect of ours")) is None
    with pytest.raises(OSError, match="No such file") as caught:
        Path("/nowhere/at/all").read_text()
    assert _message(caught.value) == "/nowhere/at/all: No such file or directory"


@pytest.mark.parametrize("command", ["train", "compare"])
def test_cases_without_label_are_named_first(
    brats: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: str,
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise InputError("long")

    monkeypatch.setattr("egcnn.training.fit", stopped)
    monkeypatch.setattr("egcnn.comparison.compare", stopped)
    root = shutil.copytree(brats, tmp_path / "brats")
    for number, label in enumerate(sorted(root.rglob("*_seg.nii.gz"))[:2]):
        label.rename(label.with_name("W39_Segm.nii.gz")) if number else label.unlink()
    assert run(command, root, "-o", tmp_path / "run") == 1
    said = capfd.readouterr().out.splitlines()
    assert said[-1] == "1 of 3 cases have no label and are left out: PHANTOM_000"
    assert run(command, brats, "-o", tmp_path / "run") == 1
    assert "no label" not in capfd.readouterr().out


def test_only_the_first_process_of_a_comparison_prints_and_writes(
    brats: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def compared(*_: object, console: Any, **__: object) -> None:
        console.print("run 1 of 1")

    monkeypatch.setattr("egcnn.comparison.compare", compared)
    monkeypatch.setenv("RANK", "1")
    assert run("compare", brats, "-o", tmp_path / "run") == 0
    assert capfd.readouterr().out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError("Unable to allocate 4 GiB"), "memory ran out"),
        (RuntimeError("[x] DefaultCPUAllocator: can't allocate memory: you tried"), "memory ran"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory ran out"),
        (torch.OutOfMemoryError("CUDA out of memory"), "the GPU is out of memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "a worker proce"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "a worker process was"),
    ],
)
def test_running_out_of_memory_is_a_sentence(error: Exception, says: str) -> None:
    from egcnn.cli.root import _message

    assert (_message(error) or "").startswith(says)
    wrapped = RuntimeError("applying transform")
    wrapped.__cause__ = error
    assert (_message(wrapped) or "").startswith(says)


def test_a_lost_process_is_a_sentence() -> None:
    from egcnn.cli.root import _message

    gloo = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"
    for error in (RuntimeError(gloo), torch.distributed.DistNetworkError("Broken pipe\nFrame 1")):
        said = _message(error) or ""
        assert said.startswith("another process of this training ended")
        assert str(error).splitlines()[0][:20] in said
        assert "\n" not in said


@pytest.mark.slow
def test_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "demo"
    arguments = ["-o", output, "--cases", "3", "--shape", "16,18,20", "--epochs", "1"]
    assert run("demo", *arguments) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert (output / "demo.png").read_bytes().startswith(b"\x89PNG")
    written = [line.split()[-1] for line in said.out.splitlines() if str(output) in line]
    assert len(written) > 6
    assert all(Path(path).exists() for path in written)
    names = json.loads((output / "run" / "config.json").read_text())["split"]["validation"]
    scores = json.loads((output / "evaluation" / "metrics.json").read_text())
    assert sorted(scores["cases"]) == sorted(names)
    assert run("demo", *arguments) == 1
    assert "holds a demo already" in capfd.readouterr().err

    def fail(*_: object, **__: object) -> None:
        raise InputError("a damaged image")

    monkeypatch.setattr("egcnn.report.page.write_report", fail)
    assert run("demo", *arguments, "--overwrite") == 0
    said = capfd.readouterr()
    assert "a damaged image" in said.err
    assert "report.html" not in said.out
    (output / "data" / "mine.nii.gz").touch()
    before = sorted(output.rglob("*"))
    assert run("demo", *arguments, "--overwrite") == 1
    assert "mine.nii.gz is no file of a demo" in capfd.readouterr().err
    assert sorted(output.rglob("*")) == before


@pytest.mark.parametrize("name", ["data/a", "run/last.ckpt", "predictions/a", "demo.png", "run"])
def test_a_demo_replaces_nobodys_files(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    for options in ([], ["--overwrite"]):
        assert run("demo", "-o", tmp_path, "--cases", "3", *options) == 1
        assert f"{tmp_path / name} is no file of a demo" in capfd.readouterr().err
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("text", ["{", "[]", '{"files": 3}'])
def test_a_damaged_record_of_a_demo_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "demo.json").write_text(text)
    assert run("demo", "-o", tmp_path, "--cases", "3", "--overwrite") == 1
    assert f"{tmp_path / 'demo.json'}: " in capfd.readouterr().err


def test_a_demo_that_was_stopped_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        (tmp_path / "run" / "tensorboard").mkdir(parents=True)
        (tmp_path / "run" / "tensorboard" / "events").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("egcnn.demo.fit", stopped)
    options: dict[str, Any] = {"cases": 2, "shape": (16, 16, 16), "epochs": 1, "seed": 0}
    for overwrite in (False, True):
        with pytest.raises(KeyboardInterrupt):
            run_demo(tmp_path, **options, overwrite=overwrite)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(egcnn.__file__).parents[1],
    )


def test_info_needs_neither_monai_nor_lightning() -> None:
    code = (
        "import sys; from egcnn.cli import main\n"
        "try: main(['info'])\n"
        "except SystemExit as e: print('code', e.code)\n"
        "print('heavy', [m for m in ('monai', 'lightning', 'matplotlib') if m in sys.modules])"
    )
    said = python("-c", code)
    assert "code 0" in said.stdout, said.stderr
    assert "heavy []" in said.stdout
    assert egcnn.__version__ in said.stdout
    for word in ("python", "torch", "monai", "lightning", "threads", "cpu", "operators"):
        assert word in said.stdout


def test_help_and_version_import_no_torch() -> None:
    code = (
        "import sys; from egcnn.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as e: print('code', e.code)\n"
        "print('torch' in sys.modules)"
    )
    said = python("-c", code)
    assert said.stdout.splitlines()[-2:] == ["code 0", "False"]
    assert all(word in said.stdout for word in ("demo", "train", "predict", "evaluate", "info"))
    said = python("-m", "egcnn", "--version")
    assert (said.returncode, said.stdout) == (0, f"egcnn {egcnn.__version__}\n")


def test_wrong_usage_is_not_a_traceback() -> None:
    said = python("-m", "egcnn", "train")
    assert said.returncode == 2
    assert "Missing argument" in said.stderr
    assert "Traceback" not in said.stderr


def test_classes_of_a_decathlon_dataset(tmp_path: Path, model: Path) -> None:
    # Softmax regions, anisotropic voxels and one modality, from the command line.
    regions = Regions(("background", "organ"), ((0,), (5,)), "softmax")
    path = tmp_path / "organ.ckpt"
    preprocessing = replace(PATCH, normalization="ct")
    save(path, Trained(build_network(SMALL, 1, 2), SMALL, preprocessing, regions, ("CT",)))
    affine = np.array([[0, 0, -3.0, 9], [0.8, 0, 0, 2], [0, 1.2, 0, -4], [0, 0, 0, 1]])
    volume = np.random.default_rng(0).normal(0, 300, (11, 9, 7)).astype(np.float32)
    write_volume(volume, affine, tmp_path / "ct.nii")
    assert run("predict", path, tmp_path / "ct.nii", "-o", tmp_path / "p", "--edges") == 0
    for name in ("ct.nii.gz", "ct_edges.nii.gz"):
        found = nib.load(tmp_path / "p" / name)
        assert found.shape == (11, 9, 7)
        np.testing.assert_allclose(found.affine, affine, atol=HEADER)
    assert set(np.unique(nib.load(tmp_path / "p" / "ct.nii.gz").get_fdata())) <= {0, 5}


def helps(command: str) -> dict[str, str]:
    """The help text of each option of a command."""
    return {option.name: option.help for option in get_command(app).commands[command].params}


@pytest.mark.parametrize(
    ("command", "option", "names"),
    [
        ("train", "backbone", BACKBONES),
        ("train", "preset", PRESETS),
        ("compare", "arms", KINDS),
        ("phantom", "layout", PHANTOMS),
    ],
)
def test_help_names_every_choice(command: str, option: str, names: Iterable[str]) -> None:
    """Written by hand, since help imports no torch."""
    assert set(names) <= set(re.findall(r"\w+", helps(command)[option]))


def test_help_has_the_numbers_of_the_plan(brats: Path) -> None:
    """Also written by hand: those for large and, if they differ, for small volumes."""
    small = open_dataset(brats)
    plans = [plan(replace(small, spacing=(0.2, 0.2, 0.2))).entries(), plan(small).entries()]
    names = {name.split(".")[-1]: name for name in plans[0]}
    shown = helps("train")
    same = ["seed", "devices", "nodes", "accumulate", "checkpoint_minutes"]
    for option in ["filters", "epochs", "batch_size", "lr", *same]:
        found = re.search(r"\((.+)\)\.$", shown[option])
        assert found is not None
        expected = dict.fromkeys(entries[names[option]] for entries in plans)
        assert [float(number) for number in found[1].split("; ")] == list(expected), option
        assert len(expected) == 1 + (option not in same), option
    assert shown["backbone"].endswith(f"({plans[0]['network.backbone.name']}).")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_screen_and_has_examples(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(*command.split(), "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 43
    assert max(map(len, lines)) <= 80
    assert not any(line.endswith(("...", "…")) for line in lines[1:]), "a text was cut"
    assert f"    $ egcnn {command}" in "\n".join(lines).split("Examples:")[1]
