"""Parts of the truth that are scored apart: near and far, seen and hidden, still and moving, by day and by night.

A stratum is a rule on truth boxes. Detections are matched once, with all of the truth; then, in each stratum,
- a detection that found a truth box counts where that box is, and is no false alarm elsewhere;
- one that found nothing counts where its own value puts it: its distance, its sector, its speed, its scene;
- one that found nothing and has no such value counts in every stratum of its dimension: nobody knows how visible, or
  how many points, what is not there would have had, and a speed may be unknown.
A truth box without a value (no velocity, no visibility) is in no stratum of that dimension.

Means are over the classes that have truth in the stratum ("macro"), and over all boxes in one ranking ("micro").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fusion3d.metrics.lanes import Stratum
from fusion3d.metrics.matching import Matches, Objects
from fusion3d.types import CAMERAS

DISTANCES = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0)  # [m] edges, the last open
POINTS = (1, 5, 20, 100)  # lower edges
SPEEDS = (0.0, 0.2, 3.0, 10.0)  # [m/s] lower edges; below the second a thing stands still
VISIBILITIES = ("0-40 %", "40-60 %", "60-80 %", "80-100 %")
# The middle between the directions in which the cameras of nuScenes look [degrees], to the left and from ahead.
_SECTORS = (27.5, 82.5, 145.0)
_NOWHERE = -1  # for a truth box; for a detection: everywhere


@dataclass(frozen=True)
class Dimension:
    """Disjoint strata of one property."""

    names: tuple[str, ...]
    truth: np.ndarray  # [G] index in names, -1 in none
    found: np.ndarray  # [P] index in names of what found nothing, -1 in all

    def stratum(self, name: str) -> Stratum:
        """One of them, by name."""
        number = self.names.index(name)
        return Stratum(self.truth == number, (self.found == number) | (self.found == _NOWHERE))


def make_strata(matches: Matches) -> dict[str, Dimension]:
    """All dimensions of a result, by name."""
    samples, unknown = matches.samples, np.full(len(matches.found), _NOWHERE)
    points = np.where(matches.truth.num_points < POINTS[0], _NOWHERE, _band(matches.truth.num_points, POINTS))
    weather = np.array([mentions(text, "rain") for text in samples.descriptions], dtype=np.int64)
    light = np.array([mentions(text, "night") for text in samples.descriptions], dtype=np.int64)
    return {
        "distance": Dimension(_ranges(DISTANCES, "m"), *_both(matches, _distance_band)),
        "visibility": Dimension(VISIBILITIES, matches.truth.visibility.astype(np.int64) - 1, unknown),
        "points": Dimension(_ranges(POINTS, "points", whole=True), points, unknown),
        "speed": Dimension(_ranges(SPEEDS, "m/s"), *_both(matches, _speed_band)),
        "weather": Dimension(("dry", "rain"), weather[matches.truth_scene], weather[matches.found_scene]),
        "light": Dimension(("day", "night"), light[matches.truth_scene], light[matches.found_scene]),
        "sector": Dimension(CAMERAS, *_both(matches, _sector)),
    }


def _both(matches: Matches, rule: Callable[[Objects], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return rule(matches.truth), rule(matches.found)


def _band(values: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """The number of the last edge that is not above each value."""
    return np.searchsorted(np.array(edges), values, side="right") - 1


def _distance_band(objects: Objects) -> np.ndarray:
    return _band(objects.distance, DISTANCES)


def _speed_band(objects: Objects) -> np.ndarray:
    return np.where(np.isnan(objects.speed), _NOWHERE, _band(np.nan_to_num(objects.speed), SPEEDS))


def _sector(objects: Objects) -> np.ndarray:
    """The camera that looks most in the direction of a box; of two, by the order of CAMERAS."""
    side = np.searchsorted(np.array(_SECTORS), np.degrees(np.abs(objects.azimuth)))
    left = np.array([CAMERAS.index(f"CAM_{name}") for name in ("FRONT", "FRONT_LEFT", "BACK_LEFT", "BACK")])
    right = np.array([CAMERAS.index(f"CAM_{name}") for name in ("FRONT", "FRONT_RIGHT", "BACK_RIGHT", "BACK")])
    return np.where(objects.azimuth > 0, left[side], right[side])


def _ranges(edges: Sequence[float], unit: str, whole: bool = False) -> tuple[str, ...]:
    """Names such as "0-10 m" and, for the last, ">= 50 m"."""
    ends = [f"{(end - 1 if whole else end):g}" for end in edges[1:]]
    inner = [f"{start:g}-{end} {unit}" for start, end in zip(edges, ends, strict=False)]
    return (*inner, f">= {edges[-1]:g} {unit}")


def mentions(description: str, word: str) -> bool:
    """Does a description say a word, or one that begins with it? "Train" says nothing of rain."""
    return re.search(rf"\b{word}", description, re.IGNORECASE) is not None
