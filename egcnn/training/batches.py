"""Training batches: cached cases, with seeded order and augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from monai.transforms.compose import Compose
from torch.utils.data import DataLoader, Sampler, default_collate
from torch.utils.data import Dataset as TorchDataset

from egcnn.data.cache import MappedCases, PreparedCases, cache_cases
from egcnn.data.case import Case, Dataset
from egcnn.data.transforms import augmentation
from egcnn.errors import InputError
from egcnn.machine import free_memory
from egcnn.processes import end_with_parent
from egcnn.training.config import TrainingConfig

# Keep the seeds of the augmentation and of the noise in training steps apart.
_NOISE = 2
_AUGMENTATION = 3
# The rest is for the network, workers and batches.
_CACHED_PART_OF_MEMORY = 0.5


def combine_seeds(*numbers: int) -> int:
    """Hash several numbers into a 63-bit seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Draw(NamedTuple):
    """A training sample: its case and its randomness.

    Attributes:
        case: index of the case.
        augmentation: seed of the augmentation.
        noise: seed of the noise in the training step.
        weight: weight of its loss, so that the losses of all parts of a step average to the mean
            over the step's cases; 0 for a case that only fills a place.
    """

    case: int
    augmentation: int
    noise: int
    weight: float


class SeededSampler(Sampler[Draw]):
    """Samples shuffled cases, each with its seeds, all derived from (seed, epoch, place).

    They depend neither on the number of workers or devices nor on earlier draws, so a resumed run
    sees the same data as an uninterrupted one, and several devices the data of one. These take
    turns: the cases of a step are the same for any number of them. If the cases do not divide
    evenly, the first ones fill the places that are left, with weight 0.

    Args:
        length: number of cases.
        seed: the run's seed.
        batch_size: cases per step, over all devices.
        rank: this device.
        replicas: number of devices.
        parts: parts in which a device takes its share of a step.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        batch_size: int,
        rank: int = 0,
        replicas: int = 1,
        parts: int = 1,
    ) -> None:
        self.length = length
        self.seed = seed
        self.batch_size = batch_size
        self.rank = rank
        self.replicas = replicas
        self.parts = parts
        self.epoch = 0
        self.resumed = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each."""
        self.epoch = epoch

    def resume(self, epoch: int, done: int) -> None:
        """Begin an epoch after the first ``done`` draws of each device."""
        self.resumed = (epoch, done)

    def __len__(self) -> int:
        return -(-self.length // self.replicas)

    def __iter__(self) -> Iterator[Draw]:
        epoch, done = self.resumed
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        for turn in range(done if self.epoch == epoch else 0, len(self)):
            place = turn * self.replicas + self.rank
            before = place - place % self.batch_size
            cases = min(self.batch_size, self.length - before)
            yield Draw(
                int(order[place % self.length]),
                combine_seeds(self.seed, _AUGMENTATION, self.epoch, place) % 2**32,
                combine_seeds(self.seed, _NOISE, self.epoch, place),
                self.replicas * self.parts / cases if place < self.length else 0.0,
            )


class _Patches(TorchDataset[dict[str, Any]]):
    """Preprocessed cases indexed by a draw, augmented with its seed."""

    def __init__(self, cases: PreparedCases, augment: Compose) -> None:
        self.cases = cases
        self.augment = augment

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        self.augment.set_random_state(seed=draw.augmentation)
        item: Any = self.augment(self.cases[draw.case])
        parts = {key: item[key] for key in ("image", "label")}
        return {**parts, "noise": draw.noise, "weight": draw.weight}


class _Volumes(TorchDataset[dict[str, Any]]):
    """Whole preprocessed cases as plain tensors, each on one device."""

    def __init__(self, cases: PreparedCases, rank: int, replicas: int) -> None:
        self.cases = cases
        # Every device validates at least one case, or the all-reduce would hang.
        self.places = range(rank, max(len(cases), replicas), replicas)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = self.places[index]
        item: Any = self.cases[place % len(self.cases)]
        parts = {key: item[key] for key in ("image", "label")}
        return {**parts, "weight": float(place < len(self.cases))}


def _single(items: list[dict[str, Any]]) -> dict[str, Any]:
    return items[0]


def _batch(items: list[dict[str, Any]]) -> dict[str, Any]:
    """The samples that count, and the sum of their weights; if none does, one of weight 0."""
    counted = [item for item in items if item["weight"]] or items[:1]
    weight = sum(item.pop("weight") for item in counted)
    return {**default_collate(counted), "weight": weight}


class _Batches(DataLoader[Any]):
    """A loader whose place in the epoch Lightning keeps in checkpoints, and returns to.

    Lightning asks loaders for ``state_dict`` and ``load_state_dict``.
    """

    sampler: SeededSampler
    done = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Count the batches; workers start with the first, when the sampler knows its epoch."""
        epoch, draws = self.sampler.resumed
        self.done = draws // (self.batch_size or 1) if epoch == self.sampler.epoch else 0
        for batch in super().__iter__():
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The batches of the epoch that were taken, and what they depend on."""
        return {"epoch": self.sampler.epoch, "batches": self.done, **self._division()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Begin after the batches that were taken.

        Raises:
            InputError: the epoch was begun with other numbers of devices or parts.
        """
        for name, value in self._division().items():
            if state[name] != value:
                raise InputError(
                    f"{name}: {value}, but the run was interrupted within an epoch with "
                    f"{state[name]}; expected the same until the next epoch"
                )
        self.sampler.resume(state["epoch"], state["batches"] * (self.batch_size or 1))

    def _division(self) -> dict[str, int]:
        return {"devices": self.sampler.replicas, "accumulate": self.sampler.parts}


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
        hashes: those of the cases as far as this process knows them; of several processes the
            first one's are taken.
    """

    def __init__(
        self,
        config: TrainingConfig,
        dataset: Dataset,
        train: Sequence[Case],
        validation: Sequence[Case],
        cache: Path | None = None,
        quiet: bool = True,
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.dataset = dataset
        self.augment = augmentation(config.preprocessing.patch, config.augmentation)
        self.train_cases = train
        self.validation_cases = validation
        self.cache = cache
        self.quiet = quiet
        self.hashes = hashes
        self.cached: Mapping[str, PreparedCases] = {}

    def setup(self, stage: str) -> None:
        """Preprocess all cases into the folder, or as many as fit into a part of free memory."""
        if self.cached:
            return
        # Validation first: cases of both are read once per epoch, but validation uses whole
        # volumes.
        groups = {"validation": self.validation_cases, "train": self.train_cases}
        shares = self.trainer.world_size if self.trainer is not None else 1
        if self.cache is not None:
            hashes = self.hashes
            if self.trainer is not None and shares > 1:
                hashes = self.trainer.strategy.broadcast(hashes)
            self.cached = {
                name: MappedCases(
                    self.cache,
                    cases,
                    self.dataset,
                    self.config.preprocessing,
                    hashes=hashes,
                    workers=self.config.workers,
                    quiet=self.quiet,
                )
                for name, cases in groups.items()
            }
            return
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
        batch_size, parts = self.config.batch_size, self.config.accumulate
        return _Batches(
            _Patches(self.cached["train"], self.augment),
            batch_size=batch_size // (replicas * parts),
            sampler=SeededSampler(
                len(self.train_cases), self.config.seed, batch_size, rank, replicas, parts
            ),
            collate_fn=_batch,
            num_workers=self.config.workers,
            worker_init_fn=end_with_parent,
            persistent_workers=self.config.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Whole volumes, one at a time."""
        trainer = self.trainer
        rank, replicas = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return DataLoader(
            _Volumes(self.cached["validation"], rank, replicas),
            batch_size=1,
            collate_fn=_single,
            pin_memory=torch.cuda.is_available(),
        )
