"""Study of the edge stream: its variants and its benefit, over many small runs paired by seed.

    python -m benchmarks.edge_study candidates finalists --hippocampus Task04_Hippocampus
    python -m benchmarks.edge_study --report

Every finished run is a few rows of ``benchmarks/results/edge_study.csv`` and is not trained again,
so an interrupted study can be continued. All seeds share the cases, so that deviations are those of
training alone; the scored cases are used neither for training nor for validation.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median, stdev
from typing import Annotated, Any

import typer

from egcnn import comparison
from egcnn.checkpoint import load
from egcnn.comparison import Arm, Comparison, Kind, Result
from egcnn.data import Dataset, open_dataset, split
from egcnn.data.phantom import write_brats
from egcnn.evaluation import predict_and_evaluate
from egcnn.files import write_text
from egcnn.metrics import COLUMNS, METRICS
from egcnn.processes import end_with_parent
from egcnn.training import TrainingConfig, fit, plan, read_history

RESULTS = Path(__file__).parent / "results" / "edge_study.csv"
REPORT = RESULTS.with_suffix(".md")
#: Bumped when networks or cases change while the configuration does not: rows of an earlier form
#: are trained again.
FORM = 1
#: The backbones of the study, those of the paper.
BACKBONES = ("segnet", "unet", "vnet")

#: Interpretations of the paper, each compared with the default; see
#: ``egcnn.training.TrainingConfig``.
CANDIDATES: tuple[tuple[Kind, str], ...] = (
    ("none", ""),
    ("egcnn", ""),
    ("paper", ""),
    ("egcnn", "network.activation=relu_sigmoid"),
    ("egcnn", "gate=voxel"),
    ("egcnn", "residual=none"),
    ("egcnn", "residual=conv"),
    ("egcnn", "head=linear"),
    ("egcnn", "network.channels=16"),
    ("egcnn", "weight_negatives=true"),
    ("egcnn", "lambda2=2"),
    ("egcnn", "edge_weight=0.5"),
    ("egcnn", "edge_weight=0.25"),
    ("egcnn", "edge_weight=0"),
    ("egcnn", "consistency_weight=0"),
)
#: Arms with more seeds: the default and 1x1x1 convolutions after the gates, and three controls.
FINALISTS: tuple[tuple[Kind, str], ...] = (
    ("none", ""),
    ("consistency", ""),
    ("egcnn", ""),
    ("larger", ""),
    ("egcnn", "residual=conv"),
)


@dataclass(frozen=True)
class Data:
    """A data set: cases to train on, cases to score, and hyperparameters.

    Args:
        title: display name.
        make: writes the cases to a folder; returns those to train on and those to score.
        changes: hyperparameters, by dotted name.
    """

    title: str
    make: Callable[[Path, Path | None], tuple[Dataset, Dataset]]
    changes: dict[str, Any]

    def config(self, dataset: Dataset) -> TrainingConfig:
        """The hyperparameters of all arms."""
        # One or two cases are for validation, the others for training.
        common = {"fraction": 0.04, "network.backbone.filters": 8, "lr": 1e-3}
        here = {"precision": "bf16-mixed", "workers": 0}
        return plan(dataset).change({**common, **here, **self.changes})


def phantoms(shape: tuple[int, int, int], train: int, test: int) -> Callable[..., Any]:
    """Synthetic tumours; the last ones are scored."""

    def make(folder: Path, _: Path | None) -> tuple[Dataset, Dataset]:
        if not folder.exists():
            write_brats(folder, train + test, shape=shape)
        return _parted(open_dataset(folder), train)

    return make


def hippocampus(folder: Path, source: Path | None) -> tuple[Dataset, Dataset]:
    """The Decathlon's hippocampus: 64 cases to train on, 40 to score."""
    if source is None:
        raise typer.BadParameter("--hippocampus: not given; expected the folder of Task04")
    dataset = open_dataset(source)
    train, test = split(dataset, 0.25)
    return _parted(replace(dataset, cases=(*train[:64], *test[:40])), 64)


def _parted(dataset: Dataset, train: int) -> tuple[Dataset, Dataset]:
    cases = dataset.cases
    return replace(dataset, cases=cases[:train]), replace(dataset, cases=cases[train:])


