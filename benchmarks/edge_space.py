"""Edge targets at a mask's own voxels against those at 1 mm, on KiTS 2019's masks.

``python -m benchmarks.edge_space MASKS``: a row a case and region, and means by slice thickness.
MASKS holds ``case_*/segmentation.nii.gz``. Training takes edges at 1 mm, and so does ``egcnn
evaluate`` (``egcnn.edges``); the columns of F1 are what exact edges of one space would score among
true edges of the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import scipy.ndimage
import torch
from nibabel.affines import voxel_sizes
from torch import Tensor

from egcnn import ops
from egcnn.data import KITS
from egcnn.data.nifti import affine
from egcnn.data.resampling import resample, resample_labels, respaced

SPACING = (1.0, 1.0, 1.0)
#: Voxels around the region that are kept.
MARGIN = 8
#: Upper limits in mm of the slice thickness of a row of the table of means.
GROUPS = (1.0, 3.0, 5.0)
COLUMNS = {
    "slice": "slice (mm)",
    "across_own": "shell across slices, own (mm)",
    "across_mm": "at 1 mm",
    "along_own": "shell in plane, own (mm)",
    "along_mm": "at 1 mm",
    "edges_own": "share of region that is edge, own",
    "edges_mm": "at 1 mm",
    "f1_to_mm": "F1, own to 1 mm",
    "f1_to_own": "F1, 1 mm to own",
    "without_own": "lesions without interior, own",
    "without_mm": "at 1 mm",
}


def edges(mask: Tensor) -> Tensor:
    """The Sobel edges of a mask ``(1, D, H, W)``."""
    return ops.sobel_edges(mask[None])[0]


def shell(mask: np.ndarray, edge: np.ndarray, axis: int) -> float:
    """The median number of edge voxels in a row along an axis, where it crosses the boundary."""
    inside, shell_ = (np.moveaxis(volume, axis, -1) for volume in (mask, edge))
    padded = np.pad(shell_, [(0, 0), (0, 0), (1, 1)]).astype(np.int8)
    steps = np.diff(padded)
    run = np.argwhere(steps == -1)[:, 2] - np.argwhere(steps == 1)[:, 2]
    lengths = np.zeros(shell_.shape, np.int64)
    lengths[shell_] = np.repeat(run, run)
    crossing = inside[..., 1:] != inside[..., :-1]
    return float(np.median(lengths[..., 1:][crossing]))


def f1(found: Tensor, expected: Tensor) -> float:
    """F1 of binary volumes."""
    both, total = (found & expected).sum(), found.sum() + expected.sum()
    return float(2 * both / total)


def without_interior(mask: np.ndarray, edge: np.ndarray) -> tuple[int, int]:
    """How many connected parts of a mask have only edge voxels, and how many there are."""
    parts, count = scipy.ndimage.label(mask)
    kept = np.unique(parts[mask & ~edge])
    return count - len(kept[kept > 0]), count


def measure(labels: np.ndarray, matrix: np.ndarray, values: tuple[int, ...]) -> dict[str, float]:
    """All columns of one region in one mask."""
    box = scipy.ndimage.find_objects(np.isin(labels, values).astype(np.uint8))[0]
    padded = tuple(
        slice(max(0, side.start - MARGIN), min(side.stop + MARGIN, size))
        for side, size in zip(box, labels.shape, strict=True)
    )
    own_labels = torch.from_numpy(np.ascontiguousarray(labels[padded]).astype(np.uint8))[None]
    shape, target = respaced(own_labels.shape[1:], matrix, SPACING)
    to_mm = np.linalg.solve(matrix, target)
    mm_labels = resample_labels(own_labels, to_mm, shape, KITS.values)
    own, mm = (torch.isin(volume, torch.tensor(values)) for volume in (own_labels, mm_labels))
    own_edges, mm_edges = edges(own).bool(), edges(mm).bool()
    # As probabilities are taken to another grid.
    there = resample(own_edges.float(), to_mm, shape) >= 0.5
    back = resample(mm_edges.float(), np.linalg.inv(to_mm), own.shape[1:]) >= 0.5
    size = voxel_sizes(matrix)
    slices = int(size.argmax())
    planes = [axis for axis in range(3) if axis != slices]
    found = {"slice": float(size[slices])}
    for name, mask, edge, voxel in (
        ("own", own, own_edges, size),
        ("mm", mm, mm_edges, np.ones(3)),
    ):
        inside, on = mask[0].numpy(), edge[0].numpy()
        along = [shell(inside, on, axis) * float(voxel[axis]) for axis in planes]
        found |= {
            f"across_{name}": shell(inside, on, slices) * float(voxel[slices]),
            f"along_{name}": float(np.mean(along)),
            f"edges_{name}": float((on & inside).sum() / inside.sum()),
        }
        found[f"without_{name}"], found["parts"] = without_interior(inside, on)
    return found | {"f1_to_mm": f1(there, mm_edges), "f1_to_own": f1(back, own_edges)}


def cases(root: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """A region's name and columns, for every mask."""
    for path in sorted(root.rglob("case_*/segmentation.nii.gz")):
        volume = nib.load(path)
        labels, matrix = np.asanyarray(volume.dataobj), affine(volume)
        for name, values in zip(KITS.names, KITS.labels, strict=True):
            if np.isin(labels, values).any():
                row = measure(labels, matrix, values)
                print(f"| {path.parent.name} | {name} | {_row(row)} |", flush=True)
                yield name, row


def _row(row: dict[str, Any]) -> str:
    return " | ".join(f"{row[name]:.2f}" for name in COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("masks", type=Path, help="folder of KiTS 2019's segmentations")
    options = parser.parse_args()
    head = f"| {' | '.join(COLUMNS.values())} |\n|---|---|{'--:|' * len(COLUMNS)}"
    print(f"| case | region {head}")
    rows = list(cases(options.masks))
    print(f"\n| region | cases {head}")
    for name in KITS.names:
        lowest = 0.0
        for highest in GROUPS:
            group = [
                row for other, row in rows if other == name and lowest < row["slice"] <= highest
            ]
            lowest = highest
            if not group:
                continue
            mean = {key: float(np.mean([row[key] for row in group])) for key in group[0]}
            # Of lesions, the number.
            mean |= {key: sum(row[key] for row in group) for key in mean if "without" in key}
            print(f"| {name} | {len(group)} | {_row(mean)} |")


if __name__ == "__main__":
    main()
