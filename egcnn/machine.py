"""What this machine and installation offer: cores, memory, versions."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import egcnn


def prepare_cpu() -> None:
    """Set what makes torch fast on a CPU; best called before torch is imported.

    The command line and :func:`egcnn.training.fit` call it. What the user has set stays.

    Large pages make the allocation of feature maps cheaper (torch asks the kernel for them), and
    a thread per core that this process may use avoids oversubscribing a container's share. Threads
    wait briefly at a barrier before they sleep: sleeping at once makes the steps of a small network
    half as long again, and spinning for long slows them several times where something else runs.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if "OMP_NUM_THREADS" in os.environ:
        return
    cores = usable_cores()
    os.environ["OMP_NUM_THREADS"] = str(cores)
    # Too late for the variable where torch is there already; processes that are started obey it.
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > cores:
        torch.set_num_threads(cores)


def usable_cores() -> int:
    """Physical cores that this process may use, by its affinity and its cgroup's quota."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if allowed is None:
        return os.cpu_count() or 1
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(_read(siblings) or str(cpu))
    return max(1, min(len(cores), _quota()))


def _cgroups() -> list[Path]:
    """The folders of this process's cgroup (version 2) and of all around it."""
    group = next((g[3:] for g in _read(Path("/proc/self/cgroup")).split() if g[:3] == "0::"), "/")
    folder = Path("/sys/fs/cgroup" + group)
    return [folder, *folder.parents]


def _quota() -> int:
    """Whole CPUs that the cgroup (version 2, or 1) grants; a large number where it sets none."""
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
    """Bytes that may still be taken: what the system has, and the cgroup (version 2) leaves."""
    try:
        free = float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        free = 4e9
    for folder in _cgroups():
        limit, used = _read(folder / "memory.max"), _read(folder / "memory.current")
        if limit.isdecimal() and used.isdecimal():
            free = min(free, max(0.0, float(limit) - float(used)))
    return free


def versions() -> dict[str, str]:
    """Versions of Python, egcnn and the libraries that shape a result, without importing them."""
    found = {"python": platform.python_version(), "egcnn": egcnn.__version__}
    for name in ("torch", "monai", "lightning", "nibabel", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
