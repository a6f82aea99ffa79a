"""Tables of the size of nuScenes v1.0-trainval, to be loaded: right in form and links, without any sensor file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

import numpy as np

from fusion3d.synthetic.tables import CATEGORIES, shared_tables, token_of
from fusion3d.types import ATTRIBUTES, CAMERAS, RADARS

FULL_SCENES = 850
VERSION = "v1.0-trainval"
CHANNELS = (*CAMERAS, "LIDAR_TOP", *RADARS)
KEYFRAMES, FILES, INSTANCES, BOXES = 40, 258, 76, 18  # of a scene; files of a channel, boxes of an instance
_LINKED = ("sample", "sample_data", "ego_pose", "calibrated_sensor", "instance", "sample_annotation", "scene", "log")


def write_tables(root: Path, num_scenes: int, seed: int = 0) -> Path:
    """Write ``<root>/v1.0-trainval/*.json`` with so many scenes; 850 make the size of nuScenes.

    Args:
        root: folder; gets a map file too, of which the devkit wants to know that it is there.
        num_scenes: at 40 keyframes, 3,096 sensor files and 1,368 boxes each.
        seed: of the numbers.
    """
    folder = root / VERSION
    folder.mkdir(parents=True)
    (root / "maps").mkdir()
    (root / "maps" / "map.png").write_bytes(b"")
    for table, rows in shared_tables().items():
        (folder / f"{table}.json").write_text(json.dumps(rows))
    logs = [_token(8, n) for n in range(num_scenes)]
    maps = [{"category": "semantic_prior", "token": _token(9, 0), "filename": "maps/map.png", "log_tokens": logs}]
    (folder / "map.json").write_text(json.dumps(maps))
    rng = np.random.default_rng(seed)
    files = {table: (folder / f"{table}.json").open("w") for table in _LINKED}
    try:
        for file in files.values():
            file.write("[")
        for number in range(num_scenes):
            for table, rows in _scene(number, rng).items():
                _append(files[table], rows, first=number == 0)
        for file in files.values():
            file.write("\n]")
    finally:
        for file in files.values():
            file.close()
    return root


def _append(file: IO[str], rows: list[dict[str, Any]], first: bool) -> None:
    """Rows with a line for each field, as nuScenes has them."""
    text = ",\n".join(json.dumps(row, separators=(",\n", ": ")) for row in rows)
    file.write("\n" if first else ",\n")
    file.write(text)


def _token(table: int, number: int) -> str:
    return f"{table:08x}{number:024x}"


def _chain(table: int, numbers: range, place: int) -> dict[str, str]:
    """Token and neighbours of one of a chain."""
    return {
        "token": _token(table, numbers[place]),
        "prev": _token(table, numbers[place - 1]) if place else "",
        "next": _token(table, numbers[place + 1]) if place + 1 < len(numbers) else "",
    }


def _scene(number: int, rng: np.random.Generator) -> dict[str, list[dict[str, Any]]]:
    """What one scene adds to each table."""
    start = 1_531_000_000_000_000 + number * 30_000_000  # [us]
    samples = range(number * KEYFRAMES, (number + 1) * KEYFRAMES)
    times = [start + 500_000 * k + int(jitter) for k, jitter in enumerate(rng.integers(0, 50_000, KEYFRAMES))]
    scene = {
        "token": _token(7, number), "log_token": _token(8, number), "nbr_samples": KEYFRAMES,
        "first_sample_token": _token(1, samples[0]), "last_sample_token": _token(1, samples[-1]),
        "name": f"scene-{number:04d}", "description": "Night, rain" if number % 5 == 0 else "Parked cars, turn left",
    }  # fmt: skip
    log = {
        "token": _token(8, number), "logfile": f"n{number}", "vehicle": "n015", "date_captured": "2018-07-24",
        "location": "singapore-onenorth",
    }  # fmt: skip
    rows = [
        {**_chain(1, samples, k), "timestamp": times[k], "scene_token": _token(7, number)} for k in range(KEYFRAMES)
    ]
    return {"sample": rows, "scene": [scene], "log": [log], **_files(number, times, rng), **_objects(number, rng)}


def _files(number: int, times: list[int], rng: np.random.Generator) -> dict[str, list[dict[str, Any]]]:
    """Sensor files, each with a pose of its own, and the calibrations."""
    found: dict[str, list[dict[str, Any]]] = {"sample_data": [], "ego_pose": [], "calibrated_sensor": []}
    key = {int(place): k for k, place in enumerate(np.linspace(0, FILES - 1, KEYFRAMES).astype(int))}
    for c, channel in enumerate(CHANNELS):
        camera = channel in CAMERAS
        calibration = _token(4, number * len(CHANNELS) + c)
        found["calibrated_sensor"].append(
            {
                "token": calibration,
                "sensor_token": token_of("sensor", channel),
                "translation": rng.normal(0, 1, 3).tolist(),
                "rotation": [1.0, 0.0, 0.0, 0.0],
                "camera_intrinsic": [[1266.4, 0.0, 816.3], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]] if camera else [],
            }
        )
        first = (number * len(CHANNELS) + c) * FILES
        numbers = range(first, first + FILES)
        places = rng.uniform(0, 2000, (FILES, 3)).round(6).tolist()
        keyframe = 0
        for place in range(FILES):
            keyframe = key.get(place, keyframe)
            time = times[keyframe] + (place not in key) * 12_345
            folder = "samples" if place in key else "sweeps"
            pose = _token(3, numbers[place])
            found["ego_pose"].append(
                {"token": pose, "timestamp": time, "rotation": [0.6, 0.0, 0.0, 0.8], "translation": places[place]}
            )
            found["sample_data"].append(
                {
                    **_chain(2, numbers, place),
                    "sample_token": _token(1, number * KEYFRAMES + keyframe),
                    "ego_pose_token": pose,
                    "calibrated_sensor_token": calibration,
                    "timestamp": time,
                    "fileformat": "jpg" if camera else "pcd",
                    "is_key_frame": place in key,
                    "height": 900 if camera else 0,
                    "width": 1600 if camera else 0,
                    "filename": f"{folder}/{channel}/n015-2018-07-24-11-22-45+0800__{channel}__{time}.jpg",
                }
            )
    return found


def _objects(number: int, rng: np.random.Generator) -> dict[str, list[dict[str, Any]]]:
    """Instances and their boxes."""
    found: dict[str, list[dict[str, Any]]] = {"instance": [], "sample_annotation": []}
    categories = list(CATEGORIES)
    for i in range(number * INSTANCES, (number + 1) * INSTANCES):
        numbers = range(i * BOXES, (i + 1) * BOXES)
        category = categories[int(rng.integers(len(categories)))]
        instance = {
            "token": _token(5, i), "category_token": token_of("category", category), "nbr_annotations": BOXES,
            "first_annotation_token": _token(6, numbers[0]), "last_annotation_token": _token(6, numbers[-1]),
        }  # fmt: skip
        found["instance"].append(instance)
        first = int(rng.integers(0, KEYFRAMES - BOXES + 1))
        path = rng.uniform(0, 2000, 3) + rng.normal(0, 0.5, (BOXES, 3)).cumsum(axis=0)
        size, points = rng.uniform(0.5, 4, 3).round(3).tolist(), rng.poisson(10, (BOXES, 2)).tolist()
        attribute = token_of("attribute", ATTRIBUTES[int(rng.integers(len(ATTRIBUTES)))])
        found["sample_annotation"] += [
            {
                **_chain(6, numbers, k),
                "sample_token": _token(1, number * KEYFRAMES + first + k),
                "instance_token": _token(5, i),
                "visibility_token": "4",
                "attribute_tokens": [attribute],
                "translation": path[k].round(3).tolist(),
                "size": size,
                "rotation": [0.8, 0.0, 0.0, 0.6],
                "num_lidar_pts": points[k][0],
                "num_radar_pts": points[k][1],
            }
            for k in range(BOXES)
        ]
    return found
