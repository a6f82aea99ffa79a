"""Does a planner stand by what it said? Successive plans of one scene, compared on the ground.

N samples, M pairs of keyframes that follow each other, T steps.
"""

from __future__ import annotations

import numpy as np

from fusion3d.metrics.planning.drives import Drives, nominal_time
from fusion3d.metrics.planning.paths import at_times
from fusion3d.types import TIME_STEP

_SAME_TIME = 1e-3  # [s]


def successive(drives: Drives) -> tuple[np.ndarray, np.ndarray]:
    """[M] rows of samples and [M] those of the keyframes right after them, where both are there."""
    _, scene = np.unique(np.asarray(drives.scenes), return_inverse=True)
    order = np.lexsort((drives.time, scene))
    first, second = order[:-1], order[1:]
    apart = drives.time[second] - drives.time[first]
    follows = (scene[first] == scene[second]) & drives.known[first, 0]
    follows &= np.abs(apart - drives.future_time[first, 0]) < _SAME_TIME
    return first[follows], second[follows]


def jumps(plan: np.ndarray, drives: Drives) -> tuple[np.ndarray, np.ndarray]:
    """How far two successive plans are from each other at the times that the later one speaks of.

    The later plan is brought into the frame of the earlier one by the pose that was really driven to: what is compared
    are places on the ground. The earlier one is straight between its steps, and goes on after the last where the
    keyframes are more than half a second apart. (BEV-Planner's released code has such a number, ``smoothness``, and
    does not report it.)

    Args:
        plan: [N, T, 3] in ego, T at least 1.
        drives: N samples.

    Returns:
        [M] rows of the earlier samples, [M, T - 1] distances [m] at the steps of the later ones but the last, for
        those of ``successive`` of which the driven path is known so far.
    """
    first, second = successive(drives)
    steps = plan.shape[1]
    there = drives.path_known[second, : steps - 1].all(axis=1)
    first, second = first[there], second[there]
    x, y, turn = (drives.future[first, :1, i] for i in range(3))
    later = plan[second, :-1]
    c, s = np.cos(turn), np.sin(turn)
    place = np.stack([x + c * later[..., 0] - s * later[..., 1], y + s * later[..., 0] + c * later[..., 1]], axis=-1)
    earlier = np.concatenate([np.zeros((len(first), 1, 3)), plan[first]], axis=1)
    time = np.broadcast_to(nominal_time(steps + 1) - TIME_STEP, earlier.shape[:2])
    then = drives.future_time[first, :1] + nominal_time(steps - 1)
    earlier = at_times(earlier, time, np.full(len(first), steps + 1), then)
    return first, np.linalg.norm(earlier[..., :2] - place, axis=-1)
