"""Every cell reads the sensors' maps at a few places near it.

Letters: B samples, S sensors, L sensors that any sample has, C channels, H heads, D channels of a head, P points,
Q cells of the grid, Y X its rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion3d import ops
from fusion3d.bev.fusion.attention import HEADS, FeedForward
from fusion3d.bev.fusion.entry import Projections, only_present, shares, weighted_sum
from fusion3d.bev.tokens import cell_centers, to_map, to_tokens
from fusion3d.types import BEVGrid

_POINTS = 4  # places that a head reads on each sensor's map


class CrossAttentionFusion(nn.Module):
    """Deformable cross-attention from the grid's cells to the sensors' maps (Zhu et al., "Deformable DETR", 2021).

    The queries are the weighted mean of the sensors that are there; the maps are the levels that they read. So fused
    CRN (Kim et al., 2023) camera and radar; here any number of sensors, and one that is absent is a level that gets no
    weight. As places are offsets from the cell, sensors need not agree to the cell. Without any sensor, the result is
    the same in all cells.
    """

    def __init__(self, inputs: Sequence[int], channels: int, grid: BEVGrid, layers: int) -> None:
        super().__init__()
        self.shape = grid.shape
        self.project = Projections(inputs, channels)
        self.mark = nn.Parameter(0.02 * torch.randn(len(inputs), channels))  # tells the readers who speaks
        self.weight = nn.Parameter(torch.zeros(len(inputs), channels))
        self.layers = nn.ModuleList(_ReadNear(len(inputs), channels) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)
        rows, cols = grid.shape
        self.place_Q2: Tensor
        self.register_buffer("place_Q2", cell_centers(grid) / torch.tensor([cols, rows]), persistent=False)

    def forward(self, maps: Sequence[Tensor | None], present: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, Y, X] and [B] bool each, to [B, channels, Y, X]."""
        marked = [
            None if x is None else only_present(x + mark_C[:, None, None], present_B)
            for x, mark_C, present_B in zip(self.project(maps, present), self.mark, present, strict=True)
        ]
        mean_BCYX = weighted_sum(marked, shares(self.weight, present), self.shape)
        tokens_BQC = to_tokens(mean_BCYX.contiguous(memory_format=torch.channels_last))
        levels = [i for i, x in enumerate(marked) if x is not None]
        read = None
        if levels:
            read_BLQC = torch.stack([to_tokens(x) for x in marked if x is not None], dim=1)
            read = _Levels(read_BLQC, levels, torch.stack([present[i] for i in levels], dim=1))
        for layer in self.layers:
            tokens_BQC = layer(tokens_BQC, read, self.place_Q2, self.shape)
        return to_map(self.norm(tokens_BQC), self.shape)


@dataclass(frozen=True)
class _Levels:
    """The maps that are read: those of the sensors that any sample has."""

    tokens_BLQC: Tensor
    sensors: list[int]  # L
    there_BL: Tensor  # bool


class _ReadNear(nn.Module):
    """One round of reading, beside a shortcut."""

    def __init__(self, num_sensors: int, channels: int) -> None:
        super().__init__()
        self.num_sensors = num_sensors
        self.norm = nn.LayerNorm(channels)
        self.value = nn.Linear(channels, channels)
        self.offsets = nn.Linear(channels, HEADS * num_sensors * _POINTS * 2)
        self.logits = nn.Linear(channels, HEADS * num_sensors * _POINTS)
        self.out = nn.Linear(channels, channels)
        self.feed = FeedForward(channels)
        self._look_around()

    def _look_around(self) -> None:
        """At first, head h reads 0, 1, ... cells off in a direction of its own, all alike, as in Deformable DETR."""
        for layer in (self.offsets, self.logits):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.logits.bias)
        angle_H = torch.arange(HEADS) * (2 * math.pi / HEADS)
        way_H2 = torch.stack([angle_H.cos(), angle_H.sin()], dim=1)
        start_HSP2 = way_H2[:, None, None] * torch.arange(_POINTS)[:, None].float()
        with torch.no_grad():
            self.offsets.bias.copy_(start_HSP2.expand(-1, self.num_sensors, -1, -1).flatten())

    def forward(self, tokens_BQC: Tensor, read: _Levels | None, place_Q2: Tensor, shape: tuple[int, int]) -> Tensor:
        """Tokens [B, Q, C] of all cells, at ``place_Q2`` [fraction of the grid], having read what there is to read."""
        heard_BQC = torch.zeros_like(tokens_BQC)  # as a sample hears that has no sensor, in a batch that has some
        if read is not None:
            query_BQC = self.norm(tokens_BQC)
            offsets = self.offsets(query_BQC).float().unflatten(-1, (HEADS, self.num_sensors, _POINTS, 2)).unbind(3)
            logits = self.logits(query_BQC).float().unflatten(-1, (HEADS, self.num_sensors, _POINTS)).unbind(3)
            offsets_BQHLP2 = torch.stack([offsets[i] for i in read.sensors], dim=3)
            logits_BQHLP = torch.stack([logits[i] for i in read.sensors], dim=3)
            # Finite, and values of zero, so that a sample without any sensor stays finite.
            logits_BQHLP = logits_BQHLP.masked_fill(~read.there_BL[:, None, None, :, None], -1e4)
            value_BLQC = self.value(read.tokens_BLQC).masked_fill(~read.there_BL[:, :, None, None], 0)
            value_BSHD = value_BLQC.flatten(1, 2).unflatten(-1, (HEADS, -1))
            place_BQ2 = place_Q2.expand(len(tokens_BQC), -1, -1)
            shapes = [shape] * len(read.sensors)
            heard_BQC = ops.ms_deform_attn(value_BSHD, shapes, place_BQ2, offsets_BQHLP2, logits_BQHLP)
        return self.feed(tokens_BQC + self.out(heard_BQC))
