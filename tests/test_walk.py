"""The walk through the package, step by step as the README tells it, each with its shape."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from fusion3d.build import build_model
from fusion3d.config import load_config
from fusion3d.data.collate import collate
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.data.subset import select_sensors
from fusion3d.engine.columns import found_columns
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.submission import to_records
from fusion3d.metrics.detection import score_detections
from fusion3d.types import CAMERAS, LIDAR_FIELDS, RADAR_FIELDS, SENSORS


def test_the_walk(synthetic_root):
    config = load_config(Path(__file__).parents[1] / "configs" / "demo.yaml")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, root=str(synthetic_root), image_size=(64, 96)),
        grid=dataclasses.replace(config.grid, x=(-25.6, 25.6), y=(-19.2, 19.2)),
    )
    B, (Y, X), T = 2, config.grid.shape, 6
    assert (Y, X) == (48, 64)

    # 1 a keyframe
    dataset = NuScenesDataset(config.data, "train", config.grid)
    sample = dataset[0]
    assert sample.cameras is not None and sample.lidar is not None and sample.radar is not None
    assert sample.cameras.images.shape == (6, 3, 64, 96) and sorted(sample.cameras.channels) == sorted(CAMERAS)
    assert sample.lidar.shape == (len(sample.lidar), len(LIDAR_FIELDS)) and len(sample.lidar) > 1000
    assert sample.radar.shape == (len(sample.radar), len(RADAR_FIELDS)) and len(sample.radar) > 10
    assert sample.boxes is not None and sample.boxes.center.shape == (len(sample.boxes), 3)
    assert sample.future is not None and sample.future.position.shape == (T, 2)

    # 2 a batch: packed, no padding
    batch = collate([sample, dataset[1]])
    assert batch.cameras is not None and batch.lidar is not None and batch.radar is not None
    assert batch.cameras.images.shape == (12, 3, 64, 96) and batch.cameras.batch_index.tolist() == [0] * 6 + [1] * 6
    assert len(batch.lidar.points) == len(batch.lidar.batch_index) > len(sample.lidar)

    # 3 image features with depth
    torch.manual_seed(config.seed)
    model = build_model(config).eval()
    assert model.camera is not None and model.lidar is not None and model.radar is not None
    assert config.camera is not None and config.lidar is not None and config.radar is not None
    features = model.camera.encoder(batch.cameras)
    assert features.context.shape == (12, config.camera.channels, 8, 12)
    assert features.depth.shape == (12, len(model.camera.view.bins), 8, 12)

    # 4 each sensor in the shared grid
    camera_bev = model.camera.view(features, batch.cameras, B)
    lidar_bev, radar_bev = model.lidar(batch.lidar), model.radar(batch.radar)
    assert camera_bev.shape == (B, config.camera.channels, Y, X)
    assert lidar_bev.shape == (B, config.lidar.channels, Y, X)
    assert radar_bev.shape == (B, config.radar.channels, Y, X)

    # 5 one map
    bev = model.trunk(model.fuse([camera_bev, lidar_bev, radar_bev], [batch.present[name] for name in SENSORS]))
    assert bev.shape == (B, config.trunk.out_channels, Y, X)

    # 6 what the heads say; the whole model says the same
    assert model.detection is not None and model.planning is not None
    outputs = {"detection": model.detection(bev, batch), "planning": model.planning(bev, batch)}
    assert outputs["detection"].heatmap.shape == (B, 10, Y, X) and outputs["planning"].position.shape == (B, T, 2)
    whole = model(batch)
    torch.testing.assert_close(whole["detection"].heatmap, outputs["detection"].heatmap)
    torch.testing.assert_close(whole["planning"].position, outputs["planning"].position)
    losses = model.losses(whole, batch)
    assert all(value.isfinite() for value in losses.values()) and losses["depth"] > 0 and losses["heatmap"] > 0

    # 7 what it means
    predictions = model.decode(whole, batch)
    assert predictions.boxes is not None and len(predictions.boxes) == B and predictions.tokens == batch.tokens
    assert predictions.plan is not None and predictions.plan.position.shape == (B, T, 2)

    # 8 what it is worth
    tables = dataset.tables
    truth = detection_truth(tables, batch.tokens)
    records = {
        token: to_records(boxes, sample.global_from_ego.numpy(), token)
        for token, boxes, sample in zip(batch.tokens, predictions.boxes, (sample, dataset[1]), strict=True)
    }
    scores = score_detections(truth, found_columns(records, truth.samples.tokens))
    assert 0 <= scores["mAP"] <= scores["NDS"] <= 1

    # and any subset of the sensors goes the same way
    for name in SENSORS:
        assert model(select_sensors(batch, [name]))["detection"].heatmap.shape == (B, 10, Y, X)
