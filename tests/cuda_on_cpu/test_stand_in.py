"""The stand-in's threads, warps and functions behave as CUDA documents."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from . import build

HERE = Path(__file__).parent
ORDERS = [("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)]
LANES = np.arange(64)


@pytest.fixture(scope="module")
def path() -> Path:
    return build.build_library([HERE / "stand_in.cu"])


@pytest.fixture(scope="module")
def library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.run_mistake.restype = ctypes.c_char_p
    return library


@pytest.fixture(params=ORDERS, ids=lambda order: f"{order[0]}{order[1]}")
def any_order(request: pytest.FixtureRequest, path: Path) -> None:
    build.set_order(path, *request.param)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call with arrays as their addresses."""
    converted = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            assert argument.flags.c_contiguous
            converted.append(ctypes.c_void_p(argument.ctypes.data))
        else:
            converted.append(argument)
    return function(*converted)


# --- Order and indices ---


def order_of(library: ctypes.CDLL, path: Path, order: str, seed: int = 0) -> list[int]:
    build.set_order(path, order, seed)
    visited = np.full(24 * 30, -1, np.int32)
    shape = np.array([[2, 3, 4], [5, 3, 2]], np.uint32)
    call(library.run_order, shape[0], shape[1], visited)
    return [int(place) for place in visited]


def test_order(library: ctypes.CDLL, path: Path) -> None:
    everyone = list(range(24 * 30))
    assert order_of(library, path, "forward") == everyone
    assert order_of(library, path, "reverse") == everyone[::-1]
    shuffled = order_of(library, path, "shuffled", 1)
    assert sorted(shuffled) == everyone
    assert shuffled == order_of(library, path, "shuffled", 1)
    assert shuffled != order_of(library, path, "shuffled", 2)
    # Blocks and threads of a block are both shuffled, and each block in its own way.
    blocks = np.reshape(shuffled, (24, 30)) // 30
    threads = np.reshape(shuffled, (24, 30)) % 30
    assert (blocks == blocks[:, :1]).all()
    assert (np.diff(blocks[:, 0]) % 24 != 1).any()
    assert len({tuple(row) for row in threads.tolist()}) == 24


# --- Barriers ---


@pytest.mark.parametrize("threads", [1, 31, 32, 33, 256, 1024])
@pytest.mark.usefixtures("any_order")
def test_barriers(library: ctypes.CDLL, threads: int) -> None:
    values = np.arange(threads, dtype=np.int32)
    call(library.run_rotate, threads, values, 5)
    assert values.tolist() == [(t + 5) % threads for t in range(threads)]


@pytest.mark.parametrize("threads", [1, 50, 256])
@pytest.mark.parametrize("true", ["none", "one", "some", "all"])
@pytest.mark.usefixtures("any_order")
def test_barriers_that_vote(library: ctypes.CDLL, threads: int, true: str) -> None:
    predicates = np.zeros(threads, np.int32)
    some = {"none": slice(0), "one": slice(1), "some": slice(0, None, 3), "all": slice(None)}
    predicates[some[true]] = 8
    counts, at_least_one, every_one = np.full((3, threads), -1, np.int32)
    call(library.run_barrier_votes, threads, predicates, counts, at_least_one, every_one)
    assert (counts == np.count_nonzero(predicates)).all()
    assert (at_least_one.astype(bool) == predicates.any()).all()
    assert (every_one.astype(bool) == predicates.all()).all()


# --- Warps ---


