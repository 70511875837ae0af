"""Reading, preprocessing, patches, prediction, evaluation, beside MONAI's and nnU-Net's.

``python -m benchmarks.data [--quick] [--output JSON]``: on phantoms of BraTS's size, each
measurement in a process of its own, whose peak memory is that of the process. What needs nnU-Net
(``pip install 'egcnn[nnunet]'``) is skipped without it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import results

#: The paper's volumes and patches (section 3.2).
SHAPE, PATCH = (240, 240, 155), (160, 192, 128)
QUICK_SHAPE, QUICK_PATCH = (24, 24, 20), (16, 16, 16)


@dataclass(frozen=True)
class Setting:
    """What is measured, for all providers alike."""

    folder: Path
    cases: int = 4
    patches: int = 24
    workers: int = 2
    quick: bool = False

    @property
    def patch(self) -> tuple[int, int, int]:
        return QUICK_PATCH if self.quick else PATCH


@contextmanager
def timed(into: dict[str, float], name: str, per: int = 1) -> Iterator[None]:
    start = time.perf_counter()
    yield
    into[name] = (time.perf_counter() - start) / per


def _dataset(setting: Setting) -> Any:
    from egcnn.data import open_dataset

    return open_dataset(setting.folder / "data")


def _settings(setting: Setting) -> Any:
    from egcnn.data.transforms import PreprocessingSettings

    return PreprocessingSettings(setting.patch)


def _monai_preprocessing() -> Any:
    """From a dictionary of files to the same tensors, by MONAI alone."""
    from monai.transforms import (
        Compose,
        EnsureTyped,
        LoadImaged,
        NormalizeIntensityd,
        Orientationd,
        Spacingd,
    )

    from egcnn.data.transforms import RAS

    keys = ("image", "label")
    return Compose(
        [
            LoadImaged(keys, ensure_channel_first=True),
            Orientationd(keys, axcodes="RAS", labels=RAS),
            Spacingd(keys, pixdim=(1, 1, 1), mode=("bilinear", "nearest")),
            NormalizeIntensityd("image", nonzero=True, channel_wise=True),
            EnsureTyped(keys, dtype=(torch.float32, torch.uint8), track_meta=False),
        ]
    )


def _monai_files(setting: Setting) -> list[dict[str, Any]]:
    cases = _dataset(setting).cases
    return [{"image": [str(p) for p in case.images], "label": str(case.label)} for case in cases]


def _mapped(setting: Setting) -> Any:
    from egcnn.data.cache import MappedCases

    dataset = _dataset(setting)
    return MappedCases(setting.folder / "ours", dataset.cases, dataset, _settings(setting))


def _persistent(setting: Setting) -> Any:
    from monai.data import PersistentDataset

    files = _monai_files(setting)
    return PersistentDataset(files, _monai_preprocessing(), setting.folder / "monai")


def _in_memory(setting: Setting) -> Any:
    from monai.data import CacheDataset

    return CacheDataset(_monai_files(setting), _monai_preprocessing(), progress=False)


def _patches_a_second(cases: Any, setting: Setting) -> float:
    from torch.utils.data import DataLoader

    from egcnn.data.transforms import augmentation
    from egcnn.training.batches import SeededSampler, _Patches

    patches = _Patches(cases, augmentation(setting.patch))
    draws = _forever(SeededSampler(len(cases), seed=0, batch_size=1))
    order = list(islice(draws, setting.patches + 2))
    loader = iter(DataLoader(patches, batch_size=None, sampler=order, num_workers=setting.workers))
    next(loader), next(loader)  # the workers have started
    start = time.perf_counter()
    count = sum(1 for _ in loader)
    return count / (time.perf_counter() - start)


def _forever(epochs: Any) -> Iterator[Any]:
    while True:
        yield from epochs
        epochs.set_epoch(epochs.epoch + 1)


def read_ours(setting: Setting) -> dict[str, float]:
    from egcnn.data import read_image, read_label

    dataset = _dataset(setting)
    found: dict[str, float] = {}
    with timed(found, "seconds a case", setting.cases):
        for case in dataset.cases:
            read_image(case)
            read_label(case, dataset.regions)
    return found


def read_monai(setting: Setting) -> dict[str, float]:
    from monai.transforms import LoadImaged

    files, read = _monai_files(setting), LoadImaged(("image", "label"), ensure_channel_first=True)
    found: dict[str, float] = {}
    with timed(found, "seconds a case", setting.cases):
        for case in files:
            read(case)
    return found


def preprocess_ours(setting: Setting) -> dict[str, float]:
    found: dict[str, float] = {}
    with timed(found, "seconds a case", setting.cases):
        _mapped(setting)
    return found


def preprocess_monai(setting: Setting) -> dict[str, float]:
    found: dict[str, float] = {}
    with timed(found, "seconds a case", setting.cases):
        cases = _persistent(setting)
        for index in range(len(cases)):
            cases[index]
    return found


def patches_ours(setting: Setting) -> dict[str, float]:
    return {"patches a second": _patches_a_second(_mapped(setting), setting)}


def patches_persistent(setting: Setting) -> dict[str, float]:
    return {"patches a second": _patches_a_second(_persistent(setting), setting)}


def patches_in_memory(setting: Setting) -> dict[str, float]:
    return {"patches a second": _patches_a_second(_in_memory(setting), setting)}


@dataclass(frozen=True)
class _Augment:
    """Our augmentation for nnU-Net's loader."""

    ours: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]

    def __call__(self, image: torch.Tensor, segmentation: torch.Tensor) -> dict[str, torch.Tensor]:
        item = self.ours({"image": image, "label": segmentation})
        return {"image": item["image"], "segmentation": item["label"]}


