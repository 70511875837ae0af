"""Tables for narrow terminals."""

from __future__ import annotations

from collections.abc import Sequence
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
        for count in range(1, len(least) - keys + 1):
            parts = [[*range(keys), *part] for part in _divided(range(keys, len(least)), count)]
            if all(sum(least[i] + _GAP for i in part) - _GAP <= width for part in parts):
                return [_narrow(table, part, least, width, part is parts[0]) for part in parts]
    return [_narrow(table, part, least, width, part is parts[0]) for part in parts]


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


def _narrow(table: Table, part: list[int], least: Sequence[int], width: int, titled: bool) -> Table:
    """Some columns of a table, each as wide as it needs to be, and as it can."""
    new = Table(
        title=table.title if titled else None,
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, _GAP - 1, 0, 0),
    )
    widths = {i: least[i] for i in part}
    for i in reversed(part):  # the names last
        full = max(cell_len(str(text)) for text in _texts(table.columns[i]))
        slack = width - sum(widths.values()) - _GAP * (len(part) - 1)
        widths[i] += max(0, min(slack, full - least[i]))
    for i, fit in widths.items():
        column = table.columns[i]
        new.add_column(column.header, justify=column.justify, width=fit, overflow="fold")
    cells = [list(table.columns[i].cells) for i in part]
    for index, row in enumerate(table.rows):
        new.add_row(*(column[index] for column in cells), end_section=row.end_section)
    new.caption = table.caption if part[-1] == len(table.columns) - 1 else None
    return new
