"""How fast plans are scored, against shapely doing the same test: ``tools/benchmark.py planning``.

Random traffic of the size of nuScenes' val, on a map of streets, to which the agents do not keep. What is compared with
shapely is the collision test of ``exact``, on the first of the samples, in two ways: pair by pair, as SparseDrive's
evaluation has it, and all at once for the pairs whose circles meet, the best that we know. Ours finds clearance, fault
and time to collision in the same time. All find the same collisions, or there is no figure.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fusion3d.data.drivable import Area
from fusion3d.data.road_edge import RoadEdge
from fusion3d.engine.drives import map_around
from fusion3d.errors import DataError
from fusion3d.files import write_json
from fusion3d.metrics.planning import PROTOCOLS, Agents, Drives, Map, score_plans
from fusion3d.metrics.planning.contacts import EGO, interpolate, meet
from fusion3d.metrics.planning.drives import LIDAR_MOUNT, STEPS, nominal_time
from fusion3d.metrics.planning.paths import sweep
from fusion3d.metrics.planning.rectangles import corners, reach

SAMPLES, AGENTS = 6019, 50  # nuScenes' val
BLOCKS, BLOCK, STREET = 12, 100.0, 14.0  # a side of the map; of a block, and across a street [m]
_NAMES = ("vehicle.car", "human.pedestrian.adult", "movable_object.barrier")


def random_drives(samples: int, agents: int) -> Drives:
    """Cars on circles, each among agents that drive straight on, anywhere within 50 m."""
    rng = np.random.default_rng(0)
    speed, rate = rng.uniform(0, 12, samples), rng.uniform(-0.2, 0.2, samples)
    step = np.arange(-2, STEPS + 3)

    def circle(time: np.ndarray) -> np.ndarray:
        angle = rate[:, None] * time
        chord = speed[:, None] * time * np.sinc(angle / (2 * np.pi))
        return np.stack([chord * np.cos(angle / 2), chord * np.sin(angle / 2), angle], axis=-1)

    start, move = rng.uniform(-50, 50, (samples, 1, agents, 2)), rng.normal(0, 2, (samples, 1, agents, 2))
    box = np.zeros((samples, len(step), agents, 5))
    box[..., :2] = start + 0.5 * step[:, None, None] * move
    box[..., 2:] = np.stack(np.broadcast_arrays(4.6, 1.95, rng.uniform(-3, 3, (samples, 1, agents))), axis=-1)
    sample, at, track = (of.reshape(-1) for of in np.indices(box.shape[:3]))
    yes = np.ones(len(sample), dtype=bool)
    around = Agents(sample, step[at], box.reshape(-1, 5), track, track % len(_NAMES), yes, yes, _NAMES)
    both = np.ones((samples, STEPS), dtype=bool)
    return Drives(
        tuple(f"{i:06d}" for i in range(samples)),
        tuple(f"{i // 40:04d}" for i in range(samples)),
        circle(nominal_time(STEPS)),
        np.broadcast_to(nominal_time(STEPS), both.shape),
        both,
        circle(-nominal_time(2)),
        np.broadcast_to(nominal_time(2), (samples, 2)),
        both[:, :2],
        around,
        np.tile(LIDAR_MOUNT, (samples, 1)),
        {},
        0.5 * np.arange(samples),
    )


def street_map(drives: Drives) -> Map:
    """A city of square blocks around the samples, which stand anywhere in it and any way round: a map of polygons."""
    line = BLOCK * np.arange(BLOCKS + 1)
    middle = 0.5 * STREET + np.arange(0, BLOCK - STREET + 1, 5)  # a vertex every 5 m, as bends need them

    def strip(low: float, high: float) -> np.ndarray:
        """[V, 2] of a street from its junction along x, between these distances to its left."""
        sides = [np.stack([middle, np.full(len(middle), side)], axis=-1) for side in (low, high)]
        return np.concatenate([sides[0], sides[1][::-1]])

    def everywhere(shape: np.ndarray) -> list[np.ndarray]:
        """Along x and along y, from every junction."""
        return [way + np.array([x, y]) for way in (shape, shape[::-1, ::-1]) for x in line for y in line]

    half = STREET / 2
    square = half * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    roads = [*everywhere(strip(-half, half)), *(square + np.array([x, y]) for x in line for y in line)]
    lanes = [*everywhere(strip(-half, 0.0)), *everywhere(strip(0.0, half))]
    area, lane = (Area(rings, np.arange(len(rings))) for rings in (roads, lanes))
    edge = RoadEdge.around([[ring] for ring in (*roads, *lanes)])
    rng, pose = np.random.default_rng(2), np.tile(np.eye(4), (len(drives), 1, 1))
    turn = rng.uniform(-np.pi, np.pi, len(drives))
    pose[:, 0, 0] = pose[:, 1, 1] = np.cos(turn)
    pose[:, 1, 0] = np.sin(turn)
    pose[:, 0, 1] = -pose[:, 1, 0]
    pose[:, :2, 3] = rng.choice(line, (len(drives), 2)) + rng.uniform(-half, half, (len(drives), 2))
    return map_around(
        pose, [area] * len(drives), [None] * len(drives), [lane.within] * len(drives), [edge] * len(drives)
    )


def hits_by_shapely(plan: np.ndarray, drives: Drives, at_once: bool) -> np.ndarray:
    """[N, I] bool: the collision test of ``exact`` with shapely's polygons, pair by pair or all near ones at once."""
    shapely: Any = import_module("shapely")
    moving = interpolate(drives.agents, drives.agent_time)
    poses = sweep(plan)
    moving = moving[(moving.instant > 0) & (moving.instant <= poses.shape[1])]
    ego = EGO.along(poses)[moving.sample, moving.instant - 1]
    hit = np.zeros(poses.shape[:2], dtype=bool)
    if at_once:
        near = np.linalg.norm(ego[:, :2] - moving.box[:, :2], axis=1) < reach(ego) + reach(moving.box)
        met = np.flatnonzero(near)
        met = met[shapely.intersects(shapely.polygons(corners(ego[met])), shapely.polygons(corners(moving.box[met])))]
        hit[moving.sample[met], moving.instant[met] - 1] = True
        return hit
    for sample, instant, own, other in zip(
        moving.sample, moving.instant, corners(ego), corners(moving.box), strict=True
    ):
        hit[sample, instant - 1] |= shapely.Polygon(own).intersects(shapely.Polygon(other))
    return hit


