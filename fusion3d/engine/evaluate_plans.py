"""Plans of anybody's scored by every protocol: ``tools/evaluate_plans.py PLANS.json``."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion3d.data.nuscenes import Tables
from fusion3d.data.plans import PlanFile, read_plans
from fusion3d.data.splits import samples_of
from fusion3d.data.tracks import read_tracks
from fusion3d.engine.drives import drives_of, drives_of_tracks, map_of
from fusion3d.engine.ego_mlp import EgoMLP
from fusion3d.engine.physics import format_tracks, score_tracks
from fusion3d.engine.plan_table import format_planning
from fusion3d.errors import ConfigError, DataError
from fusion3d.files import write_json
from fusion3d.metrics.forecast import score_forecasts
from fusion3d.metrics.planning import PROTOCOLS, Drives, Map, score_plans
from fusion3d.metrics.planning.baselines import make_anchors, nearest_anchor
from fusion3d.metrics.planning.exact import NAME, usable
from fusion3d.metrics.planning.paths import from_lidar, path_heading, towed_heading, with_heading, wrap
from fusion3d.metrics.planning.protocols import BEV_PLANNER, PUBLISHED
from fusion3d.types import TIME_STEP

ANCHORS = 32
_STRAIGHT = np.deg2rad(5)
_TURNED = 30.0  # [degrees]
_FAR, _ASIDE = 5.0, 2.0  # [m] driven forward, and to a side, that a plan's frame shows at
_SHORT, _ASTRAY = 1 / 3, 50.0  # of the way that the human drives, [m] from where the human is: no plan but a mistake


def poses_of(file: PlanFile, drives: Drives, path: str) -> tuple[np.ndarray, np.ndarray]:
    """A file's plans for samples, as poses in ego.

    Args:
        file: plans by token, perhaps not of all samples.
        drives: N samples.
        path: of the file, for messages.

    Returns:
        [N, T, 3] poses, zero where there is no plan; [N] bool, where there is one.

    Raises:
        DataError: none of the samples has a plan.
    """
    there = np.array([token in file.plans for token in drives.tokens], dtype=bool)
    if not there.any():
        raise DataError(
            f"{path}: none of its {len(file.plans)} sample tokens is one of the {len(drives)} evaluated; check the "
            "data set, its version and the split"
        )
    steps = min(len(next(iter(file.plans.values()))), drives.future.shape[1])
    plan = np.stack([file.plans.get(token, np.zeros((steps, 3)))[:steps] for token in drives.tokens])
    headed = np.asarray(np.isfinite(plan[..., 2]).all(axis=1))
    if file.frame == "ego":
        poses = np.where(headed[:, None, None], plan, with_heading(plan[..., :2]))
    else:
        turn = drives.mount[:, None, 2]
        x = np.cos(turn) * plan[..., 0] - np.sin(turn) * plan[..., 1]
        y = np.sin(turn) * plan[..., 0] + np.cos(turn) * plan[..., 1]
        towed = towed_heading(np.stack([x, y], axis=-1), drives.mount[:, 0])
        yaw = np.where(headed[:, None], plan[..., 2], towed - turn)
        poses = from_lidar(np.concatenate([plan[..., :2], yaw[..., None]], axis=-1), drives.mount)
    return np.where(there[:, None, None], poses, 0.0), there


def check_frame(plan: np.ndarray, there: np.ndarray, drives: Drives) -> str | None:
    """What looks wrong with the frame of plans, from where the human drove straight or turned; None: nothing.

    Args:
        plan: [N, T, 3] in ego.
        there: [N] bool, samples with a plan.
        drives: N samples.
    """
    last = plan.shape[1] - 1
    known = there & drives.known[:, last]
    ours, human = plan[:, last, :2], drives.future[:, last]
    straight = known & (np.abs(human[:, 2]) < _STRAIGHT) & (human[:, 0] > _FAR)
    if straight.any():
        angle = np.degrees(np.arctan2(ours[straight, 1].sum(), ours[straight, 0].sum()))
        if abs(angle) > 45:
            return (
                f"where the human drives straight ahead, the plans go {angle:.0f} degrees to the left of that: is the "
                'frame right? "ego" has x forward and y left, "lidar" x to the right and y forward'
            )
        apart = np.median(np.linalg.norm(ours[straight] - human[straight, :2], axis=1))
        if apart > _ASTRAY:
            return (
                f"where the human drives straight ahead, the plans end {apart:.0f} m away from the human: are they "
                "metres in the frame of the sample, not of the map?"
            )
        part = np.median(np.linalg.norm(ours[straight], axis=1) / np.linalg.norm(human[straight, :2], axis=1))
        if part < _SHORT:
            return (
                f"where the human drives straight ahead, the plans go {part:.2f} times as far: are they positions, not "
                "the offset of each step from the one before?"
            )
        turned = plan[straight, last, 2] - path_heading(plan[straight, :, :2])[:, last]
        off = np.degrees(np.median(np.abs(wrap(turned))))
        if off > _TURNED:
            return (
                f"where the human drives straight ahead, the plans head {off:.0f} degrees off the way that they go: is "
                "the yaw that of the vehicle's x axis, in radians?"
            )
    aside = known & (np.abs(human[:, 1]) > _ASIDE)
    if aside.sum() >= 5 and (np.sign(human[aside, 1]) * ours[aside, 1]).sum() < 0:
        return "where the human turns to one side, the plans go to the other: is their y (or x) mirrored?"
    return None


def trained_baselines(training: Drives, drives: Drives) -> dict[str, np.ndarray]:
    """The baselines that are made of training scenes: ``ego_mlp`` and ``nearest_anchor``.

    Raises:
        DataError: a scene is in both, or there is too little to train on.
    """
    if common := sorted(set(training.scenes) & set(drives.scenes)):
        raise DataError(
            f"{len(common)} scenes, such as {common[0]}, are evaluated and trained on; choose another split to train on"
        )
    plan = EgoMLP(training).plan(drives)
    anchors = make_anchors(training.path[training.path_known.all(axis=1)], ANCHORS)
    return {"ego_mlp": plan, "nearest_anchor": nearest_anchor(anchors, drives)}


def leave_one_out(drives: Drives) -> dict[str, np.ndarray]:
    """``trained_baselines`` for each scene from all others."""
    scenes = np.array(drives.scenes)
    steps = drives.future.shape[1]
    plans = {name: np.zeros((len(drives), steps, 3)) for name in ("ego_mlp", "nearest_anchor")}
    for scene in dict.fromkeys(drives.scenes):
        for name, plan in trained_baselines(drives[scenes != scene], drives[scenes == scene]).items():
            plans[name][scenes == scene] = plan
    return plans


def evaluate_plans(
    files: Mapping[str, PlanFile],
    drives: Drives,
    protocols: Sequence[str] = PROTOCOLS,
    maps: Map | None = None,
    others: Mapping[str, np.ndarray] | None = None,
    partial: bool = False,
) -> dict[str, Any]:
    """Score files of plans beside the baselines.

    Args:
        files: by the name of their rows.
        drives: N samples.
        protocols: of ``PROTOCOLS``.
        maps: of the samples; None: n/a.
        others: further plans by name, [N, T, 3] in ego.
        partial: score the samples that all files plan, where a protocol wants more.

    Returns:
        As ``score_plans``, and ``left_out``: why, by protocol.

    Raises:
        ConfigError: a protocol that there is not, or a file by the name of another row.
        DataError: a file has none of the samples, or no protocol's samples have all plans.
    """
    if unknown := [name for name in protocols if name not in PROTOCOLS]:
        raise ConfigError(f"no protocol {unknown[0]!r}; known: {', '.join(PROTOCOLS)}")
    if taken := sorted(files.keys() & (others or {}).keys()):
        raise ConfigError(f"a plan is called {taken[0]!r} as a baseline is; give the file another name")
    plans, planned = {}, np.ones(len(drives), dtype=bool)
    for name, file in files.items():
        plans[name], there = poses_of(file, drives, name)
        planned &= there
        if wrong := check_frame(plans[name], there, drives):
            warnings.warn(f"{name}: {wrong}", stacklevel=2)
    lengths = {name: plan.shape[1] for name, plan in plans.items()}
    steps = min(lengths.values(), default=drives.future.shape[1])
    if steps < drives.future.shape[1]:
        short = min(lengths, key=lambda name: lengths[name])
        warnings.warn(
            f"{short} has {steps} steps of {drives.future.shape[1]}: no row is scored beyond these "
            f"{steps * TIME_STEP:g} s, nor events, the PDM-style score and skill",
            stacklevel=2,
        )
    left_out = {}
    for name in protocols:
        wanted = _wanted(name, drives, steps)
        missing = wanted & ~planned
        if missing.any() and not partial:
            first = drives.tokens[int(np.flatnonzero(missing)[0])]
            left_out[name] = f"{missing.sum()} of its {wanted.sum()} samples have no plan, as {first}"
    chosen = [name for name in protocols if name not in left_out]
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise DataError(f"{reasons}. Plan them, or pass --partial to score the others alone")
    every = {name: plan[planned, :steps] for name, plan in {**plans, **(others or {})}.items()}
    scores = score_plans(every, drives[planned], chosen, None if maps is None else maps[planned])
    if not planned.all():
        scores["partial"] = f"{planned.sum()} of {len(drives)} samples have a plan; all rows are over these"
    return scores | {"left_out": left_out}


def _wanted(name: str, drives: Drives, steps: int) -> np.ndarray:
    """[N] bool: samples that a protocol counts at any of so many steps."""
    if name == NAME:
        return usable(drives, steps)
    return np.asarray(PUBLISHED[name].counts(drives.known, drives.past_known).any(axis=1))


def main(argv: list[str]) -> int:
    """The verb ``evaluate_plans``."""
    args = _parser().parse_args(argv)
    if (args.root is None) == (args.tracks is None):
        raise ConfigError("evaluate_plans: expected either --root (a data set) or --tracks (a folder of tracks)")
    if args.tracks is not None and args.train_split:
        raise ConfigError("evaluate_plans: --train-split is of --root; of --tracks each scene is left out in turn")
    if args.agents and args.tracks is None:
        raise ConfigError("evaluate_plans: --agents is of --tracks; a data set's agents are scored by evaluate")
    names = [Path(path).stem for path in args.plans]
    if len(set(names)) < len(names):
        raise ConfigError(f"evaluate_plans: files of the same name {names}: their rows would be called the same")
    protocols = args.protocol or PROTOCOLS
    files = {name: read_plans(path) for name, path in zip(names, args.plans, strict=True)}
    maps = None
    agents = None
    if args.tracks is not None:
        scenes = read_tracks(args.tracks)
        drives = drives_of_tracks(scenes)
        agents = score_forecasts(score_tracks(scenes, drives.future.shape[1])) if args.agents else None
        try:
            others = leave_one_out(drives)
        except DataError as error:
            others = {}
            print(f"without ego_mlp and nearest_anchor: {error}\n")
    else:
        tables = Tables.open(args.root, args.version)
        if not tables.annotated:
            raise DataError(f"{args.root} ({args.version}) has no annotations to score against")
        tokens = [tables.token(row) for row in samples_of(tables, args.split)]
        drives = drives_of(tables, tokens)
        maps = map_of(tables, tokens, boundaries=BEV_PLANNER.name in protocols)
        others = {}
        if args.train_split:
            train = [tables.token(row) for row in samples_of(tables, args.train_split)]
            others = trained_baselines(drives_of(tables, train, agents=False), drives)
    scores = evaluate_plans(files, drives, protocols, maps, others, args.partial)
    print(format_planning(scores))
    for name, why in scores["left_out"].items():
        print(f"\n{name}: n/a: {why}")
    if "partial" in scores:
        print(f"\n{scores['partial']}")
    if agents is not None:
        print(f"\n{format_tracks(agents)}")
    if args.out:
        write_json(args.out, scores | ({} if agents is None else {"agents": agents}))
        print(f"written: {args.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "evaluate_plans",
        description="Score plans from JSON files by every protocol side by side, beside baselines and the human. "
        'A file is {"frame": "ego" or "lidar", "times": [0.5, 1.0, ...], "plans": {"sample token": [[x, y], ...]}}; '
        "a third number in a row is the yaw. Without a file the baselines are scored.",
    )
    parser.allow_abbrev = False
    parser.add_argument("plans", nargs="*", help="files of plans; their names become the rows'")
    parser.add_argument("--root", help="data root of nuScenes or of a data set in its format")
    parser.add_argument("--version", default="v1.0-trainval", help="table folder below the root")
    parser.add_argument("--split", default="val", help="whose samples are scored")
    parser.add_argument("--train-split", help="what ego-MLP and anchors are made of; none: they are left out")
    parser.add_argument("--tracks", help="folder of scene-XXXX.npz instead of a data root; all its scenes are scored")
    parser.add_argument(
        "--agents", action="store_true", help="of --tracks: forecast those around by physics, and score"
    )
    parser.add_argument("--protocol", nargs="+", help=f"some of {', '.join(PROTOCOLS)} (default: all)")
    parser.add_argument("--partial", action="store_true", help="score the samples that have a plan, if not all do")
    parser.add_argument("--out", help="write all numbers as JSON to this file")
    return parser
