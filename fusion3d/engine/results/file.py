"""Result files of nuScenes detection and tracking, anybody's, read into columns.

Nothing that a file may hold makes this run out of memory: bytes, samples and boxes have limits, and boxes beyond a
sample's limit are counted and forgotten.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusion3d.data.json_stream import JsonStream
from fusion3d.engine.results.rules import Problems, place, short
from fusion3d.engine.submission import MAX_BOXES
from fusion3d.errors import DataError
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES, SENSORS, TRACKING_CLASSES

FLAGS = (*(f"use_{sensor}" for sensor in SENSORS), "use_map", "use_external")
CLASSES = {"detection": DETECTION_CLASSES, "tracking": TRACKING_CLASSES}
_VECTORS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2}
_OPTIONAL = ("ego_translation", "num_pts")  # the devkit writes both, and scores no box whose num_pts is 0
_MOST_POINTS = 2**31 - 1
LONGEST_NAME = 256  # characters of a token or a tracking id; nuScenes has 32


@dataclass(frozen=True)
class Limits:
    """How large a file may be."""

    max_bytes: int = 4 << 30
    """Bytes of the file; 500 boxes in each sample of val are some 1.2 GB."""
    max_boxes: int = 5_000_000
    """Boxes in all; val can have 3 009 500. A box takes some 150 bytes of memory."""
    max_samples: int = 200_000
    """Samples in all; val has 6019, train 28130."""
    boxes_per_sample: int = MAX_BOXES
    """Boxes of one sample; the benchmark's, unless the file is scored by a protocol of its own."""


@dataclass(frozen=True)
class Results:
    """A result file as columns: S samples, K boxes in the global frame, in the order of the file."""

    task: str  # a key of CLASSES
    meta: dict[str, bool]  # the flags that are there
    tokens: tuple[str, ...]  # S
    sample: np.ndarray  # [K] int32, row in tokens
    number: np.ndarray  # [K] int32, which of its sample's boxes it is in the file
    translation: np.ndarray  # [K, 3] float64 [m]
    size: np.ndarray  # [K, 3] float64 width, length, height [m]
    rotation: np.ndarray  # [K, 4] float64, wxyz
    velocity: np.ndarray  # [K, 2] float64 [m/s]
    score: np.ndarray  # [K] float64
    label: np.ndarray  # [K] int8, index in CLASSES[task]
    attribute: np.ndarray  # [K] int8, index in ATTRIBUTES, -1 none
    points: np.ndarray  # [K] int32, its num_pts, -1 where it does not say
    track: np.ndarray  # [K] int32, row in tracks; -1 for detections
    tracks: tuple[str, ...]  # tracking ids
    remarks: tuple[str, ...] = ()  # what is wrong, but does not keep it from being scored

    def __len__(self) -> int:
        return len(self.score)

    @property
    def sensors(self) -> tuple[str, ...]:
        """The sensors that the file says it used."""
        return tuple(sensor for sensor in SENSORS if self.meta.get(f"use_{sensor}"))

    def records(self, tokens: Iterable[str] | None = None) -> dict[str, list[dict[str, Any]]]:
        """The boxes of these samples (None: of all) as records again, by token: what was read, in plain values."""
        wanted = set(self.tokens if tokens is None else tokens)
        found: dict[str, list[dict[str, Any]]] = {token: [] for token in self.tokens if token in wanted}
        names = CLASSES[self.task]
        columns = (self.sample, self.translation, self.size, self.rotation, self.velocity, self.score, self.label)
        here = np.array([token in wanted for token in self.tokens], dtype=bool)[self.sample]
        columns = (*columns, self.attribute, self.track, self.points)
        rows = zip(*(column[here].tolist() for column in columns), strict=True)
        for sample, translation, size, rotation, velocity, score, label, attribute, track, points in rows:
            token = self.tokens[sample]
            record = {
                "sample_token": token, "translation": translation, "size": size, "rotation": rotation,
                "velocity": velocity, f"{self.task}_name": names[label], f"{self.task}_score": score,
            }  # fmt: skip
            if self.task == "detection":
                record["attribute_name"] = ATTRIBUTES[attribute] if attribute >= 0 else ""
            else:
                record["tracking_id"] = self.tracks[track]
            if points >= 0:
                record["num_pts"] = points
            found[token].append(record)
        return found


