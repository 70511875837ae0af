"""The study of the edge stream: from runs to rows and from rows to tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import edge_study
from benchmarks.edge_study import Data, Job, phantoms
from egcnn.comparison import Arm
from egcnn.metrics import COLUMNS

TINY = Data(
    "tiny",
    phantoms((16, 16, 16), 2, 2),
    {"epochs": 1, "batch_size": 1, "preprocessing.patch": (16, 16, 16), "precision": "32-true"},
)


def rows(backbone: str, kind: str, seed: int, dice: float, **changes: Any) -> list[dict[str, Any]]:
    about = {"data": "phantom32", "backbone": backbone, "kind": kind, "setting": "", "seed": seed}
    measured = {"config": "00", "parameters": 1000, "step_seconds": 0.1, "region": "mean"}
    return [{**about, **measured, **dict.fromkeys(COLUMNS, dice), **changes}]


@pytest.mark.slow
def test_a_training_becomes_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(edge_study.DATA, "tiny", TINY)
    job = Job("tiny", Arm("unet", "egcnn", "gate=voxel"), 3)
    found = edge_study.run(job, tmp_path, None)
    assert [row["region"] for row in found] == ["WT", "TC", "ET", "mean"]
    assert {(row["backbone"], row["setting"], row["seed"]) for row in found} == {
        ("unet", "gate=voxel", 3)
    }
    assert all(0 <= float(row["dice"]) <= 1 for row in found)
    # Only the cases are kept for the next run.
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]

    edge_study.write(found, tmp_path / "study.csv")
    read = edge_study.read(tmp_path / "study.csv")
    (result,) = edge_study.results(read, "tiny").results
    assert result.arm == job.arm
    assert result.regions["WT"]["dice"] == float(found[0]["dice"])
    train, _ = TINY.make(tmp_path / "tiny", None)
    assert found[0]["config"] == edge_study.digest(job.arm.config(TINY.config(train), train, 3))


def test_another_hyperparameter_is_another_training(tmp_path: Path) -> None:
    train, test = TINY.make(tmp_path / "tiny", None)
    assert {case.name for case in train.cases}.isdisjoint(case.name for case in test.cases)
    config = TINY.config(train)
    names = {
        edge_study.digest(c)
        for c in (config, config.change({"seed": 1}), config.change({"tau": 1}))
    }
    assert len(names) == 3


def test_unfinished_studies_have_whole_seeds() -> None:
    found = edge_study.jobs(["finalists", "candidates"], ["phantom32", "hippocampus"], 2, 1)
    assert [job.seed for job in found[:60]] == [0] * 30 + [1] * 30
    # What both stages train is trained once: of 15 candidates 3 are finalists too.
    assert len(set(found)) == len(found) == 2 * 3 * (5 * 2 + 12)


def test_report(tmp_path: Path) -> None:
    made = [
        row
        for backbone in ("unet", "vnet")
        for seed in (0, 1)
        for kind, dice in (("none", 0.80), ("egcnn", 0.82))
        for row in rows(backbone, kind, seed, dice + seed * 0.01)
    ]
    edge_study.write(made, tmp_path / "study.csv")
    found = edge_study.results(edge_study.read(tmp_path / "study.csv"), "phantom32")
    (spread, _) = edge_study.spread_rows(found)
    # Two seeds 0.01 apart deviate by 0.01 / sqrt(2), for each backbone.
    assert spread == {
        "Edge stream": "none",
        "Runs": "4",
        "Dice": "0.0071",
        "Surface Dice": "0.0071",
    }
    page = edge_study.report(edge_study.read(tmp_path / "study.csv"))
    assert "| all | EG-CNN - none | Dice | +0.0200 | +0.0200 to +0.0200 | 4 |" in page
    assert "## Hippocampus" not in page
