"""Does a planner stand by what it said? Successive plans of one scene, compared on the ground.

N samples, M pairs of keyframes that follow each other, T steps.
"""

from __future__ import annotations

import numpy as np

from fusion3d.metrics.planning.drives import Drives

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
    """How far two successive plans are from each other at the keyframes that both speak of.

    The later plan is brought into the frame of the earlier one by the pose that was really driven to: what is compared
    are places on the ground. (BEV-Planner's released code has such a number, ``smoothness``, and does not report it.)

    Args:
        plan: [N, T, 3] in ego, T at least 1.
        drives: N samples.

    Returns:
        [M] rows of the earlier samples, [M, T - 1] distances [m] at their second step and on.
    """
    first, second = successive(drives)
    x, y, turn = (drives.future[first, :1, i] for i in range(3))
    later = plan[second, :-1]
    c, s = np.cos(turn), np.sin(turn)
    place = np.stack([x + c * later[..., 0] - s * later[..., 1], y + s * later[..., 0] + c * later[..., 1]], axis=-1)
    return first, np.linalg.norm(plan[first, 1:, :2] - place, axis=-1)
