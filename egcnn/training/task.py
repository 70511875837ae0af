"""The Lightning module: network, losses, optimizer, validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from egcnn.checkpoint import KEY, Trained
from egcnn.data.case import Dataset
from egcnn.errors import InputError
from egcnn.losses import EGCNNLoss
from egcnn.metrics import dice, edge_scores_by_source
from egcnn.nn import Segmentation
from egcnn.nn.network import build_network
from egcnn.training.batches import combine_seeds
from egcnn.training.config import TrainingConfig
from egcnn.windows import segment

# Keeps the seeds of the consistency loss's noise apart from those of the augmentation.
_NOISE = 2


class SegmentationTask(L.LightningModule):
    """The network, its loss (Eq. 3), Adam with polynomial decay (Eq. 9), and validation.

    Args:
        config: the run's hyperparameters.
        dataset: defines regions and modalities.
        provenance: stored in every checkpoint.
    """

    def __init__(
        self, config: TrainingConfig, dataset: Dataset, provenance: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.regions = dataset.regions
        torch.manual_seed(config.seed)
        network = build_network(
            config.network,
            len(dataset.modalities),
            len(dataset.regions),
            exclusive=dataset.regions.exclusive,
        )
        self.network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.trained = Trained(
            network=self.network,
            settings=config.network,
            preprocessing=config.preprocessing,
            regions=dataset.regions,
            modalities=dataset.modalities,
            provenance=dict(provenance or {}),
        )
        self.loss = EGCNNLoss(dataset.regions, config.loss)

    def forward(self, image: Tensor) -> Segmentation:
        """Compute logits and edge logits of images ``(B, M, D, H, W)``."""
        output = self.network(image.contiguous(memory_format=torch.channels_last_3d))
        return output if isinstance(output, Segmentation) else Segmentation(output, None)

    def on_train_epoch_start(self) -> None:
        """Set the temperature of Eq. 8."""
        self.loss.consistency.tau = self.config.temperature(self.current_epoch)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of Eq. 3 on a batch ``{"image", "label"}``."""
        # The noise is seeded from the step, so a resumed run draws the same.
        noise = combine_seeds(self.config.seed, _NOISE, self.global_step, self.global_rank)
        torch.manual_seed(noise)
        seed = torch.tensor(noise, dtype=torch.int64, device=self.device)
        losses: dict[str, Tensor] = self.loss(self(batch["image"]), batch["label"], seed)
        if not losses["loss"].isfinite():
            raise InputError(
                f"training: the loss is {losses['loss'].item()} in epoch {self.current_epoch + 1}, "
                f"step {batch_idx + 1}; a lower learning rate (it is {self.config.lr:g}) or "
                "precision 32-true may help"
            )
        size = len(batch["image"])
        self.log(
            "loss",
            losses["loss"],
            on_step=True,
            on_epoch=True,
            prog_bar=True,
            batch_size=size,
            sync_dist=True,
        )
        parts = {name: value for name, value in losses.items() if name != "loss"}
        self.log_dict(parts, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return losses["loss"]

    def validation_step(self, item: dict[str, Any], batch_idx: int) -> None:
        """Compute Dice and edge scores per region of one volume, at the training's spacing."""
        image, label = item["image"][None], item["label"][None]
        probabilities, edges = segment(
            self.network,
            image,
            self.regions,
            self.config.preprocessing.patch,
            stride=self.config.network.stride,
            overlap=self.config.overlap,
        )
        labels = self.regions.decode(probabilities).to(label.device)
        predicted, true = (self.regions.reported(self.regions.masks(x)) for x in (labels, label))
        if (ignored := self.regions.ignored(label)) is not None:
            predicted = predicted.masked_fill(ignored, 0)
        if edges is not None:
            edges = self.regions.reported(edges.to(label.device))
        scores = {"dice": dice(predicted, true), **edge_scores_by_source(predicted, true, edges)}
        for metric, values in scores.items():
            for value, name in zip(values[0], self.regions.reported_names, strict=True):
                self._log_score(f"{metric}_{name}", value, prog_bar=metric == "dice")
        self._log_score("dice", scores["dice"][0].mean())

    def _log_score(self, name: str, value: Tensor, prog_bar: bool = False) -> None:
        """Log one case's score for the mean over cases; NaN is ignored.

        The weight is a float: Lightning averages it over devices in its own dtype, and an integer
        mean would be truncated if devices hold different numbers of cases.
        """
        weight: Any = float(not value.isnan())
        self.log(name, value.nan_to_num(), prog_bar=prog_bar, batch_size=weight, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Configure Adam, with the learning rate of Eq. 9 updated once per epoch."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.config.lr, fused=True)
        count, power = self.config.epochs, self.config.lr_power
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: max(0.0, 1 - epoch / count) ** power
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the ``"egcnn"`` entry, which makes the checkpoint usable without Lightning."""
        checkpoint[KEY] = self.trained.entry()
