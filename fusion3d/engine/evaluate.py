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
from fusion3d.engine.checkpoint import load_config_of, load_model
from fusion3d.engine.drives import drives_of, map_of
from fusion3d.engine.evaluate_plans import trained_baselines
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.inference import SplitOutput, SubsetOutput, choose_subsets
from fusion3d.engine.seed import set_deterministic
from fusion3d.engine.share import run_shared
from fusion3d.engine.submission import write_submission
from fusion3d.errors import DataError
from fusion3d.files import write_json
from fusion3d.metrics.detection import Truth, score_detections
from fusion3d.metrics.map import PROTOCOL as MAP_PROTOCOL
from fusion3d.metrics.map import score_map
from fusion3d.metrics.planning import score_plans as score_every_plan
from fusion3d.metrics.planning.exact import ABOUT, NAME
from fusion3d.types import MAP_CLASSES

COLUMNS = ("NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
PLAN_COLUMNS = ("L2@1s", "L2@2s", "L2@3s", "collision@1s", "collision@2s", "collision@3s")


def evaluate(
    checkpoint: str | Path,
    config: Config | None,
    out_dir: str | Path,
    subsets: Sequence[str] | None = None,
    device: str | None = None,
    ema: bool = True,
) -> dict[str, Any]:
    """Score a checkpoint on ``config.data.split`` and write everything into ``out_dir``.

    Under torchrun the processes share the samples, and the first scores them: the numbers are those of one process.

    Args:
        checkpoint: checkpoint or run folder.
        config: the checkpoint's own with other data, thresholds or sensors; None takes it as it is.
        out_dir: gets ``metrics.json`` and ``<subset>/results_nusc.json``.
        subsets: names such as "camera+radar"; None is every one that the checkpoint can take.
        device: torch device name; None takes the GPU where there is one.
        ema: use the averaged weights.

    Returns:
        ``subsets.<name>``: numbers of ``score_detections``, ``planning`` with that subset's plan, and ``map`` with its
        numbers of ``score_map``;
        ``planning``: for ``model`` (the largest subset), the baselines and ``human`` the numbers of ``score_exact``;
        ``planning_scores``: those by every protocol, the PDM-style score and the skill, as ``metrics.planning`` gives
        them; ``planning_protocol``: the exact one in words;
        ``map``: for ``everywhere`` and ``average`` the numbers of ``score_map``; ``map_protocol``;
        ``num_samples``; ``seconds``. Nothing by a process that is not the first.

    Raises:
        ConfigError: a subset that the checkpoint cannot take, or none that it can.
        DataError: the data set has no annotations, or cannot be read.
        CheckpointError: the checkpoint cannot be used.
        Fusion3DError: the devkit is not installed, or the output cannot be written.
    """
    start = time.perf_counter()
    config = load_config_of(checkpoint) if config is None else config
    chosen = choose_subsets(config, subsets)
    tables = Tables.open(config.data.root, config.data.version)
    if not tables.annotated:
        raise DataError(f"{config.data.root} ({config.data.version}) has no annotations to score against; use predict")
    set_deterministic(config.deterministic)
    model, _ = load_model(checkpoint, ema, config)
    output = run_shared(model, config, chosen, device)
    if output is None:
        return {}

    scoring = time.perf_counter()
    metrics: dict[str, Any] = {"subsets": {name: {} for name in chosen}, "num_samples": len(output.poses)}
    if config.detection is not None:
        truths = {token: detection_truth(tables, token) for token in output.poses}
        for name, of_subset in output.subsets.items():
            metrics["subsets"][name] |= _score_boxes(of_subset, output.poses, truths, Path(out_dir, name))
    if config.planning is not None:
        scores = score_plans(output, tables, config)
        table = scores["protocols"][NAME]["planners"]
        for name in chosen:
            metrics["subsets"][name]["planning"] = table[name]
        metrics["planning"] = {
            "model": table[list(chosen)[-1]],
            **{k: v for k, v in table.items() if k not in chosen},
        }
        metrics["planning_scores"] = scores
        metrics["planning_protocol"] = " ".join(f"{what}: {text}." for what, text in ABOUT.items())
    if config.map is not None:
        for name, of_subset in output.subsets.items():
            metrics["subsets"][name]["map"] = score_map(of_subset.map)
        metrics["map"] = {name: score_map(overlap) for name, overlap in output.map_truth.baselines().items()}
        metrics["map_protocol"] = MAP_PROTOCOL
    end = time.perf_counter()
    metrics["seconds"] = {
        "reading": output.reading_seconds,
        **{f"model.{name}": of_subset.seconds for name, of_subset in output.subsets.items()},
        "scoring": end - scoring,
        "total": end - start,
    }
    write_json(Path(out_dir, "metrics.json"), metrics)
    return metrics


def _score_boxes(
    of_subset: SubsetOutput, poses: dict[str, np.ndarray], truths: dict[str, Truth], folder: Path
) -> dict[str, Any]:
    """Write one subset's submission and score it; its boxes are dropped: of all subsets they would fill the memory."""
    records = of_subset.records(poses)
    of_subset.boxes.clear()
    write_submission(folder / "results_nusc.json", records, of_subset.used)
    return score_detections(truths, records)


def score_plans(output: SplitOutput, tables: Tables, config: Config) -> dict[str, Any]:
    """The numbers of every subset's plans and of baselines by every protocol, as ``metrics.planning.score_plans``.

    The baselines that are trained are made of ``data.train_split``, where the data set has it and shares no scene.

    Raises:
        DataError: the data set has no driven path to compare with.
    """
    tokens = list(output.poses)
    drives = drives_of(tables, tokens)
    if not drives.known.any():
        raise DataError("no sample of the split has a driven path; planning needs the ego poses of following keyframes")
    plans = {
        name: np.stack(
            [
                np.concatenate([of_subset.plans[token].position, of_subset.plans[token].yaw[:, None]], axis=1)
                for token in tokens
            ]
        ).astype(np.float64)[:, : drives.future.shape[1]]
        for name, of_subset in output.subsets.items()
    }
    steps = next(iter(plans.values())).shape[1]
    others: dict[str, np.ndarray] = {}
    try:
        train = [tables.token(row) for row in samples_of(tables, config.data.train_split)]
        others = trained_baselines(drives_of(tables, train, agents=False), drives)
    except DataError as error:
        print(f"without ego_mlp and nearest_anchor: {error}", flush=True)
    return score_every_plan(
        plans | {name: plan[:, :steps] for name, plan in others.items()}, drives, maps=map_of(tables, tokens, True)
    )


def format_table(metrics: dict[str, Any]) -> str:
    """The numbers as a table for a terminal."""
    lines = []
    detection = {name: row for name, row in metrics["subsets"].items() if "NDS" in row}
    if detection:
        lines += [_row("sensors", COLUMNS)] + [_row(name, [row[c] for c in COLUMNS]) for name, row in detection.items()]
    if "planning" in metrics:
        plans = metrics["planning"]
        lines += ["", _row("planning", [*PLAN_COLUMNS, "N", "events"])]
        for name, row in plans.items():
            counts = [f"{row[column]:.0f}" for column in ("N", "events")]
            lines.append(_row(name, [*(row[column] for column in PLAN_COLUMNS), *counts]))
        samples = metrics["planning_scores"]["protocols"][NAME]["samples"]
        lines.append(
            f"exact, samples {samples}, ego {ABOUT['ego'].split(',')[0]}, nothing masked; in metrics.json: six"
        )
        lines.append("published protocols on the same plans, the PDM-style score, and skill over ctrv by manoeuvre")
    if "map" in metrics:
        maps = {name: row["map"] for name, row in metrics["subsets"].items()} | metrics["map"]
        for at in ("0.5", "best"):
            lines += ["", _row(f"map IoU@{at}", ["mean", *MAP_CLASSES])]
            lines += [_row(k, [row[f"mIoU@{at}"], *row[f"IoU@{at}"].values()]) for k, row in maps.items()]
    return "\n".join(lines).lstrip()  # without detection the first table has no line above it


def _row(name: str, values: Sequence[str | float]) -> str:
    return f"{name:<20}" + "".join(f"{v:>14}" if isinstance(v, str) else f"{v:>14.3f}" for v in values)


def main(argv: list[str] | None = None) -> int:
    """Score a checkpoint under every subset of its sensors.

    ``evaluate.py --checkpoint X --out DIR [--subsets camera camera+radar ...] [--data.root R --data.version V
    ...]``
    """
    parser = argparse.ArgumentParser("evaluate", description="Score a checkpoint under every subset of its sensors.")
    parser.allow_abbrev = False
    add_checkpoint_options(parser)
    parser.add_argument(
        "--subsets", nargs="+", help="e.g. lidar camera+radar (default: all that the checkpoint can take)"
    )
    options, overrides = parser.parse_known_args(argv)
    config = chosen_config(options, overrides)
    metrics = evaluate(options.checkpoint, config, options.out, options.subsets, options.device, not options.no_ema)
    if metrics:
        print(format_table(metrics))
        print(f"written: {Path(options.out, 'metrics.json')}")
    return 0


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """The options that evaluation and prediction share."""
    parser.add_argument("--checkpoint", required=True, help="checkpoint or run folder")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--device", help="torch device, e.g. cpu or cuda:0 (default: the GPU where there is one)")
    parser.add_argument("--no-ema", action="store_true", help="use the last weights instead of their average")
    parser.add_argument("--tta", help="short for --evaluation.tta: flip, rotate or flip_rotate")
    parser.add_argument("--stream", action="store_true", help="short for --evaluation.stream true")
    parser.epilog = (
        "The configuration is the checkpoint's; every setting can be overridden, e.g. --data.root PATH "
        "--data.version v1.0-mini --data.split mini_val (all are in fusion3d/config/)."
    )


def chosen_config(options: argparse.Namespace, overrides: Sequence[str]) -> Config:
    """The checkpoint's configuration with what the command line says."""
    short = [] if options.tta is None else ["--evaluation.tta", options.tta]
    short += ["--evaluation.stream", "true"] if options.stream else []
    return override(load_config_of(options.checkpoint), [*overrides, *short])
