"""What a data set knows around the samples that plans are scored on: how the human drove, and who was there.

Letters: N samples, T future and P past steps, K annotated boxes. Everything of a sample is in its ego frame of now: x
forward, y left, from the rear axle [m, rad].
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fusion3d.metrics.planning.paths import at_times
from fusion3d.types import EGO_CENTER, EGO_SIZE, TIME_STEP

STEPS = 6  # of every published protocol: 3 s
GAP = 0.75  # [s] between keyframes farther apart nothing is known
LATE = 0.1  # [s] after the last keyframe the ego is still known, as it went on
LIDAR_MOUNT = (0.943713, 0.0, -np.pi / 2)  # LIDAR_TOP of nuScenes in ego: its x points to the right


@dataclass(frozen=True, eq=False)
class Agents:
    """Annotated boxes around the samples, at their own keyframe and those before and after."""

    sample: np.ndarray  # [K] int64, ascending: row of the sample
    step: np.ndarray  # [K] int64, keyframes after now; 0 now, negative before
    box: np.ndarray  # [K, 5] float64: x, y, length, width, yaw
    track: np.ndarray  # [K] int64: who it is; the same number within a sample is the same one
    category: np.ndarray  # [K] int64, row in names
    visible: np.ndarray  # [K] bool: nuScenes visibility above 40 %; True where nothing is known of it
    seen: np.ndarray  # [K] bool: at least one LiDAR point; True where nothing is known of it
    names: tuple[str, ...]  # categories

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, chosen: np.ndarray) -> Agents:
        """The boxes of a mask or an ascending index."""
        columns = ("sample", "step", "box", "track", "category", "visible", "seen")
        return replace(self, **{name: getattr(self, name)[chosen] for name in columns})

    def named(self, prefixes: Sequence[str]) -> np.ndarray:
        """[K] bool: whose category begins with one of ``prefixes``. By name: rows differ between data sets."""
        hits = np.array([name.startswith(tuple(prefixes)) for name in self.names], dtype=bool)
        return hits[self.category] if len(self.names) else np.zeros(len(self), dtype=bool)

    @staticmethod
    def none() -> Agents:
        """Nobody anywhere."""
        empty, no = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
        return Agents(empty, empty, np.zeros((0, 5)), empty, empty, no, no, ())


@dataclass(frozen=True, eq=False)
class Drives:
    """N samples of human driving."""

    tokens: tuple[str, ...]  # N
    scenes: tuple[str, ...]  # N names: samples of one scene are not independent
    future: np.ndarray  # [N, T, 3] float64 x, y, yaw of the rear axle at the next keyframes; 0 where unknown. See path
    future_time: np.ndarray  # [N, T] seconds from now; nominal where unknown
    known: np.ndarray  # [N, T] bool
    past: np.ndarray  # [N, P, 3], the keyframe before first
    past_time: np.ndarray  # [N, P] seconds ago
    past_known: np.ndarray  # [N, P] bool
    agents: Agents
    mount: np.ndarray  # [N, 3] x, y, yaw of LIDAR_TOP in ego
    about: Mapping[str, tuple[str, ...]]  # what is said of each sample's scene: light, weather, place
    time: np.ndarray  # [N] float64 seconds by a clock of the scene
    # [N, B, 4] x, y, yaw and seconds from now at the keyframes after those of future; NaN where unknown. None: none is.
    beyond: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, chosen: np.ndarray) -> Drives:
        """The samples of a mask or an index, in ascending order."""
        rows = np.arange(len(self))[chosen]
        number = np.full(len(self), -1)
        number[rows] = np.arange(len(rows))
        arrays = ("future", "future_time", "known", "past", "past_time", "past_known", "mount", "time")
        kept = self.agents[number[self.agents.sample] >= 0] if len(self.agents) else self.agents
        return replace(
            self,
            tokens=tuple(self.tokens[row] for row in rows),
            scenes=tuple(self.scenes[row] for row in rows),
            agents=replace(kept, sample=number[kept.sample]),
            about={name: tuple(values[row] for row in rows) for name, values in self.about.items()},
            beyond=None if self.beyond is None else self.beyond[rows],
            **{name: getattr(self, name)[rows] for name in arrays},
        )

    @cached_property
    def path(self) -> np.ndarray:
        """[N, T, 3] the rear axle at the times that plans speak of, 0.5, 1.0 ... s from now; 0 where unknown.

        The keyframes' own times are not those: in nuScenes they are 0.4 to 0.6 s apart. Between two of them by their
        real times, straight, turning the shorter way.
        """
        pose, time, count = self._keyframes
        wanted = np.broadcast_to(nominal_time(self.future.shape[1]), self.future.shape[:2])
        return np.where(self.path_known[..., None], at_times(pose, time, np.maximum(count, 2), wanted), 0.0)

    @cached_property
    def path_known(self) -> np.ndarray:
        """[N, T] bool: is ``path`` known? Until a gap of more than ``GAP``, or ``LATE`` after the last keyframe.

        The last one may come some hundredths of a second early: without ``LATE`` the end of most scenes would be lost.
        """
        _, time, count = self._keyframes
        last = time[np.arange(len(self)), count - 1]
        return (count > 1)[:, None] & (nominal_time(self.future.shape[1]) <= last[:, None] + LATE)

    @cached_property
    def agent_time(self) -> np.ndarray:
        """[K] seconds from now of the keyframes of ``agents``; nominal before now and where not known."""
        _, time, _ = self._keyframes
        step = self.agents.step
        real = time[self.agents.sample, np.clip(step, 0, time.shape[1] - 1)]
        return np.where((step >= 0) & (step < time.shape[1]) & np.isfinite(real), real, TIME_STEP * step)

    @cached_property
    def _keyframes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Now and the keyframes after: [N, S, 3] poses, [N, S] seconds from now, [N] how many until the first gap."""
        count = len(self)
        beyond = np.zeros((count, 0, 4)) if self.beyond is None else self.beyond
        pose = np.concatenate([np.zeros((count, 1, 3)), self.future, beyond[..., :3]], axis=1)
        time = np.concatenate([np.zeros((count, 1)), self.future_time, beyond[..., 3]], axis=1)
        known = np.concatenate([np.ones((count, 1), dtype=bool), self.known, np.isfinite(beyond[..., 3])], axis=1)
        close = known & (np.diff(time, axis=1, prepend=0) <= GAP)
        return pose, time, np.logical_and.accumulate(close, axis=1).sum(axis=1)

    @property
    def velocity(self) -> np.ndarray:
        """[N, 2] over the last keyframe interval [m/s], by its real time; NaN without one."""
        there = self.past_known[:, :1]
        return np.where(there, -self.past[:, 0, :2] / np.where(there, self.past_time[:, :1], 1), np.nan)


