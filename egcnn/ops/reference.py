"""The operators in plain PyTorch: the specification of the kernels.

They are differentiable by autograd and draw the same noise as the kernels. The public functions
have already checked the arguments. As in the kernels, 16-bit inputs are computed in float32 and
rounded once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from egcnn.ops._tensors import equals


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The accumulation type: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# --- Sobel (section 2.1) -------------------------------------------------------------------------


def _neighbours(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The neighbours before and after each voxel along ``dim``, with replicated borders."""
    size = x.shape[dim]
    before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, size - 1)], dim)
    after = torch.cat([x.narrow(dim, 1, size - 1), x.narrow(dim, size - 1, 1)], dim)
    return before, after


def _smooth(x: Tensor, dim: int) -> Tensor:
    before, after = _neighbours(x, dim)
    return before + 2 * x + after


def _difference(x: Tensor, dim: int) -> Tensor:
    before, after = _neighbours(x, dim)
    return after - before


def _magnitude(x: Tensor) -> Tensor:
    """``sqrt(gx² + gy² + gz²)`` of ``(..., D, H, W)``, 1 on a flat face of a binary region."""
    if x.numel() == 0:
        return x.clone()
    z, y, x_ = (_difference(_smooth(_smooth(x, a), b), c) for a, b, c in _ORIENTATIONS)
    squared = (z * z + y * y + x_ * x_) / 256
    # sqrt has an infinite slope at 0; take 0 as the gradient there. NaN stays NaN.
    slanted = squared != 0
    return torch.where(slanted, torch.where(slanted, squared, 1).sqrt(), 0)


_ORIENTATIONS = ((-1, -2, -3), (-1, -3, -2), (-2, -3, -1))


def sobel_magnitude(x: Tensor) -> Tensor:
    """Specification of :func:`egcnn.ops.sobel_magnitude`."""
    return _magnitude(x.to(accumulate_dtype(x.dtype))).to(x.dtype)


def sobel_edges(
    labels: Tensor, regions: Sequence[Sequence[int]] | None = None, threshold: float = 0.0
) -> Tensor:
    """Specification of :func:`egcnn.ops.sobel_edges`."""
    if regions is not None:
        masks = [sum(equals(labels[:, 0], value) for value in values) for values in regions]
        inside = torch.stack(masks, 1).to(torch.float32)  # type: ignore[arg-type]
    elif labels.is_floating_point():
        inside = labels.to(accumulate_dtype(labels.dtype))
    else:
        inside = (labels != 0).to(torch.float32)
    return (_magnitude(inside) > threshold).to(torch.uint8)


def near(voxels: Tensor) -> Tensor:
    """The voxels ``(B, C, D, H, W)``, bool, and their 3x3x3 neighbourhoods."""
    return F.max_pool3d(voxels.to(torch.float32), 3, stride=1, padding=1) > 0


# --- Edge gate (Eqs. 1 and 2) --------------------------------------------------------------------


def edge_attention(
    e: Tensor,
    m: Tensor,
    weight_e: Tensor,
    weight_m: Tensor,
    bias: Tensor,
    activation: str = "relu_sigmoid",
) -> Tensor:
    """The attention map alpha of :func:`egcnn.ops.edge_gate` (Eq. 1), ``(B, G, D, H, W)``.

    Of the accumulation type; the kernels compute it on the way and never write it.
    """
    dtype = accumulate_dtype(e.dtype)
    gate = torch.einsum("gc,bcdhw->bgdhw", weight_e.to(dtype), e.to(dtype))
    gate = gate + torch.einsum("gc,bcdhw->bgdhw", weight_m.to(dtype), m.to(dtype))
    gate = gate + bias.to(dtype).view(1, -1, 1, 1, 1)
    if activation == "relu_sigmoid":
        gate = gate.relu()
    return gate.sigmoid()


def edge_gate(
    e: Tensor,
    m: Tensor,
    weight_e: Tensor,
    weight_m: Tensor,
    bias: Tensor,
    activation: str = "relu_sigmoid",
) -> Tensor:
    """Specification of :func:`egcnn.ops.edge_gate`."""
    e_ = e.to(accumulate_dtype(e.dtype))
    alpha = edge_attention(e, m, weight_e, weight_m, bias, activation)
    return (e_ * alpha + e_).to(e.dtype)


def upsample(e: Tensor, like: Tensor) -> Tensor:
    """``e`` trilinearly at the size of ``like`` (``align_corners=False``), in accumulation type."""
    e = e.to(accumulate_dtype(e.dtype))
    if e.shape[2:] == like.shape[2:]:
        return e
    if e.shape[1] == 0:  # which interpolate refuses
        return e.reshape(*e.shape[:2], *like.shape[2:])
    return F.interpolate(e, size=like.shape[2:], mode="trilinear", align_corners=False)


def edge_gate_upsampled(
    e: Tensor,
    m: Tensor,
    weight_e: Tensor,
    weight_m: Tensor,
    bias: Tensor,
    activation: str = "relu_sigmoid",
) -> Tensor:
    """Specification of :func:`egcnn.ops.edge_gate_upsampled`."""
    gated = edge_gate(upsample(e, m), m, weight_e, weight_m, bias, activation)
    return gated.to(e.dtype)


# --- Sums of the Dice loss and the balanced cross entropy (Eqs. 4 to 6) --------------------------


