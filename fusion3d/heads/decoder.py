"""A layer of the query head: queries attend to each other and to the map, and say their boxes.

Letters: B samples, Q queries, C channels, N map cells, H heads, P points of a head, D channels of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion3d import ops
from fusion3d.heads.detection import BOX_CHANNELS, prior_bias_
from fusion3d.types import DETECTION_CLASSES, BEVGrid

NUM_HEADS = 8


@dataclass(frozen=True)
class Window:
    """Where a query looks."""

    center: Tensor  # [B, Q, 2] x, y [cells]
    size: Tensor  # [B, Q, 2] length, width [m]
    yaw: Tensor  # [B, Q] [rad]

    def to_grid(self, steps_BQP2: Tensor, grid: BEVGrid) -> Tensor:
        """Steps in half lengths and widths of the window, which is a cell wider all around, to steps in cells."""
        along, across = (steps_BQP2 * (self.size / 2 / grid.resolution + 1)[:, :, None]).unbind(-1)
        cos, sin = self.yaw.cos()[..., None], self.yaw.sin()[..., None]
        return torch.stack([cos * along - sin * across, sin * along + cos * across], dim=-1)


class DecoderLayer(nn.Module):
    """Queries attend to each other, read the map and think for themselves; then each says a class and a box.

    Normalised after each step, as in the first transformers. The map is read at points that are said in the frame of
    the window (box-relative offsets of Deformable DETR, Zhu et al., 2021, turned by the yaw).
    """

    def __init__(self, channels: int, points: int) -> None:
        super().__init__()
        self.points = points
        self.position = _two_layers(2, channels, channels)
        self.attention = nn.MultiheadAttention(channels, NUM_HEADS, batch_first=True)
        self.steps = nn.Linear(channels, NUM_HEADS * points * 2)
        self.weights = nn.Linear(channels, NUM_HEADS * points)
        self.value = nn.Linear(channels, channels)
        self.read = nn.Linear(channels, channels)
        self.inner = _two_layers(channels, 2 * channels, channels)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.classes = _two_layers(channels, channels, len(DETECTION_CLASSES))
        self.boxes = _two_layers(channels, channels, sum(BOX_CHANNELS.values()))
        prior_bias_(self.classes[-1])
        # The heads look at first in as many directions, their points ever farther, up to the edge of the window.
        angle_H1 = torch.arange(NUM_HEADS)[:, None] * (2 * math.pi / NUM_HEADS)
        far_P = (torch.arange(points) + 1) / points
        with torch.no_grad():
            self.steps.weight.zero_()
            self.steps.bias.copy_(torch.stack([angle_H1.cos() * far_P, angle_H1.sin() * far_P], dim=-1).flatten())

    def forward(
        self, query_BQC: Tensor, map_BNC: Tensor, window: Window, grid: BEVGrid
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Queries that know more, and what they say: "logits" and the parts of a box, [B, Q, c] each, in float32.

        Offsets are from the centre of the window. Where queries look is in float32 under autocast too.
        """
        rows, cols = grid.shape
        point_BQ2 = torch.stack([window.center[..., 0] / cols, window.center[..., 1] / rows], dim=-1)
        with torch.autocast(point_BQ2.device.type, enabled=False):
            position_BQC = self.position(2 * point_BQ2 - 1)
        asked_BQC = query_BQC + position_BQC
        query_BQC = self.norms[0](query_BQC + self.attention(asked_BQC, asked_BQC, query_BQC, need_weights=False)[0])
        read_BQC = self._read(query_BQC + position_BQC, point_BQ2, map_BNC, window, grid)
        query_BQC = self.norms[1](query_BQC + self.read(read_BQC))
        query_BQC = self.norms[2](query_BQC + self.inner(query_BQC))
        parts = self.boxes(query_BQC).float().split(list(BOX_CHANNELS.values()), dim=2)
        return query_BQC, {"logits": self.classes(query_BQC).float(), **dict(zip(BOX_CHANNELS, parts, strict=True))}

    def _read(self, asked_BQC: Tensor, point_BQ2: Tensor, map_BNC: Tensor, window: Window, grid: BEVGrid) -> Tensor:
        """[B, Q, C] what the map holds at a few points of each query's window."""
        with torch.autocast(point_BQ2.device.type, enabled=False):
            steps_BQP2 = self.steps(asked_BQC.float()).unflatten(2, (NUM_HEADS * self.points, 2))
            steps_BQH1P2 = window.to_grid(steps_BQP2, grid).unflatten(2, (NUM_HEADS, 1, self.points))
        weights_BQH1P = self.weights(asked_BQC).unflatten(2, (NUM_HEADS, 1, self.points))
        value_BNHD = self.value(map_BNC).unflatten(2, (NUM_HEADS, -1))
        return ops.ms_deform_attn(value_BNHD, [grid.shape], point_BQ2, steps_BQH1P2, weights_BQH1P)


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
