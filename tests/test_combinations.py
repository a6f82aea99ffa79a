"""Every two choices of the configuration together: each pair makes a model that works, or is refused in one line.

A row is a configuration with a choice for everything. Rows are dealt by a known seed until every pair stands in one;
the first few are run always, all of them where slow tests are.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fusion3d.build import build_model
from fusion3d.config import Config, from_dict
from fusion3d.data.collate import collate
from fusion3d.data.subset import select_sensors
from fusion3d.engine.random_batch import give_anchors, random_batch
from fusion3d.errors import ConfigError
from fusion3d.heads.center import DetectionMaps
from fusion3d.heads.planning.anchors import ScoredPaths
from fusion3d.heads.planning.query import PlannedPath
from fusion3d.heads.query import QueryBoxes
from fusion3d.late import Model
from fusion3d.types import SENSORS, Batch, EgoStatus, Occupancy, Sample, Trajectory

Row = dict[str, str]

CAMERA = {
    "backbone": {"name": "resnet18", "width": 4}, "fpn_channels": 8, "channels": 8, "stride": 8, "depth": [1, 9, 1],
    "layers": 1, "heights": 2,
}  # fmt: skip
LIDAR = {
    "channels": 8,
    "pillar": 0.4,
    "voxels": {"side": 0.1, "channels": [4, 4, 8, 8], "blocks": 1},
    "windows": {"pillar": 0.8, "channels": 8, "heads": 2, "blocks": 2, "window": [4, 2]},
    "dense": {"channels": [8, 8], "blocks": [1, 1]},
}
RADAR = {"channels": 8, "dual": {"channels": 8, "heads": 2, "blocks": 1}}
BASE: dict[str, Any] = {
    "data": {"image_size": [64, 64]},
    "grid": {"x": [-6.4, 6.4], "y": [-6.4, 6.4], "resolution": 0.8},
    "camera": CAMERA,
    "lidar": LIDAR,
    "radar": RADAR,
    "fusion": {"channels": 8, "virtual_points": 2},
    "trunk": {"channels": 8, "blocks": [1, 1], "out_channels": 8},
    "detection": {"channels": 8, "query": {"count": 20}},
    "planning": {"channels": 8, "command_dropout": 0.0},
    "map": {"channels": 8},
}

# What there is to choose, by name; a choice changes BASE by dotted keys.
CHOICES: dict[str, dict[str, dict[str, Any]]] = {
    "stage": {name: {"fusion.stage": name} for name in ("middle", "early", "hierarchical", "late", "hybrid")},
    "operator": {
        name: {"fusion.operator": name}
        for name in (
            "concat", "add", "weighted", "gated", "bilinear", "tensor", "low_rank", "channel_exchange",
            "cross_attention", "bottleneck", "perceiver",
        )
    },
    "view": {
        name: {"camera.view": name, "camera.depth_loss": 0.0 if name in ("deformable", "unproject") else 1.0}
        for name in ("lift", "aware_lift", "lidar_lift", "radar_lift", "deformable", "unproject")
    },
    "lidar": {name: {"lidar.encoder": name} for name in ("pillars", "voxels", "windows")},
    "radar": {name: {"radar.encoder": name} for name in ("pillars", "dual")},
    "absent": {"none": {}, **{name: {name: None} for name in SENSORS}},
    "head": {
        "one": {},
        "six": {"detection.tasks": "six"},
        "query": {"detection.head": "query"},
        "none": {"detection": None},
    },
    "tasks": {"all": {}, "map_grid": {"map.grid": {"x": [-4, 4], "y": [-4, 4], "resolution": 0.5}, "planning": None}},
    "planner": {
        "query": {},
        "status": {"planning.ego_status": "predicted"},
        "anchors": {"planning.head": "anchors", "planning.anchors.count": 4, "planning.anchors.reject": True},
        "reader": {"planning.head": "anchors", "planning.anchors.count": 4, "occupancy": {"channels": 8}},
    },
    "temporal": {"none": {}, "concat": {"temporal": {}}, "recurrent": {"temporal": {"operator": "recurrent"}}},
    "representation": {name: {"fusion.representation": name} for name in ("joint", "coordinated", "factorised")},
    "align": {name: {"fusion.align": name} for name in ("none", "deformable")},
    "paint": {"features": {}, "scores": {"fusion.paint": "scores", "camera.image_loss": 0.5}},
    "merge": {name: {"fusion.merge": name} for name in ("weighted", "voting")},
    "neck": {name: {"camera.neck": name} for name in ("fpn", "lss_fpn")},
    "motion": {"none": {}, "own": {"motion": {"channels": 8, "steps": 4}}},
    "own": {"none": {}, "heatmaps": {"detection.sensor_weight": 0.3}},
}  # fmt: skip

# What is refused, by pairs, and what the one line must name.
REFUSED: dict[tuple[tuple[str, str], tuple[str, str]], str] = {
    **{
        (("stage", stage), (setting, choice)): rf"fusion\.{setting}: .*fusion\.stage '{stage}'"
        for stage in ("early", "late")
        for setting, usual in (("operator", "concat"), ("representation", "joint"), ("align", "none"))
        for choice in CHOICES[setting]
        if choice != usual
    },
    **{
        (("stage", stage), ("view", view)): rf"camera\.view: .*fusion\.stage '{stage}'"
        for stage, views in {
            "early": ("radar_lift", "deformable", "unproject"),
            "late": ("lidar_lift", "radar_lift"),
            "hybrid": ("lidar_lift", "radar_lift"),
        }.items()
        for view in views
    },
    (("head", "none"), ("motion", "own")): r"motion is set and detection is null",
    (("view", "lidar_lift"), ("absent", "lidar")): r"camera\.view: .*lidar: null",
    (("view", "radar_lift"), ("absent", "radar")): r"camera\.view: .*radar: null",
    (("head", "none"), ("planner", "anchors")): r"planning\.anchors\.reject .*detection is null",
}


def rows_of_all_pairs(seed: int = 0) -> Iterator[Row]:
    """Rows, until every pair of choices that is not refused has been in one; each takes in as many as it is easy to."""
    rng = random.Random(seed)
    missing = {
        (a, b)
        for (one, of_one), (other, of_other) in itertools.combinations(CHOICES.items(), 2)
        for a, b in itertools.product([(one, choice) for choice in of_one], [(other, choice) for choice in of_other])
    } - set(REFUSED)
    while missing:
        row: Row = dict(rng.choice(sorted(missing)))  # sorted, for the order of a set differs between runs
        for name in rng.sample(list(CHOICES), len(CHOICES)):
            if name not in row:
                fitting = [choice for choice in CHOICES[name] if not _pairs_with(row, name, choice) & set(REFUSED)]
                rng.shuffle(fitting)
                row[name] = max(fitting, key=lambda choice: len(_pairs_with(row, name, choice) & missing))
        missing -= set(itertools.combinations([(name, row[name]) for name in CHOICES], 2))
        yield {name: row[name] for name in CHOICES}


def _pairs_with(row: Row, name: str, choice: str) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    """The pairs that a row gets by one more choice, as ``CHOICES`` orders them."""
    order = list(CHOICES)
    pairs = (sorted([(name, choice), item], key=lambda one: order.index(one[0])) for item in row.items())
    return {(a, b) for a, b in pairs}


def config_of(row: Row) -> Config:
    values = copy.deepcopy(BASE)
    for name, choice in row.items():
        for key, value in CHOICES[name][choice].items():
            *path, last = key.split(".")
            section = values
            for part in path:
                section = section.setdefault(part, {})
                if section is None:  # a branch or head that another choice left out
                    break
            else:
                section[last] = value
    return from_dict(values)


def samples_of(config: Config) -> list[Sample]:
    """One for each subset of the sensors, the last with none; those with an odd number lack one of the past."""
    subsets = [subset for count in (1, 2, 3, 0) for subset in itertools.combinations(SENSORS, count)]
    found = []
    for seed, subset in enumerate(subsets):
        batch = random_batch(config, 1, 100, 20, 4, seed)
        past = [_seen(of_past.batch, f"scene-{seed}", subset) for of_past in batch.history[seed % 2 :]]
        assert batch.boxes is not None and batch.future is not None
        assert batch.map_mask is not None and batch.map_known is not None
        assert batch.motion is not None and batch.status is not None
        found.append(
            dataclasses.replace(
                _seen(batch, f"scene-{seed}", subset),
                boxes=batch.boxes[0],
                motion=batch.motion[0],
                status=EgoStatus(*(getattr(batch.status, f.name)[0] for f in dataclasses.fields(EgoStatus))),
                future=Trajectory(*(getattr(batch.future, f.name)[0] for f in dataclasses.fields(Trajectory))),
                map_mask=batch.map_mask[0],
                map_known=batch.map_known[0],
                history=tuple(past),
            )
        )
    return found


def _seen(batch: Batch, scene: str, sensors: tuple[str, ...]) -> Sample:
    """The only sample of a batch, with some of its sensors and no target."""
    assert batch.lidar is not None and batch.radar is not None
    return Sample(
        token=scene,
        scene=scene,
        timestamp=int(batch.timestamp[0]),
        global_from_ego=batch.global_from_ego[0],
        aug_from_ego=batch.aug_from_ego[0],
        cameras=batch.cameras if "camera" in sensors else None,
        lidar=batch.lidar.points if "lidar" in sensors else None,
        radar=batch.radar.points if "radar" in sensors else None,
        command=int(batch.command[0]),
    )


def raw_maps(outputs: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """What the heads say of each sample, [B, ...]; of queries the heatmap alone, for which peaks they are is a leap."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield path, outputs
    elif isinstance(outputs, QueryBoxes):
        yield f"{path}.heatmap", outputs.heatmap
    elif isinstance(outputs, ScoredPaths):
        yield from ((f"{path}.{name}", getattr(outputs, name)[-1]) for name in ("path", "imitation"))
        yield f"{path}.score", outputs.score
    elif isinstance(outputs, DetectionMaps | PlannedPath | Occupancy):
        parts = ((f"{path}.{f.name}", getattr(outputs, f.name)) for f in dataclasses.fields(outputs))
        yield from ((name, part) for name, part in parts if part is not None)
    elif isinstance(outputs, dict):
        for name, value in outputs.items():
            yield from raw_maps(value, f"{path}.{name}")


