"""Settings: trees of frozen dataclasses with dotted names, such as ``network.edge_stream.gate``."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from egcnn.errors import InputError

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """Base of all settings. A field is a value or nested settings.

    Parts of a dotted name may be omitted as long as the rest is unambiguous:
    ``network.gate`` and ``gate`` are ``network.edge_stream.gate``.

    Raises:
        InputError: a value that the field's ``Literal`` does not list.
    """

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise InputError(f"{name}: {value!r}; expected {_kind(hint, repr)}")

    def entries(self) -> dict[str, Any]:
        """All values by dotted name, in the order of definition."""
        entries: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Settings):
                inner = value.entries().items()
                entries.update((f"{field.name}.{name}", entry) for name, entry in inner)
            else:
                entries[field.name] = value
        return entries

    def change(self: S, changes: Mapping[str, Any]) -> S:
        """Return a copy with other values, by dotted name.

        Raises:
            InputError: an unknown or ambiguous name, or an invalid value.
        """
        names = list(self.entries())
        return self._replace({_find(name, names): value for name, value in changes.items()})

    def _replace(self: S, changes: Mapping[str, Any]) -> S:
        values: dict[str, Any] = {}
        inner: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            first, _, rest = name.partition(".")
            if rest:
                inner.setdefault(first, {})[rest] = value
            else:
                values[first] = value
        parts = {name: getattr(self, name)._replace(some) for name, some in inner.items()}
        return replace(self, **values, **parts)

    def read(self, texts: Sequence[str]) -> dict[str, Any]:
        """Parse ``NAME=VALUE`` texts into typed values by full dotted name.

        Values are written as in JSON, text without quotes, lists with or without brackets.

        Raises:
            InputError: an unknown or ambiguous name, or a value of the wrong type.
        """
        hints = _leaves(type(self))
        changes: dict[str, Any] = {}
        for text in texts:
            given, separator, value = (part.strip() for part in text.partition("="))
            if not separator:
                raise InputError(f"{text}: no value; expected NAME=VALUE")
            name = _find(given, list(hints))
            try:
                changes[name] = _typed(value, hints[name])
            except ValueError:
                kind = _kind(hints[name])
                raise InputError(f"{text}: {value!r}; expected {kind}") from None
        return changes

    def parse(self: S, texts: Sequence[str]) -> S:
        """Return a copy changed by ``NAME=VALUE`` texts; see :meth:`read`."""
        return self.change(self.read(texts))

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain data for JSON; the inverse of :meth:`from_dict`."""
        data: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Settings):
                data[field.name] = value.to_dict()
            else:
                data[field.name] = list(value) if isinstance(value, tuple) else value
        return data

    @classmethod
    def from_dict(cls: type[S], data: Mapping[str, Any]) -> S:
        """Read what :meth:`to_dict` wrote; missing entries take their defaults.

        Raises:
            InputError: an unknown entry, such as one of a later version.
        """
        hints = _hints(cls)
        if unknown := sorted(set(data) - set(hints)):
            raise InputError(
                f"settings: unknown entries {', '.join(unknown)}; expected some of "
                f"{', '.join(hints)}"
            )
        values: dict[str, Any] = {}
        for name, value in data.items():
            hint = hints[name]
            if isinstance(hint, type) and issubclass(hint, Settings):
                values[name] = hint.from_dict(value)
            else:
                values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    @classmethod
    def resolve(cls: type[S], settings: S | None, options: Mapping[str, Any]) -> S:
        """Resolve a constructor's arguments: settings (by default the defaults), overridden by
        keywords.

        Raises:
            InputError: a keyword that is not a field, or an invalid value.
        """
        known = _hints(cls)
        for name in options:
            if name not in known:
                raise InputError(f"{name}: no such option; expected some of {', '.join(known)}")
        return cls(**options) if settings is None else replace(settings, **options)


def _hints(cls: type[Settings]) -> dict[str, Any]:
    """The fields' types, in the order of definition."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _leaves(cls: type[Settings]) -> dict[str, Any]:
    """The types of all entries by dotted name."""
    leaves: dict[str, Any] = {}
    for name, hint in _hints(cls).items():
        if isinstance(hint, type) and issubclass(hint, Settings):
            leaves.update((f"{name}.{inner}", kind) for inner, kind in _leaves(hint).items())
        else:
            leaves[name] = hint
    return leaves


def _find(name: str, names: Sequence[str]) -> str:
    """The full name of an entry."""
    if name in names:
        return name
    parts = name.split(".")
    matches = [full for full in names if _shortens(parts, full.split("."))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InputError(f"{name}: several entries; expected one of {', '.join(matches)}")
    raise InputError(f"{name}: no such entry; expected one of {', '.join(names)}")


def _shortens(parts: Sequence[str], full: Sequence[str]) -> bool:
    """Whether ``parts`` is ``full`` with some parts omitted, but not the last."""
    rest = iter(full)
    return parts[-1] == full[-1] and all(part in rest for part in parts)


def _optional(hint: Any) -> tuple[Any, bool]:
    """A type without ``None``, and whether ``None`` was allowed."""
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (part for part in get_args(hint) if part is not type(None))
        return inner, True
    return hint, False


def _kind(hint: Any, show: Callable[[Any], str] = str) -> str:
    """A description of the values of a type, for messages."""
    inner, optional = _optional(hint)
    if get_origin(inner) is Literal:
        kind = f"one of {', '.join(map(show, get_args(inner)))}"
    elif get_origin(inner) is tuple:
        parts = get_args(inner)
        what = "integers" if parts[0] is int else "numbers"
        kind = what if parts[-1] is ... else f"{len(parts)} {what}"
        kind += " separated by commas"
    else:
        words = {bool: "true or false", int: "an integer", float: "a number"}
        kind = words.get(inner, "text")
    return f"{kind} or null" if optional else kind


def _typed(text: str, hint: Any) -> Any:
    """Parse a text as a value of a type.

    Raises:
        ValueError: the text is not one.
    """
    inner, optional = _optional(hint)
    if optional and text == "null":
        return None
    if get_origin(inner) is Literal:
        return get_args(inner)[get_args(inner).index(text)]
    if get_origin(inner) is tuple:
        kinds = get_args(inner)
        parts = [part for part in text.strip("[]()").split(",") if part.strip()]
        if kinds[-1] is not ... and len(parts) != len(kinds):
            raise ValueError(text)
        return tuple(kinds[0](part) for part in parts)
    if inner is bool:
        return ("false", "true").index(text) == 1
    return inner(text)
