"""The types that travel between the rooms, and the legend of letters, frames and units for the whole package.

Letters: B samples in a batch, N of them that have a past, M camera images in a batch (packed: absent cameras take no
place), P LiDAR points, R radar returns, K boxes, A things that move or not, T future steps, C channels, D depth bins,
H W image or feature rows and columns, Y X cells.

Frames: everything is in ``ego``, the vehicle frame at the LIDAR_TOP keyframe time: x forward, y left, z up.
``cam`` is x right, y down, z forward; ``image`` is pixels (u right, v down, the centre of the first pixel at 0).
Transforms are named ``dst_from_src`` and are 4x4, acting on column vectors, so that a product cancels as it is read.

Units: metres, radians, seconds, m/s; images are floats in [0, 1]; LiDAR intensity is in [0, 1]; RCS is in dBsm.

Absent is absent: a sensor that is not there is ``None`` (or has no row); a sensor that saw nothing has zero rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fusion3d.errors import ConfigError
from fusion3d.rows import concat, select, to_device

DETECTION_CLASSES = (
    "car", "truck", "bus", "trailer", "construction_vehicle",
    "pedestrian", "motorcycle", "bicycle", "traffic_cone", "barrier",
)  # fmt: skip
TRACKING_CLASSES = ("bicycle", "bus", "car", "motorcycle", "pedestrian", "trailer", "truck")  # those that move
ATTRIBUTES = (
    "vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider",
    "pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving",
)  # fmt: skip
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
RADARS = ("RADAR_FRONT", "RADAR_FRONT_RIGHT", "RADAR_BACK_RIGHT", "RADAR_BACK_LEFT", "RADAR_FRONT_LEFT")
MAP_CLASSES = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider")
SENSORS = ("camera", "lidar", "radar")
COMMANDS = ("left", "right", "straight")  # a planning command; -1 is unknown
LIDAR_FIELDS = ("x", "y", "z", "intensity", "time")  # time: t_ref - t_point's sweep, >= 0 for the past
RADAR_FIELDS = (
    "x", "y", "z", "rcs", "vx", "vy", "time", "invalid_state", "ambig_state", "dyn_prop", "sensor", "doppler", "ray_x",
    "ray_y",
)  # vx, vy: compensated, in ego; doppler: as measured, away along the radar's ray (unit vector in ego)  # fmt: skip
KEY_SWEEP = 0.02  # [s] points younger than this belong to the key sweep (LiDAR sweeps are 0.05 s apart)
# Length, width, height [m] of the Renault Zoe, the car of nuScenes (manufacturer's data, without mirrors).
EGO_SIZE = (4.084, 1.730, 1.562)
EGO_CENTER = 1.39  # [m] its middle is ahead of the rear axle, the origin of ego
TIME_STEP = 0.5  # seconds between keyframes, and between planned positions
# What a planner thinks of a path, as probabilities, and what a predicted ``Occupancy`` says of the first two.
PLAN_SCORES = ("collision", "off_road", "comfort", "progress", "occupied", "undrivable")
OCCUPANTS = ("vehicle", "vru", "static")  # vru: people and cycles; static: all that does not move by itself
OCCUPANCY_TIMES = (0.0, 1.0, 2.0, 3.0)  # [s] from now


@dataclass(frozen=True)
class BEVGrid:
    """The shared grid: cell (iy, ix) covers [x0 + ix r, x0 + (ix+1) r) x [y0 + iy r, y0 + (iy+1) r) in ego."""

    x: tuple[float, float] = (-54.0, 54.0)  # [m] first and last edge along ego x
    y: tuple[float, float] = (-54.0, 54.0)  # [m]
    z: tuple[float, float] = (-5.0, 3.0)  # [m] what is above or below is not seen
    resolution: float = 0.6  # [m] side of a cell

    def __post_init__(self) -> None:
        """ConfigError where edges are not in order, or x and y are not whole numbers of cells long."""
        for name, (first, last) in (("x", self.x), ("y", self.y), ("z", self.z)):
            if not -math.inf < first < last < math.inf:
                raise ConfigError(f"grid.{name}: expected first edge < last edge, found {(first, last)}")
        if not 0 < self.resolution < math.inf:
            raise ConfigError(f"grid.resolution: expected more than 0, found {self.resolution}")
        for name, (first, last) in (("x", self.x), ("y", self.y)):
            cells = (last - first) / self.resolution
            if round(cells) < 1:
                raise ConfigError(f"grid.resolution: {self.resolution} m is larger than the grid; take less")
            if abs(cells - round(cells)) > 1e-4:
                raise ConfigError(
                    f"grid.{name}: expected a whole number of cells of {self.resolution} m, found {cells:.3f} of them "
                    f"from {first} to {last}; move an edge or change grid.resolution"
                )

    @property
    def shape(self) -> tuple[int, int]:
        """(Y, X): number of cells along ego y and ego x."""
        return round((self.y[1] - self.y[0]) / self.resolution), round((self.x[1] - self.x[0]) / self.resolution)

    def cell_of(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Flat cell index iy * X + ix of points, by floor, and which points are inside the grid.

        Args:
            xyz: [..., 3] float, ego frame [m]; NaN is outside.

        Returns:
            [...] int64 index (0 where outside) and [...] bool.
        """
        rows, cols = self.shape
        # In place: a frustum has millions of points, and new memory costs more than the arithmetic.
        ix = (xyz[..., 0] - self.x[0]).div_(self.resolution).floor_()
        iy = (xyz[..., 1] - self.y[0]).div_(self.resolution).floor_()
        z = xyz[..., 2]
        inside = ix >= 0
        for within in (ix < cols, iy >= 0, iy < rows, z >= self.z[0], z < self.z[1]):
            inside &= within
        return iy.mul_(cols).add_(ix).masked_fill_(~inside, 0).long(), inside

    def place_of(self, xy: Tensor) -> Tensor:
        """x, y counted in cells from the grid's corner, [..., 2]: the middle of a cell is at one half."""
        return (xy - xy.new_tensor([self.x[0], self.y[0]])) / self.resolution

    def xy_of(self, place: Tensor) -> Tensor:
        """The inverse of ``place_of``."""
        return place.new_tensor([self.x[0], self.y[0]]) + place * self.resolution

    def centers(self, device: torch.device | str = "cpu") -> Tensor:
        """[Y, X, 2] float32: ego x, y of every cell centre [m]."""
        rows, cols = self.shape
        x = self.x[0] + (torch.arange(cols, device=device) + 0.5) * self.resolution
        y = self.y[0] + (torch.arange(rows, device=device) + 0.5) * self.resolution
        return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)


