"""What can be wrong with a nuScenes result file, and the list of what is."""

from __future__ import annotations

from collections.abc import Iterable
from reprlib import Repr
from typing import Any

SHOWN = 3  # places that are remembered of each kind of problem
FARTHEST = 1e9  # of any number: what is larger cannot be meant, and its square may overflow
LARGEST = 100.0  # [m] a longer side is absurd
UNIT = 1e-3  # how far a quaternion's length may be from 1

# What can be wrong. With what is in the first list a file can be scored all the same, as the devkit would.
SCORABLE = {
    "meta": "meta is missing, or is no object",
    "flag": "a flag of meta is missing, or neither true nor false",
    "unknown_flag": "meta has a key that is none of its five flags",
    "top": "a key beside meta and results",
    "unknown_key": "a box has a key that the format does not know",
    "huge": f"a side is longer than {LARGEST:g} m",
    "unit": "a quaternion is not of length 1",
    "score": "a score is not between 0 and 1",
    "family": "a class does not have this attribute",
    "track_id": "a tracking_id is a number and no string",
    "track_class": "a track changes its class within a scene",
    "track_twice": "a track is twice in a sample",
}
FATAL = {
    "twice": "a sample is there twice",
    "missing": "a sample of the split is missing",
    "unknown": "a sample is not in the split",
    "no_list": "a sample's boxes are no list",
    "many": "a sample has more boxes than it may",
    "no_box": "a box is no object",
    "key": "a box lacks a key",
    "type": "a value has the wrong type or length",
    "finite": f"a number is not finite, or larger than {FARTHEST:g}",
    "size": "a side is not longer than 0",
    "rotation": "a quaternion has no length",
    "negative": "the score of a detection is below 0",
    "class": "a class that the task does not have",
    "attribute": "an attribute that nuScenes does not have",
    "token": "a box names another sample than the one it stands under",
}
RULES = SCORABLE | FATAL
_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 60
_REPR.maxlist, _REPR.maxdict, _REPR.maxlevel = 4, 2, 2


class Problems:
    """What is wrong with a file: of each rule how often it is broken, and where first."""

    def __init__(self) -> None:
        self.count: dict[str, int] = {}
        self.places: dict[str, list[str]] = {}

    def add(self, rule: str, place: str, count: int = 1) -> None:
        """Note that a rule (a key of ``RULES``) is broken at a place, or at several of which this is the first."""
        assert rule in RULES
        self.count[rule] = self.count.get(rule, 0) + count
        places = self.places.setdefault(rule, [])
        if len(places) < SHOWN:
            places.append(place)

    def add_all(self, rule: str, places: Iterable[str], count: int | None = None) -> None:
        """Note every place; or ``count``, of which these are the first."""
        noted = 0
        for where in places:
            self.add(rule, where)
            noted += 1
        if count is not None and count > noted:
            self.add(rule, "...", count - noted)

    def lines(self) -> list[str]:
        """One line for each broken rule, in the order of ``RULES``."""
        return [f"{self.count[rule]} x {RULES[rule]}: {self._where(rule)}" for rule in RULES if rule in self.count]

    def fatal(self) -> list[str]:
        """Those of the lines that keep the file from being scored."""
        return [f"{self.count[rule]} x {RULES[rule]}: {self._where(rule)}" for rule in FATAL if rule in self.count]

    def _where(self, rule: str) -> str:
        places = self.places[rule]
        return "; ".join(places) + (", ..." if self.count[rule] > len(places) else "")


def place(token: str, number: int) -> str:
    """How messages name a box."""
    return f"sample {short(token)}, box {number}"


def short(value: Any) -> str:
    """A value of a file in a message: whatever it is, it is not long; a plain string is as it is."""
    return value if isinstance(value, str) and value.isprintable() and 0 < len(value) <= 60 else _REPR.repr(value)
