"""The emulated PTX instructions: fragments as the PTX ISA lays them out, the tensor cores' sums as
experiments found them (``tensor_core.cpp`` names the papers), and bounds of approximations."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from . import build
from .test_stand_in import call

ARCHITECTURES = [70, 75, 80, 90]
LANE = np.arange(32)[:, None]
GROUP, THREAD = LANE >> 2, LANE % 4  # groupID and threadID_in_group of the PTX ISA


@cache
def library(architecture: int) -> ctypes.CDLL:
    source = Path(__file__).parent / "instructions.cu"
    loaded = ctypes.CDLL(str(build.build_library([source], architecture)))
    loaded.run_tf32.restype = loaded.run_f16.restype = ctypes.c_char_p
    return loaded


# --- Fragments: the (row, column) of element i of each lane, from the PTX ISA's section "Matrix
# Fragments for mma.m16n8k8" ---

I4, I2 = np.arange(4), np.arange(2)
F16_A = GROUP + 8 * (I4 >= 2), THREAD * 2 + (I4 & 1)
F16_B = THREAD * 2 + (I2 & 1), GROUP + 0 * I2
TF32_A = GROUP + 8 * (I4 & 1), THREAD + 4 * (I4 >= 2)
TF32_B = THREAD + 4 * I2, GROUP + 0 * I2
SUMS = GROUP + 8 * (I4 >= 2), THREAD * 2 + (I4 & 1)


def multiply(
    kind: str, architecture: int, a: np.ndarray, b: np.ndarray, c: np.ndarray, threads: int = 32
) -> np.ndarray:
    """a b + c; a and b hold float32 values, or float16 for f16."""
    d = np.ascontiguousarray(c[SUMS])
    if kind == "tf32":
        words = a[TF32_A].view(np.uint32), b[TF32_B].view(np.uint32)
        function = library(architecture).run_tf32
    else:  # the first of two is in the word's lower half
        words = a[F16_A].view(np.uint32), b[F16_B].view(np.uint32)
        function = library(architecture).run_f16
    sentence = call(function, threads, *map(np.ascontiguousarray, words), d).decode()
    if sentence:
        raise RuntimeError(sentence)
    result = np.empty((16, 8), np.float32)
    result[SUMS] = d
    return result


KINDS = [("f16", 75), ("f16", 80), ("f16", 90), ("tf32", 80), ("tf32", 90)]
every_kind = pytest.mark.parametrize(("kind", "architecture"), KINDS)


def values(kind: str, *shape: int, spread: int = 0) -> np.ndarray:
    """Random numbers that are exact in TF32, or in float16, over 2 * spread powers of two."""
    generator = np.random.default_rng(spread)
    x = (
        generator.integers(-2047, 2048, shape)
        / 1024
        * 2.0 ** generator.integers(-spread, spread + 1, shape)
    )
    return x.astype(np.float16 if kind == "f16" else np.float32)


@every_kind
def test_fragments(kind: str, architecture: int) -> None:
    generator = np.random.default_rng(0)
    a, b = (
        generator.integers(-8, 9, shape).astype(values(kind, 1).dtype)
        for shape in ((16, 8), (8, 8))
    )
    c = generator.integers(-8, 9, (16, 8)).astype(np.float32)
    assert (multiply(kind, architecture, a, b, c) == a.astype(float) @ b + c).all()


# --- Sums ---


def exponent(x: float, lowest: int) -> int | None:
    return None if x == 0 else max(math.frexp(x)[1] - 1, lowest)


def cut_off(x: Fraction, unit: Fraction) -> Fraction:
    return math.trunc(x / unit) * unit


def fused_sum(kind: str, bits: int, c: float, pairs: list[tuple[float, float]]) -> float:
    lowest = -14 if kind == "f16" else -126
    exponents = [exponent(c, -126)]
    for x, y in pairs:
        ex, ey = exponent(x, lowest), exponent(y, lowest)
        exponents.append(None if ex is None or ey is None else ex + ey)
    present = [e for e in exponents if e is not None]
    if not present:
        return 0.0
    unit = Fraction(2) ** (max(present) - bits)
    terms = [Fraction(c), *(Fraction(x) * Fraction(y) for x, y in pairs)]
    total = sum(cut_off(term, unit) for term in terms)
    if total == 0:
        return 0.0
    magnitude = max(abs(total), Fraction(2) ** -149)
    # frexp may round up to the next power of two what float64 cannot hold; these sums fit.
    last = Fraction(2) ** max(math.frexp(float(magnitude))[1] - 24, -149)
    return float(cut_off(total, last))


@every_kind
@pytest.mark.parametrize("spread", [0, 2, 6, 12])
def test_sums_are_cut_off_as_on_the_hardware(kind: str, architecture: int, spread: int) -> None:
    a, b = values(kind, 16, 8, spread=spread), values(kind, 8, 8, spread=spread)
    c = np.random.default_rng(1).standard_normal((16, 8)).astype(np.float32)
    c *= 2.0 ** (spread // 2)
    bits = 25 if architecture >= 90 else 24
    at_once = 4 if architecture == 80 else 8
    expected = c.copy()
    for row in range(16):
        for column in range(8):
            for k in range(0, 8, at_once):
                pairs = [(float(a[row, i]), float(b[i, column])) for i in range(k, k + at_once)]
                start = float(expected[row, column])
                expected[row, column] = fused_sum(kind, bits, start, pairs)
    result = multiply(kind, architecture, a, b, c)
    assert (result.view(np.uint32) == expected.view(np.uint32)).all()


def dot(kind: str, architecture: int, c: float, a: list[float], b: list[float]) -> float:
    """c + a b; both are filled up with zeros."""
    dtype = np.float16 if kind == "f16" else np.float32
    row, column = np.zeros((16, 8), dtype), np.zeros((8, 8), dtype)
    row[11, : len(a)], column[: len(b), 5] = a, b
    sums = np.zeros((16, 8), np.float32)
    sums[11, 5] = c
    result = multiply(kind, architecture, row, column, sums)
    assert np.count_nonzero(np.delete(result, 11, 0)) == 0
    return float(result[11, 5])


@every_kind
def test_sums_by_hand(kind: str, architecture: int) -> None:
    def sums(c: float, a: list[float], b: list[float]) -> float:
        return dot(kind, architecture, c, a, b)

    hopper = architecture >= 90
    # Eight times 2^-25 beside 1: each is lost before Hopper, together they are 2^-22.
    assert sums(1, [2.0**-12] * 8, [2.0**-13] * 8) == (1 + 2.0**-22 if hopper else 1)
    assert sums(-1, [2.0**-12] * 8, [-(2.0**-13)] * 8) == -(1 + 2.0**-22 if hopper else 1)
    # Cut off, not rounded: 1 + 0.75 of a unit of float32.
    assert sums(1, [2.0**-12, 2.0**-12], [2.0**-12, 2.0**-13]) == 1
    # 2^30 and its negative hide 1, unless it is added after them.
    big = [2.0**15, 2.0**15, 0, 0, 1]
    assert sums(0, big, [2.0**15, -(2.0**15), 0, 0, 1]) == (1 if architecture == 80 else 0)
    # The result of two factors of 1.5 does not move the point: 2^-25 beside 2.25 counts.
    c = 2.0**-25
    assert sums(c, [1.5, -1.5], [1.5, 1.5]) == (c if hopper else 0)
    assert math.isnan(sums(math.inf, [-math.inf], [1]))
    assert math.isnan(sums(0, [math.inf], [0]))
    assert sums(1, [-math.inf], [1]) == -math.inf
    assert sums(0, [], []) == 0


def test_subnormal_numbers_count() -> None:
    assert dot("f16", 75, 0, [2.0**-24, 3 * 2.0**-24], [2.0**-24, 2]) == 6 * 2.0**-24
    assert dot("tf32", 80, 0, [3 * 2.0**-136], [2]) == 3 * 2.0**-135
    assert dot("tf32", 80, 2.0**-149, [2.0**-100], [2.0**-49]) == 2.0**-148


def test_tf32_ignores_the_last_bits() -> None:
    long = struct.unpack("f", struct.pack("I", 0x3F801FFF))[0]
    assert dot("tf32", 90, 0, [long], [1]) == 1
    assert dot("tf32", 90, 0, [1], [-long]) == -1


@pytest.mark.parametrize(
    ("kind", "architecture", "threads", "words"),
    [
        ("tf32", 75, 32, "mma.m16n8k8.tf32 in tf32_kernel .* needs sm_80 or later"),
        ("f16", 70, 32, "mma.m16n8k8.f16 in f16_kernel .* needs sm_75 or later"),
        ("tf32", 90, 31, "mma.m16n8k8.tf32 in .* lane 31, which the block does not have"),
    ],
)
def test_mistakes_end_in_a_sentence(kind: str, architecture: int, threads: int, words: str) -> None:
    a, b = values(kind, 16, 8), values(kind, 8, 8)
    with pytest.raises(RuntimeError, match=words):
        multiply(kind, architecture, a, b, np.zeros((16, 8), np.float32), threads)


# --- Approximations: the function, arguments, and the bound for each result ---

POSITIVE = np.exp2(np.linspace(-126, 127.9, 20000)).astype(np.float32)
NEAR_ONE = np.linspace(0.5, 2, 20000, dtype=np.float32)[1:-1]
ALL = np.linspace(-125, 127, 20000, dtype=np.float32)


@pytest.mark.parametrize(
    ("code", "function", "x", "bound"),
    [
        (0, np.log2, NEAR_ONE, lambda y: np.full_like(y, 2.0**-22)),
        (0, np.log2, POSITIVE, lambda y: np.abs(y) * 2.0**-22 + 2.0**-22 * (np.abs(y) < 1)),
        (1, np.sqrt, POSITIVE, lambda y: y * 2.0**-23),
        (2, np.exp2, ALL, lambda y: 2 * np.spacing(y.astype(np.float32)).astype(float)),
        (3, np.reciprocal, POSITIVE[:-400], lambda y: np.spacing(y.astype(np.float32))),
        (4, lambda x: 1 / np.sqrt(x), POSITIVE, lambda y: y * 2.0**-22.9),
    ],
)
def test_approximations_use_their_bounds(
    code: int,
    function: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    bound: Callable[[np.ndarray], np.ndarray],
) -> None:
    result = np.zeros_like(x)
    call(library(90).run_approximate, code, np.ascontiguousarray(x), result, x.size)
    exact = function(x.astype(np.float64))
    share = np.abs(result - exact) / bound(exact)
    assert share.max() <= 1
    assert share.max() > 0.6


def test_approximations_flush_subnormal_numbers() -> None:
    x = np.array([1e-40, 0, np.inf, -1, np.nan], np.float32)
    results = np.zeros((5, x.size), np.float32)
    for code in range(5):
        call(library(90).run_approximate, code, x, results[code], x.size)
    inf, nan = np.inf, np.nan
    np.testing.assert_array_equal(results[0], [-inf, -inf, inf, nan, nan])
    np.testing.assert_array_equal(results[1], [0, 0, inf, nan, nan])
    np.testing.assert_array_equal(results[3][:3], [inf, inf, 0])
    np.testing.assert_array_equal(results[4], [inf, inf, 0, nan, nan])
    assert results[2][2] == inf
