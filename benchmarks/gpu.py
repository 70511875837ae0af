"""Times the operators on a GPU: against their peers, and against a copy of as many bytes.

Times are medians over many runs, by CUDA events behind a queue that is already full, so that no
launch gap is timed; where they are short, also by replays of a CUDA graph. Inputs rotate among sets
that together exceed the L2 cache several times. Before and after each case the bandwidth of a plain
copy is measured: the *floor* is the fewest bytes that a case has to move, moved at that rate.

``benchmarks/gpu.sh`` runs this after the tests. ``--device cpu --quick`` runs all of it in seconds
without a GPU, to try the script itself; its times mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import Case, Inputs, all_cases, brats_phantom
from gpu_report import OURS, Report, Row, finish, gpu_state
from peers import PEERS, Peer
from torch import Tensor

from egcnn import ops
from egcnn.losses import EGCNNLoss
from egcnn.nn import EGCNN, SegNet
from egcnn.regions import BRATS

# Seconds kept back for the training step, and for each case that is still to come.
TRAINING_RESERVE, CASE_RESERVE = 35.0, 2.5
# Seconds that one provider may take on one case, and that torch.compile is likely to take.
PEER_LIMIT, COMPILE_TIME = 60.0, 15.0

# ``work(turn)`` prepares one run and returns what is to be timed.
Work = Callable[[int], Callable[[], object]]


# --- Clocks --------------------------------------------------------------------------------------


class CudaClock:
    """Times by CUDA events and by graph replays, memory by torch's allocator."""

    warm_up, measure = 0.05, 0.2
    copy_bytes = 1 << 30

    def __init__(self) -> None:
        self.device = torch.device("cuda")
        self.cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size

    def times(self, work: Work) -> list[float]:
        """Seconds of each of many runs, in order of size."""
        work(0)()  # compiles
        torch.cuda.synchronize()
        start, turns = time.perf_counter(), 0
        while turns < 3 or time.perf_counter() - start < self.warm_up:
            work(turns)()
            torch.cuda.synchronize()
            turns += 1
        each = (time.perf_counter() - start) / turns
        count = min(100, max(5, int(self.measure / each)))
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        torch.cuda._sleep(20_000_000)  # about 10 ms in which the queue fills
        for turn, (begin, end) in enumerate(events):
            run = work(turn)
            begin.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return sorted(begin.elapsed_time(end) / 1000 for begin, end in events)

    def replay(self, work: Work, sets: int) -> float:
        """Seconds of one run within a CUDA graph of several."""
        count = sets * math.ceil(10 / sets)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for turn in range(sets):
                work(turn)()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for turn in range(count):
                work(turn)()
        return statistics.median(self.times(lambda turn: graph.replay)) / count

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """The most memory that a run holds beyond what was held before it."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def clear(self) -> None:
        """Give all unused memory back."""
        gc.collect()  # autograd's graphs hold cycles
        torch.cuda.empty_cache()


class WallClock:
    """The same for the CPU, where neither graphs nor peak memory are known."""

    measure = 0.01
    copy_bytes = 1 << 22
    cache_bytes = 1 << 14

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        torch.set_num_threads(1)  # volumes as small as these are not worth a second thread

    def times(self, work: Work) -> list[float]:
        """Seconds of each of a few runs, in order of size."""
        work(0)()
        times: list[float] = []
        while len(times) < 3 or sum(times) < self.measure:
            run = work(len(times))
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return sorted(times)

    def replay(self, work: Work, sets: int) -> None:
        """There are no graphs on a CPU."""

    def peak_bytes(self, run: Callable[[], object]) -> None:
        """Torch keeps no account of the CPU's memory."""

    def clear(self) -> None:
        """Nothing is cached."""


Clock = CudaClock | WallClock


def copy_bandwidth(clock: Clock) -> float:
    """Bytes read and written per second by a plain copy on the device."""
    source = torch.empty(clock.copy_bytes, dtype=torch.uint8, device=clock.device).random_()
    target = torch.empty_like(source)
    times = clock.times(lambda turn: partial(target.copy_, source))
    return 2 * clock.copy_bytes / statistics.median(times)


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


# --- Measuring one case --------------------------------------------------------------------------


