"""The JSON tables of a nuScenes data set, read into columns: tokens become rows, chains become indices."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion3d.data.columns import Columns, Index, split_names
from fusion3d.errors import DataError
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES

REFERENCE_CHANNEL = "LIDAR_TOP"

# What is read of each table: a type, or the length of a vector of numbers (see ``Columns``).
SCHEMA: dict[str, dict[str, Any]] = {
    "category": {"name": str},
    "attribute": {"name": str},
    "visibility": {"level": str},
    "sensor": {"channel": str, "modality": str},
    "calibrated_sensor": {"sensor_token": str, "translation": 3, "rotation": 4, "camera_intrinsic": list},
    "log": {"location": str},
    "map": {"filename": str, "log_tokens": list[str]},
    "scene": {"name": str, "description": str, "log_token": str},
    "sample": {"timestamp": int, "scene_token": str, "prev": str, "next": str},
    "ego_pose": {"timestamp": int, "translation": 3, "rotation": 4},
    "sample_data": {
        "sample_token": str, "ego_pose_token": str, "calibrated_sensor_token": str, "timestamp": int,
        "is_key_frame": bool, "height": int, "width": int, "filename": str, "prev": str,
    },
    "instance": {"category_token": str},
    "sample_annotation": {
        "sample_token": str, "instance_token": str, "visibility_token": str, "attribute_tokens": list[str],
        "translation": 3, "size": 3, "rotation": 4, "prev": str, "next": str, "num_lidar_pts": int,
        "num_radar_pts": int,
    },
}  # fmt: skip
ANNOTATION_TABLES = ("instance", "sample_annotation")  # a data set without annotations may lack both

# The devkit's mapping of 23 categories to the ten detection classes; the others are no class at all.
CLASS_OF = {
    **{f"vehicle.{name}": name for name in ("car", "truck", "trailer", "motorcycle", "bicycle")},
    **{f"vehicle.bus.{kind}": "bus" for kind in ("bendy", "rigid")},
    "vehicle.construction": "construction_vehicle",
    **{f"human.pedestrian.{who}": "pedestrian" for who in ("adult", "child", "construction_worker", "police_officer")},
    "movable_object.trafficcone": "traffic_cone",
    "movable_object.barrier": "barrier",
}
_VISIBILITY = {"v0-40": 1, "v40-60": 2, "v60-80": 3, "v80-100": 4}


def detection_class(category: str) -> int:
    """Index in DETECTION_CLASSES of a nuScenes category name, -1 for none of the ten (devkit's mapping)."""
    name = CLASS_OF.get(category)
    return -1 if name is None else DETECTION_CLASSES.index(name)


def build_columns(folder: Path) -> dict[str, np.ndarray]:
    """Every column and index of ``Tables`` from the JSON tables in ``folder``."""
    if not folder.is_dir():
        known = sorted(p.name for p in folder.parent.glob("*") if (p / "sample.json").is_file())
        raise DataError(
            f"no table folder {folder}; versions in {folder.parent}: {', '.join(known) or 'none'}. "
            "Check data.root and data.version"
        )
    missing = [t for t in SCHEMA if t not in ANNOTATION_TABLES and not (folder / f"{t}.json").is_file()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(f'{t}.json' for t in missing)}; unpack this version's tables again")
    there = [(folder / f"{table}.json").is_file() for table in ANNOTATION_TABLES]
    wanted = [table for table in SCHEMA if any(there) or table not in ANNOTATION_TABLES]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # the loops that read them are compiled
        found = pool.map(lambda table: Columns(folder / f"{table}.json", SCHEMA[table]), wanted)
        tables = dict(zip(wanted, found, strict=True))
        columns: dict[str, np.ndarray] = {}
        for part in pool.map(lambda make: make(tables), PARTS):
            columns |= part
    return columns | _reference_columns(columns)


def _scene_columns(tables: Mapping[str, Columns]) -> dict[str, np.ndarray]:
    scene, log, maps = tables["scene"], tables["log"], tables["map"]
    map_of_log = {token: number for number, tokens in enumerate(maps["log_tokens"]) for token in tokens}
    return {
        "scene_token": scene["token"],
        "scene_name": scene["name"],
        "scene_description": scene["description"],
        "scene_location": log["location"][scene.rows_in("log_token", log)],
        "scene_map": np.array([map_of_log.get(token, -1) for token in scene.words("log_token")], dtype=np.int32),
        "map_file": maps["filename"],
    }


def _sample_columns(tables: Mapping[str, Columns]) -> dict[str, np.ndarray]:
    sample = tables["sample"]
    return {
        "sample_token": sample["token"],
        "sample_time": sample["timestamp"],
        "sample_scene": sample.rows_in("scene_token", tables["scene"]),
        "sample_prev": sample.rows_in("prev", sample, optional=True),
        "sample_next": sample.rows_in("next", sample, optional=True),
    }


def _file_columns(tables: Mapping[str, Columns]) -> dict[str, np.ndarray]:
    """File names repeat their folder, log and channel: those are stored once."""
    prefix, suffix = split_names(tables["sample_data"]["filename"])
    first = Index(prefix).find(prefix)  # where each prefix occurs for the first time
    prefixes = np.unique(first)
    return {
        "data_prefix": np.searchsorted(prefixes, first).astype(np.int32),
        "data_suffix": suffix,
        "file_prefix": prefix[prefixes],
    }


def _data_columns(tables: Mapping[str, Columns]) -> dict[str, np.ndarray]:
    sample, sensor, pose, data = (tables[table] for table in ("sample", "sensor", "ego_pose", "sample_data"))
    calibration = tables["calibrated_sensor"]
    channels = sorted({*sensor.words("channel"), REFERENCE_CHANNEL})
    channel = np.array([channels.index(name) for name in sensor.words("channel")], dtype=np.int32)
    calibration_channel = channel[calibration.rows_in("sensor_token", sensor)]
    intrinsic = np.full((len(calibration), 3, 3), np.nan)
    for number, value in enumerate(calibration["camera_intrinsic"]):
        if value:
            try:
                intrinsic[number] = np.array(value, dtype=np.float64).reshape(3, 3)
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{calibration.path}: row {number}: camera_intrinsic: expected 3 x 3 numbers, found {value!r}"
                ) from error
    data_calibration, data_sample = (
        data.rows_in("calibrated_sensor_token", calibration),
        data.rows_in("sample_token", sample),
    )
    key = np.flatnonzero(data["is_key_frame"])
    key_data = np.full((len(sample), len(channels)), -1, dtype=np.int32)
    key_data[data_sample[key], calibration_channel[data_calibration[key]]] = key
    return {
        "channel_name": np.array([channel.encode() for channel in channels]),
        "key_data": key_data,
        "calibration_token": calibration["token"],
        "calibration_channel": calibration_channel,
        "calibration_translation": calibration["translation"],
        "calibration_rotation": calibration["rotation"],
        "calibration_intrinsic": intrinsic,
        "pose_time": pose["timestamp"],
        "pose_translation": pose["translation"],
        "pose_rotation": pose["rotation"],
        "data_sample": data_sample,
        "data_calibration": data_calibration,
        "data_pose": data.rows_in("ego_pose_token", pose),
        "data_time": data["timestamp"],
        "data_prev": data.rows_in("prev", data, optional=True),
        "data_size": np.stack([data["height"], data["width"]], axis=-1).astype(np.int32).reshape(-1, 2),
    }


