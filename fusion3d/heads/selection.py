"""Which of the boxes that a head says are worth keeping: scores, suppression and limits, class by class.

Letters: B samples, K boxes of a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusion3d import ops
from fusion3d.config import DetectionConfig
from fusion3d.errors import ConfigError
from fusion3d.heads.targets import by_class
from fusion3d.ops.boxes import Metric
from fusion3d.types import Boxes

_ROTATED_OVERLAP = 0.2  # intersection over union
# Smallest distance of two centres of one class [m]; CenterPoint's radii, whose squares its configuration gives.
_CIRCLE_RADIUS = {
    "car": 2.0, "truck": 3.46, "bus": 3.16, "trailer": 3.16, "construction_vehicle": 3.46,
    "pedestrian": 0.42, "motorcycle": 0.92, "bicycle": 0.92, "traffic_cone": 0.42, "barrier": 1.0,
}  # fmt: skip


class Selection:
    """Boxes that score enough, are not too close to a better one of their class, and are not too many.

    With ``nms_scale`` boxes are measured grown or shrunk (scale-NMS of BEVDet, Huang et al., 2021).

    Args:
        config: with the settings of each class.
        usual: what nms "auto" stands for.

    Raises:
        ConfigError: a setting of another suppression than the one that is chosen.
    """

    def __init__(self, config: DetectionConfig, usual: Metric | None) -> None:
        metric = {"auto": usual, "none": None}.get(config.nms, config.nms)
        for key, of in (("circle_radius", "circle"), ("rotated_overlap", "rotated"), ("nms_scale", "rotated")):
            if getattr(config, key) and metric != of:
                raise ConfigError(f"detection.{key} is set, and detection.nms is {config.nms!r}: set it to {of!r}")
        self.metric: Metric = metric or "circle"
        if metric == "rotated":
            self.threshold = by_class(_ROTATED_OVERLAP, config.rotated_overlap)
        else:
            self.threshold = by_class(_CIRCLE_RADIUS, config.circle_radius) if metric else by_class(0.0, {})
        self.scale = by_class(1.0, config.nms_scale)
        self.min_score = by_class(config.score_threshold, config.class_score_threshold)
        self.max_boxes = config.max_boxes
        self.max_of_class = by_class(config.max_boxes, config.class_max_boxes) if config.class_max_boxes else None

    def __call__(self, boxes: Boxes, num_samples: int) -> tuple[Boxes, ...]:
        """The boxes that stay of each sample, best first.

        Args:
            boxes: B * K, sample by sample.
            num_samples: B.
        """
        device, each = boxes.score.device, len(boxes) // num_samples
        enough = boxes.score > torch.tensor(self.min_score, device=device)[boxes.label]
        label = torch.where(enough, boxes.label, -1)
        size = boxes.size[:, :2] * torch.tensor(self.scale, device=device)[boxes.label, None]
        footprint = torch.cat([boxes.center[:, :2], size, boxes.yaw[:, None]], dim=1)
        most = self.max_boxes if self.max_of_class is None else each
        kept = [
            ops.nms_bev(*sample, self.threshold, most, self.metric)
            for sample in zip(footprint.split(each), boxes.score.split(each), label.split(each), strict=True)
        ]  # all of them before the first is read
        rows = [each * sample + one.trim() for sample, one in enumerate(kept)]
        return tuple(boxes[self._limit(row, boxes.label)] for row in rows)

    def _limit(self, row_K: Tensor, label: Tensor) -> Tensor:
        """The rows that are left when no class has more than it may; best first, as they come."""
        if self.max_of_class is not None:
            label_K = label[row_K]
            better_K = (label_K[:, None] == label_K).tril(-1).sum(1)  # of the same class
            row_K = row_K[better_K < torch.tensor(self.max_of_class, device=row_K.device)[label_K]]
        return row_K[: self.max_boxes]