def patches_nnunet(setting: Setting) -> dict[str, float]:
    """nnU-Net's files, loader and worker processes; our preprocessing and augmentation."""
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import (
        NonDetMultiThreadedAugmenter,
    )
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    from egcnn.data.transforms import augmentation

    folder = setting.folder / "nnunet"
    folder.mkdir(exist_ok=True)
    _save_for_nnunet(_mapped(setting), folder, setting.patch)
    augment = _Augment(augmentation(setting.patch))
    labels = LabelManager({"background": 0, "tumour": 1}, None)
    data = nnUNetDatasetBlosc2(str(folder))
    loader = nnUNetDataLoader(data, 1, setting.patch, setting.patch, labels, transforms=augment)
    batches = NonDetMultiThreadedAugmenter(
        loader, None, setting.workers, 2 * setting.workers, wait_time=0.002
    )
    next(batches), next(batches)  # the workers have started
    start = time.perf_counter()
    for _ in range(setting.patches):
        next(batches)
    seconds = time.perf_counter() - start
    batches._finish()
    return {"patches a second": setting.patches / seconds}


def _save_for_nnunet(cases: Any, folder: Path, patch: tuple[int, int, int]) -> None:
    """Write cases as nnU-Net's preprocessing does."""
    from nnunetv2.training.dataloading.nnunet_dataset import (
        comp_blosc2_params,
        nnUNetDatasetBlosc2,
    )

    for number in range(len(cases)):
        image = cases[number]["image"].numpy()
        label = cases[number]["label"].numpy().astype(np.int16)
        blocks, chunks = comp_blosc2_params(image.shape, patch, image.itemsize)
        blocks_seg, chunks_seg = comp_blosc2_params(label.shape, patch, label.itemsize)
        nnUNetDatasetBlosc2.save_case(
            np.ascontiguousarray(image),
            label,
            {"class_locations": {}},
            str(folder / f"case_{number}"),
            chunks=chunks,
            blocks=blocks,
            chunks_seg=chunks_seg,
            blocks_seg=blocks_seg,
        )


def _trained(setting: Setting) -> Any:
    from egcnn.checkpoint import Trained
    from egcnn.data import BRATS
    from egcnn.data.brats import MODALITIES
    from egcnn.nn import BackboneSettings, NetworkSettings, build_network

    torch.manual_seed(0)
    backbone = BackboneSettings(filters=4, blocks_down=(1, 1, 1), blocks_up=(1, 1))
    network = NetworkSettings(backbone)
    built = build_network(network, len(MODALITIES), len(BRATS)).eval()
    return Trained(built, network, _settings(setting), BRATS, MODALITIES)


def predict_ours(setting: Setting) -> dict[str, float]:
    from egcnn.inference import predict_case

    trained, case = _trained(setting), _dataset(setting).cases[0]
    found: dict[str, float] = {}
    with timed(found, "seconds"):
        predict_case(trained, case, precision="32-true", probabilities=False)
    return found


def predict_monai(setting: Setting) -> dict[str, float]:
    """The same windows; reads, prepares and returns to the input's grid by MONAI."""
    from monai.data import MetaTensor
    from monai.inferers import sliding_window_inference
    from monai.transforms import LoadImage, NormalizeIntensity, Orientation, Spacing

    from egcnn.data.transforms import RAS
    from egcnn.windows import window_size

    trained, case = _trained(setting), _dataset(setting).cases[0]
    found: dict[str, float] = {}
    with timed(found, "seconds"), torch.inference_mode():
        image = LoadImage(ensure_channel_first=True)([str(path) for path in case.images])
        turn, respace = Orientation("RAS", labels=RAS), Spacing((1, 1, 1))
        normalize = NormalizeIntensity(nonzero=True, channel_wise=True)
        prepared = normalize(respace(turn(image)))

        def predictor(window: torch.Tensor) -> torch.Tensor:
            output = trained.network(window.contiguous(memory_format=torch.channels_last_3d))
            return torch.cat([output.logits.sigmoid(), output.edge_logits.sigmoid()], 1)

        window = window_size(prepared.shape[1:], setting.patch, trained.settings.stride)
        outputs = sliding_window_inference(
            prepared.as_tensor()[None], window, 1, predictor, overlap=0.5, mode="gaussian"
        )
        whole = MetaTensor(outputs[0]).copy_meta_from(prepared)
        back = turn.inverse(respace.inverse(whole))
        assert back.shape[1:] == image.shape[1:]
    return found


