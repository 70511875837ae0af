"""The operators in a plain PyTorch loop: a network that learns spheres and their edges."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egcnn import ops


class TwoStreams(nn.Module):
    """A main stream, and an edge stream that its features gate."""

    def __init__(self, channels: int = 8, classes: int = 2) -> None:
        super().__init__()
        self.main = nn.Conv3d(1, channels, 7, padding=3)
        self.edge = nn.Conv3d(1, channels, 3, padding=1)
        self.weight_e = nn.Parameter(torch.randn(channels, channels) / channels)
        self.weight_m = nn.Parameter(torch.randn(channels, channels) / channels)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.logits = nn.Conv3d(channels, classes, 1)
        self.edge_logits = nn.Conv3d(channels, classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits and edge logits, each (B, classes, D, H, W)."""
        m, e = self.main(x).relu(), self.edge(x).relu()
        # Eqs. (1) and (2), one attention value per channel and voxel
        e = ops.edge_gate(e, m, self.weight_e, self.weight_m, self.bias, activation="sigmoid")
        return self.logits(m), self.edge_logits(e)


def spheres(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Noisy images (B, 1, D, H, W) and label maps of a sphere each."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(size)] * 3, indexing="ij"))
    centres = size * (0.3 + 0.4 * torch.rand(count, 3, 1, 1, 1))
    labels = ((grid - centres).norm(dim=1, keepdim=True) < size / 4).long()
    return labels + 0.5 * torch.randn(labels.shape), labels


def main(steps: int = 50, size: int = 24) -> list[float]:
    """Train, and return the loss of each step."""
    network, losses = TwoStreams(), []
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(steps):
        images, labels = spheres(2, size)
        logits, edge_logits = network(images)
        edges = ops.sobel_edges(labels, [[0], [1]])  # both voxels at each face, for each class
        loss = F.cross_entropy(logits, labels[:, 0])
        loss = loss + F.binary_cross_entropy_with_logits(edge_logits, edges.float())
        loss = loss + ops.gumbel_consistency(logits, labels, seed=step)  # Eqs. (7) and (8)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
