"""What all operators share on the torch side: checks, memory formats, and tensors as the bridge
(``csrc/ops.h``) takes them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from egcnn.errors import InputError
from egcnn.ops._backend import device_kernels, forward_mode

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

# The types of device that have kernels.
DEVICES = ("cpu", "cuda")

# Elements for which a further thread is worth its waking up; torch's own operators count alike.
GRAIN = 32768

# The order of csrc/ops.h's DType; a bool is a byte that holds 0 or 1.
_CODES = {dtype: code for code, dtype in enumerate((*FLOATS, *INTEGERS))} | {
    torch.bool: (*FLOATS, *INTEGERS).index(torch.uint8)
}


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_volume(
    name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], channels: int | None = None
) -> None:
    """Raise :class:`InputError` unless ``tensor`` is ``(B, channels, D, H, W)`` in ``dtypes``."""
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} is a {type(tensor).__name__}; expected a tensor")
    if tensor.dim() != 5:
        raise InputError(
            f"{name} has the shape {tuple(tensor.shape)}; expected five dimensions (B, C, D, H, W)"
        )
    if tensor.dtype not in dtypes:
        raise InputError(
            f"{name} is {str(tensor.dtype).removeprefix('torch.')}; "
            f"expected one of {_names(dtypes)}"
        )
    if channels is not None and tensor.shape[1] != channels:
        raise InputError(f"{name} has {tensor.shape[1]} channels; expected {channels}")


def check_like(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise :class:`InputError` unless both share device, batch size and volume size."""
    if tensor.device != other.device:
        raise InputError(
            f"{name} is on {tensor.device} and {other_name} on {other.device}; "
            "expected both on one device"
        )
    if tensor.shape[0] != other.shape[0] or tensor.shape[2:] != other.shape[2:]:
        raise InputError(
            f"{name} has the shape {tuple(tensor.shape)} and {other_name} "
            f"{tuple(other.shape)}; expected the same batch and volume size"
        )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise :class:`InputError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")


def check_operands(
    first: Tensor, **operands: tuple[Tensor, tuple[int, ...], tuple[torch.dtype, ...]]
) -> None:
    """Raise :class:`InputError` unless each operand has its shape and dtype, on one device.

    For the operators themselves, whose kernels would read out of bounds.

    Args:
        first: the tensor whose device counts.
        operands: by name, a tensor, the shape that is expected and the dtypes that are.
    """
    for name, (tensor, shape, dtypes) in operands.items():
        if tensor.shape != shape or tensor.dtype not in dtypes or tensor.device != first.device:
            raise InputError(
                f"{name} is {str(tensor.dtype).removeprefix('torch.')} of shape "
                f"{tuple(tensor.shape)} on {tensor.device}; expected {_names(dtypes)} of shape "
                f"{tuple(shape)} on {first.device}"
            )


def equals(labels: Tensor, value: int) -> Tensor:
    """Where integer labels have a value; nowhere if their dtype cannot hold it.

    A comparison by ``==`` converts the value to the labels' dtype: 256 in uint8 would be 0.
    """
    if labels.dtype in INTEGERS:
        limits = torch.iinfo(labels.dtype)
        if not limits.min <= value <= limits.max:
            return torch.zeros_like(labels, dtype=torch.bool)
    return labels == value


def memory_format(tensor: Tensor) -> torch.memory_format:
    """``channels_last_3d`` where the tensor is laid out so and not contiguous; else contiguous."""
    if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return torch.contiguous_format


def empty_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An output of the same shape and format; fakes and kernels allocate by this one rule."""
    return torch.empty_like(tensor, dtype=dtype, memory_format=memory_format(tensor))


def dense(tensor: Tensor) -> Tensor:
    """The tensor in the memory format that :func:`memory_format` names, copied only if it must."""
    return tensor.contiguous(memory_format=memory_format(tensor))


def bridge(tensor: Tensor) -> tuple[int, int, int, int, int]:
    """``(pointer, dtype, batch stride, channel stride, voxel stride)`` of a :func:`dense` volume.

    Strides come from the shape: torch lets those of dimensions of size 1 hold anything.
    """
    channels, voxels = tensor.shape[1], math.prod(tensor.shape[2:])
    if memory_format(tensor) == torch.channels_last_3d:
        strides = (channels * voxels, 1, channels)
    else:
        strides = (channels * voxels, voxels, 1)
    return (tensor.data_ptr(), _CODES[tensor.dtype], *strides)


def launch(name: str, **arguments: Any) -> None:
    """Run kernel ``name`` on the device of its tensors, with scratch memory from torch's allocator.

    The arguments are those of ``csrc/bindings.cpp``, tensors as they are: volumes are made dense
    and all are kept alive until the kernel is launched.
    """
    tensors = {
        key: dense(value) if value.dim() == 5 else value.contiguous()
        for key, value in arguments.items()
        if isinstance(value, Tensor)
    }
    if forward_mode():
        raise RuntimeError(
            f"egcnn: the operator {name} has no forward mode; expected the function of egcnn.ops, "
            "which has"
        )
    device = next(iter(tensors.values())).device
    kernels = device_kernels(device.type)
    call = arguments | {
        key: bridge(value) if value.dim() == 5 else value.data_ptr()
        for key, value in tensors.items()
    }
    elements = max(tensor.numel() for tensor in tensors.values())
    call["threads"] = min(torch.get_num_threads(), 1 + elements // GRAIN)
    call["device"] = device.index or 0
    # Asked for at each call: the stream may be another one each time, or one being captured.
    cuda = device.type == "cuda"
    call["stream"] = torch.cuda.current_stream(device).cuda_stream if cuda else 0
    workspace = torch.empty(
        getattr(kernels, f"{name}_workspace")(**call), dtype=torch.uint8, device=device
    )
    getattr(kernels, name)(**call, workspace=workspace.data_ptr())


def no_second_derivative(name: str) -> Any:
    """A backward formula that says that there is none."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"egcnn: {name} has no second derivative; use egcnn.ops.use_reference() for one"
        )

    return backward
