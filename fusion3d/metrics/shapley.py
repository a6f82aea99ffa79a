"""What each sensor is worth: the exact Shapley value of a score over all subsets of the sensors (Shapley, 1953).

A sensor's value is what it adds to those that came before it, mean over all orders in which the sensors may come. The
values of all sensors sum to what all of them score together. No sensor at all scores as no box at all: by the official
rules NDS, mAP and every AP are then 0 (each error of a true positive counts as 1), and that is the empty set's score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from fusion3d.errors import Fusion3DError

JOIN = "+"  # between the names of a subset's sensors
SCORES = ("NDS", "mAP")  # numbers of a row that are 0 where nothing is found
BY_CLASS = "AP"  # and a mapping of such numbers
INTERVALS = "intervals"  # of the numbers of a row, which are no scores themselves


def shapley(scores: Mapping[str, float | None], empty: float = 0.0) -> dict[str, float]:
    """The Shapley value of every sensor: the values sum to the score of all sensors less ``empty``.

    Args:
        scores: by subset, the names of its sensors joined with "+" in any order; every subset but the empty one, of any
            number of sensors. None counts as NaN, and makes the values NaN that depend on it: all.
        empty: score without any sensor.

    Raises:
        Fusion3DError: subsets are missing, or come twice.
    """
    value = {name: math.nan if score is None else score for name, score in scores.items()}
    parts = shares(scores)
    return {
        player: math.fsum(share * value[name] for name, share in of.items()) - empty / len(parts)
        for player, of in parts.items()
    }


def shares(names: Iterable[str]) -> dict[str, dict[str, float]]:
    """For every sensor what part of each subset's score is in its value: before the subset came, or as the last of it.

    Whatever is linear in scores, such as their draws of a bootstrap, has Shapley values by the same parts.

    Args:
        names: of the subsets, as in ``shapley``.

    Raises:
        Fusion3DError: as in ``shapley``.
    """
    subsets = _by_sensors(names)
    players = _players(subsets.values())
    count = len(players)
    weight = [math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count) for size in range(count)]
    return {
        player: {name: weight[len(of) - 1] if player in of else -weight[len(of)] for of, name in subsets.items()}
        for player in players
    }


def sensor_worth(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Shapley values of NDS, mAP and every class's AP, wherever they stand in the rows of an evaluation.

    Args:
        rows: by subset, numbers as ``evaluate`` writes them. Mappings in a row, such as those by distance band, are
            looked into; what not all rows have is left out.

    Returns:
        The same tree with a mapping from sensor to value in the place of each number.

    Raises:
        Fusion3DError: as in ``shapley``.
    """
    _by_sensors(rows)
    return _worth(rows)


def has_every_subset(names: Mapping[str, Any]) -> bool:
    """Are these all non-empty subsets of their sensors?"""
    found = {frozenset(name.split(JOIN)) for name in names}
    return len(found) == 2 ** len(_players(names)) - 1


def _worth(rows: Mapping[str, Any], leaves: tuple[str, ...] = SCORES) -> dict[str, Any]:
    """``leaves``: names of the numbers that count."""
    found: dict[str, Any] = {}
    for key in next(iter(rows.values())):
        below = {name: row.get(key, ...) for name, row in rows.items()}
        if key != INTERVALS and all(isinstance(value, Mapping) for value in below.values()):
            of_part = _worth(below, tuple(below[next(iter(rows))]) if key == BY_CLASS else SCORES)
            found |= {key: of_part} if of_part else {}
        elif key in leaves and all(value is None or isinstance(value, (int, float)) for value in below.values()):
            found[key] = shapley(below)
    return found


def _players(names: Iterable[str]) -> list[str]:
    """The sensors, in the order in which they are first named."""
    return list(dict.fromkeys(sensor for name in names for sensor in name.split(JOIN)))


def _by_sensors(names: Iterable[str]) -> dict[frozenset[str], str]:
    """The names by set of sensors; every one must be there once."""
    names = list(names)
    players = _players(names)
    known: dict[frozenset[str], str] = {}
    for name in names:
        subset = frozenset(name.split(JOIN))
        if subset in known:
            raise Fusion3DError(f"Shapley values: the subset {name!r} comes twice; expected each subset once")
        known[subset] = name
    wanted = [subset for size in range(1, len(players) + 1) for subset in combinations(players, size)]
    missing = [JOIN.join(subset) for subset in wanted if frozenset(subset) not in known]
    if missing or not players:
        raise Fusion3DError(
            f"Shapley values need every subset of the sensors; found {', '.join(names) or 'none'}, missing "
            f"{', '.join(missing) or 'all'}: evaluate without --subsets"
        )
    return known
