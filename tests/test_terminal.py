"""Printing: what cannot be shown is replaced, and nothing ends the program."""

from __future__ import annotations

import io
import re
import sys
import time
from collections import Counter
from typing import IO

import pytest
from rich.console import Console
from rich.table import Table

from egcnn import comparison
from egcnn.comparison import KINDS, Arm, Comparison, Result, as_table
from egcnn.evaluation import Evaluation
from egcnn.metrics import COLUMNS, LESION_METRICS
from egcnn.narrow import fitted
from egcnn.report import (
    edge_table,
    evaluation_table,
    grid_table,
    label_table,
    lesion_table,
    training_table,
)
from egcnn.terminal import (
    Bar,
    Terminal,
    amount,
    counted,
    duration,
    plain,
    say,
    show,
    tracked,
    visible,
)


def test_a_bad_output_ends_nothing(bad_output: IO[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", bad_output)
    table = Table("mean ± deviation")
    table.add_row("1")
    for _ in range(100):
        say("zwölf")
        show(table)


def test_characters_are_replaced(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(1, "w", encoding="ascii", closefd=False) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        say("0.1 ± 0.2 [/x] :smile: \x1b[31m")
    assert capfdbinary.readouterr().out == b"0.1 ? 0.2 [/x] :smile: \\x1b[31m\n"


def test_control_characters_are_escaped() -> None:
    assert visible("a\x1b[31m\x07\r\udc80ü\n") == "a\\x1b[31m\\x07\\r\\udc80ü\n"


@pytest.mark.parametrize("name", ["[/x]", "[bold]", "[link=x]y", ":smile:", "\x1b[31mred"])
def test_names_from_files_are_no_markup(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    scores = Evaluation({"case": {name: dict.fromkeys(COLUMNS, 0.5)}})
    rows = [{"epoch": 1.0, "dice": 0.5, f"dice_{name}": 0.5}]
    for table in (evaluation_table(scores), edge_table(scores), training_table(rows, [name], 1)):
        show(table)
        assert visible(name) in capsys.readouterr().out
        Console(width=200).print(table)
        assert visible(name) in capsys.readouterr().out
    assert str(plain(name)) == visible(name)


NAMES = ("enhancing tumour", "kidney")


def test_one_is_no_plural() -> None:
    assert [counted(number, "epoch") for number in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]


def tables() -> dict[str, Table]:
    """Every table that users see, with numbers as long as they get."""
    metrics = {name: 0.12345 + 300 * (name == "hd95") for name in (*COLUMNS, *LESION_METRICS)}
    cases = {str(n): {r: {m: v * n for m, v in metrics.items()} for r in NAMES} for n in (1, 2)}
    scores = Evaluation(cases)
    rows = [{"epoch": 300.0, "dice": 0.5, **{f"dice_{name}": 0.5 for name in NAMES}}]
    means = dict.fromkeys((*NAMES, "mean"), metrics)
    arms = [Arm("segnet", kind) for kind in KINDS]
    runs = Comparison(
        tuple(Result(arm, seed, 19_345_678, 0.123, means) for arm in arms for seed in range(3))
    )
    summary = {
        "regions": {"names": NAMES, "labels": [(1,), (2,)]},
        "labels": {"1": {"cases": 210, "share": 0.0123}, "2": {"cases": 210, "share": 1e-5}},
        "cases": [{"orientation": "RAS", "shape": (512, 512, 1059), "spacing": (0.977, 0.977, 5)}],
    }
    return {
        "evaluation": evaluation_table(scores),
        "edges": edge_table(scores),
        "lesions": lesion_table(scores),
        "training": training_table(rows, NAMES, 1e5),
        "comparison": as_table("Mean", comparison.rows(runs)),
        "comparison edges": as_table("Edges", comparison.edge_rows(runs)),
        "differences": as_table("Differences", comparison.difference_rows(runs)),
        "grids": grid_table(summary),
        "labels": label_table(summary),
    }


@pytest.mark.parametrize("width", [80, 50])
@pytest.mark.parametrize("name", tables())
def test_no_number_and_no_word_is_cut(name: str, width: int) -> None:
    table = tables()[name]
    console = Console(width=width, record=True, file=io.StringIO())
    for part in fitted(table, width):
        console.print(part)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    shown = Counter(re.split(r"[\s│┃]+", "\n".join(lines)))
    texts = [str(t) for column in table.columns for t in (column.header, *column.cells)]
    for word, count in Counter(" ".join(texts).split()).items():
        assert shown[word] >= count, word


def test_a_word_that_is_too_long_is_not_lost() -> None:
    table = Table("x" * 60)
    table.add_row("y" * 60)
    console = Console(width=50, record=True, file=io.StringIO())
    for part in fitted(table, 50):
        console.print(part)
    text = console.export_text()
    assert (text.count("x"), text.count("y")) == (60, 60)


def test_a_table_is_whole_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for table in tables().values():
        show(table)
        (heading,) = [line for line in capsys.readouterr().out.splitlines() if "┃" in line]
        for column in table.columns:
            assert f" {column.header} " in heading


def test_durations() -> None:
    assert [duration(s) for s in (42, 187, 7500)] == ["42 s", "3 min 07 s", "2 h 05 min"]
    assert [amount(v) for v in (0.5, 850e3, 12.34e6)] == ["0.5 ", "850 k", "12.3 M"]


@pytest.mark.parametrize("width", [80, 50])
def test_a_bar_fits_and_tells_the_time_left(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    console = Terminal(file=written, force_terminal=True, width=width)
    clock = iter((0.0, 30.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    text = "run 3 of 24, unet-egcnn-seed0  epoch 12/300  loss 0.470  Dice 0.825  12.3 Mvoxels/s"
    with Bar(console) as bar:
        bar.update(10_000, 80_100, text)
        Terminal(file=io.StringIO(), force_terminal=True).print("above the bar")
        bar.update(10_100, 80_100, text)
        bar._progress.refresh()
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\n", written.getvalue()).splitlines()
    assert max(map(len, lines)) <= width
    said = " ".join(" ".join(lines).split())
    assert "above the bar" in said
    assert "10100/80100 5 h 50 min left" in said
    assert set(text.split()) <= set(said.split())


def test_words_stay_whole_in_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(f"Dice 0.{number}" for number in range(100, 120))
    say(text, wrap=True)
    assert capsys.readouterr().out == text + "\n"
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's way to say that this is a terminal
    say(text, wrap=True)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 50
    assert " ".join(" ".join(lines).split()) == text


def test_a_bar_is_absent_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked(range(3), 3, "cases")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
