"""Boxes of a whole split as columns: what detection metrics read, whoever made it.

Letters: S samples, N scenes, K boxes, R bicycle racks. Everything is in the global frame, as in a submission.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion3d.errors import Fusion3DError
from fusion3d.types import DETECTION_CLASSES


@dataclass(frozen=True)
class BoxColumns:
    """Boxes in their order, which decides between equal scores: of two, the later goes first."""

    sample: np.ndarray  # [K] int64, row in Samples
    center: np.ndarray  # [K, 3] float64 [m]
    size: np.ndarray  # [K, 3] float64 length, width, height [m]
    yaw: np.ndarray  # [K] float64 [rad]
    velocity: np.ndarray  # [K, 2] float64 [m/s], NaN unknown
    label: np.ndarray  # [K] int64, index in DETECTION_CLASSES
    attribute: np.ndarray  # [K] int64, index in ATTRIBUTES, -1 none
    score: np.ndarray  # [K] float64; 1 for ground truth
    num_points: np.ndarray  # [K] int64, LiDAR and radar points inside; -1 for predictions
    visibility: np.ndarray  # [K] int64, nuScenes level 1..4, 0 unknown

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, keep: np.ndarray) -> BoxColumns:
        """The boxes selected by a bool mask or an index array."""
        return BoxColumns(**{f.name: getattr(self, f.name)[keep] for f in dataclasses.fields(self)})

    @staticmethod
    def of(
        sample: np.ndarray,
        center: np.ndarray,
        size: np.ndarray,
        yaw: np.ndarray,
        velocity: np.ndarray,
        label: np.ndarray,
        attribute: np.ndarray,
        score: np.ndarray | None = None,
        num_points: np.ndarray | None = None,
        visibility: np.ndarray | None = None,
    ) -> BoxColumns:
        """Columns of the right types, whatever the number of boxes; unsaid: score 1, points -1, visibility 0."""
        count = len(sample)

        def whole(values: np.ndarray | None, value: int) -> np.ndarray:
            return np.full(count, value, dtype=np.int64) if values is None else np.asarray(values, dtype=np.int64)

        def real(values: np.ndarray, *shape: int) -> np.ndarray:
            return np.ascontiguousarray(values, dtype=np.float64).reshape(count, *shape)

        return BoxColumns(
            sample=whole(sample, 0),
            center=real(center, 3),
            size=real(size, 3),
            yaw=real(yaw),
            velocity=real(velocity, 2),
            label=whole(label, 0),
            attribute=whole(attribute, -1),
            score=np.ones(count) if score is None else real(score),
            num_points=whole(num_points, -1),
            visibility=whole(visibility, 0),
        )

    def check(self, tokens: tuple[str, ...]) -> None:
        """Fusion3DError names the sample of a box that is none: not finite, without size, of no class or sample."""
        numbers = np.concatenate([self.center, self.yaw[:, None], self.score[:, None]], axis=1)
        known = (self.label >= 0) & (self.label < len(DETECTION_CLASSES))
        wrong = {
            "a sample that is not in the split": (self.sample < 0) | (self.sample >= len(tokens)),
            f"a class that is none of the {len(DETECTION_CLASSES)}": ~known,
            "a centre, heading or score that is not finite": ~np.isfinite(numbers).all(axis=1),
            "a score below 0": self.score < 0,
            "a size that is not above 0 and finite": ~((self.size > 0) & np.isfinite(self.size)).all(axis=1),
            "an infinite velocity": np.isinf(self.velocity).any(axis=1),
        }
        for what, rows in wrong.items():
            if rows.any():
                row = int(np.flatnonzero(rows)[0])
                sample = self.sample[row]
                where = f"sample {tokens[sample]}" if 0 <= sample < len(tokens) else f"sample number {sample}"
                raise Fusion3DError(
                    f"box {row} ({where}) has {what}: centre {self.center[row].tolist()}, size "
                    f"{self.size[row].tolist()}, yaw {self.yaw[row]}, velocity {self.velocity[row].tolist()}, score "
                    f"{self.score[row]}, class {self.label[row]}; repair or remove it"
                )


@dataclass(frozen=True)
class Racks:
    """Bicycle racks: cycles inside are not scored."""

    sample: np.ndarray  # [R] int64, row in Samples
    center: np.ndarray  # [R, 3] float64 [m]
    size: np.ndarray  # [R, 3] float64 length, width, height [m]
    rotation: np.ndarray  # [R, 4] float64 quaternion (w, x, y, z)

    @staticmethod
    def none() -> Racks:
        """No rack at all."""
        return Racks(np.zeros(0, dtype=np.int64), np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 4)))


@dataclass(frozen=True)
class Samples:
    """The samples of a split, by row."""

    tokens: tuple[str, ...]  # S
    scene: np.ndarray  # [S] int64, row in scenes
    scenes: tuple[str, ...]  # N names
    descriptions: tuple[str, ...]  # N, as people wrote them
    ego: np.ndarray  # [S, 2] float64, where the vehicle was at the reference time [m]
    heading: np.ndarray  # [S] float64 yaw of the vehicle [rad]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Truth:
    """What detections of a split are scored against."""

    samples: Samples
    boxes: BoxColumns  # of the ten classes
    racks: Racks = dataclasses.field(default_factory=Racks.none)
    nearest: int = 0  # samples without a key LiDAR: their ego is the pose nearest in time


def told_nearest(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line on samples without a key LiDAR, where rows of numbers say by ``range_from_nearest_pose`` how many."""
    count = max((row.get("range_from_nearest_pose", 0) for row in rows.values()), default=0)
    text = (
        f"{count} samples have no LIDAR_TOP (the devkit stops there): the range of their boxes is from the ego pose "
        "nearest in time"
    )
    return [text] if count else []
