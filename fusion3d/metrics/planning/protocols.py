"""The published protocols as data: what each averages, over which samples, and what it takes for a collision.

Each is what the released evaluation code does, its bugs included, which ``bugs`` tells. Sources: UniAD
(OpenDriveLab/UniAD, planning_metrics.py, occflow_label.py), ST-P3 (OpenDriveLab/ST-P3, metrics.py, NuscenesData.py),
VAD (hustvl/VAD, metric_stp3.py), SparseDrive (swc-17/SparseDrive, planning_eval.py), BEV-Planner (NVlabs/BEV-Planner,
metric_stp3.py, naive_planner.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fusion3d.metrics.planning.drives import LIDAR_MOUNT, Agents, EgoBox
from fusion3d.metrics.planning.raster import Raster

MOVERS = ("vehicle.", "human.")  # prefixes of nuScenes categories: all that move by themselves
CYCLES = ("vehicle.bicycle", "vehicle.motorcycle")
VEHICLES = (  # the seven vehicle classes of the detection task
    "vehicle.car", "vehicle.truck", "vehicle.bus.", "vehicle.trailer", "vehicle.construction", *CYCLES,
)  # fmt: skip
PEDESTRIANS = (
    "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.construction_worker",
    "human.pedestrian.police_officer",
)  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """One published way to score plans."""

    name: str
    average: Literal["at", "mean"]  # L2 "at 3 s": there, or the mean over all steps until there
    hits: Literal["at", "mean", "any"]  # a collision "at 3 s": there, the share of steps with one, or any until there
    samples: Literal["all", "known", "complete", "history"]  # whose scores are averaged: see ``counts``
    frame: Literal["lidar", "lidar_left", "ego"]  # forward and right or left; what the path is of
    ego: EgoBox
    heading: Literal["none", "step", "ends"]  # of the ego's box: see ``published.ego_heading``
    raster: Raster | None  # None: exact rectangles
    agents: Callable[[Agents], Agents]  # who counts, and at which step
    whose: str  # the same in words
    zero_fill: bool = False  # an unknown step counts as driven without error and without collision
    boundary: bool = False  # the road's boundary is an obstacle of its own
    bugs: tuple[str, ...] = ()

    def counts(self, known: np.ndarray, past_known: np.ndarray) -> np.ndarray:
        """[N, T] bool: which samples are averaged at which step, from what is known of [N, T] future, [N, P] past."""
        if self.samples == "all":
            return np.ones_like(known)
        if self.samples == "known":
            return np.logical_and.accumulate(known, axis=1)
        whole = np.asarray(known.all(axis=1))
        if self.samples == "history":
            whole &= past_known[:, :2].sum(axis=1) == 2
        return np.repeat(whole[:, None], known.shape[1], axis=1)

    @property
    def about(self) -> dict[str, str]:
        """What the numbers are of, in words."""
        average = {"at": "at the time", "mean": "mean over the steps until the time"}
        hits = {"at": "hit at the time", "mean": "share of the steps until the time with a hit", "any": "any hit until"}
        samples = {
            "all": "all; where the future is unknown the error and the collision are 0 and counted",
            "known": "those whose future is known until the time",
            "complete": "those with 3 s of known future",
            "history": "those with 2 keyframes before and 3 s of known future",
        }
        heading = {"none": "never turned", "step": "turned by each step of 1 m or more", "ends": "along the path"}
        cells = "exact rectangles" if self.raster is None else f"cells of {self.raster.resolution} m"
        return {
            "L2": average[self.average],
            "collision": f"{hits[self.hits]}, {cells}",
            "samples": samples[self.samples],
            "agents": self.whose,
            "ego": f"{self.ego} of the {'rear axle' if self.frame == 'ego' else 'LiDAR'}, {heading[self.heading]}",
            "masking": "a step at which the driven path hits is never counted",
            "bugs": "; ".join(self.bugs),
        }


def vehicles(agents: Agents) -> Agents:
    """Vehicles and cycles of the detection classes, at each following keyframe."""
    return agents[agents.named(VEHICLES) & (agents.step > 0)]


def movers_seen_before(agents: Agents) -> Agents:
    """Vehicles and people that were visible (more than 40 %) at one of the last three keyframes, now included."""
    moving = agents.named(MOVERS)
    before = moving & (agents.step <= 0) & (agents.step >= -2) & agents.visible
    return agents[moving & (agents.step > 0) & np.isin(_identity(agents), _identity(agents)[before])]


def movers_around_now(agents: Agents) -> Agents:
    """Vehicles and people of the detection classes annotated now within 15 m sideways and 30 m ahead or behind.

    The k-th annotation that follows is taken for that at k steps, as the released converter does.
    """
    moving = agents[agents.named((*VEHICLES, *PEDESTRIANS)) & (agents.step >= 0)]
    x, y = moving.box[:, 0] - LIDAR_MOUNT[0], moving.box[:, 1]
    now = (moving.step == 0) & moving.seen & (np.abs(x) <= 30) & (np.abs(y) <= 15)
    identity = _identity(moving)
    kept = np.isin(identity, identity[now])
    moving, identity = moving[kept], identity[kept]
    order = np.lexsort((moving.step, identity))
    first = np.flatnonzero(np.diff(identity[order], prepend=-1))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    return Agents(
        moving.sample, rank, moving.box, moving.track, moving.category, moving.visible, moving.seen, moving.names
    )[rank > 0]


def everything_seen(agents: Agents) -> Agents:
    """Every annotated box with a LiDAR point in it, cones and barriers too, at each following keyframe."""
    return agents[agents.seen & (agents.step > 0)]


def _identity(agents: Agents) -> np.ndarray:
    """[K] a number of each sample's each track."""
    if not len(agents):
        return agents.track
    return agents.sample * (int(agents.track.max()) + 1) + agents.track


