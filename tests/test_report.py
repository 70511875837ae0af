from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from egcnn.data import Dataset, write_volume
from egcnn.data.case import Case
from egcnn.errors import InputError
from egcnn.metrics import METRICS
from egcnn.regions import BRATS, Regions
from egcnn.report import (
    Evaluation,
    View,
    duration,
    evaluate,
    evaluation_table,
    training_table,
    write_evaluation,
    write_picture,
)

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
    """Case a as it is; case b with half of ``front`` called background; none of case c."""
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[:4, 1:4], labels[:4, 4:7] = 1, 2
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    write_volume(labels, affine, folder / "a.nii.gz")
    write_volume(labels / 3.0, affine, folder / "a_edges.nii.gz")
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


def test_evaluation_files_and_table(dataset: Dataset, tmp_path: Path) -> None:
    found = evaluate(predicted(dataset, tmp_path / "p"), dataset)
    table, data = write_evaluation(found, tmp_path / "e")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(row["case"], row["region"]) for row in rows] == [
        *(("a", "front"), ("a", "back"), ("b", "front"), ("b", "back")),
    ]
    assert float(rows[2]["dice"]) == pytest.approx(2 / 3)
    read = json.loads(data.read_text())
    assert read["summary"] == found.summary()
    assert read["cases"] == found.cases
    assert read["missing"] == ["c"]
    console = Console(width=200, record=True)
    console.print(evaluation_table(found))
    text = console.export_text()
    assert "2 cases" in text
    assert "0.833 ± 0.236" in text


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
    with pytest.raises(InputError, match=r"holds no NIfTI file; wanted files such as a\.nii\.gz"):
        evaluate(folder, dataset)
    labels = np.zeros((8, 8, 8), np.uint8)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    write_volume(labels, affine, folder / "x.nii.gz")
    with pytest.raises(InputError, match=r"x\.nii\.gz: no labelled case .* has the name 'x'"):
        evaluate(folder, dataset)
    (folder / "x.nii.gz").unlink()
    write_volume(labels[:7], affine, folder / "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii\.gz: shape \(7, 8, 8\); wanted \(8, 8, 8\)"):
        evaluate(folder, dataset)
    write_volume(labels, np.eye(4), folder / "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii\.gz: its affine"):
        evaluate(folder, dataset)
    labels[0, 0, 0] = 7
    write_volume(labels, affine, folder / "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii\.gz: label value 7"):
        evaluate(folder, dataset)


def test_one_case_has_no_deviation() -> None:
    one = Evaluation({"a": {"front": dict.fromkeys(METRICS, 0.5)}}, ())
    assert one.summary()["front"]["dice"] == {"mean": 0.5, "std": 0.0}


def test_training_table_shows_best_and_last() -> None:
    rows = [
        {"epoch": epoch + 1, "dice": dice, "dice_WT": dice + 0.1, "dice_TC": dice - 0.1}
        for epoch, dice in enumerate((0.2, 0.7, 0.6))
    ]
    console = Console(width=100, record=True)
    console.print(training_table(rows, ["WT", "TC"], 187.2))
    text = console.export_text()
    assert "3 min 07 s" in text
    best, last = (line for line in text.splitlines() if "best" in line or "last" in line)
    assert [part in best for part in ("2", "0.8000", "0.6000", "0.7000")] == [True] * 4
    assert [part in last for part in ("3", "0.7000", "0.5000", "0.6000")] == [True] * 4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (187, "3 min 07 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_picture_shows_each_region_in_its_colour(tmp_path: Path) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    labels = np.zeros((24, 20, 9), np.uint8)
    labels[4:20, 4:16, 4] = 2
    labels[8:16, 7:13, 4] = 1
    labels[10:14, 9:11, 4] = 4
    black = np.zeros(labels.shape)
    edges = np.zeros(labels.shape)
    views = [
        View("one", black, labels, np.zeros_like(labels), edges, (1, 1, 1)),
        View("two", black, np.zeros_like(labels), labels, None, (1, 2, 1)),
    ]
    path = write_picture(views, BRATS, tmp_path / "new" / "picture.png")
    pixels = imread(path)[..., :3]
    height, width = pixels.shape[:2]
    assert width > height
    quarter = width // 4
    for place, name, colour in ((1, "WT", "#2ca02c"), (1, "TC", "#d62728"), (1, "ET", "#ffdd33")):
        shade = 0.65 * np.array(to_rgb(colour))
        panel = pixels[: height // 2, place * quarter : (place + 1) * quarter]
        close = np.abs(panel - shade).max(-1) < 0.01
        assert close.sum() > 50, name
    # The first case's prediction is empty.
    empty = pixels[: height // 2, 2 * quarter : 3 * quarter]
    assert not (np.abs(empty - 0.65 * np.array(to_rgb("#2ca02c"))).max(-1) < 0.01).any()
    with pytest.raises(InputError, match="views"):
        write_picture([], BRATS, tmp_path / "none.png")
