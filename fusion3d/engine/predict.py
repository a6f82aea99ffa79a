"""Prediction: boxes, their motion and plans for a data set that may lack annotations and sensors."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from fusion3d.config import Config
from fusion3d.data.nuscenes import Tables
from fusion3d.engine.checkpoint import load_config_of, load_model
from fusion3d.engine.evaluate import add_checkpoint_options, add_prediction_options, chosen_config
from fusion3d.engine.forecasts import FORECASTS_FILE, to_json
from fusion3d.engine.inference import sensor_subsets
from fusion3d.engine.leaderboard import check_history
from fusion3d.engine.seed import set_deterministic
from fusion3d.engine.share import run_shared
from fusion3d.engine.submission import RESULTS_FILE, write_submission
from fusion3d.engine.temperatures import load_temperatures, soften
from fusion3d.engine.tracking import TRACKS_FILE, track_split
from fusion3d.errors import ConfigError
from fusion3d.files import write_json
from fusion3d.types import TIME_STEP


def predict(
    checkpoint: str | Path,
    config: Config | None,
    out_dir: str | Path,
    device: str | None = None,
    ema: bool = True,
    tracks: bool = False,
) -> Path | None:
    """Run a checkpoint over ``config.data.split`` with every sensor that is there.

    Under torchrun the processes share the samples, and the first writes.

    Args:
        checkpoint: checkpoint or run folder.
        config: the checkpoint's own with other data; None takes it as it is.
        out_dir: gets ``results_nusc.json`` (the nuScenes submission) and ``plans.json`` (by sample token,
            positions of the rear axle every 0.5 s in the ego frame of now and in global, and headings in
            ego), and ``forecasts.json`` where the model has a motion head (by sample token, the boxes of
            ``motion.min_score`` and more with the ways that they may go on, in ego).
        device: torch device name; None takes the GPU where there is one.
        ema: use the averaged weights.
        tracks: write ``tracking_nusc.json`` too, the submission for the tracking task.

    Returns:
        ``out_dir``; None by a process that is not the first.

    Raises:
        ConfigError: the model has no branch for any of ``config.data.sensors``, reads more of the past than
            ``evaluation.strict`` allows, or has no boxes to track.
        CheckpointError: the checkpoint cannot be used.
        DataError: the data set cannot be read.
    """
    config = load_config_of(checkpoint) if config is None else config
    possible = sensor_subsets(config)
    if config.detection is None and config.planning is None:
        raise ConfigError(
            "detection and planning are null: predict writes boxes and plans; look at maps with visualize"
        )
    check_history(config)
    if tracks and config.detection is None:
        raise ConfigError("--tracks: detection is null, and tracks are made of its boxes")
    set_deterministic(config.deterministic)
    name = list(possible)[-1]
    calibrated = config.evaluation.calibrated and config.detection is not None
    temperatures = load_temperatures(checkpoint, [name], ema) if calibrated else {}
    model, _ = load_model(checkpoint, ema, config)
    output = run_shared(model, config, {name: possible[name]}, device, keep_forecasts=True)
    if output is None:
        return None
    found = output.subsets[name]
    if config.detection is not None:
        records = found.records(output.poses)
        if name in temperatures:
            records = soften(records, temperatures[name])
        write_submission(Path(out_dir, RESULTS_FILE), records, found.used)
        if tracks:
            tables = Tables.open(config.data.root, config.data.version)
            tracked = track_split(tables, list(output.poses), records, config.evaluation.tracker)
            write_submission(Path(out_dir, TRACKS_FILE), tracked, found.used)
    if config.motion is not None:
        content = to_json(found.boxes, found.forecasts, config.motion.min_score)
        write_json(Path(out_dir, FORECASTS_FILE), content, indent=None)
    if config.planning is not None:
        plans = {}
        for token, plan in found.plans.items():
            position = plan.position.double().numpy()
            pose = output.poses[token]
            on_ground = np.pad(position, ((0, 0), (0, 1))) @ pose[:3, :3].T + pose[:3, 3]
            plans[token] = {
                "position": position.tolist(),
                "yaw": plan.yaw.tolist(),
                "position_global": on_ground[:, :2].tolist(),
            }
        write_json(Path(out_dir, "plans.json"), {"time_step": TIME_STEP, "frame": "ego", "plans": plans})
    return Path(out_dir)


def main(argv: list[str] | None = None) -> int:
    """``predict.py --checkpoint X --out DIR [--data.root R --data.version V --data.split S ...]``."""
    parser = argparse.ArgumentParser("predict", description="Boxes and plans for a data set without annotations.")
    parser.allow_abbrev = False
    add_checkpoint_options(parser)
    add_prediction_options(parser)
    parser.add_argument("--tracks", action="store_true", help="write tracks too: tracking_nusc.json")
    options, overrides = parser.parse_known_args(argv)
    config = chosen_config(options, overrides)
    written = predict(options.checkpoint, config, options.out, options.device, not options.no_ema, options.tracks)
    if written is not None:
        print(f"written: {written}")
    return 0
