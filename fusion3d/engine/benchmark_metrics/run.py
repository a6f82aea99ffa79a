"""``fusion3d benchmark metrics``: how long scoring and loading take, beside the official devkit doing the same."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fusion3d.data.nuscenes import Tables
from fusion3d.engine.benchmark_metrics.crowd import FULL_SAMPLES, CrowdTables, devkit_boxes, make_crowd
from fusion3d.engine.benchmark_metrics.tables import FULL_SCENES, VERSION, write_tables
from fusion3d.engine.benchmark_ops import table
from fusion3d.engine.environment import environment, headline
from fusion3d.engine.official import devkit, greatest_difference
from fusion3d.errors import Fusion3DError
from fusion3d.files import write_json, write_whole
from fusion3d.metrics.detection import score_detections
from fusion3d.metrics.protocol import CVPR_2019

AGREED = 1e-9  # greatest difference of any number
REPEATS = 3  # of ours: the shortest counts; the devkit takes minutes and goes once


@dataclass(frozen=True)
class Race:
    """Ours against the devkit at the same work."""

    work: str
    size: str
    ours: float  # [s]
    devkit: float  # [s]
    target: float | None = None  # ratio that is wanted at least

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.devkit / self.ours


def time_scoring(num_samples: int, num_boxes: int, say: Callable[[str], None]) -> list[Race]:
    """Filter, match and score a submission, by ours and by the devkit's own functions; both have it in memory.

    Raises:
        Fusion3DError: they do not agree, or the devkit is not installed.
    """
    kit = devkit()
    say(f"making {num_samples} samples of {num_boxes} detections")
    truth, found = make_crowd(num_samples, num_boxes)
    score_detections(*make_crowd(2, 10))  # compiles
    say("ours")
    readings, scores = [], {}
    for _ in range(REPEATS):
        seconds, scores = _clock(lambda: score_detections(truth, found))
        readings.append(seconds)
    say("making the devkit's boxes")
    tokens = truth.samples.tokens
    evaluation = kit.DetectionEval.__new__(kit.DetectionEval)
    evaluation.verbose, evaluation.cfg = False, kit.DetectionConfig.deserialize(CVPR_2019.as_dict())
    evaluation.gt_boxes = devkit_boxes(kit, truth.boxes, tokens)
    evaluation.pred_boxes = devkit_boxes(kit, found, tokens)
    say("the devkit's filters")
    filtering, _ = _clock(lambda: _filter(kit, evaluation, CrowdTables(truth)))
    say("the devkit's scores")
    scoring, result = _clock(lambda: evaluation.evaluate()[0].serialize())
    difference, name = greatest_difference(scores, result)
    if difference > AGREED:
        raise Fusion3DError(f"ours and the devkit's disagree by {difference} in {name}: their times mean nothing")
    say(f"they agree: NDS {scores['NDS']:.4f}, greatest difference {difference:.1e}")
    size = f"{num_samples:,} samples, {len(found):,} detections, {len(truth.boxes):,} truth boxes"
    return [
        Race("filter, match and score", size, min(readings), filtering + scoring, 20.0),
        Race("the same, without the devkit's filters", size, min(readings), scoring),
    ]


def _filter(kit: SimpleNamespace, evaluation: Any, tables: CrowdTables) -> None:
    for name in ("gt_boxes", "pred_boxes"):
        boxes = kit.add_center_dist(tables, getattr(evaluation, name))
        setattr(evaluation, name, kit.filter_eval_boxes(tables, boxes, evaluation.cfg.class_range))


def time_loading(num_scenes: int, say: Callable[[str], None]) -> list[Race]:
    """Open the tables of a data set: for the first time, which makes the cache, and later; and by ``NuScenes(...)``.

    Raises:
        Fusion3DError: the two do not read the same, or the devkit is not installed.
    """
    kit = devkit()
    with tempfile.TemporaryDirectory() as folder, _cache(Path(folder, "cache")):
        Tables.open(write_tables(Path(folder, "small"), 1), VERSION)  # compiles what reads them, once for all times
        say(f"writing tables of {num_scenes} scenes")
        root = write_tables(Path(folder, "data"), num_scenes)
        for path in (root / VERSION).glob("*.json"):
            path.read_bytes()  # the disk is no part of the race
        say("ours, first time")
        first, tables = _clock(lambda: Tables.open(root, VERSION))
        del tables
        gc.collect()
        say("ours, from its cache")
        later, tables = _clock(lambda: Tables.open(root, VERSION))
        say("the devkit")
        theirs, nusc = _clock(lambda: kit.NuScenes(VERSION, str(root), verbose=False))
        _check_equal(tables, nusc)
        size = f"{num_scenes} scenes, {len(tables.data_time):,} files, {len(tables.box_class):,} boxes"
        return [
            Race("open tables, again", size, later, theirs, 5.0),
            Race("open tables, first time", size, first, theirs, 5.0),
        ]


def _check_equal(tables: Tables, nusc: Any) -> None:
    """Fusion3DError where the two have not read the same; every 97th box, and every sample's pose."""
    same = len(nusc.sample_annotation) == len(tables.box_class) and len(nusc.sample_data) == len(tables.data_time)
    order = np.argsort([tables.row_of(record["sample_token"]) for record in nusc.sample_annotation], kind="stable")
    for row in range(0, len(order), 97) if same else ():
        record = nusc.sample_annotation[order[row]]
        velocity = nusc.box_velocity(record["token"])
        same &= tables.box_center[row].tolist() == record["translation"]
        same &= np.array_equal(tables.box_velocity[row], velocity, equal_nan=True)
    for record in nusc.sample:
        pose = nusc.get("ego_pose", nusc.get("sample_data", record["data"]["LIDAR_TOP"])["ego_pose_token"])
        same &= tables.global_from_ego(tables.row_of(record["token"]))[:3, 3].tolist() == pose["translation"]
    if not same:
        raise Fusion3DError("ours and the devkit's tables disagree: their times mean nothing")


