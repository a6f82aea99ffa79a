"""The cameras, simulated: one ray a pixel through the scaled pinhole of the rig, global shutter at the trigger time.

Modelled: occlusion, sun and shadows on the ground, textures, sky, haze, night with the own headlights and lit lamps,
rain on road and lens, exposure by scene, camera and brightness, vignetting and sensor noise. Not modelled: lens
distortion (the images of nuScenes are undistorted), motion blur, mirror images of bodies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import prange

from fusion3d.geometry import invert
from fusion3d.synthetic.kernels import kernel
from fusion3d.synthetic.rays import MISS, ROUND, X_FACE, Z_FACE, fill_lists, hit_box, hit_cylinder, seed_of, threaded
from fusion3d.synthetic.rig import RIG, mount_of
from fusion3d.synthetic.scene import BOX, MATERIALS, Scene
from fusion3d.synthetic.shade import (
    develop,
    develop_threads,
    light_of,
    shade_ground,
    shade_sky,
    shade_solid,
    wet_lens,
)
from fusion3d.synthetic.stage import SHADOW, Stage, cast_shadows, ego_at, global_from_ego, ground_at, stage_of

MAX_DEPTH = 250.0  # [m] solids farther away are not drawn
NEAR_PLANE = 0.1  # [m]
_SHADE_CELL, _SHADE_REACH = 0.15, 45.0  # [m] the moving shadows around the camera


@dataclass(frozen=True)
class CameraImage:
    """One picture, and what is to be seen in it."""

    image: np.ndarray  # [H, W, 3] uint8 RGB
    owner: np.ndarray  # [H, W] int32: index in scene.actors of what a pixel's centre shows, -1 none
    fraction: np.ndarray  # [A] float32: visible pixels / pixels that the actor would cover alone; 0 out of view


class _View(NamedTuple):
    """All that the kernels read. S solids; an image column lists actors' parts by actor, then others by nearness."""

    seed: np.uint64
    origin: np.ndarray  # [3] in global [m]
    ray_u: np.ndarray  # [3] global direction per pixel to the right
    ray_v: np.ndarray  # [3] ... down
    ray_0: np.ndarray  # [3] ... of pixel (0, 0)
    start: np.ndarray  # [W + 1] of the columns' lists
    items: np.ndarray
    rows: np.ndarray  # [S, 2] first and last image row of each solid
    near: np.ndarray  # [S] lower bound of the distance [m]
    kind: np.ndarray
    half: np.ndarray  # [S, 3] half size [m]
    center: np.ndarray  # [S, 3] [m]
    yaw: np.ndarray  # [S]
    look: np.ndarray  # [S, 6] RGB in [0, 1], material, texture, glow
    owners: np.ndarray  # [S] int32
    ground: np.ndarray
    corner: np.ndarray
    shadows: np.ndarray  # [n, n] uint8, SHADOW where an actor hides the sun
    shade_corner: np.ndarray  # [2]
    light: np.ndarray  # see shade.py


