"""A score in the manner of NAVSIM's PDM score, from log replay on nuScenes.

``NC DAC (5 TTC + 5 EP + 2 C) / 12`` of each sample, then averaged. NAVSIM and nuPlan (autonomousvision/navsim,
pdm_scorer.py of v1.1) define the parts; what nuScenes changes: 3 s instead of 4 s; the plan is driven as it is, without
a controller; the agents are the annotations, moved straight between keyframes; a car is in several lanes where the two
corners of a bumper are, so that to go on from one lane into the next is not, and never where the map has no lanes;
an intersection is a road segment that says so, and there is none where the map has no segments; progress is along the
driven path and relative to it, the human in place of PDM-Closed; comfort is of finite differences at 2 Hz. Without a
map there is no DAC: it is not a number, and the product is of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fusion3d.geometry.driving import BOUNDS, LEAST_PROGRESS, LONGITUDINAL
from fusion3d.metrics.planning.contacts import EGO, Contacts
from fusion3d.metrics.planning.drives import Drives, nominal_time
from fusion3d.metrics.planning.exact import usable
from fusion3d.metrics.planning.paths import sweep, wrap
from fusion3d.metrics.planning.rectangles import corners

PARTS = ("NC", "DAC", "TTC", "EP", "C")


@dataclass(frozen=True, eq=False)
class Ground:
    """Where a car may drive."""

    known: np.ndarray  # [N] bool: is there a map of the sample's place?
    drivable: Callable[[int, np.ndarray], np.ndarray]  # sample row and [M, 2] in its ego frame to [M] bool
    # The same to [M, K] bool: which of the K lanes around they are on; K is 0 where lanes are not known. None: nowhere.
    lanes: Callable[[int, np.ndarray], np.ndarray] | None = None
    # [N] bool: known from the mask alone, which has the sidewalks too in nuScenes: less is off it. None: nowhere.
    by_mask: np.ndarray | None = None
    # As drivable: are they in an intersection? False where that is not known. None: nowhere is it.
    junction: Callable[[int, np.ndarray], np.ndarray] | None = None


def off_road(plan: np.ndarray, ground: Ground) -> np.ndarray:
    """[N, I] bool: is a corner of the ego off the drivable area? False where there is no map.

    Args:
        plan: [N, T, 3] in ego.
        ground: the map.
    """
    places = corners(EGO.along(sweep(plan)))  # [N, I, 4, 2]
    off = np.zeros(places.shape[:2], dtype=bool)
    for row in np.flatnonzero(ground.known):
        on = ground.drivable(int(row), places[row].reshape(-1, 2))
        off[row] = ~on.reshape(-1, 4).all(axis=1)
    return off


def between_lanes(plan: np.ndarray, ground: Ground) -> np.ndarray:
    """[N, I] bool: are the two corners of a bumper on lanes, but on none together? False where no lanes are known.

    Args:
        plan: [N, T, 3] in ego.
        ground: the map.
    """
    places = corners(EGO.along(sweep(plan)))  # [N, I, 4, 2]: the front bumper's two, then the back one's
    between = np.zeros(places.shape[:2], dtype=bool)
    if ground.lanes is None:
        return between
    for row in np.flatnonzero(ground.known):
        on = ground.lanes(int(row), places[row].reshape(-1, 2))
        on = on.reshape(places.shape[1], 2, 2, on.shape[1])  # [I, bumper, side, K]
        between[row] = (on.any(axis=-1).all(axis=-1) & ~on.all(axis=2).any(axis=-1)).any(axis=-1)
    return between


def in_junction(plan: np.ndarray, ground: Ground) -> np.ndarray:
    """[N, I] bool: is the rear axle in an intersection? False where none are known.

    Args:
        plan: [N, T, 3] in ego.
        ground: the map.
    """
    places = sweep(plan)[..., :2]
    inside = np.zeros(places.shape[:2], dtype=bool)
    if ground.junction is None:
        return inside
    for row in np.flatnonzero(ground.known):
        inside[row] = ground.junction(int(row), places[row])
    return inside


def score_pdm(
    plans: Mapping[str, np.ndarray],
    contacts: Mapping[str, Contacts],
    off: Mapping[str, np.ndarray] | None,
    drives: Drives,
    ground: Ground | None,
) -> dict[str, dict[str, float]]:
    """Every planner's score and its parts, over the samples of ``exact`` with a whole known future.

    Args:
        plans: by name, [N, T, 3] in ego; ``human`` is among them.
        contacts: of each.
        off: ``off_road`` of each; None without a map.
        drives: N samples.
        ground: the map; None: there is none.

    Returns:
        By name: ``PDMS``, ``NC``, ``DAC`` (NaN where no sample has a map), ``TTC``, ``EP``, ``C``: means over samples,
        1 is best; ``N``, and of them ``num_with_map`` and ``num_by_mask``, where that is a mask.
    """
    steps = plans["human"].shape[1]
    chosen = usable(drives, steps)
    mapped = chosen & (ground.known if ground is not None else False)
    masked = mapped & (ground.by_mask if ground is not None and ground.by_mask is not None else False)
    human = gate(contacts["human"], None if off is None else off["human"])
    table = {}
    for name, plan in plans.items():
        parts = sample_parts(plan, contacts[name], None if off is None else off[name], drives, human)
        score = combine(parts)
        table[name] = {"PDMS": _mean(score[chosen])}
        table[name] |= {part: _mean(parts[part][mapped if part == "DAC" else chosen]) for part in PARTS}
        table[name] |= {"N": float(chosen.sum()), "num_with_map": float(mapped.sum())}
        table[name] |= {"num_by_mask": float(masked.sum())}
    return table


def about_ground(row: Mapping[str, float]) -> str:
    """Whence a planner's row of ``score_pdm`` knows the drivable area, in words."""
    count, mapped, masked = row["N"], row["num_with_map"], row["num_by_mask"]
    return (
        f"Drivable area of {count:.0f} samples: {mapped - masked:.0f} by polygons, {masked:.0f} by the mask alone (in "
        f"nuScenes with the sidewalks: less is off it), {count - mapped:.0f} unknown (no DAC, nor in the product)."
    )


