"""A batch with some of its fields changed, and whether two values are the same to the bit. B samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from fusion3d.types import Batch, History, Sample

KINDS = {"cameras": "camera"}  # fields whose kind of sensor has another name

# What each field of a Batch is to a model. A "target" is what it is taught and scored by: nothing of it may reach an
# answer, and neither may a "name". All others are inputs.
ROLES = {
    "tokens": "name", "scenes": "name", "timestamp": "place", "global_from_ego": "place", "aug_from_ego": "frame",
    "cameras": "sensor", "lidar": "sensor", "radar": "sensor", "past": "ego", "status": "ego", "command": "command",
    "history": "history", "boxes": "target", "future": "target", "motion": "target", "annotated": "target",
    "map_mask": "target", "map_known": "target",
}  # fmt: skip


def fields_of(*roles: str) -> list[str]:
    """The fields of a ``Batch`` that have one of these roles, in its order."""
    return [field.name for field in dataclasses.fields(Batch) if ROLES[field.name] in roles]


def has(batch: Batch, field: str) -> Tensor:
    """[B] bool: which samples have a sensor."""
    return batch.present[KINDS.get(field, field)]


def same(first: Any, second: Any) -> bool:
    """Are two values of any type of a batch equal, tensors to the bit? (NaN is then equal to itself.)"""
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        alike = first.shape == second.shape and first.dtype == second.dtype
        return alike and first.cpu().numpy().tobytes() == second.cpu().numpy().tobytes()
    if dataclasses.is_dataclass(first):
        return all(same(getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(first))
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def spoiled(value: Any) -> Any:
    """A value of the same form with another content, whatever it was: numbers and flags are turned round."""
    if isinstance(value, Tensor):
        return ~value if value.dtype == torch.bool else -value - 1
    if isinstance(value, str):
        return f"not {value}"
    if isinstance(value, (tuple, list)):
        return type(value)(map(spoiled, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{f.name: spoiled(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    return value


def blank(batch: Batch, fields: Collection[str]) -> Batch:
    """The batch without some fields: None, or where that cannot be, False or unknown."""
    unknown = {"annotated": torch.zeros_like(batch.annotated), "command": torch.full_like(batch.command, -1)}
    return dataclasses.replace(batch, **{field: unknown.get(field) for field in fields})


def through_history(batch: Batch, change: Callable[[Batch], Batch]) -> Batch:
    """The batch and the keyframes before it, each changed alike."""
    return dataclasses.replace(change(batch), history=past_only(batch, change))


def past_only(batch: Batch, change: Callable[[Batch], Batch]) -> tuple[History, ...]:
    """The keyframes before, changed."""
    return tuple(dataclasses.replace(past, batch=change(past.batch)) for past in batch.history)


def without(batch: Batch, sensors: Collection[str]) -> Batch:
    """The batch and its past without some sensors."""
    return through_history(batch, lambda frame: blank(frame, sensors))


def given(batch: Batch, other: Batch, fields: Collection[str]) -> Batch:
    """The batch with the fields of another one of as many samples."""
    return dataclasses.replace(batch, **{field: getattr(other, field) for field in fields})


def past_of(batch: Batch, other: Batch, sensors: Collection[str]) -> tuple[History, ...]:
    """The keyframes before, when and where they were, as the sensors of another batch's saw theirs."""
    return tuple(
        dataclasses.replace(past, batch=given(past.batch, theirs.batch, sensors))
        for past, theirs in zip(batch.history, other.history, strict=True)
    )


def sensing(batch: Batch, other: Batch, sensors: Collection[str]) -> Batch:
    """The batch and its past with sensors, calibration and all, that read what another batch's do."""
    return dataclasses.replace(given(batch, other, sensors), history=past_of(batch, other, sensors))


def sensors_alone(batch: Batch) -> Batch:
    """The batch with all else than its sensors spoiled, now and before: what encoders need is left."""
    rest = [field for field in ROLES if ROLES[field] not in ("sensor", "frame", "history")]
    return through_history(batch, lambda f: dataclasses.replace(f, **{n: spoiled(getattr(f, n)) for n in rest}))


def fitted(donor: Sample, sample: Sample) -> Sample:
    """Another sample with a past as long as a sample's: cut off, or its oldest keyframe again."""
    oldest = donor.history[-1] if donor.history else donor
    enough = (*donor.history, *[oldest] * len(sample.history))[: len(sample.history)]
    return dataclasses.replace(donor, history=tuple(dataclasses.replace(frame, history=()) for frame in enough))
