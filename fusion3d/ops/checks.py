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


def in_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in autocast's type, where it is on for their device; else as they are, as float64 always is."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def check_one_dtype(**pair: Tensor) -> None:
    """Both of one dtype."""
    (first, a), (second, b) = pair.items()
    if a.dtype != b.dtype:
        raise ValueError(f"{first} is {a.dtype} and {second} {b.dtype}; expected one dtype: cast one of them")


def check_one_device(**tensors: Tensor) -> None:
    """All on one device."""
    (first, a), *others = tensors.items()
    if any(tensor.device != a.device for _, tensor in others):
        said = ", ".join(f"{name} on {tensor.device}" for name, tensor in others)
        raise ValueError(f"{first} is on {a.device}, {said}; expected one")
