"""Text, tables and durations on the terminal."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO, Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

T = TypeVar("T")
_PIPE_WIDTH = 120


class Terminal(Console):
    """A console that prints what it is given, and never ends the program that prints.

    Text is no markup. Characters that the output cannot show are replaced; when it is closed or
    full, the rest is discarded.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as :meth:`rich.console.Console.print`; control characters of a text are escaped."""
        tolerate(self.file)
        shown = [visible(part) if isinstance(part, str) else part for part in objects]
        try:
            super().print(*shown, **options)
        except OSError as error:
            _discard(self.file)
            if not isinstance(error, BrokenPipeError):
                with suppress(OSError):
                    print(f"output: {error.strerror}; nothing more is printed", file=sys.stderr)

    def on_broken_pipe(self) -> None:
        """Discard what follows; rich would exit."""
        _discard(self.file)


def tolerate(stream: IO[str] | None) -> None:
    """Let a stream replace the characters that its encoding lacks."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="replace")


def _discard(stream: IO[str]) -> None:
    """Discard what is written to a stream from now on, and what waits in its buffer."""
    with suppress(OSError, ValueError):  # it has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def say(text: str) -> None:
    """Print a text as it is, without breaking its lines."""
    Terminal().print(text, soft_wrap=True)


def show(table: Table) -> None:
    """Print a table; 120 columns wide when the output is redirected."""
    console = Terminal()
    (console if console.is_terminal else Terminal(width=_PIPE_WIDTH)).print(table)


def visible(text: str) -> str:
    """Escape control characters, such as those that colour a terminal; lines remain."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def plain(text: str) -> Text:
    """A text from a file for rich, which would take ``[/name]`` for markup."""
    return Text(visible(text))


def duration(seconds: float) -> str:
    """Format seconds: ``"42 s"``, ``"3 min 07 s"``, ``"2 h 05 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def tracked(items: Iterable[T], total: int, title: str) -> Iterator[T]:
    """Iterate with a progress bar on stderr, where that is a terminal."""
    console = Terminal(stderr=True)
    with progress_bar(console) as bar:
        yield from bar.track(items, total=total, description=visible(title))


def progress_bar(console: Console) -> Progress:
    """A progress bar with counts, which disappears in the end and is absent from files."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        # What is printed meanwhile goes above the bar, unless it goes elsewhere.
        redirect_stdout=sys.stdout.isatty(),
    )
