"""Times the operators on a GPU: against their peers, and against a copy of as many bytes.

Times are medians over many runs, by CUDA events behind a queue that is already full, so that no
launch gap is timed; where they are short, also by replays of a CUDA graph. Inputs rotate among sets
that together exceed the L2 cache several times. Right before and after ours the bandwidth of a
plain copy is measured: the *floor* is the fewest bytes that a case has to move, moved at that rate.

``benchmarks/gpu.sh`` runs this after the tests, within a budget of time; ``pytest benchmarks``
measures the same way and more, without one. ``--device cpu --quick`` runs all of it in seconds
without a GPU, to try the script itself; its times mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
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
    magnitude_case,
    sizes,
)
from benchmarks.clocks import Clock, CudaClock, WallClock
from benchmarks.measuring import CaseRun, Row, set_tf32
from benchmarks.peers import OURS
from benchmarks.training import TRAININGS, TrainingRun
from egcnn import ops

# Seconds kept back for the training step, and for each case that is still to come.
TRAINING_RESERVE, CASE_RESERVE = 35.0, 2.5
# Seconds that one provider may take on one case, and that torch.compile is likely to take.
PEER_LIMIT, COMPILE_TIME = 60.0, 15.0


def cases(device: torch.device, quick: bool) -> list[Case]:
    """The most telling ones first."""
    s = sizes(device, quick)
    edges, gate = partial(edge_case, device, s.edges), partial(gate_case, device, s.gate)
    return [
        edges("masks"),
        gate("voxel", torch.bfloat16),
        gate("channel", torch.bfloat16),
        consistency_case(device, s.consistency),
        edges("labels"),
        edges("random masks"),
        magnitude_case(device, s.magnitude),
        gate("voxel", torch.float32),
        gate("channel", torch.float32),
        gate("channel", torch.float32, tf32=True),
        gate("voxel", torch.bfloat16, LAST),
        gate("channel", torch.bfloat16, LAST),
        gate("voxel", torch.float32, LAST),
        gate("channel", torch.float32, LAST),
    ]


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block when it takes longer (as soon as Python runs again)."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_case(clock: Clock, case: Case, deadline: float, backend: str) -> list[Row]:
    """The rows of ours, and of every peer for which there is time before the deadline."""
    run = CaseRun(clock, case, backend)
    for peer in run.providers:
        left = deadline - time.monotonic()
        limit = PEER_LIMIT if peer.name == OURS else min(PEER_LIMIT, left)
        if limit < (COMPILE_TIME if peer.compiled else 0):
            run.note(peer, "all", "skipped: the time was up")
            continue
        try:
            with time_limit(limit):
                for what in run.parts(peer):
                    run.measure(peer, what)
        except Exception as error:
            run.note(peer, "rest", report.describe(error))
    return run.finish()


def train(clock: Clock, quick: bool) -> tuple[list[Row], dict[str, list[Row]]]:
    """A step at the largest patch that fits, with the fused operators and with the reference."""
    set_tf32(True)
    patches = [(16, 16, 16)] if quick else [(160, 192, 128), (128, 128, 128), (96, 96, 96)]
    for patch in patches:
        run = TrainingRun(clock, (1, *patch), 4 if quick else 32)
        rows, profiles = [], {}
        try:
            for training in TRAININGS[:3]:  # torch.compile takes longer than there is
                row, profile, _ = run.measure(training)
                rows.append(row)
                profiles[f"{run.name}, {training.name}"] = profile
            return rows, profiles
        except torch.OutOfMemoryError:
            clock.clear()
    raise RuntimeError("no patch fitted into the memory")


def failure(name: str, group: str, error: Exception) -> Row:
    """What stands where one of our own measurements would."""
    row = {"group": group, "case": name, "what": "all", "provider": OURS}
    return row | {"note": report.describe(error)}


def main() -> int:
    """Run every case and return the exit status: 1 where one of our own operators failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--output", type=Path, default=results.RESULTS, metavar="DIR")
    parser.add_argument("--budget", type=float, default=300, metavar="SECONDS")
    parser.add_argument("--backend", default="inductor", help="of torch.compile, for the peers")
    parser.add_argument("--steps", type=Path, metavar="FILE", help="what gpu.sh did before")
    options = parser.parse_args()

    deadline = time.monotonic() + options.budget
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        print("torch finds no CUDA device here, so there is nothing to measure.")
        return 0
    torch.manual_seed(0)
    clock = CudaClock() if cuda else WallClock(0.01)
    if options.quick:
        torch.set_num_threads(1)  # volumes as small as these are not worth a second thread
    rows: list[Row] = []
    data: dict[str, Any] = results.stamp(clock.device) | {"complete": False, "rows": rows}
    data["steps"] = results.read_steps(options.steps) if options.steps else []
    path = results.default_path(data, options.output)
    if ops.backend(torch.empty(0, device=clock.device)) != "native":
        report.write(path, data)
        print(f"egcnn has no kernels that run here: {ops.backend_info()}", file=sys.stderr)
        return 1

    chosen = cases(clock.device, options.quick)
    for index, case in enumerate(chosen):
        reserve = TRAINING_RESERVE + CASE_RESERVE * (len(chosen) - 1 - index)
        try:
            found = run_case(clock, case, deadline - reserve, options.backend)
        except Exception as error:  # after a fault in a kernel nothing runs on the device any more
            found = [failure(case.name, case.group, error)]
        for row in found:
            result = row.get("note") or f"{row['ms']:.4g} ms"
            print(f"{row['case']}, {row['what']}, {row['provider']}: {result}", flush=True)
        rows += found
        report.write(path, data)

    try:
        with time_limit(max(deadline - time.monotonic(), 10)):
            found, data["profiles"] = train(clock, options.quick)
    except Exception as error:
        found = [failure("training step", "training", error)]
    rows += found
    data["gpu_after"] = results.gpu_state() if cuda else {}
    data["complete"] = True
    report.write(path, data)
    report.show(data)
    print(path)
    return int(any("note" in row for row in rows if row["provider"] == OURS))


if __name__ == "__main__":
    sys.exit(main())
