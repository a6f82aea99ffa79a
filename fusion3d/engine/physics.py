"""Physical models of agents on real tracks, by the metrics of forecasts: what any forecast has to beat.

Letters: A agents, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fusion3d.data.tables import detection_class
from fusion3d.data.tracks import TrackScene
from fusion3d.engine.forecasts import table_line
from fusion3d.geometry import turn
from fusion3d.heads.rollout import drive
from fusion3d.metrics.forecast import Around, ScoredAgents, forecast_errors
from fusion3d.metrics.planning.paths import wrap
from fusion3d.types import DETECTION_CLASSES, TIME_STEP, TRACKING_CLASSES

_MAX_GAP = 1.5 * TIME_STEP  # [s] between keyframes; beyond it nothing is known of how things moved


def score_tracks(scenes: Sequence[TrackScene], steps: int) -> list[ScoredAgents]:
    """Physical models of agents on tracks, each keyframe with one before it and ``steps`` behind: everybody is found.

    ``constant_velocity`` and ``constant_turn`` go on as between the last two keyframes; ``physics_oracle`` is, of these
    two and the same with the last acceleration, the one that came nearest to the truth, which none can know (the
    devkit's PhysicsOracle, whose constant velocity is along the heading, here along the motion; and what is slower than
    1 m/s turns less here, see ``drive``).
    """
    return [
        _score_track(scene, now, steps)
        for scene in scenes
        for now in range(1, len(scene.tokens) - steps)
        if np.diff(scene.time[now - 1 : now + steps + 1]).max() <= _MAX_GAP
    ]


def _score_track(scene: TrackScene, now: int, steps: int) -> ScoredAgents:
    label = np.array([detection_class(name) for name in scene.category], dtype=np.int64)
    known = np.asarray(np.isfinite(scene.agent).all(axis=-1))
    moves = np.isin(label, [DETECTION_CLASSES.index(name) for name in TRACKING_CLASSES])
    rows = np.flatnonzero(moves & known[:, now - 1 : now + steps + 1].all(axis=1))
    pose, label = scene.agent[rows], label[rows]
    times = torch.from_numpy(scene.time[now + 1 : now + steps + 1] - scene.time[now])
    velocity, rate = _motion_of(pose, scene.time, now)
    before = _motion_of(pose, scene.time, now - 1)[0] if now > 1 else np.full_like(velocity, np.nan)
    faster = np.linalg.norm(velocity, axis=-1) - np.linalg.norm(before, axis=-1)
    push = np.nan_to_num(faster / (scene.time[now] - scene.time[now - 1]))
    here, yaw = pose[:, now, :2], torch.from_numpy(pose[:, now, 2])
    own = turn(torch.from_numpy(velocity)[:, None], -yaw)[:, 0]

    def go(turns: np.ndarray, pushes: np.ndarray) -> np.ndarray:
        along, _ = drive(own, torch.from_numpy(turns), torch.from_numpy(pushes), times)
        return here[:, None] + turn(along, yaw).numpy()

    none = np.zeros_like(rate)
    ways = np.stack([go(turns, pushes) for turns in (none, rate) for pushes in (none, push)], axis=1)
    truth = pose[:, now + 1 : now + steps + 1]
    nearest = np.linalg.norm(ways - truth[:, None, :, :2], axis=-1).mean(axis=-1).argmin(axis=1)
    sure = np.ones((len(rate), 1))
    said = {
        "constant_velocity": ways[:, :1],
        "constant_turn": ways[:, 2:3],
        "physics_oracle": ways[np.arange(len(rate)), nearest][:, None],
        "stationary": np.broadcast_to(here[:, None, None], ways[:, :1].shape),
    }
    errors = {name: forecast_errors(way, sure, truth[..., :2]) for name, way in said.items()}
    known = np.ones(truth.shape[:2], dtype=bool)
    around = Around(here, pose[:, now, 2], label, known[:, 0], truth[..., :2], truth[..., 2], known)
    return ScoredAgents(scene.name, label, around.way, known[:, 0], errors, TIME_STEP * truth.shape[1])


def _motion_of(pose: np.ndarray, time: np.ndarray, now: int) -> tuple[np.ndarray, np.ndarray]:
    """[A, 2] velocity and [A] yaw rate over the keyframe interval that ends now; NaN where unknown."""
    moved, seconds = pose[:, now] - pose[:, now - 1], time[now] - time[now - 1]
    return moved[:, :2] / seconds, wrap(moved[:, 2]) / seconds


def format_tracks(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of physical models, over all agents and by the way that they go."""
    lines = [table_line("agents on tracks", ("N", "minADE", "minFDE", "MissRate"))]
    for group, row in groups.items():
        lines.append(f"{group}")
        for name, of in row.items():
            if isinstance(of, Mapping) and "minADE_1" in of:
                cells = (str(row["found"]), of["minADE_1"], of["minFDE_1"], of["MissRateTopK_2_1"])
                lines.append(table_line(f"  {name}", cells))
    return "\n".join(lines)
