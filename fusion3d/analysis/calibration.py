"""The verb ``calibrate``: how sure a checkpoint is and how often it is right, before and after temperature scaling.

A temperature is fitted for every subset of the sensors and every class (Guo et al., 2017), on one split, and what it
does is reported on another. A box is right when the official matching gives it a true one within 2 m.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion3d.config import Config
from fusion3d.data.nuscenes import Tables
from fusion3d.data.splits import samples_of
from fusion3d.engine.checkpoint import load_config_of, load_model
from fusion3d.engine.columns import found_columns
from fusion3d.engine.evaluate import add_checkpoint_options, add_prediction_options, chosen_config
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.inference import choose_subsets
from fusion3d.engine.leaderboard import check_history
from fusion3d.engine.seed import set_deterministic
from fusion3d.engine.share import run_shared
from fusion3d.engine.temperatures import save_temperatures
from fusion3d.errors import ConfigError, DataError
from fusion3d.files import write_json
from fusion3d.metrics.calibration import apply_temperature, fit_temperature, reliability
from fusion3d.metrics.matching import Matches, match_detections
from fusion3d.types import DETECTION_CLASSES

FILE = "calibration.json"
ENOUGH = 10  # right boxes and wrong ones of a class, for a temperature of its own

Scored = dict[str, tuple[np.ndarray, np.ndarray]]  # by class, [K] scores and [K] bool: is it right?


def calibrate(
    checkpoint: str | Path,
    config: Config | None,
    fit_split: str,
    out_dir: str | Path,
    subsets: Sequence[str] | None = None,
    device: str | None = None,
    ema: bool = True,
    same_split: bool = False,
    keep: bool = True,
) -> dict[str, Any]:
    """Fit temperatures on ``fit_split``, and report ``config.data.split`` before and after.

    Args:
        checkpoint: checkpoint or run folder; its folder gets ``temperatures.json``, which ``evaluation.calibrated``
            reads.
        config: the checkpoint's own with other data; None takes it as it is.
        fit_split: of the same data set. On the split that the model was trained on it is surer than elsewhere.
        out_dir: gets ``calibration.json``.
        subsets: names such as "camera+radar"; None is every one that the checkpoint can take.
        device: torch device name; None takes the GPU where there is one.
        ema: use the averaged weights.
        same_split: the splits may have samples in common; what is reported is then better than it would be elsewhere.
        keep: write the checkpoint's ``temperatures.json``.

    Returns:
        ``fit_split``, ``split``, ``same_samples`` (in both); ``subsets.<name>``: ``temperature`` by class, ``before``
        and ``after``, as ``describe_scores`` gives them.

    Raises:
        ConfigError: no detection head; more history than ``evaluation.strict`` allows; the splits have samples in
            common and may not.
        DataError: no annotations, or the data set cannot be read.
        CheckpointError: the checkpoint cannot be used.
    """
    config = load_config_of(checkpoint) if config is None else config
    if config.detection is None:
        raise ConfigError("detection is null: there are no boxes whose scores could be calibrated")
    chosen = choose_subsets(config, subsets)
    check_history(config)
    tables = Tables.open(config.data.root, config.data.version)
    if not tables.annotated:
        raise DataError(
            f"{config.data.root} ({config.data.version}) has no annotations: nothing says which boxes are right"
        )
    both = set(samples_of(tables, fit_split)) & set(samples_of(tables, config.data.split))
    if both and not same_split:
        raise ConfigError(
            f"{len(both)} samples are in both {fit_split!r}, on which temperatures are fitted, and "
            f"{config.data.split!r}, which is reported: take splits without common samples (splits.json), or say "
            "--same-split"
        )
    set_deterministic(config.deterministic)
    model, _ = load_model(checkpoint, ema, config)
    split = config.data.split
    fitted = _run(model, config, fit_split, chosen, tables, device)
    reported = fitted if fit_split == split else _run(model, config, split, chosen, tables, device)
    if fitted is None or reported is None:  # by a process that is not the first
        return {}
    temperatures = {name: fit_classes(scored) for name, scored in fitted.items()}
    about = {"fit_split": fit_split, "split": split, "same_samples": len(both)}
    of_subsets = {
        name: {
            "temperature": temperatures[name],
            "before": describe_scores(scored),
            "after": describe_scores(at_temperature(scored, temperatures[name])),
        }
        for name, scored in reported.items()
    }
    result = {**about, "subsets": of_subsets}
    write_json(Path(out_dir, FILE), result)
    if keep:
        save_temperatures(checkpoint, temperatures, {"fit_split": fit_split}, ema)
    return result


def fit_classes(scored: Scored) -> dict[str, float]:
    """The temperature of every class; one for all of those with too few right or wrong boxes of their own."""
    shared = fit_temperature(*_together(scored))
    return {
        name: fit_temperature(score, right) if min(right.sum(), (~right).sum()) >= ENOUGH else shared
        for name, (score, right) in scored.items()
    }


def at_temperature(scored: Scored, temperature: Mapping[str, float]) -> Scored:
    """The same boxes with scores at the temperature of their class."""
    return {name: (apply_temperature(score, temperature[name]), right) for name, (score, right) in scored.items()}


def score_classes(matches: Matches) -> Scored:
    """Scores of the boxes of every class, and which of them are right: matched where errors are measured."""
    right = matches.pair[:, matches.protocol.dist_ths.index(matches.protocol.dist_th_tp)] >= 0
    rows = {name: matches.found.label == label for label, name in enumerate(DETECTION_CLASSES)}
    return {name: (matches.score[of_class], right[of_class]) for name, of_class in rows.items()}


def describe_scores(scored: Scored) -> dict[str, Any]:
    """Reliability, as ``reliability`` gives it, of ``all`` boxes and by ``class``; ``mean ECE`` over the classes that
    have boxes.
    """
    of_class = {name: reliability(*one) for name, one in scored.items()}
    errors = [found["ECE"] for found in of_class.values() if np.isfinite(found["ECE"])]
    mean = float(np.mean(errors)) if errors else float("nan")
    return {"all": reliability(*_together(scored)), "mean ECE": mean, "class": of_class}


def _together(scored: Scored) -> tuple[np.ndarray, np.ndarray]:
    score, right = zip(*scored.values(), strict=True)
    return np.concatenate(score), np.concatenate(right)


def _run(
    model: Any, config: Config, split: str, chosen: dict[str, tuple[str, ...]], tables: Tables, device: str | None
) -> dict[str, Scored] | None:
    """Scores and what is right of a split under every subset; None by a process that is not the first."""
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, split=split))
    print(f"{split}:", flush=True)
    output = run_shared(model, config, chosen, device)
    if output is None:
        return None
    truth = detection_truth(tables, output.poses)
    tokens = truth.samples.tokens
    return {
        name: score_classes(match_detections(truth, found_columns(of_subset.records(output.poses), tokens)))
        for name, of_subset in output.subsets.items()
    }


def format_table(result: Mapping[str, Any]) -> str:
    """Expected calibration errors before and after, for a terminal."""
    lines = [f"{'ECE on ' + result['split']:<24}{'before':>10}{'after':>10}{'by class':>12}{'after':>10}"]
    for name, row in result["subsets"].items():
        numbers = [row[when][key] for key in ("all", "mean ECE") for when in ("before", "after")]
        values = [number["ECE"] if isinstance(number, dict) else number for number in numbers]
        lines.append(f"{name:<24}{values[0]:>10.3f}{values[1]:>10.3f}{values[2]:>12.3f}{values[3]:>10.3f}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """``calibrate --checkpoint X --fit SPLIT --out DIR [--subsets camera ...] [--same-split] [--data.split S ...]``."""
    parser = argparse.ArgumentParser(
        "calibrate",
        description="Fit the temperatures of a checkpoint's scores on one split, report another before and after.",
        allow_abbrev=False,
    )
    add_checkpoint_options(parser)
    add_prediction_options(parser)
    parser.add_argument("--fit", required=True, metavar="SPLIT", help="split that temperatures are fitted on")
    parser.add_argument(
        "--subsets", nargs="+", help="e.g. lidar camera+radar (default: all that the checkpoint can take)"
    )
    parser.add_argument("--same-split", action="store_true", help="the two splits may have samples in common")
    parser.add_argument("--dry", action="store_true", help="leave the checkpoint's temperatures as they are")
    options, overrides = parser.parse_known_args(argv)
    config = chosen_config(options, overrides)
    result = calibrate(
        options.checkpoint, config, options.fit, options.out, options.subsets, options.device, not options.no_ema,
        options.same_split, not options.dry,
    )  # fmt: skip
    if result:
        print(format_table(result))
        print(
            f"written: {Path(options.out, FILE)}"
            + ("" if options.dry else "; use it with --evaluation.calibrated true")
        )
    return 0
