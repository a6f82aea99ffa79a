"""Tracking of a split: detections become tracks, tracks become a submission and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion3d.config import TrackerConfig
from fusion3d.data.nuscenes import Tables
from fusion3d.engine.ground_truth import BICYCLE_RACK, category_names, without_reference
from fusion3d.engine.results import Results
from fusion3d.engine.submission import write_submission
from fusion3d.engine.tracker import track_detections
from fusion3d.metrics.columns import Racks
from fusion3d.metrics.tracking import score_tracking
from fusion3d.metrics.tracks import Frames, Tracks
from fusion3d.types import DETECTION_CLASSES, TRACKING_CLASSES

TRACKS_FILE = "tracking_nusc.json"
_TRACKED = np.array([TRACKING_CLASSES.index(n) if n in TRACKING_CLASSES else -1 for n in DETECTION_CLASSES])


class TrackScorer:
    """Tracks detections of a split, and scores tracks, against one truth.

    Args:
        tables: of the data set.
        tokens: samples, scene after scene, each in order of time: whole scenes.
        config: of the tracker.

    Raises:
        DataError: a sample has no ego pose, or is not in the data set.
        Fusion3DError: samples are not in order.
    """

    def __init__(self, tables: Tables, tokens: Sequence[str], config: TrackerConfig) -> None:
        self.tables, self.tokens, self.config = tables, tuple(tokens), config
        self.frames, self.truth = tracking_truth(tables, tokens)
        self.nearest = without_reference(tables, map(tables.row_of, tokens))

    def track(
        self, detections: Mapping[str, Sequence[Mapping[str, Any]]], sensors: Iterable[str], path: Path
    ) -> dict[str, Any]:
        """Track detections, write the tracks as a submission to ``path`` and score them.

        Args:
            detections: by sample token, records of a detection submission.
            sensors: those of ``SENSORS`` that really went in.
            path: file.

        Returns:
            As ``score``.
        """
        tracks = track_split(self.tables, self.tokens, detections, self.config)
        write_submission(path, tracks, sensors)
        return self._score(record_columns(tracks, self.tokens))

    def score(self, results: Results) -> dict[str, Any]:
        """The numbers of tracking results, anybody's, that have every sample.

        Returns:
            Those of ``score_tracking``; ``range_from_nearest_pose``: samples without LIDAR_TOP, where there are any.
        """
        place = {token: row for row, token in enumerate(self.tokens)}
        frame = np.array([place[token] for token in results.tokens], dtype=np.int64)[results.sample]
        found = Tracks(
            frame=frame,
            track=results.track.astype(np.int64),
            label=results.label.astype(np.int64),
            center=results.translation,
            score=results.score,
            num_points=results.points.astype(np.int64),
        )
        return self._score(found)

    def _score(self, found: Tracks) -> dict[str, Any]:
        scores = score_tracking(self.frames, self.truth, found)
        return scores | ({"range_from_nearest_pose": self.nearest} if self.nearest else {})


def track_split(
    tables: Tables,
    tokens: Sequence[str],
    detections: Mapping[str, Sequence[Mapping[str, Any]]],
    config: TrackerConfig,
) -> dict[str, list[dict[str, Any]]]:
    """Tracking records by token; arguments as in ``TrackScorer``."""
    rows = [tables.row_of(token) for token in tokens]
    times = (tables.reference_time[rows] * 1e-6).tolist()
    return track_detections(detections, tokens, [tables.scene(row) for row in rows], times, config)


def tracking_truth(tables: Tables, tokens: Sequence[str]) -> tuple[Frames, Tracks]:
    """Samples and their annotations as the devkit's tracking evaluation reads them; arguments as in ``TrackScorer``."""
    rows = np.array([tables.row_of(token) for token in tokens], dtype=np.int64)
    counts = tables.box_start[rows + 1] - tables.box_start[rows]
    frame = np.repeat(np.arange(len(rows)), counts)
    box = np.repeat(tables.box_start[rows] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    names = np.array(category_names(tables))
    rack = names[tables.box_category[box]] == BICYCLE_RACK
    label = np.where(tables.box_class[box] >= 0, _TRACKED[tables.box_class[box]], -1)
    racks = Racks(frame[rack], tables.box_center[box[rack]], tables.box_size[box[rack]], tables.box_rotation[box[rack]])
    ego = np.array([tables.global_from_ego(row)[:2, 3] for row in rows]).reshape(-1, 2)
    frames = Frames(tables.sample_scene[rows].astype(np.int64), tables.sample_time[rows], ego, racks)
    frame, box, label = frame[label >= 0], box[label >= 0], label[label >= 0]
    return frames, Tracks(
        frame=frame,
        track=tables.box_instance[box].astype(np.int64),
        label=label,
        center=tables.box_center[box],
        score=np.ones(len(box)),
        num_points=tables.box_points[box].sum(axis=1).astype(np.int64),
    )


def record_columns(tracks: Mapping[str, Sequence[Mapping[str, Any]]], tokens: Sequence[str]) -> Tracks:
    """Tracking records as columns; frames are numbered in the order of ``tokens``."""
    rows = [(frame, record) for frame, token in enumerate(tokens) for record in tracks[token]]
    identity: dict[str, int] = {}
    return Tracks(
        frame=np.array([frame for frame, _ in rows], dtype=np.int64),
        track=np.array([identity.setdefault(r["tracking_id"], len(identity)) for _, r in rows], dtype=np.int64),
        label=np.array([TRACKING_CLASSES.index(record["tracking_name"]) for _, record in rows], dtype=np.int64),
        center=np.array([record["translation"] for _, record in rows], dtype=np.float64).reshape(-1, 3),
        score=np.array([record["tracking_score"] for _, record in rows], dtype=np.float64),
        num_points=np.full(len(rows), -1, dtype=np.int64),
    )
