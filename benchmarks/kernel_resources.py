"""Registers, shared memory and spills of every CUDA kernel, as a Markdown table.

    python -m benchmarks.kernel_resources --architectures 80 90

compiles ``csrc/cuda`` as the build does and reads what ptxas reports; it needs nvcc and c++filt,
and no GPU. Shared memory is the static part, in bytes. ``--check`` fails if a kernel spills,
except in float64, which is only for gradcheck.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from build_backend import find_nvcc

SOURCES = sorted((Path(__file__).resolve().parents[1] / "csrc/cuda").rglob("*.cu"))


@dataclass(frozen=True)
class Kernel:
    name: str
    architecture: int
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def is_float64(self) -> bool:
        return "double" in self.name


def compile_unit(nvcc: str, source: Path, architecture: int) -> str:
    """The output of ptxas for one unit."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++17", "-O3", "-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
        command += [str(source), "-o", os.path.join(folder, "unit.cubin")]
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    return run.stderr


def short_names(mangled: list[str]) -> list[str]:
    """``edge_gate_kernel<float, 8>``: no namespaces, no return type, no parameters."""
    run = subprocess.run(
        ["c++filt", "--no-params"],
        input="\n".join(mangled),
        capture_output=True,
        text=True,
        check=True,
    )
    namespaces = r"^void |egcnn::|cuda::|\(anonymous namespace\)::"
    return [re.sub(namespaces, "", line) for line in run.stdout.splitlines()]


def read(report: str, architecture: int) -> list[Kernel]:
    """Parse the kernels of a unit; device functions are counted with their kernel."""
    paragraphs = re.split(r"Compiling entry function '(\w+)'.*\n", report)[1:]

    def total(pattern: str, text: str) -> int:
        return sum(int(number) for number in re.findall(pattern, text))

    return [
        Kernel(
            name,
            architecture,
            total(r"Used (\d+) registers", text),
            total(r"(\d+) bytes smem", text),
            total(r"(\d+) bytes stack frame", text),
            total(r"(\d+) bytes spill stores", text),
            total(r"(\d+) bytes spill loads", text),
        )
        for name, text in zip(short_names(paragraphs[::2]), paragraphs[1::2], strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--architectures", type=int, nargs="+", default=[90], metavar="SM")
    parser.add_argument("--check", action="store_true", help="fail if a kernel spills")
    options = parser.parse_args()
    nvcc = find_nvcc()
    if not nvcc:
        sys.exit("no nvcc was found in CUDA_HOME/bin, on PATH or among the installed packages")

    units = list(product(SOURCES, options.architectures))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = pool.map(lambda unit: compile_unit(nvcc, *unit), units)
        kernels = [
            kernel
            for (_, architecture), report in zip(units, reports, strict=True)
            for kernel in read(report, architecture)
        ]
    print("| kernel | sm | registers | shared | stack | spill stores | spill loads |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for kernel in sorted(kernels, key=lambda kernel: (kernel.name, kernel.architecture)):
        k = kernel
        print(
            f"| `{k.name}` | {k.architecture} | {k.registers} | {k.shared} | {k.stack} "
            f"| {k.spill_stores} | {k.spill_loads} |"
        )
    spilling = [k for k in kernels if k.spill_stores + k.spill_loads and not k.is_float64]
    if options.check and spilling:
        sys.exit("spills in " + ", ".join(sorted({k.name for k in spilling})))


if __name__ == "__main__":
    main()
