"""Scores of predictions: by hand, from files with and without edges, and invalid input."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from rich.console import Console

from egcnn import evaluation
from egcnn.data import Dataset, read_label, write_volume
from egcnn.data.case import Case
from egcnn.errors import InputError
from egcnn.evaluation import Evaluation, evaluate, write_evaluation
from egcnn.inference import Prediction
from egcnn.metrics import COLUMNS, LESION_METRICS, VOXEL_METRICS
from egcnn.regions import Regions
from egcnn.report import edge_table, evaluation_table, lesion_table

CLASSES = Regions(("background", "front", "back"), ((0,), (1,), (2,)), "softmax")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two cases of two slabs each, 2 mm slices."""
    rng = np.random.default_rng(0)
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[:4, 1:4], labels[:4, 4:7] = 1, 2
    cases = []
    for name in ("a", "b", "c"):
        image, label = tmp_path / f"{name}_image.nii.gz", tmp_path / f"{name}_label.nii.gz"
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        write_volume(rng.normal(size=labels.shape).astype(np.float32), affine, image)
        write_volume(labels, affine, label)
        cases.append(Case(name, (image,), label))
    return Dataset("decathlon", tmp_path, tuple(cases), ("MRI",), CLASSES)


def predicted(dataset: Dataset, folder: Path) -> Path:
    """Case a perfectly predicted, case b with half of ``front`` missing, case c not predicted."""
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[:4, 1:4], labels[:4, 4:7] = 1, 2
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    write_volume(labels, affine, folder / "a.nii.gz")
    edges = np.stack([labels == 1, labels == 2], -1) / 2.0
    write_volume(edges, affine, folder / "a_edges.nii.gz")
    labels[:2, 1:4] = 0
    write_volume(labels, affine, folder / "b.nii")
    return folder


def test_evaluation(dataset: Dataset, tmp_path: Path) -> None:
    found = evaluate(predicted(dataset, tmp_path / "p"), dataset)
    assert found.missing == ("c",)
    assert list(found.cases) == ["a", "b"]
    assert list(found.cases["a"]) == ["front", "back"]
    assert found.cases["a"]["front"]["dice"] == 1
    # Half of the region found: 2 (1/2) / (1 + 1/2).
    assert found.cases["b"]["front"]["dice"] == pytest.approx(2 / 3)
    assert found.cases["b"]["front"]["sensitivity"] == pytest.approx(1 / 2)
    assert found.cases["b"]["back"]["dice"] == 1
    summary = found.summary()
    assert list(summary) == ["front", "back", "mean"]
    # Mean of 1 and 2/3; deviation |1 - 2/3| / sqrt(2).
    assert summary["front"]["dice"]["mean"] == pytest.approx(5 / 6)
    assert summary["front"]["dice"]["std"] == pytest.approx(1 / 3 / 2**0.5)
    assert summary["back"]["dice"] == {"mean": 1, "std": 0}
    # Per case the mean over regions is 1 and 5/6.
    assert summary["mean"]["dice"]["mean"] == pytest.approx(11 / 12)


def test_processes_change_nothing(dataset: Dataset, tmp_path: Path) -> None:
    folder = predicted(dataset, tmp_path / "p")
    # Written by predict --probabilities, and scored nowhere.
    write_volume(np.zeros((8, 8, 8, 2)), np.eye(4), folder / "a_probabilities.nii.gz")
    alone, divided = (evaluate(folder, dataset, workers=workers) for workers in (0, 2))
    assert list(divided.cases) == list(alone.cases) == ["a", "b"]
    assert divided.missing == alone.missing
    for name, regions in alone.cases.items():
        for region, scores in regions.items():
            np.testing.assert_equal(divided.cases[name][region], scores)
    (folder / "b.nii").write_bytes(b"")
    with pytest.raises(InputError, match=r"^\S+/b\.nii: the file is empty"):
        evaluate(folder, dataset, workers=2)
    with pytest.raises(InputError, match="workers: -1; expected at least 0"):
        evaluate(folder, dataset, workers=-1)


