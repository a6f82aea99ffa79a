"""Scoring a result file, anybody's, by the metrics that our own checkpoints get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusion3d.config import Config
from fusion3d.data.nuscenes import Tables
from fusion3d.data.splits import samples_of
from fusion3d.engine.columns import result_columns
from fusion3d.engine.environment import RUN, note_run
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.results import Limits, read_results
from fusion3d.engine.scoring import BoxScorer, Scoring
from fusion3d.engine.submission import RESULTS_FILE, write_submission
from fusion3d.engine.tracking import TRACKS_FILE, TrackScorer
from fusion3d.errors import ConfigError, DataError
from fusion3d.files import write_json
from fusion3d.metrics.tracking import PROTOCOL as TRACKING_PROTOCOL


def score_results(
    path: str | Path,
    config: Config,
    out_dir: str | Path,
    limits: Limits | None = None,
    tasks: Sequence[str] | None = None,
    scoring: Scoring | None = None,
) -> dict[str, Any]:
    """Score a result file on ``data.split`` and write ``metrics.json`` and ``run.json`` into ``out_dir``.

    The file's boxes go from its text into columns: no record of one is kept, unless they are tracked here or the devkit
    scores them too.

    Args:
        path: JSON as in ``read_results``.
        config: ``data`` and ``evaluation.tracker`` are read.
        out_dir: folder; gets ``matches.npz`` of detections, the tracks too where these are tracked, and what the
            devkit scored.
        limits: of the file's size; how many boxes a sample may have, ``scoring`` says.
        tasks: "detection" or "tracking"; None is what the file holds. Detections can be tracked here.
        scoring: how boxes are scored; None is as the benchmark does.

    Returns:
        As ``evaluate``, with one row of ``subsets`` under the file's name without its ending; ``remarks``: what is
        wrong with the file, but does not keep it from being scored.

    Raises:
        ConfigError: a task that the file does not serve; or the file lies where one is to be written.
        DataError: the file or the data set cannot be read, has samples that the other lacks, or no annotations.
    """
    data = config.data
    scoring = scoring or Scoring()
    for name in ("metrics.json", RUN, TRACKS_FILE, *([RESULTS_FILE] if scoring.official else [])):
        if Path(out_dir, name).resolve() == Path(path).resolve():
            raise ConfigError(f"{path} would be written over: choose another --out than its own folder")
    tables = Tables.open(data.root, data.version)
    if not tables.annotated:
        raise DataError(f"{data.root} ({data.version}) has no annotations to score against")
    scoring.check(tables, data.split, tasks or ("detection",))
    tokens = [tables.token(row) for row in samples_of(tables, data.split)]
    limits = replace(limits or Limits(), boxes_per_sample=scoring.protocol.max_boxes_per_sample)
    results = read_results(path, tokens, limits)
    possible = ("detection", "tracking") if results.task == "detection" else ("tracking",)
    tasks = (results.task,) if tasks is None else tasks
    wrong = [task for task in tasks if task not in possible]
    if wrong:
        raise ConfigError(f"{path} holds {results.task} results: no task {wrong[0]!r}; possible: {', '.join(possible)}")
    scoring.check(tables, data.split, tasks)
    name, row = Path(path).stem, {}
    metrics: dict[str, Any] = {"subsets": {name: row}, "num_samples": len(tokens), "meta": results.meta}
    metrics["remarks"] = [*results.remarks]
    if "tracking" in tasks:
        scorer = TrackScorer(tables, tokens, config.evaluation.tracker)
        if results.task == "tracking":
            row["tracking"] = scorer.score(results)
        else:
            row["tracking"] = scorer.track(results.records(), results.sensors, Path(out_dir, TRACKS_FILE))
        metrics["tracking_protocol"] = TRACKING_PROTOCOL
    if "detection" in tasks:
        scorer, copy = BoxScorer(detection_truth(tables, tokens), data, scoring), None
        if scoring.official:  # the devkit stops at what can be scored all the same, such as a flag that is not there
            copy = write_submission(Path(out_dir, RESULTS_FILE), results.records(), results.sensors)
        row |= scorer.score_columns(name, result_columns(results, tokens), Path(out_dir), copy, results.tokens)
    write_json(Path(out_dir, "metrics.json"), metrics)
    note_run(out_dir, {"results": str(Path(path).absolute())}, config, "cpu")
    return metrics
