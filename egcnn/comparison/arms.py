"""The arms of a comparison: a backbone alone, larger, with the consistency loss, as EG-CNN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from egcnn.comparison.sizes import larger_filters
from egcnn.data.case import Dataset
from egcnn.training import TrainingConfig

Kind = Literal["none", "larger", "consistency", "egcnn", "paper"]
#: Titles of the kinds of arm: the backbone alone; alone, with as many parameters as EG-CNN; alone,
#: with the consistency loss; EG-CNN; EG-CNN with the preset "paper".
KINDS: dict[Kind, str] = {
    "none": "none",
    "larger": "none, larger",
    "consistency": "none, consistency loss",
    "egcnn": "EG-CNN",
    "paper": "EG-CNN, preset paper",
}


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Args:
        backbone: one of ``egcnn.nn.BACKBONES``.
        kind: one of :data:`KINDS`.
        setting: ``NAME=VALUE`` texts separated by spaces that change the common configuration (an
            ablation).
    """

    backbone: str
    kind: Kind
    setting: str = ""

    @property
    def name(self) -> str:
        """A name that no other arm has."""
        parts = [self.backbone, *([] if self.kind == "none" else [self.kind]), *self._settings]
        return "-".join(parts)

    def folder(self, seed: int) -> str:
        """Name of the folder of the run with a seed."""
        return f"{self.name}-seed{seed}"

    @property
    def title(self) -> str:
        """Text of the table's second column."""
        return ", ".join([KINDS[self.kind], *self._settings])

    @property
    def _settings(self) -> list[str]:
        return self.setting.split()

    def config(self, config: TrainingConfig, dataset: Dataset, seed: int) -> TrainingConfig:
        """The run's hyperparameters."""
        edge = self.kind in ("egcnn", "paper")
        config = config.change(
            {"network.backbone.name": self.backbone, "network.edge": edge, "seed": seed}
        )
        if self.kind == "paper":
            config = config.preset("paper")
        if self.kind == "consistency":
            weight = config.loss.weights(edge_stream=True)["consistency"]
            config = config.change({"loss.consistency_weight": weight})
        elif self.kind in ("none", "larger"):
            config = config.change({"loss.consistency_weight": None})
        if self.kind == "larger":
            filters = larger_filters(config.network, len(dataset.modalities), len(dataset.regions))
            config = config.change({"network.backbone.filters": filters})
        return config.parse(self._settings)
