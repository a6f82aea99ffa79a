"""How long each part of the model takes: ``fusion3d benchmark model``. The data are random, of realistic size.

Letters: B samples, M images, P points, K boxes, T future steps.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusion3d.config import Config, load_config
from fusion3d.files import write_json
from fusion3d.heads.targets import allowed_attributes, usual_sizes
from fusion3d.model import Fusion3D, build_model
from fusion3d.types import (
    CAMERAS,
    DETECTION_CLASSES,
    RADAR_FIELDS,
    RADARS,
    Batch,
    Boxes,
    Cameras,
    EgoStatus,
    PointCloud,
    Trajectory,
)


def random_batch(
    config: Config,
    size: int = 1,
    num_points: int = 270_000,
    num_returns: int = 600,
    num_boxes: int = 30,
    seed: int = 0,
) -> Batch:
    """A batch with every sensor and every target, random but plausible: six cameras around, points on the ground and
    on the boxes, some unknown velocities and attributes. The same for the same arguments.

    Args:
        config: gives the image size, the grid and the number of planned steps.
        size: B.
        num_points: LiDAR points of each sample, all sweeps together.
        num_returns: radar returns of each sample.
        num_boxes: objects of each sample.
        seed: of everything random.
    """
    generator = torch.Generator().manual_seed(seed)
    boxes = tuple(_random_boxes(config, num_boxes, generator) for _ in range(size))
    lidar = torch.cat([_random_points(config, b, num_points, generator) for b in boxes])
    radar = torch.cat([_random_returns(config, num_returns, generator) for _ in range(size)])
    present = torch.ones(size, dtype=torch.bool)
    steps = config.planning.steps if config.planning is not None else 6
    speed = torch.rand(size, 1, 1, generator=generator) * 5
    along = torch.arange(1, steps + 1)[None, :, None] * speed * torch.tensor([1.0, 0.1])
    mask = torch.ones(size, steps, dtype=torch.bool)
    sample = torch.arange(size)
    return Batch(
        tokens=tuple(f"sample-{i}" for i in range(size)),
        global_from_ego=torch.eye(4, dtype=torch.float64).repeat(size, 1, 1),
        aug_from_ego=torch.eye(4).repeat(size, 1, 1),
        cameras=_random_cameras(config, size, generator),
        lidar=PointCloud(lidar, sample.repeat_interleave(num_points), present),
        radar=PointCloud(radar, sample.repeat_interleave(num_returns), present),
        boxes=boxes,
        future=Trajectory(along, torch.full((size, steps), math.atan(0.1)), mask),
        past=Trajectory(-along, torch.full((size, steps), math.atan(0.1)), mask),
        status=EgoStatus(2 * along[:, 0], torch.zeros(size, 2), torch.full((size,), torch.nan)),
        command=torch.randint(-1, 3, (size,), generator=generator),
        map_mask=None,
        annotated=present,
    )


def _random_cameras(config: Config, size: int, generator: torch.Generator) -> Cameras:
    """Six level cameras 1.6 m above the ground, 60 degrees apart, 70 degrees wide."""
    height, width = config.data.image_size
    turn = torch.arange(len(CAMERAS)) * -math.pi / 3
    cos, sin, zero, one = turn.cos(), turn.sin(), torch.zeros(len(CAMERAS)), torch.ones(len(CAMERAS))
    rows = [
        [sin, zero, cos, cos],
        [-cos, zero, sin, sin],
        [zero, -one, zero, 1.6 * one],
        [zero, zero, zero, one],
    ]
    ego_from_cam = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    focal = width / 2 / math.tan(math.radians(35))
    image_from_cam = torch.eye(4)
    image_from_cam[:2, :3] = torch.tensor([[focal, 0, (width - 1) / 2], [0, focal, height * 0.4]])
    count = size * len(CAMERAS)
    return Cameras(
        images=torch.rand(count, 3, height, width, generator=generator),
        image_from_cam=image_from_cam.repeat(count, 1, 1),
        ego_from_cam=ego_from_cam.repeat(size, 1, 1),
        batch_index=torch.arange(size).repeat_interleave(len(CAMERAS)),
        channels=CAMERAS * size,
    )


def _random_boxes(config: Config, count: int, generator: torch.Generator) -> Boxes:
    """Boxes at least a few cells apart, of the usual sizes give or take 10 %."""
    grid = config.grid
    rows, cols = grid.shape
    spots = torch.randperm((rows // 4) * (cols // 4), generator=generator)[:count]
    count = len(spots)
    corner = torch.stack([spots % (cols // 4), spots // (cols // 4)], dim=1)
    cell = corner * 4 + 1 + torch.rand(count, 2, generator=generator)
    xy = torch.tensor([grid.x[0], grid.y[0]]) + cell * grid.resolution
    label = torch.arange(count) % len(DETECTION_CLASSES)
    size = usual_sizes()[label] * (0.9 + 0.2 * torch.rand(count, 3, generator=generator))
    velocity = torch.randn(count, 2, generator=generator) * 3
    velocity[::5] = torch.nan
    choice = torch.rand(count, 8, generator=generator).masked_fill(~allowed_attributes()[label], -1)
    attribute = torch.where(choice.amax(1) > 0, choice.argmax(1), -1)
    return Boxes.of(
        center=torch.cat([xy, size[:, 2:] / 2], dim=1),
        size=size,
        yaw=(torch.rand(count, generator=generator) - 0.5) * 2 * math.pi,
        velocity=velocity,
        label=label,
        attribute=attribute,
        visibility=torch.full((count,), 4),
        num_points=torch.full((count, 2), 5),
    )


def _random_points(config: Config, boxes: Boxes, count: int, generator: torch.Generator) -> Tensor:
    """[P, 5] LiDAR: three quarters on the ground, denser near the vehicle, the rest inside of boxes."""
    radius = config.grid.x[1] * torch.rand(count, generator=generator) ** 2
    angle = torch.rand(count, generator=generator) * 2 * math.pi
    xyz = torch.stack([radius * angle.cos(), radius * angle.sin(), torch.zeros(count)], dim=1)
    on_box = count // 4 if len(boxes) else 0
    owner = torch.randint(0, max(len(boxes), 1), (on_box,), generator=generator)
    xyz[:on_box] = boxes.center[owner] + (torch.rand(on_box, 3, generator=generator) - 0.5) * boxes.size[owner] * 0.7
    intensity = torch.rand(count, 1, generator=generator)
    sweep = torch.randint(0, max(config.data.lidar_sweeps, 1), (count, 1), generator=generator) * 0.05
    return torch.cat([xyz, intensity, sweep], dim=1)


def _random_returns(config: Config, count: int, generator: torch.Generator) -> Tensor:
    """[R, 11] radar returns all over the grid, some of them invalid or ambiguous."""

    def codes(number: int) -> Tensor:
        return torch.randint(0, number, (count,), generator=generator).float()

    xy = (torch.rand(2, count, generator=generator) * 2 - 1) * config.grid.x[1]
    columns = {
        "x": xy[0],
        "y": xy[1],
        "z": torch.full((count,), 0.5),
        "rcs": torch.randn(count, generator=generator) * 8,
        "vx": torch.randn(count, generator=generator) * 2,
        "vy": torch.randn(count, generator=generator),
        "time": codes(6) * 0.075,
        "invalid_state": codes(18),
        "ambig_state": codes(5),
        "dyn_prop": codes(8),
        "sensor": codes(len(RADARS)),
    }
    return torch.stack([columns[name] for name in RADAR_FIELDS], dim=1)


def measure(config: Config, batch: Batch, repeats: int = 3, train: bool = False) -> dict[str, Any]:
    """Median milliseconds of every part, and of the whole.

    The parts are timed inside of a real forward pass, by hooks around the modules, each waiting for the device.

    Args:
        config: of the model.
        batch: on the device to measure on.
        repeats: passes, after one that is not counted.
        train: measure a training step (forward, losses, backward) instead of inference and decoding.
    """
    device = batch.command.device
    model = build_model(config).to(device).train(train)
    clock = _Clock(device)
    for name, module in _parts(model).items():
        clock.watch(name, module)
    for attempt in range(repeats + 1):
        clock.keep = attempt > 0
        model.zero_grad()
        with torch.set_grad_enabled(train), clock.time("whole"):
            with clock.time("forward"):
                outputs = model(batch)
            if train:
                with clock.time("losses"):
                    loss = torch.stack(list(model.losses(outputs, batch).values())).sum()
                with clock.time("backward"):
                    loss.backward()
            else:
                with clock.time("decode"):
                    model.decode(outputs, batch)
    return {
        "milliseconds": {name: statistics.median(times) for name, times in clock.times.items()},
        "parameters": {name: sum(p.numel() for p in module.parameters()) for name, module in _parts(model).items()}
        | {"whole": sum(p.numel() for p in model.parameters())},
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "samples": len(batch),
        "repeats": repeats,
        "train": train,
    }


def _parts(model: Fusion3D) -> dict[str, nn.Module]:
    """The parts worth timing, by the name that is printed."""
    parts = {
        "camera encoder": model.camera and model.camera.encoder,
        "lift": model.camera and model.camera.lift,
        "lidar": model.lidar,
        "radar": model.radar,
        "fuse": model.fuse,
        "trunk": model.trunk,
        "detection head": model.detection,
        "planning head": model.planning,
    }
    return {name: part for name, part in parts.items() if part is not None}


class _Clock:
    """Wall-clock milliseconds by name, with the device's queue emptied at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: dict[str, list[float]] = {}
        self.keep = True
        self._begun: dict[str, float] = {}

    def time(self, name: str) -> _Clock._Span:
        return self._Span(self, name)

    def watch(self, name: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda *_: self.begin(name))
        module.register_forward_hook(lambda *_: self.end(name))

    def begin(self, name: str) -> None:
        self._begun[name] = self._now()

    def end(self, name: str) -> None:
        if self.keep:
            self.times.setdefault(name, []).append((self._now() - self._begun[name]) * 1e3)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    class _Span:
        def __init__(self, clock: _Clock, name: str) -> None:
            self.clock, self.name = clock, name

        def __enter__(self) -> None:
            self.clock.begin(self.name)

        def __exit__(self, *_: object) -> None:
            self.clock.end(self.name)


