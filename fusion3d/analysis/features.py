"""Where a model's sensors have maps of their own, and what is in these while it runs.

| fusion stage | bird's-eye maps | image features |
| --- | --- | --- |
| middle, hierarchical | each sensor's, and "fused" | the cameras' |
| early | "points", of all sensors together: none has its own | the cameras', where points are painted with them |
| late | each sensor's, in its own model | the cameras' |
| hybrid | these, and those of the joint model, "joint lidar" and so on | the cameras', and "joint camera" |
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fusion3d.bev.early import EarlyFusion
from fusion3d.late import JOINT, LateFusion, Model
from fusion3d.model import Fusion3D
from fusion3d.types import SENSORS, Batch

Key = TypeVar("Key", bound=Hashable)
FUSED, POINTS = "fused", "points"  # maps of no sensor alone


def models_of(model: Model) -> dict[str, Fusion3D]:
    """The models side by side, by the sensor that each needs, or the only one, as ``JOINT``."""
    if isinstance(model, LateFusion):
        return {name: one for name, one in model.models.items() if isinstance(one, Fusion3D)}
    return {JOINT: model}


def bev_modules(model: Model) -> dict[str, nn.Module]:
    """The parts whose output is a bird's-eye map [B, C, Y, X], by the map's name."""
    found = {}
    for name, prefix, one in _named(model):
        if isinstance(one.fuse, EarlyFusion):
            found[prefix + POINTS] = one.fuse.cloud
            continue
        found |= {prefix + sensor: getattr(one, sensor) for sensor in SENSORS if getattr(one, sensor) is not None}
        if name == JOINT:
            found[prefix + FUSED] = one.fuse
    return found


def image_modules(model: Model) -> dict[str, nn.Module]:
    """The parts whose output is a map of each image [M, C, h, w], before depth and content part, by its name."""
    return {prefix + "camera": one.camera.encoder.neck for _, prefix, one in _named(model) if one.camera is not None}


def owner_of(name: str, model: Model) -> str:
    """Which of ``models_of`` a map belongs to."""
    return name if isinstance(model, LateFusion) and not name.startswith(JOINT) else JOINT


def is_of_one_sensor(name: str) -> bool:
    """Is a map that of one sensor?"""
    return name.removeprefix(f"{JOINT} ") in SENSORS


def has(batch: Batch, name: str) -> Tensor:
    """[B] bool: has the sample, now, what a map is of?

    Of a model with memory an encoder may have run for the past alone, and what ``watch`` then has of it is not of now.
    """
    there = batch.present
    return torch.stack(list(there.values())).any(0) if name.endswith((FUSED, POINTS)) else there[name.split()[-1]]


@contextmanager
def watch(modules: Mapping[Key, nn.Module]) -> Iterator[dict[Key, Tensor]]:
    """What the modules say within the block, by their keys; of those that do not run or see nothing, nothing.

    A model with memory goes through its encoders once for every keyframe, now first: that is kept, where now ``has``
    it.
    """
    seen: dict[Key, Tensor] = {}

    def keep(key: Key) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            said = output[0] if isinstance(output, tuple) else output
            if isinstance(said, Tensor):
                seen.setdefault(key, said)

        return hook

    hooks = [module.register_forward_hook(keep(key)) for key, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _named(model: Model) -> Iterator[tuple[str, str, Fusion3D]]:
    """Name, what stands before its maps' names, and the model itself."""
    for name, one in models_of(model).items():
        yield name, f"{JOINT} " if name == JOINT and isinstance(model, LateFusion) else "", one
