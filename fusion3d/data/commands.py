"""Where a vehicle is to go, as one of COMMANDS: by its route, known beforehand, or by where it went."""

from __future__ import annotations

import numpy as np

from fusion3d.data.can_bus import MISALIGNED
from fusion3d.geometry import yaw_of
from fusion3d.types import COMMANDS, Trajectory

TURN_OFFSET = 2.0  # [m] what leads farther to a side than this is a turn (the rule of the nuScenes planners)
_STEPS = 6  # of a path that say where it leads: 3 s, however much farther it is known
AHEAD = (20.0, 30.0)  # [m] along the route: where it is looked at


def command_of(future: Trajectory) -> int:
    """By the offset to a side at the last known step of 3 s, which tells some of what is to be planned; -1: none."""
    known = int(future.mask[:_STEPS].sum())
    return -1 if known == 0 else _command(float(future.position[known - 1, 1]))


def command_on(route: np.ndarray, global_from_ego: np.ndarray) -> int:
    """By how far to a side a route leads from where it passes the vehicle.

    Nothing of how the vehicle went on is in it: the route was there before, and where it is looked at is a matter of
    distance, not of time. What counts is the mean offset along ego y over ``AHEAD``, from the place of the route that
    is nearest, so that driving beside the route is no turn. nuScenes' routes reach 50 m beyond the scene: farther ahead
    their end would tell where the scene ends.

    Args:
        route: [N, 2] global positions [m].
        global_from_ego: [4, 4] pose of the vehicle.

    Returns:
        The index in COMMANDS; -1 where the vehicle is not on the route (farther than ``MISALIGNED``, or heading against
        it), or the route ends before ``AHEAD`` does.
    """
    place, yaw = global_from_ego[:2, 3], float(yaw_of(global_from_ego))
    move = np.diff(route, axis=0)
    length = np.linalg.norm(move, axis=1)
    begin, move, length = (of[length > 0] for of in (route[:-1], move, length))
    part = np.clip(((place - begin) * move).sum(axis=1) / length**2, 0, 1)
    nearest = begin + part[:, None] * move
    along_ego = move @ np.array([np.cos(yaw), np.sin(yaw)])
    away = np.where(along_ego > 0, np.linalg.norm(nearest - place, axis=1), np.inf)
    if not len(away) or away.min() > MISALIGNED:
        return -1
    here, end = int(away.argmin()), np.cumsum(length)
    at = end[here] + (part[here] - 1) * length[here] + np.linspace(*AHEAD, 11)
    if at[-1] > end[-1]:
        return -1
    segment = np.searchsorted(end, at)
    ahead = begin[segment] + (1 - (end[segment] - at) / length[segment])[:, None] * move[segment]
    return _command(float(((ahead - nearest[here]) @ np.array([-np.sin(yaw), np.cos(yaw)])).mean()))


def _command(left: float) -> int:
    """Index in COMMANDS of an offset to the left [m]."""
    return COMMANDS.index("left" if left > TURN_OFFSET else "right" if left < -TURN_OFFSET else "straight")
