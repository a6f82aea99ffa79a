"""Planning head: one query for the ego vehicle reads the BEV map and says where to drive.

Letters: B samples, N map tokens, C channels, T future steps, Y X grid cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.config import PlanningConfig
from fusion3d.counts import divisor
from fusion3d.encoders.blocks import conv_block
from fusion3d.errors import ConfigError
from fusion3d.types import COMMANDS, Batch, BEVGrid, EgoStatus, Trajectory

_POOLING = 4  # grid cells per token, along each axis
_NUM_HEADS = 4
_NUM_LAYERS = 2
_NUM_STATUS = 5
_TURNING = 0.1  # [m] a step shorter than this says nothing about heading


class PlanningHead(nn.Module):
    """BEV map and command to positions in the next T steps.

    Everything happens in the frame of the vehicle's own heading, which BEV augmentation turns against the grid: the
    tokens' positions go in and the path comes out relative to it, and to the vehicle's place, from which a shift takes
    the grid's origin. (A mirrored or scaled world is a world of its own; the data layer mirrors the command with it.)
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
        self.layers = nn.ModuleList(_ReadLayer(channels) for _ in range(_NUM_LAYERS))
        self.out = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, 2 * config.steps),
        )

    def forward(self, bev_BCYX: Tensor, batch: Batch) -> Tensor:
        """[B, T, 2] planned positions in the frame of the batch [m]."""
        heading_B22, place_B12 = _heading_of(batch), _place_of(batch)
        map_BCYX = self.shrink(bev_BCYX)
        keys_BNC = self._encode_positions(heading_B22, place_B12, map_BCYX.shape[-2:]).to(map_BCYX.dtype)
        values_BNC = map_BCYX.flatten(2).transpose(1, 2)
        query_B1C = self._ask(batch, heading_B22)[:, None]
        for layer in self.layers:
            query_B1C = layer(query_B1C, values_BNC + keys_BNC, values_BNC)
        step_BT2 = self.out(query_B1C).float().view(len(batch), self.config.steps, 2)
        # The sum up to each step, as a product with a triangle: cumsum has no deterministic kernel on CUDA.
        until_TT1 = torch.ones(self.config.steps, self.config.steps, device=step_BT2.device).tril()[..., None]
        return place_B12 + _turn((until_TT1 * step_BT2[:, None]).sum(2), heading_B22)

    def _ask(self, batch: Batch, heading_B22: Tensor) -> Tensor:
        """[B, C] the ego query: what it is told to do and, where configured, how it moves."""
        command_B = torch.where(batch.command < 0, len(COMMANDS), batch.command)
        if self.training and self.config.command_dropout:
            forget_B = torch.rand(command_B.shape, device=command_B.device) < self.config.command_dropout
            command_B = torch.where(forget_B, len(COMMANDS), command_B)
        query_BC = self.query + self.command(command_B)
        if self.status is not None:
            query_BC = query_BC + self.status(_describe_status(batch.status, heading_B22))
        return query_BC

    def _encode_positions(self, heading_B22: Tensor, place_B12: Tensor, shape: torch.Size) -> Tensor:
        """[B, N, C] encoding of where the tokens are, as seen from the vehicle."""
        side = self.grid.resolution * _POOLING
        x, y = (
            low + (torch.arange(count, device=heading_B22.device) + 0.5) * side
            for low, count in ((self.grid.x[0], shape[1]), (self.grid.y[0], shape[0]))
        )
        xy_N2 = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).flatten(0, 1)
        return self.position(_turn(xy_N2 - place_B12, heading_B22.mT) / 10)

    def losses(self, plan_BT2: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Smooth L1 error (beta 0.5 m) of x plus that of y, mean over the known steps; 0, in the graph, if none is."""
        if batch.future is None:
            return {"planning": 0.0 * plan_BT2.sum()}
        steps = min(self.config.steps, batch.future.mask.shape[1])
        mask_BT1 = batch.future.mask[:, :steps, None]
        target_BT2 = torch.where(mask_BT1, batch.future.position[:, :steps], 0)
        error_BT2 = F.smooth_l1_loss(plan_BT2[:, :steps], target_BT2, beta=0.5, reduction="none") * mask_BT1
        error = error_BT2.sum() / divisor("planning", mask_BT1.sum()) + 0.0 * plan_BT2[:, steps:].sum()
        return {"planning": error * self.config.loss_weight}

    @torch.no_grad()
    def decode(self, plan_BT2: Tensor, batch: Batch) -> Trajectory:
        """The plan as a trajectory; its heading is that of the motion, or the last one where it stands still."""
        step_BT2 = plan_BT2.diff(dim=1, prepend=_place_of(batch).to(plan_BT2))
        yaw_B = torch.atan2(*_heading_of(batch)[:, :, 0].flip(1).unbind(1))
        yaws = []
        for step_B2 in step_BT2.unbind(1):
            yaw_B = torch.where(step_B2.norm(dim=1) < _TURNING, yaw_B, torch.atan2(step_B2[:, 1], step_B2[:, 0]))
            yaws.append(yaw_B)
        mask = torch.ones(plan_BT2.shape[:2], dtype=torch.bool, device=plan_BT2.device)
        return Trajectory(plan_BT2, torch.stack(yaws, dim=1), mask)


class _ReadLayer(nn.Module):
    """The query attends to the map, then thinks for itself (pre-norm transformer decoder layer)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % _NUM_HEADS:
            raise ConfigError(f"planning.channels: expected a multiple of {_NUM_HEADS}, found {channels}")
        self.norm_query, self.norm_keys, self.norm_inner = (nn.LayerNorm(channels) for _ in range(3))
        self.attention = nn.MultiheadAttention(channels, _NUM_HEADS, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels))

    def forward(self, query_B1C: Tensor, keys_BNC: Tensor, values_BNC: Tensor) -> Tensor:
        asked_B1C = self.norm_query(query_B1C)
        query_B1C = query_B1C + self.attention(asked_B1C, self.norm_keys(keys_BNC), values_BNC, need_weights=False)[0]
        return query_B1C + self.inner(self.norm_inner(query_B1C))


