"""A planner that chooses among paths: how good the best of its likeliest are, and whether it knows how sure it may be.

N samples, K paths, T steps. The devkit's definitions of prediction (nuscenes/eval/prediction/metrics.py), for the ego.
"""

from __future__ import annotations

import numpy as np

from fusion3d.metrics.calibration import reliability
from fusion3d.metrics.planning.contacts import meet
from fusion3d.metrics.planning.drives import Drives

BEST_OF = (1, 5, 10)
MISS = 2.0  # [m] a path that is ever so far away has missed


def score_modes(
    path: np.ndarray, imitation: np.ndarray, collision: np.ndarray, chosen: np.ndarray, drives: Drives
) -> dict[str, float]:
    """Numbers of a planner's modes, over the samples whose driven path is known for all its steps.

    Args:
        path: [N, K, T, 3] in ego; no more steps than the future.
        imitation: [N, K] probability that the human drives so.
        collision: [N, K] probability of a collision that is foreseen.
        chosen: [N] the path that is driven.
        drives: N samples.

    Returns:
        ``N`` and ``K``; for each k of ``BEST_OF`` that is not above K ``minADE_k``, ``minFDE_k`` [m] and ``miss_k`` of
        the k likeliest paths; ``spread``, the mean distance of the ends of two paths drawn by their probability [m];
        ``imitation_ECE``, of the likeliest path being the nearest, and ``collision_ECE``, of the chosen one overlapping
        anything (as ``exact`` has it). NaN where no sample counts.
    """
    steps, (_, modes) = path.shape[2], imitation.shape
    whole = np.flatnonzero(drives.path_known[:, :steps].all(axis=1))
    rows = np.arange(len(whole))
    path, imitation, collision, chosen = path[whole], imitation[whole], collision[whole], chosen[whole]
    away = np.linalg.norm(path[..., :2] - drives.path[whole, None, :steps, :2], axis=-1)
    order = np.argsort(-imitation, axis=1, kind="stable")
    ranked = np.take_along_axis(away, order[..., None], axis=1)
    found: dict[str, float] = {"N": float(len(whole)), "K": float(modes)}
    for count in (count for count in BEST_OF if count <= modes):
        best = ranked[:, :count]
        found[f"minADE_{count}"] = _mean(best.mean(axis=2).min(axis=1))
        found[f"minFDE_{count}"] = _mean(best[..., -1].min(axis=1))
        found[f"miss_{count}"] = _mean((best.max(axis=2) >= MISS).all(axis=1))
    ends = path[:, :, -1, :2]
    spread = np.zeros(len(whole))
    for k in range(modes):  # not all pairs at once: of hundreds of paths they fill the memory
        apart = np.linalg.norm(ends - ends[:, k, None], axis=-1)
        spread += imitation[:, k] * (imitation * apart).sum(axis=1)
    found["spread"] = _mean(spread)
    likeliest, nearest = order[:, 0], away.mean(axis=2).argmin(axis=1)
    found["imitation_ECE"] = reliability(imitation[rows, likeliest], np.equal(likeliest, nearest))["ECE"]
    hit = np.zeros(0, dtype=bool)
    if len(whole):
        hit = np.asarray(meet({"chosen": path[rows, chosen]}, drives[whole])["chosen"].any.any(axis=1))
    found["collision_ECE"] = reliability(collision[rows, chosen], hit)["ECE"]
    return found


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
