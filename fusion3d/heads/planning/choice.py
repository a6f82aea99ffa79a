"""Which path is driven. Letters: B samples, K paths, T steps, A boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fusion3d.heads.planning.frame import EgoFrame
from fusion3d.heads.planning.targets import LEARNED, Things, collides
from fusion3d.heads.rollout import constant_velocity, rollout
from fusion3d.types import TIME_STEP, Boxes, Forecast

_GOOD = torch.tensor([name in ("comfort", "progress") for name in LEARNED])  # the others are bad


def expected_cost(
    path_BKT3: Tensor, imitation_BK: Tensor, scores_BKS: Tensor, costs_BK2: Tensor, prices: Sequence[float]
) -> Tensor:
    """[B, K] what a path is expected to cost [m]: how far from it the human drives, and what it may run into.

    The likeliest path is not the best one: of many that are likely alone, those that are alike count together, and what
    is unlikely and terrible counts too (least risk, as Bayes would decide).

    Args:
        path_BKT3: as seen from the vehicle.
        imitation_BK: logits of being the human's.
        scores_BKS: logits by LEARNED.
        costs_BK2: occupied and undrivable, in [0, 1]; NaN where nothing is said of them.
        prices: by PLAN_SCORES, of what is certain [m].
    """
    away_BKK = (path_BKT3[:, :, None, :, :2] - path_BKT3[:, None, :, :, :2]).norm(dim=-1).mean(-1)
    bad_BKS = torch.where(_GOOD.to(scores_BKS.device), -scores_BKS, scores_BKS).sigmoid()
    bad_BKS = torch.cat([bad_BKS, costs_BK2.nan_to_num()], dim=-1)
    far_BK = (away_BKK * imitation_BK.softmax(-1)[:, None]).sum(-1)
    return far_BK + (bad_BKS * bad_BKS.new_tensor(prices)).sum(-1)


def crashes(
    path_BKT3: Tensor,
    boxes: Sequence[Boxes],
    frame: EgoFrame,
    least_score: float,
    motion: Sequence[Forecast] | None = None,
) -> Tensor:
    """[B, K] bool: does a path hit a box that was found, rolled out?

    (SparseDrive, Sun et al., 2024, rejects so.)

    Args:
        path_BKT3: as seen from the vehicle.
        boxes: of every sample, in the frame of the batch.
        frame: of the vehicle, whole.
        least_score: boxes below it are not looked at.
        motion: how they go on, of which the likeliest way counts; None: straight on, as they move.
    """
    rows, times = [], TIME_STEP * torch.arange(1, path_BKT3.shape[2] + 1, device=path_BKT3.device)
    for i, found in enumerate(boxes):
        sure = found.score >= least_score
        now, go_on = found[sure], constant_velocity if motion is None else rollout(motion[i][sure])
        center, yaw = go_on(now, times)
        place = torch.cat([now.center[:, None, :2], center], dim=1)
        own = frame[i]
        turn = own.yaw_to_ego(torch.cat([now.yaw[:, None], yaw], dim=1)[None])[0]
        pose = torch.cat([own.to_ego(place[None])[0], turn[..., None]], dim=-1)
        there = torch.ones_like(turn, dtype=torch.bool)
        rows.append(collides(path_BKT3[i], Things(pose, now.size[:, :2] / own.scale, there)))
    return torch.stack(rows)


def choose(cost_BK: Tensor, rejected_BK: Tensor) -> Tensor:
    """[B] int64 the cheapest of the paths that are rejected least: where all are alike in that, the cheapest.

    Args:
        cost_BK: of ``expected_cost`` [m].
        rejected_BK: as of ``PlanModes``.
    """
    return cost_BK.masked_fill(rejected_BK > rejected_BK.amin(1, keepdim=True), torch.inf).argmin(1)
