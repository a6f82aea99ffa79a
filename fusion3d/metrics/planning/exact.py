"""The protocol ``exact``: distances at the time and until it, and collisions of true rectangles ten times a second."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fusion3d.metrics.planning.consistency import jumps
from fusion3d.metrics.planning.contacts import EGO, GROUPS, Contacts
from fusion3d.metrics.planning.drives import Drives
from fusion3d.metrics.planning.paths import SWEEP, split_error, wrap
from fusion3d.metrics.planning.published import HORIZONS
from fusion3d.types import TIME_STEP

NAME = "exact"
ABOUT = {
    "L2": "L2@t at the time, L2mean@t the mean over the steps until it; longitudinal and lateral: mean size of the two "
    "parts, along and across the driven heading; heading: mean size of the difference",
    "collision": "overlap of oriented rectangles at any of ten instants a second until the time; agents and the ego "
    "move straight between keyframes",
    "samples": "those whose future is known until the time, and whose pose one keyframe earlier is, which the "
    "baselines need",
    "agents": "every annotation: vehicle, vru (people and cycles), static (all else)",
    "ego": f"{EGO} of the rear axle, turned as planned, or where no heading is planned along the path (below 0.5 m in "
    "two steps the heading before is kept; more than 90 degrees is driving backwards)",
    "masking": "collision: nothing; masked: without the instants at which the driven path overlaps too; at_fault: the "
    "first contact with each agent, where the ego moves and the agent stands, or the bumper hits one that is not "
    "behind, or a side while off the road or between two lanes, as far as a map knows them (nuPlan's rule)",
    "jump": "mean distance on the ground between what two successive plans say of the same keyframes; the human's own "
    "is the instrument's floor",
}


def usable(drives: Drives) -> np.ndarray:
    """[N] bool: samples that can be scored: the baselines need the keyframe before."""
    return drives.past_known[:, 0]


def errors(plan: np.ndarray, drives: Drives) -> np.ndarray:
    """[N, T] distance of the planned from the driven rear axle [m]; NaN where the future is unknown."""
    steps = plan.shape[1]
    away = np.linalg.norm(plan[..., :2] - drives.future[:, :steps, :2], axis=-1)
    return np.where(drives.known[:, :steps], away, np.nan)


def mean_error(plan: np.ndarray, drives: Drives) -> np.ndarray:
    """[N] mean of ``errors`` over the steps; NaN for samples that are not ``usable`` or whose future ends early."""
    away = errors(plan, drives)
    return np.where(usable(drives), away.mean(axis=1), np.nan)


def score_exact(
    plans: Mapping[str, np.ndarray], contacts: Mapping[str, Contacts], drives: Drives
) -> dict[str, dict[str, float]]:
    """The numbers of every planner.

    Args:
        plans: by name, [N, T, 3] in ego; ``human`` is among them.
        contacts: of each.
        drives: N samples.

    Returns:
        By name: ``N`` samples at the last time; at 1, 2 and 3 s ``L2``, ``L2mean``, ``longitudinal``, ``lateral`` [m],
        ``heading`` [rad], ``collision``, ``masked``, ``at_fault``, ``vehicle``, ``vru``, ``static`` (shares of the
        samples), as ``L2@3s``; ``events`` and ``events_at_fault`` at the last time, ``num_masked`` of them,
        ``collision_high`` and ``at_fault_high``, the highest shares that they agree with (``highest_share``);
        ``clearance_p5``, the distance from the nearest agent that 95 % of samples keep [m], at most 5; ``ttc``, the
        share of samples within 0.9 s of a collision ahead; ``jump``, how far successive plans are apart [m], over
        ``pairs``. NaN where no sample counts or the plan is too short.
    """
    human = contacts["human"].any
    return {name: _row(plan, contacts[name], human, drives) for name, plan in plans.items()}


def _row(plan: np.ndarray, contacts: Contacts, human: np.ndarray, drives: Drives) -> dict[str, float]:
    steps = plan.shape[1]
    driven, known = drives.future[:, :steps], drives.known[:, :steps]
    whole = np.logical_and.accumulate(known, axis=1) & usable(drives)[:, None]
    error = np.where(known, np.linalg.norm(plan[..., :2] - driven[..., :2], axis=-1), 0)
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
    last = whole[:, -1]
    row: dict[str, float] = {"N": float(last.sum())}
    for name, value in at_steps.items():
        for horizon in HORIZONS:
            step = round(horizon / TIME_STEP) - 1
            chosen = value[whole[:, step], step] if step < steps else value[:0, 0]
            row[f"{name}@{horizon}s"] = float(chosen.mean()) if len(chosen) else np.nan
    for name, counted in (("collision", "events"), ("at_fault", "events_at_fault")):
        row[counted] = float(at_steps[name][last, -1].sum())
        row[f"{name}_high"] = highest_share(row[counted], row["N"])
    row["num_masked"] = float((hit & human)[last].any(axis=1).sum())
    least = contacts.clearance[last].min(axis=1)
    row["clearance_p5"] = float(np.quantile(least, 0.05)) if len(least) else np.nan
    row["ttc"] = float(1 - contacts.time_to_collision[last].mean()) if last.any() else np.nan
    first, apart = jumps(plan, drives)
    apart = apart[last[first]]
    row["jump"], row["pairs"] = float(apart.mean()) if apart.size else np.nan, float(len(apart))
    return row


def highest_share(events: float, count: float) -> float:
    """The upper end of the 95 % interval of a share, as if samples were independent (Clopper and Pearson, 1934)."""
    from scipy.stats import beta  # slow to import

    return float(beta.ppf(0.975, events + 1, count - events)) if events < count else 1.0 if count else np.nan


def _until(hit: np.ndarray) -> np.ndarray:
    """[N, I] hits at instants to [N, T]: any until the step?"""
    return np.logical_or.accumulate(hit, axis=1)[:, SWEEP - 1 :: SWEEP]