def render_camera(scene: Scene, channel: str, time: float, size: tuple[int, int], seed: int) -> CameraImage:
    """Take one picture.

    Args:
        scene: What there is.
        channel: A camera of the rig, e.g. "CAM_FRONT".
        time: [s] of the exposure.
        size: (height, width) [px]; intrinsics are ``RIG[channel].intrinsic_at(size)``.
        seed: Of this picture's noise; the result depends on the arguments alone.

    Returns:
        The picture, its owners, and what part of each actor is visible.

    Raises:
        ValueError: The channel is no camera of the rig, or the size is not positive.
    """
    mount = mount_of(channel, "CAM_")
    intrinsic = mount.intrinsic_at(size)
    height, width = size
    stage, ego = stage_of(scene), ego_at(scene, time)
    global_from_cam = global_from_ego(ego) @ mount.ego_from_sensor
    center, yaw = stage.pose(time)
    half = stage.solids.size / 2
    rect, near = _bounds(center, half, yaw, invert(global_from_cam), intrinsic, height, width)
    moving = int(stage.first[0])
    order = np.concatenate([np.arange(moving, len(yaw)), np.argsort(near[:moving], kind="stable")])
    start, items = fill_lists(rect[:, 0], rect[:, 1], order, width)
    picture = seed_of(scene.seed, seed, round(time * 1e6), list(RIG).index(channel), 12)
    shadows, shade_corner = _moving_shadows(scene, stage, time, global_from_cam[:2, 3])
    turn, (fx, fy), (cx, cy) = global_from_cam[:3, :3], np.diag(intrinsic)[:2], intrinsic[:2, 2]
    view = _View(
        seed_of(scene.seed, 13), global_from_cam[:3, 3].copy(), turn[:, 0] / fx, turn[:, 1] / fy,
        turn @ np.array([-cx / fx, -cy / fy, 1.0]), start, items, rect[:, 2:].copy(), near, stage.solids.kind, half,
        center, yaw, _looks(scene, stage), stage.owner, stage.ground, stage.corner, shadows, shade_corner,
        light_of(scene.weather, stage.sun, ego, 1 / fx),
    )  # fmt: skip
    linear, owner = np.empty((height, width, 3), np.float32), np.empty((height, width), np.int32)
    alone = np.zeros((width, len(scene.actors)), np.int32)
    (_expose_threads if threaded() else _expose)(view, linear, owner, alone)
    seen = np.bincount(owner[owner >= 0], minlength=len(scene.actors))
    fraction = np.minimum(seen / np.maximum(alone.sum(0), 1), 1).astype(np.float32)
    return CameraImage(_develop(scene, channel, linear, picture), owner, fraction)


def _develop(scene: Scene, channel: str, linear: np.ndarray, seed: np.uint64) -> np.ndarray:
    """[H, W, 3] light to a uint8 picture: weather on the lens, exposure, noise."""
    weather, rng = scene.weather, np.random.Generator(np.random.Philox(int(seed)))
    if weather.rain > 0:
        wet_lens(linear, weather.rain, rng)
    habit = int(seed_of(scene.seed, list(RIG).index(channel), 14)) % 1000 / 1000  # of this camera on this day
    level = float(np.minimum(linear, 1.5).mean())
    gain = (0.85 + 0.3 * habit) * min((0.3 / max(level, 1e-4)) ** 0.55, 2.6 - 0.8 * weather.night)
    noise = 1.2 + 4.0 * weather.night + 1.0 * weather.rain
    image = np.empty(linear.shape, np.uint8)
    (develop_threads if threaded() else develop)(seed, linear, gain, noise, image)
    return image


def _looks(scene: Scene, stage: Stage) -> np.ndarray:
    """[S, 6] RGB in [0, 1], material, texture and glow of all solids: lamps shine, brighter in the dark."""
    solids = stage.solids
    vehicle = np.array([actor.category.startswith("vehicle") for actor in scene.actors] + [False])[stage.owner]
    glass, retro = (solids.material == MATERIALS.index(name) for name in ("glass", "reflective"))
    lamp = glass & (solids.color.min(1) > 190)
    glow = np.where(lamp, 0.35 + 2.2 * scene.weather.night, 0.0)
    glow = np.where(retro & vehicle, 0.25 + 0.8 * scene.weather.night, glow)
    return np.column_stack([solids.color / 255, solids.material, solids.texture, glow]).astype(np.float64)


