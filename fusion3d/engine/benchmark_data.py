"""How fast samples are read, against the official devkit reading the same: ``tools/benchmark.py data``.

Both do, in one process on one thread, for each keyframe: decode and resize its images, gather the LiDAR sweeps and the
sweeps of all radars, and get all boxes with their velocities. What they return is compared before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion3d.config import DataConfig
from fusion3d.data import NuScenesDataset
from fusion3d.errors import DataError
from fusion3d.files import write_json
from fusion3d.geometry import invert
from fusion3d.types import CAMERAS, RADARS, BEVGrid, Sample

STAGES = ("cameras", "lidar", "radar", "boxes")
_TOLERANCE = 1e-3  # [m], [m/s]


class DevkitReader:
    """The same reading with the devkit's own functions."""

    def __init__(self, config: DataConfig) -> None:
        try:
            from nuscenes import NuScenes
        except ImportError as error:
            raise DataError(
                f"the comparison needs the official nuscenes-devkit ({error}); install the extra 'eval'"
            ) from error
        self.config = config
        self.nusc = NuScenes(config.version, config.root, verbose=False)

    def cameras(self, record: dict[str, Any]) -> list[np.ndarray]:
        """Images decoded and resized with Pillow, as float arrays [3, H, W] in [0, 1]."""
        from PIL import Image

        height, width = self.config.image_size
        images = []
        for channel in CAMERAS:
            if channel in record["data"]:
                with Image.open(self.nusc.get_sample_data_path(record["data"][channel])) as image:
                    factor = max(height / image.height, width / image.width)
                    size = (round(image.width * factor), round(image.height * factor))
                    left, top = (size[0] - width) // 2, size[1] - height
                    resized = image.resize(size, Image.Resampling.BILINEAR).crop(
                        (left, top, left + width, top + height)
                    )
                    images.append(np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / np.float32(255))
        return images

    def lidar(self, record: dict[str, Any]) -> np.ndarray | None:
        """[P, 5] points of all sweeps in the LIDAR_TOP frame, with intensity and time."""
        from nuscenes.utils.data_classes import LidarPointCloud

        if "LIDAR_TOP" not in record["data"]:
            return None
        cloud, times = LidarPointCloud.from_file_multisweep(
            self.nusc, record, "LIDAR_TOP", "LIDAR_TOP", self.config.lidar_sweeps, self.config.lidar_min_distance
        )
        return np.vstack([cloud.points, times]).T

    def radar(self, record: dict[str, Any]) -> list[np.ndarray]:
        """[R, 18] returns of each radar in the reference channel's frame."""
        from nuscenes.utils.data_classes import RadarPointCloud

        to = "LIDAR_TOP" if "LIDAR_TOP" in record["data"] else "CAM_FRONT"
        return [
            RadarPointCloud.from_file_multisweep(self.nusc, record, channel, to, self.config.radar_sweeps)[0].points.T
            for channel in RADARS
            if channel in record["data"]
        ]

    def boxes(self, record: dict[str, Any]) -> list[tuple[Any, np.ndarray]]:
        """All boxes in the reference channel's frame, and their velocities in global."""
        from nuscenes.utils.geometry_utils import BoxVisibility

        to = "LIDAR_TOP" if "LIDAR_TOP" in record["data"] else "CAM_FRONT"
        _, boxes, _ = self.nusc.get_sample_data(record["data"][to], box_vis_level=BoxVisibility.NONE)
        return [(box, self.nusc.box_velocity(box.token)) for box in boxes]


def stage_readers(dataset: NuScenesDataset) -> dict[str, Callable[[int], Any]]:
    """Our own reading of a sample row, in the devkit's four parts."""
    from fusion3d.data.annotations import load_boxes
    from fusion3d.data.images import load_cameras
    from fusion3d.data.lidar import load_lidar
    from fusion3d.data.radar import load_radars

    tables, c = dataset.tables, dataset.config
    return {
        "cameras": lambda row: load_cameras(tables, row, c.cameras, c.image_size),
        "lidar": lambda row: load_lidar(tables, row, c.lidar_sweeps, c.lidar_min_distance),
        # The devkit drops returns within 1 m of the sensor: so does this comparison.
        "radar": lambda row: load_radars(tables, row, c.radars, c.radar_sweeps, c.radar_filter, min_distance=1.0),
        "boxes": lambda row: load_boxes(tables, row),
    }


