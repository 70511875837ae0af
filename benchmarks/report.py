"""Tables and a picture of results.

    python -m benchmarks.report JSON... [--summary] [--picture PATH]

prints every table of each file as Markdown, or with ``--summary`` those of docs/performance.md, and
draws time against voxels, of ours, the peers and the bandwidth bound.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egcnn.files import atomic_write, write_text

OURS = "egcnn"
Row = dict[str, Any]


@dataclass
class Table:
    """A table of text."""

    title: str
    header: tuple[str, ...]
    lines: list[tuple[str, ...]]

    def markdown(self) -> str:
        """The table under its title."""
        numbers = ("---" if i == 0 else "--:" for i in range(len(self.header)))
        lines = [self.header, tuple(numbers), *self.lines]
        table = "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)
        return f"## {self.title}\n\n{table}\n"


def _escaped(text: str) -> str:
    return text.replace("|", "/")


def describe(error: Exception) -> str:
    """Type and first line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


# --- Cells ---------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Three significant digits, or an empty string."""
    if value is None:
        return ""
    if value >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.2g}" if value < 1 else f"{value:.3g}"


def spread(row: Row) -> str:
    """Median and quartiles in milliseconds, or why there are none."""
    if "ms" not in row:
        return str(row["note"])
    return f"{number(row['ms'])} ({number(row['low_ms'])}-{number(row['high_ms'])})"


def share(row: Row) -> str:
    """The fraction of the bandwidth of a plain copy or triad."""
    return f"{row['share']:.0%}" if "share" in row else ""


def times(ratio: float | None) -> str:
    """The speed-up."""
    return "" if ratio is None else f"{number(ratio)}x"


def target(row: Row) -> str:
    """The target and whether it was met."""
    return f"{row['target']}: {'yes' if row['reached'] else 'no'}" if "target" in row else ""


def per_byte(row: Row) -> str:
    """The time per byte, relative to the case measured alternately with it."""
    return times(row["ms"] / row["bytes"] / (row["beside_ms"] / row["beside_bytes"]))


Column = tuple[str, Callable[[Row], str]]

CASE: Column = ("case", lambda row: row["case"])
PART: Column = ("part", lambda row: row["what"])
MEMORY: Column = ("memory", lambda row: row.get("memory", ""))
PROVIDER: Column = ("provider", lambda row: row["provider"])
TIME: Column = ("ms (quartiles)", spread)
MEDIAN: Column = ("ms", lambda row: number(row.get("ms")))
REPLAY: Column = ("in a graph", lambda row: number(row.get("replay_ms")))
RATE: Column = ("GB/s", lambda row: number(row.get("gb_s")))
FLOOR: Column = ("floor, ms", lambda row: number(row.get("floor_ms")))
SHARE: Column = ("of copy or triad", share)
PEAK: Column = ("peak MB", lambda row: number(row.get("peak_mb")))
PEER: Column = ("best peer", lambda row: row.get("best_peer", ""))
PEER_TIME: Column = ("its ms", lambda row: number(row.get("best_peer_ms")))
PEER_PEAK: Column = ("its peak MB", lambda row: number(row.get("best_peer_mb")))
RATIO: Column = ("faster", lambda row: times(row.get("ratio")))
TARGET: Column = ("target", target)
BESIDE: Column = ("beside, ms", lambda row: number(row["beside_ms"]))
PER_BYTE: Column = ("time a byte", per_byte)
DIFFERENCE: Column = ("differs by", lambda row: number(row.get("difference")))


def make(title: str, rows: Iterable[Row], *columns: Column) -> list[Table]:
    """A table without its empty columns; None without rows."""
    rows = list(rows)
    if not rows:
        return []
    cells = {name: [cell(row) for row in rows] for name, cell in columns}
    cells = {name: values for name, values in cells.items() if any(values)}
    return [Table(title, tuple(cells), list(zip(*cells.values(), strict=True)))]


# --- Tables --------------------------------------------------------------------------------------