def _moving_shadows(scene: Scene, stage: Stage, time: float, around: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ground around a point [2]: SHADOW where an actor's box hides the sun; and the [2] corner of that square."""
    side = int(2 * _SHADE_REACH / _SHADE_CELL)
    shadows, corner = np.zeros((side, side), np.uint8), around - _SHADE_REACH
    state = stage.actors_at(time)
    weather = scene.weather
    high = stage.sun if max(weather.night, weather.rain, weather.fog) < 0.5 else np.array([0.0, 0.0, 1.0])
    boxes = np.zeros(len(state), np.uint8)
    cast_shadows(
        shadows, corner, _SHADE_CELL, boxes, np.ascontiguousarray(state[:, :3]), stage.size, state[:, 3].copy(), high
    )
    return shadows, corner


@kernel()
def _bounds(center, half, yaw, cam_from_global, intrinsic, height, width):
    """[S, 4] first and last image column, first and last row (last < first when out of view); [S] nearness."""
    count = len(yaw)
    rect, near = np.zeros((count, 4), np.int64), np.empty(count)
    corner = np.empty((8, 3))
    turn, shift = cam_from_global[:3, :3], cam_from_global[:3, 3]
    home = -(turn[0] * shift[0] + turn[1] * shift[1] + turn[2] * shift[2])
    for s in range(count):
        cos, sin = np.cos(yaw[s]), np.sin(yaw[s])
        x, y = home[0] - center[s, 0], home[1] - center[s, 1]
        lx = max(abs(cos * x + sin * y) - half[s, 0], 0.0)
        ly = max(abs(cos * y - sin * x) - half[s, 1], 0.0)
        near[s] = np.sqrt(lx * lx + ly * ly)
        rect[s, 1] = -1
        if near[s] > MAX_DEPTH:
            continue
        for i in range(8):
            px = half[s, 0] if i & 1 else -half[s, 0]
            py = half[s, 1] if i & 2 else -half[s, 1]
            gx, gy = center[s, 0] + cos * px - sin * py, center[s, 1] + sin * px + cos * py
            gz = center[s, 2] + (half[s, 2] if i & 4 else -half[s, 2])
            for axis in range(3):
                corner[i, axis] = turn[axis, 0] * gx + turn[axis, 1] * gy + turn[axis, 2] * gz + shift[axis]
        u0, u1, v0, v1 = 1e9, -1e9, 1e9, -1e9
        for i in range(8):
            for bit in (0, 1, 2, 4):  # the corner itself, then where its three edges pass the near plane
                j = i ^ bit
                point_x, point_y, depth = corner[i]
                if bit == 0:
                    if depth < NEAR_PLANE:
                        continue
                else:
                    if not (depth < NEAR_PLANE <= corner[j, 2]):
                        continue
                    part = (NEAR_PLANE - depth) / (corner[j, 2] - depth)
                    point_x += part * (corner[j, 0] - point_x)
                    point_y += part * (corner[j, 1] - point_y)
                    depth = NEAR_PLANE
                u = intrinsic[0, 0] * point_x / depth + intrinsic[0, 2]
                v = intrinsic[1, 1] * point_y / depth + intrinsic[1, 2]
                u0, u1, v0, v1 = min(u0, u), max(u1, u), min(v0, v), max(v1, v)
        if u1 < -1 or u0 > width or v1 < -1 or v0 > height:
            continue
        rect[s, 0], rect[s, 1] = max(int(np.floor(u0)), 0), min(int(np.ceil(u1)), width - 1)
        rect[s, 2], rect[s, 3] = max(int(np.floor(v0)), 0), min(int(np.ceil(v1)), height - 1)
    return rect, near


@kernel()
def _approach(view, column):
    """What one image column may show: indices of solids; [n, 12] nearness, rows, origin, cos, sin, half size, kind."""
    listed = view.items[view.start[column] : view.start[column + 1]]
    local = np.empty((len(listed), 12))
    for i in range(len(listed)):
        s = listed[i]
        x, y = view.origin[0] - view.center[s, 0], view.origin[1] - view.center[s, 1]
        cos, sin = np.cos(view.yaw[s]), np.sin(view.yaw[s])
        local[i, 0] = view.near[s]
        local[i, 1], local[i, 2] = view.rows[s]
        local[i, 3], local[i, 4] = cos * x + sin * y, cos * y - sin * x
        local[i, 5] = view.origin[2] - view.center[s, 2]
        local[i, 6], local[i, 7] = cos, sin
        local[i, 8:11] = view.half[s]
        local[i, 11] = view.kind[s]
    return listed, local


@kernel()
def _nearest(local, owners, row, dx, dy, dz, best, alone):
    """Nearest solid before ``best``: distance, place in the list (-1 none), face. Counts actors hit in ``alone``."""
    hit, hit_face, counted = -1, Z_FACE, -1
    for i in range(len(local)):
        who = owners[i]
        if who < 0 and local[i, 0] > best:
            break
        if row < local[i, 1] or row > local[i, 2]:
            continue
        if who >= 0 and who == counted and local[i, 0] > best:
            continue
        ox, oy, oz, cos, sin, hx, hy, hz = local[i, 3:11]
        lx, ly = cos * dx + sin * dy, cos * dy - sin * dx
        if local[i, 11] == BOX:
            t, face = hit_box(ox, oy, oz, lx, ly, dz, hx, hy, hz)
        else:
            t, face = hit_cylinder(ox, oy, oz, lx, ly, dz, hx, hz)
        if t < MISS and who >= 0 and who != counted:
            alone[who] += 1
            counted = who
        if t < best:
            best, hit, hit_face = t, i, face
    return best, hit, hit_face


@kernel()
def _normal(entry, face, best, dx, dy, dz):
    """Point in the frame of the solid, and normal in global, of a hit."""
    ox, oy, oz, cos, sin, hx, _, hz = entry[3:11]
    lx, ly = cos * dx + sin * dy, cos * dy - sin * dx
    px, py, pz = ox + best * lx, oy + best * ly, oz + best * dz
    if face == Z_FACE:
        return px, py, pz + hz, 0.0, 0.0, -np.sign(dz)
    if face == ROUND:
        mx, my = px / hx, py / hx
        px, py = hx * np.arctan2(py, px), 0.0  # textures run around it
    elif face == X_FACE:
        mx, my = -np.sign(lx), 0.0
    else:
        mx, my = 0.0, -np.sign(ly)
    return px, py, pz + hz, cos * mx - sin * my, sin * mx + cos * my, 0.0


@kernel()
def _expose_column(column, view, linear, owner, alone):
    """The light and the owners of one image column."""
    listed, local = _approach(view, column)
    owners = np.empty(len(listed), np.int64)
    for i in range(len(listed)):
        owners[i] = view.owners[listed[i]]
    ox, oy, oz = view.origin
    light, seed, side = view.light, view.seed, view.shadows.shape[0]
    for row in range(linear.shape[0]):
        dx = view.ray_0[0] + column * view.ray_u[0] + row * view.ray_v[0]
        dy = view.ray_0[1] + column * view.ray_u[1] + row * view.ray_v[1]
        dz = view.ray_0[2] + column * view.ray_u[2] + row * view.ray_v[2]
        length = np.sqrt(dx * dx + dy * dy + dz * dz)
        dx, dy, dz = dx / length, dy / length, dz / length
        floor = -oz / dz if dz < -1e-6 else MISS
        best, hit, face = _nearest(local, owners, row, dx, dy, dz, floor, alone[column])
        x, y, z = ox + best * dx, oy + best * dy, oz + best * dz
        owner[row, column] = -1
        if hit >= 0:
            s = listed[hit]
            owner[row, column] = owners[hit]
            px, py, height, nx, ny, nz = _normal(local[hit], face, best, dx, dy, dz)
            r, g, b = shade_solid(
                light, seed + np.uint64(s), view.look[s], face == X_FACE, px, py, height, x, y, z, nx, ny, nz,
                dx, dy, dz, best,
            )  # fmt: skip
        elif floor < 1500.0:
            i, j = int((y - view.shade_corner[1]) / _SHADE_CELL), int((x - view.shade_corner[0]) / _SHADE_CELL)
            under = 0 <= i < side and 0 <= j < side and (view.shadows[i, j] & SHADOW) != 0
            cell = ground_at(view.ground, view.corner, x, y)
            r, g, b = shade_ground(light, seed, cell, under, x, y, dx, dy, dz, best)
        else:
            r, g, b = shade_sky(light, seed, dx, dy, dz)
        linear[row, column, 0], linear[row, column, 1], linear[row, column, 2] = r, g, b


@kernel()
def _expose(view, linear, owner, alone):
    for column in range(linear.shape[1]):
        _expose_column(column, view, linear, owner, alone)


@kernel(parallel=True)
def _expose_threads(view, linear, owner, alone):
    for column in prange(linear.shape[1]):
        _expose_column(column, view, linear, owner, alone)
