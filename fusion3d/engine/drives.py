"""What plans are scored against, from a data set's tables or from tracks alone: full precision, nothing filtered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fusion3d.data.annotations import chain
from fusion3d.data.drivable import Area, area_of, lanes_of, mask_of
from fusion3d.data.junctions import junctions_of
from fusion3d.data.nuscenes import Tables
from fusion3d.data.road_edge import RoadEdge, road_edge_of
from fusion3d.data.tracks import TrackScene
from fusion3d.engine.ground_truth import category_names
from fusion3d.geometry import invert, rotation_from_quaternion, yaw_of
from fusion3d.metrics.planning import Agents, Boundaries, Drives, Ground, Map
from fusion3d.metrics.planning.drives import LIDAR_MOUNT, STEPS, nominal_time
from fusion3d.metrics.planning.paths import wrap
from fusion3d.metrics.strata import mentions
from fusion3d.types import TIME_STEP

PAST = 2  # keyframes before now: what the baselines look at, and ST-P3's visibility
BEYOND = 3  # keyframes after the last planned one: 0.9 s, in which a plan may be about to hit, however early they come
GRID = 49.951  # [m] to each side: BEV-Planner brings what is beyond its grid to the grid's last cell
Lookup = Callable[[np.ndarray], np.ndarray] | None  # what is at global positions [M, 2]; None: nobody knows


def drives_of(tables: Tables, tokens: Sequence[str], agents: bool = True) -> Drives:
    """Samples of a data set.

    Args:
        tables: of a data set.
        tokens: of the samples.
        agents: with those around; training a baseline needs none.

    Raises:
        DataError: a sample is not there, or its pose is broken.
    """
    rows = np.array([tables.row_of(token) for token in tokens], dtype=np.int64)
    around = np.full((len(rows), PAST + 1 + STEPS + BEYOND), -1, dtype=np.int64)  # keyframes by step
    for number, row in enumerate(rows.tolist()):
        before = chain(tables, row, tables.sample_prev, PAST)[::-1]
        line = [*before, row, *chain(tables, row, tables.sample_next, STEPS + BEYOND)]
        around[number, PAST - len(before) : PAST - len(before) + len(line)] = line
    poses = {row: tables.global_from_ego(row) for row in np.unique(around[around >= 0]).tolist()}
    pose = np.stack([np.stack([poses.get(row, np.eye(4)) for row in line]) for line in around.tolist()])
    ego_from_global = invert(pose[:, PAST])
    relative = ego_from_global[:, None] @ pose
    path = np.concatenate([relative[..., :2, 3], yaw_of(relative)[..., None]], axis=-1)
    known = around >= 0
    time = np.where(known, tables.reference_time[around] - tables.reference_time[rows][:, None], 0) * 1e-6
    scenes = tables.sample_scene[rows]
    said = [text.decode() for text in tables.scene_description[scenes].tolist()]
    return _drives(
        tokens,
        [tables.scene(row) for row in rows.tolist()],
        path,
        time,
        known,
        _agents(tables, around, ego_from_global) if agents else Agents.none(),
        np.stack([_mount(tables, row) for row in rows.tolist()]),
        {
            "light": tuple("night" if mentions(text, "night") else "day" for text in said),
            "weather": tuple(next((w for w in ("rain", "fog", "snow") if mentions(text, w)), "dry") for text in said),
            "place": tuple(place.decode() for place in tables.scene_location[scenes].tolist()),
        },
        tables.reference_time[rows] * 1e-6,
    )


def drives_of_tracks(scenes: Sequence[TrackScene]) -> Drives:
    """Every keyframe of scenes of tracks; visibility and LiDAR points are not known there, and count as there."""
    offsets = np.arange(-PAST, STEPS + BEYOND + 1)
    names = tuple(sorted({name for scene in scenes for name in scene.category}))
    paths, times, knowns, parts = [], [], [], []
    count = 0
    for scene in scenes:
        keyframes = len(scene.tokens)
        step = np.arange(keyframes)[:, None] + offsets
        known = (step >= 0) & (step < keyframes)
        step = np.clip(step, 0, keyframes - 1)
        paths.append(_relative(scene.ego[step], scene.ego[:, None]))
        times.append(np.where(known, scene.time[step] - scene.time[:, None], 0))
        knowns.append(known)
        place = _relative(scene.agent.swapaxes(0, 1)[step], scene.ego[:, None, None])  # [K, steps, A, 3]
        sample, which, agent = np.nonzero(known[..., None] & np.isfinite(place).all(axis=-1))
        place = place[sample, which, agent]
        box = np.concatenate([place[:, :2], scene.size[agent], place[:, 2:]], axis=1)
        kind = np.array([names.index(name) for name in scene.category], dtype=np.int64)
        yes = np.ones(len(sample), dtype=bool)
        parts.append((sample + count, offsets[which], box, agent, kind[agent], yes, yes))
        count += keyframes
    return _drives(
        [token for scene in scenes for token in scene.tokens],
        [scene.name for scene in scenes for _ in scene.tokens],
        np.concatenate(paths),
        np.concatenate(times),
        np.concatenate(knowns),
        _packed(parts, names),
        np.tile(LIDAR_MOUNT, (count, 1)),
        {"place": tuple(scene.location for scene in scenes for _ in scene.tokens)},
        np.concatenate([scene.time for scene in scenes]),
    )


def map_of(tables: Tables, tokens: Sequence[str], boundaries: bool) -> Map | None:
    """What the data set's maps say around samples; None where it has no map of any of them.

    Args:
        tables: of the data set.
        tokens: of the samples.
        boundaries: look for the road's boundary too, which takes its time.

    Raises:
        DataError: a map cannot be read.
    """
    rows = [tables.row_of(token) for token in tokens]
    areas = [area_of(tables, row) for row in rows]
    masks = [mask_of(tables, row) if area is None else None for row, area in zip(rows, areas, strict=True)]
    if not any(areas) and not any(masks):
        return None
    pose = np.stack([tables.global_from_ego(row) for row in rows])
    lanes, junctions = ([find(tables, row) for row in rows] for find in (lanes_of, junctions_of))
    edges = [road_edge_of(tables, row) for row in rows] if boundaries else None
    return map_around(pose, areas, masks, lanes, edges, junctions)


def map_around(
    pose: np.ndarray,
    areas: Sequence[Area | None],
    masks: Sequence[Lookup],
    lanes: Sequence[Lookup],
    edges: Sequence[RoadEdge | None] | None,
    junctions: Sequence[Lookup] = (),
) -> Map:
    """What maps in global metres say around samples.

    Args:
        pose: [N, 4, 4] global_from_ego.
        areas: N, where one may drive; None where polygons are not known.
        masks: N, of global positions [M, 2] the same, [M] bool; looked at where there is no area.
        lanes: N, of global positions [M, 2] on which lanes they are, [M, K] bool.
        edges: N, where the road ends; None where that is not known, or for all: nobody asks.
        junctions: N, of global positions [M, 2] whether they are in an intersection, [M] bool; none at all: not known.
    """
    there = [mask if area is None else area.contains for area, mask in zip(areas, masks, strict=True)]

    def drivable(number: int, xy: np.ndarray) -> np.ndarray:
        on = there[number]
        assert on is not None
        return on(to_global(number, xy))

    def to_global(number: int, xy: np.ndarray) -> np.ndarray:
        return xy @ pose[number, :2, :2].T + pose[number, :2, 3]

    def on_lanes(number: int, xy: np.ndarray) -> np.ndarray:
        on = lanes[number]
        return np.zeros((len(xy), 0), dtype=bool) if on is None else on(to_global(number, xy))

    def in_junction(number: int, xy: np.ndarray) -> np.ndarray:
        on = junctions[number]
        return np.zeros(len(xy), dtype=bool) if on is None else on(to_global(number, xy))

    drawn, known = (np.array([one is not None for one in of]) for of in (areas, there))
    ground = Ground(known, drivable, on_lanes, known & ~drawn, in_junction if len(junctions) else None)
    return Map(ground, None if edges is None else _boundaries(pose, edges))


def _boundaries(pose: np.ndarray, edges: Sequence[RoadEdge | None]) -> Boundaries:
    lines = [np.zeros((0, 2, 2)) if edge is None else edge.lines(pose[row]) for row, edge in enumerate(edges)]
    pieces = [np.stack([line[:, :-1], line[:, 1:]], axis=2).reshape(-1, 2, 2) for line in lines]
    sample = np.repeat(np.arange(len(pieces)), [len(of) for of in pieces])
    known = np.array([edge is not None for edge in edges])
    return Boundaries(sample, np.clip(np.concatenate(pieces), -GRID, GRID), known)


def _drives(
    tokens: Sequence[str],
    scenes: Sequence[str],
    path: np.ndarray,
    time: np.ndarray,
    known: np.ndarray,
    agents: Agents,
    mount: np.ndarray,
    about: dict[str, tuple[str, ...]],
    clock: np.ndarray,
) -> Drives:
    """From arrays over all steps, ``PAST`` before now first; what is not known is zero."""
    end = PAST + 1 + STEPS
    after, before = slice(PAST + 1, end), slice(PAST - 1, None, -1)
    beyond = np.concatenate([path[:, end:], time[:, end:, None]], axis=-1)
    path = np.where(known[..., None], path, 0.0)
    nominal = TIME_STEP * np.arange(1, PAST + 1)
    return Drives(
        tuple(tokens),
        tuple(scenes),
        path[:, after],
        np.where(known[:, after], time[:, after], nominal_time(STEPS)),
        known[:, after],
        path[:, before],
        np.where(known[:, before], -time[:, before], nominal),
        known[:, before],
        agents,
        mount,
        about,
        clock,
        np.where(known[:, end:, None], beyond, np.nan),
    )


def _agents(tables: Tables, around: np.ndarray, ego_from_global: np.ndarray) -> Agents:
    """The annotations at all steps, in the ego frame of now."""
    names = tuple(category_names(tables))
    sample, which = np.nonzero(around >= 0)
    row = around[sample, which]
    begin, count = tables.box_start[row], np.diff(tables.box_start)[row]
    of = np.repeat(np.arange(len(row)), count)
    box = np.repeat(begin - (np.cumsum(count) - count), count) + np.arange(len(of))
    sample, step = sample[of], which[of] - PAST
    turn, shift = ego_from_global[:, :3, :3], ego_from_global[:, :3, 3]
    center = np.einsum("kij,kj->ki", turn[sample], tables.box_center[box]) + shift[sample]
    forward = rotation_from_quaternion(tables.box_rotation[box])[..., 0]
    forward = np.einsum("kij,kj->ki", turn[sample], forward)
    yaw = np.arctan2(forward[:, 1], forward[:, 0])
    return Agents(
        sample,
        step,
        np.concatenate([center[:, :2], tables.box_size[box, :2], yaw[:, None]], axis=1),
        tables.box_instance[box].astype(np.int64),
        tables.box_category[box].astype(np.int64),
        tables.box_visibility[box] != 1,
        tables.box_points[box, 0] > 0,
        names,
    )


def _packed(parts: Sequence[tuple[np.ndarray, ...]], names: tuple[str, ...]) -> Agents:
    """Columns in the order of ``Agents``, scene after scene, to one."""
    sample, step, box, track, category, visible, seen = (np.concatenate(of) for of in zip(*parts, strict=True))
    return Agents(sample, step, box, track, category, visible, seen, names)


def _mount(tables: Tables, row: int) -> np.ndarray:
    """[3] x, y, yaw of the key LiDAR in ego; nuScenes' usual place where a sample has none."""
    data = tables.key(row, "LIDAR_TOP")
    if data < 0:
        return np.array(LIDAR_MOUNT)
    calibration = tables.data_calibration[data]
    turn: Any = yaw_of(rotation_from_quaternion(tables.calibration_rotation[calibration]))
    return np.array([*tables.calibration_translation[calibration, :2], turn])


def _relative(pose: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Poses [..., 3] x, y, yaw in the frame of others, to which they broadcast."""
    away = pose[..., :2] - now[..., :2]
    c, s = np.cos(now[..., 2]), np.sin(now[..., 2])
    turned = (away[..., 0] * c + away[..., 1] * s, away[..., 1] * c - away[..., 0] * s)
    return np.stack([*turned, wrap(pose[..., 2] - now[..., 2])], axis=-1)
