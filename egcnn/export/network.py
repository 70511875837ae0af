"""What exported files hold of a network: plain tensors in, plain tensors out."""

from __future__ import annotations

from torch import Tensor, nn

from egcnn.errors import InputError
from egcnn.nn import Segmentation


class InferenceNetwork(nn.Module):
    """A network with plain tensors as output, for exporters and for MONAI's tools.

    Args:
        network: returns logits ``(B, R, D, H, W)`` or a :class:`egcnn.nn.Segmentation`.
        edges: return the edge logits too, see :attr:`egcnn.nn.Segmentation.edge_logits`.
    """

    def __init__(self, network: nn.Module, *, edges: bool = False) -> None:
        super().__init__()
        self.network = network
        self.edges = edges

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images ``(B, M, D, H, W)`` to logits, or to logits and edge logits.

        Raises:
            InputError: ``edges`` of a network without edge stream.
        """
        output = self.network(image)
        edge_logits = None
        if isinstance(output, Segmentation):
            output, edge_logits = output
        if not self.edges:
            return output
        if edge_logits is None:
            raise InputError("edges: the network has no edge stream; expected one that has")
        return output, edge_logits