LIDAR_BOX = EgoBox(4.084, 1.85, 0.5)
_CELLS = (
    "agents grow by up to a cell towards +x and +y and the ego's shift is floored: an overlap of 0.3 m behind is not "
    "seen, a car 0.3 m clear on the left is hit",
    "1 mm sideways can move the ego by a whole cell",
    "the ego's box does not turn",
)
_DILUTED = "unknown futures count as 0 error and 0 collision: on val, values are 0.95, 0.90, 0.85 of those known"

UNIAD = Protocol(
    "uniad", "at", "at", "all", "lidar", LIDAR_BOX, "none", Raster(), vehicles,
    "vehicles and cycles, no pedestrians", zero_fill=True, bugs=(_DILUTED, *_CELLS),
)  # fmt: skip
UNIAD_VALID = Protocol(
    "uniad_valid", "at", "at", "known", "lidar", LIDAR_BOX, "none", Raster(), vehicles,
    "vehicles and cycles, no pedestrians", bugs=_CELLS,
)  # fmt: skip
STP3 = Protocol(
    "stp3", "mean", "mean", "history", "lidar_left", LIDAR_BOX, "none", Raster(), movers_seen_before,
    "vehicles and people that were visible at one of the last 3 keyframes", bugs=(
        "agents are placed around the rear axle and the ego's path around the LiDAR: the ego is 0.94 m too far back",
        "(left out: each future grid is painted in its own frame and warped to now, which moves cells by up to one)",
        *_CELLS,
    ),
)  # fmt: skip
# Half of the way to the grid's edge was added for all of it.
_VAD_CELLS = Raster(rows_back=True, point=(24.875, -24.875))
VAD = Protocol(
    "vad", "mean", "mean", "complete", "lidar", LIDAR_BOX, "none", _VAD_CELLS, movers_around_now,
    "vehicles and people annotated now within 15 x 30 m", bugs=(
        "rows are flipped with 200 instead of 199: the ego is half a metre too far back",
        "who is farther than 30 m away now, or appears later, does not exist",
        "the n-th following annotation counts as that after n steps, whatever its time",
        "(left out: the released code names categories by row, which is right for one order of category.json)",
        "point, its obj_col: whether one cell is hit, 25 m ahead of the LiDAR and 25 m to its left",
        *_CELLS,
    ),
)  # fmt: skip
SPARSEDRIVE = Protocol(
    "sparsedrive", "mean", "mean", "complete", "lidar", LIDAR_BOX, "ends", None, everything_seen,
    "every annotated box with a LiDAR point, cones and barriers too", bugs=(
        "a step whose neighbours are at the same place turns the car sideways",
    ),
)  # fmt: skip
BEV_PLANNER = Protocol(
    "bev_planner", "mean", "any", "complete", "ego", EgoBox(4.084, 1.85, 0.5 + 0.985793), "step",
    Raster(0.1, rounded=False, columns_forward=True, turned=True), vehicles,
    "vehicles and cycles, no pedestrians", boundary=True, bugs=(
        "the box points straight ahead at any step shorter than 1 m",
        "the boundary is 20 points a line, however long, and not looked for farther than 25 m to the sides",
    ),
)  # fmt: skip
PUBLISHED = {of.name: of for of in (UNIAD, UNIAD_VALID, STP3, VAD, SPARSEDRIVE, BEV_PLANNER)}
