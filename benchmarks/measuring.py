"""Measures a case: ours between two measurements of the bandwidth, then its peers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs, Plan
from benchmarks.clocks import Clock, CudaClock, Work, bandwidth
from benchmarks.peers import OURS, Peer

Row = dict[str, Any]


def make_work(function: Callable[..., Tensor], sets: Sequence[Inputs], what: str) -> Work:
    """Forward without autograd, backward alone, or both; each turn uses another set of inputs."""

    def work(turn: int) -> Callable[[], object]:
        inputs = sets[turn % len(sets)]
        if what == "forward":
            return torch.no_grad()(partial(function, *inputs.arguments))
        if what == "both":
            return lambda: gradients(function(*inputs.arguments), inputs)
        return partial(gradients, function(*inputs.arguments), inputs)

    return work


def gradients(out: Tensor, inputs: Inputs) -> tuple[Tensor | None, ...]:
    """The gradients of all leaves."""
    grad = inputs.grad
    if grad is not None and grad.shape != out.shape:  # torch operators timed for call overhead
        out, grad = out.sum(), None
    return torch.autograd.grad(out, inputs.leaves, grad, allow_unused=True)


def outcome(function: Callable[..., Tensor], inputs: Inputs, peer: Peer) -> list[Tensor]:
    """Result and gradients; of volumes only the first sample."""
    out = function(*inputs.arguments)
    results: list[Tensor | None] = [out.detach()]
    if inputs.leaves and peer.differentiable:
        results += gradients(out, inputs)
    return [r[:1].clone() if r.dim() == 5 else r for r in results if r is not None]


def difference(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference between two outcomes, relative to the expected one's magnitude."""
    distances = []
    for mine, other in zip(results, expected, strict=False):
        exact = other.double()
        distances.append(((mine.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item())
    return max(distances)


class CaseRun:
    """A case while it is measured.

    Args:
        clock: the clock of the case's device.
        case: what to measure.
        backend: of torch.compile, for the peers.
    """

    def __init__(self, clock: Clock, case: Case, backend: str = "inductor") -> None:
        set_tf32(case.tf32)
        self.clock, self.case, self.backend = clock, case, backend
        self.plan = case.plan()
        moved = self.plan.bytes.values()
        count = max(1, min(8, math.ceil(4 * clock.cache_bytes / min(moved))))
        self.sets = [self.plan.draw() for _ in range(count)]
        self._beside: tuple[Case, Plan, list[Inputs]] | None = None
        if case.beside is not None:
            plan = case.beside.plan()
            self._beside = case.beside, plan, [plan.draw() for _ in range(count)]
        self.rows: list[Row] = []
        self._peer: Peer | None = None
        self._expected: list[Tensor] = []
        self._bandwidths: dict[str, tuple[float, float]] = {}  # before and after ours, by part
        self._bandwidth = self._measure_bandwidth()

    def _measure_bandwidth(self) -> float:
        return bandwidth(self.clock, self.case.bound, max(self.plan.bytes.values()))

    @property
    def providers(self) -> list[Peer]:
        """Ours, then the peers that run here."""
        return providers(self.case, self.clock.device)

    def parts(self, peer: Peer) -> list[str]:
        """The parts of the case that a peer supports."""
        return parts(self.case, peer)

    def measure(self, peer: Peer, what: str) -> list[float]:
        """Add a row for one part of the case, and return the seconds of each run."""
        if peer is not self._peer:
            self._prepare(peer)
        work = make_work(self._function, self.sets, what)
        if self._beside is None:
            times, figures = self.clock.times(work), {}
        else:
            times, figures = self._alternate(work, what, *self._beside)
        if peer.name == OURS or what not in self._bandwidths:
            before, self._bandwidth = self._bandwidth, self._measure_bandwidth()
            self._bandwidths[what] = before, self._bandwidth
        self.rows.append(self._row | self._figures(peer, what, times, work) | figures)
        return times

    def _alternate(
        self, work: Work, what: str, beside: Case, plan: Plan, sets: Sequence[Inputs]
    ) -> tuple[list[float], Row]:
        """Time a case and its baseline alternately, since the bandwidth drifts."""
        other = make_work(beside.ours, sets, what)
        times: list[float] = []
        others: list[float] = []
        for _ in range(2):  # as many runs as for a single case
            both = self.clock.times(lambda turn: (other if turn % 2 else work)(turn // 2))
            times += both[::2]
            others += both[1::2]
        beside_ms = statistics.median(others) * 1e3
        return times, {"beside_ms": beside_ms, "beside_bytes": plan.bytes[what]}

    def note(self, peer: Peer, what: str, text: str) -> None:
        """Add a row that says why there is no measurement."""
        self.rows.append(self._facts(peer) | {"what": what, "note": text})

    def _facts(self, peer: Peer) -> Row:
        case = self.case
        return {
            "group": case.group,
            "operator": case.operator,
            "case": case.name,
            "provider": peer.name,
            "voxels": case.voxels,
            **self.plan.facts,
        }

    def _prepare(self, peer: Peer) -> None:
        torch._dynamo.reset()
        self.clock.clear()
        self._row = self._facts(peer) | {"sets": len(self.sets)}
        self._function = peer.build(self.backend)
        self._peer = peer
        results = outcome(self._function, self.sets[0], peer)
        if peer.name == OURS:
            self._expected = results
        elif self._expected and self.case.group != "call":
            self._row["difference"] = difference(results, self._expected)

    def _figures(self, peer: Peer, what: str, times: Sequence[float], work: Work) -> Row:
        low, median, high = statistics.quantiles(times, n=4)
        row: Row = {
            "what": what,
            "bytes": self.plan.bytes[what],
            "ms": median * 1e3,
            "low_ms": low * 1e3,
            "high_ms": high * 1e3,
            "runs": len(times),
        }
        # NumPy and ITK do not report their memory; backward alone holds the same as both.
        counted = peer.package in ("torch", "monai") or isinstance(self.clock, CudaClock)
        if counted and what != "backward":
            row["peak_mb"] = self.clock.peak_bytes(work(0)) / 1e6
        # Only where launch gaps could matter. Backward alone would need its forward captured too.
        if peer.name == OURS and what != "backward" and row["ms"] < 1:
            replay = self.clock.replay(work, len(self.sets))
            row["replay_ms"] = None if replay is None else replay * 1e3
        return row

    def finish(self) -> list[Row]:
        """The rows, completed with floor, share of bandwidth, best peer and target."""
        timed = [row for row in self.rows if "ms" in row]
        for row in timed:
            row["bound"] = self.case.bound
            bandwidths = self._bandwidths[row["what"]]
            row["bandwidth_gb_s"] = [rate / 1e9 for rate in bandwidths]
            row["best_ms"] = row.get("replay_ms") or row["ms"]
            row["gb_s"] = row["bytes"] / row["best_ms"] / 1e6
            row["floor_ms"] = row["bytes"] / statistics.mean(bandwidths) * 1e3
            row["share"] = row["floor_ms"] / row["best_ms"]
        same = {peer.name for peer in self.case.peers if peer.exact or self.case.group == "call"}
        rivals = [row for row in timed if row["provider"] in same]
        for row in timed:
            if row["provider"] != OURS:
                continue
            others = [r for r in rivals if r["what"] == row["what"]]
            if others:
                best = min(others, key=lambda other: other["ms"])
                row["best_peer"], row["best_peer_ms"] = best["provider"], best["ms"]
                row["best_peer_mb"] = best.get("peak_mb")
                row["ratio"] = best["ms"] / row["ms"]  # both by the same clock
            if target := self.case.targets.get(row["what"]):
                row["target"] = str(target)
                row["reached"] = target.reached(row["share"], row["best_ms"])
        return self.rows


def providers(case: Case, device: torch.device) -> list[Peer]:
    """Ours, then the peers of a case that run on a device."""
    peers = [Peer(OURS, case.ours), *case.peers]
    return [p for p in peers if device.type in p.devices and (case.autotune or not p.autotuned)]


def parts(case: Case, peer: Peer) -> list[str]:
    """The parts of a case that a peer supports."""
    return [what for what in case.parts if what == "forward" or peer.differentiable]


def set_tf32(allowed: bool) -> None:
    """Set whether float32 products and convolutions, ours and others', may be rounded to TF32."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