DATA = {
    "phantom32": Data(
        "synthetic tumours, 32x32x32 voxels, 36 cases, 24 scored",
        phantoms((32, 32, 32), 36, 24),
        {"epochs": 17, "batch_size": 1},
    ),
    "phantom48": Data(
        "synthetic tumours, 48x48x40 voxels, 36 cases, 12 scored",
        phantoms((48, 48, 40), 36, 12),
        {"epochs": 17, "batch_size": 1},
    ),
    "hippocampus": Data(
        "hippocampus (Decathlon), 64 cases, 40 scored",
        hippocampus,
        {"epochs": 10, "batch_size": 2, "preprocessing.patch": (32, 48, 32)},
    ),
}


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        data: a key of :data:`DATA`.
        arm: the arm.
        seed: seed of everything but the cases.
    """

    data: str
    arm: Arm
    seed: int


def jobs(stages: Iterable[str], data: Sequence[str], seeds: int, tries: int) -> list[Job]:
    """The runs of the stages, seed by seed, so that an unfinished study has complete pairs."""
    variants = {"candidates": (CANDIDATES, tries), "finalists": (FINALISTS, seeds)}
    arms = {
        stage: ([Arm(b, *variant) for b in BACKBONES for variant in tried], count)
        for stage, (tried, count) in variants.items()
    }
    found = [
        Job(name, arm, seed)
        for stage in stages
        for seed in range(arms[stage][1])
        for name in data
        for arm in arms[stage][0]
    ]
    return list(dict.fromkeys(found))


def run(job: Job, folder: Path, source: Path | None) -> list[dict[str, Any]]:
    """Train and score; the rows of the table."""
    data = DATA[job.data]
    train, test = data.make(folder / job.data, source)
    config = job.arm.config(data.config(train), train, job.seed)
    output = folder / f"{job.data}-{job.arm.name}-{job.seed}"
    done = fit(config, train, output, existing="overwrite", device="cpu", quiet=True)
    evaluation = predict_and_evaluate(load(done.last), test.cases, test, output / "predictions")
    seconds = median(row["step_seconds"] for row in read_history(output))
    shutil.rmtree(output)
    return [
        {
            "data": job.data,
            "backbone": job.arm.backbone,
            "kind": job.arm.kind,
            "setting": job.arm.setting,
            "seed": job.seed,
            "config": digest(config),
            "parameters": comparison.parameters(
                config.network, len(train.modalities), len(train.regions)
            ),
            "step_seconds": seconds,
            "region": region,
            **{metric: f"{value['mean']:.6g}" for metric, value in row.items()},
        }
        for region, row in evaluation.summary().items()
    ]


def digest(config: TrainingConfig) -> str:
    """A hash of the hyperparameters that are not their defaults.

    So the rows stay valid when a hyperparameter is added whose default is the old behaviour; a
    changed default needs another :data:`FORM`.
    """
    defaults = TrainingConfig(config.preprocessing).to_dict()
    chosen = _changed(config.to_dict(), defaults) | {"preprocessing": defaults["preprocessing"]}
    text = json.dumps({"form": FORM, **chosen}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _changed(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The entries that are not their defaults."""
    return {
        name: _changed(value, defaults[name]) if isinstance(value, dict) else value
        for name, value in settings.items()
        if value != defaults[name]
    }


