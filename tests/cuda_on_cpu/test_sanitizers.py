"""The kernels of CUDA and of the CPU under the sanitizers, and planted bugs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from egcnn import _C  # type: ignore[attr-defined]

from . import build

MEMORY, RACES = build.SANITIZERS
ORDERS = ("forward", "reverse", "shuffled:1")
SMOOTH, MULTIPLY = (build.HERE / "planted" / name for name in ("smooth.cu", "multiply.cu"))
# Run only every n-th case: the sanitizers, ThreadSanitizer above all, are slow.
EVERY = {MEMORY: 11, RACES: 61}


def need(sanitizer: str) -> None:
    if why := sanitizer and build.why_no_sanitizer(sanitizer):
        pytest.skip(why)


# The kernels with TF32 tensor cores, and those with tensor cores for f16, which read other memory
# and wait in the same places.
@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("sanitizer", "architecture"),
    [(MEMORY, build.ARCHITECTURE), (MEMORY, 75), (RACES, build.ARCHITECTURE)],
)
def test_kernels(sanitizer: str, architecture: int) -> None:
    need(sanitizer)
    sources = [build.HERE / "kernels_main.cpp", *build.KERNELS]
    program = build.build_executable(sources, sanitizer, architecture)
    result = build.run(program, str(EVERY[sanitizer]))
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^\d+ cases of \d+ ran, 0 failed$", result.stdout, re.MULTILINE)


@pytest.mark.slow
# The narrowest vectors and the widest, with instructions of their own; AVX2 lies between.
@pytest.mark.parametrize(
    "instruction_set", [pytest.param("baseline", marks=pytest.mark.thorough), "avx512"]
)
def test_cpu_kernels(instruction_set: str) -> None:
    need(MEMORY)
    if instruction_set not in _C.cpu_by_instruction_set:
        pytest.skip(f"this machine does not run {instruction_set}")
    program = build.build_cpu_executable(instruction_set, MEMORY)
    result = build.run(program, str(EVERY[MEMORY]))
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^\d+ cases of \d+ ran, 0 failed$", result.stdout, re.MULTILINE)


def run_planted(
    monkeypatch: pytest.MonkeyPatch, kernel: Path, sanitizer: str, bug: str, order: str
) -> subprocess.CompletedProcess[str]:
    need(sanitizer)
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
    return build.run(build.build_executable([kernel], sanitizer), bug)


@pytest.mark.parametrize("kernel", [SMOOTH, MULTIPLY], ids=lambda path: path.stem)
@pytest.mark.parametrize("sanitizer", ["", MEMORY, RACES])
@pytest.mark.parametrize("order", ORDERS)
def test_clean_kernel_is_clean(
    monkeypatch: pytest.MonkeyPatch, kernel: Path, sanitizer: str, order: str
) -> None:
    result = run_planted(monkeypatch, kernel, sanitizer, "none", order)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("bug", "words"),
    [
        ("missing_barrier", "results differ from the reference"),
        ("missing_last_barrier", "results differ from the reference"),
        (
            "divergent_barrier",
            r"__syncthreads in smooth_kernel \(smooth.cu:\d+\), block \(1, 0, 0\), "
            r"thread .*: thread .* waits for it in __syncthreads in smooth_kernel",
        ),
        ("wrong_halo", "results differ from the reference"),
        ("exited_lanes", "__shfl_down_sync in smooth_kernel .* lane 31, which has left the kernel"),
        ("unwritten_sum", "results differ from the reference"),
    ],
)
def test_planted_bug_shows(
    monkeypatch: pytest.MonkeyPatch, order: str, bug: str, words: str
) -> None:
    result = run_planted(monkeypatch, SMOOTH, "", bug, order)
    assert result.returncode == 1
    assert re.search(words, result.stdout), result.stdout + result.stderr


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("bug", "words"),
    [
        ("swapped_a", "results differ from the reference"),
        ("transposed_b", "results differ from the reference"),
        ("wrong_d", "results differ from the reference"),
        ("neighbours_a", "results differ from the reference"),
        ("swapped_halves", "results differ from the reference"),
        ("unrounded", "results differ from the reference"),
        ("half_a_warp", "mma.m16n8k8.tf32 in multiply_tf32 .* lane 0, which has left the kernel"),
        ("another_place", "mma.m16n8k8.tf32 in .*, which waits in mma.m16n8k8.tf32 in multiply_tf"),
    ],
)
def test_planted_fragment_bug_shows(
    monkeypatch: pytest.MonkeyPatch, order: str, bug: str, words: str
) -> None:
    result = run_planted(monkeypatch, MULTIPLY, "", bug, order)
    assert result.returncode == 1
    assert re.search(words, result.stdout), result.stdout + result.stderr


@pytest.mark.parametrize(
    ("bug", "sanitizer", "words"),
    [
        ("missing_barrier", RACES, r"data race[\s\S]*Location is global '.*tile' of size 264"),
        ("missing_last_barrier", RACES, r"data race[\s\S]*Location is global '.*tile' of size 264"),
        ("shared_past_end", MEMORY, r"global-buffer-overflow[\s\S]* global variable 'tile'"),
        ("global_past_end", MEMORY, r"heap-buffer-overflow[\s\S]*in smooth_kernel"),
    ],
)
def test_planted_bug_is_named(
    monkeypatch: pytest.MonkeyPatch, bug: str, sanitizer: str, words: str
) -> None:
    result = run_planted(monkeypatch, SMOOTH, sanitizer, bug, "forward")
    assert result.returncode not in (0, 2)
    assert re.search(words, result.stderr), result.stdout + result.stderr


def test_shared_arrays_are_guarded() -> None:
    """Shared arrays are filled with garbage, found by shared_arrays.ld through their kernel's name,
    and have redzones, which arrays of templates get only in an anonymous namespace.
    """
    sources = [*build.KERNELS, SMOOTH]
    text = "".join(path.read_text() for path in [*sources, *build.CSRC.glob("cuda/*/*.cuh")])
    arrays = set(re.findall(r"__shared__[^;[]*?(\w+)\s*[;[]", text))
    assert arrays >= {"tile", "warp_sums"}
    objects = build.build_objects(sources)
    symbols = subprocess.run(["nm", *objects], capture_output=True, text=True, check=True).stdout
    found = set()
    for kind, symbol in re.findall(r" (\w) (_ZZ\w+)$", symbols, re.MULTILINE):
        if name := next((a for a in arrays if symbol.endswith(f"{len(a)}{a}")), None):
            assert "_kernel" in symbol, f"{symbol} is not in a function whose name ends in _kernel"
            assert kind == "b", f"{symbol} is not in an anonymous namespace"
            found.add(name)
    assert found >= {"tile", "warp_sums"}
