"""Detection by centres: objects as peaks of a heatmap (CenterPoint, Yin et al., 2021), with its loss and its decoding.

With one group of tasks each class has its own heatmap, and what a cell says of its box is shared by the classes:
objects of two classes in one cell, which share would harm, are rare. With CenterPoint's six, classes of alike size
share, and the loss is the sum of the groups', each a mean over its own objects. Unlike there, one branch says all of a
box instead of one for each part, yaw's loss knows symmetric classes, and attributes are said rather than guessed.
Letters: B samples, K peaks or boxes, C channels, N classes, G groups of classes, Y X grid cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion3d.config import DetectionConfig
from fusion3d.encoders.blocks import conv_block
from fusion3d.heads.detection import (
    BOX_CHANNELS,
    box_losses,
    heatmap_loss,
    in_float32,
    make_boxes,
    no_losses,
    prior_bias_,
    top_peaks,
    weigh,
)
from fusion3d.heads.selection import Selection
from fusion3d.heads.targets import DetectionTargets, corners, encode_boxes
from fusion3d.types import DETECTION_CLASSES, Batch, BEVGrid, Boxes

GROUPS = {
    "one": (DETECTION_CLASSES,),
    "six": (
        ("car",), ("truck", "construction_vehicle"), ("bus", "trailer"), ("barrier",), ("motorcycle", "bicycle"),
        ("pedestrian", "traffic_cone"),
    ),
}  # fmt: skip
_NUM_PEAKS = 1000  # candidates before suppression


@dataclass(frozen=True)
class DetectionMaps:
    """Raw maps of the head; the targets of the same names say what each means."""

    heatmap: Tensor  # [B, 10, Y, X] logits
    offset: Tensor  # [B, G, 2, Y, X] [cells]
    height: Tensor  # [B, G, 1, Y, X] [m]
    size: Tensor  # [B, G, 3, Y, X]
    yaw: Tensor  # [B, G, 2, Y, X] sin, cos
    velocity: Tensor  # [B, G, 2, Y, X] [m/s]
    attribute: Tensor  # [B, G, 8, Y, X] logits


class CenterHead(nn.Module):
    """BEV map to detection maps; ``losses`` and ``decode`` say what they mean."""

    order_N: Tensor
    group_NG: Tensor

    def __init__(self, config: DetectionConfig, inputs: int, grid: BEVGrid) -> None:
        super().__init__()
        self.config = config
        self.grid = grid
        self.select = Selection(config, usual="circle")
        groups = GROUPS[config.tasks]
        self.shared = nn.Identity()
        if len(groups) > 1:
            self.shared, inputs = conv_block(inputs, config.channels, norm="group"), config.channels
        self.tasks = nn.ModuleList(_Task(inputs, config.channels, len(group)) for group in groups)
        said = [name for group in groups for name in group]
        order = torch.tensor([said.index(name) for name in DETECTION_CLASSES])
        member = torch.tensor([[float(name in group) for group in groups] for name in DETECTION_CLASSES])
        self.register_buffer("order_N", order, persistent=False)  # where the groups' heatmaps have each class
        self.register_buffer("group_NG", member, persistent=False)  # 1 where a class is of a group

    def forward(self, bev_BCYX: Tensor, batch: Batch) -> DetectionMaps:
        """Maps at the grid's resolution."""
        shared_BCYX = self.shared(bev_BCYX)
        boxes, heatmaps = zip(*(task(shared_BCYX) for task in self.tasks), strict=True)
        box_BGCYX = torch.cat(boxes, dim=1).unflatten(1, (len(boxes), -1))
        parts = box_BGCYX.split(list(BOX_CHANNELS.values()), dim=2)
        heatmap_BNYX = torch.cat(heatmaps, dim=1)
        if len(self.tasks) > 1:
            heatmap_BNYX = heatmap_BNYX[:, self.order_N]
        return DetectionMaps(heatmap_BNYX, **dict(zip(BOX_CHANNELS, parts, strict=True)))

    def targets(self, batch: Batch) -> DetectionTargets | None:
        """What the head should say of a batch; None where nothing is annotated."""
        return None if batch.boxes is None else encode_boxes(batch.boxes, self.grid, self.config.heatmap_radius)

    def losses(self, maps: DetectionMaps, batch: Batch, targets: DetectionTargets | None = None) -> dict[str, Tensor]:
        """Weighted loss terms over the annotated samples; zeros, still in the graph, where there are none.

        Args:
            maps: of ``forward``.
            batch: with annotations.
            targets: of ``targets(batch)``, where they are known already.
        """
        maps = in_float32(maps)
        targets = self.targets(batch) if targets is None else targets
        if targets is None:
            return no_losses(maps, ("heatmap",))
        heatmap = heatmap_loss(maps.heatmap, targets, batch.annotated, self.group_NG)
        said = self._read(maps, targets.sample, targets.label, targets.cell)
        return weigh({"heatmap": heatmap}, box_losses(said, targets, self.group_NG), self.config)

    @torch.no_grad()
    def decode(self, maps: DetectionMaps) -> tuple[Boxes, ...]:
        """The boxes of every sample, best first, in the frame of the batch; attributes fit their class."""
        maps = in_float32(maps)
        peaks = top_peaks(maps.heatmap, _NUM_PEAKS)
        size, each = peaks.score.shape
        sample = torch.arange(size, device=peaks.cell.device).repeat_interleave(each)
        score, label, cell = (part.flatten() for part in (peaks.score, peaks.label, peaks.cell))
        said = self._read(maps, sample, label, cell)
        return self.select(make_boxes(said, corners(cell, self.grid), label, score, self.grid), size)

    def _read(self, maps: DetectionMaps, sample_K: Tensor, label_K: Tensor, cell_K: Tensor) -> dict[str, Tensor]:
        """[K, c] of each part: what cells say of boxes of these classes."""
        group_K = self.group_NG.argmax(1)[label_K]
        return {
            name: getattr(maps, name).flatten(3).transpose(2, 3)[sample_K, group_K, cell_K] for name in BOX_CHANNELS
        }


class _Task(nn.Module):
    """Heatmaps and boxes of one group of classes."""

    def __init__(self, inputs: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.heatmap = nn.Sequential(
            conv_block(inputs, channels, norm="group"),
            nn.Conv2d(channels, num_classes, 1),
        )
        self.box = nn.Sequential(
            conv_block(inputs, channels, norm="group"),
            nn.Conv2d(channels, sum(BOX_CHANNELS.values()), 1),
        )
        prior_bias_(self.heatmap[-1])

    def forward(self, map_BCYX: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 18, Y, X] of boxes and [B, n, Y, X] logits."""
        return self.box(map_BCYX), self.heatmap(map_BCYX)
