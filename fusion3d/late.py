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
from fusion3d.heads.merge import merge_agents, merge_boxes, merge_plans
from fusion3d.model import Fusion3D, Sensed
from fusion3d.rows import concat, select, to_device
from fusion3d.types import Batch, Boxes, EgoStatus, Forecast, Occupancy, PlanModes, Predictions, Trajectory

JOINT = "joint"  # the model of all sensors


class LateFusion(nn.Module):
    """Models side by side, with the face of one."""

    def __init__(self, models: Mapping[str, Fusion3D], merge: Literal["weighted", "voting"]) -> None:
        """``models`` by the sensor that each needs; ``JOINT`` needs any."""
        super().__init__()
        self.models = nn.ModuleDict(models)
        self.merge: Literal["weighted", "voting"] = merge

    def forward(self, batch: Batch, memory: Mapping[str, Memory] | None = None) -> dict[str, Any]:
        """Each model's outputs by its name; "say", for each [B] bool, has it a say on the sample; and "memory" of each,
        where the models have any.
        """
        sensed = self.sense(batch)
        outputs = self.conclude(sensed, batch, memory)
        return outputs | {name: of_model.said | outputs[name] for name, of_model in sensed.items()}

    @property
    def separable(self) -> bool:
        """As of ``Fusion3D``."""
        return all(model.separable for model in self.models.values())

    def sense(self, batch: Batch) -> dict[str, Sensed]:
        """What the encoders of each model make of a batch."""
        return {name: model.sense(batch) for name, model in self.models.items()}  # type: ignore[operator]

    def conclude(
        self, sensed: Mapping[str, Sensed], batch: Batch, memory: Mapping[str, Memory] | None = None
    ) -> dict[str, Any]:
        """As of ``Fusion3D``, by model, with "say" and "memory" as of ``forward``."""
        said: dict[str, Any] = {}
        for name, model in self.models.items():
            said[name] = model.conclude(sensed[name], batch, None if memory is None else memory[name])  # type: ignore[operator]
        kept = {name: outputs.pop("memory") for name, outputs in said.items() if "memory" in outputs}
        return said | {"say": self.has_say(batch)} | ({"memory": kept} if kept else {})

    def under(self, batch: Batch, subsets: Sequence[Batch]) -> dict[str, Any]:
        """As of ``Fusion3D``; a model of one sensor says the same under every subset with it, and is asked once."""
        said: dict[str, Any] = {"say": self.has_say(batch)}
        for name, model in self.models.items():
            said[name] = model.under(batch, subsets) if name == JOINT else model(batch)  # type: ignore[operator]
        return said

    def losses(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
        """The terms of all models, "lidar.heatmap" and so on, each over the samples whose sensor it saw.

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
        """For each model, [B] bool: has the sample its sensor? For the joint one: any of the sensors of the others."""
        say = {name: batch.present[name] for name in self.models if name != JOINT}
        return say | {JOINT: torch.stack(list(say.values())).any(0)} if JOINT in self.models else say

    def decode(self, outputs: Mapping[str, Any], batch: Batch) -> Predictions:
        """Merged boxes with the motion of the best of each, the merged plan (``merge_plans``) and the means of maps, of
        the models that have a say; of all, where none has.
        """
        answers = {name: model.decode(outputs[name], batch) for name, model in self.models.items()}  # type: ignore[operator]
        say_SB = torch.stack([outputs["say"][name] for name in self.models]).cpu()
        say_SB |= ~say_SB.any(0)
        chosen = [[a for a, has in zip(answers.values(), say, strict=True) if has] for say in say_SB.T.tolist()]
        device = batch.command.device
        boxes = motion = plan = modes = ground = occupancy = None
        if all(answer.motion is not None for answer in answers.values()):
            both = [self._merge_agents(of_sample, i, device) for i, of_sample in enumerate(chosen)]
            boxes, motion = (tuple(part) for part in zip(*both, strict=True))
        elif all(answer.boxes is not None for answer in answers.values()):
            boxes = tuple(self._merge([a.boxes[i] for a in of_sample], device) for i, of_sample in enumerate(chosen))
        if all(answer.plan is not None for answer in answers.values()):
            plans, among = zip(*(_merge_plans(of_sample, i) for i, of_sample in enumerate(chosen)), strict=True)
            plan, modes = concat(plans), None if among[0] is None else concat(among)
        if all(answer.map is not None for answer in answers.values()):
            ground = _mean([[a.map[i] for a in of_sample] for i, of_sample in enumerate(chosen)])
        if all(answer.occupancy is not None for answer in answers.values()):
            parts = ([[getattr(a.occupancy, k)[i] for a in of] for i, of in enumerate(chosen)] for k in _OCCUPANCY)
            occupancy = Occupancy(*map(_mean, parts))
        return Predictions(batch.tokens, boxes, plan, ground, motion, modes, occupancy)

    def _merge(self, boxes: Sequence[Boxes], device: torch.device) -> Boxes:
        return to_device(merge_boxes([to_device(one, "cpu") for one in boxes], self.merge), device)

    def _merge_agents(
        self, answers: Sequence[Predictions], sample: int, device: torch.device
    ) -> tuple[Boxes, Forecast]:
        boxes, motion = (
            [to_device(getattr(one, name)[sample], "cpu") for one in answers] for name in ("boxes", "motion")
        )
        return to_device(merge_agents(boxes, motion, self.merge), device)


Model = Fusion3D | LateFusion


_OCCUPANCY = tuple(field.name for field in dataclasses.fields(Occupancy))


def _merge_plans(answers: Sequence[Predictions], sample: int) -> tuple[Trajectory, PlanModes | None]:
    """[1, T] the plan of a sample, and [1, K, T] what it was chosen among."""
    row = slice(sample, sample + 1)
    return merge_plans([one.plan[row] for one in answers], [one.modes and select(one.modes, row) for one in answers])  # type: ignore[index]


def _mean(of_samples: Sequence[Sequence[Tensor]]) -> Tensor:
    """[B, ...] the mean of each sample's answers."""
    return torch.stack([torch.stack(list(of_sample)).mean(0) for of_sample in of_samples])


def _only(batch: Batch, there: Tensor) -> Batch:
    """The batch with the targets of some of its samples alone."""
    boxes, future, status = batch.boxes, batch.future, batch.status
    if boxes is not None:
        none = to_device(Boxes.empty(), there.device)
        boxes = tuple(one if known else none for one, known in zip(boxes, there.tolist(), strict=True))
    if future is not None:
        future = dataclasses.replace(future, mask=future.mask & there[:, None])
    if status is not None:
        parts = (status.velocity, status.acceleration, status.yaw_rate)
        status = EgoStatus(*(part.masked_fill(~there.view(-1, *[1] * (part.ndim - 1)), torch.nan) for part in parts))
    motion = batch.motion
    if motion is not None:
        motion = tuple(one if known else one[:0] for one, known in zip(motion, there.tolist(), strict=True))
    known = None if batch.map_known is None else batch.map_known & there[:, None]
    targets = {"boxes": boxes, "future": future, "status": status, "motion": motion, "map_known": known}
    return dataclasses.replace(batch, annotated=batch.annotated & there, **targets)
