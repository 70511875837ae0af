"""Cores, free memory and library versions of this machine, and CPU settings for torch."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import resource
import subprocess
import sys
from functools import cache
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


def first_process() -> bool:
    """Whether this process is the first of a training, or the only one: the one that writes.

    Reads the variables of torchrun, which numbers all processes, or those of Lightning and Slurm.
    """
    names = ("RANK",) if "RANK" in os.environ else ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


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


def _cgroups(controller: str = "") -> list[Path]:
    """The folders of this process's cgroup and of its ancestors.

    Args:
        controller: of version 1, such as ``"memory"``; version 2 has one tree for all.
    """
    root = Path("/sys/fs/cgroup", controller)
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, group = line.split(":", 2)
        if controller in controllers.split(","):
            folder = root / group.lstrip("/")
            return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]
    return [root]


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
    """Memory in bytes that this process can take: of the machine, its cgroups and its own limits.

    What the system holds of files, and drops when memory is needed, counts as free.
    """
    # On other systems: assume that every computer for training has that.
    free = [_numbers(Path("/proc/meminfo")).get("MemAvailable:", 4e6) * 1024]
    # Version 2, and version 1, where a limit without an end is a number beyond all memory.
    for folder in _cgroups():
        free.append(_room(folder, "memory.max", "memory.current", "inactive_file"))
    for folder in _cgroups("memory"):
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        free.append(_room(folder, *names))
    used = _numbers(Path("/proc/self/status"))
    for limit, name in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            free.append(soft - used.get(name, 0) * 1024)
    return max(0.0, min(free))


def _room(folder: Path, limit: str, usage: str, droppable: str) -> float:
    """What a cgroup's limit leaves; infinite without one."""
    most, used = _read(folder / limit), _read(folder / usage)
    if not most.isdecimal() or not used.isdecimal():
        return math.inf
    return int(most) - int(used) + _numbers(folder / "memory.stat").get(droppable, 0)


def _numbers(path: Path) -> dict[str, int]:
    """The numbers of a file of the system, a name and a number in each line."""
    fields = (line.split() for line in _read(path).splitlines())
    return {row[0]: int(row[1]) for row in fields if len(row) > 1 and row[1].isdecimal()}


def versions() -> dict[str, str]:
    """Versions of Python, egcnn and the libraries that affect results, without importing them.

    Of egcnn also the :func:`revision`.
    """
    numbers = {"python": platform.python_version(), "egcnn": egcnn.__version__}
    numbers["revision"] = revision()
    for name in ("torch", "monai", "lightning", "nibabel", "numpy"):
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            numbers[name] = "not installed"
    return numbers


@cache
def revision() -> str:
    """Which code runs: the commit, if it is known and nothing was changed since, or a hash of it.

    The commit is that of the checkout that the package stands in, or the one that pip installed it
    from; the hash is of the package's Python files.
    """
    package = Path(egcnn.__file__).parent
    commit = None
    if (package.parent / ".git").exists():
        commit = _git(package.parent, "rev-parse", "HEAD")
        if _git(package.parent, "status", "--porcelain", "--untracked-files=no") != "":
            commit = None
    else:
        try:
            origin = metadata.distribution("egcnn").read_text("direct_url.json")
            commit = json.loads(origin or "{}").get("vcs_info", {}).get("commit_id")
        except (metadata.PackageNotFoundError, ValueError):
            pass
    if commit:
        return str(commit)
    code = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return f"sha256:{code.hexdigest()}"


def _git(folder: Path, *command: str) -> str | None:
    """Output of a git command in a checkout, or None if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
