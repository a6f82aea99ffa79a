"""The plans of a model for some samples, as they are and under every change. N samples, B in a batch, T steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from fusion3d.analysis.audit.changes import Change, all_changes
from fusion3d.analysis.audit.fields import fitted, same, sensors_alone
from fusion3d.data.collate import collate
from fusion3d.engine.views import predict_views
from fusion3d.errors import ConfigError, DataError, Fusion3DError
from fusion3d.types import Batch, Sample, Trajectory

ALONE = Change("company", "alone in its batch", lambda batch, _: batch, lambda batch: torch.ones_like(batch.annotated))


@dataclass(eq=False)
class Reaction:
    """What became of the plans under one change."""

    group: str
    name: str
    rows: list[int] = field(default_factory=list)  # of the samples that it concerns
    plans: list[np.ndarray] = field(default_factory=list)  # [T, 2] of each [m]
    different: list[bool] = field(default_factory=list)  # is it another plan, to the bit?
    refused: str | None = None  # why the model gives no plan


@dataclass(eq=False)
class Audited:
    """The plans of some samples."""

    tokens: list[str]
    scenes: list[str]
    plan: np.ndarray  # [N, T, 2] unchanged, in ego [m]
    reactions: dict[str, Reaction]  # by name of the change


def choose_samples(scenes: Sequence[str], count: int, steps: int) -> list[int]:
    """At most so many keyframes, evenly over the scenes and over each scene, one scene after the other in turn.

    The first keyframe of a scene, which has no past, and the last ``steps``, whose future is not known, are taken only
    where a scene has no others.

    Args:
        scenes: of every sample, in order of time within each.
        count: of keyframes.
        steps: of a plan.
    """
    of_scene: dict[str, list[int]] = {}
    for index, scene in enumerate(scenes):
        of_scene.setdefault(scene, []).append(index)
    members = list(of_scene.values())
    if count < len(members):
        members = [members[number] for number in _evenly(len(members), count)]
    share = -(-count // max(len(members), 1))
    inside = [of[1:-steps] or of[1:-1] or of for of in members]
    picked = [[of[number] for number in _evenly(len(of), min(share, len(of)))] for of in inside]
    in_turn = [index for of_all in zip_longest(*picked) for index in of_all if index is not None]
    return in_turn[:count]


def _evenly(length: int, count: int) -> list[int]:
    """So many of ``range(length)``, each in the middle of its part."""
    return ((np.arange(count) + 0.5) * length / count).astype(int).tolist()


@torch.inference_mode()
def run_changes(model: Any, dataset: Any, chosen: Sequence[int], batch_size: int, device: torch.device) -> Audited:
    """Plan the chosen samples as they are and under every change.

    Another scene's sensors and status are those of the next chosen sample of another scene, so that they do not depend
    on the size of batches.

    Args:
        model: with ``forward`` and ``decode``, in evaluation mode; if it is ``separable``, with ``sense`` and
            ``conclude`` too: then the encoders run once for all that is no sensor, if they prove to look at none of it.
        dataset: ``dataset[epoch, index]``, with ``scenes``.
        chosen: indices.
        batch_size: samples of a forward pass.
        device: where the model runs.

    Raises:
        ConfigError: the model has no plan.
        Fusion3DError: it is not deterministic, or its plan is not finite.
        DataError: there is no sample, or one cannot be read.
    """
    if not len(chosen):
        raise DataError("the split has no sample: there is nothing to audit; choose another one")
    model, scenes = model.to(device), dataset.scenes
    audited = Audited([], [], np.zeros(0), {})
    donors = [_donor(place, chosen, scenes) for place in range(len(chosen))]
    plans, start, told = [], time.perf_counter(), time.perf_counter()
    for first in range(0, len(chosen), batch_size):
        places = range(first, min(first + batch_size, len(chosen)))
        read = {i: dataset[0, i] for i in {*chosen[first : places.stop]} | {donors[p] for p in places} - {None}}
        samples = [read[chosen[place]] for place in places]
        others = [read[donor] for place in places if (donor := donors[place]) is not None]
        plan = _run_batch(model, samples, others, device, first, audited.reactions)
        plans.append(plan.position.double().numpy())
        audited.tokens += [sample.token for sample in samples]
        audited.scenes += [sample.scene for sample in samples]
        if time.perf_counter() - told > 5:
            told = time.perf_counter()
            left = (told - start) / places.stop * (len(chosen) - places.stop)
            print(f"  {places.stop}/{len(chosen)} samples, {left:.0f} s left", flush=True)
    audited.plan = np.concatenate(plans)
    return audited


def _donor(place: int, chosen: Sequence[int], scenes: Sequence[str]) -> int | None:
    """The next chosen sample of another scene, round and round."""
    following = (*chosen[place + 1 :], *chosen[:place])
    return next((index for index in following if scenes[index] != scenes[chosen[place]]), None)


def _run_batch(
    model: Any,
    samples: Sequence[Sample],
    others: Sequence[Sample],
    device: torch.device,
    first: int,
    reactions: dict[str, Reaction],
) -> Trajectory:
    """The plans [B, T] of a batch as it is; those under changes are added to ``reactions``."""
    batch = collate(samples).to(device)
    plan = plan_of(model, batch)
    if not same(plan, plan_of(model, batch)):
        raise Fusion3DError(
            "the model plans otherwise when it is asked the same again: nothing can be said of what it depends on; "
            "audit it with --deterministic true, or on the CPU"
        )
    other = None
    if others:
        other = collate([fitted(*pair) for pair in zip(others, samples, strict=True)]).to(device)
    sensed = _sense(model, batch, plan)
    for change in all_changes():
        reaction = reactions.setdefault(change.name, Reaction(change.group, change.name))
        concerned = change.concerns(batch)
        if reaction.refused is None and concerned.any() and (other is not None or not change.other):
            changed = change.make(batch, batch if other is None else other)
            known = None if change.senses else sensed
            said, reaction.refused = attempt(lambda changed=changed, known=known: plan_of(model, changed, known))
            if said is not None:
                _note(reaction, concerned.nonzero()[:, 0].tolist(), plan, said, first)
    alone = reactions.setdefault(ALONE.name, Reaction(ALONE.group, ALONE.name))
    for row, sample in enumerate(samples):
        said = plan_of(model, collate([sample]).to(device))
        _note(alone, [row], plan, Trajectory(*(_repeated(part, len(batch)) for part in _parts(said))), first)
    return plan


def _sense(model: Any, batch: Batch, plan: Trajectory) -> Any:
    """What the encoders of a separable model make of a batch, if from its sensors alone the same plan comes out."""
    if not getattr(model, "separable", False):
        return None
    sensed, _ = attempt(lambda: model.sense(sensors_alone(batch)))
    again, _ = attempt(lambda: plan_of(model, batch, sensed))
    return sensed if same(again, plan) else None


def plan_of(model: Any, batch: Batch, sensed: Any = None) -> Trajectory:
    """The plans [B, T] of a batch, on the CPU.

    Args:
        model: see ``run_changes``.
        batch: whose plans.
        sensed: what the encoders make of it; None: they run.

    Raises:
        ConfigError: there is none.
        Fusion3DError: one is not finite.
    """
    plan = predict_views(model, batch, (np.eye(4),), None, None if sensed is None else [sensed]).plan
    if plan is None:
        raise ConfigError("the model gives no plan: there is nothing to audit; take one with a planning head")
    broken = ~plan.position.isfinite().all(-1).all(-1)
    if broken.any():
        token = batch.tokens[int(broken.nonzero()[0, 0])]
        raise Fusion3DError(f"the plan of sample {token} has a number that is not finite")
    return plan


def attempt(ask: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a model says, or why it does not: deprived of something, it may fail in any way."""
    try:
        return ask(), None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return None, f"{type(error).__name__}: {error}".splitlines()[0]


def _note(reaction: Reaction, rows: Sequence[int], plan: Trajectory, said: Trajectory, first: int) -> None:
    for row in rows:
        parts = [(a[row], b[row]) for a, b in zip(_parts(plan), _parts(said), strict=True)]
        reaction.rows.append(first + row)
        reaction.plans.append(said.position[row].double().numpy())
        reaction.different.append(not all(same(a, b) for a, b in parts))


def _parts(path: Trajectory) -> tuple[torch.Tensor, ...]:
    return path.position, path.yaw, path.mask


def _repeated(part: torch.Tensor, count: int) -> torch.Tensor:
    return part.expand(count, *part.shape[1:])
