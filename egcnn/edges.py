"""Sobel edges of label maps, on their own voxels or on those of a network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from numpy.typing import NDArray
from torch import Tensor

from egcnn import ops
from egcnn.data.case import Spacing, label_dtype
from egcnn.data.resampling import resampled
from egcnn.data.transforms import respacing
from egcnn.regions import Regions


@dataclass(frozen=True)
class EdgeGrid:
    """A case's grid, and the voxel size at which the edges of its label maps are taken.

    A shell of edge voxels is as thick as its voxels. An edge head finds the shell that it was
    trained on, which is that of the network's voxel size; so must be the one that it is scored on.

    Args:
        affine: ``(4, 4)``, from the case's voxels to mm.
        spacing: the network's voxel size in mm along the RAS axes; None for the case's own voxels.
    """

    affine: NDArray[np.float64]
    spacing: Spacing | None


def label_edges(
    labels: Tensor, regions: Regions, grid: EdgeGrid | None = None, *, union: bool = False
) -> Tensor:
    """The Sobel edges of the reported regions of label maps (section 2.1 of the paper).

    With a grid, the label map is resampled as for training, and its edges are brought back as a
    predicted edge probability is, of which those of at least 0.5 are edges. Where the voxels have
    that size already, this changes nothing.

    Args:
        labels: integer label maps ``(B, 1, D, H, W)``; B is 1 with a grid.
        regions: the regions.
        grid: where edges are taken; None takes them on the label maps' own voxels.
        union: return the edges of any region.

    Returns:
        ``(B, F, D, H, W)`` for the F reported regions or ``(B, 1, D, H, W)``, uint8, 0 or 1, on the
        label maps' own voxels.

    Raises:
        InputError: the resampled label map does not fit into memory.
    """
    if grid is None or grid.spacing is None:
        return _edges(labels, regions, union)
    array = labels[0].cpu().numpy().astype(label_dtype(regions))
    label = MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(grid.affine.copy()))
    prepared = Compose(respacing(grid.spacing, regions))({"label": label})["label"]
    edges = _edges(prepared.as_tensor()[None], regions, union)[0].float()
    matrix = np.linalg.solve(prepared.affine.numpy(), grid.affine)
    parts = [part >= 0.5 for part in resampled(edges, matrix, labels.shape[2:])]
    return torch.cat(parts, 1)[None].view(torch.uint8)


def _edges(labels: Tensor, regions: Regions, union: bool) -> Tensor:
    edges = regions.reported(ops.sobel_edges(regions.masks(labels)))
    return edges.amax(1, keepdim=True) if union else edges