@dataclass(frozen=True)
class Boxes:
    """Oriented boxes of one sample, in ego unless said otherwise. Ground truth and predictions alike."""

    center: Tensor  # [K, 3] float32 gravity centre [m]
    size: Tensor  # [K, 3] float32 length, width, height [m]
    yaw: Tensor  # [K] float32 heading about z, 0 along x, counter-clockwise [rad]
    velocity: Tensor  # [K, 2] float32 over ground [m/s], NaN where unknown
    label: Tensor  # [K] int64, index in DETECTION_CLASSES
    score: Tensor  # [K] float32 in [0, 1]; 1 for ground truth
    attribute: Tensor  # [K] int64, index in ATTRIBUTES, -1 unknown
    visibility: Tensor  # [K] int64, nuScenes level 1..4, 0 unknown
    num_points: Tensor  # [K, 2] int64, LiDAR and radar points inside; -1 for predictions
    instance: tuple[str, ...] = ()  # K instance tokens, or empty

    def __len__(self) -> int:
        return self.center.shape[0]

    def __getitem__(self, keep: slice | Tensor) -> Boxes:
        """The boxes selected by a slice, a bool mask or an index tensor."""
        return select(self, keep)

    @staticmethod
    def of(
        center: Tensor,
        size: Tensor,
        yaw: Tensor,
        velocity: Tensor | None = None,
        label: Tensor | None = None,
        score: Tensor | None = None,
        attribute: Tensor | None = None,
        visibility: Tensor | None = None,
        num_points: Tensor | None = None,
        instance: tuple[str, ...] = (),
    ) -> Boxes:
        """Boxes with the unsaid fields at "unknown": velocity NaN, label 0, score 1, attribute -1, points -1."""
        count, device = center.shape[0], center.device

        def full(value: int) -> Tensor:
            return torch.full((count,), value, dtype=torch.int64, device=device)

        return Boxes(
            center=center.float(),
            size=size.float(),
            yaw=yaw.float(),
            velocity=torch.full((count, 2), torch.nan, device=device) if velocity is None else velocity.float(),
            label=full(0) if label is None else label.long(),
            score=torch.ones(count, device=device) if score is None else score.float(),
            attribute=full(-1) if attribute is None else attribute.long(),
            visibility=full(0) if visibility is None else visibility.long(),
            num_points=full(-1)[:, None].repeat(1, 2) if num_points is None else num_points.long(),
            instance=instance,
        )

    @staticmethod
    def cat(parts: Sequence[Boxes]) -> Boxes:
        """The boxes of all parts, one after another; instance tokens where every part that has boxes has them."""
        named = all(len(part.instance) == len(part) for part in parts)
        return concat(parts if named else [dataclasses.replace(part, instance=()) for part in parts])

    @staticmethod
    def empty() -> Boxes:
        """No box at all."""
        return Boxes.of(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))


