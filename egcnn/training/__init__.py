"""Training: hyperparameters, batches, the Lightning module and the run folder."""

from egcnn.training.config import PRESETS, TrainingConfig, plan
from egcnn.training.folder import (
    BEST,
    CONFIG,
    PREDICTIONS,
    IfExists,
    RunConfig,
    changed_settings,
    checkpoints,
    read_config,
)
from egcnn.training.history import HISTORY, LAST, read_history
from egcnn.training.run import Run, fit
from egcnn.training.task import SegmentationTask

__all__ = [
    "BEST",
    "CONFIG",
    "HISTORY",
    "LAST",
    "PREDICTIONS",
    "PRESETS",
    "IfExists",
    "Run",
    "RunConfig",
    "SegmentationTask",
    "TrainingConfig",
    "changed_settings",
    "checkpoints",
    "fit",
    "plan",
    "read_config",
    "read_history",
]
