"""Curves of the page, as SVG that takes the colour of the text around it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from egcnn.report.measures import FARTHEST, Measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Those of the palette that are seen on white and on black.
_LINES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#aa77ff")
_STYLES = ("-", "--", ":", "-.")
# Stands for the colour of the text until matplotlib has drawn.
_TEXT = "#010203"
_SIZE = (4.2, 3.0)
#: A line: horizontal and vertical values.
Line = tuple[Sequence[float] | NDArray[Any], Sequence[float] | NDArray[Any]]


def svg(draw: Callable[[Axes], None], across: str, up: str, title: str) -> str:
    """One diagram.

    Args:
        draw: draws the lines.
        across: label and unit of the horizontal axis.
        up: of the vertical one.
        title: the heading, different from that of every other diagram on the page.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style: dict[Any, Any] = {
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.size": 10,
        **{
            f"{part}.{name}": _TEXT
            for part, name in (("axes", "edgecolor"), ("axes", "labelcolor"), ("text", "color"))
        },
        **{f"{axis}tick.color": _TEXT for axis in "xy"},
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "legend.handlelength": 2.5,
    }
    with rc_context(style):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.locator_params(nbins=6)
        if across == "epoch":
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(axes.get_legend_handles_labels()[0]) > 1:
            figure.legend(loc="outside lower center", ncols=2)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(_TEXT, "currentColor")
    # What nothing refers to would be there again in the next diagram.
    text = re.sub(r' id="[\w.]+_\d+"', "", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    size = r'width="[\d.]+pt" height="[\d.]+pt"'
    named = f'role="img" aria-label="{escape(title)}"'
    return re.sub(size, lambda _: named, text, count=1)


def lines(
    series: Mapping[str, Line], across: str, up: str, title: str, *, share: bool = False
) -> str:
    """A diagram of named lines; a line of one value is a dot.

    Args:
        series: the lines by name.
        across: see :func:`svg`.
        up: see :func:`svg`.
        title: see :func:`svg`.
        share: the values lie between 0 and 1, and the vertical axis shows all of it.
    """

    def draw(axes: Axes) -> None:
        for number, (name, (x, y)) in enumerate(series.items()):
            axes.plot(
                x,
                y,
                _STYLES[number // len(_LINES) % len(_STYLES)],
                color=_LINES[number % len(_LINES)],
                marker="o" if len(x) < 2 else "",
                label=_plain(name),
                linewidth=1.6,
            )
        if share:
            axes.set_ylim(0, 1.02)

    return svg(draw, across, up, title)


def history(rows: Sequence[Mapping[str, float]], columns: Mapping[str, str]) -> dict[str, Line]:
    """The lines of a history's columns over the epochs, by title; those that it lacks are left out.

    Args:
        rows: the history.
        columns: column names by title.
    """
    present = {title: name for title, name in columns.items() if all(name in row for row in rows)}
    return {title: column(rows, name) for title, name in present.items()}


def spread(
    values: Mapping[str, Sequence[float]], up: str, title: str, *, zero: bool = False
) -> str:
    """A dot for each case in a column for each region, with the median as a bar.

    Args:
        values: the cases' values by region.
        up: see :func:`svg`.
        title: see :func:`svg`.
        zero: begin the vertical axis at 0.
    """

    def draw(axes: Axes) -> None:
        for place, numbers in enumerate(values.values()):
            known = np.array([value for value in numbers if np.isfinite(value)])
            if not len(known):
                continue
            # Neighbouring dots stand aside, the same in every report.
            aside = (np.arange(len(known)) * 0.618 % 1 - 0.5) * 0.5
            axes.plot(place + aside, known, "o", ms=4, alpha=0.8, mew=0, color=_LINES[5])
            middle = float(np.median(known))
            axes.plot([place - 0.35, place + 0.35], [middle] * 2, color=_LINES[4], lw=2)
        axes.set_xticks(range(len(values)), map(_plain, values))
        axes.set_xlim(-0.6, len(values) - 0.4)
        axes.set_ylim(0 if zero else None)

    return svg(draw, "region (dot: a case, bar: median)", up, title)


def error_by_distance(sums: Measures, regions: Sequence[str], title: str) -> str:
    """The share of wrong voxels over the distance from the true boundary."""
    with np.errstate(invalid="ignore"):
        share = 100 * sums.wrong / np.where(sums.voxels > 0, sums.voxels, np.nan)
    series: dict[str, Line] = {n: (sums.distances, s) for n, s in zip(regions, share, strict=True)}

    def draw(axes: Axes) -> None:
        for number, (name, (x, y)) in enumerate(series.items()):
            axes.plot(x, y, label=_plain(name), color=_LINES[number % len(_LINES)], lw=1.6)
        axes.axvline(0, color=_TEXT, lw=0.8, ls=":")
        axes.set_xlim(-FARTHEST, FARTHEST)
        axes.set_ylim(0)

    across = "mm from the true boundary (negative: inside)"
    return svg(draw, across, "wrong voxels (%)", title)


def precision_and_recall(sums: Measures, regions: Sequence[str], title: str) -> str:
    """Precision over recall of the edge head at all thresholds; a dot at the threshold 0.5."""

    def draw(axes: Axes) -> None:
        known = [place for place, count in enumerate(sums.edges) if count > 0]
        for place in known:
            recall = sums.hits[place] / sums.edges[place]
            precision = sums.hits[place] / np.maximum(sums.called[place], 1)
            any_ = sums.called[place] > 0
            colour = _LINES[place % len(_LINES)]
            name = "any region" if sums.union else regions[place]
            axes.plot(recall[any_], precision[any_], label=_plain(name), color=colour, lw=1.6)
            half = len(recall) // 2 - 1
            axes.plot(recall[half], precision[half], "o", color=colour, ms=5)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)

    return svg(draw, "recall (share that is found)", "precision (share that is right)", title)


def _plain(name: str) -> str:
    """A name for matplotlib, for which a first ``_`` hides a line."""
    return re.sub(r"^_", " _", name)


def column(rows: Sequence[Mapping[str, float]], name: str) -> Line:
    """The line of one column of a history."""
    return [row["epoch"] for row in rows], [row[name] for row in rows]
