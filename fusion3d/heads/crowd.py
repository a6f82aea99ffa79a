"""Boxes that look at the map and at each other, each from its own place and heading: what the motion head is made of.

Everything is packed over samples: who stands in a crowd sees who else is in it, and reads the map of its sample.
Letters: A agents, Q queries, N neighbours, H heads, D channels of a head, C channels, L levels of maps, P points, S
cells of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d import ops
from fusion3d.geometry import turn
from fusion3d.heads.targets import usual_sizes
from fusion3d.types import DETECTION_CLASSES, BEVGrid, Boxes

NUM_HEADS = 4
_FAR, _FAST = 10.0, 10.0  # [m], [m/s] that numbers are scaled by
_NUM_TRAITS = 7
_NUM_RELATIONS = 8
_REACH = 1.0  # [m] from a point that is given, where the heads look at first
_NOISE = {"center": 0.3, "yaw": 0.1, "size": 0.05, "velocity": 0.5}  # [m], [rad], of a logarithm, [m/s]


@dataclass(frozen=True)
class Agents:
    """Boxes whose motion is asked for, crowd after crowd."""

    boxes: Boxes  # A, in the frame of the batch
    sample: Tensor  # [A] int64, ascending within the found and within the true ones
    truth: Tensor  # [A] int64, which of its sample's ground-truth boxes it was made of; -1: found
    crowds: tuple[int, ...]  # agents in each: those found in every sample, then those made of the truth

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def velocity(self) -> Tensor:
        """[A, 2] in each one's own frame [m/s], NaN where unknown."""
        return turn(self.boxes.velocity[:, None], -self.boxes.yaw)[:, 0]

    @staticmethod
    def of(found: Sequence[Boxes], truth: Sequence[Boxes] = (), noise: float = 0.0) -> Agents:
        """The boxes found in B samples and, in crowds of their own, the true ones, moved at random.

        Args:
            found: of every sample.
            truth: of every sample, or nothing.
            noise: standard deviation, as a multiple of ``_NOISE``.
        """
        device = found[0].center.device
        parts = [*found, *(_disturb(boxes, noise) for boxes in truth)]

        def counted(number: int, count: int) -> Tensor:
            return torch.full((count,), number, device=device)

        return Agents(
            boxes=Boxes.cat(parts),
            sample=torch.cat([counted(i % len(found), len(part)) for i, part in enumerate(parts)]),
            truth=torch.cat(
                [counted(-1, len(boxes)) for boxes in found]
                + [torch.arange(len(boxes), device=device) for boxes in truth]
            ),
            crowds=tuple(map(len, parts)),
        )


def _disturb(boxes: Boxes, noise: float) -> Boxes:
    """Ground truth about as far off as found boxes are; what is not known stays unknown."""

    def off(like: Tensor, name: str) -> Tensor:
        return noise * _NOISE[name] * torch.randn_like(like)

    moved = boxes.center + F.pad(off(boxes.center[:, :2], "center"), (0, 1))
    return Boxes.of(
        center=moved,
        size=boxes.size * off(boxes.size, "size").exp(),
        yaw=boxes.yaw + off(boxes.yaw, "yaw"),
        velocity=boxes.velocity + off(boxes.velocity, "velocity"),
        label=boxes.label,
    )


class Traits(nn.Module):
    """What a box itself says of its motion: class, size against the usual one, velocity in its own frame."""

    usual_N3: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.of_class = nn.Embedding(len(DETECTION_CLASSES), channels)
        self.of_numbers = two_layers(_NUM_TRAITS, channels, channels)
        self.register_buffer("usual_N3", usual_sizes(), persistent=False)

    def forward(self, agents: Agents) -> Tensor:
        """[A, C]."""
        boxes, velocity = agents.boxes, agents.velocity
        known = velocity.isfinite().all(1, keepdim=True)
        velocity = torch.where(known, velocity, 0) / _FAST
        size = (boxes.size.clamp(min=1e-2) / self.usual_N3[boxes.label]).log()
        numbers = torch.cat([size, velocity, velocity.norm(dim=1, keepdim=True), known.to(size)], dim=1)
        return self.of_class(boxes.label) + self.of_numbers(numbers)


@dataclass(frozen=True)
class Neighbours:
    """The nearest of each agent's crowd."""

    index: Tensor  # [A, N] int64, row among the agents; 0 where there are not as many
    there: Tensor  # [A, N] bool
    relation: Tensor  # [A, N, 8] as each agent sees them, scaled to order one


@torch.no_grad()
def find_neighbours(agents: Agents, count: int, min_score: float) -> Neighbours:
    """The ``count`` nearest of each agent's crowd that score above ``min_score``, without itself."""
    indices, theres = [], []
    for first, size in zip(_starts(agents.crowds), agents.crowds, strict=True):
        rows = slice(first, first + size)
        center = agents.boxes.center[rows, :2]
        away = (center[:, None] - center).norm(dim=-1)
        away = away.masked_fill(agents.boxes.score[rows] <= min_score, torch.inf).fill_diagonal_(torch.inf)
        near, index = away.topk(min(count, size), largest=False)
        pad = (0, count - near.shape[1])
        theres.append(F.pad(near, pad, value=torch.inf) < torch.inf)
        indices.append(torch.where(theres[-1], F.pad(index, pad) + first, 0))
    index, there = torch.cat(indices), torch.cat(theres)
    return Neighbours(index, there, _relate(agents, index))


