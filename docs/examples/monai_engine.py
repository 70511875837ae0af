"""The losses in MONAI's engine, which needs ``pip install pytorch-ignite``."""

import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, create_test_image_3d
from monai.engines import SupervisedTrainer
from torch import Tensor

from egcnn.losses import EGCNNLoss
from egcnn.nn import EGCNN, Segmentation, UNet
from egcnn.regions import Regions

REGIONS = Regions(("background", "sphere"), ((0,), (1,)), "softmax")


def cases(count: int, size: int) -> list[dict[str, Tensor]]:
    """Images and label maps, each (1, D, H, W)."""
    pairs = [create_test_image_3d(size, size, size, rad_max=size // 4) for _ in range(count)]
    return [
        {"image": torch.tensor(image)[None], "label": torch.tensor(label > 0)[None].long()}
        for image, label in pairs
    ]


def main(epochs: int = 4, size: int = 32, count: int = 8) -> list[float]:
    """Train, and return the loss of each step."""
    backbone = UNet(1, len(REGIONS), filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1))
    network = EGCNN(backbone, exclusive=REGIONS.exclusive)
    loss = EGCNNLoss(REGIONS)

    def total(segmentation: Segmentation, labels: Tensor) -> Tensor:
        return loss(segmentation, labels)["loss"]

    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(Dataset(cases(count, size)), batch_size=2, shuffle=True),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=1e-3),
        loss_function=total,
        decollate=False,
    )
    losses: list[float] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"].item())
    )
    trainer.run()
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