def measure(samples: int, agents: int, peer_samples: int, repeats: int) -> dict[str, Any]:
    """Seconds of CPU time: all protocols, the map around the samples, and on ``peer_samples`` the collision test.

    Raises:
        DataError: shapely is not installed, or finds other collisions.
    """
    drives = random_drives(samples, agents)
    noise = np.random.default_rng(1).normal(0, 0.3, drives.future.shape)
    plan = drives.future + noise
    maps: list[Map] = []
    mapping = _seconds(lambda: maps.append(street_map(drives)), 1)
    whole = _seconds(lambda: score_plans({"model": plan}, drives, PROTOCOLS, maps[0]), 1)
    few = drives[np.arange(min(peer_samples, samples))]
    some = plan[: len(few)]
    ways = {"pair_by_pair": False, "at_once": True}
    try:
        theirs = {way: hits_by_shapely(some, few, at_once) for way, at_once in ways.items()}
    except ImportError as error:
        raise DataError(f"the comparison needs shapely ({error}); install the extra 'dev'") from error
    found = meet({"m": some}, few)["m"].any
    if not all(np.array_equal(found, hit) for hit in theirs.values()):
        raise DataError("shapely and fusion3d find other collisions: their times mean nothing")
    ours = _seconds(lambda: meet({"m": some}, few), repeats)
    seconds = {way: _seconds(partial(hits_by_shapely, some, few, at_once), repeats) for way, at_once in ways.items()}
    return {
        "samples": samples, "agents": agents, "steps": STEPS, "protocols": list(PROTOCOLS), "planners": 5,
        "map_seconds": mapping, "all_protocols_seconds": whole, "peer_samples": len(few), "fusion3d_seconds": ours,
        "shapely_seconds": seconds, "ratio": {way: taken / ours for way, taken in seconds.items()}, "repeats": repeats,
    }  # fmt: skip


def _seconds(work: Callable[[], Any], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def main(argv: list[str]) -> int:
    """The verb ``benchmark planning``."""
    parser = argparse.ArgumentParser(prog="benchmark planning", description="Speed of scoring plans, against shapely.")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--agents", type=int, default=AGENTS, help="around each sample")
    parser.add_argument("--peer-samples", type=int, default=60, help="samples that shapely does too")
    parser.add_argument("--repeats", type=int, default=3, help="of the comparison; the median counts")
    parser.add_argument("--out", help="write the figures as JSON to this file")
    args = parser.parse_args(argv)
    if min(args.samples, args.agents, args.peer_samples, args.repeats) < 1:
        parser.error("expected numbers of at least 1")
    result = measure(args.samples, args.agents, args.peer_samples, args.repeats)
    print(
        f"{result['samples']} samples x {STEPS} steps x {result['agents']} agents, {len(PROTOCOLS)} protocols, "
        f"{result['planners']} planners: {result['all_protocols_seconds']:.1f} s of CPU time, and "
        f"{result['map_seconds']:.1f} s for the map around them\n"
        f"{result['peer_samples']} samples at 10 Hz: fusion3d {result['fusion3d_seconds']:.3f} s for collisions, "
        "clearance, fault and time to collision"
    )
    for way, taken in result["shapely_seconds"].items():
        words = way.replace("_", " ")
        print(f"  shapely {words}, collisions alone: {taken:.3f} s, {result['ratio'][way]:.1f} times as long")
    if args.out:
        write_json(Path(args.out), result)
    return 0
