"""The exception for bad input, and the values in its message."""

from __future__ import annotations

from typing import Any


class InputError(ValueError):
    """Unusable input. The message is one line: argument or file, value received, value expected."""


def shown(value: Any) -> str:
    """A value for a message, as Python writes it: one line, and not too long."""
    return brief(repr(value))


def brief(text: object) -> str:
    """A text, or that of an error, for a message: one line, and not too long."""
    line = " ".join(str(text).split())
    return line if len(line) <= 80 else f"{line[:77]}..."


def input_error(error: BaseException | None) -> InputError | None:
    """The ``InputError`` among an exception and its causes, if any."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error
