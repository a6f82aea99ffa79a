"""Radar returns spread over the cells that they stand for: the stronger a return, the larger what it comes from.

Letters: B samples, R returns, S rows or columns of the largest footprint, K = S * S, C channels, Y X grid cells.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusion3d import ops
from fusion3d.types import RADAR_FIELDS, BEVGrid

_RCS_RANGE = (-10.0, 20.0)  # [dBsm] beyond which a return's area grows or shrinks no more: a pedestrian's to a truck's
_REACH = 2.5  # standard deviations, at which a footprint ends
_SLOWEST = 0.5  # [m/s] below which a return is not said to move; some times the noise of a radar's velocity
VELOCITY_UNIT = 10.0  # [m/s] of the channels that hold velocity
VELOCITY_CHANNELS = 3
_X, _Y, _RCS, _VX, _VY, _TIME, _AMBIGUITY = (
    RADAR_FIELDS.index(name) for name in ("x", "y", "rcs", "vx", "vy", "time", "ambig_state")
)


def moving(returns: Tensor) -> Tensor:
    """[R] bool: the velocity is known without ambiguity, and too large to be noise. NaN and infinite are not known."""
    speed_R = returns[:, _VX].hypot(returns[:, _VY])
    return (returns[:, _AMBIGUITY] == 3) & (speed_R > _SLOWEST) & speed_R.isfinite()


def advance(returns: Tensor) -> Tensor:
    """The moving returns [R, len(RADAR_FIELDS)] where they should be now: shifted by velocity times age.

    As in CRN (Kim et al., 2023). A radar measures velocity along the ray alone: what moves across the ray stays smeared
    over the sweeps.
    """
    step_R2 = returns[:, [_VX, _VY]] * returns[:, _TIME, None]
    moved = returns.clone()
    moved[:, [_X, _Y]] += torch.where(moving(returns)[:, None], step_R2.nan_to_num(), 0)
    return moved


def deviation(rcs_R: Tensor, footprint: float, resolution: float) -> Tensor:
    """[R] standard deviation [m] of each return's footprint.

    Its own width, ``footprint * 10^(RCS / 40)`` (RCS [dBsm] is an area, so its fourth root grows half as fast as a
    length would), and half a cell, since a return may lie anywhere in its cell. NaN counts as 0 dBsm.
    """
    own = footprint * 10 ** (rcs_R.nan_to_num().clamp(*_RCS_RANGE) / 40)
    return (own**2 + (resolution / 2) ** 2).sqrt()


def spread_returns(
    values_RC: Tensor, returns: Tensor, sample_R: Tensor, num_samples: int, grid: BEVGrid, footprint: float
) -> Tensor:
    """In every cell, the sum over the returns of value times weight: 1 at the return, and a Gaussian around it.

    Deterministic in both directions: no return is added in an order of chance. Differentiable in the values.

    Args:
        values_RC: what is spread.
        returns: [R, len(RADAR_FIELDS)]; those outside of the grid, or with NaN for a place, have no footprint.
        sample_R: int64 of each return.
        num_samples: B.
        grid: of the map.
        footprint: standard deviation of a return of 0 dBsm [m].

    Returns:
        [B, C, Y, X] float32.

    Source: RCS-aware scattering of RCBEVDet (Lin et al., 2024). There the width depends on where in the map a return
    lies, and of overlapping weights the largest counts; here it is a length on the ground, and sums let what overlaps
    be averaged.
    """
    rows, cols = grid.shape
    widest = float(deviation(torch.tensor(_RCS_RANGE[1]), footprint, grid.resolution))
    reach = math.ceil(_REACH * widest / grid.resolution)
    steps = torch.arange(-reach, reach + 1, dtype=torch.int32, device=returns.device)
    with torch.autocast(returns.device.type, enabled=False):
        own_R, inside_R = grid.cell_of(returns[:, :3])
        own_R = own_R.int()
        iy_RS = torch.div(own_R, cols, rounding_mode="floor")[:, None] + steps
        ix_RS = (own_R % cols)[:, None] + steps
        dy_RS = (iy_RS + 0.5) * grid.resolution + grid.y[0] - returns[:, _Y, None]
        dx_RS = (ix_RS + 0.5) * grid.resolution + grid.x[0] - returns[:, _X, None]
        width_R1 = deviation(returns[:, _RCS], footprint, grid.resolution)[:, None]
        square_RSS = (dy_RS / width_R1).square()[:, :, None] + (dx_RS / width_R1).square()[:, None, :]
        in_y_RS = inside_R[:, None] & (iy_RS >= 0) & (iy_RS < rows)
        in_x_RS = (ix_RS >= 0) & (ix_RS < cols)
        hit_RSS = (square_RSS < _REACH**2) & in_y_RS[:, :, None] & in_x_RS[:, None, :]
        weight_RK = torch.where(hit_RSS, torch.exp(-square_RSS / 2), 0).flatten(1)
        cell_RSS = ((sample_R.int()[:, None] * rows + iy_RS) * cols)[:, :, None] + ix_RS[:, None, :]
        cell_RK = torch.where(hit_RSS, cell_RSS, -1).flatten(1)
        # A return is a pixel and the cells of its footprint are its depth bins.
        plan = ops.bev_pool_plan(cell_RK.T[None, :, :, None], num_samples * rows * cols, cols)
        values_1CR1 = values_RC.float().T[None, :, :, None]
        sums = ops.bev_pool(weight_RK.T[None, :, :, None].contiguous(), values_1CR1, plan)
    return sums.view(num_samples, rows, cols, sums.shape[1]).permute(0, 3, 1, 2)


def velocity_map(returns: Tensor, sample_R: Tensor, num_samples: int, grid: BEVGrid, footprint: float) -> Tensor:
    """[B, 3, Y, X] what the moving returns say of each cell: mean velocity x, y [10 m/s], and how far there are any.

    The mean is weighted by amplitude, 10^(RCS / 20), and by footprint. The third channel is the sum of the footprints,
    at most 1: where it is 0 no velocity was measured, and the first two are 0. Velocities are along the rays.
    """
    moves_R = moving(returns)
    rcs_R = returns[:, _RCS].nan_to_num().clamp(*_RCS_RANGE)
    amplitude_R1 = torch.where(moves_R, 10 ** (rcs_R / 20), 0)[:, None]
    velocity_R2 = torch.where(moves_R[:, None], returns[:, [_VX, _VY]], 0) / VELOCITY_UNIT
    values = torch.cat([amplitude_R1 * velocity_R2, amplitude_R1, moves_R[:, None].to(returns.dtype)], dim=1)
    sums = spread_returns(values, returns, sample_R, num_samples, grid, footprint)
    velocity, amplitude, known = sums.split([2, 1, 1], dim=1)
    return torch.cat([velocity / amplitude.clamp(min=1e-6), known.clamp(max=1)], dim=1)
