"""Where a planner is better than going on as before: skill by manoeuvre, speed, light, weather, and who is near."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusion3d.metrics.bootstrap import ratio
from fusion3d.metrics.planning.drives import Drives
from fusion3d.metrics.planning.exact import mean_error
from fusion3d.metrics.planning.paths import wrap
from fusion3d.types import EGO_CENTER

MANOEUVRES = ("stop", "start", "stand", "left", "right", "curve", "accelerate", "brake", "straight")
STILL = 0.5  # [m/s] slower is standing
GOING = 1.0  # [m/s] at least so fast before a stop, or after a start
TURN = np.deg2rad(20)  # of the heading over the whole future: a turn
BEND = np.deg2rad(5)  # a curve
CHANGE = 2.0  # [m/s] over the whole future: accelerating or braking
SPEEDS = (3.0, 8.0)  # [m/s]
NEAR = 10.0  # [m] between the middles of the cars
NOT_SURE = "not distinguishable"
BASELINE, HUMAN = "ctrv", "human"


def manoeuvres(drives: Drives) -> np.ndarray:
    """[N] the name of what the human does in the known future, one of ``MANOEUVRES`` each; ``""`` where no speed now
    or no future is known.

    The first that fits: stand, stop and start by speed; left, right and curve by the change of heading; accelerate and
    brake by the change of speed; straight is the rest.
    """
    count = drives.known.sum(axis=1)
    there = drives.past_known[:, 0] & (count > 0)
    rows, last = np.arange(len(drives)), np.maximum(count - 1, 0)
    path = np.concatenate([np.zeros_like(drives.future[:, :1]), drives.future], axis=1)
    time = np.concatenate([np.zeros_like(drives.future_time[:, :1]), drives.future_time], axis=1)
    step = np.linalg.norm(path[rows, last + 1, :2] - path[rows, last, :2], axis=1)
    end = step / np.maximum(time[rows, last + 1] - time[rows, last], 1e-3)
    now = np.linalg.norm(np.nan_to_num(drives.velocity), axis=1)
    turned = wrap(path[rows, last + 1, 2])
    tests = (
        ("", ~there),
        ("stand", (now < STILL) & (end < STILL)),
        ("stop", (now >= GOING) & (end < STILL)),
        ("start", (now < STILL) & (end >= GOING)),
        ("left", turned > TURN),
        ("right", turned < -TURN),
        ("curve", np.abs(turned) > BEND),
        ("accelerate", end - now > CHANGE),
        ("brake", end - now < -CHANGE),
    )
    return np.select([test for _, test in tests], [name for name, _ in tests], "straight")


def slices(drives: Drives) -> dict[str, dict[str, np.ndarray]]:
    """Masks [N] by name, by what they divide: manoeuvre, speed, agents, and what is said of the scenes, where it does
    not say of each something else.
    """
    what = manoeuvres(drives)
    now = np.linalg.norm(np.nan_to_num(drives.velocity), axis=1)
    low, high = SPEEDS
    agents = drives.agents
    close = (agents.step == 0) & (np.linalg.norm(agents.box[:, :2] - (EGO_CENTER, 0), axis=1) < NEAR)
    near = np.bincount(agents.sample[close], minlength=len(drives)) > 0
    found = {
        "manoeuvre": {name: what == name for name in MANOEUVRES},
        "speed": {
            f"< {low:g} m/s": now < low,
            f"{low:g}-{high:g} m/s": (now >= low) & (now < high),
            f"> {high:g} m/s": now >= high,
        },
        "agents": {f"one within {NEAR:g} m": near, "none near": ~near},
    }
    for about, values in drives.about.items():
        of = np.array(values)
        if len(np.unique(of)) < len(set(drives.scenes)) or len(np.unique(of)) == 1:
            found[about] = {str(value): of == value for value in np.unique(of)}
    return found


def skill_table(plans: Mapping[str, np.ndarray], drives: Drives) -> dict[str, dict[str, Any]]:
    """Every planner's skill, ``1 - error / error of BASELINE``, the mean L2 over all steps, in every slice.

    Args:
        plans: by name, [N, T, 3] in ego; ``BASELINE`` is among them.
        drives: N samples; those with a whole known future and a keyframe before count.

    Returns:
        By planner (without the human and ``BASELINE``), by slice (``all``, ``manoeuvre: stop``, ...): ``skill`` with
        ``low`` and ``high``, the paired 95 % bootstrap over scenes (NaN from one), ``L2mean`` [m], ``N``,
        ``scenes`` and ``says``: ``better``, ``worse`` or ``NOT_SURE``. ``macro`` is the mean over the ``N`` manoeuvres
        that there are and have a skill, without an interval: where ``BASELINE`` has no error at all there is none.
    """
    masks = {"all": np.ones(len(drives), dtype=bool)}
    masks |= {f"{about}: {name}": mask for about, of in slices(drives).items() for name, mask in of.items()}
    error = {name: mean_error(plan, drives) for name, plan in plans.items()}
    base, scenes = error[BASELINE], np.asarray(drives.scenes)
    there = np.isfinite(base)
    table: dict[str, dict[str, Any]] = {}
    for name, own in error.items():
        if name in (BASELINE, HUMAN):
            continue
        rows = {}
        for title, mask in masks.items():
            chosen = mask & there
            if not chosen.any():
                continue
            skill, between, sure = ratio(base[chosen] - own[chosen], base[chosen], scenes[chosen].tolist())
            low, high = between or (np.nan, np.nan)
            rows[title] = {
                "skill": skill,
                "low": low,
                "high": high,
                "L2mean": float(own[chosen].mean()),
                "N": int(chosen.sum()),
                "scenes": len(np.unique(scenes[chosen])),
                "says": ("better" if skill > 0 else "worse") if sure else NOT_SURE,
            }
        of = [rows[title]["skill"] for title in rows if title.startswith("manoeuvre: ")]
        of = [skill for skill in of if np.isfinite(skill)]
        rows["macro"] = {"skill": float(np.mean(of)) if of else np.nan, "N": len(of)}
        table[name] = rows
    return table
