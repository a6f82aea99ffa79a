"""Which path is driven. Letters: B samples, K paths, T steps, A boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion3d.heads.planning.frame import EgoFrame
from fusion3d.heads.planning.targets import LEARNED, Things, collides
from fusion3d.heads.rollout import constant_velocity, rollout
from fusion3d.types import TIME_STEP, Boxes, Forecast

_GOOD = {"collision": -1.0, "off_road": -1.0, "comfort": 1.0, "progress": 1.0}  # what is bad counts by its absence
_LEAST = 1e-3  # probability below which one no longer counts against a path


def worth(imitation_BK: Tensor, scores_BKS: Tensor, costs_BK2: Tensor, weights: Sequence[float]) -> Tensor:
    """[B, K] log probability of a path as the human's, plus the weighted logs of what speaks for it (Hydra-MDP).

    Args:
        imitation_BK: logits.
        scores_BKS: logits by LEARNED.
        costs_BK2: occupied and undrivable, in [0, 1]; NaN where nothing is said of them.
        weights: by PLAN_SCORES.
    """
    good_BKS = F.logsigmoid(scores_BKS * scores_BKS.new_tensor([_GOOD[name] for name in LEARNED]))
    clear_BK2 = (1 - costs_BK2.nan_to_num()).clamp(min=_LEAST).log()
    of_each = torch.cat([good_BKS, clear_BK2], dim=-1)
    return imitation_BK.log_softmax(-1) + (of_each * of_each.new_tensor(weights)).sum(-1)


def crashes(
    path_BKT3: Tensor,
    boxes: Sequence[Boxes],
    frame: EgoFrame,
    least_score: float,
    motion: Sequence[Forecast] | None = None,
) -> Tensor:
    """[B, K] bool: does a path hit a box that was found, rolled out? Never all of a sample's paths: then none counts.

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
    hit_BK = torch.stack(rows)
    return hit_BK & ~hit_BK.all(1, keepdim=True)
