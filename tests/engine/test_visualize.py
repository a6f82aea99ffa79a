"""Looking at the synthetic set: with and without a checkpoint, by index, token and scene, and what goes wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusion3d.build import build_model
from fusion3d.config import Config, EvaluationConfig, TemporalConfig, from_dict
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.engine import visualize as visualize_module
from fusion3d.engine.checkpoint import Position, save_checkpoint
from fusion3d.engine.inference import run_split
from fusion3d.engine.split import open_split
from fusion3d.engine.views import views_of
from fusion3d.engine.visualize import IMAGE_SIZE, choose, look, main, open_clips, restrict, visualize
from fusion3d.errors import ConfigError, DataError, Fusion3DError
from fusion3d.geometry import apply
from fusion3d.types import CAMERAS, RADARS
from fusion3d.view import pictures


@pytest.fixture(scope="module")
def config(synthetic_root) -> Config:
    small = {
        "data": {
            "root": str(synthetic_root), "version": "v1.0-synthetic", "split": "val", "image_size": [64, 128],
            "lidar_sweeps": 2, "radar_sweeps": 2, "workers": 0,
        },
        "grid": {"x": [-51.2, 51.2], "y": [-51.2, 51.2], "resolution": 3.2},
        "camera": {
            "backbone": {"name": "resnet18", "width": 8},
            "fpn_channels": 16,
            "channels": 8,
            "depth": [1.0, 51.0, 5.0],
        },
        "lidar": {"channels": 16, "pillar": 1.6},
        "radar": {"channels": 8},
        "fusion": {"channels": 16},
        "trunk": {"channels": 16, "blocks": [1, 1, 1], "out_channels": 16},
        "detection": {"channels": 16, "max_boxes": 50, "score_threshold": 0.01},
        "planning": {"channels": 32, "steps": 6},
    }  # fmt: skip
    return from_dict(small)


@pytest.fixture(scope="module")
def checkpoint(config, tmp_path_factory) -> Path:
    """An untrained model: what it says is noise, but it says it everywhere."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run") / "checkpoints" / "step-00000001"
    save_checkpoint(folder, config, build_model(config).state_dict(), Position(1))
    return folder


@pytest.fixture(scope="module")
def dataset(config) -> NuScenesDataset:
    return NuScenesDataset(config.data, "val", config.grid)


def arguments(config: Config) -> list[str]:
    data = config.data
    return ["--data.root", data.root, "--data.version", data.version, "--data.split", data.split]


@pytest.fixture
def drawn(monkeypatch) -> list:
    """What is drawn instead of being drawn: drawing takes long, and is tested elsewhere."""
    samples = []

    def draw(sample, boxes, plan, path, **options):
        samples.append((sample.token, boxes is not None))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        return path

    monkeypatch.setattr(pictures, "draw_sample", draw)
    return samples


def test_the_ground_truth_of_a_whole_scene(config, dataset, tmp_path, capsys, drawn):
    name = dataset.tables.scene(int(dataset.rows[0]))
    assert main([*arguments(config), "--scene", name, "--out", str(tmp_path / "out")]) == 0
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == [f"{name}-{i:04d}.png" for i in range(6)]
    assert capsys.readouterr().out.count("written: ") == 6 and drawn == [(t, False) for t in dataset.tokens]


def test_pictures_are_in_the_order_that_is_asked_for(config, checkpoint, dataset, tmp_path, drawn):
    assert [p.name for p in visualize(config, [1, 0], tmp_path / "two", checkpoint)] == [
        f"{dataset[i].scene}-{i:04d}.png" for i in (1, 0)
    ]
    assert drawn == [(dataset.tokens[i], True) for i in (1, 0)]


def test_what_a_checkpoint_says_is_what_evaluation_scores(config, checkpoint, dataset):
    """The boxes and plan that are drawn equal those of the split's run, and the images are the large ones."""
    from fusion3d.engine.checkpoint import load_model

    model, _ = load_model(checkpoint)
    everything = {"camera+lidar+radar": ("camera", "lidar", "radar")}
    of_split = run_split(model, dataset, everything, 1, 0, torch.device("cpu")).subsets["camera+lidar+radar"]
    ((sample, boxes, plan, *_),) = look(dataset, [2], checkpoint, device="cpu")
    assert sample.token == dataset.tokens[2]
    assert sample.cameras is not None and sample.cameras.images.shape[-2:] == IMAGE_SIZE
    assert boxes is not None and len(boxes) == len(of_split.boxes[sample.token]) > 0
    torch.testing.assert_close(boxes.center, of_split.boxes[sample.token].center, atol=1e-4, rtol=1e-4)
    assert plan is not None and plan.position.shape == (6, 2)
    torch.testing.assert_close(plan.position, of_split.plans[sample.token].position, atol=1e-4, rtol=1e-4)


