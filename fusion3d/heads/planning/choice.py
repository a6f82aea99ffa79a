"""Which path is driven. Letters: B samples, K paths, T steps, A boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion3d.heads.planning.frame import EgoFrame
from fusion3d.heads.planning.targets import LEARNED, Things, collides
from fusion3d.types import TIME_STEP, Boxes

# Boxes of every sample, and a number of steps, to where they will be: centres [A, T, 2] and yaws [A, T] of each sample.
Rollout = Callable[[Sequence[Boxes], int], Sequence[tuple[Tensor, Tensor]]]

_GOOD = {"collision": -1.0, "off_road": -1.0, "comfort": 1.0, "progress": 1.0}  # what is bad counts by its absence
_LEAST = 1e-3  # probability below which one no longer counts against a path


def constant_velocity(boxes: Sequence[Boxes], steps: int) -> list[tuple[Tensor, Tensor]]:
    """Boxes straight on at their velocity, as they head; standing where it is not known. A ``Rollout``."""
    futures = []
    for of_sample in boxes:
        seconds = TIME_STEP * torch.arange(1, steps + 1, device=of_sample.yaw.device)
        move = of_sample.velocity.nan_to_num()[:, None] * seconds[:, None]
        futures.append((of_sample.center[:, None, :2] + move, of_sample.yaw[:, None].expand(-1, steps)))
    return futures


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
    rollout: Rollout = constant_velocity,
) -> Tensor:
    """[B, K] bool: does a path hit a box that was found, rolled out? Never all of a sample's paths: then none counts.

    (SparseDrive, Sun et al., 2024, rejects so. There boxes are of the forecast that is likeliest.)

    Args:
        path_BKT3: as seen from the vehicle.
        boxes: of every sample, in the frame of the batch.
        frame: of the vehicle, whole.
        least_score: boxes below it are not looked at.
        rollout: where boxes will be.
    """
    steps, rows = path_BKT3.shape[2], []
    sure = [of_sample[of_sample.score >= least_score] for of_sample in boxes]
    for i, (now, (center, yaw)) in enumerate(zip(sure, rollout(sure, steps), strict=True)):
        place = torch.cat([now.center[:, None, :2], center], dim=1)
        own = frame[i]
        turn = own.yaw_to_ego(torch.cat([now.yaw[:, None], yaw], dim=1)[None])[0]
        pose = torch.cat([own.to_ego(place[None])[0], turn[..., None]], dim=-1)
        there = torch.ones_like(turn, dtype=torch.bool)
        rows.append(collides(path_BKT3[i], Things(pose, now.size[:, :2] / own.scale, there)))
    hit_BK = torch.stack(rows)
    return hit_BK & ~hit_BK.all(1, keepdim=True)
