"""Build backend: setuptools', plus a CUDA compiler as a build requirement where none is installed.

With an NVIDIA driver and no CUDA toolkit, pip installs the compiler from the package index (about
105 MB, in pip's build environment only). ``EGCNN_CUDA=1`` requires it even without a driver,
``EGCNN_CUDA=0`` never does, for machines that cannot reach the package index. The registry has an
nvcc from CUDA 13 on only; a driver before that is served by the nvcc of a CUDA 12 toolkit that is
there already.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
from typing import Any

from setuptools.build_meta import *  # noqa: F403  # the other hooks of PEP 517

# The first minor version, for the widest driver support: code and PTX from 13.0 run on every driver
# of CUDA 13.0 or later, while a driver refuses PTX from a toolkit newer than itself.
COMPILER_PACKAGES = "cuda-toolkit[cccl,nvcc]==13.0.*"
COMPILER_VERSION = 13000


def driver_version() -> int:
    """The newest CUDA that this machine's NVIDIA driver runs, such as 13000; 0 without a driver."""
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return 0
    return version.value


def find_nvcc() -> str | None:
    """Find nvcc in CUDA_HOME, else on PATH, else in the installed PyPI package."""
    home = os.environ.get("CUDA_HOME")
    if found := (home and shutil.which("nvcc", path=os.path.join(home, "bin"))):
        return found
    if found := shutil.which("nvcc"):
        return found
    try:
        files = importlib.metadata.files("nvidia-cuda-nvcc") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if file.name == "nvcc"), None)


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """The compiler's packages if the CUDA part is to be built and there is no nvcc."""
    choice = os.environ.get("EGCNN_CUDA", "auto")
    needed = choice == "1" or (choice == "auto" and driver_version() >= COMPILER_VERSION)
    return [COMPILER_PACKAGES] if needed and not find_nvcc() else []


get_requires_for_build_editable = get_requires_for_build_wheel