def make_work(function: Callable[..., Tensor], sets: Sequence[Inputs], what: str) -> Work:
    """Forward without a graph for autograd, backward alone, or both; turn by turn another set."""

    def work(turn: int) -> Callable[[], object]:
        inputs = sets[turn % len(sets)]
        if what == "forward":
            return torch.no_grad()(partial(function, *inputs.arguments))
        if what == "both":
            return lambda: gradients(function(*inputs.arguments), inputs)
        return partial(gradients, function(*inputs.arguments), inputs)

    return work


def gradients(out: Tensor, inputs: Inputs) -> tuple[Tensor, ...]:
    """The gradients of all leaves."""
    return torch.autograd.grad(out, inputs.leaves, inputs.grad)


def outcome(function: Callable[..., Tensor], inputs: Inputs, differentiable: bool) -> list[Tensor]:
    """Result and gradients, of volumes the first sample only."""
    out = function(*inputs.arguments)
    results = [out.detach()]
    if inputs.leaves and differentiable:
        results += gradients(out, inputs)
    return [r[:1].clone() if r.dim() == 5 else r for r in results]


def difference(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest distance between two outcomes, relative to the size of the expected."""
    distances = []
    for mine, other in zip(results, expected, strict=False):
        exact = other.double()
        distances.append(((mine.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item())
    return max(distances)


def measure(
    clock: Clock, case: Case, peer: Peer, function: Callable[..., Tensor], sets: Sequence[Inputs]
) -> Iterator[Row]:
    """A row for each part of the case that the peer can do."""
    for what, nbytes in case.bytes.items():
        if what != "forward" and not peer.differentiable:
            continue
        work = make_work(function, sets, what)
        times = clock.times(work)
        peak = clock.peak_bytes(work(0))
        row: Row = {
            "what": what,
            "bytes": nbytes,
            "ms": statistics.median(times) * 1e3,
            "low_ms": times[len(times) // 5] * 1e3,
            "high_ms": times[-1 - len(times) // 5] * 1e3,
            "runs": len(times),
            "peak_mb": None if peak is None else peak / 1e6,
        }
        # Where launch gaps could show. Backward alone would need its forward captured too.
        if peer.name == OURS and what != "backward" and row["ms"] < 1:
            replay = clock.replay(work, len(sets))
            row["replay_ms"] = None if replay is None else replay * 1e3
        yield row


def run_case(clock: Clock, case: Case, deadline: float, backend: str) -> Iterator[Row]:
    """The rows of ours, and of every peer for which there is time before the deadline."""
    set_tf32(case.tf32)
    count = min(8, math.ceil(4 * clock.cache_bytes / min(case.bytes.values())))
    sets = [case.draw() for _ in range(count)]
    expected: list[Tensor] = []
    for peer in [Peer(OURS, case.ours), *PEERS[case.operator]]:
        if clock.device.type not in peer.devices or (peer.autotuned and not case.autotune):
            continue
        row: Row = {"case": case.name, "provider": peer.name, **case.facts}
        row["sets"] = count
        left = deadline - time.monotonic()
        limit = PEER_LIMIT if peer.name == OURS else min(PEER_LIMIT, left)
        if limit < (COMPILE_TIME if peer.compiled else 0):
            yield row | {"what": "all", "note": "skipped: the time was up"}
            continue
        try:
            with time_limit(limit):
                function = peer.build(backend)
                start = time.perf_counter()
                results = outcome(function, sets[0], peer.differentiable)
                row["first_call_s"] = time.perf_counter() - start
                expected = expected or results
                row["difference"] = difference(results, expected)
                for measured in measure(clock, case, peer, function, sets):
                    yield row | measured
        except Exception as error:
            yield row | {"what": "rest", "note": describe(error)}
        torch._dynamo.reset()
        clock.clear()


def describe(error: Exception) -> str:
    """Type and first line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def set_tf32(allowed: bool) -> None:
    """Whether products and convolutions of float32 may be rounded to TF32, ours and others'."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


# --- A training step -----------------------------------------------------------------------------


def step_cost(clock: Clock, image: Tensor, labels: Tensor, filters: int) -> dict[str, Any]:
    """Time and memory of a step with the operators that serve at this moment."""
    torch.manual_seed(0)
    network = EGCNN(SegNet(4, 3, filters=filters)).to(clock.device)
    network = network.to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    loss = EGCNNLoss(BRATS)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(clock.device.type, torch.bfloat16):
            total = loss(network(image), labels, 1)["loss"]
        total.backward()
        optimizer.step()
        return total.item()

    first_loss = step()
    times = clock.times(lambda turn: step)
    peak = clock.peak_bytes(step)
    return {
        "first_loss": first_loss,
        "ms": statistics.median(times) * 1e3,
        "runs": len(times),
        "peak_mb": None if peak is None else peak / 1e6,
    }


def training_step(clock: Clock, patch: Sequence[int], filters: int) -> dict[str, Any]:
    """A step of EG-CNN around Seg-Net in bf16, with the fused operators and with the reference."""
    labels = brats_phantom(1, patch, clock.device)[0]
    image = torch.randn(1, 4, *patch, device=clock.device)
    image = image.contiguous(memory_format=torch.channels_last_3d)
    result: dict[str, Any] = {"patch": list(patch), "filters": filters}
    for name, serving in (("fused", contextlib.nullcontext), ("reference", ops.use_reference)):
        with serving():
            result[name] = step_cost(clock, image, labels, filters)
        clock.clear()
    return result


def train(clock: Clock, quick: bool) -> dict[str, Any]:
    """:func:`training_step` at the largest patch that fits."""
    set_tf32(True)
    patches = [(16, 16, 16)] if quick else [(160, 192, 128), (128, 128, 128), (96, 96, 96)]
    for patch in patches:
        try:
            return training_step(clock, patch, 4 if quick else 32)
        except torch.OutOfMemoryError:
            clock.clear()
    return {"note": "no patch fitted into the memory"}


def main() -> int:
    """Run every case and return the exit status: 1 where one of our own operators failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    results = Path(__file__).resolve().parent / "results"
    parser.add_argument("--output", type=Path, default=results, metavar="DIR")
    parser.add_argument("--budget", type=float, default=300, metavar="SECONDS")
    parser.add_argument("--backend", default="inductor", help="of torch.compile, for the peers")
    parser.add_argument("--steps", type=Path, metavar="FILE", help="what gpu.sh did before")
    options = parser.parse_args()

    deadline = time.monotonic() + options.budget
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device here, so there is nothing to measure.")
        return 0
    torch.manual_seed(0)
    clock = CudaClock() if options.device == "cuda" else WallClock()
    report = Report(options.device, options.output, options.steps)
    if ops.backend(torch.empty(0, device=clock.device)) != "native":
        report.write()
        print(f"egcnn has no kernels that run here: {ops.backend_info()}", file=sys.stderr)
        return 1

    cases = all_cases(clock.device, options.quick)
    for index, make_case in enumerate(cases):
        reserve = TRAINING_RESERVE + CASE_RESERVE * (len(cases) - 1 - index)
        first = len(report.rows)
        try:
            case = make_case()
            copies = [copy_bandwidth(clock)]
            clock.clear()
            for row in run_case(clock, case, deadline - reserve, options.backend):
                result = row.get("note") or f"{row['ms']:.4g} ms"
                print(f"{row['case']}, {row['what']}, {row['provider']}: {result}", flush=True)
                report.rows.append(row)
            copies.append(copy_bandwidth(clock))
            finish(report.rows[first:], case, copies)
        except Exception as error:  # after a fault in a kernel nothing runs on the device any more
            failure = {"case": f"case {index + 1}", "what": "all", "provider": OURS}
            report.rows.append(failure | {"note": describe(error)})
        report.write()

    try:
        with time_limit(max(deadline - time.monotonic(), 10)):
            report.data["training"] = train(clock, options.quick)
    except Exception as error:
        report.data["training"] = {"note": describe(error)}
    report.data["gpu_after"] = gpu_state() if options.device == "cuda" else {}
    report.data["complete"] = True
    report.write()
    print(f"\n{report.summary()}\n\n{report.path}")
    ours = [report.data["training"], *(row for row in report.rows if row["provider"] == OURS)]
    return int(any("note" in result for result in ours))


if __name__ == "__main__":
    sys.exit(main())
