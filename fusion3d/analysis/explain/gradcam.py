"""Grad-CAM (Selvaraju et al., 2017) of a head's output, on the map of every sensor.

A channel's weight is the mean, over the cells of the map, of the gradient of what is explained; the heat of a cell is
the sum of weight times feature, where it is positive. Of a thing in one place that mean says little about the place:
``method`` "hires" (HiResCAM, Draelos and Carin, 2020) weighs each cell by its own gradient instead.
Letters: B samples (one), M images, C channels, Y X cells, H W feature rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fusion3d.analysis.explain.targets import Answer, Target, answer, usual_target
from fusion3d.analysis.features import (
    FUSED,
    Key,
    bev_modules,
    has,
    image_modules,
    is_of_one_sensor,
    models_of,
    owner_of,
    watch,
)
from fusion3d.errors import DataError, Fusion3DError
from fusion3d.late import JOINT, LateFusion, Model
from fusion3d.types import Batch

Method = Literal["grad", "hires"]
_KINDS = {"bev": "map from above", "images": "image features"}


@dataclass(frozen=True)
class Explanation:
    """Which parts of the sensors' maps speak for what a model says. What is absent has no map."""

    answers: dict[str, Answer]  # by model: "joint", or in late fusion each sensor's
    bev: dict[str, Tensor]  # by name of the map, [Y, X] float32, 0 or more
    images: dict[str, Tensor]  # by name, [M, H, W] float32, 0 or more, an image each
    notes: tuple[str, ...]  # maps that are there, but on which nothing depends; models that say nothing of the target

    def shares(self) -> dict[str, float]:
        """What part of the heat of all sensors' bird's-eye maps lies on each; empty where there is none.

        Only maps that one model reads are compared: with late fusion each model is a whole of its own.
        """
        if len(self.answers) > 1:
            return {}
        heat = {name: float(map_YX.sum()) for name, map_YX in self.bev.items() if is_of_one_sensor(name)}
        total = sum(heat.values())
        return {name: value / total for name, value in heat.items()} if total > 0 else {}


def heat(feature_NCHW: Tensor, gradient_NCHW: Tensor, method: Method = "grad") -> Tensor:
    """[N, H, W] where the features speak for what is explained; each of the N maps has weights of its own."""
    feature_NCHW, gradient_NCHW = feature_NCHW.detach().float(), gradient_NCHW.detach().float()
    weight = gradient_NCHW.mean((2, 3), keepdim=True) if method == "grad" else gradient_NCHW
    return (weight * feature_NCHW).sum(1).clamp(min=0)


def explain(
    model: Model, batch: Batch, target: Target | None = None, method: Method = "grad", against: bool = False
) -> Explanation:
    """Explain one output of a model for one sample.

    With late fusion every model that has a say is asked on its own: its maps explain what it says itself.

    Args:
        model: in evaluation mode.
        batch: one sample.
        target: what to explain; None takes what the model is surest of.
        method: see above.
        against: what speaks against it, instead (the counterfactual explanation of the paper).

    Raises:
        ConfigError: the model has no head for the target.
        DataError: the model says nothing of it.
        Fusion3DError: the sample has none of the model's sensors.
    """
    if len(batch) != 1:
        raise ValueError(f"a batch of {len(batch)} samples; one is explained at a time")
    modules = {("bev", name): module for name, module in bev_modules(model).items()}
    modules |= {("images", name): module for name, module in image_modules(model).items()}
    with torch.enable_grad(), watch(modules) as seen:
        outputs = model(batch)
    seen = {place: feature for place, feature in seen.items() if bool(has(batch, place[1]).any())}
    models = {name: one for name, one in models_of(model).items() if _has_say(model, outputs, name)}
    if not models or all(name.endswith(FUSED) for _, name in seen):
        there = ", ".join(name for name, has in batch.present.items() if bool(has.any())) or "no sensor"
        raise Fusion3DError(f"sample {batch.tokens[0]} has {there}, and the model sees none of it: nothing to explain")
    of_models = outputs if isinstance(model, LateFusion) else {JOINT: outputs}
    target = usual_target(models, of_models) if target is None else target
    answers, silent = {}, {}
    for name, one in models.items():
        try:
            answers[name] = answer(one, of_models[name], batch, target)
        except DataError as error:
            silent[name] = error
    if not answers:
        raise next(iter(silent.values()))
    found: dict[str, dict[str, Tensor]] = {"bev": {}, "images": {}}
    unreached = []
    for owner, said in answers.items():
        own = {place: feature for place, feature in seen.items() if owner_of(place[1], model) == owner}
        for (kind, name), gradient in _gradients(-said.value if against else said.value, own).items():
            if gradient is None:
                unreached.append(f"{name} ({_KINDS[kind]})")
            else:
                found[kind][name] = heat(seen[kind, name], gradient, method).cpu()
    bev = {name: map_1YX[0] for name, map_1YX in found["bev"].items()}
    notes = [f"no gradient reaches {name}" for name in unreached] + [f"{n}: {error}" for n, error in silent.items()]
    return Explanation(answers, bev, found["images"], tuple(notes))


def _has_say(model: Model, outputs: Mapping[str, Any], name: str) -> bool:
    return not isinstance(model, LateFusion) or bool(outputs["say"][name].any())


def _gradients(value: Tensor, maps: Mapping[Key, Tensor]) -> dict[Key, Tensor | None]:
    """The gradient of the value at each map, None where it does not depend on it."""
    learned = {key: feature for key, feature in maps.items() if feature.requires_grad}
    if not learned or not value.requires_grad:
        return dict.fromkeys(maps)
    gradients = torch.autograd.grad(value, list(learned.values()), retain_graph=True, allow_unused=True)
    return dict.fromkeys(maps) | dict(zip(learned, gradients, strict=True))
