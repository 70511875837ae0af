"""What all operators share on the torch side: checks, memory formats, how a kernel is launched."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from egcnn.errors import InputError
from egcnn.ops._backend import device_kernels, forward_mode

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

# Device types that have kernels.
DEVICES = ("cpu", "cuda")

# Elements that make one more thread worth waking; the grain size of torch's own operators.
GRAIN = 32768


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


def check_like(
    name: str, tensor: Tensor, other_name: str, other: Tensor, *, resampled: bool = False
) -> None:
    """Raise :class:`InputError` unless both tensors share device, batch size and volume size.

    If ``resampled``, both have voxels instead of sharing the volume size.
    """
    if tensor.device != other.device:
        raise InputError(
            f"{name} is on {tensor.device} and {other_name} on {other.device}; "
            "expected both on one device"
        )
    batch, _, *size = tensor.shape
    other_batch, _, *other_size = other.shape
    fits = not (0 in size or 0 in other_size) if resampled else size == other_size
    if batch != other_batch or not fits:
        expected = (
            "the same batch size, and voxels" if resampled else "the same batch and volume size"
        )
        raise InputError(
            f"{name} has the shape {tuple(tensor.shape)} and {other_name} "
            f"{tuple(other.shape)}; expected {expected}"
        )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise :class:`InputError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")


def equals(labels: Tensor, value: int) -> Tensor:
    """Where integer labels have a value; nowhere if their dtype cannot hold it.

    A comparison by ``==`` converts the value to the labels' dtype: 256 in uint8 would be 0.
    """
    if labels.dtype in INTEGERS:
        limits = torch.iinfo(labels.dtype)
        if not limits.min <= value <= limits.max:
            return torch.zeros_like(labels, dtype=torch.bool)
    return labels == value


def region_masks(labels: Tensor, regions: Sequence[Sequence[int]]) -> Tensor:
    """Binary regions ``(B, R, D, H, W)``, bool, of a label map and each region's values."""
    shape = (labels.shape[0], len(regions), *labels.shape[2:])
    masks = torch.empty(shape, dtype=torch.bool, device=labels.device)
    for region, values in enumerate(regions):
        inside = equals(labels[:, 0], values[0])
        for value in values[1:]:
            inside |= equals(labels[:, 0], value)
        masks[:, region] = inside
    return masks


def class_indices(labels: Tensor, classes: Sequence[Sequence[int]], other: int) -> Tensor:
    """Class indices of a label map, int64; ``other`` for values that no class has."""
    indices = torch.full_like(labels, other, dtype=torch.int64)
    for index, values in enumerate(classes):
        for value in values:
            indices.masked_fill_(equals(labels, value), index)
    return indices


def memory_format(tensor: Tensor) -> torch.memory_format:
    """``channels_last_3d`` if the tensor has that layout and is not contiguous, else contiguous."""
    if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return torch.contiguous_format


def empty_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Allocate an output of the same shape and format, for kernels and for fake tensors."""
    return torch.empty_like(tensor, dtype=dtype, memory_format=memory_format(tensor))


def converted(dtype: torch.dtype, *parameters: Tensor) -> list[Tensor]:
    """The parameters in a dtype, such as the one that sums are computed in."""
    # Asking first takes a sixth of the time of a conversion that has nothing to do.
    return [p if p.dtype == dtype else p.to(dtype) for p in parameters]


def empty_gradients(volumes: tuple[Tensor, ...], *parameters: Tensor) -> tuple[Tensor, ...]:
    """Allocate gradients: of volumes in their format, of parameters contiguous."""
    contiguous = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters]
    return (*map(empty_like, volumes), *contiguous)


def dense(tensor: Tensor) -> Tensor:
    """The tensor in the format of :func:`memory_format`, copied only if necessary."""
    if tensor.is_contiguous():
        return tensor
    return tensor.contiguous(memory_format=memory_format(tensor))


def launch(name: str, like: Tensor, *arguments: Any) -> None:
    """Run kernel ``name`` on the device of ``like``, with scratch memory from torch's allocator.

    The arguments are those of ``csrc/bindings.cpp``, in its order, which checks what the kernels
    rely on: tensors as they are, volumes dense. ``like`` is the largest of them: its elements are
    worth so many threads.
    """
    device = like.device
    kernel = getattr(device_kernels(device.type), name)
    allocate = partial(torch.empty, dtype=torch.uint8, device=device)
    if device.type == "cpu":
        threads = min(torch.get_num_threads(), 1 + like.numel() // GRAIN)
        kernel(threads, 0, 0, allocate, *arguments)
        return
    # By torch's own guard: only torch knows which device is to be current again without giving
    # it a context, half a gigabyte on a GPU that is not in use.
    with torch.cuda.device(device):
        # The raw handle costs a tenth of a Stream. Asked for at each call: it may be another
        # stream each time, or one being captured.
        stream = torch._C._cuda_getCurrentRawStream(device.index)
        kernel(1, device.index, stream, allocate, *arguments)


def register_autograd(name: str, setup_context: Any, backward: Any) -> None:
    """What ``torch.library.register_autograd`` does, at half of its cost for each call.

    Args:
        name: the operator, all of whose arguments are positional and without defaults.
        setup_context: ``(ctx, inputs, output)``, saves what the backward pass needs.
        backward: ``(ctx, *grads)``, gives a gradient or None for each input.
    """
    operator = getattr(torch.ops.egcnn, name).default

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = below_autograd(*inputs)
        setup_context(ctx, inputs, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type(f"{name}_function", (torch.autograd.Function,), methods)

    def below_autograd(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs)

    def choose(*inputs: Any) -> Any:
        if forward_mode():
            raise RuntimeError(
                f"egcnn: the operator {name} has no forward mode; expected the function of "
                "egcnn.ops, which has"
            )
        if torch.is_grad_enabled():
            for value in inputs:
                if isinstance(value, Tensor) and value.requires_grad:
                    return function.apply(*inputs)  # type: ignore[attr-defined]
        return below_autograd(*inputs)

    torch.library.impl(f"egcnn::{name}", "Autograd", choose)


def register_no_second_derivative(name: str) -> None:
    """Let the operator ``name_backward`` say that it has no derivative."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"egcnn: {name} has no second derivative; use egcnn.ops.use_reference() for one"
        )

    register_autograd(f"{name}_backward", lambda ctx, inputs, output: None, backward)
