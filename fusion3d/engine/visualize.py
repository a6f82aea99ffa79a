"""Looking at samples: pictures of cameras and bird's-eye view, or the 3-D scene, with what a checkpoint says."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fusion3d.config import Config, DataConfig, override
from fusion3d.data.collate import collate
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.engine.checkpoint import load_config_of, load_model
from fusion3d.engine.seed import set_deterministic
from fusion3d.engine.views import predict_views, views_of
from fusion3d.errors import ConfigError, DataError, Fusion3DError
from fusion3d.rows import select
from fusion3d.types import CAMERAS, RADARS, SENSORS, BEVGrid, Boxes, Forecast, Occupancy, PlanModes, Sample, Trajectory
from fusion3d.view import pictures, scene

IMAGE_SIZE = (450, 800)  # of what is drawn [px]: half a nuScenes image, whatever the network reads
_MAP_THRESHOLD = 0.5  # of the map's probabilities that are drawn


class Seen(NamedTuple):
    """A sample and what a checkpoint says about it."""

    sample: Sample
    boxes: Boxes | None = None
    plan: Trajectory | None = None
    occupancy: Occupancy | None = None  # of the sample, in the map's grid
    motion: Forecast | None = None  # of the boxes
    modes: PlanModes | None = None  # [K, T] that the plan was chosen among


def restrict(data: DataConfig, sensors: Sequence[str] | None) -> DataConfig:
    """The data configuration that reads the named sensors only.

    Args:
        data: what would be read.
        sensors: kinds ("camera", "lidar", "radar") and single channels ("CAM_FRONT"); None changes nothing.

    Raises:
        ConfigError: an unknown name.
    """
    if sensors is None:
        return data
    unknown = [name for name in sensors if name not in (*SENSORS, *CAMERAS, *RADARS)]
    if unknown:
        known = ", ".join((*SENSORS, *CAMERAS, *RADARS))
        raise ConfigError(f"--sensors: unknown {', '.join(map(repr, unknown))}; known: {known}")
    cameras = tuple(c for c in data.cameras if "camera" in sensors or c in sensors)
    radars = tuple(r for r in data.radars if "radar" in sensors or r in sensors)
    there = {"camera": bool(cameras), "lidar": "lidar" in sensors, "radar": bool(radars)}
    kinds = tuple(kind for kind in data.sensors if there[kind])
    return dataclasses.replace(data, sensors=kinds, cameras=cameras, radars=radars)


def open_clips(config: Config) -> NuScenesDataset:
    """The evaluated split with its maps and, for a model that remembers, the keyframes before each.

    So also with ``evaluation.stream``: what is looked at is single samples.
    """
    keyframes = 1 if config.temporal is None else config.temporal.keyframes
    return NuScenesDataset(config.data, config.data.split, config.map_grid, keyframes=keyframes)


def choose(
    dataset: NuScenesDataset, index: int | None = None, token: str | None = None, scene_name: str | None = None
) -> list[int]:
    """Indices of one sample, by index (the default is 0) or token, or of a whole scene.

    Raises:
        DataError: the split has no such sample or scene.
    """
    if token is not None:
        try:
            return [dataset.index_of(token)]
        except KeyError as error:
            raise DataError(f"{error.args[0]}; choose the split with --data.split") from error
    if scene_name is not None:
        scenes = [dataset.tables.scene(int(row)) for row in dataset.rows]
        found = [i for i, name in enumerate(scenes) if name == scene_name]
        if not found:
            known = ", ".join(dict.fromkeys(scenes))
            raise DataError(f"no scene {scene_name!r} in split {dataset.split!r}; it has {known}")
        return found
    index = index or 0
    if not -len(dataset) <= index < len(dataset):
        raise DataError(f"no sample {index} in split {dataset.split!r}: it has {len(dataset)}, counted from 0")
    return [index % len(dataset)]


def look(
    dataset: NuScenesDataset,
    indices: Sequence[int],
    checkpoint: str | Path | None = None,
    config: Config | None = None,
    device: str | None = None,
    ema: bool = True,
) -> Iterator[Seen]:
    """Samples with what a checkpoint says about them, if there is one.

    The images of the samples are larger than the network's and not cropped: they are there to be looked at. The map of
    a sample is the model's, where it has a map head.

    Args:
        dataset: of ``open_clips``.
        indices: which samples.
        checkpoint: checkpoint or run folder.
        config: the checkpoint's own with other data or thresholds.
        device: torch device name; None takes the GPU where there is one.
        ema: use the averaged weights.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DataError: a sample cannot be read.
    """
    model, views = None, []
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if checkpoint is not None:
        model, config = load_model(checkpoint, ema, config)
        model, views = model.to(where), views_of(config)
    data = dataset.config
    large = dataclasses.replace(data, image_size=IMAGE_SIZE, sensors=("camera",) if "camera" in data.sensors else ())
    to_show = NuScenesDataset(large, dataset.split, dataset.grid, with_map=False)
    for index in indices:
        seen = Seen(dataset[index])
        if model is not None:
            assert config is not None
            batch = collate([seen.sample]).to(where)
            with torch.inference_mode():
                found = predict_views(model, batch, views)
            boxes = None if found.boxes is None else found.boxes[0]
            motion = None if found.motion is None else found.motion[0]
            plan, modes = found.plan and found.plan[0], found.modes and select(found.modes, 0)
            occupancy = found.occupancy and _onto(found.occupancy, config.grid, dataset.grid)
            sample = seen.sample
            if found.map is not None:
                sample = dataclasses.replace(sample, map_mask=found.map[0] >= _MAP_THRESHOLD, map_known=None)
            seen = Seen(sample, boxes, plan, occupancy, motion, modes)
        yield seen._replace(sample=dataclasses.replace(seen.sample, cameras=to_show[index].cameras))


def _onto(occupancy: Occupancy, grid: BEVGrid, onto: BEVGrid) -> Occupancy:
    """That of the only sample, in another grid: each cell as the one that its middle is in, and 0 beyond."""
    cell_YX, inside_YX = grid.cell_of(torch.nn.functional.pad(onto.centers(), (0, 1), value=sum(grid.z) / 2))
    layers = (of[0].cpu().flatten(-2)[..., cell_YX] * inside_YX for of in (occupancy.agents, occupancy.drivable))
    return Occupancy(*layers)


def visualize(
    config: Config,
    indices: Sequence[int],
    out_dir: str | Path,
    checkpoint: str | Path | None = None,
    view: str = "pictures",
    min_score: float = pictures.MIN_SCORE,
    device: str | None = None,
    ema: bool = True,
    caption: str | None = None,
) -> list[Path]:
    """Write a PNG of each sample of ``config.data.split`` into a folder.

    Args:
        config: with a checkpoint, its own (and other data); see ``restrict`` for fewer sensors.
        indices: which samples of the split.
        out_dir: gets ``<scene>-<index>.png``, or ``<scene>-<index>-3d.png`` for the 3-D scene.
        checkpoint: whose boxes and plan are drawn; None: ground truth only.
        view: "pictures" or "scene".
        min_score: boxes below it are not drawn.
        device: torch device name; None takes the GPU where there is one.
        ema: use the averaged weights.
        caption: on the pictures; None names the sensors that the model was given.

    Returns:
        The files, in the order of the indices.

    Raises:
        Fusion3DError: data, checkpoint or renderer cannot be used, or a file cannot be written.
    """
    dataset = open_clips(config)
    caption = _caption(config, checkpoint) if caption is None else caption
    written = []
    for index, seen in zip(indices, look(dataset, indices, checkpoint, config, device, ema), strict=True):
        path = Path(out_dir, _file_name(seen[0], index, view))
        written.append(_write(seen, path, view, config, min_score, caption))
    return written


def _file_name(sample: Sample, index: int, view: str) -> str:
    scene_name = re.sub(r"[^A-Za-z0-9_-]+", "_", sample.scene)  # it comes from a table: it may hold any character
    return f"{scene_name}-{index:04d}{'-3d' if view == 'scene' else ''}.png"


def _write(
    seen: Seen,
    path: Path,
    view: str,
    config: Config,
    min_score: float,
    caption: str,
) -> Path:
    if view == "scene":
        return scene.save(_build(seen, config, min_score), path)
    drawn = {"grid": config.map_grid, "min_score": min_score, "caption": caption}
    said = {"occupancy": seen.occupancy, "motion": seen.motion, "modes": seen.modes}
    return pictures.draw_sample(*seen[:3], path, **drawn, **said)


def _build(seen: Seen, config: Config, min_score: float) -> scene.Scene:
    return scene.build_scene(*seen[:3], min_score, seen.motion, seen.occupancy, config.map_grid, seen.modes)


def _caption(config: Config, checkpoint: str | Path | None) -> str:
    names = {"camera": "camera", "lidar": "LiDAR", "radar": "radar"}
    used = [names[s] for s in config.data.sensors if s in config.branches]
    if checkpoint is None:
        return "ground truth"
    return f"model given {' + '.join(used)}" + ("; the ground is its map" if config.map is not None else "")


def main(argv: list[str] | None = None) -> int:
    """``visualize.py [--checkpoint X] [--index I | --token T | --scene S] [--view scene] [--data.root R ...]``."""
    options, overrides = _parser().parse_known_args(argv)
    base = Config(data=DataConfig(image_size=IMAGE_SIZE))
    if options.checkpoint is not None:
        base = load_config_of(options.checkpoint)
    config = override(base, overrides)
    config = dataclasses.replace(config, data=restrict(config.data, options.sensors))
    set_deterministic(config.deterministic)
    dataset = open_clips(config)
    indices = choose(dataset, options.index, options.token, options.scene)
    if options.save is not None and len(indices) > 1:
        raise Fusion3DError(f"--save names one file, but {len(indices)} samples are chosen: use --out DIR")
    model = (options.checkpoint, config, options.device, not options.no_ema)
    window = options.view == "scene" and options.save is None and options.out is None
    out = Path(options.out or "pictures")
    caption = _caption(config, options.checkpoint)
    for index, seen in zip(indices, look(dataset, indices, *model), strict=True):
        if window:
            title = f"{seen[0].scene}  {seen[0].token}"
            scene.show(_build(seen, config, options.min_score), title)
        else:
            path = Path(options.save) if options.save is not None else out / _file_name(seen[0], index, options.view)
            path = _write(seen, path, options.view, config, options.min_score, caption)
            print(f"written: {path}", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "visualize",
        description="Draw samples: six cameras and the scene from above as PNG, or the 3-D scene.",
        epilog="Every setting can be overridden, e.g. --data.root PATH --data.version v1.0-mini --data.split mini_val "
        "(all are in fusion3d/config/).",
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", help="checkpoint or run folder; without one only the ground truth is drawn")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--index", type=int, help="sample of the split, counted from 0 (default: 0)")
    which.add_argument("--token", help="sample token")
    which.add_argument("--scene", help="every sample of this scene")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", help="folder for the PNGs (default: pictures)")
    where.add_argument("--save", help="PNG file for a single sample; with --view scene it is rendered off-screen")
    parser.add_argument(
        "--view",
        choices=("pictures", "scene"),
        default="pictures",
        help="scene: 3-D, in a window without --save or --out",
    )
    parser.add_argument("--sensors", nargs="+", help="kinds and channels to use, e.g. camera lidar RADAR_FRONT")
    parser.add_argument("--min-score", type=float, default=pictures.MIN_SCORE, help="boxes below are not drawn")
    parser.add_argument("--device", help="torch device (default: the GPU where there is one)")
    parser.add_argument("--no-ema", action="store_true", help="the last weights instead of their average")
    return parser
