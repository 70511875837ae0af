"""Training batches: cached cases, with seeded order and augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from monai.transforms.compose import Compose
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from egcnn.data.cache import MappedCases, PreparedCases, cache_cases
from egcnn.data.case import Case, Dataset
from egcnn.data.transforms import augmentation
from egcnn.machine import free_memory
from egcnn.training.config import TrainingConfig

# Keeps the seeds of the augmentation apart from those of the noise in training steps.
_AUGMENTATION = 3
# The rest is for the network, workers and batches.
_CACHED_PART_OF_MEMORY = 0.5


def combine_seeds(*numbers: int) -> int:
    """Hash several numbers into a 63-bit seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class SeededSampler(Sampler[tuple[int, int]]):
    """Samples shuffled indices, each with an augmentation seed, all derived from (seed, epoch).

    They depend neither on the number of workers nor on earlier draws, so a resumed run sees the
    same data as an uninterrupted one. Several devices take equal shares; if the cases do not divide
    evenly, the first ones are repeated.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, replicas: int = 1) -> None:
        self.length = length
        self.seed = seed
        self.rank = rank
        self.replicas = replicas
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // self.replicas)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        for place in range(self.rank, len(self) * self.replicas, self.replicas):
            index = int(order[place % self.length])
            yield index, combine_seeds(self.seed, _AUGMENTATION, self.epoch, place) % 2**32


class _Patches(TorchDataset[dict[str, Any]]):
    """Preprocessed cases indexed by (index, seed), augmented with that seed."""

    def __init__(self, cases: PreparedCases, augment: Compose) -> None:
        self.cases = cases
        self.augment = augment

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, seed = key
        self.augment.set_random_state(seed=seed)
        item: Any = self.augment(self.cases[index])
        return {"image": item["image"], "label": item["label"]}


class _Volumes(TorchDataset[dict[str, Any]]):
    """Whole preprocessed cases."""

    def __init__(self, cases: PreparedCases, count: int, rank: int, replicas: int) -> None:
        self.cases = cases
        # Every device validates at least one case, or the all-reduce would hang.
        self.indices = [i % count for i in range(rank, max(count, replicas), replicas)]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: Any = self.cases[self.indices[index]]
        return {key: item[key] for key in ("image", "label")}


def _single(items: list[dict[str, Any]]) -> dict[str, Any]:
    return items[0]


class CaseData(L.LightningDataModule):
    """Training patches and validation volumes, cached in a folder or as far as memory allows.

    Args:
        config: the run's hyperparameters.
        dataset: defines regions and modalities.
        train: cases to train on.
        validation: cases to validate on.
        cache: folder of preprocessed cases, see :class:`egcnn.data.cache.MappedCases`; None keeps
            them in memory.
        quiet: show no progress bar.
    """

    def __init__(
        self,
        config: TrainingConfig,
        dataset: Dataset,
        train: Sequence[Case],
        validation: Sequence[Case],
        cache: Path | None = None,
        quiet: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.dataset = dataset
        self.augment = augmentation(config.preprocessing.patch, config.augmentation)
        self.train_cases = train
        self.validation_cases = validation
        self.cache = cache
        self.quiet = quiet
        self.cached: Mapping[str, PreparedCases] = {}

    def setup(self, stage: str) -> None:
        """Preprocess all cases into the folder, or as many as fit into a part of free memory."""
        if self.cached:
            return
        # Validation first: cases of both are read once per epoch, but validation uses whole
        # volumes.
        groups = {"validation": self.validation_cases, "train": self.train_cases}
        if self.cache is not None:
            self.cached = {
                name: MappedCases(
                    self.cache,
                    cases,
                    self.dataset,
                    self.config.preprocessing,
                    workers=self.config.workers,
                    quiet=self.quiet,
                )
                for name, cases in groups.items()
            }
            return
        shares = self.trainer.world_size if self.trainer is not None else 1
        self.cached = cache_cases(
            groups,
            self.dataset,
            self.config.preprocessing,
            room=_CACHED_PART_OF_MEMORY * free_memory() / shares,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of augmented patches."""
        trainer = self.trainer
        rank, replicas = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return DataLoader(
            _Patches(self.cached["train"], self.augment),
            batch_size=self.config.batch_size // self.config.devices,
            sampler=SeededSampler(len(self.train_cases), self.config.seed, rank, replicas),
            num_workers=self.config.workers,
            persistent_workers=self.config.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Whole volumes, one at a time."""
        trainer = self.trainer
        rank, replicas = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return DataLoader(
            _Volumes(self.cached["validation"], len(self.validation_cases), rank, replicas),
            batch_size=1,
            collate_fn=_single,
            pin_memory=torch.cuda.is_available(),
        )
