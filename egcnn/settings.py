"""Settings: trees of frozen dataclasses with dotted names, such as ``network.edge_stream.gate``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from egcnn.errors import InputError, shown
from egcnn.typed import describe, typed, without_none

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """Base of all settings. A field is a value or nested settings.

    Parts of a dotted name may be omitted as long as the rest is unambiguous:
    ``network.gate`` and ``gate`` are ``network.edge_stream.gate``.

    Raises:
        InputError: a value that is not of the field's type, see :func:`egcnn.typed.typed`.
    """

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            if not _nested(hint):
                object.__setattr__(self, name, typed(name, value, hint))
            elif not isinstance(value, hint):
                raise InputError(f"{name}: {shown(value)}; expected {hint.__name__}")

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
                changes[name] = _parsed(value, hints[name])
            except ValueError:
                kind = describe(hints[name], as_text=True)
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
            InputError: no mapping, an unknown entry, such as one of a later version, a missing one
                without default, or a value that is invalid.
        """
        hints = _hints(cls)
        if not isinstance(data, Mapping):
            raise InputError(f"{cls.__name__}: {shown(data)}; expected an object")
        if unknown := [shown(name) for name in data if name not in hints]:
            raise InputError(
                f"settings: unknown entries {', '.join(unknown)}; expected some of "
                f"{', '.join(hints)}"
            )
        needed = (f.name for f in fields(cls) if f.default is f.default_factory is MISSING)
        if absent := [name for name in needed if name not in data]:
            raise InputError(f"settings: {', '.join(absent)} is missing; expected a value")
        return cls(
            **{
                name: hints[name].from_dict(value) if _nested(hints[name]) else value
                for name, value in data.items()
            }
        )

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


def _nested(hint: Any) -> bool:
    """Whether a field holds settings."""
    return isinstance(hint, type) and issubclass(hint, Settings)


def _leaves(cls: type[Settings]) -> dict[str, Any]:
    """The types of all entries by dotted name."""
    leaves: dict[str, Any] = {}
    for name, hint in _hints(cls).items():
        if _nested(hint):
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
    raise InputError(f"{name}: no such entry; expected {_alike(parts[-1], names)}")


def _alike(part: str, names: Sequence[str]) -> str:
    """The entries whose last part is spelt like this one; all, if there is none."""
    last = [name.split(".")[-1] for name in names]
    close = difflib.get_close_matches(part, last)
    alike = [name for name, own in zip(names, last, strict=True) if own in close]
    if alike:
        return f"perhaps {' or '.join(alike)} (config.json of a run holds all)"
    return f"one of {', '.join(names)}"


def _shortens(parts: Sequence[str], full: Sequence[str]) -> bool:
    """Whether ``parts`` is ``full`` with some parts omitted, but not the last."""
    rest = iter(full)
    return parts[-1] == full[-1] and all(part in rest for part in parts)


def _parsed(text: str, hint: Any) -> Any:
    """Parse a text as a value of a type.

    Raises:
        ValueError: the text is not one.
    """
    inner, optional = without_none(hint)
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
