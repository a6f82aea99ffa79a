"""Late fusion: each sensor has a model of its own, and what they say is merged.

With "hybrid" a model of all sensors is one of them. A model whose sensor a sample lacks has no say on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fusion3d.bev.temporal import Memory
from fusion3d.counts import named
from fusion3d.heads.merge import mean_path, merge_boxes
from fusion3d.model import Fusion3D
from fusion3d.types import Batch, Boxes, Predictions, Trajectory, to_device

JOINT = "joint"  # the model of all sensors


class LateFusion(nn.Module):
    """Models side by side, with the face of one."""

    def __init__(self, models: Mapping[str, Fusion3D], merge: Literal["weighted", "voting"]) -> None:
        """``models`` by the sensor that each needs; ``JOINT`` needs any."""
        super().__init__()
        self.models = nn.ModuleDict(models)
        self.merge: Literal["weighted", "voting"] = merge

    def forward(self, batch: Batch, memory: Mapping[str, Memory] | None = None) -> dict[str, Any]:
        """Each model's outputs by its name, "say" (``has_say``), and "memory" by name, where the models have any."""
        said: dict[str, Any] = {}
        for name, model in self.models.items():
            said[name] = model(batch, None if memory is None else memory[name])
        kept = {name: outputs.pop("memory") for name, outputs in said.items() if "memory" in outputs}
        return said | {"say": self.has_say(batch)} | ({"memory": kept} if kept else {})

    def losses(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
        """The terms of all models, "lidar.heatmap" and so on, each over the samples whose sensor it was given.

        Args:
            outputs: of ``forward``, which may have seen fewer sensors than there are.
            batch: with every sensor.
        """
        terms: dict[str, Tensor] = {}
        for name, model in self.models.items():
            with named(name):
                of_model = model.losses(outputs[name], _only(batch, outputs["say"][name]))  # type: ignore[operator]
            terms |= {f"{name}.{key}": value for key, value in of_model.items()}
        return terms

    def has_say(self, batch: Batch) -> dict[str, Tensor]:
        """For each model, [B] bool: has the sample its sensor?"""
        present = batch.present
        some = torch.stack(list(present.values())).any(0)
        return {name: present.get(name, some) for name in self.models}

    def decode(self, outputs: Mapping[str, Any], batch: Batch) -> Predictions:
        """Merged boxes and the means of plans and maps, of the models that have a say; of all, where none has."""
        answers = {name: model.decode(outputs[name], batch) for name, model in self.models.items()}  # type: ignore[operator]
        say_SB = torch.stack(list(outputs["say"].values())).cpu()
        say_SB |= ~say_SB.any(0)
        chosen = [[a for a, has in zip(answers.values(), say, strict=True) if has] for say in say_SB.T.tolist()]
        device = batch.command.device
        boxes = plan = ground = None
        if all(answer.boxes is not None for answer in answers.values()):
            boxes = tuple(self._merge([a.boxes[i] for a in of_sample], device) for i, of_sample in enumerate(chosen))
        if all(answer.plan is not None for answer in answers.values()):
            paths = [mean_path([_path(a.plan, i) for a in of_sample]) for i, of_sample in enumerate(chosen)]
            position, yaw, mask = (torch.stack([getattr(p, k) for p in paths]) for k in ("position", "yaw", "mask"))
            plan = Trajectory(position, yaw, mask)
        if all(answer.map is not None for answer in answers.values()):
            ground = torch.stack([torch.stack([a.map[i] for a in of_s]).mean(0) for i, of_s in enumerate(chosen)])
        return Predictions(tokens=batch.tokens, boxes=boxes, plan=plan, map=ground)

    def _merge(self, boxes: Sequence[Boxes], device: torch.device) -> Boxes:
        return to_device(merge_boxes([to_device(one, "cpu") for one in boxes], self.merge), device)


Model = Fusion3D | LateFusion


def _path(plan: Trajectory, sample: int) -> Trajectory:
    return Trajectory(plan.position[sample], plan.yaw[sample], plan.mask[sample])


def _only(batch: Batch, there: Tensor) -> Batch:
    """The batch with the targets of some of its samples alone."""
    boxes, future = batch.boxes, batch.future
    if boxes is not None:
        none = to_device(Boxes.empty(), there.device)
        boxes = tuple(one if known else none for one, known in zip(boxes, there.tolist(), strict=True))
    if future is not None:
        future = dataclasses.replace(future, mask=future.mask & there[:, None])
    known = None if batch.map_known is None else batch.map_known & there[:, None]
    return dataclasses.replace(batch, annotated=batch.annotated & there, boxes=boxes, future=future, map_known=known)
