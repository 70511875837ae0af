"""``egcnn report``: one HTML page about a training, its evaluation, or a comparison."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import egcnn
from egcnn.checkpoint import load
from egcnn.data.layouts import shown_colours
from egcnn.data.nifti import volumes
from egcnn.errors import InputError, brief, input_error
from egcnn.evaluation import evaluate, predict_and_evaluate, write_evaluation
from egcnn.files import write_text
from egcnn.inference import choose_device
from egcnn.metrics import METRICS
from egcnn.panels import DISAGREEMENT, OPACITY, PLANES, heat_colours, region_colours
from egcnn.report import curves, sections
from egcnn.report.found import Evaluated, Found, Training, find, training_dataset
from egcnn.report.views import views
from egcnn.terminal import say
from egcnn.training import LAST, PREDICTIONS

REPORT = "report.html"
_GENERATOR = "egcnn report"


def write_report(
    folders: Sequence[str | Path] | str | Path,
    output: str | Path | None = None,
    *,
    data: str | Path | None = None,
    device: str = "auto",
) -> Path:
    """Write one HTML page about what lies in some folders; it needs no other file and no server.

    A training that nobody has evaluated is evaluated first: its held-out cases are predicted with
    its last checkpoint into ``predictions`` in its folder.

    Args:
        folders: of a training, an evaluation, a comparison or a demo; or several, such as an
            evaluation and the training of its network.
        output: the page; by default ``report.html`` in the first folder.
        data: the dataset, if it is no longer where it was.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``; computes the attention of the cases shown.

    Returns:
        the path of the page.

    Raises:
        InputError: nothing to report there, a damaged file, or a file in the page's place that is
            none.
    """
    places = [Path(f) for f in ([folders] if isinstance(folders, (str, Path)) else folders)]
    path = places[0] / REPORT if output is None else Path(output)
    _check_place(path)
    where = None if data is None else Path(data)
    found = find(places, where)
    if not found.evaluations and _evaluate(found.trainings, where, device):
        found = find(places, where)
    write_text(path, render(found, places[0].resolve().name, device))
    return path


def try_report(folder: Path, *, device: str = "auto") -> Path | None:
    """Write the report of scores, which are complete without it: a failure is a line on stderr.

    Args:
        folder: see :func:`write_report`.
        device: likewise.

    Returns:
        the path of the page; None if there is none.
    """
    try:
        return write_report(folder, device=device)
    except Exception as error:  # also one of ours, which the command shows with its traceback
        reason = input_error(error) or f"{type(error).__name__}: {brief(error)}"
        say(f"no report: {reason}; to try again: egcnn report {folder}", stderr=True)
        return None


def _check_place(path: Path) -> None:
    if path.is_dir() or (path.exists() and _GENERATOR.encode() not in path.read_bytes()[:2000]):
        raise InputError(
            f"output: {path} was not written by {_GENERATOR}, and would be replaced; expected "
            "another file"
        )


def _evaluate(trainings: Sequence[Training], data: Path | None, device: str) -> bool:
    """Evaluate trainings by the predictions in them, or else of their held-out cases.

    Returns:
        whether the data of any are at hand.
    """
    done = False
    for training in trainings:
        dataset = training_dataset(training, data)
        if dataset is None or not (training.folder / LAST).is_file():
            continue
        folder = training.folder / PREDICTIONS
        if folder.is_dir() and volumes(folder):
            write_evaluation(evaluate(folder, dataset), folder)
            done = True
            continue
        held_out = set(training.described.split["validation"])
        cases = [case for case in dataset.cases if case.name in held_out and case.label]
        if cases:
            trained = load(training.folder / LAST, choose_device(device))
            predict_and_evaluate(trained, cases, dataset, folder, edges=True)
            done = True
    return done


def render(found: Found, name: str, device: str = "auto") -> str:
    """The page as text.

    Args:
        found: what it is about.
        name: its name in the heading.
        device: see :func:`write_report`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("egcnn.report"), autoescape=True, undefined=StrictUndefined
    )
    script = _template("page.js")
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    content = _content(found, device)
    for part in ("boundary", "edges"):
        content[part] = {title: Markup(svg) for title, svg in content[part].items()}
    for drawn in (*content["training"].values(), *(s["charts"] for s in content["scores"])):
        drawn.update({title: Markup(svg) for title, svg in drawn.items()})
    return environment.get_template("page.html").render(
        **content,
        title=f"Segmentation report: {name}",
        subtitle=f"{datetime.now():%Y-%m-%d %H:%M}, egcnn {egcnn.__version__}",
        generator=f"{_GENERATOR} {egcnn.__version__}",
        css=Markup(_template("page.css")),
        script=Markup(script),
        script_hash=f"sha256-{hashed}",
        meanings={metric.title: metric.meaning for metric in METRICS.values() if metric.meaning},
        disagreement=DISAGREEMENT,
        planes=PLANES,
    )