def region_sums(
    logits: Tensor,
    target: Tensor,
    activation: str,
    entropy: bool = False,
    ignored: Tensor | None = None,
) -> Tensor:
    """Specification of :func:`egcnn.ops.region_sums`."""
    z = logits.to(accumulate_dtype(logits.dtype))
    if ignored is not None:  # whatever they hold: NaN times a gradient of 0 is NaN
        z = z.masked_fill(ignored, 0)
    p = z.softmax(1) if activation == "softmax" else z.sigmoid()
    y = (target if target.is_floating_point() else target != 0).to(z.dtype)
    terms = [p * y, p * p, y * y]
    if entropy:
        terms += [-y * F.logsigmoid(z), (y - 1) * F.logsigmoid(-z)]
    if ignored is not None:
        terms = [term.masked_fill(ignored, 0) for term in terms]
    return torch.stack([term.sum((2, 3, 4)) for term in terms], -1)


# --- Gumbel-softmax consistency (Eqs. 7 and 8) ---------------------------------------------------


def philox_uniforms(seed: Tensor, voxels: int, channels: int) -> Tensor:
    """Draw uniform numbers in (0, 1) for every voxel and channel, ``(voxels, channels)`` float32.

    Philox 4x32-10 (Salmon et al., 2011) with the seed as key and (voxel's flat index, channel // 4)
    as counter; the word ``channel % 4`` gives ``(word >> 9 + ½) / 2²³``, which float32 holds
    exactly.
    """
    mask = 0xFFFFFFFF
    device = seed.device
    index = torch.arange(voxels, device=device, dtype=torch.int64)[:, None]
    block = torch.arange((channels + 3) // 4, device=device, dtype=torch.int64)[None, :]
    zero = torch.zeros_like(index + block)
    c0, c1, c2, c3 = (index & mask) + zero, (index >> 32) + zero, block + zero, zero
    k0, k1 = seed.reshape(()) & mask, (seed.reshape(()) >> 32) & mask

    def multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
        product = constant * word  # modulo 2^64; the mask clears the high word's sign
        return (product >> 32) & mask, product & mask

    for _ in range(10):
        high0, low0 = multiply(0xD2511F53, c0)
        high1, low1 = multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    words = torch.stack([c0, c1, c2, c3], -1).reshape(voxels, -1)[:, :channels]
    return ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23


def gumbel_sample(
    logits: Tensor, seed: Tensor, tau: float, activation: str
) -> tuple[Tensor, Tensor]:
    """Soft and hard Gumbel-softmax samples of ``logits``, both ``(B, C, D, H, W)``.

    Eq. (8); ``sigmoid`` is its two-class form, where the difference of two Gumbel numbers is one
    logistic number. Adding the noise to the logits and to log P gives the same sample. Both are
    NaN where a logit is.
    """
    batch, channels, *size = logits.shape
    uniforms = philox_uniforms(seed, batch * math.prod(size), channels).to(logits.dtype)
    uniforms = uniforms.reshape(batch, *size, channels).movedim(-1, 1)
    if activation == "softmax":
        noisy = logits - (-uniforms.log()).log()
        hard = torch.zeros_like(noisy).scatter_(1, noisy.argmax(1, keepdim=True), 1)
        hard = hard.masked_fill(noisy.isnan().any(1, keepdim=True), torch.nan)
        return (noisy / tau).softmax(1), hard
    noisy = logits + uniforms.log() - torch.log1p(-uniforms)
    hard = (noisy > 0).to(noisy.dtype).masked_fill(noisy.isnan(), torch.nan)
    return (noisy / tau).sigmoid(), hard


def gumbel_consistency(
    logits: Tensor,
    target: Tensor,
    seed: Tensor,
    tau: float = 0.5,
    hard: bool = True,
    activation: str = "softmax",
    support: str = "gt",
    ignored: Tensor | None = None,
) -> Tensor:
    """Specification of :func:`egcnn.ops.gumbel_consistency`."""
    if logits.numel() == 0:
        return logits.sum()
    z = logits.to(accumulate_dtype(logits.dtype))
    soft, one_hot = gumbel_sample(z, seed, tau, activation)
    # Straight through: exactly the hard sample's value, with the soft sample's gradient.
    sample = (soft - soft.detach()) + one_hot.detach() if hard else soft

    if activation == "softmax":
        classes = torch.arange(z.shape[1], device=z.device).view(1, -1, 1, 1, 1)
        truth = (target == classes).to(z.dtype)
    else:
        truth = (target != 0).to(z.dtype)
    true_magnitude = _magnitude(truth)
    edges = true_magnitude > 0
    if support == "both":
        edges = edges | (_magnitude(one_hot) != 0)
    if ignored is not None:
        edges = edges & ~near(ignored)

    mismatch = (_magnitude(sample) - true_magnitude).abs()
    total = torch.where(edges, mismatch, 0).sum((2, 3, 4))
    return (total / edges.sum((2, 3, 4)).clamp(min=1)).mean()


# --- GroupNorm with ReLU -------------------------------------------------------------------------


def group_norm_relu(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> Tensor:
    """Specification of :func:`egcnn.ops.group_norm_relu`."""
    dtype = accumulate_dtype(x.dtype)
    # F.group_norm rejects groups of one value, as in a one-voxel volume; normalised, they are 0.
    y = torch.group_norm(x.to(dtype), groups, weight.to(dtype), bias.to(dtype), eps)
    return y.relu_().to(x.dtype)
