"""Trees of settings: dotted names, typed values, plain data."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from egcnn.errors import InputError
from egcnn.settings import Settings


@dataclass(frozen=True)
class Gate(Settings):
    kind: Literal["channel", "voxel"] = "channel"
    width: int | None = None
    rate: float = 0.5


@dataclass(frozen=True)
class Network(Settings):
    size: tuple[int, int, int]
    gate: Gate = field(default_factory=Gate)
    blocks: tuple[int, ...] = (1, 2)
    spacing: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Run(Settings):
    network: Network
    other: Gate = field(default_factory=Gate)
    hard: bool = True
    title: str = ""


RUN = Run(Network((1, 2, 3)))


def test_entries_have_dotted_names() -> None:
    assert list(RUN.entries().items())[:4] == [
        ("network.size", (1, 2, 3)),
        ("network.gate.kind", "channel"),
        ("network.gate.width", None),
        ("network.gate.rate", 0.5),
    ]


def test_changes_by_full_and_by_short_names() -> None:
    changed = RUN.change({"network.gate.kind": "voxel", "hard": False, "size": (4, 4, 4)})
    assert changed == Run(Network((4, 4, 4), Gate("voxel")), hard=False)
    assert RUN.change({"network.kind": "voxel"}).network.gate.kind == "voxel"
    assert RUN.change({}) == RUN


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("network.gate.kind=voxel", "network.gate.kind", "voxel"),
        ("network.width = 5", "network.gate.width", 5),
        ("network.width=null", "network.gate.width", None),
        ("other.rate=2e-3", "other.rate", 2e-3),
        ("hard=false", "hard", False),
        ("size=[8,8, 8]", "network.size", (8, 8, 8)),
        ("blocks=", "network.blocks", ()),
        ("spacing=1,1,2.5", "network.spacing", (1.0, 1.0, 2.5)),
        ("title=a=b", "title", "a=b"),
    ],
)
def test_texts_become_typed_values(text: str, name: str, value: object) -> None:
    assert RUN.read([text]) == {name: value}
    assert RUN.parse([text]).entries()[name] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour=red", r"colour: no such entry; expected one of network\.size, .*title"),
        ("network.widht=5", r"network\.widht: .*; expected perhaps network\.gate\.width"),
        ("network=1", "network: no such entry"),
        ("rate=1", r"rate: several entries; expected one of network\.gate\.rate, other\.rate"),
        ("hard", "hard: no value; expected NAME=VALUE"),
        ("hard=yes", "hard=yes: 'yes'; expected true or false"),
        ("network.width=two", "'two'; expected an integer or null"),
        ("other.rate=", "''; expected a number"),
        ("network.kind=pixel", "'pixel'; expected one of channel, voxel"),
        ("size=8,8", "'8,8'; expected 3 integers separated by commas"),
        ("spacing=1,a,1", "expected 3 numbers separated by commas or null"),
    ],
)
def test_rejected_texts(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RUN.parse([text])


def test_plain_data_and_back() -> None:
    changed = RUN.change({"hard": False, "network.width": 3, "spacing": (1.0, 2.0, 3.0)})
    plain = json.loads(json.dumps(changed.to_dict()))
    assert plain["network"]["gate"] == {"kind": "channel", "width": 3, "rate": 0.5}
    assert Run.from_dict(plain) == changed
    # What an earlier version did not have yet has its default.
    assert Run.from_dict({"network": {"size": [1, 2, 3]}}) == RUN
    with pytest.raises(InputError, match="unknown entries 'colour'; expected some of netw"):
        Run.from_dict({**plain, "colour": "red"})


def test_constructors_take_settings_or_keywords() -> None:
    assert Gate.resolve(None, {}) == Gate()
    assert Gate.resolve(None, {"rate": 1.0}) == Gate(rate=1.0)
    assert Gate.resolve(Gate("voxel"), {"rate": 1.0}) == Gate("voxel", rate=1.0)
    with pytest.raises(InputError, match="colour: no such option; expected some of kind, width"):
        Gate.resolve(None, {"colour": "red"})
    with pytest.raises(InputError, match="kind: 'pixel'; expected one of 'channel', 'voxel'"):
        Gate.resolve(None, {"kind": "pixel"})
