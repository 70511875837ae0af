"""Compile CUDA sources as C++ against the stand-in; results are cached by content."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
KERNELS = tuple(sorted((CSRC / "cuda").rglob("*.cu")))
# No flag that changes floating-point results, and no aliasing assumption beyond nvcc's.
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing"]
# One section per static array, so that shared_arrays.ld can gather them.
FLAGS += ["-fdata-sections", "-Wall", "-Wno-unknown-pragmas", f"-I{HERE / 'include'}", f"-I{CSRC}"]
FAST = ["-O2", "-g0"]
ONLY_CALLS = ["-O0", "-g0"]
# The GPU that is simulated, unless a caller asks for another: its tensor cores take TF32.
ARCHITECTURE = 90
# Optimized, the sanitized kernels take twice as long to compile, which is most of the time.
CHECKED = ["-O0", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
SCHEDULER = tuple(sorted(HERE.glob("scheduler/*.cpp")))
STAND_IN = (*SCHEDULER, HERE / "runtime.cpp", HERE / "tensor_core.cpp")
#: Flags of the CPU's instruction sets, as in setup.py.
INSTRUCTION_SETS = {
    "baseline": (),
    "avx2": ("-march=x86-64-v3",),
    "avx512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
}
# The stand-in is not instrumented; it informs the sanitizer explicitly. ThreadSanitizer uses
# swapcontext, so that both ways of switching stacks are tested.
SANITIZERS = {
    "address,undefined": ["-DCUDA_ON_CPU_ASAN"],
    "thread": ["-DCUDA_ON_CPU_TSAN", "-DCUDA_ON_CPU_UCONTEXT"],
}


@cache
def compiler() -> str:
    """The C++ compiler, from CXX or PATH."""
    return os.environ.get("CXX") or shutil.which("g++") or "c++"


@cache
def _headers() -> bytes:
    """A hash of all headers and of the compiler's version."""
    version = subprocess.run([compiler(), "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(version)
    for folder in (HERE, CSRC):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".h", ".cuh", ".ld"):
                digest.update(path.read_bytes())
    return digest.digest()


def _cached(name: str, command: list[str], inputs: Sequence[Path]) -> Path:
    """The output of ``command inputs -o name``, from the cache if it is there."""
    digest = hashlib.sha256(_headers())
    for part in [*command, *map(str, inputs)]:
        digest.update(part.encode() + b"\0")
    for path in inputs:
        digest.update(path.read_bytes())
    root = Path(tempfile.gettempdir()) / f"egcnn-cuda-on-cpu-{os.getuid()}"
    output = root / digest.hexdigest()[:24] / name
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (
            output.with_suffix(".lock").open("w") as lock,
            tempfile.TemporaryDirectory(dir=output.parent) as folder,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the tests may be building it
            if output.exists():
                return output
            made = Path(folder) / name
            run = subprocess.run(
                [*command, *map(str, inputs), "-o", str(made)], capture_output=True, text=True
            )
            if run.returncode:
                raise RuntimeError(f"{' '.join(run.args)}\n{run.stderr}")
            os.replace(made, output)
    return output


@cache
def _depends_on_architecture(source: Path) -> bool:
    """Whether a source, or what it includes, tells GPUs apart; the others are compiled once."""
    text = source.read_text()
    if re.search(r"\b(__CUDA_ARCH(_LIST)?__|CUDA_ON_CPU_ARCHITECTURE|__reduce_\w+_sync)\b", text):
        return True
    names = re.findall(r'#include ["<](.+)[">]', text)
    included = [folder / name for name in names for folder in (source.parent, CSRC)]
    return any(_depends_on_architecture(path) for path in included if path.exists())


def _compile(jobs: Sequence[tuple[Path, list[str]]], architecture: int) -> list[Path]:
    def compile_one(job: tuple[Path, list[str]]) -> Path:
        source, flags = job
        gpu = architecture if _depends_on_architecture(source) else ARCHITECTURE
        macro = f"-DCUDA_ON_CPU_ARCHITECTURE={gpu}"
        command = [compiler(), *FLAGS, macro, *flags, "-x", "c++", "-c"]
        return _cached(f"{source.stem}.o", command, [source])

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, jobs))


def build_objects(sources: Sequence[Path], architecture: int = ARCHITECTURE) -> list[Path]:
    """Object files of the sources."""
    return _compile([(source, FAST) for source in sources], architecture)


