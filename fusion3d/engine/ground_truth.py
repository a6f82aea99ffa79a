"""What evaluation compares with, straight from the tables: full precision, no training filter."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fusion3d.data.nuscenes import Tables
from fusion3d.data.tables import REFERENCE_CHANNEL
from fusion3d.geometry import yaw_from_quaternion, yaw_of
from fusion3d.metrics.columns import BoxColumns, Racks, Samples, Truth

BICYCLE_RACK = "static_object.bicycle_rack"


def category_names(tables: Tables) -> list[str]:
    """The category names by row."""
    return [name.decode() for name in tables.category_name.tolist()]


def detection_truth(tables: Tables, tokens: Iterable[str]) -> Truth:
    """The annotations of samples as the official evaluation reads them, in the order of the tables.

    Args:
        tables: of the data set.
        tokens: of the samples, in any order.

    Raises:
        DataError: the data set has no such sample, or a sample has no ego pose.
    """
    samples = np.array(sorted(tables.row_of(token) for token in tokens), dtype=np.int64)
    place = np.full(len(tables.sample_token), -1, dtype=np.int64)
    place[samples] = np.arange(len(samples))
    poses = np.stack([tables.global_from_ego(row) for row in samples]) if len(samples) else np.zeros((0, 4, 4))
    scenes, scene = np.unique(tables.sample_scene[samples], return_inverse=True)
    sample = np.repeat(place, np.diff(tables.box_start))  # of each box of the data set, -1 of none of these samples
    rows = np.flatnonzero((sample >= 0) & (tables.box_class >= 0))
    names = category_names(tables)
    racks = np.flatnonzero(sample >= 0)
    racks = racks[tables.box_category[racks] == (names.index(BICYCLE_RACK) if BICYCLE_RACK in names else -1)]
    return Truth(
        samples=Samples(
            tokens=tuple(token.decode() for token in tables.sample_token[samples].tolist()),
            scene=scene.astype(np.int64),
            scenes=tuple(name.decode() for name in tables.scene_name[scenes].tolist()),
            descriptions=tuple(text.decode() for text in tables.scene_description[scenes].tolist()),
            ego=poses[:, :2, 3],
            heading=yaw_of(poses),
        ),
        boxes=BoxColumns.of(
            sample=sample[rows],
            center=tables.box_center[rows],
            size=tables.box_size[rows],
            yaw=yaw_from_quaternion(tables.box_rotation[rows]),
            velocity=tables.box_velocity[rows, :2],
            label=tables.box_class[rows],
            attribute=tables.box_attribute[rows],
            num_points=tables.box_points[rows].sum(axis=1),
            visibility=tables.box_visibility[rows],
        ),
        racks=Racks(sample[racks], tables.box_center[racks], tables.box_size[racks], tables.box_rotation[racks]),
        nearest=without_reference(tables, samples.tolist()),
    )


def without_reference(tables: Tables, samples: Iterable[int]) -> int:
    """How many of these rows have no LIDAR_TOP, whose pose is the sample's: theirs is the one nearest in time."""
    return sum(tables.key(row, REFERENCE_CHANNEL) < 0 for row in samples)
