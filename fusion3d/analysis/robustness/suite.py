"""One evaluation after the other, each of the same samples under another condition; those that are there are kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusion3d.analysis.comparison.runs import digest_of, settings_that_differ, weights_digest
from fusion3d.analysis.robustness.conditions import CLEAN, Condition, Family
from fusion3d.analysis.robustness.summary import METRICS
from fusion3d.config import Config, from_dict, to_dict
from fusion3d.data.nuscenes import Tables
from fusion3d.engine.checkpoint import load_model, weights_file
from fusion3d.engine.columns import found_columns
from fusion3d.engine.distributed import Processes
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.inference import choose_subsets
from fusion3d.engine.leaderboard import check_history
from fusion3d.engine.seed import set_deterministic
from fusion3d.engine.share import one_voice, run_among
from fusion3d.errors import ConfigError, DataError, Fusion3DError
from fusion3d.files import read_json, write_json
from fusion3d.metrics.bootstrap import draw_scenes, sample_numbers
from fusion3d.metrics.detection import score_matches
from fusion3d.metrics.matching import match_detections

RESULTS = "conditions"  # folder of the results


@dataclass(frozen=True)
class Suite:
    """What is tried on which model.

    Args:
        checkpoint: checkpoint or run folder.
        config: its own, with other data or thresholds; without corruptions.
        families: what is tried.
        out: folder of the results.
        subsets: names such as "camera+radar", scored without corruption; None is every one. The largest is corrupted.
        ema: use the averaged weights.

    Raises:
        ConfigError: the model finds no boxes, the data are corrupted already, or a subset cannot be.
    """

    checkpoint: Path
    config: Config
    families: tuple[Family, ...]
    out: Path
    subsets: tuple[str, ...] | None = None
    ema: bool = True

    def __post_init__(self) -> None:
        if self.config.detection is None:
            raise ConfigError("detection: found null; robustness is measured by the NDS and mAP of boxes")
        if self.config.data.corruptions:
            raise ConfigError(
                f"data.corruptions is {self.config.data.corruptions}: leave it empty, a suite has its own"
            )
        choose_subsets(self.config, self.subsets)

    @property
    def whole(self) -> str:
        """The subset that is corrupted: the largest."""
        return list(choose_subsets(self.config, self.subsets))[-1]

    def conditions(self) -> list[Condition]:
        """Everything that is tried, beginning with nothing."""
        return [CLEAN, *(family.at(amount) for family in self.families for amount in family.amounts)]

    def config_of(self, condition: Condition) -> Config:
        """The settings of a condition."""
        return replace(self.config, data=replace(self.config.data, corruptions=condition.corruptions))

    def subsets_of(self, condition: Condition) -> dict[str, tuple[str, ...]]:
        """The subsets that are scored under a condition."""
        chosen = choose_subsets(self.config, self.subsets)
        return chosen if condition == CLEAN else {self.whole: chosen[self.whole]}

    def path(self, condition: Condition) -> Path:
        """Where the result of a condition lies."""
        return self.out / RESULTS / f"{condition.name.replace(':', '-')}.json"


def run_suite(suite: Suite, device: str | None = None) -> dict[str, Any] | None:
    """Do whatever is not done.

    Under torchrun the processes share the samples of each condition. A result is kept if it was made with the same
    settings, weights and data.

    Args:
        suite: what is tried.
        device: torch device name; None takes the GPU where there is one.

    Returns:
        The results by the conditions' names, each with "numbers" by subset (those of ``score_detections``), "drawn" by
        subset and metric (the number in every draw of "scenes" scenes, the same for all conditions), "samples" and
        "seconds"; None by a process that is not the first.

    Raises:
        ConfigError: more history than ``evaluation.strict`` allows.
        DataError: the data set has no annotations, or cannot be read.
        CheckpointError: the checkpoint cannot be used.
        Fusion3DError: a result cannot be written.
    """
    check_history(suite.config)
    tables = Tables.open(suite.config.data.root, suite.config.data.version)
    if not tables.annotated:
        raise DataError(f"{tables.root} ({tables.version}) has no annotations to score against")
    same = {
        "weights": weights_digest(weights_file(suite.checkpoint, suite.ema)),
        "data": digest_of(suite.config),
        "whole": suite.whole,
    }
    set_deterministic(suite.config.deterministic)
    conditions = suite.conditions()
    with one_voice(device) as where:
        # All look before one of them writes: so all do the same.
        results = {one.name: found for one in conditions if (found := _kept(suite, one, same)) is not None}
        where.gather(None)
        todo = [one for one in conditions if one.name not in results]
        print(f"{len(conditions)} conditions, {len(results)} of them done before; results in {suite.out / RESULTS}")
        if todo:
            results |= _run(suite, todo, same, tables, where)
    return {one.name: results[one.name] for one in conditions} if where.first else None


def _run(
    suite: Suite, todo: Sequence[Condition], same: dict[str, str], tables: Tables, where: Processes
) -> dict[str, Any]:
    model, _ = load_model(suite.checkpoint, suite.ema, suite.config)
    results, start = {}, time.perf_counter()
    for count, condition in enumerate(todo):
        begin = time.perf_counter()
        spent = begin - start
        left = f"; about {spent / count * (len(todo) - count) / 60:.0f} min left" if count else ""
        print(f"[{count + 1}/{len(todo)}, {spent / 60:.1f} min{left}] {condition.name}", flush=True)
        config = suite.config_of(condition)
        output = run_among(where, model, config, suite.subsets_of(condition))
        if output is None:
            continue
        truth = detection_truth(tables, output.poses)
        num_scenes = len(truth.samples.scenes)
        draws, numbers, drawn = draw_scenes(num_scenes), {}, {}
        for name, of in output.subsets.items():
            matches = match_detections(truth, found_columns(of.records(output.poses), truth.samples.tokens))
            numbers[name], sampled = score_matches(matches), sample_numbers(matches, draws)
            drawn[name] = {metric: sampled.drawn[metric][draws.number].tolist() for metric in METRICS}
        result = same | {
            "condition": condition.name,
            "config": to_dict(config),
            "numbers": numbers,
            "drawn": drawn,
            "scenes": num_scenes,
            "samples": len(output.poses),
            "seconds": time.perf_counter() - begin,
        }
        write_json(suite.path(condition), result)
        results[condition.name] = result
        of = numbers[suite.whole]
        print(f"  NDS {of['NDS']:.3f}, mAP {of['mAP']:.3f} with {suite.whole}", flush=True)
    return results


def _kept(suite: Suite, condition: Condition, same: dict[str, str]) -> dict[str, Any] | None:
    """The result that is there, if it is of the same settings, weights and data."""
    try:
        result = read_json(suite.path(condition), "")
        there = from_dict(result["config"])
        scored = result["numbers"].keys() & result["drawn"].keys()
        equal = all(result[key] == value for key, value in same.items()) and result["condition"] == condition.name
    except (KeyError, TypeError, AttributeError, Fusion3DError):
        return None  # none, half of one, or of another version: it is made anew
    if not equal or settings_that_differ(there, suite.config_of(condition)):
        return None
    return result if scored >= suite.subsets_of(condition).keys() else None
