"""The protocol ``exact``: distances at the time and until it, and collisions of true rectangles ten times a second."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fusion3d.metrics.planning.consistency import jumps
from fusion3d.metrics.planning.contacts import EGO, GROUPS, Contacts
from fusion3d.metrics.planning.drives import GAP, LATE, Drives
from fusion3d.metrics.planning.paths import SWEEP, split_error, wrap
from fusion3d.metrics.planning.published import HORIZONS
from fusion3d.types import TIME_STEP

NAME = "exact"
ABOUT = {
    "L2": "L2@t at the time, L2mean@t the mean over the steps until it; longitudinal and lateral: mean size of the two "
    "parts, along and across the driven heading; heading: mean size of the difference",
    "collision": "overlap of oriented rectangles at any of ten instants a second until the time; agents and the ego "
    "move straight between keyframes and steps",
    "samples": "those whose driven path is known until the last time, one set for all times, and whose pose one "
    "keyframe earlier is, which the baselines need",
    "clock": "plans speak of 0.5, 1.0 ... s from now; keyframes are 0.4 to 0.6 s apart: where the human and the agents "
    f"are is interpolated between them by their real times, not over gaps of more than {GAP:g} s; after the last one "
    f"the human goes on for at most {LATE:g} s",
    "agents": "every annotation: vehicle, vru (people and cycles), static (all else)",
    "ego": f"{EGO} of the rear axle, turned as planned, or where no heading is planned along the path (below 0.5 m in "
    "two steps the heading before is kept; more than 90 degrees is driving backwards)",
    "masking": "collision: nothing; masked: without the instants at which the driven path overlaps too; at_fault: the "
    "first contact with each agent, where the ego moves and the agent stands, or the bumper hits one that is not "
    "behind, or a side while off the road or between two lanes, as far as a map knows them (nuPlan's rule)",
    "jump": "mean distance on the ground between what two successive plans say of the same times; the human's own "
    "is the instrument's floor",
}


def usable(drives: Drives, steps: int) -> np.ndarray:
    """[N] bool: samples that plans of so many steps are scored on: the driven path is known for all of them, and the
    keyframe before, which the baselines need.
    """
    return drives.past_known[:, 0] & np.asarray(drives.path_known[:, :steps].all(axis=1))


def errors(plan: np.ndarray, drives: Drives) -> np.ndarray:
    """[N, T] distance of the planned from the driven rear axle [m]; NaN where the future is unknown."""
    steps = plan.shape[1]
    away = np.linalg.norm(plan[..., :2] - drives.path[:, :steps, :2], axis=-1)
    return np.where(drives.path_known[:, :steps], away, np.nan)


def mean_error(plan: np.ndarray, drives: Drives) -> np.ndarray:
    """[N] mean of ``errors`` over the steps; NaN for samples that are not ``usable``."""
    return np.where(usable(drives, plan.shape[1]), errors(plan, drives).mean(axis=1), np.nan)


def score_exact(
    plans: Mapping[str, np.ndarray], contacts: Mapping[str, Contacts], drives: Drives
) -> dict[str, dict[str, float]]:
    """The numbers of every planner.

    Args:
        plans: by name, [N, T, 3] in ego; ``human`` is among them.
        contacts: of each.
        drives: N samples.

    Returns:
        By name, of ``N`` samples, the same at all times: at 1, 2 and 3 s ``L2``, ``L2mean``, ``longitudinal``,
        ``lateral`` [m], ``heading`` [rad], ``collision``, ``masked``, ``at_fault``, ``vehicle``, ``vru``, ``static``
        (shares of the samples), as ``L2@3s``; ``events`` and ``events_at_fault`` at the last time, ``num_masked`` of
        them, ``collision_high`` and ``at_fault_high``, the highest shares that they agree with (``highest_share``);
        ``clearance_p5``, the distance from the nearest agent that 95 % of samples keep [m], at most 5; ``ttc``, the
        share of samples within 0.9 s of a collision ahead; ``jump``, how far successive plans are apart [m], over
        ``pairs``. NaN where no sample counts or the plan is too short.
    """
    human = contacts["human"].any
    return {name: _row(plan, contacts[name], human, drives) for name, plan in plans.items()}


def _row(plan: np.ndarray, contacts: Contacts, human: np.ndarray, drives: Drives) -> dict[str, float]:
    steps = plan.shape[1]
    driven, chosen = drives.path[:, :steps], usable(drives, steps)
    error = np.linalg.norm(plan[..., :2] - driven[..., :2], axis=-1)
    along, across = split_error(plan, driven)
    until = np.cumsum(error, axis=1) / np.arange(1, steps + 1)
    turned = np.abs(wrap(plan[..., 2] - driven[..., 2]))
    hit = contacts.any
    at_steps = {
        "L2": error,
        "L2mean": until,
        "longitudinal": np.abs(along),
        "lateral": np.abs(across),
        "heading": turned,
        "collision": _until(hit),
        "masked": _until(hit & ~human),
        "at_fault": contacts.fault[:, SWEEP - 1 :: SWEEP],
        **{group: _until(contacts.hit[..., i]) for i, group in enumerate(GROUPS)},
    }
    row: dict[str, float] = {"N": float(chosen.sum())}
    for name, value in at_steps.items():
        for horizon in HORIZONS:
            step = round(horizon / TIME_STEP) - 1
            row[f"{name}@{horizon}s"] = _mean(value[chosen, step]) if step < steps else np.nan
    for name, counted in (("collision", "events"), ("at_fault", "events_at_fault")):
        row[counted] = float(at_steps[name][chosen, -1].sum())
        row[f"{name}_high"] = highest_share(row[counted], row["N"])
    row["num_masked"] = float((hit & human)[chosen].any(axis=1).sum())
    least = contacts.clearance[chosen].min(axis=1)
    row["clearance_p5"] = float(np.quantile(least, 0.05)) if len(least) else np.nan
    row["ttc"] = 1 - _mean(contacts.time_to_collision[chosen])
    first, apart = jumps(plan, drives)
    apart = apart[chosen[first]]
    row["jump"], row["pairs"] = _mean(apart), float(len(apart))
    return row


def highest_share(events: float, count: float) -> float:
    """The upper end of the 95 % interval of a share, as if samples were independent (Clopper and Pearson, 1934)."""
    from scipy.stats import beta  # slow to import

    return float(beta.ppf(0.975, events + 1, count - events)) if events < count else 1.0 if count else np.nan


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan


def _until(hit: np.ndarray) -> np.ndarray:
    """[N, I] hits at instants to [N, T]: any until the step?"""
    return np.logical_or.accumulate(hit, axis=1)[:, SWEEP - 1 :: SWEEP]