def _heading_of(batch: Batch) -> Tensor:
    """[B, 2, 2] rotation whose first column is the vehicle's forward axis in the frame of the batch."""
    forward_B2 = F.normalize(batch.aug_from_ego[:, :2, 0].float(), dim=1)
    left_B2 = torch.stack([-forward_B2[:, 1], forward_B2[:, 0]], dim=1)
    return torch.stack([forward_B2, left_B2], dim=2)


def _place_of(batch: Batch) -> Tensor:
    """[B, 1, 2] where the vehicle itself is in the frame of the batch [m]."""
    return batch.aug_from_ego[:, None, :2, 3].float()


def _turn(xy_BN2: Tensor, rotation_B22: Tensor) -> Tensor:
    """[B, N, 2] points turned by [B, 2, 2], written out to stay clear of reduced-precision products."""
    return (rotation_B22[:, None] * xy_BN2[:, :, None]).sum(-1)


def _describe_status(status: EgoStatus | None, heading_B22: Tensor) -> Tensor:
    """[B, 10] velocity, acceleration (heading frame) and yaw rate, scaled to order one, and which of them are known."""
    if status is None:
        return heading_B22.new_zeros(len(heading_B22), 2 * _NUM_STATUS)
    turned = _turn(torch.stack([status.velocity / 10, status.acceleration / 3], dim=1).float(), heading_B22.mT)
    numbers_B5 = torch.cat([turned.flatten(1), status.yaw_rate.float()[:, None] * 3], dim=1)
    known_B5 = numbers_B5.isfinite()
    return torch.cat([torch.where(known_B5, numbers_B5, 0), known_B5.to(numbers_B5.dtype)], dim=1)
