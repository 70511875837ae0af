"""The machine, versions and build of results, and the path of their file."""

from __future__ import annotations

import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import egcnn
from egcnn import ops

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"


def ask(*command: str) -> str:
    """The output of a command; empty if it fails or does not exist."""
    try:
        run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def ask_gpu(*names: str) -> dict[str, str]:
    """Properties of the first GPU by nvidia-smi; empty if it does not know one of them."""
    answer = ask("nvidia-smi", "-i", "0", f"--query-gpu={','.join(names)}", "--format=csv,noheader")
    return dict(zip(names, answer.split(", "), strict=True)) if answer else {}


def gpu_state() -> dict[str, str]:
    """Current clocks, temperature and power of the first GPU."""
    clocks = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem")
    return ask_gpu(*clocks, "temperature.gpu", "power.draw")


def cpu_name() -> str:
    """The model of the processor, from /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found[1].strip() if found else f"CPU {platform.machine()}"


def stamp(device: torch.device) -> dict[str, Any]:
    """Device, versions and build, as plain data."""
    cuda = device.type == "cuda"
    build = ops.backend_info()
    return {
        "stamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if cuda else cpu_name(),
        "cpu": cpu_name(),
        "instructions": build.get("cpu"),
        "threads": torch.get_num_threads(),
        "driver": ask_gpu("driver_version").get("driver_version") if cuda else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "egcnn": egcnn.__version__,
        "commit": ask("git", "describe", "--always", "--dirty"),
        "build": build,
        "gpu_before": gpu_state() if cuda else {},
    }


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The earlier steps of gpu.sh: name, status, seconds and log, separated by tabs."""
    steps = []
    for line in path.read_text().splitlines():
        name, status, seconds, log = line.split("\t")
        text = Path(log).read_text(errors="replace").replace(f"{PROJECT}/", "")
        lines = [stripped for line in text.splitlines() if (stripped := line.strip("= "))] or [""]
        step = {"name": name, "passed": status == "0", "seconds": int(seconds)}
        step["summary"] = lines[-1]
        if status != "0":
            step["log"] = lines[-60:]
        steps.append(step)
    return steps


def default_path(data: dict[str, Any], folder: Path = RESULTS) -> Path:
    """For example ``results/20260101T120000Z-nvidia-h100-80gb-hbm3.json``."""
    slug = re.sub(r"[^a-z0-9]+", "-", data["device"].lower()).strip("-")
    return folder / f"{re.sub('[-:]|[+]00:00', '', data['stamp'])}Z-{slug}.json"