def _starts(counts: Sequence[int]) -> list[int]:
    return [sum(counts[:number]) for number in range(len(counts))]


def _relate(agents: Agents, index_AN: Tensor) -> Tensor:
    """[A, N, 8] where others are, head to and move, seen from an agent's own place, heading and velocity."""
    boxes = agents.boxes
    offset = turn(boxes.center[index_AN, :2] - boxes.center[:, None, :2], -boxes.yaw)
    velocity = turn(boxes.velocity[index_AN] - boxes.velocity[:, None], -boxes.yaw)
    known = velocity.isfinite().all(-1, keepdim=True)
    yaw = boxes.yaw[index_AN] - boxes.yaw[:, None]
    parts = (
        offset / _FAR,
        offset.norm(dim=-1, keepdim=True).log1p(),
        torch.stack([yaw.cos(), yaw.sin()], dim=-1),
        torch.where(known, velocity, 0) / _FAST,
        known.to(offset),
    )
    return torch.cat(parts, dim=-1)


class Interaction(nn.Module):
    """Agents look at their neighbours and think for themselves (pre-norm transformer encoder layer).

    How a neighbour stands to an agent is added to its keys and values, so that nothing depends on where in the world
    they are (as in HiVT, Zhou et al., 2022). An agent may attend to nobody: one more score is 0, and has no value.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.norm_inner = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.query, self.out = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.keys_values = nn.Linear(channels, 2 * channels)
        self.relation = two_layers(_NUM_RELATIONS, channels, 2 * channels)
        self.inner = two_layers(channels, 2 * channels, channels)

    def forward(self, token_AC: Tensor, near: Neighbours) -> Tensor:
        """[A, C]."""
        asked_AC = self.norm(token_AC)
        query_AHD = self.query(asked_AC).unflatten(1, (NUM_HEADS, -1))
        both_ANE = self.keys_values(asked_AC)[near.index] + self.relation(near.relation)
        key_ANHD, value_ANHD = both_ANE.unflatten(2, (2, NUM_HEADS, -1)).unbind(2)
        score_ANH = (query_AHD[:, None] * key_ANHD).sum(-1).float() / query_AHD.shape[-1] ** 0.5
        score_ANH = score_ANH.masked_fill(~near.there[..., None], -torch.inf)
        weight_ANH = F.pad(score_ANH, (0, 0, 0, 1)).softmax(1)[:, :-1]
        read_AC = (weight_ANH[..., None] * value_ANHD).sum(1).flatten(1)
        token_AC = token_AC + self.out(read_AC)
        return token_AC + self.inner(self.norm_inner(token_AC))


@dataclass(frozen=True)
class Maps:
    """Maps to read, in their grids one after the other."""

    value: Tensor  # [B, S, H, D]
    grids: tuple[BEVGrid, ...]  # L


class MapReader(nn.Module):
    """Queries read maps near points that are given in their own frames (deformable attention, Zhu et al., 2021).

    Unlike there each query has its own points to start from, and maps of several grids are read at the same places.
    """

    def __init__(self, channels: int, points: int, levels: int) -> None:
        super().__init__()
        self.shape = (NUM_HEADS, levels, points)
        self.steps = nn.Linear(channels, NUM_HEADS * points * 2)
        self.weights = nn.Linear(channels, NUM_HEADS * levels * points)
        self.out = nn.Linear(channels, channels)
        angle_H = torch.arange(NUM_HEADS) * (2 * torch.pi / NUM_HEADS)
        around_H12 = _REACH * torch.stack([angle_H.cos(), angle_H.sin()], dim=-1)[:, None]
        with torch.no_grad():
            self.steps.weight.zero_()
            self.steps.bias.copy_(around_H12.expand(-1, points, -1).flatten())

    def forward(self, asked_QC: Tensor, points_QP2: Tensor, agents: Agents, maps: Maps) -> Tensor:
        """[Q, C] what the maps hold. Places are in float32 under autocast too.

        Args:
            asked_QC: the same number of queries for each agent, agent after agent.
            points_QP2: float32, in the frame of each query's agent [m].
            agents: A, of which Q is a multiple.
            maps: with ``levels`` grids.
        """
        num_heads, _, num_points = self.shape
        with torch.autocast(points_QP2.device.type, enabled=False):
            steps_QHP2 = self.steps(asked_QC.float()).unflatten(1, (num_heads, num_points, 2))
            each = len(asked_QC) // max(len(agents), 1)
            yaw_Q, center_Q2 = (
                of.repeat_interleave(each, dim=0) for of in (agents.boxes.yaw, agents.boxes.center[:, :2])
            )
            place_QE2 = turn((points_QP2[:, None] + steps_QHP2).flatten(1, 2), yaw_Q) + center_Q2[:, None]
            place_QHP2 = place_QE2.unflatten(1, (num_heads, num_points))
            cells = [grid.place_of(place_QHP2) for grid in maps.grids]
        return self.out(
            ops.ms_deform_attn(
                maps.value,
                [grid.shape for grid in maps.grids],
                center_Q2.new_zeros(len(asked_QC), 2),
                torch.stack(cells, dim=2),
                self.weights(asked_QC).unflatten(1, self.shape),
                agents.sample.repeat_interleave(each),
            )
        )


def two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A hidden layer between two linear ones."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
