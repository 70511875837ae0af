from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from egcnn import checkpoint
from egcnn.data import Dataset, open_dataset, write_volume
from egcnn.data.case import Case
from egcnn.data.phantom import write_brats
from egcnn.errors import InputError
from egcnn.evaluation import evaluate
from egcnn.inference import predict_case, write_prediction
from egcnn.metrics import EDGE_METRICS, EDGE_SOURCES
from egcnn.terminal import Bar
from egcnn.training import (
    BEST,
    CONFIG,
    HISTORY,
    LAST,
    SegmentationTask,
    TrainingConfig,
    fit,
    plan,
    read_config,
    read_history,
)

from ..tolerances import BY_SUM, RANKED, REORDERED, WRITTEN

SHAPE = (16, 24, 17)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Restore Ctrl-C, which Lightning disables after the first one."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def brats(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("brats")
    write_brats(root, 4, shape=SHAPE, seed=3)
    return open_dataset(root)


@pytest.fixture(scope="module")
def tiny(brats: Dataset) -> TrainingConfig:
    # Dropout, random crops and an incomplete last batch could make a run irreproducible.
    return plan(brats, torch.device("cpu")).change(
        {
            "patch": (16, 16, 16),
            "filters": 4,
            "epochs": 4,
            "batch_size": 2,
            "dropout": 0.2,
            "foreground": 0.5,
            "precision": "32-true",
        }
    )


