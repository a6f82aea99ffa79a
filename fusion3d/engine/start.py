"""A run that begins with weights that other runs learned: ``train.start``.

Whatever has the same name and shape is filled. A checkpoint is one model or, with late and hybrid fusion, several side
by side (``models.lidar.`` ...), and so is what begins: there a sensor's own model takes from models that see its
sensor. So the models of single sensors, each trained alone, fill the branches of the model that fuses them (BEVFusion,
Liu et al., 2023, and TransFusion, Bai et al., 2022, begin so), or each its own part of late fusion; and those fill
single models again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fusion3d.engine.checkpoint import EMA, MODEL, find_checkpoint
from fusion3d.errors import CheckpointError
from fusion3d.types import SENSORS

MEETING = ("align", "represent", "fuse")  # parts where sensors meet: taken whole and for the same sensors, or not


def start_from(model: nn.Module, folders: Sequence[str | Path]) -> list[str]:
    """Fill what fits of a model's weights, from checkpoints or runs; what an earlier one filled stays.

    Averaged weights are taken where there are any.

    Args:
        model: changed in place.
        folders: of checkpoints, or of runs, for their newest ones.

    Returns:
        Lines that say which parts were filled from where, and what is left as it was.

    Raises:
        CheckpointError: a folder has no checkpoint or a damaged one, or nothing of it fits.
    """
    state, filled = model.state_dict(), {}
    said = []
    for folder in folders:
        found = fitting(state, averaged_weights(folder))
        if not found:
            raise CheckpointError(
                f"train.start: nothing of {folder} fits: no weight has the name and shape of one here; leave it "
                "out, or take a checkpoint of a model that is more alike"
            )
        new = {name: tensor for name, tensor in found.items() if name not in filled}
        filled |= new
        said.append(
            f"start: {len(new)} of {len(state)} tensors from {folder}: {count_parts(new) or 'all that fits is filled'}"
        )
    model.load_state_dict(filled, strict=False)
    left = [name for name in state if name not in filled]
    return [*said, f"start: {len(left)} are new: {count_parts(left) or 'none'}"] if said else []


def weights_file(folder: str | Path, ema: bool = True) -> Path:
    """The weights of a checkpoint, or of a run's newest one, that are evaluated.

    Args:
        folder: of the checkpoint or the run.
        ema: their average, where there is one.
    """
    checkpoint = find_checkpoint(folder)
    return checkpoint / (EMA if ema and (checkpoint / EMA).is_file() else MODEL)


def averaged_weights(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of ``weights_file``.

    Raises:
        CheckpointError: there are none, or they cannot be read.
    """
    path = weights_file(folder)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"train.start: cannot read {path}: {error}; take another checkpoint") from error


def fitting(state: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a checkpoint has for the weights in ``state``, by the names there.

    Of models side by side, the one whose sensors are most alike comes first.
    """
    found: dict[str, Tensor] = {}
    theirs = models_in(given)
    for prefix, names in models_in(state).items():
        mine = sensors_in(names)
        sources = {other: sensors_in(parts) for other, parts in theirs.items()}
        if prefix.removeprefix("models.").rstrip(".") in SENSORS:
            sources = {other: sensors for other, sensors in sources.items() if sensors & mine}
        for other in sorted(sources, key=lambda other: len(sources[other] ^ mine)):
            fits = [name for name in names if _same_shape(given.get(other + name), state[prefix + name])]
            odd = {part_of(name) for name in set(names) - set(fits)}
            for name in fits:
                if part_of(name) not in MEETING or (sources[other] == mine and part_of(name) not in odd):
                    found.setdefault(prefix + name, given[other + name])
    return found


def _same_shape(theirs: Tensor | None, ours: Tensor) -> bool:
    return theirs is not None and theirs.shape == ours.shape


def part_of(name: str) -> str:
    """The part of the model that a weight is of, such as "trunk"."""
    return name.split(".")[0]


def models_in(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of weights by the model they are of: "" for the only one, "models.lidar." for one of several."""
    models: dict[str, list[str]] = {}
    for name in names:
        inner = re.match(r"models\.\w+\.", name)
        prefix = inner.group() if inner else ""
        models.setdefault(prefix, []).append(name.removeprefix(prefix))
    return models


def sensors_in(names: Iterable[str]) -> set[str]:
    """The sensors that a model has branches for, from the names of its weights."""
    return {part_of(name) for name in names} & set(SENSORS)


def count_parts(names: Iterable[str]) -> str:
    """How many tensors each part has: "camera 120, trunk 30"; of models side by side "lidar.trunk 30"."""
    parts = Counter()
    for prefix, inner in models_in(names).items():
        model = prefix.removeprefix("models.")
        parts.update(model + part_of(name) for name in inner)
    return ", ".join(f"{part} {count}" for part, count in parts.items())
