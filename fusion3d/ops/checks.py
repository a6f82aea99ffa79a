"""What every operation asks of its input; a ``ValueError`` names the tensor, what was found and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def shape_of(tensor: Tensor) -> list[int]:
    """As a plain list, for messages."""
    return list(tensor.shape)


def check(tensor: Tensor, name: str, letters: str, dtypes: tuple[torch.dtype, ...]) -> None:
    """One dimension for each letter, and one of the dtypes."""
    if tensor.ndim != len(letters):
        raise ValueError(f"{name} has shape {shape_of(tensor)}; expected [{', '.join(letters)}]")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} is {tensor.dtype}; expected {' or '.join(str(d) for d in dtypes)}")


def check_boxes(boxes: Tensor, name: str) -> None:
    """[N, 5] float."""
    check(boxes, name, "N5", FLOATS)
    if boxes.shape[1] != 5:
        raise ValueError(f"{name} has shape {shape_of(boxes)}; expected [N, 5]: x, y, length, width, yaw")
