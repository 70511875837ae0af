"""Sliding-window prediction, written on each input's own grid."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.utils import sliding_window_inference
from monai.transforms.spatial.array import Orientation, SpatialResample
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray
from torch import Tensor, nn

from egcnn.checkpoint import Trained
from egcnn.checks import DEFAULT_OVERLAP, check_memory, check_overlap, check_precision
from egcnn.data.case import Case, read_image
from egcnn.data.nifti import Header, write_volume
from egcnn.data.transforms import RAS, preprocessing, resampling_bytes
from egcnn.errors import InputError
from egcnn.files import digest
from egcnn.machine import prepare_cpu, versions
from egcnn.regions import Regions

#: Suffix of the names of edge probability files, before ``.nii.gz``.
EDGES = "_edges"
#: Above this many bytes of output, windows are gathered in host memory.
_LARGE_OUTPUT = 2 << 30


@dataclass(frozen=True)
class Prediction:
    """A segmentation on the grid of the input.

    Args:
        labels: label map ``(D, H, W)``, int16.
        probabilities: per region, ``(R, D, H, W)`` float32.
        edges: probability that a voxel is an edge, ``(F, D, H, W)`` float32 for the F reported
            regions, or ``(1, D, H, W)`` for their union (``edges="union"``); ``None`` for a
            network without edge stream.
        affine: the input's ``(4, 4)`` matrix from voxels to mm.
        header: header of the input file, whose geometry the written files copy; None for an image
            that was not read from a file.
    """

    labels: NDArray[np.int16]
    probabilities: NDArray[np.float32]
    edges: NDArray[np.float32] | None
    affine: NDArray[np.float64]
    header: Header | None = None


def choose_device(name: str = "auto") -> torch.device:
    """Turn ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"`` into an available device.

    Raises:
        InputError: an unknown name, or a device that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device: {name!r} is unknown; expected auto, cpu, cuda or cuda:NUMBER")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(f"device: {name!r} is not available; torch sees {count} CUDA devices here")
    return device


def default_precision(device: torch.device) -> str:
    """``"bf16-mixed"`` where the device multiplies bfloat16 in hardware, else ``"32-true"``."""
    if device.type == "cuda":
        return (
            "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
        )
    # Neither check is public yet; without them assume no hardware support.
    checks = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", None),
        getattr(torch.cpu, "_is_amx_tile_supported", None),
    )
    return "bf16-mixed" if any(check() for check in checks if check is not None) else "32-true"


