"""What a synthetic scene is made of: the contract between the world that is simulated and the sensors that see it.

Frames: ``global`` is a flat map, x east, y north, z up, ground at z = 0 [m]. An actor's own frame has its origin at the
gravity centre of its box, x forward. The ego frame has its origin on the ground below the rear axle, x forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BOX, CYLINDER = 0, 1  # kinds of solid; a cylinder stands upright, its size is (diameter, diameter, height)

MATERIALS = (
    "metal", "glass", "rubber", "plastic", "skin_cloth", "concrete", "brick", "vegetation", "wood",
    "asphalt", "paint", "grass", "reflective",
)  # fmt: skip
SIM_STEP = 0.05  # [s] between the stored states of actors and ego


@dataclass(frozen=True)
class Solids:
    """Primitive bodies, as columns."""

    kind: np.ndarray  # [S] uint8, BOX or CYLINDER
    center: np.ndarray  # [S, 3] float64 [m]
    size: np.ndarray  # [S, 3] float64 length, width, height [m]
    yaw: np.ndarray  # [S] float64 [rad]
    material: np.ndarray  # [S] uint8, index in MATERIALS
    color: np.ndarray  # [S, 3] uint8 RGB, diffuse
    texture: np.ndarray  # [S] uint8, 0 plain, 1 windows (dark glass bands on a facade), 2 stripes, 3 foliage noise


@dataclass(frozen=True)
class Track:
    """Motion sampled every SIM_STEP from t = 0, in global."""

    position: np.ndarray  # [T, 3] float64 [m]: the actor's box centre, or the ego's rear axle on the ground
    yaw: np.ndarray  # [T] float64 [rad], unwrapped

    def at(self, time: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Linear interpolation: [...] times [s] to [..., 3] positions and [...] yaw; ends are held."""
        grid = np.arange(len(self.yaw)) * SIM_STEP
        time = np.asarray(time, dtype=np.float64)
        position = np.stack([np.interp(time, grid, self.position[:, i]) for i in range(3)], axis=-1)
        return position, np.interp(time, grid, self.yaw)

    def velocity(self, time: np.ndarray | float) -> np.ndarray:
        """[..., 2] velocity over ground [m/s]: central difference over one SIM_STEP, the outermost one at the ends."""
        end = (len(self.yaw) - 1) * SIM_STEP
        time = np.clip(time, SIM_STEP / 2, max(end - SIM_STEP / 2, SIM_STEP / 2))
        before, _ = self.at(np.asarray(time) - SIM_STEP / 2)
        after, _ = self.at(np.asarray(time) + SIM_STEP / 2)
        return (after - before)[..., :2] / SIM_STEP


@dataclass(frozen=True)
class Actor:
    """Something annotated: it has a box, a category and a motion."""

    category: str  # nuScenes category, e.g. "vehicle.car"
    size: np.ndarray  # [3] length, width, height of the annotated box [m]
    parts: Solids  # bodies in the actor's own frame, all inside the box
    track: Track
    attribute: np.ndarray  # [T] int8, index in types.ATTRIBUTES, -1 none; sampled like the track
    rcs: float  # mean radar cross-section [dBsm]


@dataclass(frozen=True)
class RoadMap:
    """Polygons in global, each [V, 2] float64 [m], counter-clockwise and closed implicitly."""

    drivable: tuple[np.ndarray, ...]
    lanes: tuple[np.ndarray, ...]  # one polygon a lane, those through junctions last
    lane_centers: tuple[np.ndarray, ...]  # a polyline of each lane, in driving direction
    walkways: tuple[np.ndarray, ...]
    crossings: tuple[np.ndarray, ...]
    dividers: tuple[np.ndarray, ...]  # painted lines beside lanes of one direction, as polylines
    stop_lines: tuple[np.ndarray, ...] = ()  # two points each
    road_dividers: tuple[np.ndarray, ...] = ()  # painted lines between the directions
    carparks: tuple[np.ndarray, ...] = ()  # parking strips


@dataclass(frozen=True)
class Weather:
    """Conditions of a whole scene, each in [0, 1]."""

    night: float = 0.0
    rain: float = 0.0
    fog: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A simulated piece of driving: what there is, and where everything is at every time."""

    name: str  # e.g. "scene-0003"
    description: str  # e.g. "Night, rain, intersection, turn left, construction"; says night / rain / fog where it is
    seed: int
    duration: float  # [s]
    ego: Track
    actors: tuple[Actor, ...]
    static: Solids  # buildings, trunks, crowns, poles, walls, kerbs: never annotated, in global
    roads: RoadMap
    weather: Weather = field(default_factory=Weather)
    route: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))  # [N, 2] way the ego is to take, in global
