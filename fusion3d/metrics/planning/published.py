"""Scoring plans by a published protocol. N samples, T steps, P planners' pairs of ego and agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fusion3d.metrics.planning.drives import Agents, Drives
from fusion3d.metrics.planning.paths import to_lidar
from fusion3d.metrics.planning.protocols import Protocol
from fusion3d.metrics.planning.raster import HALF, meet
from fusion3d.metrics.planning.rectangles import depth, overlap, reach
from fusion3d.types import TIME_STEP

HORIZONS = (1, 2, 3)  # [s]


@dataclass(frozen=True, eq=False)
class Boundaries:
    """Segments of the road's edge around each sample, in its ego frame."""

    sample: np.ndarray  # [K] int64, ascending
    segment: np.ndarray  # [K, 2, 2] float64: from, to; x, y [m]
    known: np.ndarray  # [N] bool: is there a map?

    def __getitem__(self, number: np.ndarray) -> Boundaries:
        """Of some samples: [N] their new rows, ascending, -1 for the others."""
        kept = number[self.sample] >= 0
        return Boundaries(number[self.sample[kept]], self.segment[kept], self.known[number >= 0])


def score_published(
    protocol: Protocol,
    plans: Mapping[str, np.ndarray],
    drives: Drives,
    boundaries: Boundaries | None = None,
) -> dict[str, dict[str, float]]:
    """Planners' numbers by one protocol, the human's among them.

    Args:
        protocol: see ``protocols``.
        plans: by name, [N, T, 3] in ego.
        drives: N samples; steps beyond those of the plans are not looked at.
        boundaries: for protocols that want them; None: there is no map.

    Returns:
        For each planner and ``human``: ``N`` samples at the last time, ``L2@1s`` ..., ``L2@avg`` [m]; ``collision@1s``
        ... and ``@avg``, those at steps where the driven path hits not counted; ``raw@...`` with them: the human's are
        the floor of the instrument; ``events``, hits at the last time, and ``masked``, those not counted;
        ``point@...``, of one cell in place of the box, where there are cells; ``boundary@...`` (NaN without a map)
        where the protocol has it. NaN where no sample counts or the plan is too short.
    """
    steps = next(iter(plans.values())).shape[1] if plans else drives.future.shape[1]
    driven, known = drives.future[:, :steps], drives.known[:, :steps]
    counts = protocol.counts(drives.known if protocol.samples in ("complete", "history") else known, drives.past_known)
    counts = counts[:, :steps]
    agents = _placed(protocol, protocol.agents(drives.agents), drives)
    agents = agents[agents.step <= steps]
    paths = {name: _path(protocol, plan, drives) for name, plan in {**plans, "human": driven}.items()}
    every_hit = {name: hits(protocol, path, agents) for name, path in paths.items()}
    human_hits = every_hit["human"]
    off = {}
    if boundaries is not None and protocol.boundary:
        off = {name: cross(protocol, path, boundaries) for name, path in paths.items()}
    table = {}
    for name, path in paths.items():
        error = np.linalg.norm(path[..., :2] - paths["human"][..., :2], axis=-1)
        hit = every_hit[name]
        if protocol.zero_fill:
            error, hit = np.where(known, error, 0), hit & known
        row: dict[str, float] = {"N": float(_last(counts).sum())}
        row |= _columns("L2", error, counts, protocol.average)
        row |= _columns("collision", hit & ~human_hits, counts, protocol.hits)
        row |= _columns("raw", hit, counts, protocol.hits)
        row["events"] = float(_events(hit & ~human_hits, protocol.hits)[_last(counts)].sum())
        row["masked"] = float(_events(hit & human_hits, protocol.hits)[_last(counts)].sum())
        if protocol.raster is not None:
            point = point_hits(protocol, path, agents) & ~human_hits
            row |= _columns("point", point & known if protocol.zero_fill else point, counts, protocol.hits)
        if protocol.boundary:
            row |= _boundary_columns(off.get(name), off.get("human"), counts, boundaries)
        table[name] = row
    return table


