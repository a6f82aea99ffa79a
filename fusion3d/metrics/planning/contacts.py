"""Whom a plan meets on its way, ten times a second, with exact rectangles.

Agents move straight between the keyframes they are annotated at, by the keyframes' real times, the ego between its
planned steps. Letters: N samples, T steps, I = 5 T instants (0.1 s ... 3.0 s), M boxes at instants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fusion3d.metrics.planning.drives import GAP, Agents, Drives, EgoBox
from fusion3d.metrics.planning.paths import SWEEP, sweep, wrap
from fusion3d.metrics.planning.protocols import CYCLES
from fusion3d.metrics.planning.rectangles import clearance, corners, depth, reach
from fusion3d.types import TIME_STEP

INSTANT = TIME_STEP / SWEEP  # [s]
GROUPS = ("vehicle", "vru", "static")  # vru: people and cycles; static: all that does not move by itself
FAR = 5.0  # [m] clearances are known up to here
EGO = EgoBox()
STOPPED = 0.05  # [m/s] slower is standing (nuPlan)
STANDING_EGO = 0.005  # [m/s] slower, and no time to collision is asked for (NAVSIM)
AHEAD, BEHIND = np.deg2rad(30), np.deg2rad(150)  # bearing from the rear axle
LOOK = (0, 3, 6, 9)  # instants: 0 to 0.9 s, that the time to collision looks ahead
_AT_ONCE = 384  # samples
_ROUNDING = 1e-6  # instants


@dataclass(frozen=True, eq=False)
class Contacts:
    """What a plan meets: N samples, I instants."""

    hit: np.ndarray  # [N, I, G] bool: overlaps an agent of each of GROUPS
    fault: np.ndarray  # [N, I] bool: an at-fault collision has happened by then
    no_collision: np.ndarray  # [N] 1; 0.5 at fault with what is static alone; 0 with one that moves by itself
    time_to_collision: np.ndarray  # [N] bool: never within 0.9 s of hitting one ahead at constant velocity
    clearance: np.ndarray  # [N, I] distance to the nearest agent [m], at most FAR; minus the depth of an overlap

    @property
    def any(self) -> np.ndarray:
        """[N, I] bool: overlaps anything."""
        return np.asarray(self.hit.any(axis=-1))


@dataclass(frozen=True, eq=False)
class Moving:
    """Agents at instants."""

    sample: np.ndarray  # [M]
    instant: np.ndarray  # [M] 0 is now; 5 to a step
    box: np.ndarray  # [M, 5]
    track: np.ndarray  # [M]
    group: np.ndarray  # [M] index in GROUPS
    speed: np.ndarray  # [M] m/s, NaN at the first instant of a row of annotations

    @cached_property
    def x(self) -> np.ndarray:
        """[M] of the centres, by itself in memory, as ``y`` and ``reach``: what all are sorted out by."""
        return np.ascontiguousarray(self.box[:, 0])

    @cached_property
    def y(self) -> np.ndarray:
        """[M] of the centres."""
        return np.ascontiguousarray(self.box[:, 1])

    @cached_property
    def reach(self) -> np.ndarray:
        """[M] from the centre to a corner."""
        return reach(self.box)

    def __getitem__(self, chosen: np.ndarray) -> Moving:
        columns = (self.sample, self.instant, self.box, self.track, self.group, self.speed)
        return Moving(*(column[chosen] for column in columns))


def meet(
    plans: Mapping[str, np.ndarray],
    drives: Drives,
    astray: Mapping[str, np.ndarray] | None = None,
    junction: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Contacts]:
    """Every planner's contacts.

    Args:
        plans: by name, [N, T, 3] in ego.
        drives: N samples.
        astray: by name, [N, I] bool where a corner of the ego is off the drivable area, or it is between two lanes:
            then it is at fault for sideways collisions too. None: not known, and it is not.
        junction: likewise, where the ego is in an intersection: then, as astray, those at its sides count in the time
            to collision.

    Returns:
        ``Contacts`` by name.
    """
    parts: dict[str, list[Contacts]] = {name: [] for name in plans}
    for rows, agents, time in _chunks(drives):
        moving = interpolate(agents, time)
        for name, plan in plans.items():
            on = (None if where is None else where[name][rows] for where in (astray, junction))
            parts[name].append(_meet(plan[rows], moving, *on))
    return {
        name: Contacts(*(np.concatenate([getattr(part, field) for part in of_plan]) for field in _FIELDS))
        for name, of_plan in parts.items()
    }


_FIELDS = ("hit", "fault", "no_collision", "time_to_collision", "clearance")


def interpolate(agents: Agents, time: np.ndarray) -> Moving:
    """Agents at keyframes to instants from now on: straight between two neighbouring keyframes at which one is
    annotated. The first and the last annotation of a row of them count until the instant that is nearest.

    Args:
        agents: K annotations.
        time: [K] seconds from now.
    """
    later = agents.step >= 0
    agents, clock = agents[later], time[later] / INSTANT
    order = np.lexsort((agents.step, agents.track, agents.sample))
    sample, step, track, clock = agents.sample[order], agents.step[order], agents.track[order], clock[order]
    box = agents.box[order]
    group = np.where(agents.named(("human.", *CYCLES)), 1, np.where(agents.named(("vehicle.",)), 0, 2))[order]
    joined = (sample[1:] == sample[:-1]) & (track[1:] == track[:-1]) & (step[1:] == step[:-1] + 1)
    joined &= np.diff(clock) * INSTANT <= GAP
    begins, ends = np.ones(len(step), dtype=bool), np.ones(len(step), dtype=bool)
    begins[1:], ends[:-1] = ~joined, ~joined
    one, nearest, alone = np.flatnonzero(joined), np.floor(clock + 0.5), np.flatnonzero(begins & ends)
    other, before = one + 1, np.floor(clock + _ROUNDING)
    first = np.where(begins, nearest, before + 1)[one].astype(np.int64)
    count = np.where(ends, nearest, before)[other].astype(np.int64) - first + 1
    of = np.repeat(np.arange(len(one)), count)  # a piece of way between two annotations, for each of its instants
    instant = first[of] + np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
    move, long = box[other] - box[one], clock[other] - clock[one]
    move[:, 4] = wrap(move[:, 4])
    speed = (np.linalg.norm(move[:, :2], axis=1) / (long * INSTANT))[of]
    speed[begins[one][of] & (instant == first[of])] = np.nan  # who turns up in the way is not known to stand
    between = box[one][of] + ((instant - clock[one][of]) / long[of])[:, None] * move[of]
    return Moving(
        np.concatenate([sample[one][of], sample[alone]]),
        np.concatenate([instant, nearest[alone].astype(np.int64)]),
        np.concatenate([between, box[alone]]),
        np.concatenate([track[one][of], track[alone]]),
        np.concatenate([group[one][of], group[alone]]),
        np.concatenate([speed, np.full(len(alone), np.nan)]),
    )


def speeds(poses: np.ndarray) -> np.ndarray:
    """[N, I] speed over the last tenth of a second of swept poses [N, I, 3] [m/s]."""
    return np.linalg.norm(np.diff(poses[..., :2], axis=1, prepend=np.zeros((len(poses), 1, 2))), axis=-1) / INSTANT


def bearing(pose: np.ndarray, place: np.ndarray) -> np.ndarray:
    """[M] angle, 0 to pi, between the heading of poses [M, 3] and the direction to places [M, 2]."""
    away = place - pose[:, :2]
    return np.abs(wrap(np.arctan2(away[:, 1], away[:, 0]) - pose[:, 2]))


def _chunks(drives: Drives) -> Iterator[tuple[np.ndarray, Agents, np.ndarray]]:
    """Rows of samples, their agents, counted from the first of them, and the agents' times."""
    for start in range(0, len(drives), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(drives)))
        low, high = np.searchsorted(drives.agents.sample, [rows[0], rows[-1] + 1])
        of = drives.agents[np.arange(low, high)]
        yield rows, replace(of, sample=of.sample - start), drives.agent_time[low:high]


