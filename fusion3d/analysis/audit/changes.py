"""What is changed of a batch, one after the other, to see what a plan depends on. B samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fusion3d.analysis.audit.fields import (
    blank,
    fields_of,
    given,
    has,
    past_of,
    sensing,
    spoiled,
    through_history,
    without,
)
from fusion3d.types import COMMANDS, Batch, EgoStatus, Trajectory

OTHER = "of another scene"
ALL_SENSORS, NO_SENSOR, ALL_EGO, NO_EGO = f"all sensors {OTHER}", "no sensor", f"all ego {OTHER}", "no ego"
NO_HISTORY, NAMES, NO_TARGETS = "no history", "other names", "no targets"
UNKNOWN = "command unknown"
DAY = 86_400_000_000  # [us]
FACTOR = 5.0  # BEV-Planner's test of speed (Li et al., 2024) went to 100 m/s


@dataclass(frozen=True)
class Change:
    """One thing that is changed of a batch."""

    group: str  # sensors, ego, command, place, history, names or targets
    name: str
    make: Callable[[Batch, Batch], Batch]  # from a batch, and one of as many samples of other scenes
    concerns: Callable[[Batch], Tensor]  # [B] bool: the samples in which there is something to change
    other: bool = False  # needs samples of other scenes
    senses: bool = False  # sensors read something else, so that encoders must run again


def all_changes() -> list[Change]:
    """Everything that is tried, by group; of the role "frame" nothing: at evaluation there is no augmentation."""
    return [*_sensors(), *_ego(), *_command(), *_place(), *_history(), *_names(), *_targets()]


def _sensors() -> list[Change]:
    fields = fields_of("sensor")
    parts: dict[str, tuple[str, ...]] = {field: (field,) for field in fields}
    gone = [_without(f"no {name}", of) for name, of in parts.items()] + [_without(NO_SENSOR, tuple(fields))]
    parts["all sensors"] = tuple(fields)
    return gone + [_sensing(f"{name} {OTHER}", of) for name, of in parts.items()]


def _without(name: str, fields: tuple[str, ...]) -> Change:
    return Change("sensors", name, lambda batch, _: without(batch, fields), lambda batch: _any_of(batch, fields))


def _sensing(name: str, fields: tuple[str, ...]) -> Change:
    return Change(
        "sensors",
        name,
        lambda batch, other: sensing(batch, other, fields),
        lambda batch: _any_of(batch, fields),
        other=True,
        senses=True,
    )


def _any_of(batch: Batch, fields: tuple[str, ...]) -> Tensor:
    return torch.stack([has(batch, field) for field in fields]).any(0)


def _ego() -> list[Change]:
    fields = tuple(fields_of("ego"))
    parts = {**{field: (field,) for field in fields}, "all ego": fields}
    found = []
    for name, of in parts.items():
        found.append(_of_ego(f"{name} {OTHER}", lambda batch, other, of=of: given(batch, other, of), of, other=True))
        gone = NO_EGO if of == fields else f"no {name}"
        found.append(_of_ego(gone, lambda batch, _, of=of: blank(batch, of), of))
    factors = {
        f"speed x {FACTOR:g}": ("velocity", FACTOR),
        "speed x 0": ("velocity", 0.0),
        "acceleration reversed": ("acceleration", -1.0),
        "yaw rate reversed": ("yaw_rate", -1.0),
    }
    for name, (part, factor) in factors.items():
        scale = lambda batch, _, part=part, factor=factor: _scaled(batch, part, factor)  # noqa: E731
        found.append(_of_ego(name, scale, ("status",)))
    return found


def _of_ego(name: str, make: Callable[[Batch, Batch], Batch], fields: tuple[str, ...], other: bool = False) -> Change:
    def concerns(batch: Batch) -> Tensor:
        return torch.stack([_known(getattr(batch, field), batch) for field in fields]).any(0)

    return Change("ego", name, make, concerns, other)


def _known(value: EgoStatus | Trajectory | Tensor | None, batch: Batch) -> Tensor:
    """[B] bool: of which samples something is known."""
    if isinstance(value, EgoStatus):
        return value.velocity.isfinite().all(-1)
    if isinstance(value, Trajectory):
        return value.mask.any(-1)
    return torch.full_like(batch.annotated, value is not None)


def _scaled(batch: Batch, part: str, factor: float) -> Batch:
    status = batch.status
    assert status is not None
    return dataclasses.replace(batch, status=dataclasses.replace(status, **{part: factor * getattr(status, part)}))


def _command() -> list[Change]:
    def to(value: int, name: str) -> Change:
        return Change(
            "command",
            name,
            lambda batch, _: dataclasses.replace(batch, command=torch.full_like(batch.command, value)),
            lambda batch: batch.command != value,
        )

    return [to(-1, UNKNOWN), *(to(value, f"command {name}") for value, name in enumerate(COMMANDS))]


def _place() -> list[Change]:
    def later(frame: Batch) -> Batch:
        return dataclasses.replace(frame, timestamp=frame.timestamp + DAY)

    def elsewhere(frame: Batch) -> Batch:
        moved = frame.global_from_ego.new_tensor([[0, -1, 0, 1000], [1, 0, 0, 500], [0, 0, 1, 0], [0, 0, 0, 1]])
        return dataclasses.replace(frame, global_from_ego=moved @ frame.global_from_ego)

    return [
        Change("place", "a day later", lambda batch, _: through_history(batch, later), _everywhere),
        Change("place", "elsewhere on the map", lambda batch, _: through_history(batch, elsewhere), _everywhere),
    ]


def _history() -> list[Change]:
    sensors = fields_of("sensor")
    return [
        Change("history", NO_HISTORY, lambda b, _: dataclasses.replace(b, history=()), _has_past, senses=True),
        Change(
            "history",
            f"history {OTHER}",
            lambda batch, other: dataclasses.replace(batch, history=past_of(batch, other, sensors)),
            _has_past,
            other=True,
            senses=True,
        ),
        Change("history", f"way since then x {FACTOR:g}", lambda batch, _: _driven(batch, FACTOR), _has_past),
        Change("history", "way since then x 0", lambda batch, _: _driven(batch, 0.0), _has_past),
    ]


def _driven(batch: Batch, factor: float) -> Batch:
    """The batch whose keyframes before are said to be so many times as far away."""
    history = []
    for past in batch.history:
        now = batch.global_from_ego[list(past.row)]
        now_from_then = torch.linalg.inv(now) @ past.batch.global_from_ego
        now_from_then[:, :3, 3] *= factor
        frame = dataclasses.replace(past.batch, global_from_ego=now @ now_from_then)
        history.append(dataclasses.replace(past, batch=frame))
    return dataclasses.replace(batch, history=tuple(history))


def _has_past(batch: Batch) -> Tensor:
    found = torch.zeros_like(batch.annotated)
    found[[row for past in batch.history for row in past.row]] = True
    return found


def _names() -> list[Change]:
    def renamed(frame: Batch) -> Batch:
        return dataclasses.replace(frame, **{field: spoiled(getattr(frame, field)) for field in fields_of("name")})

    return [Change("names", NAMES, lambda batch, _: through_history(batch, renamed), _everywhere)]


def _targets() -> list[Change]:
    fields = fields_of("target")

    def spoil(field: str) -> Change:
        return Change(
            "targets",
            f"other {field}",
            lambda batch, _: dataclasses.replace(batch, **{field: spoiled(getattr(batch, field))}),
            lambda batch: torch.full_like(batch.annotated, getattr(batch, field) is not None),
        )

    return [*map(spoil, fields), Change("targets", NO_TARGETS, lambda b, _: blank(b, fields), _everywhere)]


def _everywhere(batch: Batch) -> Tensor:
    return torch.ones_like(batch.annotated)
