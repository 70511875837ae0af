"""EG-CNN around a network of MONAI's, here DynUNet."""

import numpy as np
import torch
from monai.data import create_test_image_3d
from monai.inferers import sliding_window_inference
from monai.metrics import DiceMetric
from monai.networks.nets import DynUNet
from torch import Tensor

from egcnn.losses import EGCNNLoss
from egcnn.nn import EGCNN
from egcnn.regions import Regions

REGIONS = Regions(("background", "sphere"), ((0,), (1,)), "softmax")


def build() -> EGCNN:
    """DynUNet, and an edge stream at each of its resolutions."""
    backbone = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=len(REGIONS),
        filters=[8, 16, 32],
        kernel_size=[3, 3, 3],
        strides=[1, 2, 2],
        upsample_kernel_size=[2, 2],
    )
    return EGCNN(backbone, exclusive=REGIONS.exclusive)


def batch(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Images and label maps, each (B, 1, D, H, W)."""
    pairs = [create_test_image_3d(size, size, size, rad_max=size // 4) for _ in range(count)]
    images, labels = torch.tensor(np.array(pairs)).float().unsqueeze(2).unbind(1)
    return images, (labels > 0).long()


def main(steps: int = 30, size: int = 32) -> tuple[list[float], float]:
    """Train; return the losses, and the Dice of a volume larger than the patches."""
    network, loss, losses = build(), EGCNNLoss(REGIONS), []
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(steps):
        images, labels = batch(2, size)
        terms = loss(network(images), labels, seed=step)  # loss, semantic, consistency, edge
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    images, labels = batch(1, size + size // 2)
    with torch.no_grad():
        logits = sliding_window_inference(images, (size,) * 3, 1, lambda x: network(x).logits)
    return losses, DiceMetric(False, num_classes=2)(logits.argmax(1, keepdim=True), labels).item()


if __name__ == "__main__":
    losses, dice = main()
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, Dice {dice:.2f}")
