"""Builds ``egcnn._C``: writes a ninja file from ``csrc/`` and runs it. Never imports torch.

Environment:
    CXX               the C++ compiler (default: the first of c++, g++, clang++ on PATH)
    CUDA_HOME         the CUDA toolkit (default: the one whose nvcc is on PATH)
    EGCNN_CUDA        auto (default: if nvcc is found), 0 (never), 1 (fail without nvcc); unless it
                      is 0, build_backend.py may make pip download a missing nvcc
    EGCNN_CUDA_ARCHS  such as "80 90" (default: what this nvcc supports of the list below)
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

from build_backend import COMPILER_PACKAGES, COMPILER_VERSION, driver_version, find_nvcc

ROOT = Path(__file__).resolve().parent
CUDA_ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)
# The CPU kernels are compiled once for each of these and chosen at run time.
INSTRUCTION_SETS = {"baseline": ""}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS |= {
        "avx2": "-march=x86-64-v3",
        "avx512": "-march=x86-64-v4 -mprefer-vector-width=512",
    }


def stop(message: str) -> NoReturn:
    """End the build with a one-line message instead of a traceback."""
    sys.exit(f"egcnn: {message}")


def find_compiler() -> str:
    """The C++ compiler, from CXX or PATH."""
    chosen = os.environ.get("CXX", "")
    for name in [chosen] if chosen else ["c++", "g++", "clang++"]:
        if found := shutil.which(name):
            return found
    looked = f"CXX is {chosen!r}, which was not found" if chosen else "none of c++, g++, clang++"
    stop(
        f"no C++ compiler was found on PATH ({looked}); install one, for example with "
        "'apt install g++', 'dnf install gcc-c++' or 'conda install gxx', and try again"
    )


def cuda_version(number: int) -> str:
    """13000 as 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"


@dataclass(frozen=True)
class Cuda:
    """The CUDA part of the build; ``nvcc`` is empty where it is skipped, and ``note`` says why."""

    nvcc: str = ""
    architectures: tuple[int, ...] = ()
    toolkit: str = ""
    note: str = ""