def check_every_subset(model: Model, samples: list[Sample]) -> None:
    """Every sample alone says what it says beside the others, and that can be decoded."""
    together = dict(raw_maps(model(collate(samples))))
    for number, sample in enumerate(samples):
        batch = collate([sample])
        outputs = model(batch)
        for name, alone in raw_maps(outputs):
            beside, what = together[name][number], f"{name} of sample {number}"
            assert torch.allclose(alone[0], beside, atol=1e-4, rtol=1e-4), f"{what}: {(alone[0] - beside).abs().max()}"
        boxes = model.decode(outputs, batch).boxes
        for of_sample in boxes or ():
            assert all(getattr(of_sample, part).isfinite().all() for part in ("center", "size", "yaw", "score"))


def check_training(model: Model, seen: Batch, full: Batch) -> None:
    losses = model.losses(model(seen), full)
    assert losses and all(value.ndim == 0 and value.isfinite() for value in losses.values())
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def spoilt(sample: Sample) -> list[Sample]:
    """Clouds without points, of one point, and with what is no number."""
    assert sample.lidar is not None and sample.radar is not None
    clouds = [(sample.lidar[:0], sample.radar[:0]), (sample.lidar[:1], sample.radar[:1])]
    lidar, radar = sample.lidar.clone(), sample.radar.clone()
    lidar[::3, :3] = lidar[1::3, 3:] = radar[::3, :6] = torch.nan
    lidar[2, 0] = lidar[5, 3] = radar[1, 0] = radar[2, 3] = torch.inf
    return [dataclasses.replace(sample, lidar=a, radar=b) for a, b in (*clouds, (lidar, radar))]


