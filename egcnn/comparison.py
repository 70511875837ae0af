"""Backbones with and without the edge stream, over several seeds: the paper's Tables 1 and 2."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from egcnn.checkpoint import NetworkSpec, build_network, load, versions
from egcnn.config import TrainingConfig
from egcnn.data.case import Dataset
from egcnn.errors import InputError
from egcnn.evaluation import predict_and_evaluate
from egcnn.files import without_nan, write_json, write_text
from egcnn.nn import BACKBONES
from egcnn.nn.cost import cost
from egcnn.report import duration
from egcnn.training import LAST, Existing, fit, network_spec, read_config, read_metrics

#: What is compared, and its title: of every metric the mean over regions counts.
COMPARED = {"dice": "Dice", "surface_dice": "Surface Dice", "hd95": "HD95 (mm)"}
#: What is shown of the edges, first the edge head's, then those of the segmentation.
EDGES_SHOWN = {
    "edge_f1": "F1",
    "edge_best_f1": "Best F1",
    "edge_average_precision": "Average precision",
    "edge_thickness": "Thickness",
    "edge_interior": "Interior filled",
    "sobel_f1": "F1, segmentation's",
    "sobel_interior": "Interior filled, segmentation's",
}
#: Written last: a run that has it is finished.
EVALUATION = Path("predictions", "metrics.json")
Kind = Literal["none", "larger", "consistency", "egcnn", "paper"]
#: What may be compared, and its title: the backbone alone; alone, and as large as with the edge
#: stream; alone, with the consistency loss; EG-CNN; EG-CNN with the preset "paper".
KINDS: dict[Kind, str] = {
    "none": "none",
    "larger": "none, larger",
    "consistency": "none, consistency loss",
    "egcnn": "EG-CNN",
    "paper": "EG-CNN, preset paper",
}


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Args:
        backbone: one of ``egcnn.nn.BACKBONES``.
        kind: one of :data:`KINDS`.
        setting: ``NAME=VALUE`` texts, separated by spaces: what differs from the configuration of
            the others (an ablation).
    """

    backbone: str
    kind: Kind
    setting: str = ""

    @property
    def name(self) -> str:
        """Name of its runs' folders, without the seed."""
        parts = [self.backbone, *([] if self.kind == "none" else [self.kind]), *self._settings]
        return "-".join(parts)

    @property
    def title(self) -> str:
        """What stands in the table's second column."""
        return ", ".join([KINDS[self.kind], *self._settings])

    @property
    def _settings(self) -> list[str]:
        return self.setting.split()

    def config(self, config: TrainingConfig, dataset: Dataset, seed: int) -> TrainingConfig:
        """The run's hyperparameters."""
        config = replace(
            config, backbone=self.backbone, edge=self.kind in ("egcnn", "paper"), seed=seed
        )
        if self.kind == "paper":
            config = config.preset("paper")
        if self.kind == "consistency":
            config = replace(config, consistency=replace(config, edge=True).consistency_weight)
        elif self.kind in ("none", "larger"):
            config = replace(config, consistency=None)
        if self.kind == "larger":
            config = replace(config, filters=larger_filters(network_spec(config, dataset)))
        return config.parse(self._settings)


