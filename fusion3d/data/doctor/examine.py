"""All checks of a data set, in the order in which a person would look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fusion3d.config import DataConfig
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.data.doctor.annotations import check_heading, check_motion
from fusion3d.data.doctor.clouds import check_ground, check_points_in_boxes, check_sweeps
from fusion3d.data.doctor.finding import Finding
from fusion3d.data.doctor.images import check_edges
from fusion3d.data.doctor.radars import check_doppler, check_radar_in_boxes
from fusion3d.data.doctor.rig import check_ego_motion, check_ego_poses, check_files, check_mounting, check_times
from fusion3d.data.doctor.transforms import check_augmentation, check_round_trip, first_sweep_only
from fusion3d.data.nuscenes import Tables
from fusion3d.errors import ConfigError, Fusion3DError
from fusion3d.types import BEVGrid


def examine(
    config: DataConfig,
    split: str = "all",
    grid: BEVGrid | None = None,
    num_samples: int = 24,
    only: Sequence[str] = (),
) -> Iterator[Finding]:
    """Check a data set.

    Tables are checked whole; files are read for ``num_samples`` keyframes, spread over the split. A check that stumbles
    over a broken file is a failed finding that names it, and the others go on.

    Args:
        config: root and version, sensors to look at.
        split: where the samples are taken from.
        grid: the area of the map mask; the default grid by default.
        num_samples: keyframes whose files are read.
        only: names of the checks to make; empty for all.

    Yields:
        Findings, as they are made.

    Raises:
        DataError: the tables or the split cannot be read at all.
        ConfigError: ``only`` names a check that there is not.
    """
    tables, grid = Tables.open(config.root, config.version), grid or BEVGrid()
    dataset = NuScenesDataset(first_sweep_only(config), split, grid, training=False)
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(num_samples, len(dataset))).astype(int)).tolist()
    samples = dataset.rows[indices].tolist()
    checks: dict[str, Callable[[], list[Finding]]] = {
        "files": lambda: check_files(tables),
        "mounting": lambda: check_mounting(tables),
        "time": lambda: check_times(tables),
        "ego poses": lambda: check_ego_poses(tables),
        "ego motion": lambda: check_ego_motion(tables),
        "box motion": lambda: check_motion(tables),
        "box heading": lambda: check_heading(tables),
        "ground": lambda: check_ground(tables, samples),
        "boxes": lambda: check_points_in_boxes(tables, samples),
        "sweeps": lambda: check_sweeps(tables, samples),
        "image edges": lambda: check_edges(tables, samples),
        "radar doppler": lambda: check_doppler(tables, samples),
        "radar in boxes": lambda: check_radar_in_boxes(tables, samples),
        "round trip": lambda: check_round_trip(dataset, indices[:4]),
        "augmentation": lambda: check_augmentation(dataset.config, split, grid, indices[:4]),
    }
    if unknown := set(only) - set(checks):
        raise ConfigError(f"no check {', '.join(sorted(unknown))}; known: {', '.join(checks)}")
    for name, check in checks.items():
        if only and name not in only:
            continue
        try:
            yield from check()
        except Fusion3DError as error:
            yield Finding(name, "stopped", False, str(error))