@contextlib.contextmanager
def _cache(folder: Path) -> Any:
    """A cache folder of this run alone."""
    before = os.environ.get("FUSION3D_CACHE")
    os.environ["FUSION3D_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["FUSION3D_CACHE"]
        else:
            os.environ["FUSION3D_CACHE"] = before


def _clock(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def markdown(races: Sequence[Race], about: dict[str, Any]) -> str:
    """The page."""
    lines = ["| work | size | fusion3d | devkit | ratio | target |", "| --- | --- | --- | --- | --- | --- |"]
    for race in races:
        target = "" if race.target is None else f">= {race.target:g} {'yes' if race.ratio >= race.target else 'NO'}"
        times = f"{table.seconds(race.ours)} | {table.seconds(race.devkit)} | {race.ratio:.3g}x"
        lines.append(f"| {race.work} | {race.size} | {times} | {target} |")
    return (
        f"# Metrics\n\n{headline(about)}\n\n"
        "Against nuscenes-devkit in the same process. Scoring: detections and truth lie in memory in each one's own "
        f"form; every number is compared first (within {AGREED:g}), ours is the shortest of {REPEATS} runs, the "
        "devkit runs once. Loading: tables of generated content and real size, each run once with the files in the "
        "system's cache and with everything compiled. The first time ours reads the JSON, on the threads there are, "
        "and writes a cache of its own, "
        "which is read from then on.\n\n" + "\n".join(lines) + "\n"
    )


def main(argv: Sequence[str]) -> int:
    """Time scoring and loading, print the page and write it where wanted."""
    parser = argparse.ArgumentParser(prog="benchmark metrics", description="Speed of scoring, against the devkit.")
    parser.add_argument("--quick", action="store_true", help="60 samples and 10 scenes, to see that it works")
    parser.add_argument("--samples", type=int, default=FULL_SAMPLES, help="of the submission")
    parser.add_argument("--boxes", type=int, default=300, help="detections of a sample")
    parser.add_argument("--scenes", type=int, default=FULL_SCENES, help="of the tables")
    parser.add_argument("--json", type=Path, help="file to write with every figure")
    parser.add_argument("--markdown", type=Path, help="file to write with the table")
    args = parser.parse_args(list(argv))
    samples, scenes = (60, 10) if args.quick else (args.samples, args.scenes)
    if min(samples, scenes, args.boxes) < 1 or args.boxes > CVPR_2019.max_boxes_per_sample:
        parser.error("expected at least 1 of everything, and at most 500 boxes in a sample")
    begin = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - begin:5.0f} s] {what}", flush=True)

    races = [*time_scoring(samples, args.boxes, say), *time_loading(scenes, say)]
    about = environment("cpu", "generated data")
    page = markdown(races, about)
    print(page)
    if args.json:
        rows = [{**asdict(race), "ratio": race.ratio} for race in races]
        write_json(args.json, {"environment": about, "races": rows})
    if args.markdown:
        write_whole(args.markdown, page.encode())
    return 0