def parameters(spec: NetworkSpec) -> int:
    """How many numbers training adapts."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_network(spec).parameters())


def larger_filters(spec: NetworkSpec) -> int:
    """The narrowest even width at which the backbone alone has as many parameters as EG-CNN.

    The paper's control: does the edge stream help by what it does, or by its parameters?
    """
    wanted = parameters(replace(spec, edge=True))
    filters = spec.filters + spec.filters % 2
    while parameters(replace(spec, edge=False, filters=filters)) < wanted:
        filters += 2
    return filters


def networks(modalities: int, regions: int, filters: int, shape: tuple[int, int, int]) -> list[str]:
    """A Markdown table of what every network costs; see :func:`egcnn.nn.cost.cost`."""
    lines = [
        "| network | filters | parameters | multiply-adds |",
        "|---|---|---|---|",
    ]
    for backbone, entry in BACKBONES.items():
        alone = NetworkSpec(modalities, regions, backbone, edge=False, filters=filters)
        wrapped = replace(alone, edge=True)
        larger = replace(alone, filters=larger_filters(wrapped))
        for title, spec in (
            (entry.title, alone),
            (f"{entry.title} + EG-CNN", wrapped),
            (f"{entry.title}, larger", larger),
        ):
            with torch.device("meta"):
                found = cost(build_network(spec), (1, modalities, *shape))
            lines.append(
                f"| {title} | {spec.filters} | {found.parameters / 1e6:.2f} M "
                f"| {found.multiply_adds / 1e9:.0f} G |"
            )
    return lines


@dataclass(frozen=True)
class Result:
    """One finished run.

    Args:
        arm: what was trained.
        seed: of weights, order, augmentation and noise.
        parameters: of the network.
        step_seconds: median time of a training step.
        regions: per region, and for their ``"mean"``, the mean of each metric over held-out cases.
    """

    arm: Arm
    seed: int
    parameters: int
    step_seconds: float
    regions: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Difference:
    """One arm minus another, paired by seed.

    Args:
        backbone: or ``"all"``.
        what: such as ``"EG-CNN - none"``.
        metric: of :data:`COMPARED`.
        mean: of the differences.
        low: lower end of the 95 % confidence interval of the mean (Student's t), or None for a
            single pair.
        high: its upper end.
        pairs: how many there are.
    """

    backbone: str
    what: str
    metric: str
    mean: float
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True)
class Comparison:
    """All finished runs of a comparison."""

    results: tuple[Result, ...]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """What was compared, in the order of the table."""
        return tuple(dict.fromkeys(result.arm for result in self.results))

    def of(self, arm: Arm) -> list[Result]:
        """An arm's runs."""
        return [result for result in self.results if result.arm == arm]

    def differences(self) -> list[Difference]:
        """Each arm minus the simpler ones, and each setting minus the same arm without it."""
        backbones = list(dict.fromkeys(arm.backbone for arm in self.arms))
        variants = list(dict.fromkeys((arm.kind, arm.setting) for arm in self.arms))
        simpler: list[Kind] = ["none", "consistency", "larger", "paper"]
        pairs: list[tuple[tuple[Kind, str], tuple[Kind, str]]] = [
            *((("egcnn", ""), (kind, "")) for kind in simpler),
            *(((kind, ""), ("none", "")) for kind in simpler[1:]),
            *(((kind, setting), (kind, "")) for kind, setting in variants if setting),
        ]
        found = []
        for one, other in pairs:
            if one not in variants or other not in variants:
                continue
            what = f"{one[1] or KINDS[one[0]]} - {KINDS[other[0]]}"
            for group in [*backbones, *(["all"] if len(backbones) > 1 else [])]:
                members = backbones if group == "all" else [group]
                runs = [pair for b in members for pair in self._pairs(Arm(b, *one), Arm(b, *other))]
                for metric in COMPARED if runs else ():
                    values = [
                        a.regions["mean"][metric] - b.regions["mean"][metric] for a, b in runs
                    ]
                    found.append(_difference(group, what, metric, values))
        return found

    def _pairs(self, arm: Arm, other: Arm) -> list[tuple[Result, Result]]:
        """Runs of both with the same seed."""
        others = {result.seed: result for result in self.of(other)}
        return [(run, others[run.seed]) for run in self.of(arm) if run.seed in others]


def _difference(backbone: str, what: str, metric: str, values: Sequence[float]) -> Difference:
    centre, count = mean(values), len(values)
    if count < 2:
        return Difference(backbone, what, metric, centre, None, None, count)
    half = float(student.ppf(0.975, count - 1)) * stdev(values) / count**0.5
    return Difference(backbone, what, metric, centre, centre - half, centre + half, count)


def compare(
    dataset: Dataset,
    config: TrainingConfig,
    output: str | Path,
    *,
    arms: Sequence[Arm],
    seeds: int,
    device: str = "auto",
    console: Console | None = None,
) -> Comparison:
    """Train and evaluate what is missing in ``output``; what is finished there is not repeated.

    Each run is evaluated with its last checkpoint, which no held-out case had a part in choosing,
    and written to ``OUTPUT/ARM-seedN``. Interrupted ones go on from their last epoch.

    Args:
        dataset: where the cases are.
        config: hyperparameters of all runs; backbone, edge stream and seed are set here.
        output: the comparison's folder.
        arms: what is compared.
        seeds: runs of each, with the seeds from 0. All share the split.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        console: where progress is told; None is silent.

    Raises:
        InputError: as :func:`egcnn.training.fit`; or a run there was made with other settings.
    """
    if seeds < 1:
        raise InputError(f"seeds: {seeds}; wanted at least 1")
    if not arms:
        raise InputError("arms: none; wanted at least one backbone")
    say = (console or Console(quiet=True)).print
    # All at once, so that a bad setting ends it before the first run and not after hours.
    todo = [(arm, seed, arm.config(config, dataset, seed)) for seed in range(seeds) for arm in arms]
    results = []
    for number, (arm, seed, wanted) in enumerate(todo, 1):
        title = f"run {number} of {len(todo)}, {arm.name}-seed{seed}"
        finished = (Path(output) / f"{arm.name}-seed{seed}" / EVALUATION).is_file()
        say(f"{title}: {'finished before' if finished else 'training'}", highlight=False)
        started = time.perf_counter()
        results.append(_run(dataset, wanted, output, arm, device))
        if not finished:
            say(f"{title}: done in {duration(time.perf_counter() - started)}", highlight=False)
    return Comparison(tuple(results))


def _run(
    dataset: Dataset, config: TrainingConfig, output: str | Path, arm: Arm, device: str
) -> Result:
    """Train and evaluate one arm with one seed, or read what ``OUTPUT/ARM-seedN`` holds."""
    run = Path(output) / f"{arm.name}-seed{config.seed}"
    if (run / EVALUATION).is_file():
        before = read_config(run)["config"]
        if differs := [k for k, v in config.to_dict().items() if before.get(k) != v]:
            raise InputError(
                f"{run}: finished with {differs[0]} {before.get(differs[0])}, now "
                f"{config.to_dict()[differs[0]]}; wanted the same settings or another folder"
            )
    else:
        existing: Existing = "resume" if (run / LAST).is_file() else "overwrite"
        done = fit(config, dataset, run, existing=existing, device=device, quiet=True)
        predict_and_evaluate(load(run / LAST), done.validation, dataset, (run / EVALUATION).parent)
    return _result(arm, config.seed, run, network_spec(config, dataset))


def _result(arm: Arm, seed: int, run: Path, spec: NetworkSpec) -> Result:
    summary = json.loads((run / EVALUATION).read_text(encoding="utf-8"))["summary"]
    regions = {
        region: {
            metric: nan if values["mean"] is None else values["mean"]
            for metric, values in row.items()
        }
        for region, row in summary.items()
    }
    steps = [row["step_seconds"] for row in read_metrics(run / "metrics.csv")]
    return Result(arm, seed, parameters(spec), median(steps), regions)


def _spread(values: Sequence[float], digits: int) -> str:
    if any(isnan(value) for value in values):
        return ""
    centre = f"{mean(values):.{digits}f}"
    return f"{centre} ± {stdev(values):.{digits}f}" if len(values) > 1 else centre


def rows(comparison: Comparison) -> list[dict[str, str]]:
    """The paper's table as text: mean ± sample deviation over seeds."""
    table = []
    for arm in comparison.arms:
        runs = comparison.of(arm)
        regions = [region for region in runs[0].regions if region != "mean"]
        row = {
            "Architecture": BACKBONES[arm.backbone].title,
            "Edge stream": arm.title,
            "Parameters": f"{runs[0].parameters:,}",
            "s/step": f"{median(run.step_seconds for run in runs):.3f}",
            "Average Dice": _spread([run.regions["mean"]["dice"] for run in runs], 4),
        }
        for region in regions:
            row[f"{region} Dice"] = _spread([run.regions[region]["dice"] for run in runs], 4)
        for metric in ("surface_dice", "hd95"):
            digits = 2 if metric == "hd95" else 4
            values = [run.regions["mean"][metric] for run in runs]
            row[COMPARED[metric]] = _spread(values, digits)
        table.append(row)
    return table


def edge_rows(comparison: Comparison) -> list[dict[str, str]]:
    """How good the edges are, mean over regions, as text: mean ± sample deviation over seeds."""
    return [
        {"Architecture": BACKBONES[arm.backbone].title, "Edge stream": arm.title}
        | {
            title: _spread([run.regions["mean"][metric] for run in comparison.of(arm)], 3)
            for metric, title in EDGES_SHOWN.items()
        }
        for arm in comparison.arms
    ]


def difference_rows(comparison: Comparison) -> list[dict[str, str]]:
    """What the edge stream and each setting change, as text."""
    table = []
    for found in comparison.differences():
        digits = 3 if found.metric == "hd95" else 4
        interval = (
            "one pair"
            if found.low is None or found.high is None
            else f"{found.low:+.{digits}f} to {found.high:+.{digits}f}"
        )
        table.append(
            {
                "Architecture": "all"
                if found.backbone == "all"
                else BACKBONES[found.backbone].title,
                "Difference": found.what,
                "Metric": COMPARED[found.metric],
                "Mean": f"{found.mean:+.{digits}f}",
                "95 % interval": interval,
                "Pairs": str(found.pairs),
            }
        )
    return table


def _architecture(backbone: str) -> str:
    return "all" if backbone == "all" else BACKBONES[backbone].title


def as_table(title: str, lines: Sequence[dict[str, str]]) -> Table:
    """Lines of text under their keys, for the terminal."""
    table = Table(title=title)
    for index, key in enumerate(lines[0]):
        table.add_column(key, justify="left" if index < 2 or key == "Metric" else "right")
    for line in lines:
        table.add_row(*line.values())
    return table


def markdown(lines: Sequence[dict[str, str]]) -> str:
    """Lines of text under their keys, as a Markdown table."""
    head = [" | ".join(lines[0]), " | ".join("---" for _ in lines[0])]
    return "".join(f"| {line} |\n" for line in [*head, *(" | ".join(r.values()) for r in lines)])


def write_comparison(comparison: Comparison, output: str | Path) -> tuple[Path, Path, Path]:
    """Write ``comparison.md`` (the tables), ``.csv`` (a row per run and region) and ``.json``.

    Returns:
        the paths of the three files.
    """
    output = Path(output)
    made = (rows(comparison), edge_rows(comparison), difference_rows(comparison))
    tables = [table for table in made if table]
    write_text(page := output / "comparison.md", "\n".join(markdown(table) for table in tables))
    metrics = list(next(iter(comparison.results[0].regions.values())))
    text = io.StringIO()
    writer = csv.DictWriter(text, ["arm", "seed", "region", *metrics], lineterminator="\n")
    writer.writeheader()
    for result in comparison.results:
        for region, values in result.regions.items():
            writer.writerow(
                {
                    "arm": result.arm.name,
                    "seed": result.seed,
                    "region": region,
                    **without_nan(values, ""),
                }
            )
    write_text(sheet := output / "comparison.csv", text.getvalue())
    data: dict[str, Any] = {
        "runs": [
            {
                "arm": result.arm.name,
                "seed": result.seed,
                "parameters": result.parameters,
                "step_seconds": result.step_seconds,
                "regions": result.regions,
            }
            for result in comparison.results
        ],
        "differences": [vars(found) for found in comparison.differences()],
        "versions": versions(),
    }
    write_json(plain := output / "comparison.json", data)
    return page, sheet, plain
