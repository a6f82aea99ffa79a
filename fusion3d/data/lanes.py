"""Lanes and their centrelines in the nuScenes map expansion: where one is on a lane, which way it leads, what follows.

Letters: K lanes, P points on centrelines, V vertices, R rings, E links, M places asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion3d.data.expansion import Shapes, open_expansion, packed
from fusion3d.geometry.arclines import discretise

STEP = 1.0  # [m] between points on a centreline, at most
_KINDS = ("lane", "lane_connector")


@dataclass(frozen=True, eq=False)
class Lanes:
    """The lanes of a city, those between junctions first, then the connectors in them; global metres and radians.

    A connector's polygon is a plain one around its junction in nuScenes, not the band along its centreline.
    """

    token: np.ndarray  # [K] str
    is_connector: np.ndarray  # [K] bool
    pose: np.ndarray  # [P, 3] float64 x, y, yaw, in driving direction
    start: np.ndarray  # [K + 1] int64: lane k's are pose[start[k] : start[k + 1]], none where a file has no curve of it
    xy: np.ndarray  # [V, 2] float64 of the lanes' polygons
    ring: np.ndarray  # [R + 1] int64: ring r is xy[ring[r] : ring[r + 1]]
    lane: np.ndarray  # [R] int64, ascending: whose ring it is
    link: np.ndarray  # [E, 2] int64: the second lane begins where the first one ends
    known: np.ndarray  # [] bool: has the file lanes, their curves and links at all?

    @staticmethod
    def read(content: dict[str, Any]) -> Lanes:
        """From a file's JSON. Links to lanes that are not there are left out: nuScenes has some."""
        wanted = (*_KINDS, "arcline_path_3", "connectivity")
        known = all(layer in content for layer in wanted)
        rows = [(kind, row) for kind in _KINDS for row in content[kind]] if known else []
        curves, links = (content[layer] if rows else {} for layer in wanted[2:])
        shapes = Shapes(content)
        tokens = [str(row["token"]) for _, row in rows]
        number = {token: k for k, token in enumerate(tokens)}
        poses = [_centreline(curves.get(token, ())) for token in tokens]
        rings = [(ring, k) for k, (_, row) in enumerate(rows) for ring in shapes.rings(row["polygon_token"])]
        pose, start = packed(poses, 3)
        xy, ring = packed([ring for ring, _ in rings])
        return Lanes(
            token=np.array(tokens, dtype=str),
            is_connector=np.array([kind == _KINDS[1] for kind, _ in rows], dtype=bool),
            pose=pose,
            start=start,
            xy=xy,
            ring=ring,
            lane=np.array([k for _, k in rings], dtype=np.int64),
            link=np.array(
                [
                    (k, number[after])
                    for k, token in enumerate(tokens)
                    for after in links.get(token, {}).get("outgoing", ())
                    if after in number
                ],
                dtype=np.int64,
            ).reshape(-1, 2),
            known=np.array(known),
        )

    def __len__(self) -> int:
        return len(self.token)

    def centreline(self, lane: int) -> np.ndarray:
        """[P, 3] x, y, yaw along a lane, ``STEP`` metres apart at most."""
        return self.pose[self.start[lane] : self.start[lane + 1]]

    def after(self, lane: int) -> np.ndarray:
        """The lanes that begin where one ends."""
        return self.link[self.link[:, 0] == lane, 1]

    def before(self, lane: int) -> np.ndarray:
        """The lanes that end where one begins."""
        return self.link[self.link[:, 1] == lane, 0]

    def nearest(self, pose: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The lane on which vehicles are, of those that lead their way (by less than 90 degrees).

        Args:
            pose: [M, 3] x, y, yaw; a yaw of NaN is any way, a place of NaN nowhere.
            reach: centrelines farther away are none [m].

        Returns:
            [M] lanes, -1 where none is near; [M] the distance from the lane's beginning [m], and [M, 3] the pose of
            the place on the centreline that is nearest, NaN where none is.
        """
        low, high = (
            np.fmin.reduce(pose[:, :2], initial=np.inf) - reach - STEP,
            np.fmax.reduce(pose[:, :2], initial=-np.inf) + reach + STEP,
        )
        near = np.flatnonzero(((self.pose[:, :2] >= low) & (self.pose[:, :2] <= high)).all(axis=1))
        lane, along, place = np.full(len(pose), -1), np.full(len(pose), np.nan), np.full((len(pose), 3), np.nan)
        if not len(near):
            return lane, along, place
        away = np.linalg.norm(pose[:, None, :2] - self.pose[near, :2], axis=-1)
        against = np.cos(pose[:, 2, None] - self.pose[near, 2]) <= 0  # False for NaN
        away[against] = np.inf
        least = away.min(axis=1)
        for row in np.flatnonzero(least <= reach + STEP / 2).tolist():
            # The nearest centreline has a point at most half a step farther than the nearest point.
            close = near[away[row] <= least[row] + STEP / 2]
            lanes = np.unique(np.searchsorted(self.start, close, side="right") - 1)
            feet = [_project(self.centreline(k), pose[row, :2]) for k in lanes]
            best = int(np.argmin([np.linalg.norm(foot[:2] - pose[row, :2]) for _, foot in feet]))
            lane[row], (along[row], place[row]) = lanes[best], feet[best]
        off = np.linalg.norm(place[:, :2] - pose[:, :2], axis=1) > reach
        lane[off], along[off], place[off] = -1, np.nan, np.nan
        return lane, along, place


def open_lanes(path: Path) -> Lanes | None:
    """The lanes in a file of the map expansion; None where it has no curves and links of them (versions up to 1.1).

    Raises:
        DataError: it cannot be read, or is not what such a file holds.
    """
    lanes = open_expansion(path, Lanes)
    return lanes if lanes.known else None


def _centreline(arclines: Any) -> np.ndarray:
    """[P, 3] along a chain of arclines; where one ends and the next begins there is one point."""
    poses = np.concatenate([np.zeros((0, 3)), *(discretise(arcline, STEP) for arcline in arclines)])
    if not np.isfinite(poses).all():
        raise ValueError("a lane's curve is not finite")
    moves = np.linalg.norm(np.diff(poses[:, :2], axis=0, prepend=np.inf), axis=1) > 1e-3
    return poses[moves]


def _project(line: np.ndarray, place: np.ndarray) -> tuple[float, np.ndarray]:
    """The distance along a centreline [P, 3] at which it is nearest to a place [2], and the pose [3] there."""
    if len(line) < 2:
        return 0.0, line[0]
    move = np.diff(line[:, :2], axis=0)
    length = np.linalg.norm(move, axis=1)
    part = np.clip(((place - line[:-1, :2]) * move).sum(axis=1) / length**2, 0, 1)
    found = line[:-1, :2] + part[:, None] * move
    best = int(np.linalg.norm(found - place, axis=1).argmin())
    turn = (line[best + 1, 2] - line[best, 2] + np.pi) % (2 * np.pi) - np.pi
    along = float(length[:best].sum() + part[best] * length[best])
    return along, np.array([*found[best], line[best, 2] + part[best] * turn])
