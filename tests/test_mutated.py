"""Mutated files: read, or refused with a sentence; never slow, never large.

NIfTI files are in ``data/test_nifti.py``.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from egcnn import safetensors
from egcnn.checkpoint import KEY, PREFIX, load, save
from egcnn.comparison import Arm, Comparison, Result, read_comparison, write_comparison
from egcnn.data import open_dataset
from egcnn.data.splits import FOLD_FILE, split
from egcnn.data.transforms import PreprocessingSettings
from egcnn.evaluation import MEAN, Evaluation, read_evaluation, read_summary, write_evaluation
from egcnn.files import write_csv
from egcnn.metrics import COLUMNS
from egcnn.report.found import find
from egcnn.report.sections import comparison_tables, provenance
from egcnn.report.sections import scores as scores_section
from egcnn.training import CONFIG, HISTORY, LAST, TrainingConfig, read_config, read_history
from egcnn.training.folder import newest_checkpoint

from .data.test_decathlon import BASE, make
from .mutate import mutated_bytes, mutated_data, refusable
from .test_checkpoint import trained
from .training.test_config import FLAT

_NNUNET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
    "dataset": {"a": {"images": ["imagesTr/a.nii.gz"], "label": "labelsTr/a.nii.gz"}},
    "file_ending": ".nii.gz",
}
_RUN = {
    "config": TrainingConfig(PreprocessingSettings((16, 24, 8))).to_dict(),
    "dataset": {"layout": "brats", "root": "/data", "cases": 3},
    "split": {"train": ["a", "b"], "validation": ["c"]},
    "versions": {"egcnn": "0.1.0", "torch": "2.6"},
}
_TENSORS = (
    *(torch.ones(3), torch.ones(2, 2), torch.tensor(float("nan")), torch.ones(1).expand(2**45)),
    *(torch.ones(2).to_sparse(), torch.empty(2**40, device="meta"), torch.ones(3, dtype=torch.int)),
)


def as_json(data: Any) -> bytes:
    return json.dumps(data, default=repr).encode()


@pytest.mark.parametrize("base", [BASE, _NNUNET], ids=["decathlon", "nnunet"])
def test_mutated_dataset_json(tmp_path: Path, base: dict[str, Any]) -> None:
    path = make(tmp_path) / "dataset.json"
    path.write_bytes(as_json(base))
    assert "a" in {case.name for case in open_dataset(tmp_path).cases}
    copies = [*map(as_json, mutated_data(base, 35)), *mutated_bytes(as_json(base), 15)]
    for copy in copies:
        path.write_bytes(copy)
        with refusable(tmp_path):
            dataset = open_dataset(tmp_path)
            assert all(file.is_file() for case in dataset.cases for file in case.images)
            assert dataset.normalization in ("ct", "zscore")
            split(dataset)


def test_mutated_folds(tmp_path: Path) -> None:
    (make(tmp_path) / "dataset.json").write_bytes(as_json(BASE))
    dataset = open_dataset(tmp_path)
    names = [case.name for case in dataset.cases if case.label is not None]
    folds = [{"train": names[:1], "val": names[1:]}, {"train": names[1:], "val": names[:1]}]
    values = ("\ud800", names[0], [names[0]], "x" * 10**5)
    copies = [*map(as_json, mutated_data(folds, 35, values)), *mutated_bytes(as_json(folds), 15)]
    for copy in (as_json(folds), *copies):
        (tmp_path / FOLD_FILE).write_bytes(copy)
        with refusable(tmp_path):
            train, held_out = split(dataset, fold=1)
            assert train
            assert held_out


def mutated_checkpoints(data: dict[str, Any]) -> Iterator[bytes]:
    """Checkpoints with other entries, with a damaged pickle under a right checksum, and damaged."""
    for copy in mutated_data(data, 25, _TENSORS):
        torch.save(copy, stream := io.BytesIO())
        yield stream.getvalue()
    torch.save(data, stream := io.BytesIO())
    with zipfile.ZipFile(stream) as archive:
        files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    (pickle,) = (name for name in files if name.endswith("data.pkl"))
    for copy in mutated_bytes(files[pickle], 15):
        with zipfile.ZipFile(changed := io.BytesIO(), "w") as archive:
            for name, content in {**files, pickle: copy}.items():
                archive.writestr(name, content)
        yield changed.getvalue()
    yield from mutated_bytes(stream.getvalue(), 10)


def test_mutated_checkpoints(tmp_path: Path) -> None:
    """Read as a network, as what a run is resumed from, and as the copy of its config.json."""
    whole = trained()
    described = {**whole.entry(), "provenance": {"run": _RUN}}
    weights = {PREFIX + name: value for name, value in whole.network.state_dict().items()}
    data = {KEY: described, "state_dict": weights, "epoch": 2, "global_step": 6}
    path = tmp_path / LAST
    for copy in mutated_checkpoints(data):
        path.write_bytes(copy)
        with refusable(path):
            assert all(value.isfinite().all() for value in load(path).network.parameters())
        with refusable(tmp_path):
            newest_checkpoint(tmp_path)
        with refusable(tmp_path):
            assert set(read_config(tmp_path).split) == {"train", "validation"}


def test_mutated_safetensors(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    whole = trained()
    weights = whole.network.state_dict()
    path = tmp_path / "a.safetensors"
    for copy in mutated_data({**whole.entry(), "provenance": {"run": _RUN}}, 20):
        safetensors.write(path, weights, as_json(copy).decode())
        with refusable(path):
            load(path)
    save(path, whole)
    content = path.read_bytes()
    for copy in mutated_bytes(content, 20, upto=2000):
        path.write_bytes(copy)
        with refusable(path):
            assert copy == content or load(path).regions == whole.regions


@pytest.mark.parametrize("run", [_RUN, {**_RUN, "config": FLAT}], ids=["now", "0.1.0"])
def test_mutated_config_json(tmp_path: Path, run: dict[str, Any]) -> None:
    path = tmp_path / CONFIG
    for copy in [*map(as_json, mutated_data(run, 8)), *mutated_bytes(as_json(run), 2)]:
        path.write_bytes(copy)
        with refusable(path):
            read = read_config(tmp_path)
            assert TrainingConfig.from_dict(json.loads(as_json(read.config.to_dict())))


def test_mutated_history_csv(tmp_path: Path) -> None:
    path = tmp_path / HISTORY
    rows = [{"epoch": n, "loss": 1.5, "dice": 0.5, "step_seconds": 0.25} for n in (1, 2, 3)]
    write_csv(path, rows[0], rows)
    for copy in mutated_bytes(path.read_bytes(), 15):
        path.write_bytes(copy)
        with refusable(path):
            assert all(row["epoch"] >= 1 for row in read_history(tmp_path))


def test_mutated_metrics_json(tmp_path: Path) -> None:
    scores = dict.fromkeys(COLUMNS, 0.5) | {"hd95": float("nan")}
    origin = {"checkpoint": "12", "steps": 4, "versions": {"egcnn": "0.1.0"}}
    scored = Evaluation(
        {name: {"WT": scores, "TC": scores} for name in ("a", "b")},
        sources={
            "a": {"prediction": "34", "truth": "56", "edge_spacing": (1, 1, 2), "origin": origin}
        },
        folders={"data": "/data", "predictions": "/predictions"},
    )
    _, path = write_evaluation(scored, tmp_path)
    assert read_summary(path, ["WT", "TC"])[0]["mean"]["dice"] == 0.5
    text = path.read_bytes()
    for copy in [*map(as_json, mutated_data(json.loads(text), 12)), *mutated_bytes(text, 3)]:
        path.write_bytes(copy)
        with refusable(path):
            assert set(read_summary(path, ["WT", "TC"])[0]) == {"WT", "TC", "mean"}
        with refusable(path):
            assert "mean" in read_evaluation(path).summary()
            (found,) = find([tmp_path]).evaluations
            assert scores_section(found, "")["tables"]
            provenance([], [found])


def test_mutated_comparison_json(tmp_path: Path) -> None:
    means = dict.fromkeys(COLUMNS, 0.5) | {"hd95": float("nan")}
    regions = dict.fromkeys(("WT", MEAN), means)
    arms = (Arm("unet", "none"), Arm("unet", "egcnn", "lr=0.1"))
    results = (Result(arm, seed, 9, 0.5, regions) for arm in arms for seed in (0, 1))
    _, _, path = write_comparison(Comparison(tuple(results)), tmp_path)
    assert read_comparison(tmp_path).arms == arms
    text = path.read_bytes()
    for copy in [*map(as_json, mutated_data(json.loads(text), 12)), *mutated_bytes(text, 3)]:
        path.write_bytes(copy)
        with refusable(path):
            assert comparison_tables(read_comparison(tmp_path))
