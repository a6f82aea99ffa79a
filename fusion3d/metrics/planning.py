"""Open-loop planning under one exact protocol: distance to the driven path, and overlap with annotated boxes.

Arrays in, numbers out. N samples, T steps of 0.5 s, everything in each sample's ego frame of now (x forward,
y left, [m]). The protocol is stated once, in ``PROTOCOL``, and travels with the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusion3d.types import EGO_CENTER, EGO_SIZE, TIME_STEP

SURE_MOTION = 0.5  # [m] displacement over two steps below which it says nothing about the heading
HORIZONS = (1, 2, 3)  # [s]

PROTOCOL = (
    "L2@t: distance [m] between the planned and the driven rear axle at t, i.e. at the keyframe 2t ahead (not "
    "averaged over 0..t), mean over the samples whose driven path is known at t. collision@t: fraction of the "
    "samples whose driven path is "
    f"known up to t where the ego's box ({EGO_SIZE[0]} x {EGO_SIZE[1]} m, centred {EGO_CENTER} m ahead of the "
    "rear axle) overlaps, exactly as oriented rectangles, any annotated vehicle, cycle or pedestrian at any "
    "future keyframe up to t; annotations are taken at that keyframe, whatever their points or visibility; "
    "nothing is masked where the driven path itself overlaps: its rate is the row 'driven'. The heading at a "
    "step is the direction of the path over its two neighbouring steps (one at the end); below "
    f"{SURE_MOTION} m of displacement the heading before is kept, and a change of more than 90 degrees is "
    "driving backwards. All rows are over the same samples: those whose pose one keyframe earlier is known, "
    "which the constant-velocity baseline needs. The model's command (left, right, straight) is the side on "
    "which the driven path ends, as in the systems it is compared with."
)


def path_heading(position: np.ndarray) -> np.ndarray:
    """Heading of the ego along a path that starts at the origin, heading along x.

    Central difference over the neighbouring steps (backward difference at the last); a displacement under
    ``SURE_MOTION`` keeps the heading before it; one that points more than 90 degrees away is driven
    backwards.

    Args:
        position: [N, T, 2] rear axle.

    Returns:
        [N, T] float64 [rad].
    """
    path = np.concatenate([np.zeros_like(position[:, :1]), position], axis=1).astype(np.float64)
    following = np.concatenate([path[:, 2:], path[:, -1:]], axis=1)
    heading = np.zeros(position.shape[:2])
    now = np.zeros(len(position))
    for step in range(position.shape[1]):
        move = following[:, step] - path[:, step]
        along = move[:, 0] * np.cos(now) + move[:, 1] * np.sin(now)
        move = np.where(along[:, None] < 0, -move, move)
        now = np.where(np.linalg.norm(move, axis=-1) < SURE_MOTION, now, np.arctan2(move[:, 1], move[:, 0]))
        heading[:, step] = now
    return heading


def ego_boxes(position: np.ndarray) -> np.ndarray:
    """[N, T, 2] path of the rear axle to [N, T, 5] rectangles (x, y, length, width, yaw) of the car."""
    yaw = path_heading(position)
    center = position + EGO_CENTER * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
    size = np.broadcast_to(EGO_SIZE[:2], center.shape)
    return np.concatenate([center, size, yaw[..., None]], axis=-1)


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Do pairs of rectangles overlap? By the separating-axis theorem; touching is not overlapping.

    Args:
        first, second: [..., 5] x, y, length, width, yaw; they broadcast.

    Returns:
        [...] bool.
    """
    offset = second[..., :2] - first[..., :2]
    apart = np.zeros(offset.shape[:-1], dtype=bool)
    for yaw in (first[..., 4], first[..., 4] + np.pi / 2, second[..., 4], second[..., 4] + np.pi / 2):
        distance = np.abs(offset[..., 0] * np.cos(yaw) + offset[..., 1] * np.sin(yaw))
        apart |= distance >= _half_extent(first, yaw) + _half_extent(second, yaw)
    return ~apart


