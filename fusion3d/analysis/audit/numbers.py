"""How far plans move under changes, and what that does to their errors: with intervals, by speed.

N samples of S scenes, M of them that a change concerns, T steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fusion3d.analysis.audit.run import Audited, Reaction
from fusion3d.metrics.bootstrap import ratio
from fusion3d.metrics.planning import Drives
from fusion3d.metrics.planning.published import HORIZONS
from fusion3d.metrics.planning.slices import slices
from fusion3d.types import TIME_STEP


def horizons(steps: int) -> dict[str, int]:
    """The steps at which numbers are given, by name; the last one of a plan that is too short for any other."""
    whole = {f"{seconds}s": round(seconds / TIME_STEP) - 1 for seconds in HORIZONS}
    return {name: step for name, step in whole.items() if step < steps} or {f"{TIME_STEP * steps:g}s": steps - 1}


def moved(audited: Audited, reaction: Reaction) -> np.ndarray:
    """[M, T] how far the plans are from the unchanged ones [m]."""
    plans = np.array(reaction.plans).reshape(-1, *audited.plan.shape[1:])
    return np.linalg.norm(plans - audited.plan[reaction.rows], axis=-1)


def measure(audited: Audited, drives: Drives) -> list[dict[str, Any]]:
    """The numbers of every change that concerns a sample, in the order in which they are tried.

    Args:
        audited: plans of N samples.
        drives: the same samples.

    Returns:
        ``group`` and ``name``; ``refused``: why there is no plan, and then nothing else; ``N`` samples and ``scenes``
        that it concerns; ``different``: plans that are not the same to the bit; ``most``: the farthest that any plan
        moves at any step [m]; ``moved`` and ``L2``, by time: ``mean`` [m] with ``low`` and ``high`` (95 %, scenes drawn
        again; None where they are too few) of how far the plan moves, and of how much farther from the driven path it
        is, that over ``N``; ``speeds``: the mean of ``moved`` at the last time by speed, None for no sample.
    """
    steps = audited.plan.shape[1]
    at = horizons(steps)
    driven, known = drives.path[:, :steps, :2], drives.path_known[:, :steps]
    before = np.linalg.norm(audited.plan[:, : driven.shape[1]] - driven, axis=-1)
    speeds = slices(drives)["speed"]
    table = []
    for reaction in audited.reactions.values():
        row: dict[str, Any] = {"group": reaction.group, "name": reaction.name, "refused": reaction.refused}
        if reaction.refused is not None:
            table.append(row)
            continue
        if not reaction.rows:
            continue
        rows, away = np.array(reaction.rows), moved(audited, reaction)
        scenes = np.array([audited.scenes[number] for number in rows])
        after = np.linalg.norm(np.array(reaction.plans)[:, : driven.shape[1]] - driven[rows], axis=-1)
        gain, told = after - before[rows], known[rows]
        last = list(at.values())[-1]
        row |= {"N": len(rows), "scenes": len(np.unique(scenes)), "different": int(np.sum(reaction.different))}
        row["most"] = float(away.max())
        row["moved"] = {name: _mean(away[:, step], scenes) for name, step in at.items()}
        row["L2"] = {
            name: _mean(gain[told[:, step], step], scenes[told[:, step]])
            for name, step in at.items()
            if step < told.shape[1]
        }
        row["speeds"] = {
            name: float(away[mask[rows], last].mean()) if mask[rows].any() else None for name, mask in speeds.items()
        }
        table.append(row)
    return table


def _mean(values: np.ndarray, scenes: np.ndarray) -> dict[str, Any]:
    mean, between, _ = ratio(values, np.ones(len(values)), scenes.tolist())
    low, high = between or (None, None)
    return {"mean": mean if len(values) else None, "low": low, "high": high, "N": len(values)}


def more(audited: Audited, first: str, second: str) -> tuple[float, bool]:
    """How much farther plans move at the last time under one change than under another [m], of the samples that both
    concern, and whether that is more than chance.
    """
    one, two = audited.reactions[first], audited.reactions[second]
    both, at_one, at_two = np.intersect1d(one.rows, two.rows, return_indices=True)
    step = list(horizons(audited.plan.shape[1]).values())[-1]
    difference = moved(audited, one)[at_one, step] - moved(audited, two)[at_two, step]
    mean, _, sure = ratio(difference, np.ones(len(both)), [audited.scenes[number] for number in both])
    return mean, sure