def check_equal(dataset: NuScenesDataset, devkit: DevkitReader, row: int) -> None:
    """DataError where the two readers disagree about a sample: then their times mean nothing."""
    tables, ours = dataset.tables, stage_readers(dataset)
    record = devkit.nusc.get("sample", tables.token(row))
    to = "LIDAR_TOP" if "LIDAR_TOP" in record["data"] else "CAM_FRONT"
    reference_from_ego = invert(tables.reference_from_sensor(row, [tables.key(row, to)])[0])

    def compare(name: str, found: np.ndarray, expected: np.ndarray, tolerance: float = _TOLERANCE) -> None:
        if found.shape != expected.shape or not np.allclose(found, expected, atol=tolerance, equal_nan=True):
            away = np.nanmax(np.abs(found - expected)) if found.shape == expected.shape else "different sizes"
            raise DataError(f"{name} of sample {record['token']}: fusion3d and the devkit disagree ({away})")

    def moved(points: np.ndarray) -> np.ndarray:
        return points @ reference_from_ego[:3, :3].T + reference_from_ego[:3, 3]

    lidar, expected = ours["lidar"](row), devkit.lidar(record)
    if lidar is not None and expected is not None:
        points = lidar.double().numpy()
        compare("LiDAR points", np.c_[moved(points[:, :3]), points[:, 3] * 255, points[:, 4]], expected)
    radar, expected = ours["radar"](row), devkit.radar(record)
    if radar is not None:
        compare("radar returns", moved(radar[:, :3].double().numpy()), np.concatenate(expected)[:, :3])
    by_instance = dict(zip((boxes := ours["boxes"](row)).instance, range(len(boxes)), strict=True))
    pairs = [
        (by_instance[instance], box, velocity)
        for box, velocity in devkit.boxes(record)
        if (instance := devkit.nusc.get("sample_annotation", box.token)["instance_token"]) in by_instance
    ]
    order = [pair[0] for pair in pairs]
    if sorted(order) != list(range(len(boxes))):
        raise DataError(f"boxes of sample {record['token']}: the devkit has others than fusion3d")
    if pairs:
        compare(
            "box centres", moved(boxes.center[order].double().numpy()), np.array([pair[1].center for pair in pairs])
        )
        turned = np.array([pair[2] for pair in pairs]) @ tables.global_from_ego(row)[:3, :3]
        compare("box velocities", boxes.velocity[order].double().numpy(), turned[:, :2])
    cameras, images = ours["cameras"](row), devkit.cameras(record)
    if cameras is not None:  # the same window, but another way of making it small: equal on average
        difference = float(np.abs(cameras.images.numpy() - np.stack(images)).mean())
        if difference > 0.02:
            raise DataError(f"images of sample {record['token']}: mean difference {difference:.3f} of full scale")


@contextmanager
def one_thread(radar_filter: str) -> Iterator[None]:
    """One torch thread, and the devkit's class-wide radar filters set as ours; both restored after."""
    from nuscenes.utils.data_classes import RadarPointCloud

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    RadarPointCloud.default_filters() if radar_filter == "devkit" else RadarPointCloud.disable_filters()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        RadarPointCloud.default_filters()


