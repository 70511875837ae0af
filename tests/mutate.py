"""Damaged input: copies of bytes or of plain data with something wrong in them, from a seed."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from egcnn.errors import InputError

#: How many times as many examples as usual. ``EGCNN_EXAMPLES=20 pytest -k mutated`` reads 10,000
#: NIfTI files, 2,000 dataset.json, 1,000 checkpoints and 1,000 files of runs.
EXAMPLES = int(os.environ.get("EGCNN_EXAMPLES", "1"))

_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**70, -(2**40), 1e308, float("nan"), float("inf"), "", "x", "segnet"),
    *([], [0], [[1, 2], [3]], {}, {"a": 1}, "../../etc", "\x1b[31m", "[/x]", "a\nb", b"bytes"),
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


def mutated_data(data: Any, count: int, values: Sequence[Any] = ()) -> Iterator[Any]:
    """Copies of nested mappings and lists with an entry dropped, renamed, or of another value.

    Args:
        data: what is damaged.
        count: of copies, times :data:`EXAMPLES`.
        values: further values that an entry may get.
    """
    for seed in range(count * EXAMPLES):
        rng = random.Random(seed)
        yield _changed(data, rng, (*_VALUES, *values))


@contextmanager
def refusable(path: Path) -> Iterator[None]:
    """The block reads a file, or refuses it with a sentence that names it; in 5 s and 500 MB."""
    with suppress(OSError):  # another system than Linux
        Path("/proc/self/clear_refs").write_text("5")  # forgets the resident peak
    peaks, started, sentence = _peaks(), time.process_time(), ""
    try:
        yield
    except InputError as error:
        sentence = str(error)
    assert time.process_time() - started < 5  # of all threads, on any machine
    assert all(now - before < 500e6 for before, now in zip(peaks, _peaks(), strict=True))
    assert not sentence or (str(path) in sentence and "\n" not in sentence)
    assert len(sentence) < 1000


def _peaks() -> list[int]:
    """The largest resident and virtual sizes so far, in bytes."""
    status = Path("/proc/self/status")
    text = status.read_text() if status.exists() else ""
    return [1024 * int(size) for size in re.findall(r"Vm(?:HWM|Peak):\s*(\d+)", text)]


def _changed(data: Any, rng: random.Random, values: Sequence[Any]) -> Any:
    inside = isinstance(data, (dict, list, tuple)) and len(data) > 0
    if not inside or rng.random() < 0.1:
        return rng.choice(values)
    if isinstance(data, dict):
        copy = dict(data)
        key = rng.choice(list(copy))
        action = rng.randrange(8)
        if action == 0:
            del copy[key]
        elif action == 1:
            copy[rng.choice(("", "colour", "x" * 1000))] = copy.pop(key)
        else:
            copy[key] = _changed(copy[key], rng, values)
        return copy
    parts = list(data)
    place = rng.randrange(len(parts))
    action = rng.randrange(8)
    if action == 0:
        del parts[place]
    elif action == 1:
        parts.append(parts[place])
    else:
        parts[place] = _changed(parts[place], rng, values)
    return type(data)(parts)
