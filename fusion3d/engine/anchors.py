"""Anchors of a planner: how the training split was driven, from the tables' poses alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fusion3d.config import Config
from fusion3d.data.annotations import chain
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.errors import ConfigError, DataError
from fusion3d.geometry import invert, yaw_of
from fusion3d.heads.planning import AnchorPlanner
from fusion3d.metrics.planning.baselines import make_anchors


def find_anchors(model: nn.Module, config: Config, dataset: NuScenesDataset) -> list[str]:
    """Give anchors to the planners of a model that choose among some; the same for the same data set.

    Args:
        model: changed in place.
        config: of the model.
        dataset: the training split.

    Returns:
        Lines that say so; none where no planner needs any.

    Raises:
        DataError: no sample of the split has a whole known future.
        ConfigError: it has fewer different paths than there are to be anchors.
    """
    planners = [part for part in model.modules() if isinstance(part, AnchorPlanner)]
    if not planners or config.planning is None:
        return []
    paths = driven_paths(dataset, config.planning.steps)
    if not len(paths):
        raise DataError(
            f"split {dataset.split!r} of {config.data.root}: no keyframe has {config.planning.steps} known ones after "
            "it, and planning.head 'anchors' begins with driven paths; take more scenes or fewer planning.steps"
        )
    count = config.planning.anchors.count
    anchors = make_anchors(paths, count)
    if len(anchors) < count:
        raise ConfigError(
            f"planning.anchors.count: found {count}, and split {dataset.split!r} has {len(anchors)} different paths; "
            "expected at most as many"
        )
    for planner in planners:
        planner.set_anchors(torch.from_numpy(anchors).float())
    return [f"planning: {count} anchors from {len(paths)} driven paths of {dataset.split!r}"]


def check_anchors(model: nn.Module) -> None:
    """Nothing, where planners side by side choose among the same paths, so that what they choose can be merged.

    Raises:
        ConfigError: they have other anchors each, as after ``train.start`` with models of several training splits.
    """
    anchors = [part.anchors for part in model.modules() if isinstance(part, AnchorPlanner)]
    if not all(torch.equal(one, anchors[0]) for one in anchors[1:]):
        raise ConfigError(
            "train.start: the planners of the models side by side come with other anchors each, and what they choose "
            "among is merged path by path; begin with models of one training split, or name the planners in train.fresh"
        )


def driven_paths(dataset: NuScenesDataset, steps: int) -> np.ndarray:
    """[M, T, 3] x, y, yaw in ego, as ``load_ego`` has them, of the samples whose future is known for T steps."""
    tables = dataset.tables
    lines = [[row, *chain(tables, row, tables.sample_next, steps)] for row in dataset.rows.tolist()]
    lines = [line for line in lines if len(line) == steps + 1]
    if not lines:
        return np.zeros((0, steps, 3))
    poses = {row: tables.global_from_ego(row) for row in {row for line in lines for row in line}}
    pose = np.stack([np.stack([poses[row] for row in line]) for line in lines])
    ahead = invert(pose[:, :1]) @ pose[:, 1:]
    return np.concatenate([ahead[..., :2, 3], yaw_of(ahead)[..., None]], axis=-1)