def test_evaluation_files_and_table(dataset: Dataset, tmp_path: Path) -> None:
    found = evaluate(predicted(dataset, tmp_path / "p"), dataset)
    table, data = write_evaluation(found, tmp_path / "e")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(row["case"], row["region"]) for row in rows] == [
        *(("a", "front"), ("a", "back"), ("b", "front"), ("b", "back")),
    ]
    assert float(rows[2]["dice"]) == pytest.approx(2 / 3)
    read = json.loads(data.read_text())
    assert {m: read["cases"]["b"]["front"][m] for m in VOXEL_METRICS} == {
        m: found.cases["b"]["front"][m] for m in VOXEL_METRICS
    }
    assert read["summary"]["mean"]["dice"] == found.summary()["mean"]["dice"]
    # b has no edge probabilities: NaN is empty in the CSV and null in the JSON.
    assert rows[2]["edge_f1"] == ""
    assert read["cases"]["b"]["front"]["edge_f1"] is None
    assert read["missing"] == ["c"]
    console = Console(width=200, record=True)
    console.print(evaluation_table(found))
    text = console.export_text()
    assert "2 cases" in text
    assert "0.833 ± 0.236" in text


def test_edges_beside_a_prediction_are_scored(dataset: Dataset, tmp_path: Path) -> None:
    found = evaluate(predicted(dataset, tmp_path / "p"), dataset)
    # The slab of 4x3x8 voxels is filled: 96 of its voxels are called edges. Those off its edges
    # are one of three rows, in the three planes farthest from its end.
    front = found.cases["a"]["front"]
    assert front["edge_interior"] == 1
    assert front["sobel_f1"] == front["sobel_thickness"] == 1
    assert front["edge_thickness"] == pytest.approx(96 / (5 * 5 * 8 - 3 * 8))
    assert front["edge_f1"] == pytest.approx(2 * 72 / (96 + 176))
    assert math.isnan(found.cases["b"]["front"]["edge_f1"])
    assert found.summary()["front"]["edge_f1"]["mean"] == front["edge_f1"]
    console = Console(width=200, record=True)
    console.print(edge_table(found))
    text = console.export_text()
    assert text.count("edge head") == text.count("Sobel of segmentation") == 3


def test_without_edges_only_the_segmentation_s_are_shown(dataset: Dataset, tmp_path: Path) -> None:
    folder = predicted(dataset, tmp_path / "p")
    (folder / "a_edges.nii.gz").unlink()
    console = Console(width=200, record=True)
    console.print(edge_table(evaluate(folder, dataset)))
    assert "edge head" not in console.export_text()


def test_edges_that_cannot_be_scored(dataset: Dataset, tmp_path: Path) -> None:
    folder = predicted(dataset, tmp_path / "p")
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    path = folder / "a_edges.nii.gz"
    write_volume(np.zeros((8, 8, 8, 3)), affine, path)
    with pytest.raises(InputError, match=r"a_edges.*shape \(8, 8, 8, 3\); expected .* 2 channels"):
        evaluate(folder, dataset)
    write_volume(np.full((8, 8, 8, 2), 1.5), affine, path)
    with pytest.raises(InputError, match=r"1024 of 1024 voxels are outside \[0, 1\]"):
        evaluate(folder, dataset)
    write_volume(np.zeros((8, 8, 7)), affine, path)
    with pytest.raises(InputError, match=r"a_edges\.nii\.gz: shape \(8, 8, 7\)"):
        evaluate(folder, dataset)


@pytest.mark.parametrize("name", ["a", "a_edges"])
def test_two_files_of_one_name(dataset: Dataset, tmp_path: Path, name: str) -> None:
    folder = predicted(dataset, tmp_path / "p")
    (folder / f"{name}.nii").touch()
    with pytest.raises(InputError, match=rf"{name}\.nii\.gz: {name}\.nii has the same name"):
        evaluate(folder, dataset)