def tables(data: dict[str, Any]) -> list[Table]:
    """All tables of a run, the most important first."""
    rows = data["rows"]
    ours = [row for row in rows if row["provider"] == OURS]
    reused = [row for row in ours if row.get("memory", "reused") == "reused"]
    against = (
        CASE,
        PART,
        TIME,
        REPLAY,
        RATE,
        FLOOR,
        SHARE,
        PEAK,
        PEER,
        PEER_TIME,
        PEER_PEAK,
        RATIO,
    )
    swept = (CASE, PART, TIME, FLOOR, SHARE, PEER, PEER_TIME, RATIO)
    return [
        *make("Steps before", data.get("steps", []), *STEP_COLUMNS),
        *make("egcnn against the best peer", grouped(reused, "main", "size", "real"), *against),
        *make(
            "By memory mode of the results",
            several_modes(ours),
            *(CASE, PART, MEMORY, TIME, FLOOR, SHARE, PEER, PEER_TIME, RATIO),
        ),
        *make(
            "No cliffs: time per byte, relative to contiguous fp32 (or bytes) of even size",
            grouped(reused, "cliff"),
            *(CASE, PART, TIME, BESIDE, SHARE, PER_BYTE),
        ),
        *make("From small to large", grouped(reused, "sweep"), *swept),
        *make(
            "One call on 8x8x8 voxels, compared with a native torch operator",
            grouped(reused, "call"),
            *(CASE, PART, TIME, ("beside", PEER[1]), PEER_TIME),
        ),
        *make("A training step", grouped(rows, "training"), CASE, PROVIDER, TIME, PEAK),
        *(
            table
            for name, profile in data.get("profiles", {}).items()
            if name.endswith(f", {OURS}")
            for table in make(f"Time by operator: {name}", profile, *PROFILE_COLUMNS)
        ),
    ]


STEP_COLUMNS: Sequence[Column] = (
    ("step", lambda row: row["name"]),
    ("result", lambda row: "passed" if row["passed"] else "FAILED"),
    ("seconds", lambda row: str(row["seconds"])),
    ("last line", lambda row: row["summary"]),
)
PROFILE_COLUMNS: Sequence[Column] = (
    ("operator", lambda row: row["operator"]),
    ("ms in itself", lambda row: number(row["ms"])),
    ("share", lambda row: f"{row['share']:.0%}"),
    ("calls", lambda row: str(row["calls"])),
)


def every_provider(data: dict[str, Any]) -> list[Table]:
    """One line per measurement."""
    columns = (CASE, PART, MEMORY, PROVIDER, TIME, RATE, SHARE, PEAK, DIFFERENCE)
    return make("Every provider", data["rows"], *columns)


def summary_tables(data: dict[str, Any]) -> list[Table]:
    """The tables of docs/performance.md."""
    reused = [row for row in data["rows"] if row.get("memory", "reused") == "reused"]
    ours = [row for row in reused if row["provider"] == OURS]
    eager = {
        (row["case"], row["what"]): row.get("ms")
        for row in reused
        if row["provider"] == "eager reference" and row["group"] == "main"
    }

    def over_eager(row: Row) -> str:
        slow = eager.get((row["case"], row["what"]))
        return times(slow and slow / row["ms"])

    columns = (CASE, PART, MEDIAN, SHARE, PEAK, PEER, PEER_TIME, PEER_PEAK, RATIO)
    return [
        *make("Operators", grouped(ours, "main", "real"), *columns, ("than eager", over_eager)),
        *make("A training step", grouped(reused, "training"), CASE, PROVIDER, MEDIAN, PEAK),
    ]


def grouped(rows: Iterable[Row], *groups: str) -> list[Row]:
    return [row for row in rows if row.get("group") in groups]


def several_modes(ours: Sequence[Row]) -> list[Row]:
    """The rows measured in more than one memory mode, grouped by case."""
    main = grouped(ours, "main")
    if len({row.get("memory") for row in main}) < 2:
        return []
    order = list(dict.fromkeys((row["case"], row["what"]) for row in main))
    return sorted(main, key=lambda row: order.index((row["case"], row["what"])))


def heading(data: dict[str, Any]) -> str:
    """Device, versions and date in a line."""
    cuda = f"CUDA {data['cuda']}, driver {data['driver']}" if data.get("driver") else ""
    cpu = f"{data['threads']} threads, {data['instructions']}" if not cuda else ""
    return (
        f"{data['device']} ({cuda or cpu}), torch {data['torch']}, egcnn {data['egcnn']} "
        f"({data['commit'] or 'no git'}), {data['stamp'][:10]}"
    )


def markdown(data: dict[str, Any]) -> str:
    """The whole report as Markdown."""
    end = "" if data["complete"] else "\n**The run did not finish.**\n"
    parts = [table.markdown() for table in tables(data) + every_provider(data)]
    return "\n".join([f"# {heading(data)}\n{end}", *parts])


def write(path: Path, data: dict[str, Any]) -> None:
    """Write the JSON file and, next to it, the Markdown report, both atomically."""
    write_text(path, json.dumps(data, indent=1) + "\n")
    write_text(path.with_suffix(".md"), markdown(data))


