"""Tracks of a whole split as columns, and how nuScenes prepares them: what counts, track scores, filled gaps.

Letters: F frames (the samples of whole scenes), K boxes. Everything is in the global frame.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from fusion3d.errors import Fusion3DError
from fusion3d.metrics.columns import Racks
from fusion3d.metrics.filters import in_racks, within
from fusion3d.types import TRACKING_CLASSES

# [m] from the ego, in the plane; beyond, nothing is scored (the devkit's tracking_nips_2019).
CLASS_RANGE = {name: 40.0 if name in ("bicycle", "motorcycle", "pedestrian") else 50.0 for name in TRACKING_CLASSES}
CYCLES = tuple(TRACKING_CLASSES.index(name) for name in ("bicycle", "motorcycle"))


@dataclass(frozen=True)
class Frames:
    """The samples of whole scenes, scene after scene, each in order of time."""

    scene: np.ndarray  # [F] int64, the same number for all of a scene
    time: np.ndarray  # [F] int64 [us]
    ego: np.ndarray  # [F, 2] float64, where the vehicle was [m]
    racks: Racks = dataclasses.field(default_factory=Racks.none)  # their samples are rows in Frames

    def __post_init__(self) -> None:
        """Fusion3DError where a scene is not in one piece, or goes back in time."""
        begins = np.flatnonzero(np.diff(self.scene, prepend=self.scene[:1] - 1))
        if len(np.unique(self.scene[begins])) < len(begins):
            raise Fusion3DError("tracking: a scene's samples are not one after the other; sort them by scene and time")
        if (np.diff(self.time)[np.diff(self.scene) == 0] <= 0).any():
            raise Fusion3DError("tracking: a scene's samples are not in order of time; sort them by scene and time")

    def __len__(self) -> int:
        return len(self.scene)


@dataclass(frozen=True)
class Tracks:
    """Boxes that know which object they are."""

    frame: np.ndarray  # [K] int64, row in Frames, in any order
    track: np.ndarray  # [K] int64 identity; the same number in another scene is another track
    label: np.ndarray  # [K] int64, index in TRACKING_CLASSES
    center: np.ndarray  # [K, 3] float64 [m]
    score: np.ndarray  # [K] float64; anything for ground truth
    num_points: np.ndarray  # [K] int64, LiDAR and radar points inside; -1 for predictions

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, keep: np.ndarray) -> Tracks:
        """The boxes selected by a bool mask or an index array."""
        return Tracks(**{f.name: getattr(self, f.name)[keep] for f in dataclasses.fields(self)})

    @staticmethod
    def cat(parts: list[Tracks]) -> Tracks:
        """The boxes of all parts, one after another."""
        names = [f.name for f in dataclasses.fields(Tracks)]
        return Tracks(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def prepare(tracks: Tracks, frames: Frames) -> Tracks:
    """What nuScenes scores of given tracks, ground truth or predictions.

    In this order: boxes out of their class's range, without points or, as cycles, in a rack are dropped; each box gets
    the mean score of its track; gaps in tracks are filled. Identities become unique over all scenes, and the boxes
    stand frame by frame, those that fill gaps last.

    Raises:
        Fusion3DError: a frame or a class that there is not, or a number that is not finite.
    """
    _check(tracks, frames)
    tracks = tracks[counted(tracks, frames)]
    tracks = tracks[np.argsort(tracks.frame, kind="stable")]
    scene = np.unique(frames.scene, return_inverse=True)[1].astype(np.int64)
    pair = np.stack([scene[tracks.frame], tracks.track], axis=1)
    identity = np.unique(pair, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    tracks = dataclasses.replace(tracks, track=identity, score=_mean_scores(identity, tracks.score))
    return fill_gaps(tracks, frames)


def counted(tracks: Tracks, frames: Frames) -> np.ndarray:
    """[K] bool: the boxes that are scored (the devkit's ``filter_eval_boxes``)."""
    reach = np.array([CLASS_RANGE[name] for name in TRACKING_CLASSES])[tracks.label]
    near = within(tracks.center[:, :2] - frames.ego[tracks.frame], reach)
    keep = near & (tracks.num_points != 0)
    cycles = np.flatnonzero(keep & np.isin(tracks.label, CYCLES))
    keep[in_racks(tracks.frame, tracks.center, cycles, frames.racks)] = False
    return keep


def fill_gaps(tracks: Tracks, frames: Frames) -> Tracks:
    """Tracks, sorted by frame, with a box in every frame between their first and their last.

    The devkit weights the two boxes beside a gap the wrong way round: the nearer one in time counts less. It is the
    official rule, and makes no difference in the middle.
    """
    order = np.argsort(tracks.track, kind="stable")  # of each track, in order of time
    left, right = order[:-1], order[1:]
    missing = tracks.frame[right] - tracks.frame[left] - 1
    holes = (tracks.track[left] == tracks.track[right]) & (missing > 0)
    left, right, missing = left[holes], right[holes], missing[holes]
    which = np.repeat(np.arange(len(missing)), missing)
    step = np.arange(len(which)) - np.repeat(np.cumsum(missing) - missing, missing)
    left, right = left[which], right[which]
    frame = tracks.frame[left] + 1 + step
    time = frames.time
    share = (time[tracks.frame[right]] - time[frame]) / (time[tracks.frame[right]] - time[tracks.frame[left]])
    filled = Tracks(
        frame=frame,
        track=tracks.track[right],
        label=tracks.label[right],
        center=(1.0 - share)[:, None] * tracks.center[left] + share[:, None] * tracks.center[right],
        score=(1.0 - share) * tracks.score[left] + share * tracks.score[right],
        num_points=np.full(len(frame), -1, dtype=np.int64),
    )
    seen, first = np.unique(tracks.track, return_index=True)  # in each frame they come in the order tracks began
    filled = filled[np.argsort(first[np.searchsorted(seen, filled.track)], kind="stable")]
    whole = Tracks.cat([tracks, filled])
    return whole[np.argsort(whole.frame, kind="stable")]


def _mean_scores(identity: np.ndarray, score: np.ndarray) -> np.ndarray:
    """[K] float64: the mean score of each box's track, summed as the devkit does: thresholds compare the last bit."""
    order = np.argsort(identity, kind="stable")
    mean = np.empty(len(score))
    for rows in np.split(order, np.flatnonzero(np.diff(identity[order])) + 1):
        mean[rows] = score[rows].mean() if len(rows) else 0.0
    return mean


def _check(tracks: Tracks, frames: Frames) -> None:
    finite = np.isfinite(np.column_stack([tracks.center, tracks.score])).all(axis=1)
    wrong = {
        "a frame that there is not": (tracks.frame < 0) | (tracks.frame >= len(frames)),
        "a class that is not tracked": (tracks.label < 0) | (tracks.label >= len(TRACKING_CLASSES)),
        "a centre or score that is not finite": ~finite,
    }
    for what, rows in wrong.items():
        if rows.any():
            row = int(np.flatnonzero(rows)[0])
            raise Fusion3DError(
                f"tracking: box {row} has {what}: frame {tracks.frame[row]} of {len(frames)}, class "
                f"{tracks.label[row]}, centre {tracks.center[row].tolist()}, score {tracks.score[row]}; remove it"
            )
