"""What is explained: one number of one head's output, as a person names it.

``car``             how sure the model is of its best car; of every detection class
``car@12,-3``       the same for the car at x, y [m] in ego: the heatmap's cell there, or the nearest query of the class
``plan``, ``plan@2``  how far away the planned point is, after all its time or 2 seconds
``drivable_area``   the mean over the cells where it is said to be; of every map class
``drivable_area@12,-3``  its cell there
Numbers are before the last sigmoid, as in Grad-CAM; of a query's box the mean of its own and its peak's, since its
score is the geometric mean of the two.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion3d.errors import ConfigError, DataError
from fusion3d.heads.center import DetectionMaps
from fusion3d.heads.query import QueryBoxes
from fusion3d.heads.targets import corners
from fusion3d.model import Fusion3D
from fusion3d.types import DETECTION_CLASSES, MAP_CLASSES, TIME_STEP, Batch, BEVGrid

PLAN = "plan"
_LIKELY = 0.5  # probability from which a map class counts as said


@dataclass(frozen=True)
class Target:
    """What is to be explained."""

    name: str  # a detection class, a map class or "plan"
    place: tuple[float, float] | None = None  # x, y in ego [m]
    seconds: float | None = None  # of a planned point


@dataclass(frozen=True)
class Answer:
    """What a model says of a target."""

    value: Tensor  # scalar, with its graph
    text: str  # in words
    place: tuple[float, float] | None  # where it is, x, y in ego [m]


def parse_target(text: str) -> Target:
    """A target from its name.

    Raises:
        ConfigError: a name that is none, or a place or time that is no number.
    """
    name, _, where = text.partition("@")
    known = (*DETECTION_CLASSES, PLAN, *MAP_CLASSES)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ConfigError(f"target {text!r}: unknown {name!r}; did you mean {near!r}? known: {', '.join(known)}")
    try:
        numbers = [float(part) for part in where.split(",")] if where else []
    except ValueError:
        numbers = [math.nan]
    wanted = 1 if name == PLAN else 2
    if len(numbers) not in (0, wanted) or not all(map(math.isfinite, numbers)):
        example = f"{PLAN}@3 (seconds)" if name == PLAN else f"{name}@12,-3 (x, y in ego, metres)"
        raise ConfigError(f"target {text!r}: found {where!r} after @; expected such as {example}")
    if name == PLAN:
        return Target(name, seconds=numbers[0] if numbers else None)
    return Target(name, place=(numbers[0], numbers[1]) if numbers else None)


def usual_target(models: Mapping[str, Fusion3D], outputs: Mapping[str, Any]) -> Target:
    """The class that the models are surest of; without boxes the plan, or the drivable area."""
    peaks = [outputs[name]["detection"].heatmap[0].amax((1, 2)) for name in models if "detection" in outputs[name]]
    if peaks:
        return Target(DETECTION_CLASSES[int(torch.stack(peaks).amax(0).argmax())])
    return Target(PLAN if any("planning" in outputs[name] for name in models) else MAP_CLASSES[0])


def answer(model: Fusion3D, outputs: Mapping[str, Any], batch: Batch, target: Target) -> Answer:
    """What a model says of a target, of the only sample of a batch.

    Raises:
        ConfigError: the model has no head for it.
        DataError: there is nothing of it: a place outside of the grid, a time beyond the plan, no query of the class.
    """
    head = "planning" if target.name == PLAN else "detection" if target.name in DETECTION_CLASSES else "map"
    if getattr(model, head) is None:
        there = [name for name in ("detection", "planning", "map") if getattr(model, name) is not None]
        raise ConfigError(f"target {target.name!r} is of the {head} head; this model has {', '.join(there)}")
    if head == "planning":
        assert model.planning is not None
        plan_BT2 = model.planning.path_of(outputs["planning"], batch, *model.agents(outputs))
        return _of_plan(plan_BT2, batch, target)
    if head == "map":
        assert model.map is not None
        return _of_ground(outputs["map"], model.map.grid, target)
    said, grid = outputs["detection"], model.detection.grid  # type: ignore[union-attr]
    return _of_query(said, grid, target) if isinstance(said, QueryBoxes) else _of_peak(said, grid, target)


def _of_peak(said: DetectionMaps, grid: BEVGrid, target: Target) -> Answer:
    heatmap_YX = said.heatmap[0, DETECTION_CLASSES.index(target.name)].float()
    cell = int(heatmap_YX.argmax()) if target.place is None else _cell_at(target, grid)
    value = heatmap_YX.flatten()[cell]
    place = _middle_of(cell, grid)
    return Answer(value, f"{_at(target.name, place)}, score {float(value.detach().sigmoid()):.2f}", place)


def _of_query(said: QueryBoxes, grid: BEVGrid, target: Target) -> Answer:
    label = DETECTION_CLASSES.index(target.name)
    of_class_Q = (said.label[0] == label).nonzero()[:, 0]
    if not len(of_class_Q):
        asked = [DETECTION_CLASSES[i] for i in sorted(set(said.label[0].tolist()))]
        raise DataError(f"target {target.name!r}: no query starts from a peak of it; there are {', '.join(asked)}")
    cell_Q = said.cell[0, of_class_Q]
    value_Q = (said.heatmap[0, label].flatten()[cell_Q] + said.logits[-1, 0, of_class_Q, label]).float() / 2
    cells_Q2 = (corners(cell_Q, grid) + 0.5 + said.offset[-1, 0, of_class_Q]).detach().float()
    xy_Q2 = grid.xy_of(cells_Q2)
    if target.place is None:
        score_Q = said.heatmap[0, label].flatten()[cell_Q].sigmoid() * said.logits[-1, 0, of_class_Q, label].sigmoid()
        chosen = int(score_Q.argmax())
    else:
        _cell_at(target, grid)
        chosen = int((xy_Q2 - xy_Q2.new_tensor(target.place)).norm(dim=1).argmin())
    place = (float(xy_Q2[chosen, 0]), float(xy_Q2[chosen, 1]))
    own = said.logits[-1, 0, of_class_Q[chosen], label].detach().sigmoid()
    score = (own * said.heatmap[0, label].flatten()[cell_Q[chosen]].detach().sigmoid()).sqrt()
    return Answer(value_Q[chosen], f"{_at(target.name, place)}, score {float(score):.2f}", place)


def _of_plan(plan_BT2: Tensor, batch: Batch, target: Target) -> Answer:
    steps = plan_BT2.shape[1]
    step = steps if target.seconds is None else round(target.seconds / TIME_STEP)
    if not 1 <= step <= steps:
        raise DataError(f"target plan@{target.seconds:g}: the plan is from {TIME_STEP:g} to {steps * TIME_STEP:g} s")
    point_2 = plan_BT2[0, step - 1].float()
    value = (point_2 - batch.aug_from_ego[0, :2, 3]).norm()
    text = f"plan after {step * TIME_STEP:g} s, {float(value.detach()):.1f} m away"
    return Answer(value, text, (float(point_2[0].detach()), float(point_2[1].detach())))


def _of_ground(logits_BNYX: Tensor, grid: BEVGrid, target: Target) -> Answer:
    logits_YX = logits_BNYX[0, MAP_CLASSES.index(target.name)].float()
    if target.place is not None:
        cell = _cell_at(target, grid)
        value, place = logits_YX.flatten()[cell], _middle_of(cell, grid)
        return Answer(value, f"{_at(target.name, place)}, probability {float(value.detach().sigmoid()):.2f}", place)
    likely_YX = logits_YX.detach().sigmoid() >= _LIKELY
    if not likely_YX.any():
        likely_YX = logits_YX == logits_YX.max()
    share = float(likely_YX.float().mean())
    return Answer(logits_YX[likely_YX].mean(), f"{target.name.replace('_', ' ')} in {100 * share:.0f} % of cells", None)


def _cell_at(target: Target, grid: BEVGrid) -> int:
    assert target.place is not None
    cell, inside = grid.cell_of(torch.tensor([*target.place, sum(grid.z) / 2]))
    if not inside:
        raise DataError(f"target {target.name}@{target.place[0]:g},{target.place[1]:g}: outside of the grid, which has "
                        f"x {grid.x} and y {grid.y} m")  # fmt: skip
    return int(cell)


def _middle_of(cell: int, grid: BEVGrid) -> tuple[float, float]:
    x, y = grid.centers().flatten(0, 1)[cell].tolist()
    return x, y


def _at(name: str, place: tuple[float, float]) -> str:
    return f"{name.replace('_', ' ')} at x {place[0]:.1f}, y {place[1]:.1f} m"
