"""Clocks for the CPU and for CUDA: the time of a run, the memory it takes, the bandwidth around it.

``gpu.py`` and the pytest suite measure with the same.
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
    """Times by CUDA events and by graph replays, memory by torch's allocator."""

    warm_up, measure = 0.05, 0.2

    def __init__(self) -> None:
        self.device = torch.device("cuda")
        self.cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size

    def times(self, work: Work) -> list[float]:
        """Seconds of each of many runs, behind a queue so full that no launch gap is timed."""
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
        """The most memory that a run holds beyond what was held before it."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def copied_bytes(self, nbytes: int) -> int:
        """How much to move when the bandwidth around a case of so many bytes is asked for."""
        return 1 << 31

    def clear(self) -> None:
        """Give all unused memory back."""
        gc.collect()  # autograd's graphs hold cycles
        torch.cuda.empty_cache()


class WallClock:
    """The same for the CPU.

    Args:
        seconds: what one measurement may take, beyond three runs at the least; it ends early once
            it has twenty and a fifth of the time.
        memory: where results come from. ``"reused"``: the C library keeps what is freed and hands
            it out again, as a training process that has settled in does. ``"fresh"``: every
            result is new memory, whose pages the system makes while they are first written.
            ``"large pages"``: the same with torch's own large pages, which it takes up only where
            the process starts with ``THP_MEM_ALLOC_ENABLE=1``. The mode is one of the process: an
            allocator cannot be brought back to where it was.
    """

    cache_bytes = 0  # inputs do not rotate: the CPU's copy is measured on as warm a cache

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
            del result  # before the next run asks for memory
            if warm or spent > 1:  # a run as long as that hardly feels how cold it began
                times.append(spent)
            warm = True
        return times

    def _enough(self, runs: int, spent: float) -> bool:
        if runs < 3:
            return False
        return spent >= self.seconds or runs >= 1000 or (runs >= 20 and spent >= self.seconds / 5)

    def replay(self, work: Work, sets: int) -> None:
        """There are no graphs on a CPU."""

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """The most that a run holds in torch's tensors beyond what was held before it."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
        live = peak = 0
        for event in profiler.profiler.kineto_results.events():  # in order of time
            if event.name() == "[memory]":
                live += event.nbytes()
                peak = max(peak, live)
        return peak

    def copied_bytes(self, nbytes: int) -> int:
        """How much to move when the bandwidth around a case of so many bytes is asked for."""
        return min(nbytes, 1 << 30)

    def clear(self) -> None:
        """Drop what is unused; give it back too, unless it is to be reused."""
        gc.collect()
        if not self.reused and hasattr(self._library, "malloc_trim"):
            self._library.malloc_trim(0)


Clock = CudaClock | WallClock


def bandwidth(clock: Clock, bound: str, nbytes: int) -> float:
    """Bytes read and written per second by torch's plain ``"copy"`` or ``"triad"`` (a = b + s*c).

    On the CPU its buffers hold ``nbytes`` together, so that caches help it as much as the case.
    """
    count = 2 if bound == "copy" else 3
    length = max(clock.copied_bytes(nbytes) // (4 * count), 1)
    target, *sources = (torch.ones(length, device=clock.device) for _ in range(count))
    if bound == "copy":
        run = partial(target.copy_, *sources)
    else:
        run = partial(torch.add, *sources, alpha=3, out=target)
    return 4 * count * length / statistics.median(clock.times(lambda turn: run))
