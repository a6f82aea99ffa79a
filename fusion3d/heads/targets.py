"""What a detection head should say, from ground-truth boxes; and what is known of each class beforehand.

Letters: B samples, K boxes of all samples, Y X grid cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES, BEVGrid, Boxes

MIN_RADIUS = 2  # of a peak of the heatmap [cells]
_MIN_OVERLAP = 0.1  # a centre moved by the radius still makes a box that overlaps the true one by this

# Usual length, width, height [m]; the head regresses what differs from it.
USUAL_SIZE = {
    "car": (4.6, 1.95, 1.75),
    "truck": (6.9, 2.5, 2.85),
    "bus": (11.2, 2.95, 3.5),
    "trailer": (12.3, 2.9, 3.9),
    "construction_vehicle": (6.4, 2.85, 3.2),
    "pedestrian": (0.73, 0.67, 1.77),
    "motorcycle": (2.1, 0.77, 1.47),
    "bicycle": (1.7, 0.6, 1.3),
    "traffic_cone": (0.41, 0.41, 1.07),
    "barrier": (0.5, 2.5, 0.98),
}
_FAMILY = {
    "car": "vehicle.", "truck": "vehicle.", "bus": "vehicle.", "trailer": "vehicle.",
    "construction_vehicle": "vehicle.", "pedestrian": "pedestrian.", "motorcycle": "cycle.", "bicycle": "cycle.",
}  # fmt: skip


def usual_sizes(device: torch.device | str = "cpu") -> Tensor:
    """[10, 3] float32: usual length, width, height of every detection class [m]."""
    return torch.tensor([USUAL_SIZE[name] for name in DETECTION_CLASSES], device=device)


def allowed_attributes(device: torch.device | str = "cpu") -> Tensor:
    """[10, 8] bool: which attributes nuScenes gives to which class (cones and barriers have none)."""
    return torch.tensor(
        [[name in _FAMILY and attribute.startswith(_FAMILY[name]) for attribute in ATTRIBUTES]
         for name in DETECTION_CLASSES],
        device=device,
    )  # fmt: skip


def by_class(usual: float | Mapping[str, float], others: Mapping[Any, float]) -> list[float]:
    """A value for each of DETECTION_CLASSES: that of ``others``, or else the usual one (of all, or of each)."""
    usual = usual if isinstance(usual, Mapping) else dict.fromkeys(DETECTION_CLASSES, usual)
    return [others.get(name, usual[name]) for name in DETECTION_CLASSES]


def gaussian_radius(length: Tensor, width: Tensor) -> Tensor:
    """[K] sizes in cells to [K] radius of the heatmap's peak in cells, before rounding.

    CornerNet's three cases as CenterPoint computes them, its well-known factor in the roots included, so that peaks
    are as wide as in the published recipes.
    """
    total, area, overlap = length + width, length * width, _MIN_OVERLAP
    both = (total + (total**2 - 4 * area * (1 - overlap) / (1 + overlap)).sqrt()) / 2
    inner = (2 * total + (4 * total**2 - 16 * (1 - overlap) * area).sqrt()) / 2
    outer = (-2 * overlap * total + (4 * overlap**2 * total**2 + 16 * overlap * (1 - overlap) * area).sqrt()) / 2
    return torch.minimum(torch.minimum(both, inner), outer)


@dataclass(frozen=True)
class DetectionTargets:
    """Targets of B samples: a dense heatmap and, for each of K boxes, what is to be said of it from its anchor."""

    heatmap: Tensor  # [B, 10, Y, X] in [0, 1], 1 at the cell of a centre
    boxes: Boxes  # K, those inside of the grid
    sample: Tensor  # [K] int64
    cell: Tensor  # [K] int64, iy * X + ix
    label: Tensor  # [K] int64
    offset: Tensor  # [K, 2] centre - anchor [cells]; from the cell's low corner in [0, 1)
    height: Tensor  # [K, 1] z of the centre - half the usual height [m]
    size: Tensor  # [K, 3] log(size / usual size)
    yaw: Tensor  # [K, 2] sin, cos
    velocity: Tensor  # [K, 2] [m/s], NaN where unknown
    attribute: Tensor  # [K] int64, -1 unknown


@torch.no_grad()
def encode_boxes(
    boxes: tuple[Boxes, ...], grid: BEVGrid, min_radius: Mapping[Any, float] | None = None
) -> DetectionTargets:
    """Detection targets of B samples. Boxes whose centre is outside of the grid are not asked for.

    Args:
        boxes: ground truth of every sample, on one device.
        grid: the grid of the maps.
        min_radius: smallest radius of a class's peaks [cells], where it is not MIN_RADIUS.
    """
    center, size, yaw, velocity, label, attribute = (
        torch.cat([getattr(b, name) for b in boxes])
        for name in ("center", "size", "yaw", "velocity", "label", "attribute")
    )
    every = Boxes.of(center, size, yaw, velocity, label, attribute=attribute)
    sample = torch.cat([torch.full((len(b),), i, device=every.label.device) for i, b in enumerate(boxes)])
    cell, keep = grid.cell_of(every.center)
    every, sample, cell = every[keep], sample[keep], cell[keep]
    smallest = every.size.new_tensor(by_class(MIN_RADIUS, min_radius or {}))[every.label]
    return DetectionTargets(
        heatmap=draw_heatmap(len(boxes), sample, cell, every.label, every.size / grid.resolution, smallest, grid.shape),
        boxes=every,
        sample=sample,
        cell=cell,
        **describe_boxes(every, corners(cell, grid), every.label, grid),
    )


def corners(cell: Tensor, grid: BEVGrid) -> Tensor:
    """[...] flat index of cells to [..., 2] x, y of their low corners [cells]."""
    cols = grid.shape[1]
    return torch.stack([cell % cols, cell // cols], dim=-1)


def describe_boxes(boxes: Boxes, anchor_K2: Tensor, label_K: Tensor, grid: BEVGrid) -> dict[str, Tensor]:
    """What is to be said of boxes, by the names of DetectionTargets; ``detection.place_boxes`` undoes it.

    Args:
        boxes: K.
        anchor_K2: x, y of what offsets are said from [cells].
        label_K: [K] int64, class that sizes and heights are said relative to.
        grid: where cells are.
    """
    usual = usual_sizes(label_K.device)[label_K]
    return {
        "label": boxes.label,
        "offset": grid.place_of(boxes.center[:, :2]) - anchor_K2,
        "height": boxes.center[:, 2:] - usual[:, 2:] / 2,
        "size": (boxes.size.clamp(min=1e-3) / usual).log(),
        "yaw": torch.stack([boxes.yaw.sin(), boxes.yaw.cos()], dim=1),
        "velocity": boxes.velocity,
        "attribute": boxes.attribute,
    }


def draw_heatmap(
    num_samples: int,
    sample: Tensor,
    cell: Tensor,
    label: Tensor,
    size: Tensor,
    min_radius: Tensor,
    shape: tuple[int, int],
) -> Tensor:
    """[B, 10, Y, X] with a gaussian of sigma (2 r + 1) / 6 cells around every centre; the larger one counts.

    Args:
        num_samples: B.
        sample, cell, label: [K] int64.
        size: [K, 2+] length, width in cells.
        min_radius: [K] smallest radius in cells.
        shape: (Y, X).
    """
    rows, cols = shape
    heatmap = torch.zeros(num_samples * len(DETECTION_CLASSES) * rows * cols, device=size.device)
    if not len(cell):
        return heatmap.view(num_samples, -1, rows, cols)
    radius = gaussian_radius(size[:, 0], size[:, 1]).floor().maximum(min_radius)
    reach = int(radius.max())
    step = torch.arange(-reach, reach + 1, device=size.device)
    dy, dx = (part.flatten() for part in torch.meshgrid(step, step, indexing="ij"))
    iy, ix = (cell // cols)[:, None] + dy, (cell % cols)[:, None] + dx
    sigma = (2 * radius[:, None] + 1) / 6
    value = torch.exp(-(dx**2 + dy**2) / (2 * sigma**2))
    inside = (iy >= 0) & (iy < rows) & (ix >= 0) & (ix < cols)
    inside &= torch.maximum(dx.abs(), dy.abs()) <= radius[:, None]
    index = ((sample * len(DETECTION_CLASSES) + label)[:, None] * rows + iy) * cols + ix
    heatmap = heatmap.scatter_reduce(0, index[inside], value[inside], "amax")
    return heatmap.view(num_samples, -1, rows, cols)