def _reference_columns(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Reference pose and time of each sample: the key LiDAR's, or the scene's pose nearest to the sample."""
    lidar = columns["key_data"][:, columns["channel_name"].tolist().index(REFERENCE_CHANNEL.encode())]
    time, scene, data_pose = columns["sample_time"], columns["sample_scene"], columns["data_pose"]
    there = lidar >= 0
    pose = np.full(len(time), -1, dtype=np.int32)
    reference_time = time.copy()
    pose[there] = data_pose[lidar[there]]
    reference_time[there] = columns["data_time"][lidar[there]]
    data_scene = scene[columns["data_sample"]]
    for number in np.unique(scene[~there]):
        poses = data_pose[data_scene == number]
        if len(poses) == 0:
            continue
        chosen = np.flatnonzero((scene == number) & ~there)
        away = np.abs(columns["pose_time"][poses][None] - time[chosen][:, None])
        pose[chosen] = poses[away.argmin(axis=1)]
    return {"sample_pose": pose, "reference_time": reference_time}


def _annotation_columns(tables: Mapping[str, Columns]) -> dict[str, np.ndarray]:
    sample, category, attribute, visibility = (
        tables[table] for table in ("sample", "category", "attribute", "visibility")
    )
    if "sample_annotation" not in tables:  # a data set to predict on: no box at all
        return _no_annotations(len(sample), category)
    instance, box = tables["instance"], tables["sample_annotation"]
    bad = ~(np.isfinite(box["translation"]).all(1) & np.isfinite(box["rotation"]).all(1) & (box["size"] > 0).all(1))
    bad |= np.abs(np.linalg.norm(box["rotation"], axis=1) - 1) > 1e-3
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{box.path}: box {box['token'][row].decode()!r} has centre {box['translation'][row].tolist()}, size "
            f"{box['size'][row].tolist()}, rotation {box['rotation'][row].tolist()}: expected finite numbers, sizes "
            "above 0 and a unit quaternion; repair or remove the row"
        )
    box_sample = box.rows_in("sample_token", sample)
    order = np.argsort(box_sample, kind="stable")  # boxes of a sample lie together, in the table's order
    place = np.append(np.argsort(order), -1).astype(np.int32)  # old row -> new row; -1 stays -1
    classes = np.array([detection_class(name) for name in category.words("name")], dtype=np.int8)
    attributes = {
        token: ATTRIBUTES.index(name)
        for token, name in zip(attribute.words("token"), attribute.words("name"), strict=True)
        if name in ATTRIBUTES
    }
    levels = np.array([_VISIBILITY.get(level, 0) for level in visibility.words("level")] + [0], dtype=np.int8)
    box_instance = box.rows_in("instance_token", instance)
    box_category = instance.rows_in("category_token", category)[box_instance]
    columns = {
        "box_center": box["translation"],
        "box_size": box["size"][:, [1, 0, 2]],  # the table has width, length, height
        "box_rotation": box["rotation"],
        "box_category": box_category,
        "box_class": classes[box_category],
        "box_attribute": np.array(
            [attributes.get(t[0], -1) if t else -1 for t in box["attribute_tokens"]], dtype=np.int8
        ),
        "box_visibility": levels[box.rows_in("visibility_token", visibility, optional=True)],
        "box_points": np.stack([box["num_lidar_pts"], box["num_radar_pts"]], axis=-1).astype(np.int32).reshape(-1, 2),
        "box_instance": box_instance,
        "box_prev": place[box.rows_in("prev", box, optional=True)],
        "box_next": place[box.rows_in("next", box, optional=True)],
    }
    columns = {name: column[order] for name, column in columns.items()}
    time = sample["timestamp"][box_sample[order]]
    columns["box_velocity"] = box_velocities(columns["box_center"], time, columns["box_prev"], columns["box_next"])
    columns["box_start"] = np.searchsorted(box_sample[order], np.arange(len(sample) + 1)).astype(np.int64)
    return columns | {
        "instance_token": instance["token"],
        "category_name": category["name"],
    }


PARTS = (_data_columns, _file_columns, _annotation_columns, _scene_columns, _sample_columns)  # that need no other


def box_velocities(center: np.ndarray, time: np.ndarray, prev: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Velocities [K, 3] in m/s by the devkit's ``box_velocity`` rule.

    The difference between the previous and the next box of the instance, or between this one and the one
    neighbour it has; NaN without neighbours, or where they are over 1.5 s apart (3 s for two neighbours).

    Args:
        center: [K, 3] global [m].
        time: [K] sample timestamps [us].
        prev: [K] row of the same instance's previous box, -1 none.
        following: [K] row of its next box, -1 none.
    """
    here = np.arange(len(center))
    first, last = np.where(prev < 0, here, prev), np.where(following < 0, here, following)
    seconds = 1e-6 * time[last] - 1e-6 * time[first]  # rounded as the devkit does: its velocities, to the bit
    limit = np.where((prev >= 0) & (following >= 0), 3.0, 1.5)
    known = (seconds > 0) & (seconds <= limit)
    return np.where(known[:, None], center[last] - center[first], np.nan) / np.where(known, seconds, 1.0)[:, None]


def _no_annotations(num_samples: int, category: Columns) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "box_center": ((0, 3), np.float64), "box_size": ((0, 3), np.float64), "box_rotation": ((0, 4),
        np.float64), "box_category": ((0,), np.int32), "box_class": ((0,), np.int8), "box_attribute": ((0,),
        np.int8), "box_visibility": ((0,), np.int8), "box_points": ((0, 2), np.int32), "box_instance": ((0,),
        np.int32), "box_prev": ((0,), np.int32), "box_next": ((0,), np.int32), "box_velocity": ((0, 3),
        np.float64), "box_start": ((num_samples + 1,), np.int64), "instance_token": ((0,), "S1"),
    }  # fmt: skip
    columns = {name: np.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    return columns | {"category_name": category["name"]}