@contextmanager
def rounded() -> Iterator[None]:
    """bfloat16 autocast with CUDA's types: there what comes out of a normalisation is float32, on the CPU it is not."""

    def in_float32(of: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, *more, **named: of(x.float(), *more, **named)

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        for name in ("group_norm", "layer_norm"):
            patch.setattr(F, name, in_float32(getattr(F, name)))
        yield


@cache
def rows() -> tuple[Row, ...]:
    return tuple(rows_of_all_pairs())


FEW = 12  # rows that are always run


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=[pytest.mark.slow] if n >= FEW else []) for n in range(len(rows()))]
)
def test_a_row_of_choices_works(number):
    row = rows()[number]
    config = config_of(row)
    torch.manual_seed(number)
    model, samples = build_model(config), samples_of(config)
    give_anchors(model)
    print(row)  # shown where it fails
    with torch.no_grad():
        check_every_subset(model.eval(), samples)
    model.train()
    full = collate(samples[5:])
    check_training(model, full, full)
    check_training(model, select_sensors(full, config.branches[-1:]), full)
    for sample in spoilt(samples[6]):
        batch = collate([sample])
        with rounded() if number % 2 else nullcontext():
            check_training(model, batch, batch)


@pytest.mark.parametrize("pair", REFUSED, ids=lambda pair: "+".join(choice for _, choice in pair))
def test_what_does_not_go_together_is_refused_in_a_line_with_both_keys(pair):
    row = {name: next(iter(choices)) for name, choices in CHOICES.items()} | dict(pair)
    with pytest.raises(ConfigError, match=REFUSED[pair]) as refused:
        build_model(config_of(row))
    assert "\n" not in str(refused.value)
