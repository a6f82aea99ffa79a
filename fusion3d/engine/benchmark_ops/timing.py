"""Clocks: how long a call takes, beside those that it is compared with, and how fast memory is copied."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

_LEAST = {"cpu": 2e-2, "cuda": 1e-3}  # [s] that one reading lasts at least: shorter calls are repeated within it
_MOST_CALLS = 1000  # of one reading
_ROUNDS = 3  # at least, however slow a call is


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, over the readings of a case."""

    least: float
    median: float
    spread: float  # distance between the quartiles over the median
    readings: int
    calls: int  # in each reading

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def clock(device: str) -> Callable[[Callable[[], Any], int], float]:
    """A function of (call, times) that returns the seconds of one call, on the device."""
    if device != "cuda":
        return _wall
    return _events


def _wall(call: Callable[[], Any], times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times


def _events(call: Callable[[], Any], times: int) -> float:
    """Between two events on the current stream: what the host adds counts where the device waits for it."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / times


def race(calls: Sequence[Callable[[], Any]], device: str, repeats: int, seconds: float) -> list[Timing]:
    """Time calls in turn, so that what disturbs the machine disturbs them all alike.

    A call that is repeated within a reading runs once before it, unread: what it finds in caches and in the allocator
    is its own, as in a loop over frames, and not what the call before it has left.

    Args:
        calls: each has run before.
        device: "cpu" or "cuda".
        repeats: rounds at most.
        seconds: after which no round is begun, once there were three.
    """
    read = clock(device)
    times = [min(_MOST_CALLS, max(1, round(_LEAST[device] / max(read(call, 1), 1e-9)))) for call in calls]
    readings: list[list[float]] = [[] for _ in calls]
    gc.collect()
    gc.disable()
    try:
        begin = time.monotonic()
        for done in range(repeats):
            if done >= _ROUNDS and time.monotonic() - begin > seconds:
                break
            for call, count, own in zip(calls, times, readings, strict=True):
                if count > 1:
                    call()
                own.append(read(call, count))
    finally:
        gc.enable()
    return [_summary(own, count) for own, count in zip(readings, times, strict=True)]


def _summary(readings: list[float], calls: int) -> Timing:
    median = statistics.median(readings)
    low, _, high = statistics.quantiles(readings, n=4, method="inclusive") if len(readings) > 1 else (median,) * 3
    return Timing(min(readings), median, (high - low) / max(median, 1e-12), len(readings), calls)


def graph_time(call: Callable[[], Any], repeats: int) -> Timing:
    """Time of a CUDA graph of the call: the device's work without the host's.

    Raises:
        RuntimeError: the call cannot be captured (it waits for the device, or allocates past the caching allocator).
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    return race([graph.replay], "cuda", repeats, float("inf"))[0]


def copy_rate(device: str, num_bytes: int | None = None) -> float:
    """Bytes read and written in a second by torch's copy of what no cache holds: what the bounds are computed with."""
    size = num_bytes or (1 << 30 if device == "cuda" else 1 << 27)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    best = min(clock(device)(lambda: target.copy_(source), 1) for _ in range(10))
    return 2 * source.numel() * 4 / best