def window_size(shape: Sequence[int], patch: Sequence[int], stride: int) -> tuple[int, ...]:
    """The sliding window for a volume: the training patch, or the whole volume if little larger.

    One window over a volume of at most twice the patch costs less than the overlapping windows
    that would cover it, and has no seams.

    Args:
        shape: shape of the volume.
        patch: the training patch.
        stride: see ``egcnn.nn.backbones.BackboneEntry``.
    """
    whole = tuple(-(-size // stride) * stride for size in shape)
    return whole if np.prod(whole) <= 2 * np.prod(patch) else tuple(patch)


@torch.no_grad()
def segment(
    network: nn.Module,
    image: Tensor,
    regions: Regions,
    patch: Sequence[int],
    *,
    stride: int,
    overlap: float = DEFAULT_OVERLAP,
) -> tuple[Tensor, Tensor | None]:
    """Slide a window over preprocessed volumes and blend overlaps with Gaussian weights.

    Args:
        network: returns logits ``(B, R, ...)`` or a ``Segmentation``.
        image: ``(B, M, D, H, W)``.
        regions: how logits become probabilities.
        patch: the window's size, see :func:`window_size`.
        stride: see :func:`window_size`.
        overlap: overlap of neighbouring windows as a fraction of their size.

    Returns:
        probabilities ``(B, R, D, H, W)``, and edge probabilities of the same shape, or
        ``(B, 1, D, H, W)`` for ``edges="union"``, or ``None``; float32.
    """
    has_edges = False

    def predictor(window: Tensor) -> Tensor:
        nonlocal has_edges
        output = network(window.contiguous(memory_format=torch.channels_last_3d))
        if isinstance(output, Tensor):
            return regions.probabilities(output.float())
        parts = [regions.probabilities(output.logits.float())]
        if output.edge_logits is not None:
            has_edges = True
            parts.append(output.edge_logits.float().sigmoid())
        return torch.cat(parts, 1)

    gathered = 2 * len(regions) * image[:, 0].numel() * 4
    outputs = sliding_window_inference(
        image,
        window_size(image.shape[2:], patch, stride),
        sw_batch_size=1,
        predictor=predictor,
        overlap=overlap,
        mode="gaussian",
        sw_device=image.device,
        device="cpu" if gathered > _LARGE_OUTPUT else image.device,
    )
    assert isinstance(outputs, Tensor)
    # Rounding can push weighted means of probabilities outside [0, 1].
    outputs = outputs.clamp_(0, 1)
    count = len(regions)
    return outputs[:, :count], outputs[:, count:] if has_edges else None


def predict_case(
    trained: Trained,
    image: Case | Path | Sequence[Path] | MetaTensor,
    *,
    overlap: float = DEFAULT_OVERLAP,
    device: torch.device | str | None = None,
    precision: str | None = None,
) -> Prediction:
    """Segment one case.

    Args:
        trained: the network and how it was trained.
        image: the case, its files in the order of the modalities, or the image ``(M, D, H, W)`` as
            :func:`egcnn.data.read_image` returns it.
        overlap: overlap of neighbouring windows as a fraction of their size, in [0, 1).
        device: where to compute, by default the network's device. The network is moved there.
        precision: one of :data:`egcnn.checks.PRECISIONS`; chosen for the device by default.

    Raises:
        InputError: the image is unusable, or its number of modalities is not the network's.
    """
    prepare_cpu()
    check_overlap(overlap)
    expected = len(trained.modalities)
    if isinstance(image, MetaTensor):
        if image.ndim != 4 or image.shape[0] != expected:
            raise InputError(
                f"image: shape {tuple(image.shape)}; expected (M, D, H, W) with M = {expected} "
                f"({', '.join(trained.modalities)})"
            )
    else:
        image = read_image(image, expected)
    device = torch.device(device or next(trained.network.parameters()).device)
    trained.network.to(device).eval()
    affine, shape, header = image.affine.clone(), tuple(image.shape[1:]), image.meta.get("header")

    prepare = preprocessing(trained.preprocessing, trained.regions)
    prepared = prepare({"image": image})["image"]
    with torch.inference_mode(), autocast(device, precision or default_precision(device)):
        probabilities, edges = segment(
            trained.network,
            prepared.as_tensor()[None].to(device),
            trained.regions,
            trained.preprocessing.patch,
            stride=trained.settings.stride,
            overlap=overlap,
        )

    def to_input_grid(volume: Tensor) -> Tensor:
        return to_grid(volume[0].float().cpu(), prepared.affine, affine, shape)

    resampled = to_input_grid(probabilities)
    if edges is not None:
        # Rounding can push interpolated probabilities outside [0, 1].
        edges = trained.regions.reported(to_input_grid(edges).clamp(0, 1)[None])[0]
    return Prediction(
        labels=trained.regions.decode(resampled[None])[0, 0].numpy().astype(np.int16, copy=False),
        probabilities=resampled.numpy(),
        edges=None if edges is None else edges.numpy(),
        affine=affine.numpy().astype(np.float64),
        header=header,
    )


def predict_cases(
    trained: Trained,
    cases: Iterable[Case],
    folder: str | Path,
    *,
    edges: bool = False,
    overlap: float = DEFAULT_OVERLAP,
    precision: str | None = None,
) -> Iterator[tuple[Case, Prediction, Path]]:
    """Segment cases one after the other, and write each prediction at once.

    Args:
        trained: the network and how it was trained.
        cases: cases to segment.
        folder: see :func:`write_prediction`.
        edges: see :func:`write_prediction`.
        overlap: see :func:`predict_case`.
        precision: see :func:`predict_case`.

    Yields:
        the case, its prediction and the path of its label map.

    Raises:
        InputError: a prediction would be written over a file of a case; before any is made.
    """
    cases = list(cases)
    inputs = {_place(file) for case in cases for file in (*case.images, case.label) if file}
    for case in cases:
        for path in _output_paths(folder, case.name):
            if _place(path) in inputs:
                raise InputError(
                    f"{path}: is an input, and the prediction of {case.name} would replace it; "
                    "expected another output folder"
                )
    for case in cases:
        prediction = predict_case(trained, case, overlap=overlap, precision=precision)
        made = {"overlap": overlap, "precision": precision or "chosen for the device"}
        note = {**_origin(trained), "inputs": digest(case.images), **made}
        path = write_prediction(prediction, folder, case.name, edges=edges, note=note)
        yield case, prediction, path


def _origin(trained: Trained) -> dict[str, Any]:
    """What a prediction says of the network that made it."""
    provenance = trained.provenance
    run = provenance.get("run", {})
    return {
        "checkpoint": provenance.get("checkpoint"),
        "steps": provenance.get("steps"),
        "data": run.get("data", {}).get("sha256"),
        "config": run.get("config"),
        "trained": provenance.get("versions"),
        "versions": versions(),
    }


def _place(path: Path) -> Path:
    """The folder's entry that would be replaced; of a symbolic link, the link itself."""
    return path.parent.resolve() / path.name


def _output_paths(folder: str | Path, name: str) -> tuple[Path, Path]:
    """Of the label map and of the edge probabilities."""
    return Path(folder) / f"{name}.nii.gz", Path(folder) / f"{name}{EDGES}.nii.gz"


def write_prediction(
    prediction: Prediction,
    folder: str | Path,
    name: str,
    *,
    edges: bool = False,
    note: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``NAME.nii.gz``, the label map, on the input's own grid.

    Args:
        prediction: a prediction of :func:`predict_case`.
        folder: created if missing.
        name: name of the case.
        edges: write ``NAME_edges.nii.gz`` too, the edge probabilities ``(D, H, W, F)``, or
            ``(D, H, W)`` where there is one channel.
        note: where the prediction comes from; see :func:`egcnn.data.nifti.write_volume`.

    Returns:
        the label map's path.
    """
    path, edges_path = _output_paths(folder, name)
    write_volume(prediction.labels, prediction.affine, path, prediction.header, note)
    if edges and prediction.edges is not None:
        volumes = prediction.edges
        channels = volumes[0] if len(volumes) == 1 else np.moveaxis(volumes, 0, 3)
        write_volume(channels, prediction.affine, edges_path, prediction.header, note)
    else:
        # An earlier prediction's edges would be mistaken for this one's.
        edges_path.unlink(missing_ok=True)
    return path


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The autocast context for a precision.

    Raises:
        InputError: the name is not one of :data:`egcnn.checks.PRECISIONS`.
    """
    check_precision(precision)
    if precision == "32-true":
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float16
    return torch.autocast(device.type, dtype)


def to_grid(volume: Tensor, source: Tensor, target: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Resample ``(C, D, H, W)`` from the grid of one affine to that of another.

    Permuted and flipped axes are copied exactly; other grids are interpolated trilinearly, and
    voxels outside the source take the nearest value.
    """
    turned = MetaTensor(volume, affine=source)
    codes = "".join(aff2axcodes(target.numpy()))
    turned = Orientation(axcodes=codes, labels=RAS)(turned)
    if tuple(turned.shape[1:]) == shape and torch.allclose(turned.affine, target, atol=1e-4):
        return turned.as_tensor()
    check_memory(f"resampling to shape {shape}", resampling_bytes(len(volume), shape))
    resample = SpatialResample(
        mode="bilinear", padding_mode="border", align_corners=False, dtype=torch.float32
    )
    moved = resample(turned, dst_affine=target, spatial_size=shape)
    assert isinstance(moved, MetaTensor)
    return moved.as_tensor()
