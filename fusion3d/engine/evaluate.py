"""Evaluation: one checkpoint under every subset of its sensors, by official metrics, beside baselines."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion3d.config import Config, override
from fusion3d.data.nuscenes import Tables
from fusion3d.data.splits import samples_of
from fusion3d.engine.checkpoint import find_checkpoint, load_config_of, load_model
from fusion3d.engine.drives import drives_of, map_of
from fusion3d.engine.environment import note_run
from fusion3d.engine.eval_table import format_table
from fusion3d.engine.evaluate_plans import trained_baselines
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.inference import SplitOutput, SubsetOutput, choose_subsets
from fusion3d.engine.leaderboard import check_history
from fusion3d.engine.results import Limits
from fusion3d.engine.score_results import score_results
from fusion3d.engine.scoring import BoxScorer, Scoring, read_protocol
from fusion3d.engine.seed import set_deterministic
from fusion3d.engine.share import run_shared
from fusion3d.engine.submission import MAX_BOXES
from fusion3d.engine.temperatures import Temperatures, load_temperatures, soften
from fusion3d.engine.tracking import TRACKS_FILE, TrackScorer
from fusion3d.errors import ConfigError, DataError
from fusion3d.files import write_json
from fusion3d.metrics.bootstrap import FEWEST_RESAMPLES, RESAMPLES
from fusion3d.metrics.forecast import PROTOCOL as MOTION_PROTOCOL
from fusion3d.metrics.forecast import score_forecasts
from fusion3d.metrics.map import PROTOCOL as MAP_PROTOCOL
from fusion3d.metrics.occupancy import PROTOCOL as OCCUPANCY_PROTOCOL
from fusion3d.metrics.planning import score_plans as score_every_plan
from fusion3d.metrics.planning.exact import ABOUT, NAME
from fusion3d.metrics.planning.modes import score_modes
from fusion3d.metrics.protocol import CVPR_2019
from fusion3d.metrics.tracking import PROTOCOL as TRACKING_PROTOCOL
from fusion3d.types import PLAN_SCORES, Trajectory

OF_CHECKPOINT = ("--subsets", "--device", "--no-ema", "--tta", "--stream", "--strict")  # mean nothing to a result file
# What can be scored, and the head of the model that it needs.
TASKS = {name: name for name in ("detection", "motion", "planning", "map", "occupancy")} | {"tracking": "detection"}


def evaluate(
    checkpoint: str | Path,
    config: Config | None,
    out_dir: str | Path,
    subsets: Sequence[str] | None = None,
    device: str | None = None,
    ema: bool = True,
    tasks: Sequence[str] | None = None,
    scoring: Scoring | None = None,
) -> dict[str, Any]:
    """Score a checkpoint on ``config.data.split`` and write everything into ``out_dir``.

    Under torchrun the processes share the samples, and the first scores them: the numbers are those of one process.

    Args:
        checkpoint: checkpoint or run folder.
        config: the checkpoint's own with other data, thresholds or sensors; None takes it as it is.
        out_dir: gets ``metrics.json``, ``run.json`` (what was evaluated, how and on what) and, for each subset,
            ``results_nusc.json``, ``matches.npz`` and, of tracks, ``tracking_nusc.json``.
        subsets: names such as "camera+radar"; None is every one that the checkpoint can take.
        device: torch device name; None takes the GPU where there is one.
        ema: use the averaged weights.
        tasks: those of ``TASKS`` to score; None is all that the model has a head for, without tracking.
        scoring: how boxes are scored; None is as the benchmark does.

    Returns:
        ``kept``, ``shapley``: of ``BoxScorer.beside``;
        ``subsets.<name>``: numbers of ``BoxScorer.score``, ``motion`` with those of ``score_forecasts``, ``planning``
        with that subset's plan, ``map`` and ``occupancy`` with the numbers of ``Overlap.scores``, and ``tracking`` with
        those of ``score_tracking``;
        ``planning``: for ``model`` (the largest subset), the baselines and ``human`` the numbers of ``score_exact``;
        ``planning_scores``: those by every protocol, the PDM-style score and the skill, as ``metrics.planning`` gives
        them; ``planning_protocol``: the exact one in words;
        ``map``: for ``everywhere`` and ``average``, and ``occupancy``: for ``still``, the numbers of
        ``Overlap.scores``; ``map_protocol``; ``occupancy_protocol``;
        ``motion_protocol``; ``tracking_protocol``;
        ``num_samples``; ``seconds``. Nothing by a process that is not the first.

    Raises:
        ConfigError: a task that is unknown, or the model has no head for; a subset that the checkpoint cannot take, or
            none that it can; more history than ``evaluation.strict`` allows.
        DataError: the data set has no annotations, or cannot be read.
        CheckpointError: the checkpoint cannot be used.
        Fusion3DError: the output cannot be written; or the devkit is wanted, and is not installed or cannot score it.
    """
    start = time.perf_counter()
    config = load_config_of(checkpoint) if config is None else config
    chosen = choose_subsets(config, subsets)
    tasks = choose_tasks(config, tasks)
    check_history(config)
    scoring = scoring or Scoring()
    tables = Tables.open(config.data.root, config.data.version)
    if not tables.annotated:
        raise DataError(f"{config.data.root} ({config.data.version}) has no annotations to score against; use predict")
    scoring.check(tables, config.data.split, tasks)
    set_deterministic(config.deterministic)
    temperatures = load_temperatures(checkpoint, list(chosen), ema) if config.evaluation.calibrated else {}
    model, _ = load_model(checkpoint, ema, config)
    output = run_shared(model, config, chosen, device, with_occupancy="occupancy" in tasks)
    if output is None:
        return {}

    predicted = time.perf_counter()
    metrics: dict[str, Any] = {"subsets": {name: {} for name in chosen}, "num_samples": len(output.poses)}
    truth = detection_truth(tables, output.poses) if "detection" in tasks else None
    boxes = None if truth is None else BoxScorer(truth, config.data, scoring)
    tracks = TrackScorer(tables, list(output.poses), config.evaluation.tracker) if "tracking" in tasks else None
    if boxes is not None or tracks is not None:
        _note_boxes(metrics, output, temperatures, boxes, tracks, Path(out_dir))
    if "motion" in tasks:
        _note_motion(metrics, output)
    if "planning" in tasks:
        _note_plans(metrics, score_plans(output, tables, config))
    if "map" in tasks:
        _note_map(metrics, output)
    if "occupancy" in tasks:
        _note_occupancy(metrics, output)
    end = time.perf_counter()
    metrics["seconds"] = {
        "reading": output.reading_seconds,
        "sensing": output.sensing_seconds,
        **{f"model.{name}": of_subset.seconds for name, of_subset in output.subsets.items()},
        "scoring": end - predicted,
        "total": end - start,
    }
    write_json(Path(out_dir, "metrics.json"), metrics)
    about = {"checkpoint": str(find_checkpoint(checkpoint)), "ema": ema}
    note_run(out_dir, about, config, next(model.parameters()).device)
    return metrics


def _note_boxes(
    metrics: dict[str, Any],
    output: SplitOutput,
    temperatures: Temperatures,
    boxes: BoxScorer | None,
    tracks: TrackScorer | None,
    out_dir: Path,
) -> None:
    """Score every subset's boxes, their tracks, or both, and what each sensor is worth in them."""
    rows = metrics["subsets"]
    for name, of_subset in output.subsets.items():
        limit = MAX_BOXES if boxes is None else boxes.scoring.protocol.max_boxes_per_sample
        records = _records(of_subset, output.poses, temperatures.get(name), limit)
        if boxes is not None:
            rows[name] |= boxes.score(name, records, of_subset.used, out_dir / name)
        if tracks is not None:
            rows[name]["tracking"] = tracks.track(records, of_subset.used, out_dir / name / TRACKS_FILE)
            metrics["tracking_protocol"] = TRACKING_PROTOCOL
    if boxes is not None:
        metrics |= boxes.beside(rows)


