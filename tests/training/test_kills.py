"""Runs that are killed at random moments and resumed end as unbroken ones, to the bit.

``EGCNN_KILLS=25`` sets the number of kills of each test; it is 1 by default.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from egcnn.data import Dataset, open_dataset
from egcnn.data.phantom import write_brats
from egcnn.training import BEST, LAST, TrainingConfig, checkpoints, plan, read_history

KILLS = int(os.environ.get("EGCNN_KILLS", "1"))
LIMIT = 120
# The server imports once; the processes that it forks train at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["egcnn.training", "lightning"])
TRAIN = """
import os
os.environ.update(environment)
from egcnn.training import checkpoints, fit
fit(config, dataset, output, existing=existing, device="cpu", quiet=True)
"""


def start(config: TrainingConfig, dataset: Dataset, output: Path) -> list[BaseProcess]:
    """Start or resume a run, a process for each device, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    arguments = {
        **{"config": config, "dataset": dataset, "output": output},
        "existing": "resume" if checkpoints(output) else "error",
    }
    processes: list[BaseProcess] = []
    for rank in range(config.devices):
        environment = {**common, "LOCAL_RANK": str(rank)} if config.devices > 1 else common
        run = {**arguments, "environment": environment}
        processes.append(PROCESSES.Process(target=exec, args=(TRAIN, run)))
        processes[-1].start()
    return processes


def end(processes: list[BaseProcess]) -> list[int | None]:
    """Wait until all have ended; returns their exit codes."""
    for process in processes:
        process.join(LIMIT)
    return [process.exitcode for process in processes]


def state(run: Path) -> dict[str, Any]:
    """What a run leaves, without times."""
    rows = read_history(run)
    for row in rows:
        del row["seconds"], row["step_seconds"]
    kept = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "egcnn_sums")
    files = {name: torch.load(run / name, weights_only=True) for name in (BEST, LAST)}
    return {"rows": rows, **{name: {k: data[k] for k in kept} for name, data in files.items()}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "workers"), [(1, 1), pytest.param(2, 0, marks=pytest.mark.thorough)]
)
def test_killed_runs_end_as_an_unbroken_one(tmp_path: Path, devices: int, workers: int) -> None:
    write_brats(tmp_path / "data", 12, shape=(16, 18, 17), seed=2)
    dataset = open_dataset(tmp_path / "data")
    options = {
        **{"epochs": 3, "batch_size": 2, "filters": 2, "patch": (16, 16, 16), "fraction": 0.3},
        **{"dropout": 0.2, "tau_end": 0.1, "precision": "32-true"},
        # A checkpoint after every step.
        **{"devices": devices, "workers": workers, "checkpoint_minutes": 1e-9},
    }
    config = plan(dataset, torch.device("cpu")).change(options)
    started = time.monotonic()
    assert end(start(config, dataset, tmp_path / "whole")) == [0] * devices
    duration = time.monotonic() - started
    expected = state(tmp_path / "whole")
    moments = random.Random(devices)
    runs = killed = within = 0
    while killed < KILLS:
        output = tmp_path / f"run{runs}"
        runs += 1
        while killed < KILLS:
            processes = start(config, dataset, output)
            time.sleep(moments.uniform(0, duration))
            # One first, the others soon after, as torchrun does.
            moments.shuffle(processes)
            for process in processes:
                process.kill()
                time.sleep(moments.choice((0, 0.5)))
            if -signal.SIGKILL not in end(processes):
                break
            killed += 1
            within += within_an_epoch(output)
        assert end(start(config, dataset, output)) == [0] * devices
        torch.testing.assert_close(state(output), expected, rtol=0, atol=0, equal_nan=True)
    print(f"{devices} devices: {killed} kills of {runs} runs, {within} within an epoch")


def within_an_epoch(run: Path) -> bool:
    """Whether a run's last checkpoint is not of the end of an epoch."""
    if not (run / LAST).is_file():
        return False
    data = torch.load(run / LAST, weights_only=True)
    return bool(data["egcnn"]["provenance"]["epochs"] <= data["epoch"])