def hits(protocol: Protocol, path: np.ndarray, agents: Agents) -> np.ndarray:
    """At which steps does the ego meet an agent?

    Args:
        protocol: whose ego box and cells.
        path: [N, T, 3] forward, side and heading, in the protocol's frame.
        agents: in that frame, at steps 1 to T.

    Returns:
        [N, T] bool.
    """
    flat, steps = path.reshape(-1, 3), path.shape[1]
    own = agents.sample * steps + agents.step - 1
    hit = np.zeros(len(flat), dtype=bool)
    margin = 0.0 if protocol.raster is None else 4 * protocol.raster.resolution  # cells reach farther than boxes
    ego = protocol.ego.along(flat)
    place, limit = ego[:, :2], reach(ego) + margin
    outside = np.abs(flat[:, :2]).max(axis=1) > HALF - 10  # there cells are pushed back to the edge of the grid
    away = ((place[own] - agents.box[:, :2]) ** 2).sum(axis=1)
    near = (away <= (limit[own] + reach(agents.box)) ** 2) | (outside[own] if protocol.raster is not None else False)
    near = np.flatnonzero(near)
    near = near[(depth(ego[own[near]], agents.box[near]) > -margin) | outside[own[near]]]
    if protocol.raster is None:
        met = near[overlap(ego[own[near]], agents.box[near])]
    else:
        which, row = np.unique(own[near], return_inverse=True)
        cells = protocol.raster.of_ego(flat[which], protocol.ego)
        quads = protocol.raster.of_agents(agents.box[near])
        met = near[meet(cells, quads, (row, np.arange(len(near))), protocol.raster.size)]
    hit[own[met]] = True
    return hit.reshape(path.shape[:2])


def point_hits(protocol: Protocol, path: np.ndarray, agents: Agents) -> np.ndarray:
    """[N, T] bool: at which steps is the cell of one point an agent's? Arguments as those of ``hits``."""
    assert protocol.raster is not None
    flat, steps, size = path.reshape(-1, 3), path.shape[1], protocol.raster.size
    own = agents.sample * steps + agents.step - 1
    cells = protocol.raster.of_point(flat)
    inside = np.asarray(((cells >= 0) & (cells < size)).all(axis=1))  # others are not counted
    away = np.linalg.norm(flat[own, :2] + protocol.raster.point - agents.box[:, :2], axis=1)
    near = np.flatnonzero(inside[own] & (away <= reach(agents.box) + 4 * protocol.raster.resolution))
    quads = protocol.raster.of_agents(agents.box[near])
    hit = np.zeros(len(flat), dtype=bool)
    hit[own[near[meet(cells[:, None], quads, (own[near], np.arange(len(near))), size)]]] = True
    return hit.reshape(path.shape[:2])


def cross(protocol: Protocol, path: np.ndarray, boundaries: Boundaries) -> np.ndarray:
    """[N, T] bool: at which steps does the ego stand on the road's boundary? Arguments as those of ``hits``."""
    begin, end = boundaries.segment[:, 0], boundaries.segment[:, 1]
    length = np.linalg.norm(end - begin, axis=1)
    yaw = np.arctan2(end[:, 1] - begin[:, 1], end[:, 0] - begin[:, 0])
    line = np.column_stack([(begin + end) / 2, length, np.full(len(length), 1e-6), yaw])
    lines = []
    for step in range(path.shape[1]):
        place = np.clip(path[boundaries.sample, step, :2], -HALF, HALF)  # cells beyond the grid are pushed back to it
        away = np.abs(line[:, :2] - place).max(axis=1)
        lines.append(np.flatnonzero(away <= length / 2 + 7))
    row = np.concatenate(lines)
    step = np.repeat(np.arange(1, path.shape[1] + 1), [len(of_step) for of_step in lines])
    order = np.argsort(boundaries.sample[row], kind="stable")
    row, step = row[order], step[order]
    none, yes = np.zeros(len(row), dtype=np.int64), np.ones(len(row), dtype=bool)
    return hits(protocol, path, Agents(boundaries.sample[row], step, line[row], none, none, yes, yes, ("boundary",)))


