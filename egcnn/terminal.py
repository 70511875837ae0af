"""Text, tables and durations on the terminal."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO, Any, ClassVar, TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from egcnn.narrow import fitted, full_width

T = TypeVar("T")
_PIPE_WIDTH = 120


class Terminal(Console):
    """A console that prints what it is given, and never ends the program that prints.

    Text is no markup. Characters that the output cannot show are replaced; when it is closed or
    full, the rest is discarded.
    """

    #: The console of the bar that is shown: what others print has to go above it.
    live: ClassVar[Terminal | None] = None

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as :meth:`rich.console.Console.print`; control characters of a text are escaped."""
        live = Terminal.live
        if live is not None and live is not self and self.is_terminal:
            # Of rich's consoles only that of the bar knows where it is.
            live.print(*objects, **{"soft_wrap": self.soft_wrap, **options})
            return
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


def say(text: str, *, wrap: bool = False, stderr: bool = False) -> None:
    """Print a text as it is.

    Args:
        text: what to print.
        wrap: break its lines between words where a terminal ends; by default they are not broken.
        stderr: print it there.
    """
    console = Terminal(stderr=stderr)
    console.print(text, soft_wrap=not (wrap and console.is_terminal))


def show(table: Table) -> None:
    """Print a table, in parts where the terminal is too narrow; whole where there is none."""
    console = Terminal()
    if not console.is_terminal:
        console = Terminal(width=max(full_width(table), _PIPE_WIDTH))
    for index, part in enumerate(fitted(table, console.width)):
        if index:
            console.print()
        console.print(part)


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


def counted(number: int, noun: str) -> str:
    """A number of things: ``"1 epoch"``, ``"30 epochs"``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def amount(value: float) -> str:
    """Format a large number: ``"850 k"``, ``"12.3 M"``, ``"2.1 G"``; the unit follows."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


class Bar:
    """Progress on stderr, where that is a terminal: a line of text, a bar, the time left.

    It disappears in the end; what is printed meanwhile goes above it.
    """

    def __init__(self, console: Terminal | None = None) -> None:
        self._console = console = console or Terminal(stderr=True)
        self._progress = _Lines(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._progress.add_task("", total=None, left="")
        self._first: float | None = None
        self._started = 0.0

    def __enter__(self) -> Bar:
        """Show the bar."""
        self._progress.start()
        if self._console.is_terminal:
            Terminal.live = self._console
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self._progress.stop()
        Terminal.live = None

    def update(self, done: float, total: float, text: str) -> None:
        """Show how much is done, and how long the rest takes at the pace since the first call."""
        now = time.perf_counter()
        if self._first is None:
            self._first, self._started = done, now
        left = ""
        if done > self._first:
            seconds = (now - self._started) / (done - self._first) * (total - done)
            left = f"{duration(seconds)} left"
        self._progress.update(
            self._task, completed=done, total=total, description=visible(text), left=left
        )


class _Lines(Progress):
    """Tasks whose descriptions have a line of their own, which may wrap."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            yield Text(task.description)
            yield self.make_tasks_table([task])


def tracked(items: Iterable[T], total: int, title: str) -> Iterator[T]:
    """Iterate with a :class:`Bar`."""
    with Bar() as bar:
        bar.update(0, total, title)
        for done, item in enumerate(items, 1):
            yield item
            bar.update(done, total, title)
