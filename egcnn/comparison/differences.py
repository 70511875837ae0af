"""Finished runs of a comparison, and their paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

from egcnn.comparison.arms import KINDS, Arm, Kind
from egcnn.evaluation import MEAN, OWN_VOXELS

#: Metrics that are compared, averaged over regions.
COMPARED = ("dice", "surface_dice", "hd95")


@dataclass(frozen=True)
class Result:
    """One finished run.

    Args:
        arm: what was trained.
        seed: seed of weights, case order, augmentation and noise.
        parameters: number of the network's parameters.
        step_seconds: median time of a training step.
        regions: per region, and for :data:`egcnn.evaluation.MEAN`, the mean of each metric over
            held-out cases.
        networks: what made the predictions; see :func:`egcnn.evaluation.write_evaluation`.
        edge_space: where edges were taken; see :class:`egcnn.evaluation.Evaluation`.
    """

    arm: Arm
    seed: int
    parameters: int
    step_seconds: float
    regions: dict[str, dict[str, float]]
    networks: dict[str, Any] = field(default_factory=dict)
    edge_space: str = OWN_VOXELS


@dataclass(frozen=True)
class Difference:
    """One arm minus another, paired by seed.

    Args:
        backbone: or ``"all"``.
        what: such as ``"EG-CNN - none"``.
        metric: one of :data:`COMPARED`.
        mean: mean of the differences.
        low: lower bound of the mean's 95 % confidence interval (Student's t), or None for a single
            pair.
        high: its upper bound.
        pairs: number of pairs.
    """

    backbone: str
    what: str
    metric: str
    mean: float
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True)
class Comparison:
    """All finished runs of a comparison."""

    results: tuple[Result, ...]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms, in table order."""
        return tuple(dict.fromkeys(result.arm for result in self.results))

    def of(self, arm: Arm) -> list[Result]:
        """The runs of an arm."""
        return [result for result in self.results if result.arm == arm]

    def differences(self) -> list[Difference]:
        """Each arm minus the simpler ones, and each setting minus the same arm without it."""
        backbones = list(dict.fromkeys(arm.backbone for arm in self.arms))
        variants = list(dict.fromkeys((arm.kind, arm.setting) for arm in self.arms))
        simpler: list[Kind] = ["none", "consistency", "larger", "paper"]
        pairs: list[tuple[tuple[Kind, str], tuple[Kind, str]]] = [
            *((("egcnn", ""), (kind, "")) for kind in simpler),
            *(((kind, ""), ("none", "")) for kind in simpler[1:]),
            *(((kind, setting), (kind, "")) for kind, setting in variants if setting),
        ]
        differences = []
        for one, other in pairs:
            if one not in variants or other not in variants:
                continue
            what = f"{one[1] or KINDS[one[0]]} - {KINDS[other[0]]}"
            for group in [*backbones, *(["all"] if len(backbones) > 1 else [])]:
                members = backbones if group == "all" else [group]
                runs = [pair for b in members for pair in self._pairs(Arm(b, *one), Arm(b, *other))]
                for metric in COMPARED if runs else ():
                    values = [a.regions[MEAN][metric] - b.regions[MEAN][metric] for a, b in runs]
                    differences.append(_difference(group, what, metric, values))
        return differences

    def _pairs(self, arm: Arm, other: Arm) -> list[tuple[Result, Result]]:
        """Pairs of runs of two arms with the same seed."""
        others = {result.seed: result for result in self.of(other)}
        return [(run, others[run.seed]) for run in self.of(arm) if run.seed in others]


def _difference(backbone: str, what: str, metric: str, values: Sequence[float]) -> Difference:
    centre, count = mean(values), len(values)
    if count < 2:
        return Difference(backbone, what, metric, centre, None, None, count)
    half = float(student.ppf(0.975, count - 1)) * stdev(values) / count**0.5
    return Difference(backbone, what, metric, centre, centre - half, centre + half, count)
