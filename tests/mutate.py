"""Damaged input: copies of bytes or of plain data with something wrong in them, from a seed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

#: How many times as many examples as usual; ``EGCNN_EXAMPLES=50 pytest -k mutated`` is long.
EXAMPLES = int(os.environ.get("EGCNN_EXAMPLES", "1"))

_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**70, -(2**40), 1e308, float("nan"), float("inf"), "", "x", "segnet"),
    *([], [0], [[1, 2], [3]], {}, {"a": 1}, "../../etc", "\x1b[31m", "[/x]", b"bytes"),
)


def mutated_bytes(data: bytes, count: int, *, upto: int | None = None) -> Iterator[bytes]:
    """Copies with bits flipped, bytes replaced, cut off, doubled or swapped.

    Args:
        data: what is damaged.
        count: of copies, times :data:`EXAMPLES`.
        upto: only the first so many bytes are changed, such as a header's.
    """
    for seed in range(count * EXAMPLES):
        rng = random.Random(seed)
        copy = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            length = min(len(copy), upto or len(copy))
            if not length:
                break
            place = rng.randrange(length)
            kind = rng.randrange(6)
            if kind == 0:
                copy[place] ^= 1 << rng.randrange(8)
            elif kind == 1:
                copy[place] = rng.choice((0, 1, 127, 128, 255))
            elif kind == 2:
                width = rng.choice((2, 4, 8))
                copy[place : place + width] = rng.choice((b"\0", b"\xff", b"\x7f")) * width
            elif kind == 3:
                # Infinity and NaN as floats of four bytes, in either order of bytes.
                copy[place // 4 * 4 : place // 4 * 4 + 4] = bytes.fromhex(
                    rng.choice(("0000807f", "7f800000", "0000c07f", "7fc00000"))
                )
            elif kind == 4:
                del copy[place:]
            else:
                copy[place:place] = copy[place : place + rng.randrange(1, 64)]
        yield bytes(copy)


def mutated_data(data: Any, count: int) -> Iterator[Any]:
    """Copies of nested mappings and lists with an entry dropped, renamed, or of another value."""
    for seed in range(count * EXAMPLES):
        rng = random.Random(seed)
        yield _changed(data, rng)


def _changed(data: Any, rng: random.Random) -> Any:
    inside = isinstance(data, (dict, list, tuple)) and len(data) > 0
    if not inside or rng.random() < 0.1:
        return rng.choice(_VALUES)
    if isinstance(data, dict):
        copy = dict(data)
        key = rng.choice(list(copy))
        action = rng.randrange(8)
        if action == 0:
            del copy[key]
        elif action == 1:
            copy[rng.choice(("", "colour", "x" * 1000))] = copy.pop(key)
        else:
            copy[key] = _changed(copy[key], rng)
        return copy
    parts = list(data)
    place = rng.randrange(len(parts))
    action = rng.randrange(8)
    if action == 0:
        del parts[place]
    elif action == 1:
        parts.append(parts[place])
    else:
        parts[place] = _changed(parts[place], rng)
    return type(data)(parts)
