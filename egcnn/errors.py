"""The exception for bad input, and the values in its message."""

from __future__ import annotations

from typing import Any


class InputError(ValueError):
    """Unusable input. The message is one line: argument or file, value received, value expected."""


def shown(value: Any) -> str:
    """A value for a message: one line, and not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
