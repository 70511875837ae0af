"""Clocks for the CPU and for CUDA: time, peak memory and memory bandwidth.

``gpu.py`` and the pytest suite both use them.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

# ``work(turn)`` prepares one run and returns what is to be timed.
Work = Callable[[int], Callable[[], object]]

MEMORY_MODES = ("reused", "fresh", "large pages")


class CudaClock:
    """Time by CUDA events and graph replays, memory by torch's allocator."""

    warm_up, measure = 0.05, 0.2

    def __init__(self) -> None:
        self.device = torch.device("cuda")
        self.cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size

    def times(self, work: Work) -> list[float]:
        """Seconds of each of many runs, queued far enough ahead that launch gaps are not timed."""
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
        return [begin.elapsed_time(end) / 1000 for begin, end in events]

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
        """Peak memory of a run above the memory held before it."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def copied_bytes(self, nbytes: int) -> int:
        """Bytes to move to measure the bandwidth for a case of ``nbytes``."""
        return 1 << 31

    def clear(self) -> None:
        """Free all unused memory."""
        gc.collect()  # autograd graphs contain cycles
        torch.cuda.empty_cache()


class WallClock:
    """The same for the CPU.

    Args:
        seconds: time limit of a measurement, of which at least three runs are made; it ends early
            after twenty runs and a fifth of the time.
        memory: memory of the results. ``"reused"``: the C library reuses freed memory, as in a
            training process after some steps. ``"fresh"``: every result is new memory, whose pages
            are mapped at the first write. ``"large pages"``: the same with torch's own large pages,
            which it takes up only where the process starts with ``THP_MEM_ALLOC_ENABLE=1``. The
            mode is one of the process: an allocator cannot be brought back to where it was.
    """

    cache_bytes = 0  # inputs do not rotate: the copy has warm caches too

    def __init__(self, seconds: float = 0.4, memory: str = "reused") -> None:
        self.device = torch.device("cpu")
        self.seconds = seconds
        if memory == "large pages" and os.environ.get("THP_MEM_ALLOC_ENABLE") != "1":
            raise ValueError("large pages need THP_MEM_ALLOC_ENABLE=1 in the environment")
        self.reused = memory == "reused"
        self._library = ctypes.CDLL(None)
        if hasattr(self._library, "mallopt"):  # glibc's
            trim, mmap_threshold, mmap_max = -1, -3, -4
            if self.reused:
                self._library.mallopt(mmap_max, 0)
                self._library.mallopt(trim, -1)  # never
            else:
                self._library.mallopt(mmap_threshold, 1 << 17)

    def times(self, work: Work) -> list[float]:
        """Seconds of each of several runs."""
        times: list[float] = []
        warm = False
        while not self._enough(len(times), sum(times)):
            run = work(len(times))
            start = time.perf_counter()
            result = run()
            spent = time.perf_counter() - start
            del result  # free it before the next run allocates
            if warm or spent > 1:  # cold caches hardly matter for such long runs
                times.append(spent)
            warm = True
        return times

    def _enough(self, runs: int, spent: float) -> bool:
        if runs < 3:
            return False
        return spent >= self.seconds or runs >= 1000 or (runs >= 20 and spent >= self.seconds / 5)

    def replay(self, work: Work, sets: int) -> None:
        """None: a CPU has no graphs."""

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Peak memory in torch's tensors above the memory held before a run."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
        live = peak = 0
        for event in profiler.profiler.kineto_results.events():  # in order of time
            if event.name() == "[memory]":
                live += event.nbytes()
                peak = max(peak, live)
        return peak

    def copied_bytes(self, nbytes: int) -> int:
        """Bytes to move to measure the bandwidth for a case of ``nbytes``."""
        return min(nbytes, 1 << 30)

    def clear(self) -> None:
        """Collect garbage; return the memory to the system unless it is to be reused."""
        gc.collect()
        if not self.reused and hasattr(self._library, "malloc_trim"):
            self._library.malloc_trim(0)


Clock = CudaClock | WallClock


def bandwidth(clock: Clock, bound: str, nbytes: int) -> float:
    """Bytes read and written per second by torch's plain ``"copy"`` or ``"triad"`` (a = b + s*c).

    On the CPU its buffers hold ``nbytes`` in total, so that caches help it as much as the case.
    """
    count = 2 if bound == "copy" else 3
    length = max(clock.copied_bytes(nbytes) // (4 * count), 1)
    target, *sources = (torch.ones(length, device=clock.device) for _ in range(count))
    if bound == "copy":
        run = partial(target.copy_, *sources)
    else:
        run = partial(torch.add, *sources, alpha=3, out=target)
    return 4 * count * length / statistics.median(clock.times(lambda turn: run))
