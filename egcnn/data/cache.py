"""Preprocessed cases: in memory as far as they fit, or memory-mapped from a folder."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from monai.data.dataset import CacheDataset
from monai.transforms import EnsureTyped
from monai.transforms.compose import Compose
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from egcnn.data.case import Case, Dataset, label_dtype
from egcnn.data.hashes import case_digest
from egcnn.data.transforms import PreprocessingSettings, ReadCase, prepared_shape, preprocessing
from egcnn.errors import InputError
from egcnn.files import atomic_write, save_tensors, tensor_damage, turn
from egcnn.processes import in_processes
from egcnn.terminal import tracked

#: Cases by index as ``{"image": (M, D, H, W) float32, "label": (1, D, H, W) integers}``.
PreparedCases: TypeAlias = "CacheDataset | MappedCases"

# Part of the files' names: raise it where preprocessing gives other numbers than before.
_VERSION = 1


def _prepare(dataset: Dataset, settings: PreprocessingSettings) -> Compose:
    """From a case to plain tensors."""
    return Compose(
        [
            ReadCase(dataset.regions, len(dataset.modalities)),
            # One by one: CacheDataset takes a Compose for random, and keeps what comes before it.
            *preprocessing(settings, dataset.regions).transforms,
            EnsureTyped(("image", "label"), track_meta=False),
        ]
    )


def _prepared_bytes(case: Case, dataset: Dataset, settings: PreprocessingSettings) -> float:
    """Size of a preprocessed case: float32 images and a label of one or two bytes."""
    voxels = math.prod(map(float, prepared_shape(case, settings.spacing)))
    label = np.dtype(label_dtype(dataset.regions)).itemsize
    return voxels * (4 * len(dataset.modalities) + label)


def cache_cases(
    groups: Mapping[str, Sequence[Case]],
    dataset: Dataset,
    settings: PreprocessingSettings,
    room: float,
) -> dict[str, CacheDataset]:
    """Preprocess groups of cases and keep the first ones that fit into memory.

    Args:
        groups: labelled cases by group name; earlier groups are kept first.
        dataset: defines regions and modalities.
        settings: the preprocessing.
        room: bytes that all groups may occupy together.

    Returns:
        :data:`PreparedCases` by group name. Cases that did not fit are read again each time.

    Raises:
        InputError: a file of a kept case is missing, damaged or inconsistent with its dataset.
    """
    prepare = _prepare(dataset, settings)
    cached = {}
    for name, cases in groups.items():
        count = 0
        for case in cases:
            room -= _prepared_bytes(case, dataset, settings)
            if room < 0:
                break
            count += 1
        # Filled here and not by CacheDataset's own thread: after an error that thread keeps reading
        # and aborts the process at interpreter shutdown.
        group = CacheDataset(
            list(cases), prepare, cache_num=count, progress=False, runtime_cache=True
        )
        for index in range(count):
            group[index]
        cached[name] = group
    return cached


class MappedCases(TorchDataset[dict[str, Tensor]]):
    """Preprocessed cases in a folder: a patch is read from the disk without the rest of its case.

    A file is named after a hash of the case's files and of all settings that affect it. It appears
    whole or not at all. The checksums of all files are verified at the start, and one that was cut
    short or changed is made anew. Several processes may use the folder at once: they wait for each
    other where they need the same file.

    Args:
        folder: created if missing. Nothing is ever deleted from it.
        cases: labelled cases.
        dataset: defines regions and modalities.
        settings: the preprocessing.
        hashes: :func:`egcnn.data.hashes.case_digest` by name, as far as it is known.
        workers: number of processes that verify and preprocess; 0 uses this one.
        quiet: show no progress bar.

    Raises:
        InputError: a file of a case is missing, damaged or inconsistent with its dataset; or the
            folder cannot be written, or has no room for all cases.
    """

    def __init__(
        self,
        folder: Path,
        cases: Sequence[Case],
        dataset: Dataset,
        settings: PreprocessingSettings,
        *,
        hashes: Mapping[str, str] | None = None,
        workers: int = 0,
        quiet: bool = True,
    ) -> None:
        self.cases = tuple(cases)
        self._hashes = hashes or {}
        self._prepare = _prepare(dataset, settings)
        self._folder = folder
        # All but the patch, which is cut out later.
        affecting = {k: v for k, v in settings.to_dict().items() if k != "patch"}
        regions, modalities = dataset.regions.to_dict(), list(dataset.modalities)
        self._settings = json.dumps([_VERSION, affecting, regions, modalities]).encode()

        def every(work: Any, indices: Sequence[int], title: str) -> list[Any]:
            done = in_processes(work, indices, workers)
            return list(done if quiet else tracked(done, len(indices), title))

        found: list[tuple[Path, bool]] = every(self._find, range(len(cases)), "reading cases")
        self.paths = [path for path, _ in found]
        missing = [index for index, (_, whole) in enumerate(found) if not whole]
        needed = sum(_prepared_bytes(cases[index], dataset, settings) for index in missing)
        _check_room(folder, len(missing), needed)
        every(self._make, missing, "preprocessing cases")

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The tensors of a case, mapped from its file."""
        item = _mapped(self.paths[index])
        if item is None:  # deleted or damaged meanwhile
            self._make(index)
            item = _mapped(self.paths[index])
        if item is None:
            raise InputError(f"{self.paths[index]}: cannot be read back after it was written")
        return item

    def _find(self, index: int) -> tuple[Path, bool]:
        """Where a case lies, by a hash of what its preprocessing depends on, and if it is whole."""
        case = self.cases[index]
        content = (self._hashes.get(case.name) or case_digest(case)).encode()
        key = hashlib.blake2b(self._settings + content, digest_size=16).hexdigest()
        path = self._folder / f"{case.name}-{key}.pt"
        return path, _is_whole(path)

    def _make(self, index: int) -> None:
        path = self.paths[index]
        with turn(path):
            if _is_whole(path):
                return
            item: Any = self._prepare(self.cases[index])
            with atomic_write(path) as temporary:
                save_tensors({key: item[key] for key in ("image", "label")}, temporary, path)


def _is_whole(path: Path) -> bool:
    """Whether a file holds a case as it was written; the whole of it is read."""
    return _mapped(path) is not None and tensor_damage(path) is None


def _mapped(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file; None if it is missing, was cut short (its index is at the end) or
    holds anything but a case.
    """
    if not path.is_file():
        return None
    try:
        item = torch.load(str(path), mmap=True, weights_only=True)
        image, label = item["image"], item["label"]
        whole = image.dtype == torch.float32 and image.ndim == 4 and len(label) == 1
        return item if whole and image.shape[1:] == label.shape[1:] else None
    except Exception:  # of many types, depending on the damage
        return None


def _check_room(folder: Path, count: int, needed: float) -> None:
    """Raise InputError if so many bytes are not free on the folder's disk."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if needed > (free := shutil.disk_usage(existing).free):
        raise InputError(
            f"{folder}: {count} preprocessed cases take {needed / 1e9:.3g} GB; expected no more "
            f"than the {free / 1e9:.3g} GB that are free on this disk"
        )
