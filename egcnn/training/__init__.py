"""Training: hyperparameters, batches, the Lightning module, and the run's folder."""

from egcnn.training.config import PRESETS, TrainingConfig, plan
from egcnn.training.history import HISTORY, LAST, read_history
from egcnn.training.run import (
    BEST,
    CONFIG,
    Existing,
    Run,
    RunConfig,
    differences,
    fit,
    read_config,
)
from egcnn.training.task import SegmentationTask

__all__ = [
    "BEST",
    "CONFIG",
    "HISTORY",
    "LAST",
    "PRESETS",
    "Existing",
    "Run",
    "RunConfig",
    "SegmentationTask",
    "TrainingConfig",
    "differences",
    "fit",
    "plan",
    "read_config",
    "read_history",
]
