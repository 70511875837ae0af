"""Times the operators and a training step on a GPU, one measurement saved as soon as it is made.

    python -m benchmarks.gpu {cases,peers,training,compiled-training,report} --output DIR

``cases`` times ours, ``peers`` ours once more beside its peers, ``training`` a step of EG-CNN
around Seg-Net: fused, reference, backbone alone; ``report`` says that all is done. Each appends to
``measurements.jsonl`` in the folder and writes ``gpu.json`` and ``gpu.md`` from it.

Times are medians over many runs, by CUDA events behind a queue that is already full, so that no
launch gap is timed; where they are short, also by replays of a CUDA graph. Inputs rotate among sets
that together exceed the L2 cache several times. The bandwidth of a plain copy is measured right
before and after ours: the *floor* is the time to move the minimum number of bytes of a case at that
rate.

After a fault in a kernel nothing runs on the device in that process any more. So each operator has
a process of its own, and another one goes on behind the case that failed.

``benchmarks/gpu.sh`` runs this; ``pytest benchmarks`` measures the same way and more, without a
budget. ``--device cpu --quick`` runs all of it without a GPU, to try the script; its times mean
nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import report, results
from benchmarks.cases import (
    LAST,
    Case,
    consistency_case,
    edge_case,
    gate_case,
    loss_case,
    magnitude_case,
    norm_case,
    sizes,
    sums_case,
    upsampled_case,
)
from benchmarks.clocks import Clock, CudaClock, WallClock
from benchmarks.measuring import CaseRun, Row, set_tf32
from benchmarks.peers import OURS
from benchmarks.training import TRAININGS, Training, TrainingRun
from egcnn import ops

# Time limit of a provider per case, and expected time of torch.compile, in seconds.
PEER_LIMIT, COMPILE_TIME = 60.0, 15.0
# Seconds without a sign of life after which a worker is killed; a machine that tries the script may
# be a busy one.
PATIENCE = {"cuda": 75.0, "cpu": 900.0}
PATCHES = ((160, 192, 128), (128, 128, 128), (96, 96, 96))


def cases(device: torch.device, quick: bool) -> list[Case]:
    """The cases, most informative first."""
    s = sizes(device, quick)
    edges, gate = partial(edge_case, device, s.edges), partial(gate_case, device, s.gate)
    upsampled = partial(upsampled_case, device, s.gate)
    every = [
        edges("masks"),
        gate("voxel", torch.bfloat16),
        gate("channel", torch.bfloat16),
        consistency_case(device, s.consistency),
        norm_case(device, s.norm, torch.bfloat16, LAST),
        magnitude_case(device, s.magnitude),
        upsampled("voxel", torch.bfloat16),
        upsampled("channel", torch.bfloat16),
        sums_case(device, s.sums),
        loss_case(device, s.sums),
        edges("labels"),
        edges("random masks"),
        gate("voxel", torch.float32),
        gate("channel", torch.float32),
        gate("channel", torch.float32, tf32=True),
        gate("voxel", torch.bfloat16, LAST),
        gate("channel", torch.bfloat16, LAST),
        gate("voxel", torch.float32, LAST),
        gate("channel", torch.float32, LAST),
        upsampled("voxel", torch.bfloat16, LAST),
        upsampled("channel", torch.bfloat16, LAST),
        norm_case(device, s.norm, torch.bfloat16),
        norm_case(device, s.norm, torch.float32, LAST),
    ]
    if not quick:
        return every
    first: dict[str, Case] = {}
    for case in every:
        first.setdefault(case.operator, case)
    return list(first.values())


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a block that takes longer (as soon as Python code runs again)."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_case(run: CaseRun, peers: bool, deadline: float, progress: Callable[[], None]) -> list[Row]:
    """The rows of ours, and of every peer that fits before the deadline."""
    for peer in run.providers if peers else run.providers[:1]:
        progress()
        left = deadline - time.monotonic()
        limit = PEER_LIMIT if peer.name == OURS else min(PEER_LIMIT, left)
        if limit < (COMPILE_TIME if peer.compiled else 0):
            run.note(peer, "all", "skipped: out of time")
            continue
        try:
            with time_limit(limit):
                for what in run.parts(peer):
                    run.measure(peer, what)
        except Exception as error:
            if peer.name == OURS:
                raise
            run.note(peer, "rest", report.describe(error))
    return run.finish()


def train(clock: Clock, training: Training, quick: bool, backend: str) -> tuple[Row, list[Row]]:
    """A step at the largest patch that fits, and where its time goes."""
    set_tf32(True)
    for patch in ((16, 16, 16),) if quick else PATCHES:
        try:
            filters = 4 if quick else 32
            run = TrainingRun(clock, (1, *patch), filters, backend=backend, shallow=quick)
            row, profile, _ = run.measure(training)
            return row, profile
        except torch.OutOfMemoryError:
            clock.clear()
    raise RuntimeError("no patch fitted into the memory")


# --- What is saved -------------------------------------------------------------------------------


class Journal:
    """The measurements of a folder, one JSON object a line: written as they come, read by all."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "measurements.jsonl"

    def add(self, **entry: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def touch(self) -> None:
        """Say that the work goes on."""
        self.path.touch()

    def idle(self) -> float:
        """Seconds since the last sign of life."""
        return time.time() - self.path.stat().st_mtime

    def read(self, key: str) -> list[Any]:
        """All entries of a kind, in their order."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [entry[key] for line in lines if key in (entry := json.loads(line))]

    def write_report(self, steps: Path | None, complete: bool) -> Path | None:
        """JSON and Markdown of what there is; of rows that were measured twice the later one."""
        stamps = self.read("stamp")
        if not stamps:
            return None
        rows = {(r["case"], r["what"], r["provider"]): r for r in self.read("row")}
        data = stamps[0] | {"complete": complete, "rows": list(rows.values())}
        data["profiles"] = dict(self.read("profile"))
        data["steps"] = results.read_steps(steps) if steps and steps.exists() else []
        path = self.folder / "gpu.json"
        report.write(path, data)
        return path


def failure(task: str, reason: str) -> Row:
    """The row that replaces a failed measurement of ours."""
    group = "training" if task.startswith("training") else "main"
    return {"group": group, "case": task, "what": "all", "provider": OURS, "note": reason}


# --- One process an operator ---------------------------------------------------------------------


def tasks(options: argparse.Namespace) -> dict[str, list[str]]:
    """What is to be done, by the process that does it."""
    if options.action in ("training", "compiled-training"):
        compiled = options.action == "compiled-training"
        names = [f"training {t.name}" for t in TRAININGS if t.compiled == compiled]
        names = names[:1] if compiled and options.quick else names  # tracing takes long
        named = [(name, name) for name in names]
    else:
        found = cases(torch.device(options.device), options.quick)
        named = [(case.operator, case.name) for case in found]
    groups: dict[str, list[str]] = {}
    for process, name in named:
        # Tiny tasks take less time than the start of a process.
        groups.setdefault("all" if options.quick else process, []).append(name)
    return groups


def watch(command: list[str], journal: Journal, patience: float) -> int:
    """The exit status of a worker; one that gives no sign of life for so long is killed."""
    journal.touch()
    process = subprocess.Popen(command)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=0.5)
        if journal.idle() > patience:  # a kernel that hangs does not let Python's own alarm through
            process.kill()


def supervise(options: argparse.Namespace) -> int:
    """Run each group of tasks in a process, and another one behind a task that failed."""
    journal, deadline = Journal(options.output), time.monotonic() + options.budget
    worst = 0
    for group in tasks(options).values():
        left = list(group)
        while left:
            before = len(journal.read("began"))
            seconds = max(deadline - time.monotonic(), 1)
            command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:]]
            command += ["--budget", str(seconds), "--tasks", json.dumps(left)]
            status = watch(command, journal, PATIENCE[options.device])
            journal.write_report(options.steps, False)
            if status == 0:
                break
            worst = 1
            began = journal.read("began")[before:]
            stopped = began[-1] if began else left[0]
            journal.add(row=failure(stopped, f"its process ended with status {status}"))
            left = left[left.index(stopped) + 1 :]
    journal.write_report(options.steps, False)
    return worst


def work(options: argparse.Namespace) -> int:
    """Do the tasks in this process; the first that fails ends it."""
    journal, deadline = Journal(options.output), time.monotonic() + options.budget
    torch.manual_seed(0)
    clock = CudaClock() if options.device == "cuda" else WallClock(0.01)
    if options.quick:
        torch.set_num_threads(1)  # volumes as small as these are not worth a second thread
    if not journal.read("stamp"):
        journal.add(stamp=results.stamp(clock.device))
    if ops.backend(torch.empty(0, device=clock.device)) != "native":
        print(f"egcnn has no kernels that run here: {ops.backend_info()}", file=sys.stderr)
        return 1
    by_name = {case.name: case for case in cases(clock.device, options.quick)}
    trainings = {f"training {training.name}": training for training in TRAININGS}
    for task in options.tasks:
        journal.add(began=task)
        if task in trainings:
            row, profile = train(clock, trainings[task], options.quick, options.backend)
            journal.add(profile=[f"{row['case']}, {row['provider']}", profile])
            rows = [row]
        else:
            peers = options.action == "peers"
            run = CaseRun(clock, by_name[task], options.backend)
            rows = run_case(run, peers, deadline, journal.touch)
        for row in rows:
            result = row.get("note") or f"{row['ms']:.4g} ms"
            print(f"{row['case']}, {row['what']}, {row['provider']}: {result}", flush=True)
            journal.add(row=row)
    return 0


def finish(options: argparse.Namespace) -> int:
    """Write and show the report; 1 where one of our own operators failed."""
    path = Journal(options.output).write_report(options.steps, True)
    if path is None:
        print(f"{options.output} holds no measurements", file=sys.stderr)
        return 1
    data = json.loads(path.read_text())
    report.show(data)
    print(path)
    return int(any("note" in row for row in data["rows"] if row["provider"] == OURS))


def main() -> int:
    """Do what was asked for, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    actions = ("cases", "peers", "training", "compiled-training", "report")
    parser.add_argument("action", choices=actions)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--budget", type=float, default=300, metavar="SECONDS")
    parser.add_argument("--steps", type=Path, metavar="FILE", help="what gpu.sh did before")
    parser.add_argument("--tasks", type=json.loads, help=argparse.SUPPRESS)  # of a worker
    options = parser.parse_args()
    options.backend = "eager" if options.quick else "inductor"  # of torch.compile
    if options.action == "report":
        return finish(options)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device here, so there is nothing to measure.")
        return 0
    return supervise(options) if options.tasks is None else work(options)


if __name__ == "__main__":
    sys.exit(main())