def format_table(result: dict[str, Any]) -> str:
    """The measurement as lines of text."""
    lines = [
        f"{result['samples']} sample(s) on {result['device']}, median of {result['repeats']}, "
        f"{'training step' if result['train'] else 'inference'}",
        f"{'part':<16}{'ms':>10}{'parameters':>14}",
    ]
    for name, value in result["milliseconds"].items():
        count = result["parameters"].get(name)
        lines.append(f"{name:<16}{value:>10.1f}{'' if count is None else f'{count:>14,}'}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """``benchmark model``: print the time of every part, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(prog="benchmark model", description="Time every part of the model.")
    parser.add_argument("--config", default="configs/camera_lidar_radar.yaml", help="YAML configuration")
    parser.add_argument("--samples", type=int, default=1, help="samples in the batch")
    parser.add_argument("--points", type=int, default=270_000, help="LiDAR points per sample")
    parser.add_argument("--returns", type=int, default=600, help="radar returns per sample")
    parser.add_argument("--repeats", type=int, default=3, help="passes that are counted")
    parser.add_argument("--train", action="store_true", help="measure a training step")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    known, overrides = parser.parse_known_args(argv)
    if min(known.samples, known.repeats) < 1 or min(known.points, known.returns) < 0:
        parser.error("--samples and --repeats must be at least 1, --points and --returns at least 0")
    config = load_config(known.config, overrides)
    torch.manual_seed(config.seed)
    batch = random_batch(config, known.samples, known.points, known.returns, seed=config.seed).to(known.device)
    result = measure(config, batch, known.repeats, known.train)
    print(format_table(result))
    if known.out is not None:
        write_json(known.out, result | {"config": known.config})
    return 0
