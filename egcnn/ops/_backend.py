"""Choice of implementation: the native kernels or the reference."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_C: ModuleType | None
try:
    # Import torch first: the kernels then share its OpenMP threads instead of starting their own.
    from egcnn import _C  # type: ignore[attr-defined,no-redef]
except ImportError as error:
    _C, _missing = None, f"{error}"
else:
    _missing = ""

_reference_chosen = False
_warned: set[str] = set()


def forward_mode() -> bool:
    """Whether a level of forward-mode differentiation is entered, as in ``torch.func.jvp``."""
    return torch.autograd.forward_ad._current_level >= 0


def _reference_serves() -> bool:
    """Whether the reference was chosen, or is needed since torch transforms the call.

    It is plain PyTorch, which has forward mode and batching rules; the kernels have none.
    """
    if _reference_chosen or torch.compiler.is_compiling():
        return _reference_chosen
    return forward_mode() or torch._C._functorch.peek_interpreter_stack() is not None


@contextlib.contextmanager
def use_reference() -> Iterator[None]:
    """Use the plain PyTorch reference for every operator call inside the ``with`` block."""
    global _reference_chosen
    before, _reference_chosen = _reference_chosen, True
    try:
        yield
    finally:
        _reference_chosen = before


# A constant to torch.compile, which cannot trace the query of the driver.
@torch.compiler.assume_constant_result
def _why_not_native(device: str, index: int = 0) -> str:
    """The reason why the native kernels do not support ``device``; empty if they do."""
    if _C is None:
        return f"the native kernels are missing ({_missing})"
    if device in ("cpu", "meta"):
        return ""
    if device != "cuda":
        return f"there is no kernel for {device} devices"
    return _why_not_cuda(index)


@functools.cache
def _why_not_cuda(index: int) -> str:
    assert _C is not None
    info = _C.build_info()
    if not info["cuda_kernels"]:
        return f"this build has no CUDA kernels ({info['cuda_note']})"
    with torch.cuda.device(index):  # the others get no context
        return str(_C.cuda_device_status())


def backend(tensor: Tensor) -> str:
    """Which implementation operators use for ``tensor``: ``"native"`` or ``"reference"``."""
    device = tensor.device
    native = not _reference_serves() and not _why_not_native(device.type, device.index or 0)
    return "native" if native else "reference"


def native(tensor: Tensor) -> bool:
    """Whether to use the kernels for ``tensor``; warns once if they should work but do not."""
    if _reference_serves():
        return False
    device = tensor.device.type
    why = _why_not_native(device, tensor.device.index or 0)
    if why and device not in _warned:
        _warned.add(device)
        warnings.warn(
            f"egcnn: {why}; {device} tensors use the plain PyTorch reference, which is slower",
            stacklevel=4,
        )
    return not why


def device_kernels(device: str) -> Any:
    """The kernels of a device type; call only if :func:`native` is true."""
    return getattr(_C, device)


def kernels_name(device: str) -> str:
    """``"cuda"`` or an instruction set of the CPU; ``""`` for a type of device without kernels."""
    return getattr(getattr(_C, device, None), "name", "")


def backend_info() -> dict[str, Any]:
    """Facts about the build and the implementation used for each device, as plain data.

    Keys: ``built`` (bool), ``reason`` (if not, else ""), ``compiler``, ``cpu`` (instruction set
    chosen on this machine), ``cuda_kernels`` (bool), ``cuda_note`` (why they were skipped),
    ``cuda_toolkit``, ``cuda_architectures``, ``cuda_device`` (why they do not run here),
    ``serves`` (device type -> "native" or "reference").
    """
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    info: dict[str, Any] = {"built": _C is not None, "reason": _missing}
    if _C is not None:
        info.update(_C.build_info())
        if info["cuda_kernels"]:
            info["cuda_device"] = _C.cuda_device_status()
    info["serves"] = {d: "reference" if _why_not_native(d) else "native" for d in devices}
    return info
