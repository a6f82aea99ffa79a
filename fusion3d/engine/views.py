"""Test-time augmentation: a model sees each sample mirrored and turned, and its answers are brought back and merged.

Boxes are merged where they are, not as heatmaps: averaging maps (CenterPoint's double flip, Yin et al., 2021) is exact
only for views that map grid cells onto cells, and binds to one kind of head; boxes can be merged for any angle and any
head. They are merged by weighted boxes fusion (Solovyev et al., "Weighted boxes fusion: Ensembling boxes from different
object detection models", 2021), in which all boxes of an object say where it is, and how many views found it says how
sure it is. Unlike there, boxes belong together by the distance of their centres, as nuScenes matches them.
Letters: N boxes of all views, V views.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion3d.config import Config
from fusion3d.data.augment import bev_matrix, transform_batch, transform_boxes, transform_trajectory
from fusion3d.heads.targets import usual_sizes
from fusion3d.types import Batch, Boxes, Predictions, Trajectory, to_device

_ANGLES = (0.0, 6.25, -6.25, 12.5, -12.5)  # [degrees]
_MIRRORS = ((False, False), (True, False), (False, True), (True, True))
_MIN_RADIUS = 0.4  # [m]
_MAX_BOXES = 500  # of a sample; nuScenes allows no more


def views_of(config: Config) -> list[np.ndarray]:
    """The views that ``evaluation.tta`` asks for, ``view_from_ego`` [4, 4] each; the first changes nothing.

    Warns where the model has been trained without mirroring and is to see it.
    """
    tta = config.evaluation.tta
    if "flip" in tta and config.augment is not None and not config.augment.bev_flip:
        warnings.warn(
            f"evaluation.tta {tta} mirrors the world; augment.bev_flip false kept that from training", stacklevel=2
        )
    angles = _ANGLES if "rotate" in tta else _ANGLES[:1]
    mirrors = _MIRRORS if "flip" in tta else _MIRRORS[:1]
    return [bev_matrix(math.radians(angle), 1.0, *mirror) for angle, mirror in itertools.product(angles, mirrors)]


def predict_views(model: Any, batch: Batch, views: Sequence[np.ndarray]) -> Predictions:
    """What a model says of a batch, merged over views of it; on the CPU, in the frame of the batch.

    What is neither box nor plan is that of the first view. With one view, which must change nothing, it is plainly what
    the model says.

    Args:
        model: with ``forward`` and ``decode``, in evaluation mode.
        batch: any batch.
        views: ``view_from_ego`` [4, 4] each.
    """
    if len(views) == 1:
        return to_device(model.decode(model(batch), batch), "cpu")
    inputs = dataclasses.replace(batch, boxes=None, future=None, map_mask=None)
    answers = []
    for view in views:
        seen = transform_batch(inputs, view)
        said = to_device(model.decode(model(seen), seen), "cpu")
        back = np.linalg.inv(view)
        boxes = said.boxes and tuple(transform_boxes(of_sample, back) for of_sample in said.boxes)
        plan = said.plan and transform_trajectory(said.plan, back)
        answers.append(dataclasses.replace(said, boxes=boxes, plan=plan))
    boxes, plan = answers[0].boxes, answers[0].plan
    if boxes is not None:
        boxes = tuple(fuse_boxes([said.boxes[sample] for said in answers]) for sample in range(len(batch)))
    if plan is not None:
        plan = mean_path([said.plan for said in answers])
    return dataclasses.replace(answers[0], boxes=boxes, plan=plan)


def fuse_boxes(views: Sequence[Boxes]) -> Boxes:
    """The boxes of V views of one sample as one list, best first.

    The best box that is left gathers, from every other view, the nearest of its class that is left within reach: half
    the usual width of the class. Centre, size, velocity and heading are means weighted by score (a heading that is
    more than a right angle from the best one's counts turned round); class and attribute are the best one's. The score
    is the sum over V: a view that did not find the object counts 0.

    Args:
        views: boxes in one frame, on the CPU.
    """
    boxes = Boxes.cat(views)
    view_N = np.repeat(np.arange(len(views)), [len(of_view) for of_view in views])
    center_N2, label_N = boxes.center[:, :2].double().numpy(), boxes.label.numpy()
    reach = (usual_sizes()[:, :2].amin(1) / 2).clamp(min=_MIN_RADIUS).numpy()
    free_N = np.ones(len(boxes), dtype=bool)
    groups: list[np.ndarray] = []
    for best in np.argsort(-boxes.score.numpy(), kind="stable"):
        if not free_N[best]:
            continue
        far_N = np.hypot(*(center_N2 - center_N2[best]).T)
        near = np.flatnonzero(
            free_N & (label_N == label_N[best]) & (far_N <= reach[label_N[best]]) & (view_N != view_N[best])
        )
        near = near[np.argsort(far_N[near], kind="stable")]
        group = np.append(best, near[np.unique(view_N[near], return_index=True)[1]])  # the nearest of each view
        free_N[group] = False
        groups.append(group)
    merged = _merge(boxes, groups, len(views))
    return merged[merged.score.argsort(descending=True, stable=True)[:_MAX_BOXES]]


def _merge(boxes: Boxes, groups: list[np.ndarray], num_views: int) -> Boxes:
    """One box of each group of boxes, whose first is the best."""
    best = torch.tensor([int(group[0]) for group in groups], dtype=torch.int64)
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
        score=(total / num_views).float(),
    )


def mean_path(paths: Sequence[Trajectory]) -> Trajectory:
    """The mean of several paths over the same steps; known where all are."""
    yaw = torch.stack([path.yaw for path in paths]).double()
    return Trajectory(
        position=torch.stack([path.position for path in paths]).double().mean(0).float(),
        yaw=torch.atan2(yaw.sin().mean(0), yaw.cos().mean(0)).float(),
        mask=torch.stack([path.mask for path in paths]).all(0),
    )