def find_cuda() -> Cuda:
    """Choose nvcc, unless EGCNN_CUDA forbids it, and the architectures to compile for."""
    choice = os.environ.get("EGCNN_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        stop(f"EGCNN_CUDA is {choice!r}; expected auto, 0 or 1")
    if choice == "0":
        return Cuda(note="skipped: EGCNN_CUDA=0")
    nvcc = find_nvcc()
    if not nvcc:
        missing = "no nvcc was found in CUDA_HOME/bin, on PATH or among the installed packages"
        remedy = f"pip install '{COMPILER_PACKAGES}' provides one"
        if choice == "1":
            stop(f"EGCNN_CUDA=1 and {missing}; {remedy}")
        driver = driver_version()
        if not driver:
            return Cuda(note=f"skipped: {missing}, and there is no NVIDIA driver")
        if driver < COMPILER_VERSION:
            remedy = (
                f"the NVIDIA driver supports CUDA {cuda_version(driver)}, too old for the compiler "
                f"that pip would fetch ({cuda_version(COMPILER_VERSION)}); with an nvcc of CUDA "
                f"{driver // 1000} on PATH or in CUDA_HOME the build takes that one"
            )
        return Cuda(note=f"skipped: {missing}; {remedy}")

    def ask(*arguments: str) -> str:
        return subprocess.run([nvcc, *arguments], check=True, capture_output=True, text=True).stdout

    toolkit = ask("--version").split("release ")[1].split(",")[0]
    supported = {
        int(line.removeprefix("sm_"))
        for line in ask("--list-gpu-code").split()
        if line.removeprefix("sm_").isdigit()
    }
    named = os.environ.get("EGCNN_CUDA_ARCHS", "").replace(",", " ").replace(";", " ").split()
    if not named:
        architectures = tuple(a for a in CUDA_ARCHITECTURES if a in supported)
        return Cuda(nvcc, architectures, toolkit)
    for name in named:
        if not name.isdigit() or int(name) not in supported:
            stop(
                f"EGCNN_CUDA_ARCHS names {name!r}; nvcc {toolkit} supports "
                + " ".join(map(str, sorted(supported)))
            )
    return Cuda(nvcc, tuple(sorted({int(name) for name in named})), toolkit)


def too_new(cuda: Cuda) -> str:
    """Why this machine's own driver will not run what this nvcc compiles; empty where it will."""
    driver, major = driver_version(), cuda.toolkit.split(".")[0]
    if not cuda.nvcc or not driver or int(major) <= driver // 1000:
        return ""
    return (
        f"the NVIDIA driver of this machine supports CUDA {cuda_version(driver)} and will not run "
        f"what nvcc {cuda.toolkit} compiles; CUDA_HOME=(a CUDA {driver // 1000} toolkit) will do"
    )


def check_path(cuda: Cuda) -> None:
    """Stop where the checkout's path would harm: nvcc hands it to a shell, in double quotes."""
    if cuda.nvcc and (found := re.search(r'["`\\]|\$\(', str(ROOT))):
        stop(
            f"nvcc would let a shell read the {found[0]} in the folder's name, {ROOT}; expected "
            "another name, or EGCNN_CUDA=0 for a build without CUDA"
        )


def write_build_info(folder: Path, compiler: str, cuda: Cuda) -> None:
    """Write the header with the facts about this build that ``egcnn info`` shows."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    facts: dict[str, str | int] = {
        "EGCNN_WITH_CUDA": int(bool(cuda.nvcc)),
        "EGCNN_COMPILER": (version.splitlines() or ["unknown"])[0],
        "EGCNN_CUDA_TOOLKIT": cuda.toolkit,
        "EGCNN_CUDA_ARCHITECTURES": " ".join(map(str, cuda.architectures)),
        "EGCNN_CUDA_NOTE": cuda.note,
    }
    lines = ["#pragma once"] + [f"#define {k} {json.dumps(v)}" for k, v in facts.items()]
    text = "\n".join(lines) + "\n"
    header = folder / "build_info.h"
    if not header.exists() or header.read_text() != text:  # an unchanged header keeps its timestamp
        header.write_text(text)


def placed(path: Path) -> Path:
    """A path as commands get it, which run in the checkout: without the folders above that."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def escaped(path: Path) -> str:
    """A path for a build line of ninja, where ``$``, spaces and colons mean something else."""
    return re.sub("[$ :]", r"$\g<0>", str(placed(path)))


def quoted(word: str | Path) -> str:
    """A word for a command in a ninja file, where ninja expands ``$`` before the shell reads it."""
    return shlex.quote(str(word)).replace("$", "$$")


class NinjaFile:
    """Text of a ninja file that builds from the sources in ``csrc/``.

    Commands are made of :func:`quoted` words; ninja itself quotes ``$in`` and ``$out``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects: list[Path] = []
        self.lines = [f"builddir = {str(placed(folder)).replace('$', '$$')}"]

    def rule(self, name: str, command: str, title: str) -> None:
        """Add a rule."""
        self.lines += [f"rule {name}", f"  command = {command}", f"  description = {title} $out"]

    def compile_rule(self, name: str, command: str, title: str) -> None:
        """Add a rule whose command also lists the headers that it read."""
        self.rule(name, f"{command} -MF $out.d -c $in -o $out", title)
        self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def compile_source(
        self, rule: str, source: Path, suffix: str, flags: str = "", header: Path | None = None
    ) -> None:
        """Add an edge that compiles a source, again when a header of the build changes."""
        target = self.folder / source.relative_to(ROOT / "csrc").with_suffix(suffix)
        self.objects.append(target)
        after = f" | {escaped(header)}" if header else ""
        self.lines += [f"build {escaped(target)}: {rule} {escaped(source)}{after}"]
        self.lines += [f"  flags = {flags}"]

    def link(self, command: str, output: Path) -> None:
        """Add the edge that links all objects."""
        self.rule("link", f"{command} $in -o $out", "link")
        self.lines += [f"build {escaped(output)}: link {' '.join(map(escaped, self.objects))}"]


def write_ninja(folder: Path, output: Path, compiler: str, cuda: Cuda) -> None:
    """Write the ninja file: one build edge per source and instruction set, and one to link."""
    import pybind11

    includes = [placed(folder), sysconfig.get_paths()["include"], pybind11.get_include()]
    common = ["-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-fopenmp", "-Wall"]
    # Neither flag changes a result; both let the compiler vectorize loops with sqrt and
    # comparisons.
    common += ["-fno-math-errno", "-fno-trapping-math"]
    if "avx2" in INSTRUCTION_SETS:
        common.append("-DEGCNN_X86")
    common += [f"-isystem {quoted(path)}" for path in includes]
    ninja, cxx = NinjaFile(folder), quoted(compiler)
    ninja.compile_rule("cxx", f"{cxx} -MMD {' '.join(common)} $flags", "C++")
    link = f"{cxx} -shared -fopenmp -s"
    if cuda.nvcc:
        nvcc = f"{quoted(cuda.nvcc)} -ccbin {cxx}"
        targets = [f"-gencode arch=compute_{a},code=sm_{a}" for a in cuda.architectures]
        newest = cuda.architectures[-1]
        targets.append(f"-gencode arch=compute_{newest},code=compute_{newest}")
        if int(cuda.toolkit.split(".")[0]) >= 13:  # a seventh of the size; all drivers read it
            targets.append("--compress-mode=size")
        ninja.compile_rule(
            "nvcc",
            f"{nvcc} -std=c++17 -O3 -lineinfo --threads 0 {' '.join(targets)} "
            "-Xcompiler -fPIC,-fvisibility=hidden -MD",
            "CUDA",
        )
        # Before the C++ units, since ninja starts from the top and these take longest.
        for source in sorted((ROOT / "csrc/cuda").rglob("*.cu")):
            ninja.compile_source("nvcc", source, ".cu.o")
        # nvcc finds its static runtime even when it is a wrapper outside its toolkit, but looks
        # in lib64 where the PyPI package has lib. A device link would add an empty image for an
        # architecture that was not requested.
        link = (
            f"{nvcc} -shared --no-device-link -cudart static "
            f"-L{quoted(Path(cuda.nvcc).parents[1] / 'lib')} -Xcompiler -fopenmp,-s"
        )
    info = folder / "build_info.h"
    ninja.compile_source("cxx", ROOT / "csrc/bindings.cpp", ".o", header=info)
    for source in sorted((ROOT / "csrc/cpu").rglob("*.cpp")):
        if source.name == "dispatch.cpp":
            ninja.compile_source("cxx", source, ".o")
            continue
        for name, flags in INSTRUCTION_SETS.items():
            ninja.compile_source("cxx", source, f".{name}.o", f"-DEGCNN_ISA={name} {flags}")
    ninja.link(link, output)
    (folder / "build.ninja").write_text("\n".join([*ninja.lines, ""]))


def check_complete(module: Path) -> None:
    """Stop unless every name that the module uses is defined.

    The linker leaves Python's names open and cannot tell a missing kernel from them. Loading the
    module resolves all of them; without this, the reference would quietly serve instead.
    """
    load = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", load, str(module)], capture_output=True, text=True)
    if run.returncode:
        module.unlink()
        reason = run.stderr.splitlines()[-1] if run.stderr else f"exit status {run.returncode}"
        stop(f"the kernels compiled but do not load: {reason}")


class NinjaBuild(build_ext):
    """Builds the only extension with ninja, in parallel."""

    def build_extension(self, ext: Extension) -> None:
        """Write the ninja file and run it; every failure ends in a one-line message."""
        import ninja

        compiler, cuda = find_compiler(), find_cuda()
        check_path(cuda)
        part = f"sm_{' sm_'.join(map(str, cuda.architectures))}" if cuda.nvcc else cuda.note
        print(f"egcnn: C++ by {compiler}; CUDA {part}", flush=True)
        if warning := too_new(cuda):
            print(f"egcnn: {warning}", flush=True)
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        if any("\n" in str(placed(path)) for path in (folder, output)):
            stop(f"{str(folder)!r}: ninja reads no path with a line break; expected another folder")
        write_build_info(folder, compiler, cuda)
        write_ninja(folder, output, compiler, cuda)
        command = [os.path.join(ninja.BIN_DIR, "ninja"), "-C", str(ROOT), "-f"]
        command.append(str(folder / "build.ninja"))
        with (folder.parent / "compile_commands.json").open("w") as file:  # where clangd looks
            subprocess.run([*command, "-t", "compdb", "cxx", "nvcc"], stdout=file, check=True)
        if subprocess.run(command).returncode:
            hint = "; EGCNN_CUDA=0 builds without the CUDA part" if cuda.nvcc else ""
            stop(f"the kernels did not compile; see the compiler's message above{hint}")
        check_complete(output)


setup(
    ext_modules=[Extension("egcnn._C", sources=[])],
    cmdclass={"build_ext": NinjaBuild},
)
