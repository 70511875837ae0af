"""Plain data, such as a file's, checked against a type."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from numbers import Integral, Number, Real
from typing import Any, Literal, Union, get_args, get_origin

from egcnn.errors import InputError, shown


def typed(name: str, value: Any, hint: Any) -> Any:
    """Return a value as one of a type: numbers of exactly that type, lists as tuples.

    Args:
        name: of the value, for the message.
        value: anything.
        hint: ``bool``, ``int``, ``float`` (finite), ``str``, a ``Literal``, ``tuple[X, ...]`` (a
            lone number is a tuple of one), ``tuple[X, X, X]``, ``list[X]``, ``dict[str, X]``,
            ``Any``, or one of these or None.

    Raises:
        InputError: the value is of another type.
    """
    try:
        return _convert(value, hint)
    except (ValueError, OverflowError):
        raise InputError(f"{name}: {shown(value)}; expected {describe(hint)}") from None


def entry(data: Any, name: str, hint: Any) -> Any:
    """Return an entry of a mapping, checked as :func:`typed` does; a missing one is None.

    Raises:
        InputError: ``data`` is no mapping, or the entry is of another type.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{shown(data)}; expected an object that has {name!r}")
    return typed(name, data.get(name), hint)


def _convert(value: Any, hint: Any) -> Any:
    inner, optional = without_none(hint)
    if inner is Any or (optional and value is None):
        return value
    origin, parts = get_origin(inner), get_args(inner)
    if origin is Literal:
        if isinstance(value, str) and value in parts:
            return value
    elif origin is tuple:
        if isinstance(value, Number) and parts[-1] is ...:
            value = (value,)
        if isinstance(value, (list, tuple)):
            kinds = parts[:1] * len(value) if parts[-1] is ... else parts
            return tuple(map(_convert, *_equally_long(value, kinds)))
    elif origin is list:
        if isinstance(value, (list, tuple)):
            return [_convert(part, parts[0]) for part in value]
    elif origin is dict:
        if isinstance(value, Mapping):
            return {_convert(k, parts[0]): _convert(part, parts[1]) for k, part in value.items()}
    elif inner is str:
        if isinstance(value, str):
            value.encode()  # half of a surrogate pair can be neither written nor printed
            return value
    elif inner is bool:
        if isinstance(value, bool):
            return value
    elif isinstance(value, Integral if inner is int else Real) and not isinstance(value, bool):
        number = inner(value)
        if math.isfinite(number):
            return number
    raise ValueError


def _equally_long(values: Any, kinds: Any) -> tuple[Any, Any]:
    if len(values) != len(kinds):
        raise ValueError
    return values, kinds


def without_none(hint: Any) -> tuple[Any, bool]:
    """A type without ``None``, and whether ``None`` was allowed."""
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (part for part in get_args(hint) if part is not type(None))
        return inner, True
    return hint, False


def describe(hint: Any, *, as_text: bool = False) -> str:
    """A description of the values of a type, for messages.

    Args:
        hint: the type.
        as_text: how they are written on a command line.
    """
    inner, optional = without_none(hint)
    origin, parts = get_origin(inner), get_args(inner)
    number = "number" if as_text else "finite number"
    if origin is Literal:
        kind = f"one of {', '.join(map(str if as_text else repr, parts))}"
    elif origin in (tuple, list):
        kind = {int: "integers", float: f"{number}s", str: "texts"}.get(parts[0], "lists")
        if origin is tuple and parts[-1] is not ...:
            kind = f"{len(parts)} {kind}"
        kind += " separated by commas" if as_text else ""
    elif origin is dict:
        kind = "an object"
    else:
        words = {bool: "true or false", int: "an integer", float: f"a {number}"}
        kind = words.get(inner, "text")
    return f"{kind} or null" if optional else kind