@dataclass(frozen=True)
class Trajectory:
    """Positions of the ego at TIME_STEP, 2 TIME_STEP, ... in the ego frame of now (past: -TIME_STEP, ...).

    Under a BEV augmentation they are points of the augmented frame like all others; the ego of now, from which they
    lead, is then at the translation of ``aug_from_ego``.
    """

    position: Tensor  # [..., T, 2] float32 [m]
    yaw: Tensor  # [..., T] float32 [rad]
    mask: Tensor  # [..., T] bool, False where it is not known

    def __getitem__(self, keep: Any) -> Trajectory:
        """What is selected along the first axes."""
        return select(self, keep)


@dataclass(frozen=True)
class Motion:
    """What is around and how it goes on, in the frame of now (or the augmented one) like the ``Trajectory`` of the ego.

    A things: first the ``boxes`` of the sample, in their order, then whatever else is annotated now or later on.
    """

    now: Trajectory  # [A] gravity centres from above; mask False where a thing is not annotated
    path: Trajectory  # [A, T] the same at every step
    size: Tensor  # [A, 3] float32 length, width, height [m]
    label: Tensor  # [A] int64, index in DETECTION_CLASSES, -1 none of them

    def __len__(self) -> int:
        return self.label.shape[0]

    def __getitem__(self, keep: slice | Tensor) -> Motion:
        """The things selected by a slice, a bool mask or an index tensor."""
        return select(self, keep)

    @staticmethod
    def cat(parts: Sequence[Motion]) -> Motion:
        """The things of all parts, one after another; they have as many steps."""
        return concat(parts)


@dataclass(frozen=True)
class Forecast:
    """How A boxes may go on, each in K ways, the likeliest first; in the frame of the boxes."""

    position: Tensor  # [A, K, T, 2] float32 gravity centres from above at TIME_STEP, 2 TIME_STEP, ... [m]
    yaw: Tensor  # [A, K, T] float32 [rad]
    score: Tensor  # [A, K] float32 probabilities, falling; their sum is 1

    def __len__(self) -> int:
        return self.score.shape[0]

    def __getitem__(self, keep: slice | Tensor) -> Forecast:
        """The boxes selected by a slice, a bool mask or an index tensor."""
        return select(self, keep)

    @staticmethod
    def cat(parts: Sequence[Forecast]) -> Forecast:
        """The forecasts of all parts, one after another; they have as many ways and steps."""
        return concat(parts)


@dataclass(frozen=True)
class PlanModes:
    """The K paths that a planner chooses among."""

    path: Trajectory  # [..., K, T]
    imitation: Tensor  # [..., K] probability that the human drives so, 1 in all
    score: Tensor  # [..., K, len(PLAN_SCORES)] in [0, 1]; NaN for what is not predicted
    cost: Tensor  # [..., K] what each is expected to cost [m]
    rejected: Tensor  # [..., K] share of the views or models for which it hits a box that they found: of one, 0 or 1
    chosen: Tensor  # [...] int64

    @property
    def plan(self) -> Trajectory:
        """[B, T] the chosen paths of a batch."""
        return self.path[torch.arange(len(self.chosen), device=self.chosen.device), self.chosen]


@dataclass(frozen=True)
class Occupancy:
    """Who is where, now and later, and where one may drive: probabilities (of a head: logits) in the model's grid."""

    agents: Tensor  # [..., S, G, Y, X] at OCCUPANCY_TIMES, by OCCUPANTS
    drivable: Tensor  # [..., Y, X]


@dataclass(frozen=True)
class Cameras:
    """Camera images, packed over samples: M rows, whoever they belong to. Absent cameras have no row."""

    images: Tensor  # [M, 3, H, W] float32 in [0, 1], RGB
    image_from_cam: Tensor  # [M, 4, 4] float32, intrinsics after resize, crop, flip and rotation [px]
    ego_from_cam: Tensor  # [M, 4, 4] float32, through the ego motion between the triggers (and the BEV augmentation)
    batch_index: Tensor  # [M] int64, the sample each image belongs to
    channels: tuple[str, ...]  # M names from CAMERAS


@dataclass(frozen=True)
class PointCloud:
    """Points of one kind of sensor, packed over samples, in ego."""

    points: Tensor  # [P, len(LIDAR_FIELDS)] or [R, len(RADAR_FIELDS)] float32
    batch_index: Tensor  # [P] int64, ascending
    present: Tensor  # [B] bool: does the sample have the sensor? (True with zero points: it saw nothing)


