"""A training step with the fused operators, with the reference, and without the edge stream.

The main case is shallow on the CPU, so that it can be compiled. The full depth and more filters are
cases of their own there, eager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch._inductor.exc import InductorError

from benchmarks.measuring import set_tf32
from benchmarks.report import describe
from benchmarks.training import TRAININGS, Training, TrainingRun

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# On the CPU: batch and voxels, filters, whether it is shallow. A batch of two, since for one small
# sample torch's fp32 conv3d takes a slow path, three times as long, which would dominate the step.
SIZES = {
    "main": ((2, 48, 48, 48), 8, True),
    "size deep": ((2, 48, 48, 48), 8, False),
    "size wide": ((1, 96, 96, 96), 32, False),
}


@pytest.fixture(params=[(size, dtype) for size in SIZES for dtype in DTYPES], ids=" ".join)
def training_run(request: pytest.FixtureRequest, suite) -> Iterator[TrainingRun]:
    if suite.memory != "reused":
        pytest.skip("training reuses its memory")
    suite.finish_case()
    set_tf32(True)
    size, dtype = request.param
    cuda = suite.device.type == "cuda"
    if size != "main" and (cuda or suite.quick):
        pytest.skip("the main case is the full network there")
    shape, filters, shallow = ((1, 160, 192, 128), 32, False) if cuda else SIZES[size]
    if suite.quick:
        shape, filters = (2, 16, 16, 16), 4
    yield TrainingRun(suite.clock, shape, filters, DTYPES[dtype], suite.backend, shallow=shallow)
    set_tf32(False)


@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: training.name)
def test_training_step(
    record: Callable[[list[float]], None], suite, training_run: TrainingRun, training: Training
) -> None:
    cpu = suite.device.type == "cpu"
    dear = suite.quick or (
        cpu and (training_run.dtype != torch.float32 or not training_run.shallow)
    )
    if training.compiled and dear:
        pytest.skip("compiling a network takes long")
    try:
        row, profile, times = training_run.measure(training)
    except InductorError as error:
        if training.fused:
            raise
        pytest.skip(f"torch cannot compile the reference: {describe(error)}")
    suite.rows.append(row | {"memory": suite.memory})
    suite.profiles[f"{training_run.name}, {training.name}"] = profile
    record(times)
