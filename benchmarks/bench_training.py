"""A training step with the fused operators, with the reference, and without the edge stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks.measuring import set_tf32
from benchmarks.training import TRAININGS, Training, TrainingRun


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def training_run(request: pytest.FixtureRequest, suite) -> Iterator[TrainingRun]:
    if suite.memory != "reused":
        pytest.skip("training reuses its memory")
    suite.finish_case()
    set_tf32(True)
    cuda = suite.device.type == "cuda"
    # A batch of two on the CPU: for one small sample torch's fp32 conv3d takes a slow path, three
    # times as long, which would dominate the step.
    shape, filters = ((1, 160, 192, 128), 32) if cuda else ((2, 48, 48, 48), 8)
    if suite.quick:
        shape, filters = (2, 16, 16, 16), 4
    yield TrainingRun(suite.clock, shape, filters, request.param, suite.backend, shallow=not cuda)
    set_tf32(False)


@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: training.name)
def test_training_step(
    record: Callable[[list[float]], None], suite, training_run: TrainingRun, training: Training
) -> None:
    dear = suite.quick or (suite.device.type == "cpu" and training_run.dtype != torch.float32)
    if training.compiled and dear:
        pytest.skip("compiling a network takes long")
    row, profile, times = training_run.measure(training)
    suite.rows.append(row | {"memory": suite.memory})
    suite.profiles[f"{training_run.name}, {training.name}"] = profile
    record(times)
