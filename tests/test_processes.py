"""Worker processes end with the process that uses them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODE = """
import multiprocessing, os, sys, time
from pathlib import Path
from egcnn.processes import in_processes

def work(folder):
    (folder / "began").write_text(str(os.getpid()))
    (folder / "began").rename(folder / "worker")
    time.sleep(120)

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    list(in_processes(work, [Path(sys.argv[2])], 1))
"""
PATIENCE = 60


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended may still wait for its parent to ask."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_no_worker_outlives_a_killed_process(tmp_path: Path, method: str) -> None:
    script, said = tmp_path / "script.py", tmp_path / "worker"
    script.write_text(CODE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    main = subprocess.Popen([sys.executable, script, method, tmp_path], env=environment)
    deadline = time.monotonic() + PATIENCE
    while not said.exists():
        assert main.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker = int(said.read_text())
    main.kill()
    assert main.wait() == -signal.SIGKILL
    deadline = time.monotonic() + PATIENCE
    while runs(worker):
        assert time.monotonic() < deadline, "the worker runs on"
        time.sleep(0.05)
