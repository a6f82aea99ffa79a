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

from fusion3d.engine.checkpoint import weights_file
from fusion3d.errors import CheckpointError, ConfigError
from fusion3d.types import SENSORS

MEETING = ("align", "represent", "fuse")  # parts where sensors meet: taken whole and for the same sensors, or not


def start_from(model: nn.Module, folders: Sequence[str | Path], fresh: Sequence[str] = ()) -> list[str]:
    """Fill what fits of a model's weights, from checkpoints or runs.

    The one whose sensors are most alike comes first, of equally alike ones the one named first; what one filled stays.
    Averaged weights are taken where there are any.

    Args:
        model: changed in place.
        folders: of checkpoints, or of runs, for their newest ones.
        fresh: beginnings of names, such as "fuse", of weights that are not filled.

    Returns:
        Lines that say which parts were filled from where, and what is left as it was.

    Raises:
        CheckpointError: a folder has no checkpoint or a damaged one, or nothing of it fits.
        ConfigError: no weight of the model begins so.
    """
    state = model.state_dict()
    kept = {part: [name for name in state if name.startswith(f"{part}.")] for part in fresh}
    for part, names in kept.items():
        if not names:
            raise ConfigError(f"train.fresh: the model has no part {part!r}; its parts: {count_parts(state)}")
    anew = {name for names in kept.values() for name in names}
    given = [averaged_weights(folder) for folder in folders]
    for folder, theirs in zip(folders, given, strict=True):
        if not fitting(state, [theirs]):
            raise CheckpointError(
                f"train.start: nothing of {folder} fits: no weight has the name and shape of one here; leave it "
                "out, or take a checkpoint of a model that is more alike"
            )
    found = {name: which for name, which in fitting(state, given).items() if name not in anew}
    model.load_state_dict({name: given[which][source] for name, (which, source) in found.items()}, strict=False)
    said = []
    for number, folder in enumerate(folders):
        new = [name for name, (which, _) in found.items() if which == number]
        said.append(
            f"start: {len(new)} of {len(state)} tensors from {folder}: {count_parts(new) or 'all that fits is filled'}"
        )
    left = [name for name in state if name not in found]
    return [*said, f"start: {len(left)} are new: {count_parts(left) or 'none'}"] if said else []


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


def fitting(state: Mapping[str, Tensor], given: Sequence[Mapping[str, Tensor]]) -> dict[str, tuple[int, str]]:
    """What checkpoints have for the weights in ``state``, by the names there: which one, and the name in it.

    Of several, and of models side by side, the one whose sensors are most alike comes first.
    """
    found: dict[str, tuple[int, str]] = {}
    theirs = [
        (number, prefix, sensors_in(names))
        for number, one in enumerate(given)
        for prefix, names in models_in(one).items()
    ]
    for prefix, names in models_in(state).items():
        mine = sensors_in(names)
        sources = theirs
        if prefix.removeprefix("models.").rstrip(".") in SENSORS:
            sources = [source for source in theirs if source[2] & mine]
        for number, other, sensors in sorted(sources, key=lambda source: len(source[2] ^ mine)):
            fits = [name for name in names if _same_shape(given[number].get(other + name), state[prefix + name])]
            odd = {part_of(name) for name in set(names) - set(fits)}
            for name in fits:
                if part_of(name) not in MEETING or (sensors == mine and part_of(name) not in odd):
                    found.setdefault(prefix + name, (number, other + name))
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
