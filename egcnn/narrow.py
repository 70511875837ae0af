"""Tables for narrow terminals."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

# Between the columns of a table that is too wide.
_GAP = 2


def fitted(table: Table, width: int) -> list[Table]:
    """A table as one or more that are at most ``width`` wide, with all numbers and words whole.

    The left-justified columns at the left name the rows, and stand in each part. One that is too
    wide has no lines between columns, and texts that break between words; cells of the other
    columns break only where one of them would not fit.
    """
    if full_width(table) <= width:
        return [table]
    named = [column.justify == "left" for column in table.columns]
    keys = named.index(False) if False in named else 1
    for broken in (False, True):
        least = [
            _least(column, broken or left)
            for column, left in zip(table.columns, named, strict=True)
        ]
        for count in range(1, max(1, len(least) - keys) + 1):
            parts = [[*range(keys), *part] for part in _divided(range(keys, len(least)), count)]
            widths = [_wider(table, part, least, width, broken) for part in parts]
            if all(sum(part.values()) + _GAP * (len(part) - 1) <= width for part in widths):
                return [_narrow(table, part, part is widths[0]) for part in widths]
    # A word is longer than the terminal is wide.
    return [_narrow(table, part, part is widths[0]) for part in widths]


def full_width(table: Table) -> int:
    """The width of a table in which nothing is broken, in characters."""
    return Console(width=1 << 16).measure(table).maximum


def _divided(columns: range, count: int) -> list[range]:
    """``count`` parts of about the same number of columns."""
    bounds = [round(len(columns) * i / count) for i in range(count + 1)]
    return [columns[start:end] for start, end in pairwise(bounds)]


def _least(column: Column, broken: bool) -> int:
    """The least width of a column, whose heading breaks between words, and whose cells may."""
    heading, *cells = map(str, _texts(column))
    parts = [*heading.split(), *(" ".join(cells).split() if broken else cells)]
    return max(map(cell_len, parts), default=0)


def _texts(column: Column) -> list[Any]:
    """The heading of a column, and its cells."""
    return [column.header, *column.cells]


def _wider(
    table: Table, part: list[int], least: list[int], width: int, broken: bool
) -> dict[int, int]:
    """The widths of some columns, which share what the least widths leave."""
    widths = {i: least[i] for i in part}
    # First those whose cells would break.
    for i in reversed(part) if broken else part:
        full = max(cell_len(str(text)) for text in _texts(table.columns[i]))
        slack = width - sum(widths.values()) - _GAP * (len(part) - 1)
        widths[i] += max(0, min(slack, full - least[i]))
    return widths


def _narrow(table: Table, widths: dict[int, int], titled: bool) -> Table:
    """A table of some columns, of given widths."""
    new = Table(
        title=table.title if titled else None,
        caption=table.caption if len(table.columns) - 1 in widths else None,
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, _GAP - 1, 0, 0),
    )
    for i, width in widths.items():
        column = table.columns[i]
        new.add_column(column.header, justify=column.justify, width=width, overflow="fold")
    cells = [list(table.columns[i].cells) for i in widths]
    for index, row in enumerate(table.rows):
        new.add_row(*(column[index] for column in cells), end_section=row.end_section)
    return new