def measure(config: DataConfig, split: str, samples: int, repeats: int) -> dict[str, Any]:
    """Seconds per sample of both readers, stage by stage and whole: medians over ``repeats`` passes.

    Args:
        config: where the data are and how they are read.
        split: whose first ``samples`` keyframes are read.
        samples: how many.
        repeats: passes over them; the two readers take turns, so that neither gets the quieter half.

    Raises:
        DataError: the data cannot be read, or the readers disagree.
    """
    dataset, devkit = NuScenesDataset(config, split, BEVGrid()), DevkitReader(config)
    rows = [int(row) for row in dataset.rows[:samples]]
    records = [devkit.nusc.get("sample", dataset.tables.token(row)) for row in rows]
    ours = stage_readers(dataset)
    times: dict[str, dict[str, list[float]]] = {
        who: {s: [] for s in (*STAGES, "all")} for who in ("fusion3d", "devkit")
    }

    def clock(who: str, stage: str, read: Callable[[Any], Any], items: list[Any]) -> float:
        start = time.perf_counter()
        for item in items:
            read(item)
        seconds = (time.perf_counter() - start) / len(items)
        times[who][stage].append(seconds)
        return seconds

    with one_thread(config.radar_filter):
        for row in rows:
            check_equal(dataset, devkit, row)
        for _ in range(repeats):
            for who, readers, items in (("fusion3d", ours, rows), ("devkit", None, records)):
                whole = [
                    clock(who, stage, readers[stage] if readers else getattr(devkit, stage), items) for stage in STAGES
                ]
                times[who]["all"].append(sum(whole))
        start = time.perf_counter()
        read: list[Sample] = [dataset[index] for index in range(len(rows))]
        whole_sample = (time.perf_counter() - start) / len(read)
    medians = {who: {stage: statistics.median(values) for stage, values in by.items()} for who, by in times.items()}
    ratio = {stage: medians["devkit"][stage] / medians["fusion3d"][stage] for stage in (*STAGES, "all")}
    counts = {"samples": len(rows), "lidar_points": 0, "radar_returns": 0, "images": 0, "boxes": 0}
    for sample in read:
        counts["lidar_points"] += 0 if sample.lidar is None else len(sample.lidar)
        counts["radar_returns"] += 0 if sample.radar is None else len(sample.radar)
        counts["images"] += 0 if sample.cameras is None else len(sample.cameras.images)
        counts["boxes"] += 0 if sample.boxes is None else len(sample.boxes)
    return {
        "seconds_per_sample": medians, "ratio": ratio, "samples_per_second": 1 / medians["fusion3d"]["all"],
        "whole_sample_seconds": whole_sample, "counts": counts, "image_size": list(config.image_size),
        "lidar_sweeps": config.lidar_sweeps, "radar_sweeps": config.radar_sweeps, "repeats": repeats,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The result for a person."""
    ours, devkit = (result["seconds_per_sample"][who] for who in ("fusion3d", "devkit"))
    lines = [f"{'':10}{'fusion3d':>12}{'devkit':>12}{'ratio':>8}   (ms per sample, one thread)"]
    for stage in (*STAGES, "all"):
        lines.append(f"{stage:10}{ours[stage] * 1e3:12.2f}{devkit[stage] * 1e3:12.2f}{result['ratio'][stage]:8.1f}")
    c = result["counts"]
    lines.append(
        f"{result['samples_per_second']:.1f} samples/s; {c['samples']} samples with {c['images']} images -> "
        f"{result['image_size'][0]} x {result['image_size'][1]}, {c['lidar_points']} LiDAR points, "
        f"{c['radar_returns']} radar returns, {c['boxes']} boxes; whole Sample with path and map: "
        f"{result['whole_sample_seconds'] * 1e3:.1f} ms"
    )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Compare the loaders; without ``--root`` on a synthetic scene with full-size images made for it."""
    parser = argparse.ArgumentParser(prog="benchmark data", description="Speed of reading samples, against the devkit.")
    parser.add_argument("--root", help="data root; default: a synthetic one, made in a temporary folder")
    parser.add_argument("--version", default="v1.0-mini", help="table folder below the root")
    parser.add_argument("--split", default="mini_train", help="whose first keyframes are read")
    parser.add_argument("--samples", type=int, default=4, help="keyframes")
    parser.add_argument("--repeats", type=int, default=5, help="passes; the median counts")
    parser.add_argument("--image-size", type=int, nargs=2, default=(256, 704), metavar=("H", "W"))
    parser.add_argument("--lidar-sweeps", type=int, default=10)
    parser.add_argument("--radar-sweeps", type=int, default=6)
    parser.add_argument("--out", help="write the figures as JSON to this file")
    args = parser.parse_args(argv)
    if args.samples < 1 or args.repeats < 1:
        parser.error("--samples and --repeats: expected at least 1")
    with tempfile.TemporaryDirectory() as folder:
        root, version, split = args.root, args.version, args.split
        if root is None:
            from fusion3d.synthetic.writer import make_dataset

            root, version, split = folder, "v1.0-synthetic", "train"
            print("making a synthetic scene with images of 900 x 1600 px ...", flush=True)
            make_dataset(
                root, version, scenes=2, keyframes=args.samples, image_size=(900, 1600), sweeps=9, val_scenes=1
            )
        config = DataConfig(
            root=str(root), version=version, image_size=tuple(args.image_size), lidar_sweeps=args.lidar_sweeps,
            radar_sweeps=args.radar_sweeps,
        )  # fmt: skip
        result = measure(config, split, args.samples, args.repeats)
    print(table(result))
    if args.out:
        write_json(Path(args.out), result)
    return 0