def _note_plans(metrics: dict[str, Any], scores: dict[str, Any]) -> None:
    rows, table = metrics["subsets"], scores["protocols"][NAME]["planners"]
    for name in rows:
        rows[name]["planning"] = table[name]
    others = {name: numbers for name, numbers in table.items() if name not in rows}
    metrics["planning"] = {"model": table[list(rows)[-1]], **others}
    metrics["planning_scores"] = scores
    metrics["planning_protocol"] = " ".join(f"{what}: {text}." for what, text in ABOUT.items())


def _note_motion(metrics: dict[str, Any], output: SplitOutput) -> None:
    for name, of_subset in output.subsets.items():
        metrics["subsets"][name]["motion"] = score_forecasts([*of_subset.agents.values()])
    metrics["motion_protocol"] = MOTION_PROTOCOL


def _note_map(metrics: dict[str, Any], output: SplitOutput) -> None:
    for name, of_subset in output.subsets.items():
        metrics["subsets"][name]["map"] = of_subset.map.scores()
    metrics["map"] = {name: overlap.scores() for name, overlap in output.map_truth.baselines().items()}
    metrics["map_protocol"] = MAP_PROTOCOL


def _note_occupancy(metrics: dict[str, Any], output: SplitOutput) -> None:
    for name, of_subset in output.subsets.items():
        metrics["subsets"][name]["occupancy"] = of_subset.occupancy.scores()
    metrics["occupancy"] = {"still": output.still.scores()}
    metrics["occupancy_protocol"] = OCCUPANCY_PROTOCOL


