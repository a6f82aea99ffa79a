"""A scene made ready for the sensors: every solid in columns, every track in one array, the ground as a picture."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, fields

import numpy as np

from fusion3d.synthetic.kernels import kernel
from fusion3d.synthetic.rays import MISS, hit_box, hit_cylinder, seed_of
from fusion3d.synthetic.scene import CYLINDER, SIM_STEP, RoadMap, Scene, Solids

GRASS, ASPHALT, PAINT, WALKWAY = 0, 1, 2, 3  # what the ground is made of
SHADOW = 0x80  # bit of a ground cell that the sun does not reach
GROUND_CELL = 0.1  # [m]
GROUND_MARGIN = 90.0  # [m] around the path of the ego; everything beyond is grass


@dataclass(frozen=True)
class Stage:
    """Columns of a scene. S solids: the static ones first, then the parts of actor 0, 1, ..."""

    solids: Solids  # [S]; actors' parts in their own frame, static solids in global
    owner: np.ndarray  # [S] int32, actor index or -1
    first: np.ndarray  # [A + 1] int64, parts of actor a are first[a]:first[a + 1]
    states: np.ndarray  # [A, T, 4] float64: x, y, z, yaw every SIM_STEP
    size: np.ndarray  # [A, 3] float64
    rcs: np.ndarray  # [A] float64 dBsm
    ground: np.ndarray  # [rows, columns] uint8, GRASS ... WALKWAY, with the SHADOW bit
    corner: np.ndarray  # [2] float64, global x, y of the ground picture's first corner
    sun: np.ndarray  # [3] float64, unit vector to the sun (or moon)

    def actors_at(self, time: float) -> np.ndarray:
        """[A, 4] float64: x, y, z, yaw in global, linear between the stored states, ends held."""
        steps = self.states.shape[1]
        position = min(max(time / SIM_STEP, 0.0), steps - 1.0)
        low = min(int(position), max(steps - 2, 0))
        part = position - low
        return self.states[:, low] * (1 - part) + self.states[:, min(low + 1, steps - 1)] * part

    def velocities_at(self, time: float) -> np.ndarray:
        """[A, 2] float64 over ground [m/s], as ``Track.velocity``."""
        return (self.actors_at(time + SIM_STEP / 2) - self.actors_at(time - SIM_STEP / 2))[:, :2] / SIM_STEP

    def pose(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """[S, 3] centres and [S] yaw of all solids in global at a time."""
        center, yaw = self.solids.center.copy(), self.solids.yaw.copy()
        moving = slice(self.first[0], None)
        state = self.actors_at(time)[self.owner[moving]]
        cos, sin = np.cos(state[:, 3]), np.sin(state[:, 3])
        local = self.solids.center[moving]
        center[moving, 0] = state[:, 0] + cos * local[:, 0] - sin * local[:, 1]
        center[moving, 1] = state[:, 1] + sin * local[:, 0] + cos * local[:, 1]
        center[moving, 2] = state[:, 2] + local[:, 2]
        yaw[moving] += state[:, 3]
        return center, yaw


def ego_at(scene: Scene, time: np.ndarray | float) -> np.ndarray:
    """[..., 4] float64 x, y, z, yaw of the ego in global."""
    position, yaw = scene.ego.at(time)
    return np.concatenate([position, np.asarray(yaw)[..., None]], axis=-1)


def global_from_ego(pose: np.ndarray) -> np.ndarray:
    """[4, 4] of one [4] pose x, y, z, yaw."""
    matrix = np.eye(4)
    cos, sin = np.cos(pose[3]), np.sin(pose[3])
    matrix[:2, :2] = [[cos, -sin], [sin, cos]]
    matrix[:3, 3] = pose[:3]
    return matrix


_stages: dict[int, tuple[weakref.ref, Stage]] = {}


def stage_of(scene: Scene) -> Stage:
    """The stage of a scene, built at its first use (some 0.1 s) and kept as long as the scene lives."""
    key = id(scene)
    if key not in _stages or _stages[key][0]() is not scene:
        _stages[key] = (weakref.ref(scene, lambda _: _stages.pop(key, None)), _build(scene))
    return _stages[key][1]


def _build(scene: Scene) -> Stage:
    groups = [scene.static, *(actor.parts for actor in scene.actors)]
    solids = Solids(**{f.name: np.concatenate([getattr(g, f.name) for g in groups]) for f in fields(Solids)})
    counts = [len(g.kind) for g in groups]
    steps = max((len(actor.track.yaw) for actor in scene.actors), default=1)
    states = np.zeros((len(scene.actors), steps, 4))
    for row, actor in zip(states, scene.actors, strict=True):
        known = len(actor.track.yaw)
        row[:known, :3], row[:known, 3] = actor.track.position, actor.track.yaw
        row[known:] = row[known - 1]
    azimuth, elevation = _sun_angles(scene.seed)
    sun = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    ground, corner = _paint_ground(scene.roads, scene.ego.position)
    if scene.weather.night < 0.5:
        static = slice(0, counts[0])
        cast_shadows(
            ground, corner, GROUND_CELL, solids.kind[static], solids.center[static], solids.size[static],
            solids.yaw[static], sun,
        )  # fmt: skip
    return Stage(
        solids=solids,
        owner=np.repeat(np.arange(-1, len(scene.actors), dtype=np.int32), counts),
        first=np.cumsum(counts).astype(np.int64),
        states=states,
        size=np.array([actor.size for actor in scene.actors], dtype=np.float64).reshape(-1, 3),
        rcs=np.array([actor.rcs for actor in scene.actors], dtype=np.float64),
        ground=ground,
        corner=corner,
        sun=sun,
    )


def _sun_angles(seed: int) -> tuple[float, float]:
    bits = int(seed_of(seed, 71))
    return (bits & 0xFFFF) / 65536 * 2 * np.pi, np.radians(28 + (bits >> 16 & 0xFFFF) / 65536 * 35)


def _paint_ground(roads: RoadMap, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The map as a picture around a [T, 3] path: [rows, columns] uint8 and the [2] corner it starts from."""
    from PIL import Image, ImageDraw

    corner = path[:, :2].min(0) - GROUND_MARGIN
    columns, rows = np.ceil((path[:, :2].max(0) + GROUND_MARGIN - corner) / GROUND_CELL).astype(int)
    image = Image.new("L", (int(columns), int(rows)), GRASS)
    draw = ImageDraw.Draw(image)

    def pixels(points: np.ndarray) -> list[tuple[float, float]]:
        return [tuple(p) for p in ((np.asarray(points) - corner) / GROUND_CELL - 0.5).tolist()]

    for polygons, kind in ((roads.walkways, WALKWAY), (roads.drivable, ASPHALT)):
        for polygon in polygons:
            draw.polygon(pixels(polygon), fill=kind)
    for polygon in roads.crossings:
        for bar in _zebra(polygon):
            draw.polygon(pixels(bar), fill=PAINT)
    for polygon in roads.stop_lines:
        draw.polygon(pixels(polygon), fill=PAINT)
    for line in (*roads.dividers, *roads.road_dividers):
        for dash in _dashes(line):
            draw.line(pixels(dash), fill=PAINT, width=2)
    return np.array(image), corner


