"""Tables and durations on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 120


def show(table: Table) -> None:
    """Print a table; 120 columns wide when the output is redirected."""
    console = Console()
    (console if console.is_terminal else Console(width=_PIPE_WIDTH)).print(table)


def duration(seconds: float) -> str:
    """Format seconds: ``"42 s"``, ``"3 min 07 s"``, ``"2 h 05 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