def choose_tasks(config: Config, names: Sequence[str] | None) -> tuple[str, ...]:
    """The tasks to score, in the order of ``TASKS``; for None the heads that the model has: tracking must be asked for.

    Raises:
        ConfigError: a task that is unknown, or the model has no head for; or it has none that is scored.
    """
    there = [task for task, head in TASKS.items() if getattr(config, head) is not None]
    if not there:
        raise ConfigError("the model has no head: there is nothing to score")
    wrong = [name for name in names or () if name not in there]
    if wrong:
        raise ConfigError(f"no task {wrong[0]!r} for this model; possible: {', '.join(there)}")
    return tuple(task for task in there if (task in names if names is not None else task == TASKS[task]))


def _records(
    of_subset: SubsetOutput, poses: dict[str, np.ndarray], temperature: dict[str, float] | None, limit: int
) -> dict[str, list[dict[str, Any]]]:
    """One subset's boxes in the submission's format. They are dropped: those of all subsets would fill the memory."""
    records = of_subset.records(poses, limit)
    of_subset.boxes.clear()
    return records if temperature is None else soften(records, temperature)


def score_plans(output: SplitOutput, tables: Tables, config: Config) -> dict[str, Any]:
    """The numbers of every subset's plans and of baselines by every protocol, as ``metrics.planning.score_plans``.

    The baselines that are trained are made of ``data.train_split``, where the data set has it and shares no scene. Of a
    planner that chooses among paths, with the largest subset, there is the one likeliest by ``imitation`` too, and
    ``modes`` (``score_modes``).

    Raises:
        DataError: the data set has no driven path to compare with.
    """
    tokens = list(output.poses)
    drives = drives_of(tables, tokens)
    if not drives.known.any():
        raise DataError("no sample of the split has a driven path; planning needs the ego poses of following keyframes")
    steps = drives.future.shape[1]
    plans = {
        name: np.stack([_poses(of_subset.plans[token]) for token in tokens])[:, :steps]
        for name, of_subset in output.subsets.items()
    }
    modes = list(output.subsets.values())[-1].modes
    if modes:
        paths = np.stack([_poses(modes[token].path) for token in tokens])[:, :, :steps]
        likely, scores = (np.stack([getattr(modes[t], name) for t in tokens]) for name in ("imitation", "score"))
        plans["imitation"] = paths[np.arange(len(tokens)), likely.argmax(axis=1)]
    steps = next(iter(plans.values())).shape[1]
    others: dict[str, np.ndarray] = {}
    try:
        train = [tables.token(row) for row in samples_of(tables, config.data.train_split)]
        others = trained_baselines(drives_of(tables, train, agents=False), drives)
    except DataError as error:
        print(f"without ego_mlp and nearest_anchor: {error}", flush=True)
    found = score_every_plan(
        plans | {name: plan[:, :steps] for name, plan in others.items()}, drives, maps=map_of(tables, tokens, True)
    )
    if modes:
        chosen = np.array([int(modes[token].chosen) for token in tokens])
        found["modes"] = score_modes(paths, likely, scores[..., PLAN_SCORES.index("collision")], chosen, drives)
    return found


