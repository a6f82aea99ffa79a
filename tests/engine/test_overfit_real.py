"""Real nuScenes bytes learnt by heart: what a model cannot fit, it cannot learn either.

Trained by the code that trains everything, on scene-0061, without augmentation and without dropped sensors. The score
is the devkit's AP, averaged over its four distances and over the classes present: those with at least one box left
after the official filter (within the class's range, at least one LiDAR or radar point, no cycle in a rack).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fusion3d.engine.train
from fusion3d.build import build_model
from fusion3d.config import Config, load_config
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.engine.checkpoint import load_model
from fusion3d.engine.columns import found_columns
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.inference import SubsetOutput, run_split
from fusion3d.engine.seed import seed_all
from fusion3d.metrics.detection import score_detections
from fusion3d.types import SENSORS, Sample
from fusion3d.view.pictures import MIN_SCORE, draw_sample

SPLIT = "real_0061"


class Frames:
    """Some samples of a split, read once."""

    def __init__(self, config: Config, indices: Iterable[int]) -> None:
        dataset = NuScenesDataset(config.data, SPLIT, config.grid, training=True)
        self.tables = dataset.tables
        self.samples = [dataset[index] for index in indices]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.samples[key[1]]


def configure(root: Path, epochs: int, *overrides: str) -> Config:
    """The demo's configuration on the real scene: nothing is dropped, one sweep of each sensor."""
    settings = {
        "data.root": root, "data.version": "v1.0-mini", "data.train_split": SPLIT, "data.split": SPLIT,
        "data.workers": 0, "data.lidar_sweeps": 1, "data.radar_sweeps": 1,
        "train.epochs": epochs, "train.drop_sensor": 0, "train.drop_camera": 0, "train.drop_radar": 0,
        "train.ema": 0.97, "train.checkpoint_every": 10**6,
    }  # fmt: skip
    arguments = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    return load_config(Path(__file__).parents[2] / "configs" / "demo.yaml", [*arguments, *overrides])


def fit(config: Config, frames: Frames, run: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model after training on these samples alone."""
    monkeypatch.setattr(fusion3d.engine.train, "open_split", lambda *_, **__: frames)
    return load_model(fusion3d.engine.train.train(config, run, device="cpu"))[0]


def look(model: Any, frames: Frames) -> tuple[dict[str, float], SubsetOutput]:
    """AP of the classes present, and what the model said."""
    output = run_split(model.eval(), frames, {"all": SENSORS}, 4, 0, torch.device("cpu"))
    said = output.subsets["all"]
    truth = detection_truth(frames.tables, [sample.token for sample in frames.samples])
    scores = score_detections(truth, found_columns(said.records(output.poses), truth.samples.tokens))
    present = [name for name, count in scores["num_truth"].items() if count]
    return {name: scores["AP"][name] for name in present}, said


@pytest.mark.slow
def test_the_first_keyframe_is_learnt_by_heart(real_root, tmp_path, monkeypatch):
    config = configure(real_root, 140)
    frames = Frames(config, range(1))
    sample = frames.samples[0]
    assert len(sample.cameras.channels) == 6 and len(sample.lidar) > 20000 and len(sample.radar) > 50
    ap, said = look(fit(config, frames, tmp_path / "run", monkeypatch), frames)
    print({name: round(value, 3) for name, value in ap.items()})
    assert set(ap) == {"car", "truck", "pedestrian", "traffic_cone", "barrier"}
    assert np.mean(list(ap.values())) >= 0.8, ap

    boxes = said.boxes[sample.token]
    draw_sample(sample, boxes, said.plans[sample.token], tmp_path / "keyframe-1.png", config.grid)
    drawn = boxes[boxes.score >= MIN_SCORE]
    gap = torch.cdist(drawn.center, sample.boxes.center)
    gap[drawn.label[:, None] != sample.boxes.label] = torch.inf
    sits = gap.min(1).values < 0.5
    print(f"{int(sits.sum())} of the {len(drawn)} boxes drawn sit on an object; {tmp_path}")
    assert len(drawn) >= 40 and sits.float().mean() > 0.9
    driven, planned = sample.future.position[sample.future.mask], said.plans[sample.token].position
    assert (planned[sample.future.mask] - driven).norm(dim=-1).max() < 1.0


@pytest.mark.slow
def test_one_camera_and_one_radar_fit_frames_without_lidar(real_root, tmp_path, monkeypatch):
    """Keyframes 2 to 20 have the front camera and the front radar alone. The grid is the part that these see, but the
    score counts all that stands around the vehicle: with this grid the best possible answer has an mAP of 0.53."""
    part = ["--grid.x", "0", "51.2", "--grid.y", "-25.6", "25.6"]
    config = configure(real_root, 60, *part, "--data.image-size", "96", "256", "--train.learning-rate", "3e-3")
    frames = Frames(config, range(1, 20))
    for sample in frames.samples:
        assert sample.lidar is None and sample.cameras.channels == ("CAM_FRONT",) and len(sample.radar) > 20
    seed_all(config.seed)
    before, _ = look(build_model(config), frames)
    after, _ = look(fit(config, frames, tmp_path / "run", monkeypatch), frames)
    print({name: (round(before[name], 3), round(after[name], 3)) for name in after})
    assert np.mean(list(before.values())) < 0.02, before
    assert np.mean(list(after.values())) > 0.3, after
