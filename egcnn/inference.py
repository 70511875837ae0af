"""Prediction of whole cases, written on each input's own grid."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from egcnn.checkpoint import Trained
from egcnn.checks import DEFAULT_OVERLAP, check_memory, check_overlap, check_precision
from egcnn.data.case import Case, read_image
from egcnn.data.inspection import check_images
from egcnn.data.resampling import resample, resampled, resampling_bytes
from egcnn.data.transforms import preprocessing
from egcnn.errors import InputError
from egcnn.files import digest
from egcnn.machine import prepare_cpu, versions
from egcnn.predictions import (
    EDGES,
    PROBABILITIES,
    Prediction,
    noted_spacing,
    output_paths,
    write_prediction,
)
from egcnn.regions import Regions
from egcnn.typed import entry, typed
from egcnn.windows import Progress, segment

__all__ = [
    "EDGES",
    "PROBABILITIES",
    "Prediction",
    "autocast",
    "choose_device",
    "default_precision",
    "noted_spacing",
    "predict_case",
    "predict_cases",
    "training_flips",
    "write_prediction",
]


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
        without = "" if torch.version.cuda else f" and is built without CUDA ({torch.__version__})"
        known = f"auto, cpu or cuda:0 to cuda:{count - 1}" if count else "auto or cpu"
        raise InputError(
            f"device: {name!r} is not available; torch sees {count} CUDA devices here{without}; "
            f"expected {known}"
        )
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


def training_flips(trained: Trained) -> tuple[int, ...]:
    """The axes along which a network's training patches were mirrored.

    Raises:
        InputError: its checkpoint does not say.
    """
    try:
        axes = trained.provenance["run"]["config"]["augmentation"]["flip_axes"]
        return tuple(sorted(set(typed("flip_axes", axes, tuple[int, ...]))))
    except (KeyError, TypeError, InputError):
        raise InputError(
            "flips: the checkpoint does not say along which axes its training patches were "
            "mirrored; expected one that 'egcnn train' wrote"
        ) from None


def _members(trained: Trained | Sequence[Trained]) -> list[Trained]:
    """The networks of an ensemble.

    Raises:
        InputError: there is none, or they cannot be averaged.
    """
    members = [trained] if isinstance(trained, Trained) else list(trained)
    if not members:
        raise InputError("checkpoints: none; expected at least one")
    for other in members[1:]:
        for name, one, another in (
            ("modalities", members[0].modalities, other.modalities),
            ("regions", members[0].regions, other.regions),
            ("preprocessing", members[0].preprocessing, other.preprocessing),
            ("edge stream", members[0].settings.edge, other.settings.edge),
        ):
            if one != another:
                raise InputError(
                    f"checkpoints: {name} {one} and {another}; expected the same in all, whose "
                    "probabilities are averaged"
                )
    return members


def _resolved(
    trained: Trained, device: torch.device | str | None, precision: str | None
) -> tuple[torch.device, str]:
    """Where and in which precision to compute: by default on the network's device, as suits it."""
    device = torch.device(device or next(trained.network.parameters()).device)
    return device, precision or default_precision(device)


def predict_case(
    trained: Trained | Sequence[Trained],
    image: Case | Path | Sequence[Path] | MetaTensor,
    *,
    overlap: float = DEFAULT_OVERLAP,
    flips: Sequence[int] = (),
    device: torch.device | str | None = None,
    precision: str | None = None,
    probabilities: bool = True,
    progress: Progress | None = None,
) -> Prediction:
    """Segment one case.

    Args:
        trained: the network and how it was trained; of several, the probabilities are averaged.
        image: the case, its files in the order of the modalities, or the image ``(M, D, H, W)`` as
            :func:`egcnn.data.read_image` returns it.
        overlap: overlap of neighbouring windows as a fraction of their size, in [0, 1).
        flips: axes to mirror, see :func:`segment`; those of the training are
            :func:`training_flips`.
        device: where to compute, by default the network's device. The network is moved there.
        precision: one of :data:`egcnn.checks.PRECISIONS`; chosen for the device by default.
        probabilities: return the regions' probabilities; without them, only a slab is in memory.
        progress: called after each window with the number of windows that are done, and of all.

    Raises:
        InputError: the image is unusable, its number of modalities is not the network's, the
            network's output is NaN, or several networks differ in modalities, regions,
            preprocessing or having an edge stream.
    """
    prepare_cpu()
    check_overlap(overlap)
    if not set(flips) <= {0, 1, 2}:
        raise InputError(f"flips: {tuple(flips)}; expected some of 0, 1, 2")
    members = _members(trained)
    first = members[0]
    volume = _volume(image, first.modalities)
    device, precision = _resolved(first, device, precision)
    for member in members:
        member.network.to(device).eval()
    affine, shape = volume.affine.numpy().copy(), volume.shape[1:]
    header = volume.meta.get("header")
    name = volume.meta.get("filename_or_obj", "image")
    channels = len(first.regions) * (2 if probabilities else 1)
    check_memory(f"a prediction of shape {tuple(shape)}", resampling_bytes(channels, shape))

    prepared = preprocessing(first.preprocessing, first.regions)({"image": volume})["image"]
    del image, volume  # a CT takes a gigabyte
    source = prepared.affine.numpy()
    with torch.inference_mode(), autocast(device, precision):
        found, edges = segment(
            [member.network for member in members],
            prepared.as_tensor()[None].to(device),
            first.regions,
            first.preprocessing.patch,
            stride=max(member.settings.stride for member in members),
            overlap=overlap,
            flips=flips,
            progress=progress,
        )
    if not found.isfinite().all():
        raise InputError(
            f"{name}: the network's output is NaN; expected finite logits, which precision 32-true "
            "may give"
        )
    del prepared

    matrix = np.linalg.solve(source, affine)
    labels, kept = _decoded(found[0], first.regions, matrix, shape, probabilities)
    if edges is not None:
        edges = first.regions.reported(edges)[0].float().cpu()
        # Rounding can push interpolated probabilities outside [0, 1].
        edges = resample(edges, matrix, shape).clamp_(0, 1)
    return Prediction(
        labels, kept, None if edges is None else edges.numpy(), affine.astype(np.float64), header
    )


