"""The same command lines take every layout from its folder to the paper's table."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from egcnn.data import open_dataset

from .test_cli import run

VALUES = {"brats": {0, 1, 2, 4}, "kits": {0, 1, 2}, "nnunet": {0, 1, 2, 3}}
REGIONS = {
    "brats": ["WT", "TC", "ET"],
    "kits": ["kidney", "tumour"],
    "nnunet": ["whole tumour", "tumour core", "enhancing tumour"],
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", VALUES)
def test_from_folder_to_table(tmp_path: Path, layout: str) -> None:
    data, folder, predictions = (tmp_path / part for part in ("data", "run", "predictions"))
    assert run("phantom", data, "--layout", layout, "--cases", "5", "--shape", "16,20,18") == 0
    assert run("inspect", data, "--images") == 0
    options = ("--epochs", "1", "--filters", "4", "--batch-size", "1", "--patch", "16,16,16")
    small = (*options, "--set", "spacing=null", "--device", "cpu", "--fold", "3")
    assert run("train", data, "-o", folder, *small) == 0
    split = json.loads((folder / "config.json").read_text())["split"]
    assert len(split["train"]) == 4
    best = folder / "best.ckpt"
    assert run("predict", best, data, "--split", "validation", "-o", predictions, "--edges") == 0
    cases = {case.name: case for case in open_dataset(data).cases}
    for name in split["validation"]:
        image = nib.load(cases[name].images[0])
        written = nib.load(predictions / f"{name}.nii.gz")
        assert written.shape == image.shape
        np.testing.assert_array_equal(written.affine, image.affine)
        assert set(np.unique(np.asanyarray(written.dataobj))) <= VALUES[layout]
    assert run("evaluate", predictions, data) == 0
    summary = json.loads((predictions / "metrics.json").read_text())["summary"]
    assert list(summary) == [*REGIONS[layout], "mean"]

    table = tmp_path / "table"
    small = [f"--set={entry}" for entry in ("filters=4", "batch_size=1", "patch=16,16,16")]
    arms = ("--backbones", "segnet", "--arms", "none,egcnn", "--seeds", "1", "--epochs", "1")
    assert run("compare", data, "-o", table, *arms, *small, "--set=spacing=null") == 0
    header, _, *rows = (table / "comparison.md").read_text().split("\n\n")[0].splitlines()
    assert all(f"{region} Dice" in header for region in REGIONS[layout])
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| Seg-Net", "none"],
        ["| Seg-Net", "EG-CNN"],
    ]