def read(path: Path = RESULTS) -> list[dict[str, str]]:
    """The rows of finished trainings."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def write(rows: Sequence[dict[str, Any]], path: Path = RESULTS) -> None:
    """All rows, in an order that does not depend on which training ended first."""
    text = io.StringIO()
    kinds = list(comparison.KINDS)
    order = sorted(
        rows,
        key=lambda row: (
            *(row["data"], row["setting"], BACKBONES.index(row["backbone"])),
            *(kinds.index(row["kind"]), int(row["seed"])),
        ),
    )
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(order)
    write_text(path, text.getvalue())


def results(rows: Sequence[dict[str, str]], data: str) -> Comparison:
    """The finished trainings on one data set."""
    groups: dict[tuple[Arm, int], list[dict[str, str]]] = {}
    for row in rows:
        if row["data"] == data:
            arm = Arm(row["backbone"], row["kind"], row["setting"])  # type: ignore[arg-type]
            groups.setdefault((arm, int(row["seed"])), []).append(row)
    return Comparison(
        tuple(
            Result(
                arm,
                seed,
                int(group[0]["parameters"]),
                float(group[0]["step_seconds"]),
                {row["region"]: {m: float(row[m] or "nan") for m in COLUMNS} for row in group},
            )
            for (arm, seed), group in groups.items()
        )
    )


def spread_rows(found: Comparison) -> list[dict[str, str]]:
    """Deviation between seeds, pooled over backbones."""
    table = []
    for kind in dict.fromkeys(arm.kind for arm in found.arms if not arm.setting):
        groups = [found.of(arm) for arm in found.arms if arm.kind == kind and not arm.setting]
        row = {"Edge stream": comparison.KINDS[kind], "Runs": str(sum(map(len, groups)))}
        for metric in ("dice", "surface_dice"):
            spreads = [
                stdev(run.regions["mean"][metric] for run in group)
                for group in groups
                if len(group) > 1
            ]
            pooled = math.sqrt(sum(s * s for s in spreads) / max(1, len(spreads)))
            row[METRICS[metric].title] = f"{pooled:.4f}" if spreads else ""
        table.append(row)
    return table


def report(rows: Sequence[dict[str, str]]) -> str:
    """The study as a Markdown page."""
    parts = ["# The edge stream: what was tried, and what it gives\n", (__doc__ or "").strip()]
    for name, data in DATA.items():
        found = results(rows, name)
        if not found.results:
            continue
        parts.append(f"## {data.title[0].upper()}{data.title[1:]}\n")
        tables = {
            "Segmentation, mean ± deviation over seeds": comparison.rows(found),
            "Edges, mean over regions": comparison.edge_rows(found),
            "Differences, paired by seed": comparison.difference_rows(found),
            "Deviation between seeds, pooled over backbones": spread_rows(found),
        }
        for title, lines in tables.items():
            if lines:
                parts += [f"### {title}\n", comparison.markdown(lines)]
    return "\n".join(parts)


def main(
    stages: Annotated[
        list[str] | None, typer.Argument(help="Stages: candidates, finalists.")
    ] = None,
    data: Annotated[str, typer.Option(help="Of " + ", ".join(DATA))] = ",".join(DATA),
    hippocampus: Annotated[Path | None, typer.Option(help="Folder of Task04_Hippocampus.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds per finalist.")] = 8,
    tries: Annotated[int, typer.Option(help="Seeds per candidate.")] = 3,
    workers: Annotated[int, typer.Option(help="Number of parallel runs, one core each.")] = 2,
    folder: Annotated[
        Path | None, typer.Option(help="Folder for cases and runs; by default a new one.")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report", help="Train nothing.")] = False,
) -> None:
    """Train the missing runs, then write the report."""
    names = data.split(",")
    for given, known in ((names, DATA), (stages or [], ("candidates", "finalists"))):
        if unknown := set(given) - set(known):
            raise typer.BadParameter(f"{unknown.pop()}: expected some of {', '.join(known)}")
    rows: list[dict[str, Any]] = list(read())
    if report_only:
        write_text(REPORT, report(rows))
        print(REPORT)
        return
    work = folder or Path(tempfile.mkdtemp(prefix="edge_study"))
    made = {name: DATA[name].make(work / name, hippocampus)[0] for name in names}
    done = {(r["data"], r["backbone"], r["config"]) for r in rows}
    todo = [
        job
        for job in jobs(stages or ["finalists"], names, seeds, tries)
        if (job.data, job.arm.backbone, _digest_of(job, made[job.data])) not in done
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=end_with_parent) as pool:
        running = {pool.submit(run, job, work, hippocampus): job for job in todo}
        for number, future in enumerate(as_completed(running), 1):
            new = future.result()
            rows = [row for row in rows if not _same_training(row, new[0])] + new
            write(rows)
            job = running[future]
            print(f"{number} of {len(todo)}: {job.data} {job.arm.name} seed {job.seed}", flush=True)
    write_text(REPORT, report(read()))
    print(REPORT)


def _same_training(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows are of the same training, perhaps of another configuration."""
    keys = ("data", "backbone", "kind", "setting", "seed")
    return all(str(row[key]) == str(other[key]) for key in keys)


def _digest_of(job: Job, train: Dataset) -> str:
    return digest(job.arm.config(DATA[job.data].config(train), train, job.seed))


if __name__ == "__main__":
    typer.run(main)