@dataclass
class Reader:
    """Walks through a file and fills the columns; ``problems`` gets what does not fit into them."""

    stream: JsonStream
    problems: Problems
    limits: Limits
    task: str | None = None  # what the first box says
    meta: dict[str, bool] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    tracks: dict[str, int] = field(default_factory=dict)
    numbers: array[float] = field(default_factory=lambda: array("d"))  # 13 of each box
    codes: array[int] = field(default_factory=lambda: array("i"))  # sample, number, class, attribute, track, points
    boxes: int = 0

    def read(self) -> None:
        """The whole file."""
        if self.stream.peek() != "{":
            raise DataError(
                f"{self.stream.path}: expected an object with meta and results, found {self.stream.peek()!r}"
            )
        seen = set()
        for key in self.stream.members():
            self.stream.member()
            if key in seen and key in ("results", "meta"):  # readers differ in which of them they take
                raise DataError(f"{self.stream.path} has the key {key} twice")
            if key == "results":
                self._read_samples()
            elif key == "meta":
                self._read_meta(self.stream.value())
            else:
                self.stream.value()
                self.problems.add("top", short(key))
            seen.add(key)
        self.stream.end()
        if "results" not in seen:
            raise DataError(f"{self.stream.path}: there is no key results; is it a nuScenes result file?")
        if "meta" not in seen:
            self.problems.add("meta", "meta")

    def results(self, task: str = "detection") -> Results:
        """What was read; ``task`` is that of a file without boxes."""
        numbers = np.frombuffer(self.numbers, dtype=np.float64).reshape(-1, 13)
        sample, number, label, attribute, track, points = np.frombuffer(self.codes, dtype=np.int32).reshape(-1, 6).T
        return Results(
            task=self.task or task,
            meta=self.meta,
            tokens=tuple(self.tokens),
            sample=sample,
            number=number,
            translation=numbers[:, :3],
            size=numbers[:, 3:6],
            rotation=numbers[:, 6:10],
            velocity=numbers[:, 10:12],
            score=numbers[:, 12],
            label=label.astype(np.int8),
            attribute=attribute.astype(np.int8),
            track=track,
            points=points,
            tracks=tuple(self.tracks),
        )

    def _read_meta(self, meta: Any) -> None:
        if not isinstance(meta, dict):
            self.problems.add("meta", f"meta is {short(meta)}")
            return
        for flag in FLAGS:
            if isinstance(meta.get(flag), bool):
                self.meta[flag] = meta[flag]
            else:
                self.problems.add("flag", f"{flag} is {short(meta[flag])}" if flag in meta else f"no {flag}")
        self.problems.add_all("unknown_flag", (short(key) for key in meta if key not in FLAGS))

    def _read_samples(self) -> None:
        stream = self.stream
        if stream.peek() != "{":
            raise DataError(f"{stream.path}: results: expected an object of lists by sample token")
        for token in stream.members():
            stream.member()
            self._check_length(token)
            if token in self.tokens:
                self.problems.add("twice", f"sample {short(token)}")
            row = self.tokens.setdefault(token, len(self.tokens))
            if len(self.tokens) > self.limits.max_samples:
                raise DataError(
                    f"{stream.path} has more than {self.limits.max_samples} samples; else raise max_samples"
                )
            if stream.peek() == "[":
                self._read_boxes(token, row)
            else:
                self.problems.add("no_list", f"sample {short(token)}: {short(stream.value())}")

    def _check_length(self, name: str) -> None:
        if len(name) > LONGEST_NAME:
            raise DataError(
                f"{self.stream.path}: expected tokens and tracking ids of at most {LONGEST_NAME} characters, found "
                f"{len(name)}: {short(name)}"
            )

    def _read_boxes(self, token: str, row: int) -> None:
        number = 0
        for _ in self.stream.elements():
            box = self.stream.value()
            number += 1
            self.boxes += 1
            if self.boxes > self.limits.max_boxes:
                raise DataError(
                    f"{self.stream.path} has more than {self.limits.max_boxes} boxes (sample {short(token)} is number "
                    f"{row}); a sample may have {self.limits.boxes_per_sample}. Raise max_boxes if they are meant"
                )
            if number <= self.limits.boxes_per_sample:
                self._read_box(box, token, row, number - 1)
        if number > self.limits.boxes_per_sample:
            self.problems.add("many", f"sample {short(token)}: {number}, at most {self.limits.boxes_per_sample}")

    def _read_box(self, box: Any, token: str, row: int, number: int) -> None:
        def wrong(rule: str, what: str) -> None:
            self.problems.add(rule, f"{place(token, number)}: {what}")

        if not isinstance(box, dict):
            return wrong("no_box", short(box))
        if self.task is None:
            self.task = "tracking" if "tracking_name" in box else "detection"
        task, texts = self.task, _TEXTS[self.task]
        missing = [key for key in (*_VECTORS, f"{task}_score", *texts) if key not in box]
        if missing:
            return wrong("key", missing[0])
        numbers = _numbers(box, f"{task}_score")
        text = [box[key] for key in texts]
        if task == "tracking" and type(text[-1]) is int:
            wrong("track_id", str(text[-1]))
            text[-1] = str(text[-1])
        if numbers is None or not all(type(value) is str for value in text) or type(box.get("num_pts", -1)) is not int:
            return wrong("type", _misfit(box, f"{task}_score", texts))
        unknown = box.keys() - _KEYS[task]
        if unknown:
            wrong("unknown_key", short(min(unknown)))
        named, name, last = text
        label, attribute, track = _LABELS[task].get(name), -1, -1
        if named != token:
            wrong("token", short(named))
        if label is None:
            return wrong("class", short(name))
        if task == "tracking":
            self._check_length(last)
            track = self.tracks.setdefault(last, len(self.tracks))
        elif last:
            attribute = _ATTRIBUTE.get(last)
            if attribute is None:
                return wrong("attribute", short(last))
        try:
            self.numbers.fromlist(numbers)
        except OverflowError:  # an integer beyond every float
            return wrong("finite", "an integer of hundreds of digits")
        self.codes.extend((row, number, label, attribute, track, max(-1, min(box.get("num_pts", -1), _MOST_POINTS))))


