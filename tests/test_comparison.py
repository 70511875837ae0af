"""egcnn compare: only missing runs are trained, and the statistics are correct."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from scipy.stats import ttest_1samp

from egcnn import comparison
from egcnn.cli import main
from egcnn.comparison import (
    EDGES_SHOWN,
    Arm,
    Comparison,
    Result,
    compare,
    larger_filters,
    parameters,
    runs,
)
from egcnn.comparison.sizes import alone
from egcnn.data import Dataset
from egcnn.errors import InputError
from egcnn.evaluation import Evaluation, write_evaluation
from egcnn.files import write_json, write_text
from egcnn.metrics import COLUMNS
from egcnn.nn import BACKBONES, BackboneSettings, NetworkSettings
from egcnn.training import TrainingConfig, plan

ARMS = [Arm("unet", "none"), Arm("unet", "egcnn")]


@pytest.fixture(scope="module")
def config(dataset: Dataset) -> TrainingConfig:
    small = {"patch": (16, 16, 16), "filters": 2, "epochs": 1, "batch_size": 2}
    return plan(dataset, torch.device("cpu")).change(small)


@pytest.mark.slow
def test_runs_what_is_missing(
    dataset: Dataset, config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    fit = runs.fit

    def counted(config: TrainingConfig, dataset: Dataset, output: Path, **options: object):
        trained.append(output.name)
        if output.name == "unet-egcnn-seed0" and trained.count(output.name) == 1:
            raise KeyboardInterrupt
        return fit(config, dataset, output, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        compare(dataset, config, tmp_path, arms=ARMS, seeds=1)
    found = compare(dataset, config, tmp_path, arms=ARMS, seeds=1)
    assert trained == ["unet-seed0", "unet-egcnn-seed0", "unet-egcnn-seed0"]
    more = compare(dataset, config, tmp_path, arms=ARMS, seeds=2)
    assert trained[3:] == ["unet-seed1", "unet-egcnn-seed1"]
    assert more.results[:2] == found.results
    assert found.results[0].parameters < found.results[1].parameters
    assert set(found.results[0].regions) == {"WT", "TC", "ET", "mean"}

    page, sheet, plain = comparison.write_comparison(more, tmp_path)
    assert "| U-Net | EG-CNN |" in page.read_text()
    assert len(sheet.read_text().splitlines()) == 1 + 4 * 4
    read = json.loads(plain.read_text(), parse_constant=pytest.fail)
    assert len(read["runs"]) == 4

    # On another machine.
    moved = compare(dataset, replace(config, workers=1), tmp_path, arms=ARMS, seeds=1)
    assert moved.results == found.results
    with pytest.raises(InputError, match=r"unet-seed0: finished with lr 0\.001, now 0\.01"):
        compare(dataset, replace(config, lr=0.01), tmp_path, arms=ARMS, seeds=1)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("metrics.json", "{", "metrics.json: cannot be read as JSON .*; delete it to have its run"),
        ("metrics.json", '{"summary": {"WT": {}}}', r"metrics.json: dice: None; .*; delete it"),
        ("metrics.json", {"networks": [1]}, r"metrics.json: networks: \[1\]; expected .*; delete"),
        ("history.csv", "epoch,dice\n", "history.csv: no row with 'step_seconds'"),
    ],
)
def test_a_damaged_file_of_a_finished_run(
    dataset: Dataset, config: TrainingConfig, tmp_path: Path, name: str, text: Any, says: str
) -> None:
    run = tmp_path / "unet-seed0"
    settings = ARMS[0].config(config, dataset, 0)
    described = {"config": settings.to_dict(), "versions": {}}
    write_json(run / "config.json", {**described, "split": {"train": [], "validation": []}})
    scores = {region: dict.fromkeys(COLUMNS, 0.5) for region in ("WT", "TC", "ET")}
    write_evaluation(Evaluation({"a": scores}), run / "predictions")
    write_text(run / "history.csv", "epoch,dice,step_seconds\n1,0.5,0.25\n")
    found = compare(dataset, config, tmp_path, arms=ARMS[:1], seeds=1).results[0]
    assert (found.step_seconds, found.regions["mean"]["dice"]) == (0.25, 0.5)
    (path,) = run.rglob(name)
    if isinstance(text, dict):  # other entries
        text = json.dumps({**json.loads(path.read_text()), **text})
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        compare(dataset, config, tmp_path, arms=ARMS[:1], seeds=1)


def _result(arm: Arm, seed: int, dice: float) -> Result:
    metrics = {"dice": dice, "surface_dice": dice / 2, "hd95": 10 * (1 - dice)}
    metrics |= dict.fromkeys(EDGES_SHOWN, dice if arm.kind == "egcnn" else nan)
    return Result(arm, seed, 1000, 0.1 + seed, {"a": metrics, "mean": metrics})


def test_differences_by_hand() -> None:
    alone, wrapped = [0.80, 0.82, 0.81], [0.83, 0.82, 0.84]
    results = [_result(ARMS[0], seed, dice) for seed, dice in enumerate(alone)]
    results += [_result(ARMS[1], seed, dice) for seed, dice in enumerate(wrapped)]
    found = Comparison(tuple(results)).differences()
    assert [(d.backbone, d.metric) for d in found] == [
        ("unet", "dice"),
        ("unet", "surface_dice"),
        ("unet", "hd95"),
    ]
    expected = ttest_1samp([b - a for a, b in zip(alone, wrapped, strict=True)], 0)
    interval = expected.confidence_interval(0.95)
    assert found[0].pairs == 3
    assert found[0].mean == pytest.approx(0.02)
    assert (found[0].low, found[0].high) == pytest.approx((interval.low, interval.high))
    assert found[2].mean == pytest.approx(-0.2)
    table = comparison.difference_rows(Comparison(tuple(results)))
    assert (table[0]["Difference"], table[0]["Mean"]) == ("EG-CNN - none", "+0.0200")


def test_compare_loses_nothing_to_the_terminal(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad_output: IO[str]
) -> None:
    results = tuple(_result(arm, seed, 0.8) for arm in ARMS for seed in range(2))
    monkeypatch.setattr(comparison, "compare", lambda *_, **__: Comparison(results))
    monkeypatch.setattr(sys, "stdout", bad_output)
    with pytest.raises(SystemExit) as caught:
        main(["compare", str(dataset.root), "-o", str(tmp_path)])
    assert caught.value.code == 0
    names = [*(f"comparison.{kind}" for kind in ("csv", "json", "md")), "report.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_every_arm_is_compared_with_the_simpler_ones() -> None:
    results = [
        _result(Arm("unet", kind), seed, 0.7 + 0.01 * place)
        for place, kind in enumerate(("none", "larger", "consistency", "paper", "egcnn"))
        for seed in range(2)
    ]
    found = Comparison(tuple(results)).differences()
    assert {d.what: round(d.mean, 3) for d in found if d.metric == "dice"} == {
        "EG-CNN - none": 0.04,
        "EG-CNN - none, consistency loss": 0.02,
        "EG-CNN - none, larger": 0.03,
        "EG-CNN - EG-CNN, preset paper": 0.01,
        "none, consistency loss - none": 0.02,
        "none, larger - none": 0.01,
        "EG-CNN, preset paper - none": 0.03,
    }


def test_a_varied_setting_is_compared_with_the_default() -> None:
    arm = Arm("unet", "egcnn", "gate=voxel tau=1")
    assert arm.name == "unet-egcnn-gate=voxel-tau=1"
    assert arm.title == "EG-CNN, gate=voxel, tau=1"
    results = [_result(ARMS[1], seed, 0.8) for seed in range(3)]
    results += [_result(arm, seed, 0.7 + 0.1 * seed) for seed in range(2)]
    found = Comparison(tuple(results)).differences()
    assert {(d.what, d.pairs) for d in found} == {("gate=voxel tau=1 - EG-CNN", 2)}
    assert found[0].mean == pytest.approx(-0.05)


def test_what_an_arm_trains(dataset: Dataset, config: TrainingConfig) -> None:
    def made(kind: Any, setting: str = "", **base: Any) -> TrainingConfig:
        return Arm("unet", kind, setting).config(config.change(base), dataset, 3)

    same = config.change({"backbone.name": "unet", "seed": 3})
    alone = same.change({"edge": False})
    assert made("egcnn") == same
    assert made("egcnn", "gate=voxel tau=1") == same.change({"gate": "voxel", "tau": 1.0})
    assert made("none", consistency_weight=0.3) == alone
    assert made("none", consistency_weight=0.3).loss.weights(False)["consistency"] == 0
    assert made("consistency") == alone.change({"consistency_weight": 1.0})
    assert made("consistency", consistency_weight=0.3) == alone.change({"consistency_weight": 0.3})
    assert made("paper") == same.preset("paper")
    filters = made("larger").network.backbone.filters
    assert made("larger") == alone.change({"filters": filters})
    assert filters > config.network.backbone.filters
    with pytest.raises(InputError, match="gat: no such entry"):
        made("egcnn", "gat=voxel")


def test_one_pair_has_no_interval_and_unpaired_runs_do_not_count() -> None:
    results = (_result(ARMS[0], 0, 0.8), _result(ARMS[0], 1, 0.8), _result(ARMS[1], 1, 0.9))
    found = Comparison(results).differences()[0]
    assert (found.mean, found.low, found.pairs) == (pytest.approx(0.1), None, 1)
    assert Comparison(results[:2]).differences() == []


def test_several_backbones_are_taken_together_too() -> None:
    results = tuple(
        _result(Arm(backbone, kind), 0, dice)
        for backbone in ("unet", "vnet")
        for kind, dice in (("none", 0.8), ("egcnn", 0.9))
    )
    found = Comparison(results).differences()
    assert [d.pairs for d in found if d.metric == "dice"] == [1, 1, 2]
    assert found[-1].backbone == "all"


def test_rows_hold_mean_and_deviation_over_seeds() -> None:
    results = (_result(ARMS[0], 0, 0.8), _result(ARMS[0], 1, 0.9))
    (row,) = comparison.rows(Comparison(results))
    assert row["Average Dice"] == "0.8500 ± 0.0707"
    assert row["s/step"] == "0.600"
    assert row["Edge stream"] == "none"


def test_edge_rows_are_empty_where_there_is_no_edge_stream() -> None:
    results = tuple(_result(arm, seed, 0.8) for arm in ARMS for seed in range(2))
    alone, wrapped = comparison.edge_rows(Comparison(results))
    assert alone["F1"] == ""
    assert wrapped["F1"] == "0.800 ± 0.000"


def test_the_larger_network_is_the_narrowest_with_as_many_parameters() -> None:
    for backbone in BACKBONES:
        wrapped = NetworkSettings(BackboneSettings(backbone, filters=8))
        filters = larger_filters(wrapped, 4, 3)
        needed = parameters(wrapped, 4, 3)
        assert parameters(alone(wrapped, filters), 4, 3) >= needed
        assert parameters(alone(wrapped, filters - 2), 4, 3) < needed


@pytest.mark.parametrize(("options", "word"), [({"seeds": 0}, "seeds: 0"), ({"arms": []}, "arms")])
def test_rejections(
    dataset: Dataset, config: TrainingConfig, tmp_path: Path, options: dict, word: str
) -> None:
    with pytest.raises(InputError, match=word):
        compare(dataset, config, tmp_path, **({"arms": ARMS, "seeds": 1} | options))
