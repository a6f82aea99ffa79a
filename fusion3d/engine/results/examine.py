"""Reading a result file and finding all that is wrong with it.

The rules are those of the devkit's README of each task, and what its loader (1.2.0) asserts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fusion3d.data.json_stream import open_json
from fusion3d.engine.results.file import Limits, Reader, Results
from fusion3d.engine.results.rules import FARTHEST, LARGEST, SHOWN, UNIT, Problems, place, short
from fusion3d.errors import DataError
from fusion3d.heads.targets import allowed_attributes
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES


def read_results(
    path: str | Path, samples: Sequence[str] | None = None, limits: Limits | None = None, task: str | None = None
) -> Results:
    """Read a result file to score it.

    Args:
        path: JSON.
        samples: tokens that must be there, and no others; None: any.
        limits: of its size.
        task: "detection" or "tracking", where it must be this one.

    Raises:
        DataError: it cannot be read, is too large, is of another task, or breaks a rule without which it has no score.
    """
    results, problems = examine_results(path, samples, limits)
    fatal = problems.fatal()
    if fatal:
        more = f" (and {len(fatal) - 1} other kinds of problem)" if len(fatal) > 1 else ""
        raise DataError(f"{path}: {fatal[0]}{more}; fusion3d check_submission {path} lists all")
    results = replace(results, remarks=tuple(problems.lines()))
    if task is not None and task != results.task:
        if len(results):
            raise DataError(f"{path} holds {results.task} results; expected {task}")
        results = replace(results, task=task)
    return results


def examine_results(
    path: str | Path,
    samples: Sequence[str] | None = None,
    limits: Limits | None = None,
    scenes: Sequence[str] | None = None,
) -> tuple[Results, Problems]:
    """Read a result file and find everything that is wrong with it; boxes that are none are left out.

    Args:
        path: JSON; its first box says whether it holds detections or tracks.
        samples: tokens that must be there, and no others; None: any.
        limits: of its size.
        scenes: of each of ``samples``, its scene: within one a track must keep its class.

    Raises:
        DataError: it is missing, too large or no JSON, or its results are no object.
    """
    problems = Problems()
    with open_json(path, (limits or Limits()).max_bytes) as stream:
        reader = Reader(stream, problems, limits or Limits())
        reader.read()
    results = reader.results()
    _check_numbers(results, problems)
    if results.task == "tracking":
        _check_tracks(results, problems)
        if samples is not None and scenes is not None:
            _check_classes(results, dict(zip(samples, scenes, strict=True)), problems)
    if samples is not None:
        there, wanted = set(results.tokens), set(samples)
        problems.add_all("missing", (token for token in samples if token not in there))
        problems.add_all("unknown", (token for token in results.tokens if token not in wanted))
    return results, problems


def _check_numbers(results: Results, problems: Problems) -> None:
    def check(rule: str, wrong: np.ndarray, values: np.ndarray) -> None:
        places = (f"{_place(results, row)}: {short(values[row].tolist())}" for row in np.flatnonzero(wrong)[:SHOWN])
        problems.add_all(rule, places, int(wrong.sum()))

    numbers = (results.translation, results.size, results.rotation, results.velocity, results.score[:, None])
    finite = np.ones(len(results), dtype=bool)
    for values in numbers:
        bad = ~(np.abs(values) <= FARTHEST).all(axis=1)
        check("finite", bad & finite, values)
        finite &= ~bad
    length = np.linalg.norm(results.rotation, axis=1)
    check("size", finite & (results.size <= 0).any(axis=1), results.size)
    check("huge", finite & (results.size > LARGEST).any(axis=1), results.size)
    check("rotation", finite & (length == 0), results.rotation)
    check("unit", finite & (length > 0) & (abs(length - 1) > UNIT), results.rotation)
    negative = finite & (results.score < 0) & (results.task == "detection")
    check("negative", negative, results.score)
    check("score", finite & ~negative & ((results.score < 0) | (results.score > 1)), results.score)
    if results.task == "detection":
        allowed = allowed_attributes().numpy()
        none = ~allowed.any(axis=1, keepdims=True)
        fits = np.concatenate([allowed, none], axis=1)[results.label, results.attribute]  # -1 is the last: no attribute
        wrong = np.flatnonzero(~fits)
        pairs = ((row, results.label[row], results.attribute[row]) for row in wrong[:SHOWN])
        names = (*ATTRIBUTES, "none")
        places = (f"{_place(results, row)}: {DETECTION_CLASSES[label]}: {names[code]}" for row, label, code in pairs)
        problems.add_all("family", places, len(wrong))


def _check_tracks(results: Results, problems: Problems) -> None:
    """A track has one box in a sample."""
    pair = results.sample.astype(np.int64) * (len(results.tracks) + 1) + results.track
    _, first = np.unique(pair, return_index=True)
    again = np.ones(len(results), dtype=bool)
    again[first] = False
    _note_tracks(results, "track_twice", again, problems)


def _check_classes(results: Results, scene_of: Mapping[str, str], problems: Problems) -> None:
    """A track has one class in a scene."""
    names = [scene_of.get(token, "") for token in results.tokens]
    scene = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)[1][results.sample]
    pair = scene.astype(np.int64) * (len(results.tracks) + 1) + results.track
    _, first, which = np.unique(pair, return_index=True, return_inverse=True)
    changed = results.label != results.label[first][which]
    _note_tracks(results, "track_class", changed, problems)


def _note_tracks(results: Results, rule: str, wrong: np.ndarray, problems: Problems) -> None:
    rows = np.flatnonzero(wrong)
    places = (f"{_place(results, row)}: {short(results.tracks[results.track[row]])}" for row in rows[:SHOWN])
    problems.add_all(rule, places, len(rows))


def _place(results: Results, row: int | np.integer) -> str:
    return place(results.tokens[results.sample[row]], int(results.number[row]))
