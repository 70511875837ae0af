"""Pictures of a held-out case for TensorBoard, every few epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from egcnn.data.case import Dataset
from egcnn.data.layouts import shown_channel, shown_colours
from egcnn.panels import (
    DISAGREEMENT,
    PLANES,
    attention_title,
    disagreement,
    edge_codes,
    edge_colours,
    grey,
    heat_colours,
    painted,
    region_codes,
    region_colours,
    true_edges,
)
from egcnn.training.config import TrainingConfig
from egcnn.windows import attention, segment

#: A run draws so many pictures at most, of about 100 KB each.
MOST = 10
#: Tag of the pictures in TensorBoard.
TAG = "slices of a held-out case"
# Pixels along the longer side of a slice, and above it for its title.
_SIDE = 144
_TITLE = 14


class Panels(Callback):
    """Draws slices of the first held-out case in three planes: truth, prediction, edges, attention.

    At most a window of the training's patch is drawn, around the regions, so the cost is that of a
    few steps without gradient.

    Args:
        config: the run's hyperparameters.
        dataset: defines regions, modalities and colours.
    """

    def __init__(self, config: TrainingConfig, dataset: Dataset) -> None:
        self.config = config
        self.dataset = dataset
        self.every = math.ceil(config.epochs / MOST)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first case of the epochs whose turn it is."""
        epoch = trainer.current_epoch + 1
        due = epoch % self.every == 0 or epoch == self.config.epochs
        if batch_idx or not due or not trainer.is_global_zero or trainer.logger is None:
            return
        with trainer.precision_plugin.val_step_context():
            picture = self.draw(pl_module.network, batch)  # type: ignore[arg-type]
        writer: Any = trainer.logger.experiment  # type: ignore[attr-defined]
        writer.add_image(TAG, picture, epoch, dataformats="HWC")

    @torch.no_grad()
    def draw(self, network: torch.nn.Module, item: Mapping[str, Tensor]) -> NDArray[np.uint8]:
        """The picture, ``(height, width, 3)``; rows are the axial, coronal and sagittal plane.

        Args:
            network: in evaluation mode.
            item: a preprocessed case's ``"image"`` ``(M, D, H, W)`` and ``"label"``.
        """
        regions, config = self.dataset.regions, self.config
        inside = region_codes(item["label"][0].cpu().numpy(), regions) > 0
        patch = config.preprocessing.patch
        part = (slice(None), *_around(inside, patch))
        image, label = (item[name][part].as_subclass(Tensor)[None] for name in ("image", "label"))
        stride, overlap = config.network.stride, config.overlap
        probabilities, edges = segment(
            network, image, regions, patch, stride=stride, overlap=overlap
        )
        truth = label[0, 0].cpu().numpy()
        found = regions.decode(probabilities)[0, 0].cpu().numpy()
        shades = grey(image[0, shown_channel(self.dataset)].cpu().numpy())
        colours = region_colours(regions, shown_colours(self.dataset))
        black = np.zeros_like(shades)
        volumes = {
            "image": painted(shades, black, colours),
            "truth": painted(shades, region_codes(truth, regions), colours),
            "prediction": painted(shades, region_codes(found, regions), colours),
            "disagreement": painted(
                shades, disagreement(truth, found, regions), list(DISAGREEMENT.values())
            ),
            "true edges": _coloured(edge_codes(true_edges(truth, regions)), edge_colours(colours)),
        }
        if edges is not None:
            likely = regions.reported(edges)[0].float().cpu().numpy()
            table = edge_colours(colours, len(likely))
            volumes["predicted edges"] = _coloured(edge_codes(likely), table)
            maps, coarseness = attention(network, image, patch, stride=stride, overlap=overlap)
            for volume, factor in zip(maps[0].float().cpu().numpy(), coarseness, strict=True):
                volumes[attention_title(factor)] = heat_colours()[grey(volume)]
        spacing = config.preprocessing.spacing or (1.0, 1.0, 1.0)
        return _sheet(volumes, inside[part[1:]], spacing)


def _around(inside: NDArray[np.bool_], patch: Sequence[int]) -> tuple[slice, slice, slice]:
    """A box of at most the patch's size around the middle of a mask, or of the volume."""
    slices = []
    for axis, (size, width) in enumerate(zip(inside.shape, patch, strict=True)):
        found = np.flatnonzero(inside.any(tuple(other for other in range(3) if other != axis)))
        middle = int(found[0] + found[-1]) // 2 if len(found) else size // 2
        start = max(0, min(size - width, middle - width // 2))
        slices.append(slice(start, start + width))
    return slices[0], slices[1], slices[2]


def _coloured(codes: NDArray[np.uint8], table: Sequence[tuple[int, int, int]]) -> NDArray[np.uint8]:
    return np.array([(0, 0, 0), *table], np.uint8)[codes]


def _sheet(
    volumes: Mapping[str, NDArray[np.uint8]],
    inside: NDArray[np.bool_],
    spacing: Sequence[float],
) -> NDArray[np.uint8]:
    """Slices of volumes ``(D, H, W, 3)``, a column for each, where a mask is largest."""
    lengths = [size * step for size, step in zip(inside.shape, spacing, strict=True)]
    sizes = [max(1, round(length / max(lengths) * _SIDE)) for length in lengths]
    width = max(sizes[0], sizes[1], 90) + 4
    heights = [sizes[down] + _TITLE for _, down, _ in PLANES.values()]
    sheet = Image.new("RGB", (width * len(volumes), sum(heights)))
    pen = ImageDraw.Draw(sheet)
    for column, (title, volume) in enumerate(volumes.items()):
        top = 0
        for (across, down, fixed), height in zip(PLANES.values(), heights, strict=True):
            area = np.count_nonzero(inside, axis=(across, down))
            place = int(area.argmax()) if area.any() else inside.shape[fixed] // 2
            # The patient's right, or the front, on the left; the front, or the top, above.
            plane = np.moveaxis(volume, (down, across, fixed), (0, 1, 2))[::-1, ::-1, place]
            picture = Image.fromarray(np.ascontiguousarray(plane))
            shown = picture.resize((sizes[across], sizes[down]), Image.Resampling.NEAREST)
            pen.text((column * width, top), title, fill="white")
            sheet.paste(shown, (column * width, top + _TITLE))
            top += height
    return np.asarray(sheet)