def _meet(plan: np.ndarray, moving: Moving, astray: np.ndarray | None, junction: np.ndarray | None) -> Contacts:
    poses = sweep(plan)
    count, instants = poses.shape[:2]
    astray = np.zeros((count, instants), dtype=bool) if astray is None else astray
    wide = astray if junction is None else astray | junction
    ego, speed = EGO.along(poses), speeds(poses)
    ahead = [_at_velocity(poses, speed, look) for look in LOOK]
    begun = _overlap_now(moving)
    moving = _near(poses, ahead, moving)
    now = moving[moving.instant <= instants]
    own = (now.sample, now.instant - 1)
    gap = np.full((count, instants), FAR)
    away = clearance(ego[own], now.box)
    np.minimum.at(gap, own, away)
    touching = now[away < 0]
    hit = np.zeros((count, instants, len(GROUPS)), dtype=bool)
    hit[touching.sample, touching.instant - 1, touching.group] = True
    fault, no_collision = _faults(poses, speed, touching, astray, begun)
    return Contacts(hit, fault, no_collision, _time_to_collision(poses, speed, ahead, moving, wide, begun), gap)


def _at_velocity(poses: np.ndarray, speed: np.ndarray, look: int) -> np.ndarray:
    """[N, I, 5] the ego's rectangles ``look`` instants later, had it kept its speed and heading."""
    along = np.stack([np.cos(poses[..., 2]), np.sin(poses[..., 2]), np.zeros(poses.shape[:2])], axis=-1)
    return EGO.along(poses + along * (speed * look * INSTANT)[..., None])


