"""Test-time augmentation: a model sees each sample mirrored and turned, and its answers are brought back and merged.

Boxes are merged where they are (heads/merge.py), not as heatmaps: averaging maps (CenterPoint's double flip, Yin et
al., 2021) is exact only for views that map grid cells onto cells, and binds to one kind of head; boxes can be merged
for any angle and any head. How many views found an object says how sure it is. Of plans one is chosen when all views
have been asked.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fusion3d.config import Config
from fusion3d.data.augment import (
    bev_matrix,
    transform_batch,
    transform_boxes,
    transform_forecast,
    transform_trajectory,
)
from fusion3d.heads.merge import merge_agents, merge_boxes, merge_plans
from fusion3d.rows import to_device
from fusion3d.types import Batch, Predictions

_ANGLES = (0.0, 6.25, -6.25, 12.5, -12.5)  # [degrees]
_MIRRORS = ((False, False), (True, False), (False, True), (True, True))


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


def sense_views(model: Any, batch: Batch, views: Sequence[np.ndarray]) -> list[Any] | None:
    """What the encoders of a model make of each view of a batch, for ``predict_views`` with fewer sensors.

    None where encoders look at each other's sensors, so that it holds for these sensors alone.
    """
    if not getattr(model, "separable", False):
        return None
    return [model.sense(seen) for seen in _seen(batch, views)]


def predict_views(
    model: Any,
    batch: Batch,
    views: Sequence[np.ndarray],
    memories: list[Any] | None = None,
    sensed: Sequence[Any] | None = None,
) -> Predictions:
    """What a model says of a batch, merged over views of it; on the CPU, in the frame of the batch.

    Maps and occupancy are those of the first view. With one view, which must change nothing, it is
    plainly what the model says.

    Args:
        model: with ``forward`` and ``decode``, in evaluation mode.
        batch: any batch.
        views: ``view_from_ego`` [4, 4] each.
        memories: what the model remembers of the batch before, for each view, None at first; exchanged for what it
            remembers of this one. None where batches do not follow each other.
        sensed: of ``sense_views``, of the same samples with these sensors or more; None: the encoders run here.
    """
    several = enumerate(_seen(batch, views))
    said_of = (_ask(model, seen, memories, number, sensed and sensed[number]) for number, seen in several)
    if len(views) == 1:
        return next(said_of)
    answers = []
    for said, view in zip(said_of, views, strict=True):
        back = np.linalg.inv(view)
        boxes = said.boxes and tuple(transform_boxes(of_sample, back) for of_sample in said.boxes)
        motion = said.motion and tuple(transform_forecast(of_sample, back) for of_sample in said.motion)
        plan = said.plan and transform_trajectory(said.plan, back)
        paths = said.modes and transform_trajectory(said.modes.path, back)
        modes = said.modes and dataclasses.replace(said.modes, path=paths)
        answers.append(dataclasses.replace(said, boxes=boxes, motion=motion, plan=plan, modes=modes))
    boxes, motion, plan, modes = answers[0].boxes, answers[0].motion, answers[0].plan, answers[0].modes
    if motion is not None:
        both = [
            merge_agents([said.boxes[sample] for said in answers], [said.motion[sample] for said in answers])
            for sample in range(len(batch))
        ]
        boxes, motion = (tuple(part) for part in zip(*both, strict=True))
    elif boxes is not None:
        boxes = tuple(merge_boxes([said.boxes[sample] for said in answers]) for sample in range(len(batch)))
    if plan is not None:
        plan, modes = merge_plans([said.plan for said in answers], [said.modes for said in answers])
    return dataclasses.replace(answers[0], boxes=boxes, motion=motion, plan=plan, modes=modes)


def _seen(batch: Batch, views: Sequence[np.ndarray]) -> Iterator[Batch]:
    """The batch in every view; what only targets say is left out where there are several."""
    if len(views) == 1:
        yield batch
        return
    inputs = dataclasses.replace(batch, boxes=None, future=None, motion=None, map_mask=None)
    yield from (transform_batch(inputs, view) for view in views)


def _ask(model: Any, batch: Batch, memories: list[Any] | None, number: int, sensed: Any) -> Predictions:
    memory = () if memories is None else (memories[number],)
    outputs = model(batch, *memory) if sensed is None else model.conclude(sensed, batch, *memory)
    if memories is not None:
        memories[number] = outputs["memory"]
    return to_device(model.decode(outputs, batch), "cpu")
