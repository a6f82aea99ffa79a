"""Makes the database of objects: ``tools/make_objects.py``.

Which objects are cut out is chosen from the tables alone; then the files are read scene by scene. Until all is done
the finished scenes lie in ``.part/``, so that an interrupted run goes on where it stopped; ``index.json`` then appears
by one rename. What is made depends on the data and the settings alone, not on workers or interruptions.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from fusion3d.data.annotations import load_boxes
from fusion3d.data.guard import Lenient
from fusion3d.data.images import open_image
from fusion3d.data.lidar import load_lidar
from fusion3d.data.nuscenes import Tables
from fusion3d.data.paste.cut import lidar_inside, project, radar_inside, wholly_seen
from fusion3d.data.paste.database import COLUMNS, FORMAT, INDEX, MAX_INDEX, Objects, describe, encode
from fusion3d.data.radar import load_radars
from fusion3d.data.splits import samples_of
from fusion3d.errors import ConfigError, DataError
from fusion3d.files import read_json, write_json, write_whole
from fusion3d.types import CAMERAS, DETECTION_CLASSES, LIDAR_FIELDS, RADAR_FIELDS, Boxes, Cameras

_PART, _MADE = ".part", "made.json"
_MARGIN = 2  # [px] around a window, for what interpolation reads beside it


def make_objects(
    root: Path,
    out: Path = Path("data/objects"),
    version: str = "v1.0-trainval",
    split: str = "train",
    lidar_sweeps: int = 10,
    radar_sweeps: int = 6,
    min_points: int = 5,
    most: int = 10_000,
    seed: int = 0,
    workers: int = 2,
    quiet: bool = False,
) -> Path:
    """Cut the annotated objects of a split out, or finish what was interrupted.

    Args:
        root: Folder of the data set.
        out: Folder to write to; made where it does not exist.
        version: Table folder.
        split: Split whose objects are taken: the one that is trained on.
        lidar_sweeps: LiDAR clouds of a sample, as many as training reads or more.
        radar_sweeps: Clouds of each radar, as many as training reads or more.
        min_points: Objects with fewer LiDAR and radar points are left out.
        most: Objects of a class, chosen at random where there are more.
        seed: Of that choice.
        workers: Processes; the result does not depend on it.
        quiet: Show no progress.

    Returns:
        ``out``.

    Raises:
        ConfigError: A setting out of its range, or objects made otherwise already in ``out``.
        DataError: The tables cannot be read, or no object of the split is good enough.
        Fusion3DError: A file cannot be written.
    """
    limits = {"lidar-sweeps": lidar_sweeps, "radar-sweeps": radar_sweeps, "most": most, "workers": workers}
    for name, value in {**limits, "min-points": min_points + 1, "seed": seed + 1}.items():
        if value < 1:
            raise ConfigError(f"{name}: expected {'at least 1' if name in limits else '0 or more'}, found {value}")
    tables = Tables.open(root, version)
    chosen = choose(tables, split, min_points, most, seed)
    if not chosen:
        raise DataError(f"{root}: split {split!r} has no object of the ten classes with {min_points} points or more")
    digest = hashlib.sha256(b"".join(tables.sample_token[job.sample] for jobs in chosen.values() for job in jobs))
    made = {
        "format": FORMAT, "version": version, "split": split, "lidar_sweeps": lidar_sweeps,
        "radar_sweeps": radar_sweeps, "min_points": min_points, "most": most, "seed": seed,
        "samples": digest.hexdigest()[:16],
    }  # fmt: skip
    if not _begin(out, made):
        todo = [scene for scene in chosen if not _fragment(out, scene).exists()]
        arguments = [(str(root), version, scene, chosen[scene], out, lidar_sweeps, radar_sweeps) for scene in todo]
        _cut_scenes(arguments, len(chosen), workers, quiet)
        _finish(out, made, list(chosen))
    shutil.rmtree(out / _PART, ignore_errors=True)
    return out


def main(argv: list[str]) -> int:
    """``make_objects``: the command-line face of :func:`make_objects`."""
    import tyro

    out = tyro.cli(make_objects, args=argv, prog="make_objects.py", config=(tyro.conf.PositionalRequiredArgs,))
    print(f"{len(Objects.open(out))} objects: {out}")
    return 0


@dataclass(frozen=True)
class Job:
    """The objects to cut out of one sample."""

    sample: int
    boxes: tuple[int, ...]  # which of the sample's boxes of the ten classes


def choose(tables: Tables, split: str, min_points: int, most: int, seed: int) -> dict[int, list[Job]]:
    """For each scene row, in order, what to cut out of its samples: at most ``most`` of each class."""
    found = []  # (class, scene, sample, number of the box in the sample)
    for sample in samples_of(tables, split):
        rows = np.arange(tables.box_start[sample], tables.box_start[sample + 1])
        rows = rows[tables.box_class[rows] >= 0]
        good = tables.box_points[rows].sum(axis=1) >= min_points
        numbers = np.flatnonzero(good)
        place = np.broadcast_to([tables.sample_scene[sample], sample], (len(numbers), 2))
        found.append(np.column_stack([tables.box_class[rows[numbers]].astype(np.int64), place, numbers]))
    table = np.concatenate(found) if found else np.zeros((0, 4), dtype=np.int64)
    kept = []
    for label in range(len(DETECTION_CLASSES)):
        rows = np.flatnonzero(table[:, 0] == label)
        kept.append(np.random.default_rng([seed, label]).permutation(rows)[:most])
    jobs: dict[int, dict[int, list[int]]] = {}
    for _, scene, sample, number in table[np.sort(np.concatenate(kept))].tolist():
        jobs.setdefault(scene, {}).setdefault(sample, []).append(number)
    return {scene: [Job(sample, tuple(sorted(b))) for sample, b in of.items()] for scene, of in sorted(jobs.items())}


def _fragment(out: Path, scene: int) -> Path:
    return out / _PART / f"scene-{scene:04d}.json"


def _begin(out: Path, made: dict[str, Any]) -> bool:
    """Is the database finished already? ConfigError where it, or what there is of it, was made otherwise."""
    for path, key in ((out / INDEX, "made"), (out / _PART / _MADE, None)):
        if path.is_file():
            content = read_json(path, f"remove {out} and run make_objects again", max_bytes=MAX_INDEX)
            there = content.get(key, {}) if key else content
            if there != made:
                differ = [name for name in made if there.get(name) != made[name]]
                raise ConfigError(
                    f"{out} holds objects made with another {', '.join(differ)}; remove it or choose another --out"
                )
            if key:
                return True
    write_json(out / _PART / _MADE, made)
    return False


def _cut_scenes(arguments: list[tuple[Any, ...]], total: int, workers: int, quiet: bool) -> None:
    from tqdm import tqdm

    with tqdm(total=total, initial=total - len(arguments), unit="scene", disable=quiet) as progress:
        if workers == 1 or len(arguments) < 2:
            for argument in arguments:
                cut_scene(*argument)
                progress.update()
            return
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(arguments)), spawn, _use_one_thread) as pool:
            futures = [pool.submit(cut_scene, *argument) for argument in arguments]
            try:
                for future in as_completed(futures):
                    future.result()
                    progress.update()
            except BrokenProcessPool as error:
                raise DataError("a worker died, perhaps for lack of memory; run the same command again") from error
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def cut_scene(
    root: str, version: str, scene: int, jobs: list[Job], out: Path, lidar_sweeps: int, radar_sweeps: int
) -> None:
    """Write the objects of a scene, and last its part of the index. A broken sensor file is an absent sensor."""
    tables, guard = Tables.open(root, version), Lenient()
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for job in jobs:
        boxes = load_boxes(tables, job.sample)[torch.tensor(job.boxes)]
        none = torch.zeros(0, len(LIDAR_FIELDS)), torch.zeros(0, len(RADAR_FIELDS))
        lidar = load_lidar(tables, job.sample, lidar_sweeps, guard=guard)
        radar = load_radars(tables, job.sample, num_sweeps=radar_sweeps, guard=guard)
        lidar, radar = none[0] if lidar is None else lidar, none[1] if radar is None else radar
        patches = cut_images(tables, job.sample, boxes, guard)
        counts, files = [], []
        inside = zip(lidar_inside(lidar, boxes), radar_inside(radar, boxes), strict=True)
        for k, (number, (rows, hits)) in enumerate(zip(job.boxes, inside, strict=True)):
            points, returns = (part[part.isfinite().all(1)] for part in (lidar[rows], radar[hits]))
            name = DETECTION_CLASSES[int(boxes.label[k])]
            files.append(f"objects/{scene:04d}/{job.sample:06d}-{number:03d}-{name}.safetensors")
            tensors = {"lidar": points, "radar": returns, **patches[k]}
            write_whole(out / files[-1], to_safetensors(tensors), flush=False, beside=out / _PART)
            counts.append([len(points), len(returns)])
        for name, values in describe(replace(boxes, num_points=torch.tensor(counts)), files).items():
            columns[name] += values
    write_json(_fragment(out, scene), columns, indent=None)


def cut_images(tables: Tables, sample: int, boxes: Boxes, guard: Lenient) -> list[dict[str, Tensor]]:
    """For each box, the tensors of the patches of the cameras that have it wholly in front of them, and in view."""
    patches: list[dict[str, Tensor]] = [{} for _ in range(len(boxes))]
    for channel in CAMERAS:
        row = tables.key(sample, channel)
        if row < 0:
            continue

        def read(row: int = row, channel: str = channel) -> list[tuple[int, Tensor, Tensor]]:
            tables.check(row)
            matrix = torch.eye(4)
            matrix[:3, :3] = torch.from_numpy(tables.intrinsic(row))
            with open_image(tables.path(row)) as file:
                camera = Cameras(
                    images=torch.empty(1, 0, file.height, file.width),
                    image_from_cam=matrix[None],
                    ego_from_cam=torch.from_numpy(tables.reference_from_sensor(sample, [row])).float(),
                    batch_index=torch.zeros(1, dtype=torch.int64),
                    channels=(channel,),
                )
                corners, window, _ = project(camera, boxes)
                return [
                    (k, *_cut_patch(file, window[0, k], corners[0, k]))
                    for k in wholly_seen(corners[0], window[0]).nonzero()[:, 0].tolist()
                ]

        for k, image, corners in guard(read) or ():
            patches[k] |= {f"image.{channel}": image, f"corners.{channel}": corners}
    return patches


def _cut_patch(file: Any, window: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    left, top = (max(0, int(value) - _MARGIN) for value in window[:2])
    right, bottom = (int(value) + 1 + _MARGIN for value in window[2:])
    patch = file.convert("RGB") if file.mode != "RGB" else file
    patch = patch.crop((left, top, min(right + 1, file.width), min(bottom + 1, file.height)))
    return encode(patch), (corners - corners.new_tensor([left, top])).float()


def _finish(out: Path, made: dict[str, Any], scenes: list[int]) -> None:
    """Join the scenes' parts to the index; scene by scene in order, so that the result is the same every time."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for scene in scenes:
        path = _fragment(out, scene)
        part = read_json(path, remedy := "remove it and run make_objects again")
        if not part.keys() >= set(COLUMNS):
            raise DataError(f"{path} lacks {', '.join(sorted(set(COLUMNS) - part.keys()))}; {remedy}")
        for name in COLUMNS:
            columns[name] += part[name]
    write_json(out / INDEX, {"made": made, "objects": columns}, indent=None)
