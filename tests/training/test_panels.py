"""Pictures of a held-out case that training writes for TensorBoard."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from egcnn.data import Dataset
from egcnn.nn import build_network
from egcnn.training import TrainingConfig, fit, plan
from egcnn.training.panels import MOST, TAG, Panels, _around


def tiny(dataset: Dataset, epochs: int, **settings: object) -> TrainingConfig:
    small = {
        "network.backbone.filters": 4,
        "network.backbone.blocks_down": (1, 1),
        "network.backbone.blocks_up": (1,),
        "preprocessing.patch": (16, 16, 16),
    }
    return plan(dataset).change({"epochs": epochs, **small, **settings})


def test_a_run_has_a_few_pictures(dataset: Dataset, tmp_path: Path) -> None:
    fit(tiny(dataset, 3), dataset, tmp_path, quiet=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    images = events.Reload().Images(TAG)
    assert [image.step for image in images] == [1, 2, 3]
    picture = Image.open(io.BytesIO(images[-1].encoded_image_string))
    # Six panels and two resolutions.
    assert picture.size[0] % 8 == 0
    assert all(len(image.encoded_image_string) < 200_000 for image in images)


def test_pictures_are_bounded_in_number(dataset: Dataset) -> None:
    for epochs in (1, 9, 10, 11, 300):
        every = Panels(tiny(dataset, epochs), dataset).every
        assert epochs // every <= MOST
        assert every <= max(1, epochs // 5)


def test_pictures_with_and_without_an_edge_stream(dataset: Dataset) -> None:
    item = {"image": torch.randn(4, 20, 18, 17), "label": torch.zeros(1, 20, 18, 17)}
    item["label"][:, 5:9, 5:9, 5:9] = 4
    item = {"image": item["image"], "label": item["label"].to(torch.uint8)}
    widths = []
    for edge in (False, True):
        config = tiny(dataset, 1, **{"network.edge": edge})
        network = build_network(config.network, 4, 3).eval()
        picture = Panels(config, dataset).draw(network, item)
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        widths.append(picture.shape[1])
    assert widths[1] == widths[0] * 8 / 5


def test_a_window_around_the_regions() -> None:
    inside = np.zeros((40, 10, 30), bool)
    inside[30:38, 2:4, 0] = True
    assert _around(inside, (16, 16, 8)) == (slice(24, 40), slice(0, 16), slice(0, 8))
    assert _around(inside & False, (16, 16, 8))[0] == slice(12, 28)
