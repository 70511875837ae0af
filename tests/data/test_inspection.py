"""What a dataset holds, and every bad case found at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from egcnn.checkpoint import Trained
from egcnn.data import BRATS, find_dataset, inspect_cases, open_dataset, write_volume
from egcnn.data.inspection import check_headers, summarize
from egcnn.data.phantom import write_brats
from egcnn.errors import InputError
from egcnn.inference import predict_cases
from egcnn.nn import build_network
from egcnn.training import fit, plan

from ..test_cli import PATCH, SMALL, run

SHAPE = (16, 18, 17)
SHEARED = np.array([[-1.0, 0.1, 0, 0], [0, -1, 0, 17], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.fixture
def brats(tmp_path: Path) -> Path:
    write_brats(tmp_path, 3, SHAPE, seed=2)
    return tmp_path


def rewrite(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> None:
    volume = nib.load(path)
    data = np.asanyarray(volume.dataobj) if array is None else array
    write_volume(data, volume.affine if affine is None else affine, path)


def zero_affine(path: Path) -> None:
    volume = nib.load(path)
    image = nib.Nifti1Image(np.asanyarray(volume.dataobj), None, volume.header)
    for row in ("srow_x", "srow_y", "srow_z"):
        image.header[row] = 0
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    nib.save(image, path)


def shear_all(path: Path) -> None:
    for other in path.parent.iterdir():
        rewrite(other, affine=SHEARED)


def foreign_label(path: Path) -> None:
    labels = np.asanyarray(nib.load(path).dataobj).copy()
    labels[0, 0, :5] = 3
    rewrite(path, labels)


#: A file of the middle case, what is done to it, and what is said.
FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("t1ce", Path.unlink, "modality t1ce is missing; expected PHANTOM_001_t1ce"),
    "shape": ("t2", lambda path: rewrite(path, np.ones((16, 18, 16))), "shape (16, 18, 16); exp"),
    "affine": ("t2", lambda path: rewrite(path, affine=np.eye(4)), "its affine places it up to"),
    "zero": ("t1", zero_affine, "the affine has no inverse"),
    "sheared": ("t1", shear_all, "sheared, two axes meet at 84.3"),
    "truncated": ("flair", lambda path: path.write_bytes(b""), "the file is empty"),
    "label shape": ("seg", lambda path: rewrite(path, np.ones((4, 4, 4))), "shape (4, 4, 4); exp"),
    "label channels": (
        *("seg", lambda path: rewrite(path, np.ones((*SHAPE, 2)))),
        "shape (16, 18, 17, 2); expected three axes",
    ),
    "label values": ("seg", foreign_label, "label value 3 in 5 voxels; expected only 0, 1, 2, 4"),
}


def break_case(root: Path, fault: str, case: int = 1) -> str:
    part, change, message = FAULTS[fault]
    name = f"PHANTOM_{case:03d}"
    change(root / "HGG" / name / f"{name}_{part}.nii.gz")
    return message


def test_a_sound_dataset(brats: Path) -> None:
    (brats / "HGG/PHANTOM_002/PHANTOM_002_seg.nii.gz").unlink()
    dataset = find_dataset(brats)
    reports = list(inspect_cases(dataset, images=True))
    assert [(r.name, r.labelled, r.problems) for r in reports] == [
        ("PHANTOM_000", True, ()),
        ("PHANTOM_001", True, ()),
        ("PHANTOM_002", False, ()),
    ]
    for report, case in zip(reports[:2], dataset.cases, strict=False):
        assert report.shape == SHAPE
        assert report.spacing == (1, 1, 1)
        assert report.orientation == "LPS"
        labels = nib.load(case.label).get_fdata()
        assert report.labels == {value: (labels == value).sum() for value in BRATS.values}
    summary = json.loads(json.dumps(summarize(dataset, reports)))
    assert summary["unlabelled"] == ["PHANTOM_002"]
    assert summary["problems"] == {}
    assert summary["labels"]["4"]["cases"] == 2
    shares = [report.labels[2] / np.prod(SHAPE) for report in reports[:2]]
    assert summary["labels"]["2"]["share"] == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_case_is_named(brats: Path, fault: str) -> None:
    message = break_case(brats, fault)
    bad = [report for report in inspect_cases(find_dataset(brats)) if report.problems]
    assert [report.name for report in bad] == ["PHANTOM_001"]
    (problem,) = bad[0].problems
    assert message in problem
    assert "PHANTOM_001" in problem


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "label values"])
def test_training_names_a_bad_case_at_its_start(brats: Path, tmp_path: Path, fault: str) -> None:
    def train() -> None:
        dataset = open_dataset(brats)
        fit(plan(dataset).change({"epochs": 1}), dataset, tmp_path / "run", quiet=True)

    message = break_case(brats, fault)
    with pytest.raises(InputError) as caught:
        train()
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_label_values_are_found_before_the_first_step(brats: Path, tmp_path: Path) -> None:
    message = break_case(brats, "label values")
    dataset = open_dataset(brats)
    config = plan(dataset).change({"epochs": 1})
    for cache in (None, tmp_path / "cache"):
        output = tmp_path / f"run{cache is None}"
        with pytest.raises(InputError, match=rf"PHANTOM_001_seg\.nii\.gz: {message}"):
            fit(config, dataset, output, cache=cache, quiet=True)
        assert not list(output.glob("*.ckpt"))


def network() -> Trained:
    """An untrained network of BraTS."""
    made = build_network(SMALL, 4, len(BRATS), exclusive=BRATS.exclusive)
    return Trained(made, SMALL, PATCH, BRATS, ("t1", "t1ce", "t2", "flair"))


@pytest.mark.parametrize(
    "fault", ["missing", "shape", "affine", "zero", "truncated", "label shape", "sheared"]
)
def test_prediction_names_a_bad_case_at_its_start(brats: Path, tmp_path: Path, fault: str) -> None:
    message = break_case(brats, fault)
    fine = fault in ("label shape", "sheared")  # of no account here
    with nullcontext() if fine else pytest.raises(InputError) as caught:
        for _ in predict_cases(network(), open_dataset(brats).cases, tmp_path / "p"):
            pass
    assert fine or message in str(caught.value)
    assert len(list((tmp_path / "p").glob("*"))) == (3 if fine else 0)


def test_damaged_voxels_end_no_prediction(brats: Path, tmp_path: Path) -> None:
    path = brats / "HGG/PHANTOM_001/PHANTOM_001_t2.nii.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    done: list[str] = []
    predictions = predict_cases(network(), open_dataset(brats).cases, tmp_path / "p")
    with pytest.raises(InputError, match=r"PHANTOM_001_t2\.nii\.gz: truncated"):
        done.extend(case.name for case, _, _ in predictions)
    assert done == ["PHANTOM_000", "PHANTOM_002"]


def test_all_bad_cases_are_found_at_once(brats: Path, capfd: pytest.CaptureFixture[str]) -> None:
    expected = [break_case(brats, fault, case) for case, fault in enumerate(list(FAULTS)[:3])]
    assert run("inspect", brats) == 1
    said = capfd.readouterr().out
    for case, message in enumerate(expected):
        assert f"PHANTOM_{case:03d}: " in said
        assert message.replace("_001_", f"_{case:03d}_") in said
    assert "3 cases, 2 labelled, 3 with problems" in said
    assert run("inspect", brats, "--json") == 1
    summary = json.loads(capfd.readouterr().out)
    assert sorted(summary["problems"]) == ["PHANTOM_000", "PHANTOM_001", "PHANTOM_002"]
    assert run("train", brats, "-o", brats / "run") == 1
    assert "PHANTOM_000: modality t1ce is missing" in capfd.readouterr().err


def test_headers_count_the_others(brats: Path) -> None:
    for case in (0, 2):
        break_case(brats, "shape", case)
    dataset = open_dataset(brats)
    with pytest.raises(InputError, match=r"PHANTOM_000_t2\.nii\.gz: shape .* \(1 more: egcnn insp"):
        check_headers(dataset, dataset.cases)
    check_headers(dataset, dataset.cases[1:2])


def test_a_plan_counts_the_bad_headers(brats: Path) -> None:
    for case in (0, 2):
        break_case(brats, "truncated" if case else "zero", case)
    with pytest.raises(InputError, match=r"PHANTOM_000_t1\.nii\.gz: .* \(1 more: egcnn inspect"):
        plan(open_dataset(brats))


def test_a_plan_is_for_the_labelled_cases(brats: Path) -> None:
    expected = plan(open_dataset(brats))
    (brats / "HGG/PHANTOM_001/PHANTOM_001_seg.nii.gz").unlink()
    break_case(brats, "zero")
    assert plan(open_dataset(brats)) == expected


def test_damaged_voxels_are_found_by_reading_them(brats: Path) -> None:
    path = brats / "HGG/PHANTOM_000/PHANTOM_000_t2.nii.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    dataset = find_dataset(brats)
    assert not any(report.problems for report in inspect_cases(dataset))
    (problem,) = next(inspect_cases(dataset, images=True)).problems
    assert "PHANTOM_000_t2.nii.gz: truncated" in problem


def test_what_is_printed(brats: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", brats) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert f"{brats}: brats layout, 3 cases, 3 labelled\n" in said.out
    assert "modalities: t1, t1ce, t2, flair (z-scores)\n" in said.out
    assert "regions: WT (1, 2, 4), TC (1, 4), ET (4); sigmoid\n" in said.out
    assert "16x18x17" in said.out
    assert "1x1x1" in said.out
    assert "WT, TC, ET" in said.out