_TEXTS = {
    "detection": ("sample_token", "detection_name", "attribute_name"),
    "tracking": ("sample_token", "tracking_name", "tracking_id"),
}
_KEYS = {task: {*_VECTORS, *texts, *_OPTIONAL, f"{task}_score"} for task, texts in _TEXTS.items()}
_LABELS = {task: {name: label for label, name in enumerate(names)} for task, names in CLASSES.items()}
_ATTRIBUTE = {name: code for code, name in enumerate(ATTRIBUTES)}


def _numbers(box: dict[str, Any], score: str) -> list[float] | None:
    """The 13 numbers of a box, or None where they are not numbers, or not so many."""
    found = []
    for key, length in _VECTORS.items():
        if type(box[key]) is not list or len(box[key]) != length:
            return None
        found += box[key]
    found.append(box[score])
    return found if all(type(value) is float or type(value) is int for value in found) else None


def _misfit(box: dict[str, Any], score: str, texts: Iterable[str]) -> str:
    """The first value of a box that is not what it should be."""
    for key, length in _VECTORS.items():
        value = box[key]
        if type(value) is not list or len(value) != length or not all(type(x) in (int, float) for x in value):
            return f"{key}: expected {length} numbers, found {short(value)}"
    if type(box[score]) not in (int, float):
        return f"{score}: expected a number, found {short(box[score])}"
    if type(box.get("num_pts", -1)) is not int:
        return f"num_pts: expected a whole number, found {short(box['num_pts'])}"
    key = next(key for key in texts if type(box[key]) is not str)
    return f"{key}: expected a string, found {short(box[key])}"
