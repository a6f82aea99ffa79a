"""Forecasts of agents: errors over the k likeliest ways, as the nuScenes prediction challenge has them, end to end.

``forecast_errors`` is the devkit's (nuscenes.eval.prediction.metrics), agent by agent, where the whole future is known.
Around it stands what the challenge leaves out: it is given who is there, while here agents have to be found first.
``PROTOCOL`` says how, and travels with the numbers.
Letters: P found and G true agents, A agents of either kind, K ways, T steps, S scenes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion3d.metrics.bootstrap import Draws, distinguishable, draw_scenes, interval
from fusion3d.types import DETECTION_CLASSES, TIME_STEP, TRACKING_CLASSES

KS = (1, 5, 10)  # of the likeliest ways; where there are fewer, all
TOLERANCE = 2.0  # [m] from the truth, at which a way is a miss
REACH = 2.0  # [m] between centres, below which a true agent is found
ERRORS = tuple(f"{name}_{k}" for name in ("minADE", "minFDE", "MissRateTopK_2") for k in KS)
ALL_MISSED = tuple(f"missed_or_not_found_{k}" for k in KS)
MOVED, TURNED = 1.0, math.radians(15)  # [m], [rad] over the horizon, beyond which an agent goes and turns
WAYS = ("stands", "straight", "turns")
_OF_CLASS = {
    "vehicle": ("car", "truck", "bus", "trailer"),
    "pedestrian": ("pedestrian",),
    "cycle": ("motorcycle", "bicycle"),
}

PROTOCOL = (
    f"True agents: boxes of {', '.join(sorted(TRACKING_CLASSES))} with a LiDAR or radar point, within the benchmark's "
    "range of their class, whose whole future is annotated. Found: by the benchmark's rule, boxes in the order of "
    f"their scores take the nearest true one of their class within {REACH:g} m. minADE_k, minFDE_k [m] and "
    "MissRateTopK_2_k are the devkit's, over the k likeliest ways, means over found agents; missed_or_not_found_k is "
    f"the share of all true agents. An agent stands that ends within {MOVED:g} m of where it was; it turns if it goes "
    f"and heads at least {math.degrees(TURNED):.0f} degrees elsewhere at the end. constant_velocity: of the found box; "
    "stationary: it stays. skill: 1 - error / constant_velocity's. Intervals: 95 % by bootstrap over scenes, paired."
)


def top_k(values_AK: np.ndarray, score_AK: np.ndarray, ks: Sequence[int] = KS) -> np.ndarray:
    """[A, len(ks)] the least value among the k likeliest ways; among all, where there are fewer than k.

    Of equally likely ways the later counts as likelier, as in the devkit: numpy sorts ascending there, and is reversed.
    """
    order = np.flip(score_AK.argsort(axis=-1), axis=-1)
    least = np.minimum.accumulate(np.take_along_axis(values_AK, order, axis=-1), axis=-1)
    return least[:, [min(k, values_AK.shape[1]) - 1 for k in ks]]


def forecast_errors(
    position: np.ndarray, score: np.ndarray, truth: np.ndarray, known: np.ndarray | None = None
) -> np.ndarray:
    """[A, 9] ``ERRORS`` of every agent; NaN for one whose future is not known at all.

    Args:
        position: [A, K, T, 2] [m].
        score: [A, K] how likely each way is; only their order counts.
        truth: [A, T, 2] in the same frame.
        known: [A, T] bool: errors are over the known steps, and the last of them is the final one; None: all are.

    Raises:
        ValueError: shapes that do not fit each other, or a forecast that is not finite.
    """
    count, modes, steps = position.shape[:3]
    if score.shape != (count, modes) or truth.shape != (count, steps, 2) or not np.isfinite(position).all():
        raise ValueError(
            f"positions {list(position.shape)}, scores {list(score.shape)}, truth {list(truth.shape)}; expected "
            "[A, K, T, 2], [A, K] and [A, T, 2], and finite positions"
        )
    known = np.ones((count, steps), dtype=bool) if known is None else known
    away = np.linalg.norm(position - np.where(known[..., None], truth, 0.0)[:, None], axis=-1)  # [A, K, T]
    number = known.sum(axis=1)
    last = np.where(number > 0, steps - 1 - known[:, ::-1].argmax(axis=1), 0)
    mean = np.where(known[:, None], away, 0.0).sum(axis=-1) / np.maximum(number, 1)[:, None]
    final = np.take_along_axis(away, last[:, None, None], axis=-1)[..., 0]
    missed = (np.where(known[:, None], away, -np.inf).max(axis=-1, initial=-np.inf) >= TOLERANCE).astype(np.float64)
    errors = np.concatenate([top_k(of, score) for of in (mean, final, missed)], axis=1)
    return np.where((number > 0)[:, None], errors, np.nan)


@dataclass(frozen=True)
class Around:
    """The annotated boxes of a sample and how they go on, in its ego frame."""

    center: np.ndarray  # [G, 2] [m]
    yaw: np.ndarray  # [G] [rad]
    label: np.ndarray  # [G] index in DETECTION_CLASSES
    there: np.ndarray  # [G] bool: near enough and seen by a sensor; others neither count nor are found
    position: np.ndarray  # [G, T, 2] [m]
    heading: np.ndarray  # [G, T] [rad]
    known: np.ndarray  # [G, T] bool

    @property
    def way(self) -> np.ndarray:
        """[G] index in WAYS, of agents whose last step is known."""
        moved = np.linalg.norm(self.position[:, -1] - self.center, axis=1)
        turned = np.abs((self.heading[:, -1] - self.yaw + np.pi) % (2 * np.pi) - np.pi)
        return np.where(moved < MOVED, 0, np.where(turned < TURNED, 1, 2))


@dataclass(frozen=True)
class ScoredAgents:
    """The true agents that count of a sample, and how far off their forecasts are."""

    scene: str
    label: np.ndarray  # [G] int64
    way: np.ndarray  # [G] int64, index in WAYS
    found: np.ndarray  # [G] bool
    errors: Mapping[str, np.ndarray]  # [G, 9] by forecaster; NaN where it is not found
    seconds: float = 0.0  # until the end of what is forecast


def score_agents(
    around: Around,
    center: np.ndarray,
    label: np.ndarray,
    score: np.ndarray,
    forecasts: Callable[[np.ndarray], Mapping[str, tuple[np.ndarray, np.ndarray]]],
    scene: str,
) -> ScoredAgents:
    """Match what was found in a sample with the truth, and score the forecasts of it.

    Args:
        around: the truth.
        center: [P, 2] of the found boxes [m].
        label: [P].
        score: [P].
        forecasts: by forecaster positions [F, K, T, 2] and scores [F, K] of chosen found boxes, rows [F].
        scene: name of the sample's scene.
    """
    counts = around.there & around.known.all(axis=1)
    counts &= np.isin(around.label, [DETECTION_CLASSES.index(name) for name in TRACKING_CLASSES])
    row = match_centers(around.center[around.there], around.label[around.there], center, label, score)
    of_all = np.full(len(around.label), -1)
    of_all[around.there] = row
    row = of_all[counts]
    found = row >= 0
    errors = {}
    for name, (position, likely) in forecasts(row[found]).items():
        errors[name] = np.full((len(row), len(ERRORS)), np.nan)
        errors[name][found] = forecast_errors(position, likely, around.position[counts][found])
    return ScoredAgents(
        scene,
        around.label[counts].astype(np.int64),
        around.way[counts],
        found,
        errors,
        TIME_STEP * around.position.shape[1],
    )


def match_centers(
    true_center: np.ndarray, true_label: np.ndarray, center: np.ndarray, label: np.ndarray, score: np.ndarray
) -> np.ndarray:
    """[G] which found box has each true one, -1 none: the best chooses first (of equal scores the later), and takes the
    nearest of its class that is free.

    Args:
        true_center: [G, 2].
        true_label: [G].
        center: [P, 2].
        label: [P].
        score: [P].
    """
    taken = np.full(len(true_label), -1)
    away = np.linalg.norm(center[:, None] - true_center, axis=-1)
    away[label[:, None] != true_label] = np.inf
    order = np.argsort(score, kind="stable")[::-1]
    for row in order[away.min(axis=1, initial=np.inf)[order] < REACH]:
        free = np.where(taken < 0, away[row], np.inf)
        if free.min() < REACH:
            taken[free.argmin()] = row
    return taken


def score_forecasts(samples: Sequence[ScoredAgents]) -> dict[str, Any]:
    """The numbers of a split: of ``all`` true agents, and of those that go one of WAYS or are of a kind.

    Returns:
        By group: ``seconds`` until the end; ``true`` and ``found``, counts; ``recall``; by forecaster its means of
        ``ERRORS`` over the found and of ``ALL_MISSED`` over all, with ``intervals``; and ``skill`` of ``model`` over
        ``constant_velocity``, where both are there, by error: ``value``, ``interval`` and whether it is
        ``distinguishable`` from none.
    """
    names, scene_of = np.unique([sample.scene for sample in samples], return_inverse=True)
    num_scenes = max(len(names), 1)
    draws = draw_scenes(num_scenes)
    scene = np.repeat(scene_of.reshape(-1), [len(sample.label) for sample in samples])
    label, way, found = (
        np.concatenate([np.zeros(0, dtype=kind), *(getattr(sample, name) for sample in samples)])
        for name, kind in (("label", np.int64), ("way", np.int64), ("found", bool))
    )
    forecasters = list(dict.fromkeys(name for sample in samples for name in sample.errors))
    errors = {
        name: np.concatenate([np.zeros((0, len(ERRORS))), *(sample.errors[name] for sample in samples)])
        for name in forecasters
    }
    groups = {"all": np.ones(len(label), dtype=bool)} | {name: way == i for i, name in enumerate(WAYS)}
    for name, classes in _OF_CLASS.items():
        groups[name] = np.isin(label, [DETECTION_CLASSES.index(of) for of in classes])
    seconds = max((sample.seconds for sample in samples), default=0.0)
    return {
        group: {"seconds": seconds}
        | _numbers(found[rows], {name: of[rows] for name, of in errors.items()}, scene[rows], draws, num_scenes)
        for group, rows in groups.items()
    }


def _numbers(
    found: np.ndarray, errors: Mapping[str, np.ndarray], scene: np.ndarray, draws: Draws, num_scenes: int
) -> dict[str, Any]:
    """The numbers of a group of true agents."""

    def mean(values: np.ndarray, of: np.ndarray) -> list[tuple[float, tuple[float, float] | None]]:
        """Sums of [A, C] values over sums of [A, C] others, and their intervals."""
        over, under = (
            np.stack([np.bincount(scene, column, num_scenes) for column in both.T], axis=1) for both in (values, of)
        )
        drawn = [draws.times @ sums for sums in (over, under)]
        drawn = np.divide(*drawn, out=np.full(drawn[0].shape, np.nan), where=drawn[1] != 0)[draws.number]
        there = (under != 0).sum(axis=0)
        total = np.divide(over.sum(0), under.sum(0), out=np.full(over.shape[1], np.nan), where=under.sum(0) != 0)
        return [(float(t), interval(drawn[:, i], int(there[i]))) for i, t in enumerate(total)]

    row: dict[str, Any] = {"true": len(found), "found": int(found.sum())}
    ones, seen = np.ones((len(found), 1)), np.tile(found[:, None], len(ERRORS)).astype(np.float64)
    ((row["recall"], recalled),) = mean(found[:, None].astype(np.float64), ones)
    row["intervals"] = {"recall": recalled}
    for name, of in errors.items():
        missed = np.where(found[:, None], of[:, -len(KS) :], 1.0)
        said = zip(
            (*ERRORS, *ALL_MISSED),
            mean(np.nan_to_num(of), seen) + mean(missed, np.ones_like(missed)),
            strict=True,
        )
        of_name = dict(said)
        row[name] = {key: value for key, (value, _) in of_name.items()}
        row[name]["intervals"] = {key: between for key, (_, between) in of_name.items()}
    if {"model", "constant_velocity"} <= errors.keys():
        ours, usual = (np.nan_to_num(errors[name]) for name in ("model", "constant_velocity"))
        row["skill"] = {
            key: {"value": value, "interval": between, "distinguishable": distinguishable(between, num_scenes)}
            for key, (value, between) in zip(ERRORS, mean(usual - ours, usual), strict=True)
        }
    return row