def test_distances_are_in_mm(dataset: Dataset, tmp_path: Path) -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[:4, 1:4, :7], labels[:4, 4:7, :7] = 1, 2
    write_volume(labels, np.diag([1.0, 1.0, 2.0, 1.0]), tmp_path / "p" / "a.nii.gz")
    found = evaluate(tmp_path / "p", dataset)
    # One slice of 2 mm is missing.
    assert found.cases["a"]["front"]["hd95"] == pytest.approx(2)


def test_predictions_that_cannot_be_compared(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        evaluate(tmp_path / "none", dataset)
    folder = tmp_path / "p"
    folder.mkdir()
    with pytest.raises(InputError, match=r"holds no label map; expected files such as a\.nii\.gz"):
        evaluate(folder, dataset)
    labels = np.zeros((8, 8, 8), np.uint8)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    write_volume(labels, affine, folder / "x.nii.gz")
    with pytest.raises(InputError, match=r"x\.nii\.gz: no labelled case .* has the name 'x'"):
        evaluate(folder, dataset)
    (folder / "x.nii.gz").unlink()
    write_volume(labels[:7], affine, folder / "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii\.gz: shape \(7, 8, 8\); expected \(8, 8, 8\)"):
        evaluate(folder, dataset)
    write_volume(labels, np.eye(4), folder / "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii\.gz: its affine"):
        evaluate(folder, dataset)
    labels[0, 0, 0] = 7
    write_volume(labels, affine, folder / "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii\.gz: label value 7"):
        evaluate(folder, dataset)


def _predict_together(dataset: Dataset, folder: Path, rank: int, fails: bool) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )

    def predictions(
        trained: object, cases: Sequence[Case], folder: Path, edges: bool
    ) -> Iterator[tuple[Case, Prediction, Path]]:
        (folder / f"rank{rank}").write_text(" ".join(case.name for case in cases))
        for case in cases:
            if fails and case.name == "b":
                raise InputError("b: no good")
            labels = read_label(case, dataset.regions).numpy()[0]
            yield case, Prediction(labels, None, None, np.eye(4)), Path(str(case.label))

    evaluation.predict_cases = predictions  # type: ignore[assignment]
    with pytest.raises(InputError, match="b: no good") if fails else nullcontext():
        found = evaluation.predict_and_evaluate(None, dataset.cases, dataset, folder)  # type: ignore[arg-type]
        assert list(found.cases) == list(found.sources) == ["a", "b", "c"]
        assert (folder / "metrics.json").is_file()
    # Past the other process's last message.
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("fails", [False, True])
def test_processes_that_trained_together_share_the_cases(
    dataset: Dataset, tmp_path: Path, fails: bool
) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    fork = multiprocessing.get_context("fork")
    both = [
        fork.Process(target=_predict_together, args=(dataset, folder, rank, fails))
        for rank in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(90)
        assert process.exitcode == 0
    shares = [(folder / f"rank{rank}").read_text().split() for rank in range(2)]
    assert shares == [["a", "c"], ["b"]]
    if not fails:
        scores = json.loads((folder / "metrics.json").read_text())
        assert list(scores["cases"]) == list(scores["sources"]) == ["a", "b", "c"]
        assert scores["summary"]["mean"]["dice"]["mean"] == 1


def test_lesions_are_scored_on_request(dataset: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("panoptica")
    folder = predicted(dataset, tmp_path / "p")
    assert "lesion_f1" not in evaluate(folder, dataset).columns
    found = evaluate(folder, dataset, lesions=True, workers=2)
    assert found.columns == (*COLUMNS, *LESION_METRICS)
    assert found.cases["a"]["front"]["lesion_dice"] == 1
    assert found.cases["b"]["front"]["lesion_dice"] == pytest.approx(2 / 3)
    table, _ = write_evaluation(found, tmp_path / "e")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert float(rows[2]["lesion_dice"]) == pytest.approx(2 / 3)
    console = Console(width=200, record=True)
    console.print(lesion_table(found))
    assert "0.833 ± 0.236" in console.export_text()


def test_one_case_has_no_deviation() -> None:
    one = Evaluation({"a": {"front": dict.fromkeys(COLUMNS, 0.5)}}, ())
    assert one.summary()["front"]["dice"] == {"mean": 0.5, "std": 0.0}
