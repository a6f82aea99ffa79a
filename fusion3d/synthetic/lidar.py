"""LIDAR_TOP, simulated: 32 rings turning clockwise in 50 ms, with the flaws of a real one.

What is modelled: each column of 32 rays is fired at its own time within the 50 ms before the scan's time, from where
the ego is and at where the actors are at that moment, so that moving actors are smeared and come early, as they do in
reality; the points are then expressed in the sensor frame at the scan's time (ego motion is compensated, that of actors
is not, as in nuScenes files). Range noise, intensity by material, incidence and range; drop-out by weak echoes (glass,
dark or grazing surfaces), rain and fog, which also add a few echoes near the sensor; echoes of the own roof; no echo
from the sky.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import prange

from fusion3d.geometry import invert
from fusion3d.synthetic.kernels import kernel
from fusion3d.synthetic.rays import (
    MISS,
    ROUND,
    X_FACE,
    Z_FACE,
    bell,
    fill_lists,
    hit_box,
    hit_cylinder,
    random_bits,
    seed_of,
    threaded,
    unit,
)
from fusion3d.synthetic.rig import LIDAR_TURN, NUM_COLUMNS, NUM_RINGS, RIG, RING_ELEVATION
from fusion3d.synthetic.scene import BOX, MATERIALS, Scene
from fusion3d.synthetic.stage import GRASS, SHADOW, ego_at, global_from_ego, ground_at, stage_of

MAX_RANGE = 100.0  # [m]
RANGE_NOISE = 0.015  # [m] standard deviation
NOTHING, WORLD = -2, -1  # owners of a ray without echo, and of what is no actor
_ROOF = np.array([[0.28, -0.5, 1.0], [1.6, 0.5, 1.56]])  # own roof in ego: lowest and highest corner [m]
_COLUMN_MARGIN = 4  # the sensor's tilt of 1.4 degree moves steep rays by up to 2.5 columns

# How much light comes back, 1 being a white wall.
_REFLECTIVITY = {
    "metal": 0.32, "glass": 0.006, "rubber": 0.05, "plastic": 0.35, "skin_cloth": 0.28, "concrete": 0.3, "brick": 0.25,
    "vegetation": 0.3, "wood": 0.28, "asphalt": 0.1, "paint": 0.55, "grass": 0.25, "reflective": 2.6,
}  # fmt: skip
_REFLECT = np.array([_REFLECTIVITY[name] for name in MATERIALS])
_VEGETATION, _METAL = MATERIALS.index("vegetation"), MATERIALS.index("metal")
_GROUND_REFLECT = np.array([_REFLECTIVITY[name] for name in ("grass", "asphalt", "paint", "concrete")])


@dataclass(frozen=True)
class LidarScan:
    """One turn of the LiDAR."""

    points: np.ndarray  # [P, 5] float32: x, y, z [m] in the sensor frame at the scan's time, intensity 0..255, ring
    owner: np.ndarray  # [P] int32 index in scene.actors, -1 none


class _Turn(NamedTuple):
    """All that the kernels read. S solids, N columns; every per-column list of solids is ordered by nearness."""

    seed: np.uint64
    direction: np.ndarray  # [N, 32, 3] in ego
    roof: np.ndarray  # [N, 32] distance to the own roof [m]
    offset: np.ndarray  # [3] sensor in ego [m]
    ego: np.ndarray  # [N, 4] x, y, z, yaw when each column fires
    fraction: np.ndarray  # [N] of the turn that is done then
    start: np.ndarray  # [N + 1] of the columns' lists
    items: np.ndarray  # [...] the lists
    near: np.ndarray  # [S] lower bound of the distance [m]
    slope: np.ndarray  # [S, 2] lowest and highest dz / dxy of rays that can meet it
    kind: np.ndarray  # [S]
    half: np.ndarray  # [S, 3] half size [m]
    center: np.ndarray  # [S, 3] at the begin of the turn [m]
    motion: np.ndarray  # [S, 3] during the turn [m]
    yaw: np.ndarray  # [S] at the begin [rad]
    turning: np.ndarray  # [S] during the turn [rad]
    surface: np.ndarray  # [S] reflectivity
    leafy: np.ndarray  # [S] bool
    owners: np.ndarray  # [S] int32
    ground: np.ndarray
    corner: np.ndarray
    rain: float
    fog: float
    sensor_from_global: np.ndarray  # [4, 4] at the end of the turn


@lru_cache(maxsize=1)
def _rays() -> tuple[np.ndarray, np.ndarray]:
    """[N, 32, 3] directions in ego, column by column, and [N, 32] distance to the own roof (MISS beside it)."""
    azimuth = np.pi - 2 * np.pi * (np.arange(NUM_COLUMNS) + 0.5) / NUM_COLUMNS
    flat, up = np.cos(RING_ELEVATION), np.sin(RING_ELEVATION)
    sensor = np.stack(
        np.broadcast_arrays(np.outer(np.cos(azimuth), flat), np.outer(np.sin(azimuth), flat), up), axis=-1
    )
    mount = RIG["LIDAR_TOP"]
    direction = sensor @ mount.ego_from_sensor[:3, :3].T
    with np.errstate(divide="ignore"):
        ends = (_ROOF[:, None, None] - mount.translation) / direction
    near, far = ends.min(0).max(-1), ends.max(0).min(-1)
    return np.ascontiguousarray(direction), np.where((near <= far) & (near > 0), near, MISS)


def scan_lidar(scene: Scene, time: float, seed: int) -> LidarScan:
    """Fire one turn that ends at ``time``.

    Args:
        scene: What there is.
        time: [s] of the scan: the end of the turn.
        seed: Of this scan's noise; the result depends on (scene, time, seed) alone.

    Returns:
        The points in firing order: column by column (clockwise from the vehicle's left), ring by ring.
    """
    stage, mount = stage_of(scene), RIG["LIDAR_TOP"]
    direction, roof = _rays()
    fraction = (np.arange(NUM_COLUMNS) + 0.5) / NUM_COLUMNS
    ego = ego_at(scene, time - LIDAR_TURN * (1 - fraction))
    ends = np.stack([ego_at(scene, time - LIDAR_TURN), ego_at(scene, time)])
    (center0, yaw0), (center1, yaw1) = stage.pose(time - LIDAR_TURN), stage.pose(time)
    half = stage.solids.size / 2
    first, last, near, slope = _bounds(
        center0, center1, half, yaw0, yaw1, ends, mount.translation, direction[0, NUM_RINGS // 2]
    )
    start, items = fill_lists(first, last, np.argsort(near, kind="stable"), NUM_COLUMNS)
    sensor_from_global = invert(global_from_ego(ends[1]) @ mount.ego_from_sensor)
    xyz = np.empty((NUM_COLUMNS, NUM_RINGS, 3), np.float32)
    intensity = np.empty((NUM_COLUMNS, NUM_RINGS), np.float32)
    owner = np.empty((NUM_COLUMNS, NUM_RINGS), np.int32)
    surface = _REFLECT[stage.solids.material]
    painted = stage.solids.material == _METAL  # the darker the paint, the weaker the echo
    surface[painted] *= 0.35 + 0.9 * stage.solids.color[painted].mean(1) / 255
    weather = scene.weather
    noise_seed = seed_of(scene.seed, seed, round(time * 1e6), 11)
    turn = _Turn(
        noise_seed, direction, roof, mount.translation, ego, fraction, start, items, near, slope,
        stage.solids.kind, half, center0, center1 - center0, yaw0, yaw1 - yaw0, surface,
        stage.solids.material == _VEGETATION, stage.owner, stage.ground, stage.corner,
        float(weather.rain), float(weather.fog), sensor_from_global,
    )  # fmt: skip
    (_fire_threads if threaded() else _fire)(turn, xyz, intensity, owner)
    kept = owner != NOTHING
    ring = np.broadcast_to(np.arange(NUM_RINGS, dtype=np.float32), kept.shape)[kept]
    points = np.concatenate([xyz[kept], intensity[kept, None], ring[:, None]], axis=1)
    return LidarScan(points, owner[kept])


@kernel()
def _bounds(center0, center1, half, yaw0, yaw1, ego, offset, first_ray):
    """Which columns can see each solid between the begin and the end of the turn; its nearness and its slopes.

    Returns:
        [S] first and last column, [S] lower bound of the distance, [S, 2] lowest and highest dz / dxy that meet it.
    """
    count = len(yaw0)
    first, last = np.zeros(count, np.int64), np.full(count, -1, np.int64)
    near, slope = np.empty(count), np.empty((count, 2))
    step = 2 * np.pi / NUM_COLUMNS
    begin = np.arctan2(first_ray[1], first_ray[0])
    origin = np.empty((2, 2))
    for e in range(2):
        cos, sin = np.cos(ego[e, 3]), np.sin(ego[e, 3])
        origin[e, 0] = ego[e, 0] + cos * offset[0] - sin * offset[1]
        origin[e, 1] = ego[e, 1] + sin * offset[0] + cos * offset[1]
    for s in range(count):
        low, high, nearest, farthest = 1e9, -1e9, 1e9, 0.0
        middle = 0.0
        around = False
        radius = np.sqrt(half[s, 0] ** 2 + half[s, 1] ** 2)
        for e in range(2):
            center, yaw = (center0[s], yaw0[s]) if e == 0 else (center1[s], yaw1[s])
            x, y = center[0] - origin[e, 0], center[1] - origin[e, 1]
            cos, sin = np.cos(yaw), np.sin(yaw)
            lx, ly = max(abs(cos * x + sin * y) - half[s, 0], 0.0), max(abs(cos * y - sin * x) - half[s, 1], 0.0)
            gap = np.sqrt(lx * lx + ly * ly)  # from the origin to the footprint
            nearest = min(nearest, gap)
            farthest = max(farthest, np.sqrt(x * x + y * y) + radius)
            around = around or gap < 0.5
            to_center = np.arctan2(y, x) - ego[e, 3]
            if e == 0:
                middle = to_center
            drift = (to_center - middle + np.pi) % (2 * np.pi) - np.pi
            for corner in range(4):
                px = half[s, 0] if corner & 1 else -half[s, 0]
                py = half[s, 1] if corner & 2 else -half[s, 1]
                angle = np.arctan2(y + sin * px + cos * py, x + cos * px - sin * py) - ego[e, 3] - to_center
                angle = (angle + np.pi) % (2 * np.pi) - np.pi + drift
                low, high = min(low, angle), max(high, angle)
        near[s] = max(nearest - 0.05, 0.0)
        if near[s] > MAX_RANGE:
            continue
        top = max(center0[s, 2], center1[s, 2]) + half[s, 2] - offset[2]
        bottom = min(center0[s, 2], center1[s, 2]) - half[s, 2] - offset[2]
        slope[s, 0] = bottom / max(near[s] if bottom < 0 else farthest, 1e-3) - 1e-6
        slope[s, 1] = top / max(farthest if top < 0 else near[s], 1e-3) + 1e-6
        if around:
            last[s] = NUM_COLUMNS - 1
            continue
        turn = (begin - middle - high) % (2 * np.pi)  # columns turn clockwise: the highest azimuth comes first
        first[s] = int(np.floor(turn / step)) - _COLUMN_MARGIN + NUM_COLUMNS
        last[s] = int(np.ceil((turn + high - low) / step)) + _COLUMN_MARGIN + NUM_COLUMNS
    return first, last, near, slope


@kernel()
def _echo(reach, facing, distance, rain, fog, bits):
    """Does an echo come back? ``reach`` is the reflectivity, ``facing`` the cosine of incidence."""
    strength = reach * (0.15 + 0.85 * facing) * (1 - 0.4 * rain) * np.exp(-2 * (0.008 * rain + 0.02 * fog) * distance)
    limit = MAX_RANGE * np.sqrt(strength / 0.12)
    ratio = distance / limit
    ratio *= ratio
    ratio *= ratio
    return unit(bits) < (0.985 - 0.05 * rain) / (1 + ratio * ratio)


@kernel()
def _approach(turn, k, origin):
    """What column k may meet, by nearness: the solids' indices, and what the rays need of them.

    Returns:
        [n] int64, and [n, 12]: nearness, slopes (2), origin in the solid's frame (3), cosine and sine of the solid's
        yaw, half size (3), kind.
    """
    listed = turn.items[turn.start[k] : turn.start[k + 1]]
    part = turn.fraction[k]
    local = np.empty((len(listed), 12))
    for i in range(len(listed)):
        s = listed[i]
        x = origin[0] - turn.center[s, 0] - part * turn.motion[s, 0]
        y = origin[1] - turn.center[s, 1] - part * turn.motion[s, 1]
        angle = turn.yaw[s] + part * turn.turning[s]
        cos, sin = np.cos(angle), np.sin(angle)
        local[i, 0] = turn.near[s]
        local[i, 1:3] = turn.slope[s]
        local[i, 3], local[i, 4] = cos * x + sin * y, cos * y - sin * x
        local[i, 5] = origin[2] - turn.center[s, 2] - part * turn.motion[s, 2]
        local[i, 6], local[i, 7] = cos, sin
        local[i, 8:11] = turn.half[s]
        local[i, 11] = turn.kind[s]
    return listed, local


@kernel()
def _nearest(local, dx, dy, dz, best):
    """Nearest solid that a ray meets before ``best``: distance, place in the list (-1 none), cosine of incidence."""
    rising = dz / np.sqrt(dx * dx + dy * dy)
    hit, hit_face = -1, Z_FACE
    for i in range(len(local)):
        if local[i, 0] > best:
            break
        if rising < local[i, 1] or rising > local[i, 2]:
            continue
        ox, oy, oz, cos, sin, hx, hy, hz = local[i, 3:11]
        lx, ly = cos * dx + sin * dy, cos * dy - sin * dx
        if local[i, 11] == BOX:
            t, face = hit_box(ox, oy, oz, lx, ly, dz, hx, hy, hz)
        else:
            t, face = hit_cylinder(ox, oy, oz, lx, ly, dz, hx, hz)
        if t < best:
            best, hit, hit_face = t, i, face
    if hit < 0 or hit_face == Z_FACE:
        return best, hit, abs(dz)
    ox, oy, oz, cos, sin = local[hit, 3:8]
    lx, ly = cos * dx + sin * dy, cos * dy - sin * dx
    if hit_face == ROUND:
        facing = abs((ox + best * lx) * lx + (oy + best * ly) * ly) / local[hit, 8]
    else:
        facing = abs(lx) if hit_face == X_FACE else abs(ly)
    return best, hit, facing


@kernel()
def _fire_column(k, turn, xyz, intensity, owner):
    """Fire the 32 rays of one column and write their echoes."""
    rain, fog, offset = turn.rain, turn.fog, turn.offset
    ego_x, ego_y, ego_z, ego_yaw = turn.ego[k]
    cos, sin = np.cos(ego_yaw), np.sin(ego_yaw)
    ox = ego_x + cos * offset[0] - sin * offset[1]
    oy = ego_y + sin * offset[0] + cos * offset[1]
    oz = ego_z + offset[2]
    listed, local = _approach(turn, k, (ox, oy, oz))
    droplets = 0.008 * rain + 0.02 * fog
    for ring in range(NUM_RINGS):
        ray_x, ray_y, dz = turn.direction[k, ring]
        dx, dy = cos * ray_x - sin * ray_y, sin * ray_x + cos * ray_y
        counter = (k * NUM_RINGS + ring) * 8
        best, who, facing, reach = turn.roof[k, ring], WORLD, 0.5, 0.3
        if best > MAX_RANGE:
            best, patch = MISS, GRASS
            if dz < 0 and -oz / dz < MAX_RANGE:
                best = -oz / dz
                patch = ground_at(turn.ground, turn.corner, ox + best * dx, oy + best * dy) & ~SHADOW
            best, hit, facing = _nearest(local, dx, dy, dz, best)
            if hit >= 0:
                s = listed[hit]
                who, reach = turn.owners[s], turn.surface[s]
                if turn.leafy[s] and who == WORLD:  # light goes some way into the leaves
                    best += 0.5 * unit(random_bits(turn.seed, counter + 4)) ** 2
                    facing = 0.5 + 0.5 * facing
            else:
                reach = _GROUND_REFLECT[patch]
                if patch != GRASS:
                    reach *= 1 - 0.55 * rain  # a wet road sends the light away
        chance = unit(random_bits(turn.seed, counter))
        close = 1.0 + 9.0 * (chance / droplets) ** 2 if chance < droplets else MISS
        if close < best:
            best, who, facing, reach, heard = close, WORLD, 1.0, 0.015, True
        else:
            heard = best < MAX_RANGE and _echo(reach, facing, best, rain, fog, random_bits(turn.seed, counter + 1))
        if not heard:
            owner[k, ring] = NOTHING
            continue
        best += RANGE_NOISE * bell(random_bits(turn.seed, counter + 2))
        x, y, z = ox + best * dx, oy + best * dy, oz + best * dz
        for axis in range(3):
            m = turn.sensor_from_global[axis]
            xyz[k, ring, axis] = m[0] * x + m[1] * y + m[2] * z + m[3]
        bright = 110 * reach * (0.25 + 0.75 * facing) * (1 - 0.3 * best / MAX_RANGE)
        bright *= np.exp(-0.01 * (rain + 2 * fog) * best) * (1 + 0.2 * bell(random_bits(turn.seed, counter + 3)))
        intensity[k, ring] = np.floor(min(max(bright, 0.0), 255.0))
        owner[k, ring] = who


@kernel()
def _fire(turn, xyz, intensity, owner):
    for k in range(NUM_COLUMNS):
        _fire_column(k, turn, xyz, intensity, owner)


@kernel(parallel=True)
def _fire_threads(turn, xyz, intensity, owner):
    for k in prange(NUM_COLUMNS):
        _fire_column(k, turn, xyz, intensity, owner)