@dataclass(frozen=True)
class EgoStatus:
    """What the vehicle's own sensors measure now, in ego."""

    velocity: Tensor  # [..., 2] float32 [m/s], NaN unknown
    acceleration: Tensor  # [..., 2] float32 [m/s^2], NaN unknown
    yaw_rate: Tensor  # [...] float32 [rad/s], NaN unknown


@dataclass(frozen=True)
class Sample:
    """One keyframe. Sensors are ``None`` when absent; targets are ``None`` where the data set has no annotations."""

    token: str
    scene: str  # scene name
    timestamp: int  # [us] reference time
    global_from_ego: Tensor  # [4, 4] float64, without augmentation
    aug_from_ego: Tensor  # [4, 4] float32 BEV augmentation, already applied to everything here; identity otherwise
    cameras: Cameras | None = None  # batch_index is all 0
    lidar: Tensor | None = None  # [P, 5] float32, LIDAR_FIELDS
    radar: Tensor | None = None  # [R, 14] float32, RADAR_FIELDS
    boxes: Boxes | None = None  # ground truth of the ten detection classes
    future: Trajectory | None = None  # [T]
    motion: Motion | None = None  # of what is around
    past: Trajectory | None = None  # [T], from -TIME_STEP backwards
    status: EgoStatus | None = None
    command: int = -1  # index in COMMANDS
    map_mask: Tensor | None = None  # [6, Y, X] bool, MAP_CLASSES in the grid; False where a class is not known
    map_known: Tensor | None = None  # [6] bool: what a map says of its place; None as map_mask is
    history: tuple[Sample, ...] = ()  # the keyframes before, newest first, each in its own ego: sensors without targets


@dataclass(frozen=True)
class History:
    """The keyframes a fixed number of steps before those of a batch, for the N samples that have one."""

    batch: Batch  # N samples: sensors without targets
    row: tuple[int, ...]  # N, ascending: which samples they precede


@dataclass(frozen=True)
class Batch:
    """B samples, packed. What none of them has is ``None``."""

    tokens: tuple[str, ...]
    scenes: tuple[str, ...]  # B names
    timestamp: Tensor  # [B] int64 reference time [us]
    global_from_ego: Tensor  # [B, 4, 4] float64
    aug_from_ego: Tensor  # [B, 4, 4] float32
    cameras: Cameras | None
    lidar: PointCloud | None
    radar: PointCloud | None
    boxes: tuple[Boxes, ...] | None  # B, or None when no sample is annotated
    future: Trajectory | None  # [B, T]; a sample without one has mask False
    past: Trajectory | None  # [B, T]
    status: EgoStatus | None  # [B]
    command: Tensor  # [B] int64
    map_mask: Tensor | None  # [B, 6, Y, X] bool
    annotated: Tensor  # [B] bool: has ground-truth boxes
    map_known: Tensor | None = None  # [B, 6] bool; all False for a sample without a map
    motion: tuple[Motion, ...] | None = None  # B; of nothing where a sample has none
    history: tuple[History, ...] = ()  # newest first

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def present(self) -> dict[str, Tensor]:
        """For each of SENSORS, [B] bool: does the sample have it?"""
        size, device = len(self), self.command.device
        none = torch.zeros(size, dtype=torch.bool, device=device)
        camera = none.clone()
        if self.cameras is not None:
            camera[self.cameras.batch_index] = True
        return {
            "camera": camera,
            "lidar": none if self.lidar is None else self.lidar.present,
            "radar": none if self.radar is None else self.radar.present,
        }

    def sensor(self, kind: str) -> Cameras | PointCloud | None:
        """The data of one of SENSORS; None where no sample has it."""
        return {"camera": self.cameras, "lidar": self.lidar, "radar": self.radar}[kind]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return to_device(self, device)


@dataclass(frozen=True)
class Predictions:
    """What the model says about a batch, decoded: boxes in ego and how they go on, the planned path and the maps."""

    tokens: tuple[str, ...]
    boxes: tuple[Boxes, ...] | None = None  # B
    plan: Trajectory | None = None  # [B, T]
    map: Tensor | None = None  # [B, 6, Y, X] float32 probabilities of MAP_CLASSES, in the map head's grid
    motion: tuple[Forecast, ...] | None = None  # B, of the boxes
    modes: PlanModes | None = None  # [B, K, T], of a planner that chooses
    occupancy: Occupancy | None = None  # [B, ...]
