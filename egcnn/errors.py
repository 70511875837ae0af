"""The exception for bad input."""

from __future__ import annotations


class InputError(ValueError):
    """Unusable input. The message is one line: argument or file, value received, value expected."""
