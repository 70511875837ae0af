"""The one exception for bad input: it names the argument or file, what came, what is expected."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used. The message is one sentence fit to be shown to a user as it is."""
