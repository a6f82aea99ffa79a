"""The samples that a configuration describes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from fusion3d.config import Config, DataConfig
from fusion3d.data.corruptions import parse
from fusion3d.data.corruptions.kinds import CHANNELS, check_reach
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.errors import ConfigError


def streams(config: Config) -> bool:
    """Is the model run over a stream of samples, each read once?

    Raises:
        ConfigError: it should be, and remembers nothing, or is to leave keyframes out.
    """
    if config.evaluation.stream and config.temporal is None:
        raise ConfigError("evaluation.stream is true, and temporal is null: there is nothing to remember")
    if config.evaluation.stream and config.evaluation.stride > 1:
        raise ConfigError("evaluation.stream is true: a stream has every keyframe; set evaluation.stride to 1")
    return config.evaluation.stream


def check_corruptions(config: Config, sensors: Collection[str], whose: str) -> None:
    """See that every one of ``data.corruptions`` befalls something.

    Args:
        config: ``data`` is read.
        sensors: kinds of sensor that can be corrupted.
        whose: these are, for the message.

    Raises:
        ConfigError: one is of a sensor that is not among them, or of a channel that is not read.
    """
    channels = {"camera": config.data.cameras, "lidar": CHANNELS["lidar"], "radar": config.data.radars}
    there = [channel for sensor in sensors for channel in channels.get(sensor, ())]
    check_reach([parse(text) for text in config.data.corruptions], there, "data.corruptions", whose)


def check_training(config: Config) -> None:
    """See that every branch of a model that begins anew is trained, and that no setting is without effect.

    Raises:
        ConfigError: a branch is of a sensor that is not read, or a setting needs another one.
    """
    train, augment, lidar = config.train, config.augment, config.lidar
    if train.subsets > 1 and train.drop_sensor == 0:
        raise ConfigError(f"train.subsets is {train.subsets}, and train.drop_sensor 0: no subset is ever drawn")
    if train.fresh and not train.start:
        raise ConfigError(f"train.fresh is {list(train.fresh)}, and train.start empty: everything begins anew")
    if train.compile and train.checkpoint_activations:
        raise ConfigError("train.compile and train.checkpoint_activations are both on; choose one of them")
    if train.drops and train.drops[0] < train.warmup:
        raise ConfigError(f"train.drops: {train.drops[0]:g} comes before train.warmup ends, at {train.warmup:g}")
    sparse = lidar is not None and lidar.encoder == "voxels" and lidar.voxels.backend == "spconv"
    if sparse and train.precision == "bfloat16":
        raise ConfigError(
            "lidar.voxels.backend is 'spconv', and train.precision 'bfloat16': on a GPU it computes in float16 then, "
            "for which no loss is scaled; take 'ours', or float16"
        )
    if augment is not None and augment.fade_epochs and not augment.fade:
        raise ConfigError(f"augment.fade_epochs is {augment.fade_epochs}, and augment.fade names nothing")
    if augment is not None and augment.fade_epochs and augment.fade == ("paste",) and augment.paste is None:
        raise ConfigError(f"augment.fade_epochs is {augment.fade_epochs}, and augment.paste null: nothing fades")
    for sensor in config.branches:
        if sensor not in config.data.sensors and not config.train.start:
            raise ConfigError(
                f"{sensor} is not null, and data.sensors ({', '.join(config.data.sensors)}) leaves it out: its branch "
                f"would learn nothing; set {sensor} to null, or read it"
            )


def data_digest(data: DataConfig, *splits: str) -> str:
    """Tells splits of one data set from those of another: by the keyframes, the splits and what made it."""
    digest = hashlib.sha256(" ".join(splits).encode())
    for name in ("sample.json", "splits.json", "manifest.json"):  # the last says by which generator, if by one
        path = Path(data.root, data.version, name)
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:16]


def open_split(config: Config, split: str, training: bool, with_occupancy: bool = False) -> NuScenesDataset:
    """A split of the configured data set.

    Args:
        config: sensors, sizes, augmentation and the number of steps ahead.
        split: name.
        training: with augmentation, and without boxes that have too few points.
        with_occupancy: with all that an occupancy is scored by, which takes time to read.

    Raises:
        ConfigError: ``data.corruptions`` befall nothing that is read, or objects are to be pasted where a head learns
            how things go on from all that is annotated.
        DataError: the tables, the objects to paste or the split cannot be read.
    """
    check_corruptions(config, config.data.sensors, "data.sensors (with data.cameras, data.radars)")
    augment = config.augment if training else None
    clips = config.temporal if training or not streams(config) else None
    # What paths are worth, and who will be where, is learned of maps and of how things go on.
    chooses, fills = config.planning is not None and config.planning.head == "anchors", config.occupancy is not None
    judged = with_occupancy or (training and (chooses or fills))
    if (chooses or fills) and augment is not None and augment.paste is not None:
        head = "planning.head 'anchors'" if chooses else "occupancy"
        raise ConfigError(
            f"augment.paste puts in objects of which nobody knows how they go on, and {head} would learn that they "
            "are gone; set one of them to null (the planner's head to query)"
        )
    return NuScenesDataset(
        config.data,
        split,
        config.map_grid,
        augment,
        config.seed,
        training=training,
        steps=config.steps,
        with_map=config.map is not None or judged,
        with_motion=config.motion is not None or judged,
        keyframes=1 if clips is None else clips.keyframes,
        epochs=config.train.epochs,
        stride=1 if training else config.evaluation.stride,
    )