@pytest.fixture(scope="module")
def finished(
    brats: Dataset, tiny: TrainingConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("finished") / "run"
    fit(tiny, brats, output, quiet=True)
    return output


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_run_writes_its_folder(finished: Path, brats: Dataset, tiny: TrainingConfig) -> None:
    rows = read_history(finished)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    header = (finished / HISTORY).read_text().splitlines()[0].split(",")
    assert header == [
        *("epoch", "loss", "semantic", "consistency", "edge"),
        *("dice", "dice_WT", "dice_TC", "dice_ET"),
        *(
            f"{source}_{metric}_{name}"
            for source in EDGE_SOURCES
            for name in ("WT", "TC", "ET")
            for metric in EDGE_METRICS
        ),
        *("lr", "step_seconds", "seconds"),
    ]
    for row in rows:
        assert row["loss"] == pytest.approx(row["semantic"] + row["consistency"] + row["edge"])
        assert row["dice"] == pytest.approx(np.mean([row[f"dice_{n}"] for n in ("WT", "TC", "ET")]))
    assert any((finished / "tensorboard").glob("events.out.tfevents.*"))
    described = read_config(finished)
    assert described.config == tiny
    assert described.versions["torch"] == torch.__version__
    names = described.split["train"] + described.split["validation"]
    assert sorted(names) == [case.name for case in brats.cases]
    assert not list(finished.glob(".part*"))


def test_poly_learning_rate(finished: Path, tiny: TrainingConfig) -> None:
    # Eq. 9 with e = 0, 1, 2, 3 and Ne = 4.
    expected = [tiny.lr * (1 - e / 4) ** 0.9 for e in range(4)]
    assert [row["lr"] for row in read_history(finished)] == pytest.approx(expected)


def test_best_is_the_epoch_with_the_highest_dice(finished: Path) -> None:
    rows = read_history(finished)
    best = max(rows, key=lambda row: row["dice"])
    assert torch.load(finished / BEST, weights_only=True)["epoch"] + 1 == best["epoch"]
    assert torch.load(finished / LAST, weights_only=True)["epoch"] + 1 == 4


def test_checkpoint_predicts_without_lightning(finished: Path, brats: Dataset) -> None:
    trained = checkpoint.load(finished / BEST)
    assert trained.modalities == ("t1", "t1ce", "t2", "flair")
    assert trained.provenance["layout"] == "brats"
    found = predict_case(trained, brats.cases[0])
    assert found.labels.shape == SHAPE
    assert set(np.unique(found.labels)) <= {0, 1, 2, 4}
    assert found.edges is not None
    np.testing.assert_allclose(found.affine, nib.load(brats.cases[0].images[0]).affine)


def test_validation_scores_are_those_of_the_prediction(finished: Path, brats: Dataset) -> None:
    trained = checkpoint.load(finished / LAST)
    names = read_config(finished).split["validation"]
    cases = tuple(case for case in brats.cases if case.name in names)
    folder = finished / "predictions"
    for case in cases:
        found = predict_case(trained, case, precision="32-true")
        write_prediction(found, folder, case.name, edges=True)
    summary = evaluate(folder, replace(brats, cases=cases)).summary()
    row = read_history(finished)[-1]
    for name in ("WT", "TC", "ET"):
        assert summary[name]["dice"]["mean"] == pytest.approx(row[f"dice_{name}"], abs=WRITTEN)
        for metric in ("edge_f1", "edge_average_precision", "sobel_f1"):
            # Files hold probabilities in steps of 1/255, scores of thresholds those of 1/1000.
            assert summary[name][metric]["mean"] == pytest.approx(
                row[f"{metric}_{name}"],
                abs=RANKED if metric == "edge_average_precision" else WRITTEN,
            )


class _Stop(Callback):
    """Send SIGINT in the middle of an epoch."""

    def __init__(self, epoch: int, batch: int = 0) -> None:
        self.moment = (epoch, batch)

    def on_train_batch_end(self, trainer, *args: object) -> None:  # type: ignore[no-untyped-def]
        if (trainer.current_epoch, args[-1]) == self.moment:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_resuming_ends_where_an_unbroken_run_ends(
    finished: Path,
    brats: Dataset,
    tiny: TrainingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import lightning

    output = tmp_path / "run"
    whole = lightning.Trainer

    def interrupted(**options: object) -> lightning.Trainer:
        return whole(**{**options, "callbacks": [*options["callbacks"], _Stop(2)]})  # type: ignore

    with monkeypatch.context() as patch:
        patch.setattr(lightning, "Trainer", interrupted)
        with pytest.raises(SystemExit) as caught:
            fit(tiny, brats, output, quiet=True)
        assert caught.value.code != 0
    assert checkpoint.load(output / LAST).regions == brats.regions
    assert [row["epoch"] for row in read_history(output)] == [1, 2]

    run = fit(tiny, brats, output, existing="resume", quiet=True)
    unbroken, resumed = read_history(finished), read_history(output)
    for row, written in zip(run.history, resumed, strict=True):
        assert row == pytest.approx(written, rel=0, abs=0, nan_ok=True)
    for one, other in zip(unbroken, resumed, strict=True):
        del one["seconds"], other["seconds"], one["step_seconds"], other["step_seconds"]
        assert one == pytest.approx(other, rel=BY_SUM, nan_ok=True)
    torch.testing.assert_close(
        weights(output / LAST), weights(finished / LAST), rtol=REORDERED, atol=1e-6
    )


#: What version 0.1.0 wrote into the ``config.json`` of ``tiny``.
FLAT = {
    **{"patch": [16, 16, 16], "backbone": "segnet", "edge": True, "filters": 4, "dropout": 0.2},
    **{"gate": "channel", "gate_activation": "sigmoid", "edge_channels": None},
    **{"residual": "block", "upsampling": "trilinear", "edge_seed": "decoder"},
    **{"edge_head": "region", "spacing": [1.0, 1.0, 1.0], "normalization": "zscore"},
    **{"flip_axes": [0, 1, 2], "intensity_shift": 0.1, "intensity_scale": 0.1, "foreground": 0.5},
    **{"epochs": 4, "batch_size": 2, "lr": 0.001, "lr_power": 0.9, "semantic": 1.0},
    **{"consistency": None, "edge_weight": 0.5, "include_background": True, "lambda1": 1.0},
    **{"lambda2": 2.0, "edge_reduction": "balanced", "weight_negatives": False},
    **{"edge_threshold": 0.0, "tau": 0.5, "tau_end": None, "hard": True, "support": "gt"},
    **{"overlap": 0.5, "fraction": 0.2, "split_seed": 0, "seed": 0, "precision": "32-true"},
    **{"devices": 1, "workers": 0},
}


def test_a_run_of_an_earlier_version_is_read_and_resumed(
    brats: Dataset, tiny: TrainingConfig, tmp_path: Path
) -> None:
    old = tmp_path / "run"
    config = tiny.change(
        {
            "loss.edge.lambda2": 2.0,
            "loss.edge_weight": 0.5,
            "edge_stream.channels": (32, 16, 8, 4),
            "edge_stream.head": "linear",
        }
    )
    fit(config, brats, old, quiet=True)
    (old / HISTORY).rename(old / "metrics.csv")
    described = json.loads((old / CONFIG).read_text())
    (old / CONFIG).write_text(json.dumps({**described, "config": FLAT}))
    assert read_config(old).config == config
    run = fit(config, brats, old, existing="resume", quiet=True)
    assert len(run.history) == len(read_history(old)) == 4
    with pytest.raises(InputError, match=r"lr: 0\.5, but the run in .* has 0\.001"):
        fit(replace(config, lr=0.5), brats, old, existing="resume")
    fit(replace(config, epochs=1), brats, old, existing="overwrite", quiet=True)
    assert [path.name for path in old.glob("*.csv")] == [HISTORY]


def test_an_existing_run_is_not_lost(
    finished: Path, brats: Dataset, tiny: TrainingConfig, tmp_path: Path
) -> None:
    before = (finished / LAST).read_bytes()
    with pytest.raises(InputError, match="holds a run already"):
        fit(tiny, brats, finished)
    with pytest.raises(InputError, match=r"lr: 0\.5, but the run in .* has 0\.001"):
        fit(replace(tiny, lr=0.5), brats, finished, existing="resume")
    with pytest.raises(InputError, match="trained with other train cases"):
        fit(tiny, replace(brats, cases=brats.cases[1:]), finished, existing="resume")
    assert (finished / LAST).read_bytes() == before
    with pytest.raises(InputError, match="holds no run to resume"):
        fit(tiny, brats, tmp_path, existing="resume")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        fit(tiny, brats, tmp_path / "file")


def test_files_that_no_run_wrote_are_kept(
    brats: Dataset, tiny: TrainingConfig, tmp_path: Path
) -> None:
    config = tiny.change({"edge": False, "epochs": 1})

    def folder(name: str, file: str, content: bytes = b'{"mine": 1}') -> Path:
        path = tmp_path / name / file
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return path

    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    other = (tmp_path / "other.ckpt").read_bytes()
    foreign = [
        *(folder("config", CONFIG), folder("broken", CONFIG, b"{"), folder("csv", HISTORY, b"a\n")),
        *(folder("best", BEST, other), folder("last", LAST, other), folder("cut", LAST, b"PK")),
    ]
    for path in foreign:
        before = path.read_bytes()
        for existing in ("error", "overwrite"):
            with pytest.raises(InputError, match=rf"{path.name} was not written by a training run"):
                fit(config, brats, path.parent, existing=existing, quiet=True)  # type: ignore
        assert list(path.parent.iterdir()) == [path]
        assert path.read_bytes() == before

    notes = folder("events", "tensorboard/mine.txt")
    scores = notes.parents[1] / "metrics.csv"
    scores.write_text("case,region,dice\n")
    with pytest.raises(InputError, match="tensorboard is there already"):
        fit(config, brats, notes.parents[1])
    for _ in range(2):
        fit(config, brats, notes.parents[1], existing="overwrite", quiet=True)
        assert notes.is_file()
        assert scores.read_text() == "case,region,dice\n"
        assert len(list(notes.parent.glob("events*"))) == 1


def test_overwriting_without_the_edge_stream(
    brats: Dataset, tiny: TrainingConfig, tmp_path: Path
) -> None:
    (tmp_path / CONFIG).write_text('{"config": {}, "split": {}, "versions": {}}')
    (tmp_path / HISTORY).write_text("epoch,edge\n")
    config = tiny.change({"edge": False, "epochs": 1})
    run = fit(config, brats, tmp_path, existing="overwrite", quiet=True)
    assert "edge" not in run.history[0]
    assert run.history[0]["loss"] == pytest.approx(run.history[0]["semantic"])
    assert run.best is not None
    assert checkpoint.load(run.best).settings.edge is False


def test_a_loss_that_is_not_finite_stops_the_run(
    brats: Dataset, tiny: TrainingConfig, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"the loss is (nan|inf) in epoch \d, step \d"):
        fit(replace(tiny, lr=1e30), brats, tmp_path, quiet=True)


def test_one_labelled_case_is_too_few(brats: Dataset, tiny: TrainingConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 labelled case; expected at least two"):
        fit(tiny, replace(brats, cases=brats.cases[:1]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_case_is_named(brats: Dataset, tiny: TrainingConfig, tmp_path: Path) -> None:
    image = tmp_path / "nan.nii.gz"
    write_volume(np.full((*SHAPE, 4), np.nan, np.float32), brats.cases[0].grid[1], image)
    bad = Case("bad", (image,), brats.cases[0].label)
    dataset = replace(brats, cases=(*brats.cases, bad))
    with pytest.raises(InputError, match=r"nan\.nii\.gz \(channel 0\): .* are NaN"):
        fit(tiny, dataset, tmp_path / "run", quiet=True)


def test_damaged_config_file(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path)


def test_one_seed_gives_one_network(brats: Dataset, tiny: TrainingConfig) -> None:
    one, two = (SegmentationTask(tiny, brats).network.state_dict() for _ in range(2))
    other = SegmentationTask(replace(tiny, seed=1), brats).network.state_dict()
    name = "backbone.stem.0.weight"
    assert torch.equal(one[name], two[name])
    assert not torch.equal(one[name], other[name])


@pytest.mark.usefixtures("interruptible")
def test_a_run_continues_within_an_epoch(
    brats: Dataset,
    tiny: TrainingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import lightning

    config = tiny.change({"epochs": 2, "edge": False, "checkpoint_minutes": 1e-9})
    fit(config, brats, tmp_path / "whole", quiet=True)
    whole = lightning.Trainer

    def interrupted(**options: object) -> lightning.Trainer:
        return whole(**{**options, "callbacks": [*options["callbacks"], _Stop(1, 1)]})  # type: ignore

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(lightning, "Trainer", interrupted)
        with pytest.raises(SystemExit):
            fit(config, brats, output)
    said = capsys.readouterr().out
    steps = torch.load(output / LAST, weights_only=True)["global_step"]
    assert f"last.ckpt holds step {steps}; continue" in " ".join(said.split())
    assert [row["epoch"] for row in read_history(output)] == [1]
    with pytest.raises(InputError, match="accumulate: 2, but the run was interrupted within"):
        fit(replace(config, accumulate=2), brats, output, existing="resume", quiet=True)
    shown: list[float] = []
    monkeypatch.setattr(Bar, "update", lambda _, done, total, text: shown.append(done / total))
    fit(config, brats, output, existing="resume", quiet=True, title="")
    assert 0.5 < shown[0] < shown[-1] == 1  # within the second of two epochs
    assert shown == sorted(shown)
    rows, expected = read_history(output), read_history(tmp_path / "whole")
    for row in (*rows, *expected):
        del row["seconds"], row["step_seconds"]
    torch.testing.assert_close(rows, expected, rtol=0, atol=0, equal_nan=True)
    for name in ("state_dict", "optimizer_states"):
        files = (torch.load(run / LAST, weights_only=True) for run in (output, tmp_path / "whole"))
        found, wanted = (data[name] for data in files)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_gradients_are_clipped(brats: Dataset, tiny: TrainingConfig, tmp_path: Path) -> None:
    options = {"batch_size": 4, "epochs": 1, "accumulate": 2, "clip_gradients": 1e-3}
    run = fit(tiny.change(options), brats, tmp_path / "run", quiet=True)
    data = torch.load(run.last, weights_only=True)
    assert data["global_step"] == 1
    # Adam's first moment after a step is a tenth of the gradient.
    moments = [10 * state["exp_avg"] for state in data["optimizer_states"][0]["state"].values()]
    norm = torch.cat([moment.flatten() for moment in moments]).norm().item()
    assert norm == pytest.approx(1e-3, rel=REORDERED)


def test_scaled_gradients_can_be_clipped(brats: Dataset, tiny: TrainingConfig) -> None:
    # The fused Adam unscales after the clipping; Lightning refuses it with an error of its own.
    for clip, precision, fused in ((1.0, "16-mixed", False), (None, "16-mixed", True)):
        config = replace(tiny, clip_gradients=clip, precision=precision)
        optimizer = SegmentationTask(config, brats).configure_optimizers()["optimizer"]
        assert getattr(optimizer, "_step_supports_amp_scaling", False) is fused


@pytest.mark.slow
@pytest.mark.thorough
def test_compiled_and_recomputed_training_is_the_same(
    brats: Dataset, tiny: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_ = torch.nn.Module.compile
    # Traced and differentiated as always, but no minutes in a C++ compiler.
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda network: compile_(network, backend="aot_eager")
    )
    options = {"epochs": 1, "filters": 2, "blocks_down": (1, 1), "blocks_up": (1,)}
    config = tiny.change(options)
    plain = fit(config, brats, tmp_path / "plain", quiet=True)
    changed = config.change({"compile": True, "activation_checkpointing": True})
    compiled = fit(changed, brats, tmp_path / "compiled", quiet=True)
    torch.testing.assert_close(
        weights(compiled.last), weights(plain.last), rtol=0, atol=10 * REORDERED
    )
    assert compiled.history[0]["loss"] == pytest.approx(plain.history[0]["loss"], rel=REORDERED)
    assert checkpoint.load(compiled.last).settings == config.network