def _masks(setting: Setting) -> tuple[Any, Any]:
    """A label map and the same one voxel further."""
    from egcnn.data import read_label

    dataset = _dataset(setting)
    label = read_label(dataset.cases[0], dataset.regions).as_tensor()[0]
    return label, label.roll(1, 0)


def evaluate_ours(setting: Setting) -> dict[str, float]:
    from egcnn.data import BRATS
    from egcnn.metrics import case_metrics

    truth, prediction = _masks(setting)
    found: dict[str, float] = {}
    with timed(found, "seconds a case"):
        case_metrics(prediction, truth, BRATS, (1, 1, 1))
    return found


def evaluate_monai(setting: Setting) -> dict[str, float]:
    """Dice, sensitivity and specificity, HD95 and surface Dice; no scores of edges."""
    from monai.metrics import (
        ConfusionMatrixMetric,
        DiceMetric,
        HausdorffDistanceMetric,
        SurfaceDiceMetric,
    )

    from egcnn.data import BRATS

    truth, prediction = (BRATS.masks(labels[None, None]) for labels in _masks(setting))
    metrics = (
        DiceMetric(),
        ConfusionMatrixMetric(metric_name=("sensitivity", "specificity")),
        HausdorffDistanceMetric(percentile=95),
        SurfaceDiceMetric([1.0] * len(BRATS), include_background=True),
    )
    found: dict[str, float] = {}
    with timed(found, "seconds a case"):
        for metric in metrics:
            metric(prediction, truth)
            metric.aggregate()
    return found


#: What is measured, who does it, and how. Patches follow preprocessing, whose files they read.
MEASUREMENTS: tuple[tuple[str, str, Callable[[Setting], dict[str, float]]], ...] = (
    ("reading", "egcnn", read_ours),
    ("reading", "MONAI LoadImage", read_monai),
    ("preprocessing", "egcnn --cache", preprocess_ours),
    ("preprocessing", "MONAI PersistentDataset", preprocess_monai),
    ("patches", "egcnn --cache", patches_ours),
    ("patches", "MONAI PersistentDataset", patches_persistent),
    ("patches", "MONAI CacheDataset", patches_in_memory),
    ("patches", "nnU-Net's loader", patches_nnunet),
    ("prediction", "egcnn predict", predict_ours),
    ("prediction", "MONAI sliding_window_inference", predict_monai),
    ("evaluation", "egcnn, edges scored too", evaluate_ours),
    ("evaluation", "MONAI metrics", evaluate_monai),
)


def _measured(work: Callable[[Any], dict[str, float]], setting: Any) -> dict[str, float]:
    found = work(setting)
    # What getrusage says begins with the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 2**20
    return {name: float(np.round(value, 4)) for name, value in found.items()} | {
        "peak GiB": round(peak, 2)
    }


def elsewhere(work: Callable[[Any], dict[str, float]], setting: Any) -> dict[str, float]:
    """Measure in a process of its own, and its peak memory in GiB."""
    # Not forked, which would begin with the memory of the runs before.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, work, setting).result()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny volumes: only that it runs")
    parser.add_argument("--output", type=Path, help="a JSON file of all rows")
    options = parser.parse_args(arguments)
    from egcnn.data.phantom import write_brats

    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(Path(folder), quick=options.quick)
        shape = QUICK_SHAPE if options.quick else SHAPE
        write_brats(setting.folder / "data", setting.cases, shape=shape, seed=0)
        rows = []
        print("| what | by | measured |\n|---|---|---|")
        for what, by, work in MEASUREMENTS:
            try:
                found = _measured(work, setting) if options.quick else elsewhere(work, setting)
            except ModuleNotFoundError as error:
                print(f"| {what} | {by} | skipped: needs {error.name} |", flush=True)
                continue
            rows.append({"what": what, "by": by, **found})
            shown = ", ".join(f"{value:g} {name}" for name, value in found.items())
            print(f"| {what} | {by} | {shown} |", flush=True)
    if options.output:
        stamp = results.stamp(torch.device("cpu"))
        described = asdict(setting) | {"folder": "", "shape": shape, "patch": setting.patch}
        options.output.write_text(json.dumps({**stamp, "setting": described, "rows": rows}))


if __name__ == "__main__":
    main()