def ego_heading(protocol: Protocol, path: np.ndarray) -> np.ndarray:
    """[N, T] heading of the ego's box on a path [N, T, 2] of forward and side, from forward to side [rad].

    ``none`` is never turned; ``step``: along each step of 1 m or more, else straight ahead; ``ends``: along the path
    over both neighbours (at the end, the one), straight ahead where the first and the last step are less than 0.5 m
    apart, and to the right where two neighbours are at the same place.
    """
    whole = np.concatenate([np.zeros_like(path[:, :1]), path], axis=1)
    if protocol.heading == "none":
        return np.zeros(path.shape[:2])
    if protocol.heading == "step":
        move = np.diff(whole, axis=1)
        return np.where(np.linalg.norm(move, axis=-1) < 1, 0, np.arctan2(move[..., 1], move[..., 0]))
    move = np.concatenate([whole[:, 2:], whole[:, -1:]], axis=1) - whole[:, :-1]
    yaw = np.where((move == 0).all(axis=-1), np.pi / 2, np.arctan2(move[..., 1], move[..., 0]))
    still = np.linalg.norm(path[:, -1] - path[:, 0], axis=-1) < 0.5
    return np.where(still[:, None], 0, yaw)


def _path(protocol: Protocol, path: np.ndarray, drives: Drives) -> np.ndarray:
    """[N, T, 3] poses in ego to forward, side and heading of the protocol."""
    if protocol.frame == "ego":
        place = path[..., :2]
    else:
        right, forward = np.moveaxis(to_lidar(path, drives.mount)[..., :2], -1, 0)
        place = np.stack([forward, right if protocol.frame == "lidar" else -right], axis=-1)
    return np.concatenate([place, ego_heading(protocol, place)[..., None]], axis=-1)


def _placed(protocol: Protocol, agents: Agents, drives: Drives) -> Agents:
    """Agents from ego to the protocol's forward, side and heading."""
    if protocol.frame != "lidar":
        return agents  # forward and left as they are; of the LiDAR's path too, which is the bug of ST-P3
    x, y, turn = drives.mount[agents.sample].T
    east, north = agents.box[:, 0] - x, agents.box[:, 1] - y
    right, forward = east * np.cos(turn) + north * np.sin(turn), north * np.cos(turn) - east * np.sin(turn)
    yaw = np.pi / 2 - (agents.box[:, 4] - turn)  # from forward to the right
    box = np.column_stack([forward, right, agents.box[:, 2:4], yaw])
    return Agents(
        agents.sample, agents.step, box, agents.track, agents.category, agents.visible, agents.seen, agents.names
    )


def _columns(name: str, value: np.ndarray, counts: np.ndarray, how: str) -> dict[str, float]:
    """Numbers at 1, 2 and 3 s and their mean: at the step, the mean until it, or any until it."""
    found = {}
    for horizon in HORIZONS:
        step = round(horizon / TIME_STEP)
        if step > value.shape[1]:
            found[f"{name}@{horizon}s"] = np.nan
            continue
        until = value[counts[:, step - 1], :step].astype(np.float64)
        at = {"at": until[:, -1:], "mean": until, "any": until.max(axis=1, initial=0, keepdims=True)}[how]
        found[f"{name}@{horizon}s"] = float(at.mean()) if len(at) else np.nan
    return found | {f"{name}@avg": float(np.mean(list(found.values())))}


def _boundary_columns(
    off: np.ndarray | None, human: np.ndarray | None, counts: np.ndarray, boundaries: Boundaries | None
) -> dict[str, float]:
    if boundaries is None or off is None or human is None:
        return _columns("boundary", np.zeros_like(counts), counts & False, "any")
    there = counts & boundaries.known[:, None]
    return _columns("boundary", off & ~human, there, "any") | _columns("boundary_raw", off, there, "any")


def _events(hit: np.ndarray, how: str) -> np.ndarray:
    """[N] hits of each sample until the last step: there, at how many steps, or whether at all."""
    return {"at": hit[:, -1], "mean": hit.sum(axis=1), "any": hit.any(axis=1)}[how]


def _last(counts: np.ndarray) -> np.ndarray:
    return counts[:, -1]
