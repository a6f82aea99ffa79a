"""A query for the vehicle reads the whole map, told what to do and how it moves.

Letters: B samples, N map tokens, Q queries, C channels, Y X grid cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.bev.tokens import read_places
from fusion3d.config import PlanningConfig
from fusion3d.counts import divisor
from fusion3d.encoders.blocks import conv_block
from fusion3d.errors import ConfigError
from fusion3d.heads.planning.frame import EgoFrame
from fusion3d.types import COMMANDS, Batch, BEVGrid, EgoStatus

_POOLING = 4  # grid cells per token, along each axis
# Where the surroundings are read: x and y as seen from the vehicle, from, to and in steps of [m].
_ALONG, _ACROSS = (-20.0, 45.0, 2.5), (-20.0, 20.0, 2.5)
_READ = 8  # channels that are read there
_NUM_HEADS = 4
_NUM_LAYERS = 2
_SPEED, _ACCELERATION, _YAW_RATE = 10.0, 3.0, 1 / 3  # [m/s, m/s^2, rad/s] that make order one of what is measured
_NUM_STATUS = 5


class EgoQuery(nn.Module):
    """BEV map, command and status to what the vehicle should know of all of it.

    Everything happens in a frame of the vehicle's own: the tokens' positions go in as they are seen from it, and so
    does the status. The query begins with its surroundings, for attention to a thousand tokens begins as their mean, in
    which what is ahead is lost.

    ``ego_status`` none: the status stays outside; measured: it goes in, and in training is often left out
    (``status_dropout``), so that the map is not forgotten over it (AD-MLP, arXiv 2305.10430); predicted: speed and yaw
    rate are told from the map, learned from past poses, and only what is told goes in (SparseDrive, Sun et al., 2024,
    whose ten measured numbers come of the CAN bus).
    """

    def __init__(self, config: PlanningConfig, inputs: int, grid: BEVGrid) -> None:
        super().__init__()
        self.config = config
        self.grid = grid
        channels = config.channels
        self.shrink = nn.Sequential(
            conv_block(inputs, channels, stride=2, norm="group"),
            conv_block(channels, channels, stride=2, norm="group"),
        )
        self.position = nn.Sequential(nn.Linear(2, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.query = nn.Parameter(0.02 * torch.randn(channels))
        self.command = nn.Embedding(len(COMMANDS) + 1, channels)  # the last one is "unknown"
        self.status = nn.Linear(2 * _NUM_STATUS, channels) if config.ego_status == "measured" else None
        self.surroundings = Surroundings(channels, inputs, grid)
        self.layers = nn.ModuleList(ReadLayer(channels) for _ in range(_NUM_LAYERS))
        self.tell = self.told = None
        if config.ego_status == "predicted":
            self.tell = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 2))
            self.told = nn.Linear(2, channels)

    def ask(self, bev_BCYX: Tensor, batch: Batch, frame: EgoFrame) -> tuple[Tensor, Tensor | None]:
        """[B, C] what the vehicle knows, and [B, 2] its speed and yaw rate, to order one, where they are predicted."""
        map_BCYX = self.shrink(bev_BCYX)
        keys_BNC = self._encode_positions(frame, map_BCYX.shape[-2:]).to(map_BCYX.dtype)
        values_BNC = map_BCYX.flatten(2).transpose(1, 2)
        query_B1C = (self._begin(batch, frame) + self.surroundings(bev_BCYX, frame))[:, None]
        for layer in self.layers:
            query_B1C = layer(query_B1C, values_BNC + keys_BNC, values_BNC)
        if self.tell is None or self.told is None:
            return query_B1C[:, 0], None
        status_B2 = self.tell(query_B1C[:, 0]).float()
        return query_B1C[:, 0] + self.told(status_B2.detach()), status_B2

    def _begin(self, batch: Batch, frame: EgoFrame) -> Tensor:
        """[B, C] the query before it reads: what it is told to do and, where configured, how it moves."""
        command_B = torch.where(batch.command < 0, len(COMMANDS), batch.command)
        if self.training and self.config.command_dropout:
            forget_B = torch.rand(command_B.shape, device=command_B.device) < self.config.command_dropout
            command_B = torch.where(forget_B, len(COMMANDS), command_B)
        # The data layer mirrors the command with its world.
        left, right = COMMANDS.index("left"), COMMANDS.index("right")
        turns_B = frame.mirrored & ((command_B == left) | (command_B == right))
        query_BC = self.query + self.command(torch.where(turns_B, left + right - command_B, command_B))
        if self.status is not None:
            known_B = torch.ones_like(command_B, dtype=torch.bool)
            if self.training and self.config.status_dropout:
                known_B = torch.rand(command_B.shape, device=command_B.device) >= self.config.status_dropout
            query_BC = query_BC + self.status(_describe(batch.status, frame, known_B))
        return query_BC

    def _encode_positions(self, frame: EgoFrame, shape: torch.Size) -> Tensor:
        """[B, N, C] encoding of where the tokens are, as seen from the vehicle."""
        side = self.grid.resolution * _POOLING
        x, y = (
            low + (torch.arange(count, device=frame.place.device) + 0.5) * side
            for low, count in ((self.grid.x[0], shape[1]), (self.grid.y[0], shape[0]))
        )
        xy_N2 = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).flatten(0, 1)
        return self.position(frame.to_ego(xy_N2.expand(len(frame.place), -1, -1)) / 10)

    def status_losses(self, status_B2: Tensor | None, batch: Batch, frame: EgoFrame) -> dict[str, Tensor]:
        """L1 error of the predicted speed and yaw rate, scaled to order one; mean over the samples they are known of.
        0, in the graph, where they are not; nothing where none is predicted.
        """
        if status_B2 is None:
            return {}
        if batch.status is None:
            return {"planning_status": 0.0 * status_B2.sum()}
        true_B5 = _numbers(batch.status, frame)
        true_B2 = torch.stack([true_B5[:, 0], true_B5[:, 4]], dim=1)
        known_B2 = true_B2.isfinite()
        error_B2 = (status_B2 - torch.where(known_B2, true_B2, 0)).abs() * known_B2
        mean = (error_B2.sum(0) / divisor("planning_status", known_B2.sum(0))).sum()
        return {"planning_status": mean * self.config.loss_weight * self.config.status_weight}


class Surroundings(nn.Module):
    """The map around the vehicle on a lattice, each place with weights of its own."""

    points: Tensor  # [P, 2]

    def __init__(self, channels: int, inputs: int, grid: BEVGrid) -> None:
        super().__init__()
        self.grid = grid
        x, y = (torch.arange(start, end + step / 2, step) for start, end, step in (_ALONG, _ACROSS))
        self.register_buffer("points", torch.cartesian_prod(x, y), persistent=False)
        self.features = nn.Conv2d(inputs, _READ, 1)
        self.smear = 2 * max(round((_ALONG[2] / grid.resolution - 1) / 2), 0) + 1  # [cells] from point to point, odd
        # Thousands of weights move far in one step: the norm keeps that from being felt.
        self.join = nn.Sequential(nn.Linear(len(self.points) * _READ, channels), nn.LayerNorm(channels))

    def forward(self, bev_BCYX: Tensor, frame: EgoFrame) -> Tensor:
        """[B, C] what is there; outside of the map there is nothing."""
        map_BCYX = F.avg_pool2d(self.features(bev_BCYX), self.smear, 1, self.smear // 2, count_include_pad=False)
        xy_BP2 = frame.to_batch(self.points.expand(len(bev_BCYX), -1, -1))
        return self.join(read_places(map_BCYX, self.grid.place_of(xy_BP2)).flatten(1))


class ReadLayer(nn.Module):
    """Queries attend to what is known, then think for themselves (pre-norm transformer decoder layer)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % _NUM_HEADS:
            raise ConfigError(f"planning.channels: expected a multiple of {_NUM_HEADS}, found {channels}")
        self.norm_query, self.norm_keys, self.norm_inner = (nn.LayerNorm(channels) for _ in range(3))
        self.attention = nn.MultiheadAttention(channels, _NUM_HEADS, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels))

    def forward(self, query_BQC: Tensor, keys_BNC: Tensor, values_BNC: Tensor) -> Tensor:
        """[B, Q, C] queries that know more."""
        asked_BQC = self.norm_query(query_BQC)
        query_BQC = query_BQC + self.attention(asked_BQC, self.norm_keys(keys_BNC), values_BNC, need_weights=False)[0]
        return query_BQC + self.inner(self.norm_inner(query_BQC))


def _numbers(status: EgoStatus, frame: EgoFrame) -> Tensor:
    """[B, 5] velocity, acceleration and yaw rate as seen from the vehicle, scaled to order one; NaN where unknown."""
    vectors_B22 = torch.stack([status.velocity / _SPEED, status.acceleration / _ACCELERATION], dim=1).float()
    rate_B = torch.where(frame.mirrored, -status.yaw_rate, status.yaw_rate).float() / _YAW_RATE
    return torch.cat([frame.turn_in(vectors_B22).flatten(1), rate_B[:, None]], dim=1)


def _describe(status: EgoStatus | None, frame: EgoFrame, known_B: Tensor) -> Tensor:
    """[B, 10] ``_numbers``, 0 where unknown or not of ``known_B``, and which of them are known."""
    if status is None:
        return frame.place.new_zeros(len(known_B), 2 * _NUM_STATUS)
    numbers_B5 = _numbers(status, frame)
    known_B5 = numbers_B5.isfinite() & known_B[:, None]
    return torch.cat([torch.where(known_B5, numbers_B5, 0), known_B5.to(numbers_B5.dtype)], dim=1)
