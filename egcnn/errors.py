"""The exception for bad input, and the values in its message."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100


class InputError(ValueError):
    """Unusable input. The message is one line: argument or file, value received, value expected.

    Line breaks, such as those of a file's name, are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\\n".join(message.splitlines()))


def not_installed(what: str, package: str, extra: str) -> InputError:
    """The error of a package that one of this package's extras brings.

    Args:
        what: needs it.
        package: its name.
        extra: as in ``pyproject.toml``.
    """
    return InputError(
        f"{what}: {package} is not installed; expected pip install '.[{extra}]' in a checkout of "
        f"egcnn, or 'egcnn[{extra}]' from an index that has it"
    )


@contextmanager
def named(what: object) -> Iterator[None]:
    """Begin the message of an ``InputError`` of this block with a file or argument, once."""
    try:
        yield
    except InputError as error:
        said = str(error).removeprefix(f"{what}: ")
        raise InputError(f"{what}: {said}") from error


def shown(value: Any) -> str:
    """A value for a message, as Python writes it: one line, and not too long.

    However long or deep: a checkpoint's list may hold itself, or a name megabytes.
    """
    try:
        return brief(_SHORT.repr(value))
    except Exception:
        return f"a {type(value).__name__}"


def brief(text: object) -> str:
    """A text, or that of an error, for a message: one line, and not too long."""
    line = " ".join(str(text).split())
    return line if len(line) <= 80 else f"{line[:77]}..."


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and, from the latest to the earliest, those that it follows from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def lost_peer(error: BaseException | None) -> BaseException | None:
    """Among an error and its causes, the one that the end of another process caused, if any."""
    for link in causes(error):
        # By name: the command line does not import torch for its messages.
        kinds = [kind.__name__ for kind in type(link).__mro__]
        if "DistError" in kinds or "gloo/transport" in str(link):
            return link
    return None


def input_error(error: BaseException | None) -> InputError | None:
    """The ``InputError`` among an exception and its causes, if any."""
    return next((link for link in causes(error) if isinstance(link, InputError)), None)