@dataclass(frozen=True)
class EgoBox:
    """The car as a protocol sees it."""

    length: float = EGO_SIZE[0]  # [m]
    width: float = EGO_SIZE[1]
    ahead: float = EGO_CENTER  # of its middle, from what the path is of [m]

    def along(self, path: np.ndarray) -> np.ndarray:
        """[..., 3] poses on a path to [..., 5] rectangles."""
        yaw = path[..., 2]
        center = path[..., :2] + self.ahead * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
        size = np.broadcast_to((self.length, self.width), center.shape)
        return np.concatenate([center, size, yaw[..., None]], axis=-1)

    def __str__(self) -> str:
        return f"{self.length} x {self.width} m, centre {self.ahead:+.2f} m"


def box_of(about: Mapping[str, str]) -> str:
    """Of what a protocol says of itself, the size of the car and where its middle is."""
    return ", ".join(about["ego"].split(", ")[:2])


def sample_counts(row: Mapping[str, float]) -> str:
    """Of how many samples a planner's numbers are: ``N``, or that at 1, 2 and 3 s where it is not the same."""
    numbers = (row.get(name) for name in ("N@1s", "N@2s", "N@3s"))
    at = [f"{number:.0f}" for number in numbers if number is not None and np.isfinite(number)]
    return "/".join(at) if len(set(at)) > 1 else f"{row['N']:.0f}"


def sample_hash(tokens: Sequence[str]) -> str:
    """Eight digits that name a set of samples, in whatever order: two rows with the same were scored on the same."""
    return hashlib.sha256("\n".join(sorted(tokens)).encode()).hexdigest()[:8]


def nominal_time(steps: int) -> np.ndarray:
    """[T] seconds from now of the steps of a plan."""
    return TIME_STEP * np.arange(1, steps + 1)
