"""Which implementation serves a tensor: the native kernels or the reference."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_C: ModuleType | None
try:
    # torch first: the kernels then share its OpenMP threads instead of starting a second team.
    from egcnn import _C  # type: ignore[attr-defined,no-redef]
except ImportError as error:
    _C, _missing = None, f"{error}"
else:
    _missing = ""

_reference_chosen = False
_warned: set[str] = set()


@contextlib.contextmanager
def use_reference() -> Iterator[None]:
    """Serve every operator call inside the ``with`` block by the plain PyTorch reference."""
    global _reference_chosen
    before, _reference_chosen = _reference_chosen, True
    try:
        yield
    finally:
        _reference_chosen = before


def _why_not_native(device: str) -> str:
    """Why the native kernels cannot serve ``device``; empty where they can."""
    if _C is None:
        return f"the native kernels are not there ({_missing})"
    if device in ("cpu", "meta"):
        return ""
    if device == "cuda" and not _C.build_info()["cuda_kernels"]:
        return "this build has no CUDA kernels"
    return "" if device == "cuda" else f"there is no kernel for {device} devices"


def backend(tensor: Tensor) -> str:
    """``"native"`` or ``"reference"``: what serves an operator call on ``tensor``."""
    native = not _reference_chosen and not _why_not_native(tensor.device.type)
    return "native" if native else "reference"


def native(tensor: Tensor) -> bool:
    """Whether the kernels serve ``tensor``; where they ought to and cannot, warns once."""
    if _reference_chosen:
        return False
    device = tensor.device.type
    why = _why_not_native(device)
    if why and device not in _warned:
        _warned.add(device)
        warnings.warn(
            f"egcnn: {why}; the plain PyTorch reference serves {device} tensors, more slowly",
            stacklevel=4,
        )
    return not why


def kernels() -> Any:
    """The compiled module; called only from where :func:`native` held."""
    return _C


def backend_info() -> dict[str, Any]:
    """What was built and what serves each device, as plain data.

    Keys: ``built`` (bool), ``reason`` (why not, else ""), ``compiler``, ``cpu`` (instruction set
    chosen on this machine), ``cuda_kernels`` (bool), ``cuda_toolkit``, ``cuda_architectures``,
    ``cuda_note``, ``serves`` (device type -> "native" or "reference").
    """
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    info: dict[str, Any] = {"built": _C is not None, "reason": _missing}
    if _C is not None:
        info.update(_C.build_info())
    info["serves"] = {d: "reference" if _why_not_native(d) else "native" for d in devices}
    return info
