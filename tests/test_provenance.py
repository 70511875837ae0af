"""What a result says of the data, the code and the settings that it comes from."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import egcnn
from egcnn import checkpoint, machine
from egcnn.checks import DEFAULT_OVERLAP
from egcnn.data import Dataset
from egcnn.data.hashes import case_digest, data_digest
from egcnn.data.nifti import read_note, write_volume
from egcnn.errors import InputError
from egcnn.evaluation import SUMMARY, evaluate, write_evaluation
from egcnn.files import digest
from egcnn.inference import default_precision, predict_cases, training_flips
from egcnn.training import CONFIG, LAST, TrainingConfig, fit, plan, read_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(dataset: Dataset) -> TrainingConfig:
    options = {"epochs": 1, "filters": 2, "patch": (16, 16, 16), "precision": "32-true"}
    return plan(dataset, CPU).change(options)


@pytest.fixture(scope="module")
def run(dataset: Dataset, config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    fit(config, dataset, output, quiet=True)
    return output


def test_hashes_are_those_of_sha256sum(dataset: Dataset) -> None:
    case = dataset.cases[0]
    contents = b"".join(path.read_bytes() for path in [*case.images, case.label] if path)
    assert case_digest(case) == hashlib.sha256(contents).hexdigest()
    found = data_digest(reversed(dataset.cases))
    assert list(found["cases"]) == [case.name for case in dataset.cases]
    lines = "".join(f"{value}  {name}\n" for name, value in found["cases"].items())
    assert found["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    with pytest.raises(InputError, match=r"missing\.nii: cannot be read: No such file"):
        digest([Path("missing.nii")])


def test_every_result_says_where_it_comes_from(
    run: Path, dataset: Dataset, config: TrainingConfig, tmp_path: Path
) -> None:
    data = data_digest(dataset.cases)
    assert read_config(run).data == data["cases"]
    trained = checkpoint.load(run / LAST)
    provenance = trained.provenance
    assert provenance["checkpoint"] == hashlib.sha256((run / LAST).read_bytes()).hexdigest()
    assert provenance["run"]["data"] == data
    assert provenance["versions"]["revision"] == machine.revision()
    assert (provenance["epochs"], provenance["steps"]) == (1, 1)

    case = dataset.cases[0]
    ((_, _, path),) = predict_cases(trained, [case], tmp_path, edges=True)
    for file in (path, tmp_path / f"{case.name}_edges.nii.gz"):
        note = read_note(file)
        assert note["checkpoint"] == provenance["checkpoint"]
        assert note["data"] == data["sha256"]
        assert note["inputs"] == digest(case.images)
        assert TrainingConfig.from_dict(note["config"]) == config
        assert note["versions"] == machine.versions()
        assert note["overlap"] == DEFAULT_OVERLAP
        assert note["flips"] == []
        assert note["precision"] == default_precision(CPU)

    write_evaluation(evaluate(tmp_path, dataset), tmp_path)
    table = json.loads((tmp_path / SUMMARY).read_text())
    assert table["sources"] == {
        case.name: {
            "prediction": digest([path]),
            "truth": digest([case.label or ""]),
            "edge_spacing": [1.0, 1.0, 1.0],
            "inputs": note["inputs"],
            "checkpoint": note["checkpoint"],
        }
    }
    assert table["networks"][note["checkpoint"]]["config"] == note["config"]
    assert table["versions"] == machine.versions()


def test_an_export_names_neither_folders_nor_cases(
    run: Path, dataset: Dataset, tmp_path: Path
) -> None:
    trained = checkpoint.load(run / LAST)
    text = checkpoint.description(trained)
    assert not any(case.name in text for case in dataset.cases)
    assert str(dataset.root.parent) not in text
    told = json.loads(text)["provenance"]
    before = trained.provenance["run"]
    assert told["run"]["data"] == {"sha256": data_digest(dataset.cases)["sha256"]}
    assert told["run"]["cases"] == {part: len(names) for part, names in before["split"].items()}
    assert told["run"]["config"] == before["config"]
    assert told["checkpoint"] == trained.provenance["checkpoint"]
    again = replace(trained, provenance=told)
    assert json.loads(checkpoint.description(again))["provenance"] == told
    assert training_flips(again) == training_flips(trained)
    # A checkpoint keeps what resuming takes.
    checkpoint.save(tmp_path / "a.ckpt", trained)
    assert checkpoint.load(tmp_path / "a.ckpt").provenance["run"] == before


def test_a_note_keeps_the_volume_as_it_is(tmp_path: Path) -> None:
    volume = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    note = {"checkpoint": "0123", "config": {"name": "Æ\n", "lr": [1e-4, None]}}
    for name in ("a.nii.gz", "b.nii"):
        write_volume(volume, np.diag([1, 2, 3, 1]), tmp_path / name, note=note)
        image = nib.load(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(image.dataobj), volume)
        assert read_note(tmp_path / name) == note
    write_volume(volume, np.eye(4), tmp_path / "none.nii")
    (tmp_path / "broken.nii").write_bytes(b"0" * 400)
    assert read_note(tmp_path / "none.nii") == read_note(tmp_path / "broken.nii") == {}


def test_notes_of_others(dataset: Dataset, tmp_path: Path) -> None:
    case = dataset.cases[0]
    assert case.label is not None
    label = nib.load(case.label)
    deep: dict[str, Any] = {}
    for _ in range(480):
        deep = {"deep": deep}
    for note in (deep, {"checkpoint": {"a": 1}}, {"checkpoint": ["a"]}):
        write_volume(
            np.asarray(label.dataobj), label.affine, tmp_path / f"{case.name}.nii.gz", note=note
        )
        write_evaluation(evaluate(tmp_path, dataset), tmp_path)
        assert json.loads((tmp_path / SUMMARY).read_text())["networks"] == {}
    # An extension that claims two gigabytes.
    data = bytearray(gzip.decompress((tmp_path / f"{case.name}.nii.gz").read_bytes()))
    (tmp_path / "whole.nii").write_bytes(data)
    assert read_note(tmp_path / "whole.nii") == {"checkpoint": ["a"]}
    data[352:356] = (2**31 - 16).to_bytes(4, "little")
    (tmp_path / "long.nii").write_bytes(data)
    assert read_note(tmp_path / "long.nii") == {}


def test_a_cache_takes_the_hashes_of_the_run(
    dataset: Dataset, config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("egcnn.data.cache.case_digest", lambda case: pytest.fail("hashed again"))
    fit(config, dataset, tmp_path / "run", cache=tmp_path / "cache", quiet=True)


def test_a_run_is_not_resumed_with_other_files(
    run: Path, dataset: Dataset, config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = json.loads((run / CONFIG).read_text())
    name = dataset.cases[0].name
    changed = {**described, "data": {"cases": {name: "0" * 64}}}
    (run / CONFIG).write_text(json.dumps(changed))
    with pytest.raises(InputError, match=rf"with other files of the case '{name}'"):
        fit(config, dataset, run, existing="resume", quiet=True)
    changed = {**described, "data": {**described["data"], "sizes": {name: 1}}}
    (run / CONFIG).write_text(json.dumps(changed))
    with monkeypatch.context() as patched:
        # Sizes tell before everything is read.
        patched.setattr("egcnn.training.run.data_digest", lambda cases: pytest.fail("hashed"))
        with pytest.raises(InputError, match=rf"with other files of the case '{name}'"):
            fit(config, dataset, run, existing="resume", quiet=True)
        with pytest.raises(InputError, match=r"^lr: 0.5, but the run"):
            fit(replace(config, lr=0.5), dataset, run, existing="resume", quiet=True)
        fewer = replace(dataset, cases=dataset.cases[1:])
        with pytest.raises(InputError, match=r"with other .* cases than the dataset has now"):
            fit(config, fewer, run, existing="resume", quiet=True)
    # Runs of earlier versions have no hashes.
    (run / CONFIG).write_text(json.dumps({k: v for k, v in described.items() if k != "data"}))
    fit(replace(config, keep=3), dataset, run, existing="resume", quiet=True)
    (run / CONFIG).write_text(json.dumps(described))


def test_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "egcnn"
    package.mkdir()
    (package / "__init__.py").write_text("one = 1\n")
    monkeypatch.setattr(egcnn, "__file__", str(package / "__init__.py"))

    def revision() -> str:
        machine.revision.cache_clear()
        return machine.revision()

    def git(*command: str) -> None:
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *name, *command], check=True)

    try:
        bare = revision()
        assert bare.startswith("sha256:")
        git("init", "-q")
        git("add", ".")
        git("commit", "-q", "-m", "one")
        commit = revision()
        assert len(commit) == 40
        (package / "__init__.py").write_text("one = 2\n")
        assert revision().startswith("sha256:")
        assert revision() != bare
    finally:
        machine.revision.cache_clear()
