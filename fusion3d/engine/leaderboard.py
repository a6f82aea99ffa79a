"""The leaderboard's limit on history: what a model may have seen of the past."""

from __future__ import annotations

from fusion3d.config import Config
from fusion3d.engine.split import streams
from fusion3d.errors import ConfigError

# The devkit's README of the detection task (1.2.0): about 0.5 s, at most 6 past images of a camera, 6 past sweeps of a
# radar and 10 past LiDAR sweeps.
PAST = {"camera": 6, "lidar": 10, "radar": 6}
BETWEEN_KEYFRAMES = {"camera": 6, "lidar": 10, "radar": 6}  # a sensor's own frames in 0.5 s: 12, 20 and 13 a second


def reach(config: Config) -> dict[str, int]:
    """How many of its own frames each sensor that is used reads back, the keyframe's own not counted."""
    keyframes = 1 if config.temporal is None else config.temporal.keyframes
    clouds = {"camera": 1, "lidar": config.data.lidar_sweeps, "radar": config.data.radar_sweeps}
    used = [sensor for sensor in config.branches if sensor in config.data.sensors]
    return {sensor: (keyframes - 1) * BETWEEN_KEYFRAMES[sensor] + clouds[sensor] - 1 for sensor in used}


def check_history(config: Config) -> None:
    """Where ``evaluation.strict`` is set, refuse what the leaderboard would.

    Raises:
        ConfigError: the model reads more of the past than the leaderboard allows.
    """
    if not config.evaluation.strict:
        return
    if streams(config):
        raise ConfigError("evaluation.strict: with evaluation.stream the model remembers all of the scene, not 0.5 s")
    over = [
        f"{sensor} {back} (at most {PAST[sensor]})" for sensor, back in reach(config).items() if back > PAST[sensor]
    ]
    if over:
        raise ConfigError(
            f"evaluation.strict: past frames read: {', '.join(over)}; lower data.lidar_sweeps, data.radar_sweeps or "
            "temporal.keyframes, with which the model is to be trained too"
        )