def _poses(path: Trajectory) -> np.ndarray:
    """[..., T, 3] float64 x, y, yaw."""
    return np.concatenate([path.position, path.yaw[..., None]], axis=-1).astype(np.float64)


def main(argv: list[str] | None = None) -> int:
    """Score a checkpoint under every subset of its sensors, or a result file.

    ``evaluate.py --checkpoint X --out DIR [--subsets camera camera+radar ...] [--data.root R --data.version V
    ...]``, or ``evaluate.py --results FILE --out DIR --data.root R --data.version V --data.split S``
    """
    parser = argparse.ArgumentParser("evaluate", description="Score a checkpoint under every subset of its sensors.")
    parser.allow_abbrev = False
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--results", help="score this result file, anybody's, instead of a checkpoint")
    add_checkpoint_options(parser, source)
    add_prediction_options(parser)
    parser.add_argument(
        "--subsets", nargs="+", help="e.g. lidar camera+radar (default: all that the checkpoint can take)"
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=list(TASKS), help="default: all that the model has a head for; tracking if asked"
    )
    parser.add_argument("--max-boxes", type=int, default=Limits.max_boxes, help="of --results (default: %(default)s)")
    parser.add_argument("--max-bytes", type=int, default=Limits.max_bytes, help="of --results (default: %(default)s)")
    parser.add_argument("--protocol", help="JSON file of a detection protocol in the devkit's form")
    parser.add_argument("--official", action="store_true", help="score with the devkit too, and say how far it is away")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="of the scenes, for intervals; 0: none")
    parser.epilog = f"{parser.epilog} --suite robustness does this with failing sensors: see its own --help."
    options, overrides = parser.parse_known_args(argv)
    if options.resamples and options.resamples < FEWEST_RESAMPLES:
        parser.error(f"--resamples: expected 0 or at least {FEWEST_RESAMPLES}, found {options.resamples}")
    of_checkpoint = [name for name in OF_CHECKPOINT if getattr(options, name[2:].replace("-", "_"))]
    if options.results is not None and of_checkpoint:
        parser.error(
            f"--results: {', '.join(of_checkpoint)} are of a checkpoint, and nothing runs here; leave them out"
        )
    protocol = read_protocol(options.protocol) if options.protocol else CVPR_2019
    scoring = Scoring(protocol, options.official, options.resamples)
    if options.results is not None:
        config = override(Config(), overrides)
        limits = Limits(max_bytes=options.max_bytes, max_boxes=options.max_boxes)
        metrics = score_results(options.results, config, options.out, limits, options.tasks, scoring)
    else:
        config = chosen_config(options, overrides)
        how = options.device, not options.no_ema, options.tasks, scoring
        metrics = evaluate(options.checkpoint, config, options.out, options.subsets, *how)
    if metrics:
        print(format_table(metrics))
        print(f"written: {Path(options.out, 'metrics.json')}")
    return 0


def add_checkpoint_options(parser: argparse.ArgumentParser, source: Any = None) -> None:
    """The options of whatever runs a checkpoint; ``source`` is the group in which the checkpoint is a choice."""
    if source is None:
        source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="checkpoint or run folder")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--device", help="torch device, e.g. cpu or cuda:0 (default: the GPU where there is one)")
    parser.add_argument("--no-ema", action="store_true", help="use the last weights instead of their average")
    parser.epilog = (
        "The configuration is the checkpoint's; every setting can be overridden, e.g. --data.root PATH "
        "--data.version v1.0-mini --data.split mini_val (all are in fusion3d/config/)."
    )


def add_prediction_options(parser: argparse.ArgumentParser) -> None:
    """The options, beside those of a checkpoint, of whatever lets it predict."""
    parser.add_argument("--tta", help="short for --evaluation.tta: flip, rotate or flip_rotate")
    parser.add_argument("--stream", action="store_true", help="short for --evaluation.stream")
    parser.add_argument("--strict", action="store_true", help="short for --evaluation.strict")


def chosen_config(options: argparse.Namespace, overrides: Sequence[str]) -> Config:
    """The checkpoint's configuration with what the command line says, prediction's options among it."""
    short = [] if options.tta is None else ["--evaluation.tta", options.tta]
    short += [f"--evaluation.{flag}" for flag in ("stream", "strict") if getattr(options, flag)]
    return override(load_config_of(options.checkpoint), [*overrides, *short])
