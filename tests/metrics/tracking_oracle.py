"""The devkit's own tracking evaluation, run on columns in memory."""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import pytest

from fusion3d.metrics.tracks import Frames, Tracks
from fusion3d.types import TRACKING_CLASSES

OURS = {"recall": "recall", **{name: name.lower() for name in ("AMOTA", "AMOTP", "MOTAR", "GT", "MOTA", "MOTP", "MT")}}
OURS |= {name: name.lower() for name in ("ML", "FAF", "TP", "FP", "FN", "IDS", "FRAG", "TID", "LGD")}


class Scenes:
    """As much of ``nuscenes.NuScenes`` as the devkit's evaluation asks for; tokens are numbers in words."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames

    def get(self, table: str, token):
        frames = self.frames
        if table == "scene":
            rows = np.flatnonzero(frames.scene == int(token))
            first, last = str(rows[0]), str(rows[-1])
            return {"name": token, "first_sample_token": first, "last_sample_token": last}
        if table == "sample":
            row, racks = int(token), np.flatnonzero(frames.racks.sample == int(token))
            return {
                "scene_token": str(frames.scene[row]), "timestamp": int(frames.time[row]), "next": str(row + 1),
                "data": {"LIDAR_TOP": token}, "anns": racks.tolist(),
            }  # fmt: skip
        if table == "sample_data":
            return {"ego_pose_token": token}
        if table == "ego_pose":
            return {"translation": [*frames.ego[int(token)].tolist(), 0.0]}
        racks = frames.racks
        return {
            "category_name": "static_object.bicycle_rack", "translation": racks.center[token].tolist(),
            "size": racks.size[token, [1, 0, 2]].tolist(), "rotation": racks.rotation[token].tolist(),
        }  # fmt: skip


def devkit_tracking(frames: Frames, truth: Tracks, found: Tracks, num_levels: int = 40) -> tuple[dict, dict]:
    """Numbers of all classes and of each, and of each at all levels of recall, under our names."""
    pytest.importorskip("motmetrics", reason="the devkit's tracking evaluation needs motmetrics")
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes
    from nuscenes.eval.tracking import evaluate, loaders
    from nuscenes.eval.tracking.data_classes import TrackingConfig

    official = config_factory("tracking_nips_2019").serialize()
    config, scenes = TrackingConfig.deserialize({**official, "num_thresholds": num_levels}), Scenes(frames)
    run = evaluate.TrackingEval.__new__(evaluate.TrackingEval)
    run.cfg, run.verbose, run.output_dir, run.render_classes = config, False, "", []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        patch.setattr(loaders, "get_scenes_of_split", lambda split_name, nusc: set(map(str, frames.scene)))
        for name, of in (("tracks_gt", truth), ("tracks_pred", found)):
            boxes = add_center_dist(scenes, eval_boxes(of, len(frames)))
            if len(of):  # the devkit's filter cannot take none
                boxes = filter_eval_boxes(scenes, boxes, config.class_range)
            setattr(run, name, loaders.create_tracks(boxes, scenes, "", gt=name == "tracks_gt"))
        metrics, levels = run.evaluate()
    found = metrics.serialize()
    classes = {c: {ours: found["label_metrics"][name][c] for ours, name in OURS.items()} for c in TRACKING_CLASSES}
    curves = {"confidence": "confidence", "recall_hypo": "recall_hypo", **OURS}
    at_levels = {
        c: {ours: np.array(levels[c].get_metric(n), float) for ours, n in curves.items() if n not in ("amota", "amotp")}
        for c in TRACKING_CLASSES
    }
    return {**{ours: found[name] for ours, name in OURS.items()}, "classes": classes}, at_levels


def eval_boxes(tracks: Tracks, num_frames: int):
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.tracking.data_classes import TrackingBox

    boxes = EvalBoxes()
    for frame in range(num_frames):
        boxes.add_boxes(str(frame), [])
    for row in range(len(tracks)):
        box = TrackingBox(
            sample_token=str(tracks.frame[row]),
            translation=tuple(tracks.center[row].tolist()),
            size=(1.0, 1.0, 1.0),
            rotation=(1.0, 0.0, 0.0, 0.0),
            velocity=(0.0, 0.0),
            num_pts=int(tracks.num_points[row]),
            tracking_id=f"id{tracks.track[row]}",
            tracking_name=TRACKING_CLASSES[tracks.label[row]],
            tracking_score=float(tracks.score[row]),
        )
        boxes.add_boxes(str(tracks.frame[row]), [box])
    return boxes