def show(data: dict[str, Any]) -> None:
    """Print the tables to the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console()
    if not console.is_terminal:
        console.width = 180
    console.print(f"\n{heading(data)}", highlight=False)
    for table in tables(data):
        shown = RichTable(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
        for index, name in enumerate(table.header):
            left = index == 0 or name in ("part", "memory", "best peer", "provider", "target")
            shown.add_column(name, justify="left" if left else "right", no_wrap=index == 0)
        before: tuple[str, ...] = ("",)
        for line in table.lines:
            first = "" if line[0] == before[0] else line[0]
            shown.add_row(first, *line[1:])
            before = line
        console.print(shown, highlight=False)


# --- The picture ---------------------------------------------------------------------------------

PANELS = {
    "sobel_edges": "Sobel edges of a mask",
    "voxel_gate": "edge gate, 32 channels fp32",
    "gumbel_consistency": "consistency, 4 classes fp32",
}
COLOURS = {
    OURS: "#c8102e",
    "eager reference": "#7a7a7a",
    "scipy sobel": "#2e8b57",
    "compiled": "#1f5fa8",
}


def picture(data: dict[str, Any], path: Path) -> None:
    """Draw time against voxels, forward and (if any) backward, one panel per operator."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    swept = [row for row in grouped(data["rows"], "sweep") if "ms" in row]
    panels = [operator for operator in PANELS if any(r["operator"] == operator for r in swept)]
    if not panels:
        raise SystemExit("no row of these results belongs to a sweep over sizes")
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(3.6 * len(panels), 3.6), layout="constrained", squeeze=False
        )
        for axis, operator in zip(axes[0], panels, strict=True):
            rows = [row for row in swept if row["operator"] == operator]
            what = "both" if any(row["what"] == "both" for row in rows) else "forward"
            draw_panel(axis, [row for row in rows if row["what"] == what])
            parts = ", forward + backward" if what == "both" else ""
            axis.set_title(f"{PANELS[operator]}{parts}", fontsize=9, loc="left")
            axis.set_xlabel("voxels")
        axes[0][0].set_ylabel("time")
        figure.suptitle(heading(data), fontsize=7, color="#666666", x=0.01, ha="left", y=-0.02)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=200, facecolor="white", bbox_inches="tight")
        plt.close(figure)


def draw_panel(axis: Any, rows: Sequence[Row]) -> None:
    """Draw a labelled line per provider, and the floor."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    providers = list(dict.fromkeys(row["provider"] for row in rows))
    for provider in providers:
        mine = sorted((r for r in rows if r["provider"] == provider), key=lambda r: r["voxels"])
        voxels, ms = [r["voxels"] for r in mine], [r["ms"] for r in mine]
        family = provider if provider in COLOURS else provider.split()[0]
        width = 2.2 if provider == OURS else 1.4
        axis.plot(
            voxels, ms, "o-", color=COLOURS.get(family, "#444444"), markersize=3, linewidth=width,
            label=provider, zorder=3 if provider == OURS else 2,
        )  # fmt: skip
        if provider == OURS:
            floor = [r["floor_ms"] for r in mine]
            axis.fill_between(voxels, 1e-9, floor, color="#000000", alpha=0.07, linewidth=0)
            axis.plot(
                voxels, floor, "--", color="#000000", linewidth=1, label="floor: the bytes alone"
            )
            low = min(floor)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylim(bottom=low / 2)
    axis.yaxis.set_major_formatter(FuncFormatter(duration))
    axis.xaxis.set_major_locator(LogLocator(numticks=6))
    axis.xaxis.set_major_formatter(FuncFormatter(count))
    axis.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8, loc="upper left")


def duration(ms: float, _: object = None) -> str:
    """For example 10 µs."""
    for unit, size in (("s", 1e3), ("ms", 1.0)):
        if ms >= size * 0.999:
            return f"{ms / size:.0f} {unit}"
    return f"{ms * 1e3:.0f} µs" if ms >= 0.999e-3 else ""


def count(voxels: float, _: object = None) -> str:
    """For example 10k."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if voxels >= size * 0.999:
            return f"{voxels / size:.0f}{unit}"
    return f"{voxels:.0f}" if voxels >= 1 else ""


def main() -> None:
    """Print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="JSON")
    parser.add_argument("--summary", action="store_true", help="those of docs/performance.md")
    parser.add_argument("--picture", type=Path, metavar="PATH", help="drawn from the first file")
    options = parser.parse_args()

    runs = [json.loads(path.read_text()) for path in options.files]
    for data in runs:
        if options.summary:
            print(f"{heading(data)}\n")
            print("\n".join(table.markdown() for table in summary_tables(data)))
        else:
            print(markdown(data))
    if options.picture:
        picture(runs[0], options.picture)


if __name__ == "__main__":
    main()