def _link(name: str, objects: Sequence[Path], *flags: str) -> Path:
    command = [compiler(), "-pthread", *flags, f"-Wl,-T,{HERE / 'shared_arrays.ld'}"]
    return _cached(name, command, objects)


def build_module(sources: Sequence[Path] | None = None, architecture: int = ARCHITECTURE) -> Path:
    """A Python module like ``egcnn._C``, with kernels from the CUDA sources.

    Its ``cpu`` and its ``cuda`` are the same CUDA kernels; both take pointers to host memory.
    ``architecture`` is that of the GPU, such as 75 for sm_75. It is part of the module's name,
    because pybind11 gives a process one module of a name.
    """
    import pybind11

    name = f"_cuda_on_cpu_{architecture}"
    includes = [sysconfig.get_paths()["include"], pybind11.get_include()]
    flags = [f"-isystem{path}" for path in includes] + [f"-DEGCNN_MODULE={name}"]
    kernels = KERNELS if sources is None else sources
    own = [HERE / "cpu_kernels.cpp", *STAND_IN]
    jobs = [(CSRC / "bindings.cpp", [*ONLY_CALLS, *flags])]
    jobs += [(source, FAST) for source in [*kernels, *own]]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return _link(f"{name}{suffix}", _compile(jobs, architecture), "-shared")


def build_library(sources: Sequence[Path], architecture: int = ARCHITECTURE) -> Path:
    """A shared library, for ctypes."""
    objects = build_objects([*sources, *STAND_IN], architecture)
    return _link(f"{sources[0].stem}.so", objects, "-shared")


def build_executable(
    sources: Sequence[Path], sanitizer: str = "", architecture: int = ARCHITECTURE
) -> Path:
    """An executable; ``sanitizer`` is one of :data:`SANITIZERS`, or none."""
    if not sanitizer:
        return _link(sources[0].stem, build_objects([*sources, *STAND_IN], architecture))
    flag = f"-fsanitize={sanitizer}"
    jobs = [(source, [*CHECKED, flag]) for source in sources]
    jobs += [(source, [*FAST, *SANITIZERS[sanitizer]]) for source in STAND_IN]
    return _link(sources[0].stem, _compile(jobs, architecture), flag)


def build_cpu_executable(instruction_set: str, sanitizer: str) -> Path:
    """``kernels_main.cpp`` with the CPU kernels of one of :data:`INSTRUCTION_SETS`, sanitized."""
    flags = [*CHECKED, "-fopenmp", "-Wno-psabi", f"-DEGCNN_ISA={instruction_set}"]
    flags += [*INSTRUCTION_SETS[instruction_set], f"-fsanitize={sanitizer}"]
    kernels = [path for path in sorted(CSRC.glob("cpu/**/*.cpp")) if path.name != "dispatch.cpp"]
    jobs = [(source, flags) for source in (*kernels, HERE / "cuda_kernels.cpp")]
    jobs += [(HERE / "kernels_main.cpp", [*CHECKED, f"-fsanitize={sanitizer}"])]
    jobs += [(source, [*FAST, *SANITIZERS[sanitizer]]) for source in STAND_IN]
    name = f"cpu_kernels_main_{instruction_set}"
    return _link(name, _compile(jobs, ARCHITECTURE), "-fopenmp", f"-fsanitize={sanitizer}")


@cache
def why_no_sanitizer(sanitizer: str) -> str:
    """Why executables with this sanitizer cannot be built or run here; empty if they can."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program"
        command = [compiler(), f"-fsanitize={sanitizer}", "-x", "c++", "-", "-o", str(program)]
        made = subprocess.run(command, input="int main() {}", capture_output=True, text=True)
        if made.returncode:
            return f"{compiler()} cannot link -fsanitize={sanitizer}"
        result = run(program)
        return f"it does not start here: {result.stderr[:200]}" if result.returncode else ""


def run(executable: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The finished run of an executable."""
    command = [str(executable), *arguments]
    # By default ThreadSanitizer sleeps for a second at exit.
    environment = os.environ | {"TSAN_OPTIONS": "atexit_sleep_ms=0"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "unexpected memory mapping" in result.stderr:
        # Older versions cannot start under strong address randomization.
        command = ["setarch", "-R", *command]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
    return result


def set_order(library: Path, order: str, seed: int = 0) -> None:
    """Run blocks and threads of a module or library forward, in reverse or shuffled by a seed."""
    code = ("forward", "reverse", "shuffled").index(order)
    ctypes.CDLL(str(library)).cuda_on_cpu_set_order(ctypes.c_int(code), ctypes.c_uint64(seed))