def shuffled_from(kind: int, width: int, by: np.ndarray) -> np.ndarray:
    """The thread that each of 64 threads reads, after CUDA's programming guide."""
    lane = LANES % width
    if kind == 0:  # in the segment, modulo its width
        source = by % width
    elif kind == 1:
        source = np.where(lane - by >= 0, lane - by, lane)
    elif kind == 2:
        source = np.where(lane + by < width, lane + by, lane)
    else:  # earlier segments may be read, later ones not
        source = (LANES % 32 ^ by) - LANES % 32 // width * width
        source = np.where(source < width, source, lane)
    return np.asarray(LANES // width * width + source)


@pytest.mark.parametrize("kind", range(4), ids=["index", "up", "down", "xor"])
@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
@pytest.mark.usefixtures("any_order")
def test_shuffles(library: ctypes.CDLL, kind: int, width: int) -> None:
    types = [np.int32, np.uint32, np.int64, np.uint64, np.int64, np.float32, np.float64]
    generator = np.random.default_rng(0)
    for code, dtype in enumerate(types):
        # All threads of a warp shift by the same in most kernels, and need not.
        for by in [np.full(64, shift) for shift in range(32)] + [generator.integers(0, 32, 64)]:
            values = generator.integers(0, 256, 64 * dtype().itemsize, np.uint8).view(dtype)
            result = np.zeros_like(values)
            call(library.run_shuffle, code, kind, width, by.astype(np.int32), values, result)
            expected = values[shuffled_from(kind, width, by)]
            assert result.tobytes() == expected.tobytes(), (dtype, by)


@pytest.mark.parametrize("mask", [0x1, 0xFFFF, 0xFFFF0000, 0x55555555, 0x80000001, 0xFFFFFFFF])
@pytest.mark.usefixtures("any_order")
def test_votes_and_reductions(library: ctypes.CDLL, mask: int) -> None:
    values = np.random.default_rng(0).integers(-(2**31), 2**31, 32).astype(np.int32)
    result = np.zeros((32, 8), np.uint32)
    call(library.run_votes, ctypes.c_uint32(mask), values, result)
    named = (mask >> np.arange(32)) & 1 == 1
    odd = values % 2 == 1
    ballot = sum(1 << lane for lane in range(32) if named[lane] and odd[lane])
    assert (result[named, :3] == [ballot, ballot != 0, ballot == mask]).all()
    total = int(values[~named].astype(np.int64).sum())
    sums = [(total + i * np.count_nonzero(~named)) % 2**32 for i in range(3)]
    assert (result[~named, :3] == sums).all()
    unsigned = values.view(np.uint32)
    reduced = [values.min().view(np.uint32), values.max().view(np.uint32)]
    reduced += [function.reduce(unsigned) for function in (np.bitwise_and, np.bitwise_or)]
    assert (result[:, 3:] == [*reduced, np.bitwise_xor.reduce(unsigned)]).all()


# --- Memory ---


@pytest.mark.usefixtures("any_order")
def test_atomics(library: ctypes.CDLL) -> None:
    values = np.random.default_rng(0).integers(-1000, 1000, 1000).astype(np.int32)
    result, wide = np.zeros(6, np.int32), np.zeros(1, np.uint64)
    call(library.run_atomics, values, 1000, result, wide)
    either = np.bitwise_or.reduce(values)
    assert result.tolist() == [values.sum(), values.min(), values.max(), either, 1, 7]
    assert wide[0] == (int(values.sum()) << 32) % 2**64


@pytest.mark.usefixtures("any_order")
def test_shared_memory_holds_garbage_in_every_block(library: ctypes.CDLL) -> None:
    seen = np.zeros(6, np.uint32)
    call(library.run_garbage, seen)
    assert (seen == 0xCDCDCDCD).all()


# --- Mistakes ---

MISTAKES = [
    r"__syncthreads in wrong_kernel \(stand_in.cu:\d+\), block .*: thread .* has left the kernel",
    r"thread \(\d+, 0, 0\): thread \(\d+, 0, 0\) waits for it in __syncthreads in wrong_kernel",
    r"__ballot_sync in wrong_kernel .*: the mask does not name the caller",
    r"__syncwarp in wrong_kernel .*: the mask names lane 16, which waits in __syncthreads",
    r"__shfl_xor_sync in wrong_kernel .*: the mask names lane 31, which has left the kernel",
    r"__shfl_sync in wrong_kernel .*: it reads from a lane that the mask does not name",
    r"__ldg in wrong_kernel .*: the address is not aligned",
    r"dynamic_shared in wrong_kernel .*: the launch gave no dynamic shared memory",
]


@pytest.mark.parametrize("mistake", range(len(MISTAKES)))
@pytest.mark.usefixtures("any_order")
def test_mistakes_end_in_a_sentence(library: ctypes.CDLL, mistake: int) -> None:
    sentence = call(library.run_mistake, mistake, np.zeros(128, np.uint32)).decode()
    assert re.search(MISTAKES[mistake], sentence), sentence


OK, INVALID_VALUE, INVALID_CONFIGURATION = 0, 1, 9


@pytest.mark.parametrize(
    ("grid", "block", "shared", "opt_in", "error"),
    [
        ((1, 1, 1), (1024, 1, 1), 0, 0, OK),
        ((1, 1, 1), (1, 1, 64), 48 << 10, 48 << 10, OK),
        ((1, 1, 1), (1, 1, 1), 227 << 10, 227 << 10, OK),
        ((0, 1, 1), (1, 1, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 1, 1), (0, 1, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 1, 1), (1025, 1, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 1, 1), (33, 32, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 1, 1), (1, 1, 65), 0, 0, INVALID_CONFIGURATION),
        ((2**31, 1, 1), (1, 1, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 65536, 1), (1, 1, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 1, 65536), (1, 1, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 1, 1), (1, 1, 1), (48 << 10) + 1, 48 << 10, INVALID_VALUE),
        ((1, 1, 1), (1, 1, 1), 0, (227 << 10) + 1, -INVALID_VALUE),
    ],
)
def test_limits_of_a_launch(
    library: ctypes.CDLL,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    shared: int,
    opt_in: int,
    error: int,
) -> None:
    shape = np.array([grid, block], np.uint32)
    assert call(library.run_launch, shape[0], shape[1], ctypes.c_size_t(shared), opt_in) == error


# --- Arithmetic ---


def bytes_of(word: int) -> list[int]:
    return list(word.to_bytes(4, "little"))


def bytewise(function: Callable[[int, int], int]) -> Callable[[int, int, int], int]:
    def words(a: int, b: int, _: int) -> int:
        pairs = zip(bytes_of(a), bytes_of(b), strict=True)
        return int.from_bytes(bytes(function(x, y) % 256 for x, y in pairs), "little")

    return words


def byte_perm(a: int, b: int, selectors: int) -> int:
    pool = bytes_of(a) + bytes_of(b)
    chosen = []
    for i in range(4):
        selector = selectors >> 4 * i & 0xF
        value = pool[selector & 7]
        chosen.append((255 if value & 128 else 0) if selector & 8 else value)
    return int.from_bytes(bytes(chosen), "little")


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def signed_dot(a: int, b: int, c: int) -> int:
    pairs = zip(bytes_of(a), bytes_of(b), strict=True)
    return c + sum(signed(x, 8) * signed(y, 8) for x, y in pairs)


# In the order of bits_kernel.
BITS: dict[str, Callable[[int, int, int], int]] = {
    "__popc": lambda a, b, c: a.bit_count(),
    "__ffs": lambda a, b, c: (a & -a).bit_length(),
    "__clz": lambda a, b, c: 32 - a.bit_length(),
    "__brev": lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    "__byte_perm": byte_perm,
    "__funnelshift_l": lambda a, b, c: ((b << 32 | a) << c % 32) >> 32,
    "__funnelshift_r": lambda a, b, c: (b << 32 | a) >> c % 32,
    "__umulhi": lambda a, b, c: a * b >> 32,
    "__vadd4": bytewise(lambda x, y: x + y),
    "__vsub4": bytewise(lambda x, y: x - y),
    "__vabsdiffu4": bytewise(lambda x, y: abs(x - y)),
    "__vmaxu4": bytewise(max),
    "__vminu4": bytewise(min),
    "__vcmpeq4": bytewise(lambda x, y: -(x == y)),
    "__vcmpne4": bytewise(lambda x, y: -(x != y)),
    "__vcmpgtu4": bytewise(lambda x, y: -(x > y)),
    "__vcmpgeu4": bytewise(lambda x, y: -(x >= y)),
    "__vseteq4": bytewise(lambda x, y: x == y),
    "__vsetne4": bytewise(lambda x, y: x != y),
    "__vsetgtu4": bytewise(lambda x, y: x > y),
    "__vavgu4": bytewise(lambda x, y: (x + y + 1) // 2),
    "__vhaddu4": bytewise(lambda x, y: (x + y) // 2),
    "__vsadu4": lambda a, b, c: sum(
        abs(x - y) for x, y in zip(bytes_of(a), bytes_of(b), strict=True)
    ),
    "__dp4a": lambda a, b, c: c + sum(x * y for x, y in zip(bytes_of(a), bytes_of(b), strict=True)),
    "__dp4a (int)": signed_dot,
}


@pytest.mark.parametrize("name", BITS)
def test_bits_and_bytes(library: ctypes.CDLL, name: str) -> None:
    generator = np.random.default_rng(0)
    words = generator.integers(0, 2**32, (3, 2000), np.uint32)
    # Equal, zero and extreme bytes are rare among random ones.
    few = np.array([0, 1, 0x7F, 0x80, 0xFF], np.uint8)
    words[:, 1000:] = generator.choice(few, (3, 4000)).view(np.uint32)
    words[:, 0] = 0
    result = np.zeros(2000, np.uint32)
    call(library.run_bits, list(BITS).index(name), *words, result, 2000)
    expected = [BITS[name](*map(int, column)) % 2**32 for column in words.T]
    assert result.tolist() == expected


def test_16_bit_floats_become_float(library: ctypes.CDLL) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    half, bfloat = np.zeros((2, 2**16), np.float32)
    call(library.run_from_16_bits, bits, half, bfloat, bits.size)
    for result, dtype in ((half, torch.float16), (bfloat, torch.bfloat16)):
        expected = torch.from_numpy(bits).view(dtype).float().numpy()
        nan = np.isnan(expected)
        assert (np.isnan(result) == nan).all()
        assert (result.view(np.uint32) == expected.view(np.uint32))[~nan].all()


def test_float_becomes_16_bit_floats(library: ctypes.CDLL) -> None:
    # Every 16-bit number, the middle to the next one, and a step to either side of both.
    every = np.arange(2**16, dtype=np.uint16)
    starts = [
        every.view(np.float16).astype(np.float32).view(np.uint32),
        every.astype(np.uint32) << 16,
    ]
    steps = [starts[0] + offset for offset in (0x0FFF, 0x1000, 0x1001, 0x1FFF, 0x3000, 0)]
    steps += [starts[1] + offset for offset in (0x7FFF, 0x8000, 0x8001, 0xFFFF, 0)]
    values = np.concatenate(steps).view(np.float32)
    half, bfloat = np.zeros((2, values.size), np.uint16)
    call(library.run_to_16_bits, values, half, bfloat, values.size)
    nan = np.isnan(values)
    for result, dtype in ((half, torch.float16), (bfloat, torch.bfloat16)):
        expected = torch.from_numpy(values).to(dtype).view(torch.int16).numpy().view(np.uint16)
        assert (result == expected)[~nan].all()
        assert (result[nan] == 0x7FFF).all()  # CUDA's own NaN
