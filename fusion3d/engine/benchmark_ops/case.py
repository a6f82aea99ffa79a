"""One row of the operations' benchmark: a piece of work, ours and that of its peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fusion3d.ops import library


@dataclass(frozen=True)
class Case:
    """The same work, by our operation and by others, on the same input.

    Each callable does the whole work once, from tensors that lie ready, and returns its result. ``agree`` raises
    ``AssertionError`` where a peer's result is not ours.
    """

    op: str  # name of the operation, with " backward" where that is what is timed
    shape: str  # what is worked on, in a few words: "270 000 points, 0.075 m"
    ours: Callable[[], Any]
    peers: Mapping[str, Callable[[], Any]]
    agree: Callable[[Any, Any], None]  # (ours, a peer's)
    num_bytes: int  # that must be moved at least: inputs read once, outputs written once
    # What is wanted where the case runs: on the CPU of 2 cores, on CUDA of an H200.
    target: Mapping[str, float] = field(default_factory=dict)  # ratio to a peer, at least
    limit: float | None = None  # time [s], at most
    limit_of_bound: float | None = None  # times what moving the bytes takes, at most


def going_back(
    direct: Callable[[], Any], forward: Callable[[], Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> Callable[[], Any]:
    """Our gradients by autograd, as the peers'; on CUDA by the operation itself, which a CUDA graph can hold."""
    if grad.is_cuda and library.has_kernel(grad.device):
        return direct
    out = forward()
    return lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)
