"""Plans of anybody's, from a JSON file.

    {"frame": "ego", "times": [0.5, 1.0, 1.5, 2.0, 2.5, 3.0],
     "plans": {"<sample_token>": [[x, y], ...] or [[x, y, yaw], ...], ...}}

``frame`` is ``ego`` (x forward, y left, of the rear axle) or ``lidar`` (x to the right, y forward, of the LiDAR: what
UniAD, VAD and SparseDrive plan in), of the sample's own time; ``times`` are seconds from then; metres and radians, the
yaw of the vehicle's forward axis from the frame's x to its y. The ``plans.json`` of ``predict`` is such a file too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion3d.errors import DataError
from fusion3d.files import read_json
from fusion3d.types import TIME_STEP

FRAMES = ("ego", "lidar")
MAX_BYTES = 1 << 30
MAX_STEPS = 200
MAX_SPEED, MARGIN = 60.0, 10.0  # [m/s], [m] farther than that no car gets: the unit or the frame is wrong


@dataclass(frozen=True, eq=False)
class PlanFile:
    """Plans by sample token, every ``TIME_STEP``."""

    frame: str  # one of FRAMES
    plans: dict[str, np.ndarray]  # [T, 3] x, y, yaw; the yaw is NaN where the file has none


def read_plans(path: str | Path) -> PlanFile:
    """Read a file of plans.

    Raises:
        DataError: it cannot be read, is larger than a gigabyte, is not of this form, names a token twice, has plans of
            different length, a number that is not finite, a position that no car reaches in the time or a yaw of more
            than a turn.
    """
    path = Path(path)
    form = 'expected {"frame": ..., "times": [...], "plans": {"sample token": [...], ...}}'
    content = read_json(path, form, max_bytes=MAX_BYTES, unique=True)
    if not isinstance(content.get("plans"), dict) or not content["plans"]:
        raise DataError(f"{path}: {form}")
    if content.get("frame") not in FRAMES:
        raise DataError(f'{path}: "frame" is {content.get("frame")!r}; expected one of {", ".join(FRAMES)}')
    plans = {token: _array(path, token, rows) for token, rows in content["plans"].items()}
    chosen = _steps(path, content, next(iter(plans.values())).shape[0])
    for token, plan in plans.items():
        if len(plan) != chosen[1]:
            raise DataError(f"{path}: the plan of {token} has {len(plan)} points, and there are {chosen[1]} times")
    plans = {token: plan[chosen[0]] for token, plan in plans.items()}
    seconds = TIME_STEP * np.arange(1, len(chosen[0]) + 1)
    for token, plan in plans.items():
        away = np.linalg.norm(plan[:, :2], axis=1)
        if (wrong := away > MAX_SPEED * seconds + MARGIN).any():
            step = int(wrong.argmax())
            raise DataError(
                f"{path}: the plan of {token} is {away[step]:.0f} m away after {seconds[step]:g} s, where no car gets "
                f"({MAX_SPEED:g} m/s and {MARGIN:g} m at most); expected metres in the sample's frame, not the map's"
            )
    return PlanFile(content["frame"], plans)


def _array(path: Path, token: str, rows: Any) -> np.ndarray:
    """[T, 3] of one plan."""
    if isinstance(rows, dict):  # as predict writes them
        position, yaw = rows.get("position", ()), rows.get("yaw", ())
        try:
            rows = [[*place, turn] for place, turn in zip(position, yaw, strict=True)]
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: the plan of {token}: expected a position and a yaw for every time") from error
    try:
        if any(isinstance(value, str | bool) for row in rows for value in row):
            raise TypeError("found a text or a truth value")
        plan = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: the plan of {token} is not rows of x, y or x, y, yaw: {error}") from error
    if plan.ndim != 2 or plan.shape[1] not in (2, 3) or not 0 < len(plan) <= MAX_STEPS:
        raise DataError(
            f"{path}: the plan of {token} has shape {list(plan.shape)}; expected [times, 2] or [times, 3], "
            f"1 to {MAX_STEPS} times"
        )
    if not np.isfinite(plan).all():
        raise DataError(f"{path}: the plan of {token} has a number that is not finite; expected metres and radians")
    if plan.shape[1] == 3 and np.abs(plan[:, 2]).max() > 2 * np.pi:
        largest = np.abs(plan[:, 2]).max()
        raise DataError(f"{path}: the plan of {token} has a yaw of {largest:g}; expected radians, at most a turn")
    return plan if plan.shape[1] == 3 else np.pad(plan, ((0, 0), (0, 1)), constant_values=np.nan)


def _steps(path: Path, content: dict[str, Any], length: int) -> tuple[list[int], int]:
    """Which points are a multiple of ``TIME_STEP`` from now, and how many points there are."""
    if "times" in content:
        times = content["times"]
    elif "time_step" in content:
        step = content["time_step"]
        times = [step * (i + 1) for i in range(length)] if isinstance(step, int | float) else None
    else:
        times = None
    try:
        stamp = np.array(times, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        stamp = np.zeros(0)
    if stamp.ndim != 1 or not len(stamp) or not np.isfinite(stamp).all() or (np.diff(stamp, prepend=0.0) <= 0).any():
        raise DataError(f'{path}: "times" are {times!r}; expected ascending seconds from now, such as [0.5, 1.0, 1.5]')
    count = min(int(np.floor(stamp[-1] / TIME_STEP + 1e-6)), len(stamp) + 1)  # of more, one is missing already
    wanted = TIME_STEP * np.arange(1, count + 1)
    nearest = [int(np.abs(stamp - time).argmin()) for time in wanted]
    if not nearest or np.abs(stamp[nearest] - wanted).max() > 1e-3:
        raise DataError(f"{path}: times {stamp.tolist()}: expected every multiple of {TIME_STEP} s until the last")
    return nearest, len(stamp)