def _half_extent(box: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Half the length of a rectangle's shadow on the direction ``yaw``."""
    turn = yaw - box[..., 4]
    return (box[..., 2] * np.abs(np.cos(turn)) + box[..., 3] * np.abs(np.sin(turn))) / 2


def collides(position: np.ndarray, obstacles: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """At which steps does the ego overlap an obstacle?

    Args:
        position: [N, T, 2] path of the rear axle.
        obstacles: for each sample and step, [K, 5] rectangles (x, y, length, width, yaw).

    Returns:
        [N, T] bool.
    """
    ego = ego_boxes(position)
    hit = np.zeros(position.shape[:2], dtype=bool)
    for n, of_sample in enumerate(obstacles):
        for t, boxes in enumerate(of_sample):
            hit[n, t] = len(boxes) > 0 and overlap(ego[n, t], np.asarray(boxes, dtype=np.float64)).any()
    return hit


def constant_velocity(past: np.ndarray, num_steps: int) -> np.ndarray:
    """Go on as in the last half second: [N, P, 2] past positions (the first: TIME_STEP ago) to [N, T, 2]."""
    steps = np.arange(1, num_steps + 1)[:, None]
    return -past[:, :1].astype(np.float64) * steps


def score_plan(
    plan: np.ndarray, future: np.ndarray, known: np.ndarray, obstacles: Sequence[Sequence[np.ndarray]]
) -> dict[str, float]:
    """L2 and collision of one planner at 1, 2 and 3 s, as in ``PROTOCOL``.

    Args:
        plan: [N, T, 2] planned rear axle.
        future: [N, T, 2] driven rear axle.
        known: [N, T] bool, where ``future`` is known.
        obstacles: for each sample and step, [K, 5] rectangles.

    Returns:
        ``L2@1s`` ..., ``collision@1s`` ...; NaN where no sample counts or the plan is too short.

    Raises:
        ValueError: the plan has another shape than the future, or a position is not finite.
    """
    if plan.shape != future.shape or not np.isfinite(plan).all():
        raise ValueError(
            f"a plan of shape {plan.shape} with {np.count_nonzero(~np.isfinite(plan))} numbers that are not "
            f"finite; "
            f"expected {future.shape}, finite metres: look at the planning head's output"
        )
    error = np.linalg.norm(plan.astype(np.float64) - future, axis=-1)
    hit = np.logical_or.accumulate(collides(plan, obstacles), axis=1)
    all_known = np.logical_and.accumulate(known, axis=1)
    scores = {}
    for name, value, counts in (("L2", error, known), ("collision", hit, all_known)):
        for horizon in HORIZONS:
            step = round(horizon / TIME_STEP) - 1
            chosen = value[counts[:, step], step] if step < value.shape[1] else value[:0, 0]
            scores[f"{name}@{horizon}s"] = float(chosen.mean()) if len(chosen) else float("nan")
    return scores


def score_planners(
    plans: dict[str, np.ndarray],
    past: np.ndarray,
    past_known: np.ndarray,
    future: np.ndarray,
    future_known: np.ndarray,
    obstacles: Sequence[Sequence[np.ndarray]],
) -> dict[str, dict[str, float]]:
    """Several planners beside the baselines, all over the same samples.

    Args:
        plans: by name, [N, T, 2].
        past, past_known: [N, P, 2] and [N, P], from TIME_STEP ago backwards.
        future, future_known: [N, T, 2] and [N, T].
        obstacles: for each sample and step, [K, 5] rectangles.

    Returns:
        By name, the numbers of ``score_plan``; also for ``constant_velocity``, ``stationary`` and ``driven``.
    """
    use = past_known[:, 0]
    rows = [of_sample for of_sample, used in zip(obstacles, use, strict=True) if used]
    future, known = future[use].astype(np.float64), future_known[use]
    future = np.where(known[..., None], future, 0.0)
    candidates = {name: plan[use] for name, plan in plans.items()} | {
        "constant_velocity": constant_velocity(past[use], future.shape[1]),
        "stationary": np.zeros_like(future),
        "driven": future,
    }
    return {name: score_plan(plan, future, known, rows) for name, plan in candidates.items()}
