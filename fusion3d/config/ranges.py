"""Which values a setting may have, written where its type is: ``epochs: Count = 20``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal


@dataclass(frozen=True)
class Range:
    """A condition on a setting, in words and as a function; the metadata of an ``Annotated`` type."""

    expected: str
    holds: Callable[[Any], bool]


# A name of types.DETECTION_CLASSES; what a head must say of a box besides its velocity; of types.PLAN_SCORES.
ClassName = Literal[
    "car", "truck", "bus", "trailer", "construction_vehicle",
    "pedestrian", "motorcycle", "bicycle", "traffic_cone", "barrier",
]  # fmt: skip
BoxPart = Literal["offset", "height", "size", "yaw", "attribute"]
PlanScore = Literal["collision", "off_road", "comfort", "progress", "occupied", "undrivable"]

Count = Annotated[int, Range("at least 1", lambda value: value >= 1)]
Even = Annotated[int, Range("an even number, at least 2", lambda value: value > 0 and value % 2 == 0)]
Whole = Annotated[int, Range("0 or more", lambda value: value >= 0)]
Amount = Annotated[float, Range("0 or more", lambda value: 0 <= value < math.inf)]
Positive = Annotated[float, Range("more than 0", lambda value: 0 < value < math.inf)]
Fraction = Annotated[float, Range("0 to 1", lambda value: 0 <= value <= 1)]
MultipleOf4 = Annotated[int, Range("a multiple of 4", lambda value: value > 0 and value % 4 == 0)]
Counts = Annotated[tuple[int, ...], Range("one or more numbers, each at least 1", lambda v: len(v) > 0 and min(v) > 0)]
Widths4 = Annotated[tuple[int, int, int, int], Range("four numbers, each at least 1", lambda v: min(v) > 0)]
Sides = Annotated[tuple[int, int], Range("two numbers, each at least 1", lambda v: min(v) > 0)]
Scales = Annotated[tuple[float, float], Range("0 < low <= high", lambda v: 0 < v[0] <= v[1] < math.inf)]
Changes = Annotated[tuple[float, float], Range("-1 < low <= high", lambda v: -1 < v[0] <= v[1] < math.inf)]
Drops = Annotated[
    tuple[float, ...],
    Range("numbers between 0 and 1, ascending", lambda v: sorted(v) == list(v) and all(0 < x < 1 for x in v)),
]
# By class, part of a box or score of a plan: those whose value is not the usual one.
ClassCounts = Annotated[dict[ClassName, int], Range("at least 1 each", lambda v: min(v.values(), default=1) >= 1)]
ClassAmounts = Annotated[
    dict[ClassName, float], Range("0 or more each", lambda v: all(0 <= x < math.inf for x in v.values()))
]
ClassFactors = Annotated[
    dict[ClassName, float], Range("more than 0 each", lambda v: all(0 < x < math.inf for x in v.values()))
]
ClassFractions = Annotated[dict[ClassName, float], Range("0 to 1 each", lambda v: all(0 <= x <= 1 for x in v.values()))]
PartAmounts = Annotated[
    dict[BoxPart, float], Range("0 or more each", lambda v: all(0 <= x < math.inf for x in v.values()))
]
ScoreAmounts = Annotated[
    dict[PlanScore, float], Range("0 or more each", lambda v: all(0 <= x < math.inf for x in v.values()))
]
