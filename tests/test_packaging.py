"""What is built, what is installed, and how a build that cannot succeed ends."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]


def build(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *command],
        cwd=PROJECT,
        env={**os.environ, "EGCNN_CUDA": "0", **environment},
        capture_output=True,
        text=True,
    )


def test_installed_files() -> None:
    try:
        files = [str(file) for file in importlib.metadata.files("egcnn") or []]
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("egcnn runs from its checkout here: there is no wheel to look into")
    assert "egcnn/py.typed" in files
    assert any(file.startswith("egcnn/_C.") and file.endswith(".so") for file in files)
    assert not [f for f in files if f.endswith((".cpp", ".cu", ".h")) or "tests/" in f]
    assert {file.split("/")[0].split("-")[0] for file in files} <= {"egcnn", "..", "bin"}


def test_source_distribution_holds_the_kernels(tmp_path: Path) -> None:
    result = build(["egg_info", "-e", str(tmp_path), "sdist", "-d", str(tmp_path)], tmp_path)
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("egcnn-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    for wanted in ("csrc/ops.h", "csrc/cpu/edge_gate.cpp", "csrc/math/philox.h", "setup.py"):
        assert wanted in names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"CXX": "no-such-compiler"}, "no C++ compiler was found on PATH"),
        ({"EGCNN_CUDA": "2"}, "EGCNN_CUDA is '2'; wanted auto, 0 or 1"),
        (
            {"EGCNN_CUDA": "1", "CUDA_HOME": "/nowhere", "PATH": "/nowhere", "CXX": sys.executable},
            "EGCNN_CUDA=1 and no nvcc was found",
        ),
    ],
)
def test_a_build_that_cannot_succeed_says_why(
    tmp_path: Path, environment: dict[str, str], sentence: str
) -> None:
    command = ["build_ext", "-t", str(tmp_path), "-b", str(tmp_path)]
    result = build(command, tmp_path, **environment)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("egcnn:")]
    assert len(lines) == 1
    assert sentence in lines[0]
    assert "Traceback" not in result.stderr
