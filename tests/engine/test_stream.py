"""A stream of keyframes, each read once, by a model that remembers."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fusion3d.build import build_model
from fusion3d.config import Config, EvaluationConfig, from_dict
from fusion3d.engine.distributed import Processes
from fusion3d.engine.inference import SplitOutput, run_split
from fusion3d.engine.share import Share, join_outputs, stretches
from fusion3d.engine.split import open_split, streams
from fusion3d.engine.views import views_of
from fusion3d.errors import ConfigError

SUBSETS = {"lidar": ("lidar",), "lidar+radar": ("lidar", "radar")}
CPU = torch.device("cpu")


def config_of(root, operator: str, tta: str = "none", stream: bool = True) -> Config:
    return from_dict(
        {
            "data": {
                "root": str(root),
                "version": "v1.0-synthetic",
                "split": "all",
                "lidar_sweeps": 1,
                "sensors": ["lidar", "radar"],
                "workers": 0,
            },
            "grid": {"x": [-51.2, 51.2], "y": [-51.2, 51.2], "resolution": 3.2},
            "camera": None,
            "lidar": {"channels": 8, "pillar": 1.6},
            "radar": {"channels": 8},
            "fusion": {"channels": 8},
            "temporal": {"operator": operator},
            "trunk": {"channels": 8, "blocks": [1], "out_channels": 8},
            "detection": {"channels": 8, "max_boxes": 20, "score_threshold": 0.0},
            "planning": {"channels": 8, "steps": 4},
            "evaluation": {"tta": tta, "stream": stream},
        }
    )


def predict(config: Config, part: tuple[int, int] = (0, 1)) -> SplitOutput:
    torch.manual_seed(0)
    model = build_model(config).eval()
    whole = open_split(config, config.data.split, training=False)
    share = Share(whole, stretches(whole, 3, streams(config)), Processes(*part))
    return run_split(model, share, SUBSETS, 3, 0, CPU, views_of(config), streams(config))


def same(a: SplitOutput, b: SplitOutput, tolerance: float = 0.0) -> bool:
    pairs = [(a.subsets[name].plans, b.subsets[name].plans) for name in SUBSETS]
    assert all(list(x) == list(y) for x, y in pairs), "other samples, or in another order"
    plans = [(x[token].position, y[token].position) for x, y in pairs for token in x]
    boxes = [(a.subsets[n].boxes[t].center, b.subsets[n].boxes[t].center) for n in SUBSETS for t in a.subsets[n].boxes]
    return all(x.shape == y.shape and torch.allclose(x, y, atol=tolerance, rtol=tolerance) for x, y in (*plans, *boxes))


def test_the_last_maps_are_the_same_from_memory_as_from_clips(synthetic_root):
    stream, clips = (predict(config_of(synthetic_root, "concat", stream=on)) for on in (True, False))
    assert same(stream, clips, 1e-4)


def test_a_state_remembers_all_of_the_scene_and_nothing_of_others(synthetic_root):
    config = config_of(synthetic_root, "recurrent")
    assert config.temporal is not None
    whole_scene = dataclasses.replace(
        config, temporal=dataclasses.replace(config.temporal, keyframes=6), evaluation=EvaluationConfig()
    )
    stream = predict(config)
    assert same(stream, predict(whole_scene), 1e-4), "clips of whole scenes"
    assert not same(stream, predict(dataclasses.replace(config, evaluation=EvaluationConfig())), 1e-3), "short clips"


def test_processes_share_scenes_and_each_view_has_its_own_memory(synthetic_root):
    config = config_of(synthetic_root, "recurrent", "flip")
    alone, parts = predict(config), [predict(config, (rank, 2)) for rank in range(2)]
    tokens = open_split(config, "all", training=False).tokens
    assert [len(part.poses) for part in parts] == [12, 6], "whole scenes"
    assert same(alone, join_outputs(parts, tokens)) and list(alone.poses) == tokens


def test_a_stream_needs_a_memory(synthetic_root):
    config = dataclasses.replace(config_of(synthetic_root, "concat"), temporal=None)
    with pytest.raises(ConfigError, match=r"evaluation\.stream is true, and temporal is null"):
        predict(config)
