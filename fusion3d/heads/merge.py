"""Several answers about one sample become one: of several views of it, or of several models.

Letters: N boxes of all answers, V answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fusion3d.heads.planning.choice import choose
from fusion3d.heads.targets import usual_sizes
from fusion3d.types import Boxes, Forecast, PlanModes, Trajectory

_MIN_RADIUS = 0.4  # [m]
_MAX_BOXES = 500  # of a sample; nuScenes allows no more


How = Literal["weighted", "voting"]


def merge_boxes(answers: Sequence[Boxes], how: How = "weighted") -> Boxes:
    """The boxes of V answers about one sample as one list, best first.

    The best box that is left gathers, from every other answer, the nearest of its class that is left within reach: half
    the usual width of the class. (Boxes of images are gathered by overlap; nuScenes matches by distance, and so does
    this.)

    - weighted: weighted boxes fusion (Solovyev et al., "Weighted boxes fusion: Ensembling boxes from different object
      detection models", 2021). Centre, size, velocity and heading are means weighted by score (a heading that is more
      than a right angle from the best one's counts turned round); class and attribute are the best one's. The score is
      the sum over V: an answer without the object counts 0.
    - voting: an object stands if at least half of the answers have it. It is the best one's box; its score is the
      chance that not all of them are wrong, if they err independently. (ProbEn, Chen et al., 2022, multiplies the odds
      of independent detectors instead; there an answer below one half lowers the score, here each one that agrees
      raises it.)

    Args:
        answers: boxes in one frame, on the CPU.
        how: see above.
    """
    return _merge(answers, how)[0]


def merge_agents(
    answers: Sequence[Boxes], forecasts: Sequence[Forecast], how: How = "weighted"
) -> tuple[Boxes, Forecast]:
    """``merge_boxes``, and the forecast of each merged box: that of the best one, moved to where they are merged.

    Ways of different answers are not averaged: the same number need not mean the same way.
    """
    merged, best = _merge(answers, how)
    forecast, moved = Forecast.cat(forecasts)[best], merged.center - Boxes.cat(answers).center[best]
    return merged, dataclasses.replace(forecast, position=forecast.position + moved[:, None, None, :2])


def _merge(answers: Sequence[Boxes], how: How) -> tuple[Boxes, Tensor]:
    """The merged boxes, and of each the row of the best one that it was made of, among those of all answers."""
    boxes = Boxes.cat(answers)
    answer_N = np.repeat(np.arange(len(answers)), [len(answer) for answer in answers])
    center_N2, label_N = boxes.center[:, :2].double().numpy(), boxes.label.numpy()
    reach = (usual_sizes()[:, :2].amin(1) / 2).clamp(min=_MIN_RADIUS).numpy()
    free_N = np.ones(len(boxes), dtype=bool)
    groups: list[np.ndarray] = []
    for best in np.argsort(-boxes.score.numpy(), kind="stable"):
        if not free_N[best]:
            continue
        far_N = np.hypot(*(center_N2 - center_N2[best]).T)
        near = np.flatnonzero(
            free_N & (label_N == label_N[best]) & (far_N <= reach[label_N[best]]) & (answer_N != answer_N[best])
        )
        near = near[np.argsort(far_N[near], kind="stable")]
        group = np.append(best, near[np.unique(answer_N[near], return_index=True)[1]])  # the nearest of each answer
        free_N[group] = False
        groups.append(group)
    if how == "voting":
        groups = [group for group in groups if 2 * len(group) >= len(answers)]
    best_of = torch.tensor([int(group[0]) for group in groups], dtype=torch.int64)
    merged = _vote(boxes, groups, best_of) if how == "voting" else _average(boxes, groups, best_of, len(answers))
    order = merged.score.argsort(descending=True, stable=True)[:_MAX_BOXES]
    return merged[order], best_of[order]


def _average(boxes: Boxes, groups: list[np.ndarray], best: Tensor, num_answers: int) -> Boxes:
    """One box of each group of boxes, whose first is the best."""
    member = torch.from_numpy(np.concatenate([*groups, np.zeros(0, dtype=np.int64)]))
    group_of = torch.repeat_interleave(
        torch.arange(len(groups)), torch.tensor([len(g) for g in groups], dtype=torch.int64)
    )
    weight = boxes.score[member].double().clamp(min=1e-9)
    total = torch.zeros(len(groups), dtype=torch.float64).index_add(0, group_of, weight)

    def mean(values: Tensor) -> Tensor:
        sums = torch.zeros(len(groups), values.shape[1], dtype=torch.float64)
        return sums.index_add(0, group_of, weight[:, None] * values.double()) / total[:, None]

    heading = torch.stack([boxes.yaw.cos(), boxes.yaw.sin()], dim=1).double()
    agrees = (heading[member] * heading[best][group_of]).sum(1, keepdim=True)
    heading = mean(torch.where(agrees < 0, -heading[member], heading[member]))
    return dataclasses.replace(
        boxes[best],
        center=mean(boxes.center[member]).float(),
        size=mean(boxes.size[member]).float(),
        yaw=torch.atan2(heading[:, 1], heading[:, 0]).float(),
        velocity=mean(boxes.velocity[member]).float(),
        score=(total / num_answers).float(),
    )


def _vote(boxes: Boxes, groups: list[np.ndarray], best: Tensor) -> Boxes:
    """The first box of each group, with the chance that not all of the group are wrong."""
    score_N = boxes.score.double().numpy()
    score = torch.tensor([1 - np.prod(1 - score_N[group]) for group in groups], dtype=torch.float32)
    return dataclasses.replace(boxes[best], score=score)


def merge_plans(plans: Sequence[Trajectory], modes: Sequence[PlanModes | None]) -> tuple[Trajectory, PlanModes | None]:
    """The plan of V answers about the same batch, and the paths that it was chosen among, if it was.

    Where planners choose, their paths of one number come of one anchor. Each is merged with its like: of positions, of
    what is thought of them and of what they are expected to cost it is the mean, and then one is chosen, as by a single
    planner. Plans that were chosen apart are not averaged: the mean of a way left around something and a way right
    around it leads into it. A planner that says one path chooses nothing; of such paths it is the mean.

    Args:
        plans: [B, T] in one frame.
        modes: [B, K, T] that each was chosen among, of the same anchors; None: of none.
    """
    chosen_among = [of_answer for of_answer in modes if of_answer is not None]
    if len(chosen_among) < len(modes):
        return mean_path(plans), None
    path = mean_path([of_answer.path for of_answer in chosen_among])
    thought = {
        name: torch.stack([getattr(of_answer, name) for of_answer in chosen_among]).mean(0)
        for name in ("imitation", "score", "cost", "rejected")
    }
    merged = PlanModes(path, **thought, chosen=choose(thought["cost"], thought["rejected"]))
    return merged.plan, merged


def mean_path(paths: Sequence[Trajectory]) -> Trajectory:
    """The mean of several paths over the same steps; known where all are."""
    yaw = torch.stack([path.yaw for path in paths]).double()
    return Trajectory(
        position=torch.stack([path.position for path in paths]).double().mean(0).float(),
        yaw=torch.atan2(yaw.sin().mean(0), yaw.cos().mean(0)).float(),
        mask=torch.stack([path.mask for path in paths]).all(0),
    )
