"""One row of the operations' benchmark: a piece of work, ours and that of its peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


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
    target: Mapping[str, float] = field(
        default_factory=dict
    )  # the ratio to each peer that we want at least, on 2 cores
