"""How fast the vehicle moves, from the Doppler shifts of one moment: most of what radars see rests.

A return that rests moves away from its radar by what the vehicle moves along the ray towards it. The velocity that
fits the returns of all radars best is found by least squares, in which what does not fit weighs less and less
(Kellner et al., 2013, find it by random sampling; here is no chance in it). The velocity that a vehicle turns with at
each radar is not told apart: it is a little of the sideways one.

Letters: B samples, R returns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusion3d.types import RADAR_FIELDS, BEVGrid

_TIME, _DOPPLER = (RADAR_FIELDS.index(name) for name in ("time", "doppler"))
_RAY = slice(RADAR_FIELDS.index("ray_x"), RADAR_FIELDS.index("ray_x") + 2)
_NEWEST = 0.1  # [s] older returns were measured at another speed
# [m/s] Residuals of this size weigh a quarter, pass by pass; in the first all weigh the same.
_SCALES = (torch.inf, 8.0, 4.0, 2.0, 1.0, 0.5, 0.5, 0.5)
_FEWEST = 8.0  # returns that must agree
_SPREAD = 0.02  # least share of the rays across their main direction: else they say nothing of one component
_LONGEST = 4.0  # [s]
_FASTEST = 100.0  # [m/s] what seems to move faster was not measured


@torch.no_grad()
def ego_velocity(returns_RF: Tensor, sample_R: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """The vehicle's velocity over ground, as its radars measure it.

    Args:
        returns_RF: [R, len(RADAR_FIELDS)]; those without a finite ray and a possible Doppler velocity are left out.
        sample_R: int64 of each return.
        num_samples: B.

    Returns:
        [B, 2] float32 x, y in the axes of the returns, and scaled as they are [m/s], and [B] bool: is it known? Where
        too few returns agree, or all of them lie in one direction, it is not, and 0.
    """
    with torch.autocast(returns_RF.device.type, enabled=False):
        ray_R2 = returns_RF[:, _RAY].double()
        length_R = ray_R2.norm(dim=1)
        speed_R = returns_RF[:, _DOPPLER].double()
        good_R = (returns_RF[:, _TIME] < _NEWEST) & (speed_R.abs() < _FASTEST) & length_R.isfinite() & (length_R > 0)
        ray_R2 = torch.where(good_R[:, None], ray_R2 / length_R[:, None], 0)
        speed_R = torch.where(good_R, speed_R, 0)
        # Sums over a sample's returns as a product: in the same order every time.
        member_BR = (sample_R == torch.arange(num_samples, device=sample_R.device)[:, None]) & good_R
        x_R, y_R = ray_R2.unbind(1)
        squares = x_R * x_R, x_R * y_R, y_R * y_R
        terms_R6 = torch.stack([torch.ones_like(x_R), *squares, -x_R * speed_R, -y_R * speed_R], dim=1)
        velocity_B2, known_B = ray_R2.new_zeros(num_samples, 2), member_BR.any(1)
        for scale in _SCALES:
            residual_R = speed_R + (ray_R2 * velocity_B2[sample_R]).sum(1)
            weight_R = (1 + (residual_R / scale).square()).reciprocal().square()
            total_B, xx, xy, yy, x, y = ((member_BR * weight_R) @ terms_R6).unbind(1)
            determinant = xx * yy - xy * xy
            least_B = (total_B - (total_B.square() - 4 * determinant).clamp(min=0).sqrt()) / 2  # xx + yy is the total
            known_B = (total_B >= _FEWEST) & (least_B > _SPREAD * total_B)
            solved_B2 = torch.stack([yy * x - xy * y, xx * y - xy * x], 1) / determinant[:, None]
            velocity_B2 = torch.where(known_B[:, None], solved_B2, 0)
        length_B = torch.where(member_BR, length_R, 0).sum(1) / member_BR.sum(1).clamp(min=1)  # 1, but for augmentation
        return (velocity_B2 * length_B[:, None]).float(), known_B


def arrival_map(velocity_B2: Tensor, known_B: Tensor, grid: BEVGrid) -> Tensor:
    """[B, 1, Y, X] in how many seconds the vehicle would be in each cell at its speed, of ``_LONGEST``, at most 1.

    1 everywhere for one that stands, and 0 where nothing is known. A number that were the same in every cell would not
    outlive the norms of the layers after, which take the mean of a map away; where the map reaches 1 does.
    """
    away_YX = grid.centers(velocity_B2.device).norm(dim=-1)
    reach_B11 = velocity_B2.norm(dim=1)[:, None, None] * _LONGEST
    part_BYX = (away_YX / reach_B11.clamp(min=1e-3)).clamp(max=1)
    return torch.where(known_B[:, None, None], part_BYX, 0)[:, None]
