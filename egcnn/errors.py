"""The exception for bad input."""

from __future__ import annotations


class InputError(ValueError):
    """Unusable input. The message is one line: argument or file, value received, value expected."""


def input_error(error: BaseException | None) -> InputError | None:
    """The ``InputError`` among an exception and its causes, if any."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error
