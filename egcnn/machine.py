"""Cores, free memory and library versions of this machine, and CPU settings for torch."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import egcnn


def prepare_cpu() -> None:
    """Configure torch for speed on a CPU; call it before torch is imported if possible.

    The command line, :func:`egcnn.training.fit` and
    :func:`egcnn.inference.predict_case` call it. Environment variables that the user has
    set are kept.

    Huge pages, which torch requests from the kernel, make allocating feature maps cheaper. One
    thread per available core avoids oversubscribing a container. Threads spin briefly at a barrier
    before they sleep: sleeping at once makes the steps of a small network 1.5 times as long, and
    spinning for long slows them several times when other processes run.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if "OMP_NUM_THREADS" in os.environ:
        return
    cores = usable_cores()
    os.environ["OMP_NUM_THREADS"] = str(cores)
    # If torch is already imported, the variable only affects child processes.
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > cores:
        torch.set_num_threads(cores)


def usable_cores() -> int:
    """Number of physical cores that affinity and cgroup quota leave to this process."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if allowed is None:
        return os.cpu_count() or 1
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(_read(siblings) or str(cpu))
    return max(1, min(len(cores), _quota()))


def _cgroups() -> list[Path]:
    """The folders of this process's cgroup (version 2) and of its ancestors."""
    group = next((g[3:] for g in _read(Path("/proc/self/cgroup")).split() if g[:3] == "0::"), "/")
    folder = Path("/sys/fs/cgroup" + group)
    return [folder, *folder.parents]


def _quota() -> int:
    """The cgroup's quota (version 2 or 1) in whole CPUs; a large number without one."""
    granted = [sys.maxsize]
    for folder in _cgroups():
        fields = _read(folder / "cpu.max").split()
        if len(fields) == 2 and fields[0] != "max":
            granted.append(int(fields[0]) // int(fields[1]))
    old = Path("/sys/fs/cgroup/cpu")
    quota, period = _read(old / "cpu.cfs_quota_us"), _read(old / "cpu.cfs_period_us")
    if quota and period and int(quota) > 0:
        granted.append(int(quota) // int(period))
    return min(granted)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def free_memory() -> float:
    """Free memory in bytes, within the cgroup's limit (version 2)."""
    try:
        free = float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        free = 4e9  # on other systems: assume that every computer for training has that
    for folder in _cgroups():
        limit, used = _read(folder / "memory.max"), _read(folder / "memory.current")
        if limit.isdecimal() and used.isdecimal():
            free = min(free, max(0.0, float(limit) - float(used)))
    return free


def versions() -> dict[str, str]:
    """Versions of Python, egcnn and the libraries that affect results, without importing them."""
    numbers = {"python": platform.python_version(), "egcnn": egcnn.__version__}
    for name in ("torch", "monai", "lightning", "nibabel", "numpy"):
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            numbers[name] = "not installed"
    return numbers
