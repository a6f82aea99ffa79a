"""Tensors inside dataclasses: their rows selected and joined, and all of them moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor

T_ = TypeVar("T_")


def select(value: T_, keep: Any) -> T_:
    """The rows of every tensor and tuple that a slice, a bool mask or an index tensor selects; of no row, none."""
    if isinstance(value, Tensor):
        return value[keep]  # type: ignore[return-value]
    if isinstance(value, tuple):
        rows = torch.arange(len(value))[keep.cpu() if isinstance(keep, Tensor) else keep].tolist() if value else []
        return tuple(value[row] for row in rows)  # type: ignore[return-value]
    fields = dataclasses.fields(value)  # type: ignore[arg-type]
    return type(value)(**{f.name: select(getattr(value, f.name), keep) for f in fields})


def concat(parts: Sequence[T_]) -> T_:
    """The rows of all parts, one after another: of every tensor and tuple."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))  # type: ignore[arg-type, return-value]
    if isinstance(first, tuple):
        return tuple(chain.from_iterable(parts))  # type: ignore[arg-type, return-value]
    fields = dataclasses.fields(first)  # type: ignore[arg-type]
    return type(first)(**{f.name: concat([getattr(part, f.name) for part in parts]) for f in fields})


def to_device(value: T_, device: torch.device | str) -> T_:
    """Move every tensor inside dataclasses, tuples and lists to ``device``; anything else is returned as it is.

    What comes to the CPU is there when this returns: nothing would wait for it before it is read.
    """
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=torch.device(device).type != "cpu")  # type: ignore[return-value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: to_device(getattr(value, f.name), device) for f in dataclasses.fields(value)})
    if isinstance(value, (tuple, list)):
        return type(value)(to_device(item, device) for item in value)  # type: ignore[return-value]
    return value
