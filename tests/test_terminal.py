"""Printing: what cannot be shown is replaced, and nothing ends the program."""

from __future__ import annotations

import sys
from typing import IO

import pytest
from rich.console import Console
from rich.table import Table

from egcnn.evaluation import Evaluation
from egcnn.metrics import COLUMNS
from egcnn.report import edge_table, evaluation_table, training_table
from egcnn.terminal import duration, plain, say, show, visible


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


def test_durations() -> None:
    assert [duration(s) for s in (42, 187, 7500)] == ["42 s", "3 min 07 s", "2 h 05 min"]
