"""The map along paths: what a vehicle that drove them would stand on.

Letters: B samples, K paths, T steps, P points of the vehicle, C channels, N channels of the occupancy, Y X grid cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion3d.bev.tokens import interpolation, read_places
from fusion3d.encoders.blocks import conv_block
from fusion3d.geometry.driving import ego_points
from fusion3d.heads.planning.frame import EgoFrame
from fusion3d.types import OCCUPANCY_TIMES, OCCUPANTS, TIME_STEP, BEVGrid, Occupancy

_SIDES = (-0.5, 0.0, 0.5)  # of the vehicle's length and width: nine points, of corners, sides and middle
_NUM_POINTS = len(_SIDES) ** 2
_NUM_OCCUPANCY = len(OCCUPANCY_TIMES) * len(OCCUPANTS) + 1
COSTS = 2  # occupied, undrivable


class PathReader(nn.Module):
    """Footprints of the vehicle at every step of a path, read from the map and from the predicted occupancy.

    The occupancy goes in as probabilities without a gradient: it stays what the boxes and the map teach it, so that a
    person can look at what the planner was told.
    """

    points: Tensor  # [P, 2]
    at_step: Tensor  # [T, S] weights of OCCUPANCY_TIMES

    def __init__(self, channels: int, inputs: int, grid: BEVGrid, steps: int, occupancy: bool) -> None:
        super().__init__()
        self.grid = grid
        self.features = conv_block(inputs, channels, norm="group")
        read = channels + _NUM_OCCUPANCY * occupancy
        self.footprint = nn.Sequential(nn.Linear(_NUM_POINTS * read, channels), nn.ReLU())
        self.pose = nn.Sequential(nn.Linear(4, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.time = nn.Parameter(0.02 * torch.randn(steps, channels))
        self.join = nn.Sequential(nn.ReLU(), nn.Linear(steps * channels, channels))
        sides = torch.tensor(_SIDES)
        self.register_buffer("points", torch.cartesian_prod(sides, sides), persistent=False)
        seconds = TIME_STEP * torch.arange(1, steps + 1)
        self.register_buffer("at_step", interpolation(_number(seconds), len(OCCUPANCY_TIMES)), persistent=False)

    def prepare(self, bev_BCYX: Tensor, occupancy: Occupancy | None) -> Tensor:
        """What is read: [B, C + N, Y, X]."""
        features_BCYX = self.features(bev_BCYX)
        if occupancy is None:
            return features_BCYX
        agents_BNYX = occupancy.agents.detach().float().sigmoid().flatten(1, 2)
        drivable_B1YX = occupancy.drivable.detach().float().sigmoid()[:, None]
        return torch.cat([features_BCYX.float(), agents_BNYX, drivable_B1YX], dim=1)

    def forward(self, map_BCYX: Tensor, path_BKT3: Tensor, frame: EgoFrame) -> tuple[Tensor, Tensor]:
        """Each path's tokens, and what the occupancy costs it.

        Args:
            map_BCYX: of ``prepare``.
            path_BKT3: x, y, yaw of the rear axle as seen from the vehicle, without a gradient.
            frame: of the vehicle.

        Returns:
            [B, K, C], and [B, K, 2] ``occupied``, the most that any point is occupied while the vehicle is there, and
            ``undrivable``, the most that any is off the drivable area; NaN without an occupancy.
        """
        shape = path_BKT3.shape[:3]
        place_BKTP2 = self.grid.place_of(frame.to_batch(ego_points(path_BKT3, self.points)))
        read_BKTPC = read_places(map_BCYX, place_BKTP2.flatten(1, 3)).unflatten(1, (*shape[1:], _NUM_POINTS))
        yaw_BKT = path_BKT3[..., 2]
        with torch.autocast(path_BKT3.device.type, enabled=False):
            pose_BKT4 = torch.stack([*(path_BKT3[..., :2] / 10).unbind(-1), yaw_BKT.cos(), yaw_BKT.sin()], dim=-1)
            pose_BKTC = self.pose(pose_BKT4)
        tokens_BKTC = self.footprint(read_BKTPC.flatten(3)) + pose_BKTC.to(read_BKTPC.dtype) + self.time
        return self.join(tokens_BKTC.flatten(2)), self._cost(read_BKTPC, place_BKTP2)

    @torch.no_grad()
    def _cost(self, read_BKTPC: Tensor, place_BKTP2: Tensor) -> Tensor:
        if read_BKTPC.shape[-1] == len(self.time[0]):
            return read_BKTPC.new_full((*read_BKTPC.shape[:2], COSTS), torch.nan).float()
        rows, cols = self.grid.shape
        said_BKTPN = read_BKTPC[..., len(self.time[0]) :].float()
        agents_BKTPSG = said_BKTPN[..., :-1].unflatten(-1, (len(OCCUPANCY_TIMES), len(OCCUPANTS)))
        at_step_BKTPG = (self.at_step[:, None, :, None] * agents_BKTPSG).sum(-2)
        occupied_BKTP = 1 - (1 - at_step_BKTPG).prod(-1)
        # Beyond the outermost middles of cells nothing is known.
        inside_BKTP = ((place_BKTP2 >= 0.5) & (place_BKTP2 <= place_BKTP2.new_tensor([cols, rows]) - 0.5)).all(-1)
        undrivable_BKTP = (1 - said_BKTPN[..., -1]) * inside_BKTP
        return torch.stack([cost.flatten(2).amax(-1) for cost in (occupied_BKTP, undrivable_BKTP)], dim=-1)


def _number(seconds: Tensor) -> Tensor:
    """[T] times to their place among OCCUPANCY_TIMES, counted from 0."""
    times = torch.tensor(OCCUPANCY_TIMES)
    after = torch.searchsorted(times, seconds).clamp(1, len(times) - 1)
    return after - 1 + (seconds - times[after - 1]) / (times[after] - times[after - 1])
