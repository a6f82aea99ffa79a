"""The samples that a configuration describes."""

from __future__ import annotations

from fusion3d.config import Config
from fusion3d.data.dataset import NuScenesDataset


def open_split(config: Config, split: str, training: bool) -> NuScenesDataset:
    """A split of the configured data set.

    Args:
        config: sensors, sizes, augmentation and the number of planned steps.
        split: name.
        training: with augmentation, and without boxes that have too few points.

    Raises:
        DataError: the tables, the objects to paste or the split cannot be read.
    """
    augment = config.augment if training else None
    return NuScenesDataset(
        config.data,
        split,
        config.map_grid,
        augment,
        config.seed,
        training=training,
        steps=6 if config.planning is None else config.planning.steps,
        with_map=config.map is not None,
        keyframes=1 if config.temporal is None else config.temporal.keyframes,
        epochs=config.train.epochs,
    )
