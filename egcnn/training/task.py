"""The Lightning module: network, losses, optimizer, validation."""

from __future__ import annotations

import math
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
from egcnn.nn.blocks import dropout_seeds
from egcnn.nn.network import build_network
from egcnn.nn.recomputation import recompute_stages
from egcnn.training.config import TrainingConfig
from egcnn.windows import segment

# Entry of a checkpoint: the sums of the epoch's losses.
_SUMS = "egcnn_sums"


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
        if config.activation_checkpointing:
            recompute_stages(self.network)
        if config.compile:
            self.network.compile()
        self.trained = Trained(
            network=self.network,
            settings=config.network,
            preprocessing=config.preprocessing,
            regions=dataset.regions,
            modalities=dataset.modalities,
            provenance=dict(provenance or {}),
        )
        self.loss = EGCNNLoss(dataset.regions, config.loss)
        # Of the epoch so far: the sum of each loss over cases, by name, and the number of cases.
        self.sums: dict[str, float] = {}

    def forward(self, image: Tensor) -> Segmentation:
        """Compute logits and edge logits of images ``(B, M, D, H, W)``."""
        output = self.network(image.contiguous(memory_format=torch.channels_last_3d))
        return output if isinstance(output, Segmentation) else Segmentation(output, None)

    def on_train_epoch_start(self) -> None:
        """Begin the means of the epoch."""
        self.sums = {}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute the loss of Eq. 3 on a batch of :class:`egcnn.training.batches.CaseData`."""
        # Here and not once per epoch, which may be resumed in its midst (Eq. 8).
        self.loss.consistency.tau = self.config.temperature(self.current_epoch)
        # The noise is seeded from the sample, so any division of a batch draws the same.
        with dropout_seeds(batch["noise"]):
            output = self(batch["image"])
        losses: dict[str, Tensor] = self.loss(output, batch["label"], batch["noise"])
        means = self._add(losses, len(batch["image"]) if batch["weight"] else 0)
        if not math.isfinite(means["loss"]):
            raise InputError(
                f"training: the loss is {means['loss']} in epoch {self.current_epoch + 1}, "
                f"step {batch_idx + 1}; a lower learning rate (it is {self.config.lr:g}) or "
                "precision 32-true may help"
            )
        self.log("loss_step", means["loss"], prog_bar=True, batch_size=1)
        return losses["loss"] * batch["weight"]

    def _add(self, losses: dict[str, Tensor], cases: int) -> dict[str, float]:
        """Add the losses of a batch to the epoch's; returns their means over all devices.

        All devices hold the same sums, so that the checkpoint of one resumes all.
        """
        values = torch.stack([*losses.values(), torch.ones_like(losses["loss"])])
        sums = self.trainer.strategy.reduce(values.detach().double() * cases, reduce_op="sum")
        *added, count = sums.tolist()
        for name, value in zip((*losses, "cases"), (*added, count), strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + value
        return {name: value / count for name, value in zip(losses, added, strict=True)}

    def mean_losses(self) -> dict[str, float]:
        """The mean of each loss over the cases of the epoch so far."""
        return {k: v / self.sums["cases"] for k, v in self.sums.items() if k != "cases"}

    def on_train_epoch_end(self) -> None:
        """Log the epoch's losses."""
        means = self.mean_losses()
        self.log_dict({"loss_epoch": means.pop("loss"), **means}, sync_dist=True)

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
        scores = {
            "dice": dice(predicted, true),
            **edge_scores_by_source(labels, label, self.regions, edges),
        }
        for metric, values in scores.items():
            for value, name in zip(values[0], self.regions.reported_names, strict=True):
                self._log_score(f"{metric}_{name}", value, item["weight"], metric == "dice")
        self._log_score("dice", scores["dice"][0].mean(), item["weight"])

    def _log_score(self, name: str, value: Tensor, weight: float, prog_bar: bool = False) -> None:
        """Log one case's score for the mean over cases; NaN is ignored.

        The weight is a float: Lightning averages it over devices in its own dtype, and an integer
        mean would be truncated if devices hold different numbers of cases.
        """
        size: Any = weight * (not value.isnan())
        self.log(name, value.nan_to_num(), prog_bar=prog_bar, batch_size=size, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Configure Adam, with the learning rate of Eq. 9 updated once per epoch."""
        # Gradients in float16 are scaled, and the fused Adam would unscale them after the clipping.
        fused = self.config.clip_gradients is None or self.config.precision != "16-mixed"
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.config.lr, fused=fused)
        count, power = self.config.epochs, self.config.lr_power
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: max(0.0, 1 - epoch / count) ** power
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the ``"egcnn"`` entry, which makes the checkpoint usable without Lightning."""
        entry = self.trained.entry()
        # ``current_epoch`` lags behind at the end of an epoch.
        epochs = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        entry["provenance"].update(epochs=epochs, steps=self.global_step)
        checkpoint[KEY] = entry
        checkpoint[_SUMS] = dict(self.sums)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the means of the epoch."""
        self.sums = dict(checkpoint.get(_SUMS, {}))