def _content(found: Found, device: str) -> dict[str, Any]:
    """What the template shows; parts without content are empty."""
    evaluations = found.evaluations
    alone = len(evaluations) == 1
    drawable = _drawable(evaluations)
    names = sections.chosen(drawable) if drawable else {}
    shown = list(views(drawable, names, choose_device(device))) if names else []
    sums = {e.title: s for e in evaluations if (s := sections.measured(e)) is not None}
    regions = {e.title: e.dataset.regions for e in evaluations if e.dataset is not None}
    boundary = {
        "Error by distance" if alone else title: curves.error_by_distance(
            s, regions[title].reported_names, f"Error by distance {title}"
        )
        for title, s in sums.items()
    }
    edges = {
        "Precision and recall" if alone else title: curves.precision_and_recall(
            s, regions[title].reported_names, f"Precision and recall {title}"
        )
        for title, s in sums.items()
        if s.edge_cases
    }
    content: dict[str, Any] = {
        "tiles": sections.tiles(evaluations[0]) if alone else {},
        "comparison": sections.comparison_tables(found.comparison) if found.comparison else {},
        "scores": [sections.scores(e, "" if alone else e.title) for e in evaluations],
        "views": shown,
        "without_views": _without_views(evaluations, drawable, shown),
        "without_attention": _without_attention(found, shown),
        "legend": _legend(drawable),
        "boundary": boundary,
        "measured": _counted([s.cases for s in sums.values()], evaluations),
        "edges": edges,
        "edges_measured": _counted([s.edge_cases for s in sums.values()], evaluations),
        "training": sections.training_charts(found.trainings),
        "provenance": sections.provenance(found.trainings, evaluations),
        "configurations": sections.configurations(found.trainings),
        "volumes": {
            "cases": [
                {name: view[name] for name in ("shape", "image", "panels")} for view in shown
            ],
            "planes": PLANES,
            "heat": heat_colours().tolist(),
            "opacity": OPACITY,
        },
    }
    content["contents"] = {
        part: title
        for part, title in {
            "comparison": "Comparison",
            "scores": "Scores by region",
            "worst": "Worst cases",
            "slices": "Slices",
            "boundary": "Where the errors lie",
            "edges": "How well the edges are found",
            "training": "Training",
            "provenance": "Provenance",
        }.items()
        if part in ("provenance", "slices") or content[{"worst": "scores"}.get(part, part)]
    }
    if not (shown or content["without_views"]):
        del content["contents"]["slices"]
    return content


def _drawable(evaluations: Sequence[Evaluated]) -> list[Evaluated]:
    """The evaluations with cases to draw, which have the first one's regions."""
    regions = next((e.dataset.regions for e in evaluations if e.dataset and e.drawable), None)
    return [e for e in evaluations if e.drawable and e.dataset and e.dataset.regions == regions]


def _legend(drawable: Sequence[Evaluated]) -> dict[str, str]:
    dataset = drawable[0].dataset if drawable else None
    if dataset is None:
        return {}
    colours = region_colours(dataset.regions, shown_colours(dataset))
    return dict(zip(dataset.regions.reported_names, colours, strict=True))


def _counted(cases: Sequence[int], evaluations: Sequence[Evaluated]) -> str:
    count = max(cases, default=0)
    of = max((len(e.evaluation.cases) for e in evaluations), default=0)
    if count == of:
        return ""
    return f"Counted in {count} of {of} cases, spread from the worst to the best."


def _without_views(
    evaluations: Sequence[Evaluated], drawable: Sequence[Evaluated], shown: Sequence[Any]
) -> str:
    if shown:
        return ""
    if not evaluations:
        return "There are no predictions here, and the dataset is not where it was (--data DIR)."
    if drawable:
        return "The networks have no case in common."
    if all(e.dataset is None for e in evaluations):
        return "The dataset is not where it was: egcnn report --data DIR names its place."
    return "The predictions are not where they were."


def _without_attention(found: Found, shown: Sequence[Any]) -> str:
    if not shown or any("heat" in panel for view in shown for panel in view["panels"]):
        return ""
    if any(evaluated.checkpoint for evaluated in found.evaluations):
        return ""
    if found.trainings:
        return "There are no attention maps: no checkpoint here made these predictions."
    return (
        "The attention maps need the network: egcnn report EVALUATION RUN, with the folder of its "
        "training."
    )


def _template(name: str) -> str:
    return (resources.files("egcnn.report") / "templates" / name).read_text(encoding="utf-8")
