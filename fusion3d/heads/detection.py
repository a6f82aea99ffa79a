"""Detection head: objects as peaks of a heatmap (CenterPoint, Yin et al., 2021), with its loss and its decoding.

One group of tasks: each class has its own heatmap, and what a cell says of its box is shared by the classes. Objects
of two classes in one cell, which share would harm, are rare. Sizes and heights are said relative to the usual ones of
the class, so the shared regression need not first learn what a bus is.
Letters: B samples, K boxes, C channels, Y X grid cells.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d import ops
from fusion3d.config import DetectionConfig
from fusion3d.counts import divisor
from fusion3d.encoders.blocks import conv_block
from fusion3d.heads.targets import DetectionTargets, allowed_attributes, encode_boxes, usual_sizes
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES, Batch, BEVGrid, Boxes

_BOX_CHANNELS = {"offset": 2, "height": 1, "size": 3, "yaw": 2, "velocity": 2, "attribute": len(ATTRIBUTES)}
_PRIOR_LOGIT = -2.19  # of 0.1
_NUM_PEAKS = 1000  # candidates before suppression
_MAX_LOG_SIZE = 2.5  # no box is more than e^2.5 times the usual size of its class
_ROTATED_THRESHOLD = 0.2  # intersection over union
# Smallest distance of two centres of one class [m]; CenterPoint's radii.
_CIRCLE_RADIUS = {
    "car": 2.0, "truck": 3.46, "bus": 3.16, "trailer": 3.16, "construction_vehicle": 3.46,
    "pedestrian": 0.42, "motorcycle": 0.92, "bicycle": 0.92, "traffic_cone": 0.42, "barrier": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class DetectionMaps:
    """Raw maps of the head; the targets of the same names say what each means."""

    heatmap: Tensor  # [B, 10, Y, X] logits
    offset: Tensor  # [B, 2, Y, X] [cells]
    height: Tensor  # [B, 1, Y, X] [m]
    size: Tensor  # [B, 3, Y, X]
    yaw: Tensor  # [B, 2, Y, X] sin, cos
    velocity: Tensor  # [B, 2, Y, X] [m/s]
    attribute: Tensor  # [B, 8, Y, X] logits


class DetectionHead(nn.Module):
    """BEV map to detection maps; ``losses`` and ``decode`` say what they mean."""

    def __init__(self, config: DetectionConfig, inputs: int, grid: BEVGrid) -> None:
        super().__init__()
        self.config = config
        self.grid = grid
        self.heatmap = nn.Sequential(
            conv_block(inputs, config.channels, norm="group"),
            nn.Conv2d(config.channels, len(DETECTION_CLASSES), 1),
        )
        self.box = nn.Sequential(
            conv_block(inputs, config.channels, norm="group"),
            nn.Conv2d(config.channels, sum(_BOX_CHANNELS.values()), 1),
        )
        prior_bias_(self.heatmap[-1])

    def forward(self, bev_BCYX: Tensor, batch: Batch) -> DetectionMaps:
        """Maps at the grid's resolution."""
        parts = self.box(bev_BCYX).split(list(_BOX_CHANNELS.values()), dim=1)
        return DetectionMaps(self.heatmap(bev_BCYX), **dict(zip(_BOX_CHANNELS, parts, strict=True)))

    def losses(self, maps: DetectionMaps, batch: Batch) -> dict[str, Tensor]:
        """Weighted loss terms over the annotated samples; zeros, still in the graph, where there are none."""
        maps = DetectionMaps(*(getattr(maps, f.name).float() for f in dataclasses.fields(maps)))
        if batch.boxes is None:
            zero = 0.0 * (maps.heatmap.sum() + sum(getattr(maps, name).sum() for name in _BOX_CHANNELS))
            return {"heatmap": zero} | dict.fromkeys(_BOX_CHANNELS, zero)
        targets = encode_boxes(batch.boxes, self.grid)
        terms = box_losses(maps, targets)
        terms["velocity"] = terms["velocity"] * self.config.velocity_weight
        terms = {name: value * self.config.regression_weight for name, value in terms.items()}
        terms = {"heatmap": heatmap_loss(maps.heatmap, targets, batch.annotated)} | terms
        return {name: value * self.config.loss_weight for name, value in terms.items()}

    @torch.no_grad()
    def decode(self, maps: DetectionMaps) -> tuple[Boxes, ...]:
        """The boxes of every sample, best first, in the frame of the batch; attributes fit their class."""
        maps = DetectionMaps(*(getattr(maps, f.name).float() for f in dataclasses.fields(maps)))
        return tuple(self._decode_sample(maps, sample) for sample in range(len(maps.heatmap)))

    def _decode_sample(self, maps: DetectionMaps, sample: int) -> Boxes:
        rows, cols = self.grid.shape
        heatmap = maps.heatmap[sample]
        peak = heatmap == F.max_pool2d(heatmap, 3, stride=1, padding=1)
        score, index = torch.where(peak, heatmap.sigmoid(), 0).flatten().topk(min(_NUM_PEAKS, heatmap.numel()))
        index = index[score > self.config.score_threshold]
        score = score[: len(index)]
        label, cell = index // (rows * cols), index % (rows * cols)
        said = {name: getattr(maps, name)[sample].flatten(1)[:, cell].T for name in _BOX_CHANNELS}
        usual = usual_sizes(score.device)[label]
        low = score.new_tensor([self.grid.x[0], self.grid.y[0]])
        xy = low + (torch.stack([cell % cols, cell // cols], dim=1) + said["offset"]) * self.grid.resolution
        allowed = allowed_attributes(score.device)[label]
        attribute = said["attribute"].masked_fill(~allowed, -torch.inf).argmax(1)
        boxes = Boxes.of(
            center=torch.cat([xy, said["height"] + usual[:, 2:] / 2], dim=1),
            size=usual * said["size"].clamp(-_MAX_LOG_SIZE, _MAX_LOG_SIZE).exp(),
            yaw=torch.atan2(*said["yaw"].unbind(1)),
            velocity=said["velocity"],
            label=label,
            score=score,
            attribute=torch.where(allowed.any(1), attribute, -1),
        )
        return boxes[self._suppress(boxes)]

    def _suppress(self, boxes: Boxes) -> Tensor:
        """Indices of the boxes that stay, best first."""
        if self.config.nms == "none":
            return torch.arange(min(len(boxes), self.config.max_boxes), device=boxes.score.device)
        footprint = torch.cat([boxes.center[:, :2], boxes.size[:, :2], boxes.yaw[:, None]], dim=1)
        circle = self.config.nms == "circle"
        threshold = [_CIRCLE_RADIUS[name] for name in DETECTION_CLASSES] if circle else _ROTATED_THRESHOLD
        metric = "circle" if circle else "rotated"
        return ops.nms_bev(footprint, boxes.score, boxes.label, threshold, self.config.max_boxes, metric).trim()


def prior_bias_(layer: nn.Module) -> None:
    """Let the last layer of a heatmap start at 0.1 everywhere: objects are rare, and the first steps stay calm."""
    nn.init.constant_(layer.bias, _PRIOR_LOGIT)  # type: ignore[arg-type]


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Gaussian focal loss (CornerNet, Law and Deng, 2018), element by element.

    Every element is pushed down with weight (1 - target)^4 p^2; where the target is 1, up with (1 - p)^2. Written with
    logits, so nothing is clamped.
    """
    p, minus_log_not_p = logits.sigmoid(), F.softplus(logits)
    down = (1 - target) ** 4 * p**2 * minus_log_not_p
    up = (1 - p) ** 2 * (minus_log_not_p - logits)
    return torch.where(target == 1, up, down)


def heatmap_loss(logits_BNYX: Tensor, targets: DetectionTargets, counts_B: Tensor, name: str = "heatmap") -> Tensor:
    """Focal loss of the N classes' heatmaps, per object. Only the samples that count do, with their objects.

    ``name`` is that of the ``divisor``.
    """
    loss_B = focal_loss(logits_BNYX, targets.heatmap).flatten(1).sum(1)
    return (loss_B * counts_B).sum() / divisor(name, counts_B[targets.sample].sum())


def box_losses(maps: DetectionMaps, targets: DetectionTargets) -> dict[str, Tensor]:
    """L1 of what the centre cells say, and cross-entropy of their attributes; each a mean over the boxes it knows.

    A barrier looks the same from behind and a cone from everywhere, and nuScenes scores them so: the barrier's yaw is
    compared up to half a turn and the cone's not at all.
    """
    said = {
        name: getattr(maps, name).flatten(2).transpose(1, 2)[targets.sample, targets.cell] for name in _BOX_CHANNELS
    }
    count = divisor("boxes", targets.cell.new_full((), len(targets.cell)))
    terms = {name: (said[name] - getattr(targets, name)).abs().sum() / count for name in ("offset", "height", "size")}
    barrier, cone = (targets.label == DETECTION_CLASSES.index(name) for name in ("barrier", "traffic_cone"))
    straight, turned = ((said["yaw"] - sign * targets.yaw).abs().sum(1) for sign in (1, -1))
    yaw = torch.where(barrier, torch.minimum(straight, turned), straight)
    terms["yaw"] = yaw.masked_fill(cone, 0).sum() / divisor("yaw", (~cone).sum())
    moves = targets.velocity.isfinite().all(1)
    velocity = (said["velocity"] - targets.velocity.nan_to_num()).abs().sum(1)
    terms["velocity"] = (velocity * moves).sum() / divisor("velocity", moves.sum())
    allowed = allowed_attributes(targets.label.device)[targets.label]
    fits = (targets.attribute >= 0) & allowed.gather(1, targets.attribute.clamp(min=0)[:, None])[:, 0]
    logits = said["attribute"].masked_fill(~allowed & fits[:, None], -1e4)
    attribute = F.cross_entropy(logits, targets.attribute.clamp(min=0), reduction="none")
    terms["attribute"] = (attribute * fits).sum() / divisor("attribute", fits.sum())
    return terms