def test_a_model_that_remembers_is_looked_at_with_its_past_and_its_views(config, tmp_path):
    lidar = {"data": dataclasses.replace(config.data, sensors=("lidar",)), "camera": None, "radar": None}
    config = dataclasses.replace(
        config, **lidar, temporal=TemporalConfig(keyframes=3), evaluation=EvaluationConfig("flip")
    )
    torch.manual_seed(0)
    folder, model = tmp_path / "checkpoints" / "step-00000001", build_model(config).eval()
    save_checkpoint(folder, config, model.state_dict(), Position(1))
    split = open_split(config, "val", training=False)
    said = run_split(model, split, {"lidar": ("lidar",)}, 1, 0, torch.device("cpu"), views_of(config))
    ((sample, boxes, plan, *_),) = look(open_clips(config), [2], folder, device="cpu")
    expected = said.subsets["lidar"]
    assert boxes is not None and plan is not None and len(boxes) == len(expected.boxes[sample.token]) > 0
    torch.testing.assert_close(boxes.center, expected.boxes[sample.token].center, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(plan.position, expected.plans[sample.token].position, atol=1e-4, rtol=1e-4)


def test_the_command_draws_a_checkpoint(config, checkpoint, dataset, tmp_path):
    path, alone = tmp_path / "model.png", tmp_path / "truth.png"
    chosen = [*arguments(config), "--token", dataset.tokens[1]]
    assert main([*chosen, "--checkpoint", str(checkpoint), "--min-score", "0.0", "--save", str(path)]) == 0
    assert main([*chosen, "--save", str(alone)]) == 0
    with Image.open(path) as one, Image.open(alone) as other:
        assert one.height == other.height and np.asarray(one).std() > 5
    assert path.read_bytes() != alone.read_bytes()


def test_boxes_sit_on_what_the_cameras_see(dataset):
    """The large images' intrinsics are those of the network's: a pixel is the same share of the uncropped image."""
    ((large, *_),) = look(dataset, [0])
    full = NuScenesDataset(dataclasses.replace(dataset.config, image_size=(900, 1600)), "val", dataset.grid)[0]
    assert large.cameras is not None and full.cameras is not None
    point = torch.tensor([[0.7, 0.3, 12.0]])  # in a camera
    for ours, theirs in zip(large.cameras.image_from_cam, full.cameras.image_from_cam, strict=True):
        one, other = apply(ours, point)[0], apply(theirs, point)[0]
        # Half the size; a pixel's centre is a whole number, so the edge of the image is at -0.5.
        torch.testing.assert_close(one[:2] / one[2] + 0.5, (other[:2] / other[2] + 0.5) / 2, atol=1e-2, rtol=0)


def test_fewer_sensors(config):
    data = restrict(config.data, ["CAM_FRONT", "radar"])
    assert (data.sensors, data.cameras, data.radars) == (("camera", "radar"), ("CAM_FRONT",), RADARS)
    data = restrict(config.data, ["RADAR_FRONT", "lidar"])
    assert (data.sensors, data.radars) == (("lidar", "radar"), ("RADAR_FRONT",))
    assert restrict(config.data, None) is config.data and restrict(config.data, ["camera"]).cameras == CAMERAS
    with pytest.raises(ConfigError, match=r"unknown 'sonar'.*RADAR_FRONT"):
        restrict(config.data, ["sonar", "lidar"])
    dataset = NuScenesDataset(restrict(config.data, ["CAM_BACK"]), "val", config.grid)
    ((sample, boxes, *_),) = look(dataset, [0])
    assert sample.cameras is not None and sample.cameras.channels == ("CAM_BACK",)
    assert sample.lidar is None and sample.radar is None and boxes is None


def test_what_is_not_there_is_named(config, dataset, tmp_path):
    assert choose(dataset) == [0] and choose(dataset, index=-1) == [5]
    assert choose(dataset, token=dataset.tokens[3]) == [3]
    with pytest.raises(DataError, match=r"no sample 6 .*it has 6"):
        choose(dataset, index=6)
    with pytest.raises(DataError, match="nowhere"):
        choose(dataset, token="nowhere")
    with pytest.raises(DataError, match=r"nowhere.*it has scene-"):
        choose(dataset, scene_name="nowhere")
    other = NuScenesDataset(config.data, "train", config.grid).tokens[0]
    with pytest.raises(DataError, match=r"not in split 'val'.*--data\.split"):
        choose(dataset, token=other)
    scene = dataset[0].scene
    with pytest.raises(Fusion3DError, match="use --out"):
        main([*arguments(config), "--scene", scene, "--save", str(tmp_path / "a.png")])


def test_a_scenes_name_cannot_lead_out_of_the_folder(dataset):
    sample = dataclasses.replace(dataset[0], scene="../../a b/.c:é")
    assert visualize_module._file_name(sample, 7, "scene") == "_a_b_c_-0007-3d.png"
    assert visualize_module._file_name(dataset[0], 7, "pictures") == f"{dataset[0].scene}-0007.png"


def test_a_window_without_display_says_how_to_save(config, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(Fusion3DError, match="--save"):
        main([*arguments(config), "--view", "scene"])


def test_the_real_scene_is_drawn(real_root, tmp_path):
    """The first keyframe has six cameras and LiDAR; the eleventh one camera and one radar."""
    for index in (0, 10):
        path = tmp_path / f"{index}.png"
        found = ["--data.root", str(real_root), "--data.version", "v1.0-mini", "--data.split", "real_0061"]
        assert main([*found, "--index", str(index), "--save", str(path)]) == 0
        with Image.open(path) as image:
            assert image.width > 2000
