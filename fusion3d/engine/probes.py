"""What is read at both ends of parts of a program: time, operations, memory."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fusion3d.engine.flops import flop_counter


class Probe:
    """Something to be read at both ends of named spans, which modules can be made into."""

    def begin(self) -> Any:
        """At the start of a span."""
        raise NotImplementedError

    def end(self, name: str, begun: Any) -> None:
        """At its end, with what ``begin`` gave."""
        raise NotImplementedError

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A part of the program as a span."""
        begun = self.begin()
        yield
        self.end(name, begun)

    @contextmanager
    def watch(self, parts: Mapping[str, nn.Module]) -> Iterator[None]:
        """Every call of these modules as a span."""
        begun: dict[str, Any] = {}
        hooks = []
        for name, module in parts.items():
            hooks.append(module.register_forward_pre_hook(lambda *_, n=name: begun.update({n: self.begin()})))
            hooks.append(module.register_forward_hook(lambda *_, n=name: self.end(n, begun[n])))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class Clock(Probe):
    """Milliseconds of every span, all its times together, with the device's queue emptied at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: dict[str, float] = {}

    def begin(self) -> float:
        """Now [s]."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def end(self, name: str, begun: float) -> None:
        """Keep how long it took."""
        self.times[name] = self.times.get(name, 0.0) + (self.begin() - begun) * 1e3


class Operations(Probe):
    """Floating-point operations of every span, all its times together; two for a multiply-add."""

    def __init__(self) -> None:
        self.counter = flop_counter()
        self.counts: dict[str, int] = {}

    def begin(self) -> int:
        """Those until now."""
        return self.counter.get_total_flops()

    def end(self, name: str, begun: int) -> None:
        """Add those of the span."""
        self.counts[name] = self.counts.get(name, 0) + self.begin() - begun


class Memory(Probe, TorchDispatchMode):
    """The most bytes of tensors that were alive at once in every span, on any device.

    Seen from outside: scratch memory within an operation is not counted.
    """

    def __init__(self, there: list[Tensor]) -> None:
        super().__init__()
        self.live = self.most = 0
        self.peaks: dict[str, int] = {}
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in there)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Count what an operation allocates, once, until it is freed."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(storage)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return out

    def _change(self, nbytes: int) -> None:
        self.live += nbytes
        self.most = max(self.most, self.live)

    def begin(self) -> int:
        """The most until now; it is counted anew from what is alive."""
        before, self.most = self.most, self.live
        return before

    def end(self, name: str, begun: int) -> None:
        """Keep the most of the span."""
        self.peaks[name] = max(self.peaks.get(name, 0), self.most)
        self.most = max(self.most, begun)
