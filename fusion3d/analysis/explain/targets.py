"""What is explained: one number of one head's output, as a person names it.

``car``             how sure the model is of its best car; of every detection class
``car@12,-3``       the same for the car at x, y [m] in ego: the heatmap's cell there, or the nearest query of the class
``plan``, ``plan@2``  how far away the planned point is, after all its time or 2 seconds
``drivable_area``   the mean over the cells where it is said to be; of every map class
``drivable_area@12,-3``  its cell there
``vehicle``, ``vehicle@2``, ``vehicle@12,-3``, ``vehicle@12,-3,2``  the same of who is where, now or in 2 seconds
``motion``, ``motion@12,-3``  how far the surest box, or the one nearest to a place, goes by its likeliest way
Numbers are before the last sigmoid, as in Grad-CAM; of a query's box the mean of its own and its peak's, since its
score is the geometric mean of the two.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion3d.errors import ConfigError, DataError
from fusion3d.heads.center import DetectionMaps
from fusion3d.heads.motion import STILL, MotionPaths
from fusion3d.heads.query import QueryBoxes
from fusion3d.heads.targets import corners
from fusion3d.model import Fusion3D
from fusion3d.types import (
    DETECTION_CLASSES,
    MAP_CLASSES,
    OCCUPANCY_TIMES,
    OCCUPANTS,
    TIME_STEP,
    Batch,
    BEVGrid,
    Occupancy,
)

PLAN, MOTION = "plan", "motion"
_HEADS = {
    **dict.fromkeys(DETECTION_CLASSES, "detection"), PLAN: "planning", **dict.fromkeys(MAP_CLASSES, "map"),
    **dict.fromkeys(OCCUPANTS, "occupancy"), MOTION: "motion",
}  # what each target is of  # fmt: skip
_LIKELY = 0.5  # probability from which a cell counts as said


@dataclass(frozen=True)
class Target:
    """What is to be explained."""

    name: str  # a detection class, a map class, an occupant, "plan" or "motion"
    place: tuple[float, float] | None = None  # x, y in ego [m]
    seconds: float | None = None  # of a planned point, or of who is where


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
    if name not in _HEADS:
        near = difflib.get_close_matches(name, _HEADS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"target {text!r}: unknown {name!r}; did you mean {near!r}? known: {', '.join(_HEADS)}")
    try:
        numbers = [float(part) for part in where.split(",")] if where else []
    except ValueError:
        numbers = [math.nan]
    counts = (0, 1) if name == PLAN else (0, 1, 2, 3) if name in OCCUPANTS else (0, 2)
    if len(numbers) not in counts or not all(map(math.isfinite, numbers)):
        examples = [f"{name}@3 (seconds)"] * (1 in counts) + [f"{name}@12,-3 (x, y in ego, metres)"] * (2 in counts)
        raise ConfigError(f"target {text!r}: found {where!r} after @; expected such as {' or '.join(examples)}")
    seconds = numbers.pop() if len(numbers) in (1, 3) else None
    return Target(name, (numbers[0], numbers[1]) if numbers else None, seconds)


def usual_target(models: Mapping[str, Fusion3D], outputs: Mapping[str, Any]) -> Target:
    """The class that the models are surest of; without boxes the plan, the drivable area, or where vehicles are."""
    peaks = [outputs[name]["detection"].heatmap[0].amax((1, 2)) for name in models if "detection" in outputs[name]]
    if peaks:
        return Target(DETECTION_CLASSES[int(torch.stack(peaks).amax(0).argmax())])
    usual = {"planning": PLAN, "map": MAP_CLASSES[0], "occupancy": OCCUPANTS[0]}
    return Target(next(of for head, of in usual.items() if any(head in outputs[name] for name in models)))


def answer(model: Fusion3D, outputs: Mapping[str, Any], batch: Batch, target: Target) -> Answer:
    """What a model says of a target, of the only sample of a batch.

    Raises:
        ConfigError: the model has no head for it.
        DataError: there is nothing of it: a place outside of the grid, a time that is not answered, no query of the
            class, no box that moves.
    """
    head = _HEADS[target.name]
    module: Any = getattr(model, head)
    if module is None:
        there = [name for name in dict.fromkeys(_HEADS.values()) if getattr(model, name) is not None]
        raise ConfigError(f"target {target.name!r} is of the {head} head; this model has {', '.join(there)}")
    said = outputs[head]
    if head == "planning":
        return _of_plan(module.path_of(said, batch, *model.agents(outputs)), batch, target)
    if head == "motion":
        return _of_motion(said, target)
    if head == "map":
        return _of_cells(said[0, MAP_CLASSES.index(target.name)], module.grid, target)
    if head == "occupancy":
        return _of_occupant(said, module.grid, target)
    return _of_query(said, module.grid, target) if isinstance(said, QueryBoxes) else _of_peak(said, module.grid, target)


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


def _of_motion(said: MotionPaths, target: Target) -> Answer:
    boxes = said.found[0]
    moving_A = torch.tensor([DETECTION_CLASSES[label] not in STILL for label in boxes.label.tolist()], dtype=torch.bool)
    if not moving_A.any():
        raise DataError(f"target {MOTION!r}: the model finds no box of a class that moves")
    xy_A2 = boxes.center[:, :2].float().cpu()
    if target.place is None:
        rank_A = boxes.score.float().cpu()
    else:
        rank_A = -(xy_A2 - xy_A2.new_tensor(target.place)).norm(dim=1)
    chosen = int(torch.where(moving_A, rank_A, -torch.inf).argmax())
    path_T2 = said.position[-1, chosen, said.logits[-1, chosen].argmax()]
    value = path_T2[-1].norm()
    place = (float(xy_A2[chosen, 0]), float(xy_A2[chosen, 1]))
    who, seconds = _at(DETECTION_CLASSES[int(boxes.label[chosen])], place), len(path_T2) * TIME_STEP
    return Answer(value, f"where {who} goes, {float(value.detach()):.1f} m in {seconds:g} s", place)


def _of_occupant(said: Occupancy, grid: BEVGrid, target: Target) -> Answer:
    seconds = target.seconds or 0.0
    if seconds not in OCCUPANCY_TIMES:
        known = ", ".join(f"{time:g}" for time in OCCUPANCY_TIMES)
        raise DataError(f"target {target.name}: nothing is said of {seconds:g} s from now; there are {known} s")
    logits_YX = said.agents[0, OCCUPANCY_TIMES.index(seconds), OCCUPANTS.index(target.name)]
    found = _of_cells(logits_YX, grid, target)
    return dataclasses.replace(found, text=f"{found.text}, {seconds:g} s from now") if seconds else found


def _of_cells(logits_YX: Tensor, grid: BEVGrid, target: Target) -> Answer:
    logits_YX = logits_YX.float()
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
