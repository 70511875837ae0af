"""The fused operators; importing them needs only torch and numpy.

===========================  ==========================================  ===========================
operator                     computes                                    source
===========================  ==========================================  ===========================
:func:`sobel_edges`          binary edge targets from labels             section 2.1
:func:`sobel_magnitude`      3D Sobel gradient magnitude                 section 2.1
:func:`edge_gate`            edge-gated attention with residual          Eqs. 1 and 2
:func:`edge_gate_upsampled`  the same, of a coarser edge stream          Figure 1
:func:`gumbel_consistency`   mismatch of predicted and true edges        Eqs. 7 and 8
:func:`group_norm_relu`      GroupNorm with ReLU                         Wu and He, 2018
:func:`region_sums`          sums of the Dice and edge losses            Eqs. 4 to 6
:func:`loss_sums`            sums of the total loss, in one pass         Eqs. 3 to 8
===========================  ==========================================  ===========================

Each has a native kernel and a reference in :mod:`egcnn.ops.reference` that is its specification.
:func:`backend` tells which of the two is used for a tensor; :func:`use_reference` selects the
reference.

The kernels have first derivatives in reverse mode. Within forward-mode differentiation and the
transforms of ``torch.func`` (``grad``, ``vjp``, ``jvp``, ``jacrev``, ``jacfwd``, ``hessian``,
``vmap`` and their nestings) the reference serves, which takes more time and memory;
``functional_call`` is no transform and keeps the kernels.
"""

from egcnn.ops._backend import backend, backend_info, use_reference
from egcnn.ops.consistency import gumbel_consistency
from egcnn.ops.edge_gate import edge_gate
from egcnn.ops.edge_gate_upsampled import edge_gate_upsampled
from egcnn.ops.group_norm_relu import group_norm_relu
from egcnn.ops.loss_sums import LossSums, loss_sums
from egcnn.ops.region_sums import region_sums
from egcnn.ops.sobel_edges import sobel_edges, sobel_magnitude

__all__ = [
    "LossSums",
    "backend",
    "backend_info",
    "edge_gate",
    "edge_gate_upsampled",
    "group_norm_relu",
    "gumbel_consistency",
    "loss_sums",
    "region_sums",
    "sobel_edges",
    "sobel_magnitude",
    "use_reference",
]