def _volume(
    image: Case | Path | Sequence[Path] | MetaTensor, modalities: Sequence[str]
) -> MetaTensor:
    """The image of a case, with a channel for each modality."""
    expected = len(modalities)
    if not isinstance(image, MetaTensor):
        return read_image(image, expected)
    if image.ndim != 4 or image.shape[0] != expected:
        raise InputError(
            f"image: shape {tuple(image.shape)}; expected (M, D, H, W) with M = {expected} "
            f"({', '.join(modalities)})"
        )
    return image


def _decoded(
    probabilities: Tensor,
    regions: Regions,
    matrix: NDArray[np.float64],
    shape: Sequence[int],
    keep: bool,
) -> tuple[NDArray[np.int16], NDArray[np.float32] | None]:
    """Resample probabilities ``(R, ...)`` slab by slab and decode each slab, to save memory.

    Returns:
        the label map, and the resampled probabilities if they are to be kept.
    """
    labels = np.empty(shape, np.int16)
    kept = np.empty((len(regions), *shape), np.float32) if keep else None
    start = 0
    for part in resampled(probabilities.float().cpu(), matrix, shape):
        planes = slice(start, start := start + part.shape[1])
        labels[planes] = regions.decode(part[None])[0, 0]
        if kept is not None:
            kept[:, planes] = part
    return labels, kept


def predict_cases(
    trained: Trained | Sequence[Trained],
    cases: Iterable[Case],
    folder: str | Path,
    *,
    edges: bool = False,
    probabilities: bool = False,
    begin: Callable[[Case], None] | None = None,
    overlap: float = DEFAULT_OVERLAP,
    flips: Sequence[int] = (),
    device: torch.device | str | None = None,
    precision: str | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Case, Prediction, Path]]:
    """Segment cases one after the other, and write each prediction at once.

    The files note what made them, with the overlap, flips and precision that were used.

    Args:
        trained: see :func:`predict_case`.
        cases: cases to segment.
        folder: see :func:`write_prediction`.
        edges: see :func:`write_prediction`.
        probabilities: see :func:`write_prediction`.
        begin: called with each case before it is segmented.
        overlap: see :func:`predict_case`.
        flips: see :func:`predict_case`.
        device: see :func:`predict_case`.
        precision: see :func:`predict_case`.
        progress: see :func:`predict_case`, for each case anew.

    Yields:
        the case, its prediction and the path of its label map.

    Raises:
        InputError: as :func:`predict_case`. Before any prediction is made: one would be written
            over a file of a case, or the header of an image is unusable. After all others: the
            voxels of a case cannot be read.
    """
    cases = list(cases)
    _check_outputs(cases, folder)
    first = _members(trained)[0]
    device, precision = _resolved(first, device, precision)
    used = {"overlap": overlap, "flips": list(flips), "precision": precision}
    note = {**_origin(trained), **used}
    check_images(cases, len(first.modalities))
    bad: list[InputError] = []
    for case in cases:
        if begin is not None:
            begin(case)
        try:
            prediction = predict_case(
                trained,
                case,
                overlap=overlap,
                flips=flips,
                device=device,
                precision=precision,
                probabilities=probabilities,
                progress=progress,
            )
        except InputError as error:
            # The image is fine, so every other case would fail too.
            if _readable(case):
                raise
            bad.append(error)
            continue
        path = write_prediction(
            prediction,
            folder,
            case.name,
            edges=edges,
            probabilities=probabilities,
            note={**note, "inputs": digest(case.images)},
        )
        yield case, prediction, path
        del prediction  # not to be in memory beside the next
    if bad:
        raise InputError(str(bad[0]) + (f" ({len(bad) - 1} more)" if len(bad) > 1 else ""))


def _check_outputs(cases: Sequence[Case], folder: str | Path) -> None:
    """Raise InputError if a prediction would be written over a file of a case."""
    inputs = {_place(file) for case in cases for file in case.files}
    for case in cases:
        for path in output_paths(folder, case.name):
            if _place(path) in inputs:
                raise InputError(
                    f"{path}: is an input, and the prediction of {case.name} would replace it; "
                    "expected another output folder"
                )


def _readable(case: Case) -> bool:
    try:
        read_image(case)
    except InputError:
        return False
    return True


def _origin(trained: Trained | Sequence[Trained]) -> dict[str, Any]:
    """What a prediction says of the network that made it, or of several as its ``members``."""
    if not isinstance(trained, Trained):
        members = [_origin(member) for member in trained]
        if len(members) == 1:
            return members[0]
        names = " ".join(str(member["checkpoint"]) for member in members)
        shared = {"preprocessing": members[0]["preprocessing"], "versions": versions()}
        return {"checkpoint": names, "members": members, **shared}
    provenance = trained.provenance
    run = entry(provenance, "run", dict[str, Any] | None) or {}
    return {
        "checkpoint": provenance.get("checkpoint"),
        "steps": provenance.get("steps"),
        "data": (entry(run, "data", dict[str, Any] | None) or {}).get("sha256"),
        "preprocessing": trained.preprocessing.to_dict(),
        "config": run.get("config"),
        "trained": provenance.get("versions"),
        "versions": versions(),
    }


def _place(path: Path) -> Path:
    """The folder's entry that would be replaced; of a symbolic link, the link itself."""
    return path.parent.resolve() / path.name


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