def _near(poses: np.ndarray, ahead: list[np.ndarray], moving: Moving) -> Moving:
    """The agents after now that may be within ``FAR`` of the ego, or where it would have got at constant velocity."""
    count, instants = poses.shape[:2]
    ego = ahead[0][..., :2]
    last = instants + LOOK[-1]  # agents are looked for so long; where the ego is then is not planned
    place = np.concatenate([ego, np.repeat(ego[:, -1:], LOOK[-1], axis=1)], axis=1)
    drift = np.zeros((count, last))
    for look, box in zip(LOOK, ahead, strict=True):
        late = slice(look, look + instants)
        away = np.linalg.norm(box[..., :2] - place[:, late], axis=-1)
        drift[:, late] = np.maximum(drift[:, late], away)
    limit = np.maximum(drift, FAR) + np.hypot(EGO.length, EGO.width) / 2
    there = np.flatnonzero((moving.instant > 0) & (moving.instant <= last))
    own = moving.sample[there] * last + moving.instant[there] - 1
    x, y = place[..., 0].reshape(-1)[own], place[..., 1].reshape(-1)[own]
    away = (x - moving.x[there]) ** 2 + (y - moving.y[there]) ** 2
    return moving[there[away < (limit.reshape(-1)[own] + moving.reach[there]) ** 2]]


def _overlap_now(moving: Moving) -> np.ndarray:
    """Identities of those who overlap the ego as it stands now: whatever comes of them is not the plan's doing."""
    start = moving[moving.instant == 0]
    now = np.broadcast_to(EGO.along(np.zeros((1, 3))), (len(start.sample), 5))
    return _identity(start[depth(now, start.box) > 0])


def _identity(moving: Moving) -> np.ndarray:
    return moving.sample.astype(np.int64) * (1 << 32) + moving.track


def _first(moving: Moving, order: np.ndarray) -> np.ndarray:
    """Of each track the row that comes first by ``order``."""
    identity = _identity(moving)
    rows = np.lexsort((order, identity))
    return rows[np.flatnonzero(np.diff(identity[rows], prepend=-1))] if len(rows) else rows


def _faults(
    poses: np.ndarray, speed: np.ndarray, touching: Moving, astray: np.ndarray, begun: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[N, I] has an at-fault collision happened, and [N] the score for it, by the rules of nuPlan and NAVSIM.

    The first contact with each agent decides: at fault where the ego moves and the agent stands, or is not behind and
    touches the front bumper, or touches a side while the ego is astray: off the road, or between two lanes.
    """
    count, instants = poses.shape[:2]
    fault, score = np.zeros((count, instants), dtype=bool), np.ones(count)
    touching = touching[~np.isin(_identity(touching), begun)]
    first = touching[_first(touching, touching.instant)]
    own = (first.sample, first.instant - 1)
    pose, moves = poses[own], speed[own] > STOPPED
    stands = (first.group == GROUPS.index("static")) | (first.speed <= STOPPED)
    behind = bearing(pose, first.box[:, :2]) > BEHIND
    front = corners(EGO.along(pose))[:, :2]
    bumper = np.column_stack([front.mean(axis=1), np.full(len(pose), EGO.width), np.zeros(len(pose)), pose[:, 2]])
    bumper[:, 4] += np.pi / 2
    touched = depth(bumper, first.box) > 0
    guilty = moves & (stands | (~behind & (touched | astray[own])))
    at = first[guilty]
    fault[at.sample, at.instant - 1] = True
    np.minimum.at(score, at.sample, np.where(at.group == GROUPS.index("static"), 0.5, 0.0))
    return np.logical_or.accumulate(fault, axis=1), score


def _time_to_collision(
    poses: np.ndarray,
    speed: np.ndarray,
    ahead: list[np.ndarray],
    moving: Moving,
    wide: np.ndarray,
    begun: np.ndarray,
) -> np.ndarray:
    """[N] bool: is there never an agent ahead that the ego would hit within 0.9 s at its velocity and heading?

    Agents are where they really are then, as far as the annotations go. Where ``wide``, those at the sides count too.
    The first time that an agent is in the way decides about it.
    """
    rows, instants, orders = [], [], []
    for look, box in zip(LOOK, ahead, strict=True):
        own = moving.instant - 1 - look
        there = np.flatnonzero((own >= 0) & (own < poses.shape[1]))
        there = there[speed[moving.sample[there], own[there]] >= STANDING_EGO]
        met = there[depth(box[moving.sample[there], own[there]], moving.box[there]) > 0]
        rows, instants, orders = [*rows, met], [*instants, own[met]], [*orders, own[met] * 10 + look]
    row, own, order = (np.concatenate(parts) for parts in (rows, instants, orders))
    every = moving[row]
    keep = np.flatnonzero(~np.isin(_identity(every), begun))
    keep = keep[_first(every[keep], order[keep])]
    every, own = every[keep], own[keep]
    angle = bearing(poses[every.sample, own], every.box[:, :2])
    late = (angle < AHEAD) | (wide[every.sample, own] & (angle <= BEHIND))
    fine = np.ones(len(poses), dtype=bool)
    fine[every.sample[late]] = False
    return fine
