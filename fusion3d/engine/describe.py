"""The walk through a model, stage by stage: what comes out, parameters, operations, memory, time: ``describe CONFIG``.

The data are random, of realistic size: nothing but a configuration is needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fusion3d.bev.early import EarlyFusion
from fusion3d.build import build_model
from fusion3d.config import Config, load_config
from fusion3d.engine.flops import count_flops
from fusion3d.engine.random_batch import random_batch
from fusion3d.files import write_json
from fusion3d.late import Model
from fusion3d.model import CameraBranch, Fusion3D
from fusion3d.types import Batch, Cameras

_MEBI = 2**20


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one stage of the walk gives and takes."""

    name: str  # as in the code: camera.encoder
    output: tuple[str, ...]  # shapes, with their names where they have any
    parameters: int
    flops: int  # two for a multiply-add
    peak: int  # [bytes] of tensors alive at once while it ran, beyond weights and batch
    milliseconds: float  # median


def describe(config: Config, batch: Batch, repeats: int = 3, train: bool = False) -> list[Stage]:
    """The stages of a model on a batch, and at the end the whole.

    Time is measured by hooks inside of whole passes, each hook waiting for the device; operations and memory in passes
    of their own. In training the whole is forward, losses and backward, the last two with a row each; else forward and
    decoding.

    Args:
        config: of the model.
        batch: on the device to measure on.
        repeats: passes that are timed, after one that is not.
        train: describe a training step instead of inference.
    """
    device = batch.command.device
    model = build_model(config, pretrained=False).to(device).train(train)
    parts = stages(model)
    outputs = _outputs_of(model, parts, batch)
    forward = count_flops(lambda: model(batch))
    flops = {name: forward.get(f"{type(model).__name__}.{name}", 0) for name in parts}
    flops["whole"] = count_flops(lambda: _run(model, batch, train)).get("Global", 0)
    flops["backward"] = flops["whole"] - forward.get("Global", 0)
    memory = Memory([*model.parameters(), *model.buffers(), *_tensors(batch)])
    with memory, memory.watch(parts):
        _run(model, batch, train, memory.span)
    clock = Clock(device)
    with clock.watch(parts):
        for attempt in range(repeats + 1):
            clock.keep = attempt > 0
            _run(model, batch, train, clock.span)
    modules = parts | {"whole": model}
    return [
        Stage(
            name,
            outputs.get(name, ()),
            sum(p.numel() for p in modules[name].parameters()) if name in modules else 0,
            flops.get(name, 0),
            memory.peaks[name],
            statistics.median(times),
        )
        for name, times in clock.times.items()
    ]


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of the walk, by their names in the code."""
    parts: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        inner = stages(child) if isinstance(child, CameraBranch | EarlyFusion | Fusion3D | nn.ModuleDict) else {}
        parts |= {f"{name}.{part}": module for part, module in inner.items()} or {name: child}
    return parts


def _outputs_of(model: nn.Module, parts: Mapping[str, nn.Module], batch: Batch) -> dict[str, tuple[str, ...]]:
    """The shapes that every part gives."""
    found: dict[str, tuple[str, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, given, output: found.update({name: tuple(format_shapes(output))})

    hooks = [module.register_forward_hook(note(name)) for name, module in parts.items()]
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return found


def format_shapes(value: Any, name: str = "") -> Iterator[str]:
    """The shape of every tensor of numbers in an output: "6x80x16x44", or with a name before it, where it has one."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield f"{name} {'x'.join(map(str, value.shape))}".strip()
    elif isinstance(value, Cameras):  # what an output is about, not what it says
        return
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from format_shapes(getattr(value, field.name), f"{name} {field.name}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from format_shapes(item, f"{name} {key}")
    elif isinstance(value, tuple | list):
        for item in value:
            yield from format_shapes(item, name)


def _run(model: Model, batch: Batch, train: bool, span: Callable[[str], Any] | None = None) -> None:
    """One pass, its steps inside of ``span``."""
    step = span or (lambda name: nullcontext())
    model.zero_grad()
    with torch.set_grad_enabled(train), step("whole"):
        outputs = model(batch)
        if train:
            with step("losses"):
                loss = torch.stack(list(model.losses(outputs, batch).values())).sum()
            with step("backward"):
                loss.backward()
        else:
            with step("decode"):
                model.decode(outputs, batch)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


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
    """Milliseconds of every span, with the device's queue emptied at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: dict[str, list[float]] = {}
        self.keep = True

    def begin(self) -> float:
        """Now [s]."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def end(self, name: str, begun: float) -> None:
        """Keep how long it took."""
        now = self.begin()
        if self.keep:
            self.times.setdefault(name, []).append((now - begun) * 1e3)


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


def format_table(rows: list[Stage], title: str) -> str:
    """The stages as lines of text."""
    width = max(len(output) for row in rows for output in row.output)
    lines = [title, f"{'stage':<16} {'output':<{width}} {'parameters':>12} {'GFLOPs':>9} {'MiB':>9} {'ms':>9}"]
    for row in rows:
        first, *others = row.output or ("",)
        parameters = f"{row.parameters:,}" if row.parameters else ""
        flops = f"{row.flops / 1e9:.2f}" if row.flops else ""
        cost = f"{parameters:>12} {flops:>9} {row.peak / _MEBI:>9.1f} {row.milliseconds:>9.1f}"
        lines.append(f"{row.name:<16} {first:<{width}} {cost}")
        lines += [f"{'':<16} {other}" for other in others]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """``describe CONFIG``: print the walk through the model, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(
        prog="describe", description="The walk through a model, with what each stage costs."
    )
    parser.add_argument("config", help="YAML configuration")
    parser.add_argument("--samples", type=int, default=1, help="samples in the batch")
    parser.add_argument("--points", type=int, default=270_000, help="LiDAR points per sample")
    parser.add_argument("--returns", type=int, default=600, help="radar returns per sample")
    parser.add_argument("--repeats", type=int, default=3, help="passes that are timed")
    parser.add_argument("--train", action="store_true", help="a training step")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="file to write")
    known, overrides = parser.parse_known_args(argv)
    if min(known.samples, known.repeats) < 1 or min(known.points, known.returns) < 0:
        parser.error("--samples and --repeats must be at least 1, --points and --returns at least 0")
    config = load_config(known.config, overrides)
    torch.manual_seed(config.seed)
    batch = random_batch(config, known.samples, known.points, known.returns, seed=config.seed).to(known.device)
    rows = describe(config, batch, known.repeats, known.train)
    threads = f"CPU, {torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name() if batch.command.is_cuda else threads
    work = "training step" if known.train else "inference"
    title = f"{known.config}: {work} of {known.samples} sample(s), {known.points} LiDAR points each, on {device}"
    print(format_table(rows, title))
    if known.json is not None:
        write_json(known.json, {"title": title, "stages": [dataclasses.asdict(row) for row in rows]})
    return 0
