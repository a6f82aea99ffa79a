"""What is compared: some sensors alone, every operator in the middle stage, and every other stage.

Operators and stages are those that the configuration names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

from fusion3d.config import Config, FusionConfig


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to fuse, or some sensors alone."""

    name: str
    stage: str = "middle"
    operator: str = "concat"
    alone: tuple[str, ...] = ()  # the only sensors; empty: all

    def config(self, base: Config) -> Config:
        """``base`` with this row's branches and fusion."""
        settings = {"stage": self.stage, "operator": self.operator, **SETTINGS.get(self.operator, {})}
        fusion = dataclasses.replace(base.fusion, **settings)
        if len(self.alone) == 1:  # nothing to agree with
            fusion = dataclasses.replace(fusion, representation="joint", align="none")
        if self.alone:
            others = {name: None for name in base.branches if name not in self.alone}
            base = dataclasses.replace(base, **others)  # type: ignore[arg-type]
            if base.camera is not None and base.camera.view.removesuffix("_lift") in others:  # it has lost its helper
                base = dataclasses.replace(base, camera=dataclasses.replace(base.camera, view="lift"))
        return dataclasses.replace(base, fusion=fusion)


def choices(setting: str) -> tuple[str, ...]:
    """What a setting of ``fusion`` may be."""
    return get_args(get_type_hints(FusionConfig)[setting])


REFERENCE = "concat"  # the row that others are compared with, chosen before any was trained
# Of ``fusion``, by operator. Scales begin at 1: an epoch takes a few of them below 0.9, none to the default of 0.02.
SETTINGS: Mapping[str, Mapping[str, Any]] = {"channel_exchange": {"exchange_below": 0.9}}
BEST = {"hierarchical": 2, "hybrid": 1}  # stages that have an operator too: so many of the best ones are tried
TOGETHER = Row("together", operator=REFERENCE)  # all sensors: the others begin with its weights, but for what fuses
OPERATORS = tuple(Row(name, operator=name) for name in choices("operator"))
STAGES = tuple(Row(name, stage=name) for name in choices("stage") if name not in ("middle", *BEST))
WITH_OPERATOR = tuple(Row(f"{stage}-{operator}", stage, operator) for stage in BEST for operator in choices("operator"))


def alone(sensors: Sequence[str]) -> tuple[Row, ...]:
    """The rows of single sensors, whose weights the others begin with."""
    return tuple(Row(sensor, alone=(sensor,)) for sensor in sensors)


def best_rows(score: Mapping[str, float]) -> tuple[Row, ...]:
    """The stages that have an operator, with the best ones.

    Args:
        score: of each operator; the higher, the better.
    """
    ranked = sorted(score, key=lambda name: -score[name])
    chosen = {f"{stage}-{operator}" for stage, count in BEST.items() for operator in ranked[:count]}
    return tuple(row for row in WITH_OPERATOR if row.name in chosen)