def sample_parts(
    plan: np.ndarray, contacts: Contacts, off: np.ndarray | None, drives: Drives, human: np.ndarray
) -> dict[str, np.ndarray]:
    """[N] of each of ``PARTS``. ``human``: [N] the human's ``gate``."""
    return {
        "NC": contacts.no_collision,
        "DAC": np.ones(len(plan)) if off is None else 1.0 - np.asarray(off.any(axis=1)),
        "TTC": contacts.time_to_collision.astype(np.float64),
        "EP": progress(plan, drives.path[:, : plan.shape[1]], gate(contacts, off), human),
        "C": comfortable(plan, drives).astype(np.float64),
    }


def gate(contacts: Contacts, off: np.ndarray | None) -> np.ndarray:
    """[N] ``NC DAC``: what the score, and before that the progress, is multiplied by."""
    return contacts.no_collision * (1.0 if off is None else ~off.any(axis=1))


def combine(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """[N] the score of each sample."""
    return parts["NC"] * parts["DAC"] * (5 * parts["TTC"] + 5 * parts["EP"] + 2 * parts["C"]) / 12


def progress(
    plan: np.ndarray, driven: np.ndarray, own: np.ndarray | float = 1.0, human: np.ndarray | float = 1.0
) -> np.ndarray:
    """[N] how far the plan gets along the driven path, relative to the larger of that and the human's own way.

    Both ways are first multiplied by their ``gate``. Where they are then ``LEAST_PROGRESS`` or less, it is 1, or 0
    where the plan's gate is.

    Args:
        plan, driven: [N, T, 3].
        own, human: [N] the gates of the plan and of the human.
    """
    path = np.concatenate([np.zeros_like(driven[:, :1, :2]), driven[..., :2]], axis=1)
    move = np.diff(path, axis=1)
    length = np.linalg.norm(move, axis=-1)
    begin = np.cumsum(length, axis=1) - length
    end = plan[:, -1, None, :2]
    unit = move / np.maximum(length, 1e-9)[..., None]
    along = ((end - path[:, :-1]) * unit).sum(axis=-1)
    # The last piece that the human really drove goes on for ever: a plan may get farther than the human.
    last = np.where(length > 1e-6, np.arange(length.shape[1]), -1).max(axis=1)
    limit = np.where(np.arange(length.shape[1]) == last[:, None], np.inf, length)
    on = np.clip(along, 0, limit)
    away = np.linalg.norm(path[:, :-1] + on[..., None] * unit - end, axis=-1)
    nearest = np.where(length > 1e-6, away, np.inf).argmin(axis=1)
    rows = np.arange(len(plan))
    forward = np.cos(driven[:, -1, 2]), np.sin(driven[:, -1, 2])  # where the human stood, its heading is the way
    still = np.maximum(plan[:, -1, 0] * forward[0] + plan[:, -1, 1] * forward[1], 0)
    got = own * np.where(last < 0, still, (begin + on)[rows, nearest])
    most = np.maximum(got, human * length.sum(axis=1))
    return np.where(most > LEAST_PROGRESS, got / np.maximum(most, 1e-9), np.where(np.asarray(own) > 0, 1.0, 0.0))


def comfortable(plan: np.ndarray, drives: Drives) -> np.ndarray:
    """[N] bool: do accelerations, jerks and turning stay within the bounds?

    Velocities are differences of positions, from the keyframe before now on; accelerations lie between two of them.

    Args:
        plan: [N, T, 3] in ego.
        drives: N samples, of which the last keyframe is taken, by its real time.
    """
    there = drives.past_known[:, :1]
    before = np.where(there[..., None], drives.past[:, :1], 0.0)
    ago = np.where(there, drives.past_time[:, :1], 0.5)
    poses = np.concatenate([before, np.zeros_like(before), plan], axis=1)
    time = np.broadcast_to(nominal_time(plan.shape[1]), plan.shape[:2])
    stamp = np.concatenate([-ago, np.zeros_like(ago), time], axis=1)
    step = np.diff(stamp, axis=1)
    velocity, middle = np.diff(poses[..., :2], axis=1) / step[..., None], (stamp[:, 1:] + stamp[:, :-1]) / 2
    rate = wrap(np.diff(poses[..., 2], axis=1)) / step
    between = np.diff(middle, axis=1)
    yaw = poses[:, 1:-1, 2]
    acceleration = np.diff(velocity, axis=1) / between[..., None]
    c, s = np.cos(yaw), np.sin(yaw)
    along = acceleration[..., 0] * c + acceleration[..., 1] * s
    across = acceleration[..., 1] * c - acceleration[..., 0] * s
    later = np.diff(stamp[:, 1:-1], axis=1)
    jerk = np.linalg.norm(np.diff(acceleration, axis=1) / later[..., None], axis=-1)
    sizes = {
        "lateral": np.abs(across),
        "jerk": jerk,
        "longitudinal_jerk": np.abs(np.diff(along, axis=1) / later),
        "yaw_rate": np.abs(rate),
        "yaw_acceleration": np.abs(np.diff(rate, axis=1) / between),
    }
    fine = np.asarray(((along > LONGITUDINAL[0]) & (along < LONGITUDINAL[1])).all(axis=1))
    for name, size in sizes.items():
        fine &= (size < BOUNDS[name]).all(axis=1)
    return fine


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
