"""The walk through a model, stage by stage: what comes out, parameters, operations, memory, time: ``describe CONFIG``.

The data are random, of realistic size: nothing but a configuration is needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusion3d.bev.early import EarlyFusion
from fusion3d.build import build_model
from fusion3d.config import Config, load_config
from fusion3d.encoders.checkpointing import checkpoint_blocks
from fusion3d.engine.probes import Clock, Memory, Operations, Probe
from fusion3d.engine.random_batch import give_anchors, random_batch
from fusion3d.engine.train import PRECISIONS
from fusion3d.files import write_json
from fusion3d.late import Model
from fusion3d.model import CameraBranch, Fusion3D
from fusion3d.types import Batch, Boxes, Cameras

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

    Operations and memory are counted in a pass of their own, the first; time is measured by hooks inside of those that
    follow, each hook waiting for the device. In training the whole is forward, losses and backward, the last two with
    a row each; else forward and decoding. Where a batch has a past, training goes through all of it, and a stage is
    what it is for all keyframes together; inference is one step of a stream, which remembers the past.

    Args:
        config: of the model.
        batch: on the device to measure on.
        repeats: passes that are timed; 0: the one that counts is, which it makes a little slower.
        train: describe a training step instead of inference, with ``train.precision`` and
            ``train.checkpoint_activations``; not compiled.
    """
    model = build_model(config, pretrained=False)
    give_anchors(model)
    if train and config.train.checkpoint_activations:
        checkpoint_blocks(model)
    model = model.to(batch.command.device).train(train)
    parts = stages(model)
    step = _Step(model, batch, precision=config.train.precision) if train else _Step.of_stream(model, batch)
    operations, memory = Operations(), Memory([*model.parameters(), *model.buffers(), *_tensors(batch)])
    clocks = [Clock(batch.command.device) for _ in range(repeats + 1)]
    with operations.counter, memory, _noted(parts) as outputs:
        step.run(parts, [operations, memory, clocks[0]])
    for clock in clocks[1:]:
        step.run(parts, [clock])
    laps = [clock.times for clock in clocks[1:] or clocks]
    modules = parts | {"whole": model}
    return [
        Stage(
            name,
            outputs.get(name, ()),
            sum(p.numel() for p in modules[name].parameters()) if name in modules else 0,
            operations.counts[name],
            memory.peaks[name],
            statistics.median(lap[name] for lap in laps),
        )
        for name in laps[0]
    ]


@dataclasses.dataclass(frozen=True)
class _Step:
    """One pass of a model over a batch, in the mode that it is in."""

    model: Model
    batch: Batch
    memory: Any = None  # what the model remembers of the past, where the batch has none
    precision: str = "float32"

    @staticmethod
    def of_stream(model: Model, batch: Batch) -> _Step:
        """The next step of a stream that has seen the batch's past."""
        memory = None
        with torch.no_grad():
            for past in reversed(batch.history):
                memory = model(past.batch, memory)["memory"]
        return _Step(model, dataclasses.replace(batch, history=()), memory)

    def run(self, parts: Mapping[str, nn.Module], probes: Sequence[Probe]) -> None:
        """Forward and decoding, or in training losses and backward, with every probe at every part."""
        model, batch = self.model, self.batch
        model.zero_grad()
        kind, dtype = batch.command.device.type, PRECISIONS[self.precision]
        with ExitStack() as watched, torch.set_grad_enabled(model.training):
            for probe in probes:
                watched.enter_context(probe.watch(parts))
            with _spans(probes, "whole"):
                with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
                    outputs = model(batch, self.memory)
                    if not model.training:
                        with _spans(probes, "decode"):
                            model.decode(outputs, batch)
                        return
                    with _spans(probes, "losses"):
                        terms = model.losses(outputs, batch).values()
                        loss = torch.stack([term.float() for term in terms]).sum()
                with _spans(probes, "backward"):
                    loss.backward()


@contextmanager
def _spans(probes: Sequence[Probe], name: str) -> Iterator[None]:
    with ExitStack() as spans:
        for probe in probes:
            spans.enter_context(probe.span(name))
        yield


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of the walk, by their names in the code."""
    parts: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        inner = stages(child) if isinstance(child, CameraBranch | EarlyFusion | Fusion3D | nn.ModuleDict) else {}
        parts |= {f"{name}.{part}": module for part, module in inner.items()} or {name: child}
    return parts


@contextmanager
def _noted(parts: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[str, ...]]]:
    """The shapes that every part gives, filled as they are called."""
    found: dict[str, tuple[str, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, given, output: found.update({name: tuple(format_shapes(output))})

    hooks = [module.register_forward_hook(note(name)) for name, module in parts.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def format_shapes(value: Any, name: str = "") -> Iterator[str]:
    """The shape of every tensor of numbers in an output: "6x80x16x44", or with a name before it, where it has one."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield f"{name} {'x'.join(map(str, value.shape))}".strip()
    elif isinstance(value, Cameras | Boxes):  # what an output is about, not what it says
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


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


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
    work = f"training step in {config.train.precision}" if known.train else "inference"
    title = f"{known.config}: {work} of {known.samples} sample(s), {known.points} LiDAR points each, on {device}"
    print(format_table(rows, title))
    if known.json is not None:
        write_json(known.json, {"title": title, "stages": [dataclasses.asdict(row) for row in rows]})
    return 0
