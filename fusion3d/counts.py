"""What losses are divided by: how many of a thing there are, in this batch or in those of all processes together.

A mean over boxes is not the mean of the means over each process's boxes: a process with one box would weigh that box as
much as another all of its fifty. So every loss asks here for its divisor, and the engine, which knows of other
processes, listens in with ``counting``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

Listener = Callable[[str, Tensor], Tensor]  # name and count to divisor

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def divisor(name: str, count: Tensor) -> Tensor:
    """What to divide a sum over ``count`` things by: their number, at least 1.

    Inside of ``counting`` it is the mean number over the processes; so the mean over the processes of sum / divisor is
    the mean over all things.

    Args:
        name: of what is counted, one for each divisor of a model.
        count: of any shape.
    """
    listener = _listener.get()
    return count.clamp(min=1) if listener is None else listener(name, count)


@contextmanager
def named(prefix: str) -> Iterator[None]:
    """Put a prefix before the names of the divisors, where several parts have the same ones."""
    listener = _listener.get()
    if listener is None:
        yield
    else:
        with counting(lambda name, count: listener(f"{prefix}.{name}", count)):
            yield


@contextmanager
def counting(listener: Listener) -> Iterator[None]:
    """Let ``listener`` answer ``divisor``."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