def _zebra(polygon: np.ndarray, bar: float = 0.5) -> list[np.ndarray]:
    """The painted bars of a crossing: [4, 2] each, side by side along the polygon's long axis."""
    center = polygon.mean(0)
    axis = np.linalg.svd(polygon - center)[2]
    local = (polygon - center) @ axis.T
    (x0, y0), (x1, y1) = local.min(0), local.max(0)
    starts = np.arange(x0 + bar / 2, x1 - bar, 2 * bar)
    return [np.array([[x, y0], [x + bar, y0], [x + bar, y1], [x, y1]]) @ axis + center for x in starts]


def _dashes(line: np.ndarray, painted: float = 3.0, period: float = 7.0) -> list[np.ndarray]:
    """The painted pieces of a lane line; one that is no longer than a dash is painted whole."""
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    if along[-1] <= painted:
        return [line]
    pieces = []
    for start in np.arange(0.0, along[-1], period):
        at = np.linspace(start, min(start + painted, along[-1]), 4)
        pieces.append(np.stack([np.interp(at, along, line[:, i]) for i in range(2)], axis=-1))
    return pieces


@kernel()
def ground_at(ground, corner, x, y):
    """The ground cell at global x, y as an int64: its kind plus the SHADOW bit; grass outside of the picture."""
    column, row = int((x - corner[0]) / GROUND_CELL), int((y - corner[1]) / GROUND_CELL)
    if 0 <= row < ground.shape[0] and 0 <= column < ground.shape[1]:
        return np.int64(ground[row, column])
    return np.int64(GRASS)


@kernel()
def cast_shadows(ground, corner, cell, kind, center, size, yaw, sun):
    """Set the SHADOW bit of the ground cells from which a solid hides the sun.

    Args:
        ground: [rows, columns] uint8, changed in place.
        corner, cell: where its first cell begins [m], and the side of a cell [m].
        kind, center, size, yaw: columns of solids in global.
        sun: [3] unit vector to the sun, above the horizon.
    """
    slope_x, slope_y = sun[0] / sun[2], sun[1] / sun[2]
    rows, columns = ground.shape
    for s in range(len(kind)):
        hx, hy, hz = size[s, 0] / 2, size[s, 1] / 2, size[s, 2] / 2
        top, bottom = center[s, 2] + hz, max(center[s, 2] - hz, 0.0)
        if top < 0.3:
            continue
        reach = np.sqrt(hx * hx + hy * hy)
        x0 = center[s, 0] - reach - max(slope_x * top, slope_x * bottom)
        x1 = center[s, 0] + reach - min(slope_x * top, slope_x * bottom)
        y0 = center[s, 1] - reach - max(slope_y * top, slope_y * bottom)
        y1 = center[s, 1] + reach - min(slope_y * top, slope_y * bottom)
        cos, sin = np.cos(yaw[s]), np.sin(yaw[s])
        dx, dy = cos * sun[0] + sin * sun[1], cos * sun[1] - sin * sun[0]
        for row in range(max(0, int((y0 - corner[1]) / cell)), min(rows, int((y1 - corner[1]) / cell) + 1)):
            for column in range(max(0, int((x0 - corner[0]) / cell)), min(columns, int((x1 - corner[0]) / cell) + 1)):
                if ground[row, column] & SHADOW:
                    continue
                x = corner[0] + (column + 0.5) * cell - center[s, 0]
                y = corner[1] + (row + 0.5) * cell - center[s, 1]
                lx, ly = cos * x + sin * y, cos * y - sin * x
                if kind[s] == CYLINDER:
                    hidden = hit_cylinder(lx, ly, -center[s, 2], dx, dy, sun[2], hx, hz)[0] < MISS
                else:
                    hidden = hit_box(lx, ly, -center[s, 2], dx, dy, sun[2], hx, hy, hz)[0] < MISS
                if hidden or (bottom < 0.3 and abs(lx) <= hx and abs(ly) <= hy):
                    ground[row, column] |= np.uint8(SHADOW)
