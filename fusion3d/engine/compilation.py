"""torch.compile where it pays: the dense parts, whose tensors keep their shapes but for the number of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch import nn

from fusion3d.encoders.camera import CameraEncoder
from fusion3d.engine.batchnorm import JointBatchNorm
from fusion3d.model import Fusion3D


def compile_parts(model: nn.Module, **options: Any) -> list[nn.Module]:
    """Compile the dense parts of a model, in place: names and tensors of its state stay as they are.

    What is packed (points, pillars), looks things up or matches is left alone: its shapes change with every batch. So
    is a layer that speaks with other processes.

    Args:
        model: any; the ``Fusion3D`` in it are looked for.
        options: of ``torch.compile``.

    Returns:
        The parts.
    """
    parts = list(dense_parts(model))
    for layer in model.modules():
        if isinstance(layer, JointBatchNorm):
            # No decorator of the class: that would import much, for whoever trains without compiling too.
            layer.forward = torch.compiler.disable(layer.forward)  # type: ignore[method-assign, assignment]
    for part in parts:
        part.forward = torch.compile(_in_frame_of_its_own(part.forward), **options)
    return parts


def _in_frame_of_its_own(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls ``forward``, with code of its own.

    torch.compile passes over frames of torch itself, as those of nn.Sequential; and it counts recompilations by code,
    which parts of one class would share.
    """

    def run(*inputs: Any) -> Any:
        return forward(*inputs)

    return FunctionType(run.__code__.replace(), run.__globals__, "run", None, run.__closure__)


def dense_parts(model: nn.Module) -> Iterator[nn.Module]:
    """Image backbone and neck, trunk, and the stacks of convolutions in the heads, of every model in it."""
    for part in model.modules():
        if isinstance(part, CameraEncoder):
            yield from (part.backbone, part.neck)  # type: ignore[misc]
        elif isinstance(part, Fusion3D):
            yield part.trunk
            for head in (part.detection, part.planning, part.map, part.motion, part.occupancy):
                yield from _stacks(head)


def _stacks(module: nn.Module | None) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        if any(isinstance(layer, nn.Conv2d) for layer in module.modules()):
            yield module
    elif module is not None:
        for child in module.children():
            yield from _stacks(child)
