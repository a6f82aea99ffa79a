"""A heatmap from each sensor's own map, asked for while training only.

Trained together, the branch that learns fastest leaves little for the others to explain (Wang et al., "What Makes
Training Multi-Modal Classification Networks Hard?", 2020). A small loss on every sensor's own map keeps each of them
learning, so that the model can do without the others.
Letters: B samples, C channels, N classes, Y X grid cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion3d.heads.detection import heatmap_loss, prior_bias_
from fusion3d.heads.targets import DetectionTargets
from fusion3d.types import DETECTION_CLASSES, Batch


@dataclass(frozen=True)
class SensorOutput:
    """What one sensor's map says, and of which samples."""

    logits: Tensor  # [B, N, Y, X]
    present: Tensor  # [B] bool: the sample has the sensor


class SensorHeatmaps(nn.Module):
    """One 3x3 convolution for each sensor, from its map to the ten classes' heatmaps."""

    def __init__(self, channels: Mapping[str, int], weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.heads = nn.ModuleDict(
            {name: nn.Conv2d(count, len(DETECTION_CLASSES), 3, padding=1) for name, count in channels.items()}
        )
        for head in self.heads.values():
            prior_bias_(head)

    def forward(self, maps: Mapping[str, Tensor | None], present: Mapping[str, Tensor]) -> dict[str, SensorOutput]:
        """Maps [B, C, Y, X] of the sensors that are there to their logits."""
        return {
            name: SensorOutput(self.heads[name](map_BCYX), present[name])
            for name, map_BCYX in maps.items()
            if map_BCYX is not None
        }

    def losses(
        self, said: Mapping[str, SensorOutput], batch: Batch, targets: DetectionTargets | None
    ) -> dict[str, Tensor]:
        """The weighted sum of the sensors' heatmap losses; 0, in the graph, where there are no targets."""
        if not said:
            return {}
        if targets is None:
            return {"sensors": torch.stack([0.0 * one.logits.sum() for one in said.values()]).sum()}
        terms = [
            heatmap_loss(one.logits.float(), targets, batch.annotated & one.present, name=f"sensors.{name}")
            for name, one in said.items()
        ]
        return {"sensors": self.weight * torch.stack(terms).sum()}
