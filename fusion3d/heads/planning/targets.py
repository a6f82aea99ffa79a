"""What paths are worth, by the definitions that ``metrics.planning`` scores plans with: what a planner foresees.

Hydra-MDP (Li et al., 2024) distils NAVSIM's scores so; here they are those of our own metric, on annotated data. Known
where the data say it: collisions until the annotated keyframes end, the drivable area where a map knows it, comfort
where the vehicle's velocity and yaw rate are known, progress where the whole driven path is. Three things differ from
the metric: the map is the raster that the batch has; what is annotated now but is no box of the ten classes (too few
points, another category) is met from the first keyframe ahead on, for the batch does not say where it is now; and
comfort begins with the status of the batch, which is of the last half second, as the metric's, with ``data.status``
poses, and of this moment with can_bus.

Letters: B samples, K paths, T steps, I = 5 T instants (0.1 s ... 3.0 s), A things.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion3d.geometry.driving import (
    SWEEP,
    comfortable,
    ego_points,
    ego_rectangle,
    overlap_depth,
    progress,
    sweep,
    sweep_path,
)
from fusion3d.heads.planning.frame import EgoFrame
from fusion3d.types import MAP_CLASSES, PLAN_SCORES, Batch, BEVGrid

LEARNED = PLAN_SCORES[:4]  # the scores that are predicted; the others are read off the occupancy
_DRIVABLE = MAP_CLASSES.index("drivable_area")
_CORNERS = torch.cartesian_prod(torch.tensor([-0.5, 0.5]), torch.tensor([-0.5, 0.5]))


@dataclass(frozen=True)
class Things:
    """What one vehicle can run into, as seen from it: rectangles now and at every step."""

    pose: Tensor  # [A, T + 1, 3] x, y of the centre, yaw
    size: Tensor  # [A, 2] length, width [m]
    mask: Tensor  # [A, T + 1] bool: is it there?


def collides(path_KT3: Tensor, things: Things) -> Tensor:
    """[K] bool: does the vehicle overlap anything at any of ten instants a second? As ``exact`` counts collisions.

    Things move straight from step to step; one that is not there at the step before is met at the step alone.
    """
    start, end = things.mask[:, :-1], things.mask[:, 1:]
    instant = torch.arange(1, SWEEP + 1, device=path_KT3.device)
    there_AI = (end[..., None] & (start[..., None] | (instant == SWEEP))).flatten(1)
    pose_AT3 = torch.where(things.mask[..., None], things.pose, 0)
    box_AI3 = sweep(pose_AT3[:, :-1], pose_AT3[:, 1:])
    size_AI2 = things.size[:, None].expand(-1, box_AI3.shape[1], -1)
    box_AI5 = torch.cat([box_AI3[..., :2], size_AI2, box_AI3[..., 2:]], dim=-1)
    ego_KI5 = ego_rectangle(sweep_path(path_KT3))
    return ((overlap_depth(ego_KI5[:, None], box_AI5) > 0) & there_AI).any(-1).any(-1)


def things_around(batch: Batch, sample: int, frame: EgoFrame, steps: int) -> Things:
    """Everything annotated around a sample, at present and in ``steps`` steps."""
    assert batch.motion is not None
    motion, frame = batch.motion[sample], frame[sample]
    count, ahead = len(motion), min(steps, motion.path.mask.shape[1])
    pose = motion.size.new_zeros(count, steps + 1, 3)
    mask = torch.zeros(count, steps + 1, dtype=torch.bool, device=pose.device)
    for step, of in ((slice(0, 1), motion.now[:, None]), (slice(1, ahead + 1), motion.path[:, :ahead])):
        pose[:, step, :2] = frame.to_ego(of.position[None])[0]
        pose[:, step, 2] = frame.yaw_to_ego(of.yaw[None])[0]
        mask[:, step] = of.mask
    return Things(pose, motion.size[:, :2] / frame.scale, mask)


def drivable(batch: Batch, grid: BEVGrid, xy_BQ2: Tensor) -> tuple[Tensor, Tensor]:
    """Which places one may drive at, and of which the map says it; [B, Q] bool each.

    Args:
        batch: with or without maps.
        grid: that they were cut in.
        xy_BQ2: in the frame of the batch [m].
    """
    if batch.map_mask is None or batch.map_known is None:
        nowhere = torch.zeros_like(xy_BQ2[..., 0], dtype=torch.bool)
        return nowhere, nowhere
    cell_BQ, inside_BQ = grid.cell_of(F.pad(xy_BQ2, (0, 1), value=sum(grid.z) / 2))
    on_BQ = batch.map_mask[:, _DRIVABLE].flatten(1).gather(1, cell_BQ)
    return on_BQ, inside_BQ & batch.map_known[:, _DRIVABLE, None]


@torch.no_grad()
def score_targets(path_BKT3: Tensor, batch: Batch, frame: EgoFrame, grid: BEVGrid) -> tuple[Tensor, Tensor]:
    """What the paths are worth, by LEARNED, and which of it is known.

    Args:
        path_BKT3: as seen from the vehicle.
        batch: with whatever targets it has.
        frame: of the vehicle, whole.
        grid: of the batch's maps.

    Returns:
        [B, K, 4] float32 in [0, 1], and [B, K, 4] bool.
    """
    of_each = (
        _collision(path_BKT3, batch, frame),
        _off_road(path_BKT3, batch, frame, grid),
        _comfort(path_BKT3, batch, frame),
        _progress(path_BKT3, batch, frame),
    )
    value, known = (torch.stack(parts, dim=-1) for parts in zip(*of_each, strict=True))
    return torch.where(known, value, 0), known


def driven_path(batch: Batch, frame: EgoFrame, steps: int) -> tuple[Tensor, Tensor]:
    """[B, T, 3] how the human drove, as seen from the vehicle, 0 where unknown; and [B, T] bool, where it is known."""
    path_BT3 = frame.place.new_zeros(len(batch), steps, 3)
    known_BT = torch.zeros(path_BT3.shape[:2], dtype=torch.bool, device=path_BT3.device)
    if batch.future is not None:
        there = min(steps, batch.future.mask.shape[1])
        known_BT[:, :there] = batch.future.mask[:, :there]
        path_BT3[:, :there, :2] = frame.to_ego(batch.future.position[:, :there])
        path_BT3[:, :there, 2] = frame.yaw_to_ego(batch.future.yaw[:, :there])
    return torch.where(known_BT[..., None], path_BT3, 0), known_BT


def _collision(path_BKT3: Tensor, batch: Batch, frame: EgoFrame) -> tuple[Tensor, Tensor]:
    """A hit is one however the drive goes on; that there is none is known of whole drives alone."""
    hit_BK = torch.zeros(path_BKT3.shape[:2], dtype=torch.bool, device=path_BKT3.device)
    if batch.motion is None:
        return hit_BK.float(), hit_BK
    steps = path_BKT3.shape[2]
    rows = [collides(path, things_around(batch, i, frame, steps)) for i, path in enumerate(path_BKT3)]
    hit_BK = torch.stack(rows)
    _, known_BT = driven_path(batch, frame, steps)
    return hit_BK.float(), (hit_BK | known_BT.all(1)[:, None]) & batch.annotated[:, None]


def _off_road(path_BKT3: Tensor, batch: Batch, frame: EgoFrame, grid: BEVGrid) -> tuple[Tensor, Tensor]:
    """Is a corner ever off the drivable area? What leaves the map's grid is judged as far as it lies in there."""
    corner_BQ2 = frame.to_batch(ego_points(sweep_path(path_BKT3), _CORNERS.to(path_BKT3))).flatten(1, 3)
    on_BQ, known_BQ = drivable(batch, grid, corner_BQ2)
    shape = (*path_BKT3.shape[:2], -1)
    off_BK = (known_BQ & ~on_BQ).view(shape).any(-1)
    return off_BK.float(), known_BQ.view(shape).any(-1)


def _comfort(path_BKT3: Tensor, batch: Batch, frame: EgoFrame) -> tuple[Tensor, Tensor]:
    if batch.status is None:
        nothing = torch.zeros(path_BKT3.shape[:2], dtype=torch.bool, device=path_BKT3.device)
        return nothing.float(), nothing
    velocity_B2 = frame.turn_in(batch.status.velocity.float())
    rate_B = torch.where(frame.mirrored, -batch.status.yaw_rate, batch.status.yaw_rate).float()
    known_B = velocity_B2.isfinite().all(1) & rate_B.isfinite()
    fine_BK = comfortable(path_BKT3, velocity_B2[:, None], rate_B[:, None])
    return fine_BK.float(), known_B[:, None].expand_as(fine_BK)


def _progress(path_BKT3: Tensor, batch: Batch, frame: EgoFrame) -> tuple[Tensor, Tensor]:
    driven_BT3, known_BT = driven_path(batch, frame, path_BKT3.shape[2])
    got_BK = progress(path_BKT3, driven_BT3[:, None])
    return got_BK, known_BT.all(1)[:, None].expand_as(got_BK)
