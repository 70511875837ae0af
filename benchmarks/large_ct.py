"""Peak memory and time of the prediction of a whole-body CT, beside the network's own.

``python -m benchmarks.large_ct [--slices 1059]``: paints a CT of 512x512 slices, 0.98x0.98x1 mm,
stored slice first as KiTS 2019's, and predicts it in a process of its own, as ``egcnn predict
--edges --probabilities`` does, by a network of one 1x1x1 convolution.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.data import elsewhere

#: The largest patch of KiTS (section 3.2).
PATCH = (176, 176, 176)
AFFINE = np.array([[0, 0, -0.98, 250], [0, -0.98, 0, 250], [-1.0, 0, 0, 500], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Setting:
    """The CT ``folder/ct.nii.gz`` and the prediction's overlap of windows."""

    folder: Path
    overlap: float

    @property
    def image(self) -> Path:
        return self.folder / "ct.nii.gz"


class Pointwise(nn.Module):
    """A network of one convolution: all memory is the prediction's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Conv3d(1, 4, 1)

    def forward(self, image: Tensor) -> Any:
        """Compute the logits of two regions and of their edges."""
        from egcnn.nn import Segmentation

        logits, edges = self.head(image).split(2, 1)
        return Segmentation(logits, edges)


def paint(path: Path, slices: int, side: int) -> None:
    """Write a CT of a cylinder of water in air, with noise in every fifth slice."""
    from egcnn.data import write_volume

    across = np.linspace(-1, 1, side)
    plane = np.where(np.hypot(*np.meshgrid(across, across)) < 0.8, 0, -1000).astype(np.int16)
    volume = np.repeat(plane[None], slices, 0)
    volume[::5] += np.random.default_rng(0).integers(-200, 200, plane.shape, dtype=np.int16)
    write_volume(volume, AFFINE, path)


def predict(setting: Setting) -> dict[str, float]:
    from egcnn.checkpoint import Trained
    from egcnn.data import KITS, Case
    from egcnn.data.transforms import PreprocessingSettings
    from egcnn.inference import predict_cases
    from egcnn.nn import NetworkSettings

    preprocessing = PreprocessingSettings(PATCH, (1.0, 1.0, 1.0), "ct")
    trained = Trained(Pointwise(), NetworkSettings(), preprocessing, KITS, ("CT",))
    start = time.perf_counter()
    for _ in predict_cases(
        trained,
        [Case("ct", (setting.image,))],
        setting.folder / "predicted",
        edges=True,
        probabilities=True,
        overlap=setting.overlap,
        precision="32-true",
    ):
        pass
    return {"seconds": time.perf_counter() - start}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=1059)
    parser.add_argument("--side", type=int, default=512, help="voxels of a slice's side")
    parser.add_argument("--overlap", type=float, default=0.5, help="of neighbouring windows")
    parser.add_argument("--folder", type=Path, help="where the files stay; by default they go")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        setting = Setting(options.folder or Path(temporary), options.overlap)
        paint(setting.image, options.slices, options.side)
        found = elsewhere(predict, setting)
    print("| CT | peak GiB | seconds |\n|---|--:|--:|")
    size = f"{options.slices}x{options.side}x{options.side}"
    print(f"| {size} | {found['peak GiB']} | {found['seconds']:.0f} |")


if __name__ == "__main__":
    main()
