"""The vehicle's velocity by Doppler shifts, against velocities that are known, and synthetic and real drives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusion3d.build import build_model
from fusion3d.config import DataConfig, RadarConfig, from_dict
from fusion3d.data.augment import bev_matrix, transform_batch
from fusion3d.data.collate import collate
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.data.nuscenes import Tables
from fusion3d.data.radar import load_radars
from fusion3d.data.splits import samples_of
from fusion3d.encoders.odometry import ego_velocity
from fusion3d.encoders.radar import make_radar
from fusion3d.errors import ConfigError
from fusion3d.types import RADAR_FIELDS, BEVGrid, PointCloud

COLUMN = {name: number for number, name in enumerate(RADAR_FIELDS)}
VERSION = "v1.0-synthetic"


def seen(velocity: tuple[float, float], resting: int = 60, moving: int = 20, seed: int = 0) -> Tensor:
    """Returns all around of a world in which most things rest, as radars would measure them, to 0.1 m/s."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-math.pi, math.pi, resting + moving)
    ray = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    own = np.zeros((resting + moving, 2))
    own[resting:] = rng.normal(0, 8, (moving, 2))
    out = np.zeros((resting + moving, len(RADAR_FIELDS)), np.float32)
    out[:, COLUMN["doppler"]] = ((own - velocity) * ray).sum(1) + rng.normal(0, 0.1, resting + moving)
    out[:, COLUMN["ray_x"]], out[:, COLUMN["ray_y"]] = ray.T
    return torch.from_numpy(out)


@settings(max_examples=40, deadline=None)
@given(st.floats(-10, 25), st.floats(-2, 2), st.integers(0, 1000))
def test_what_moves_does_not_count(x, y, seed):
    found, known = ego_velocity(seen((x, y), seed=seed), torch.zeros(80, dtype=torch.int64), 1)
    assert known.all() and found[0].tolist() == pytest.approx([x, y], abs=0.15)


def test_a_batch_is_its_samples_and_nothing_is_said_of_the_others():
    one, other = seen((8.0, 0.3)), seen((2.0, -0.2), seed=1)
    ahead = seen((5.0, 0.0), seed=2)
    ahead[:, COLUMN["ray_x"]], ahead[:, COLUMN["ray_y"]] = 1.0, 0.0  # nothing is said of sideways
    few, old, broken = seen((3.0, 0.0), 5, 0), seen((3.0, 0.0)), seen((3.0, 0.0))
    old[:, COLUMN["time"]], broken[:, COLUMN["doppler"]] = 0.3, torch.nan
    parts = [one, few, other, ahead, old, broken]
    index = torch.repeat_interleave(torch.arange(6), torch.tensor([len(part) for part in parts]))
    found, known = ego_velocity(torch.cat(parts), index, 7)
    assert known.tolist() == [True, False, True, False, False, False, False]
    assert not found[~known].any() and found.isfinite().all()
    for row, part in ((0, one), (2, other)):
        alone, _ = ego_velocity(part, torch.zeros(len(part), dtype=torch.int64), 1)
        torch.testing.assert_close(found[row], alone[0])
    for wrong in (torch.inf, 1e6, -3000.0):  # measurements that failed are left out
        half = one.clone()
        half[::9, COLUMN["doppler"]] = wrong
        again, known = ego_velocity(half, torch.zeros(80, dtype=torch.int64), 1)
        assert known.all() and again[0].tolist() == pytest.approx([8, 0.3], abs=0.15)


def speeds(tables: Tables, split: str) -> np.ndarray:
    """[N, 2] forward speed of a split's samples by their radars, and by the keyframes before and after."""
    rows, found = samples_of(tables, split), []
    for before, row, after in zip(rows, rows[1:], rows[2:], strict=False):
        if tables.scene(before) != tables.scene(after):
            continue
        returns = load_radars(tables, row)
        assert returns is not None
        velocity, known = ego_velocity(returns, torch.zeros(len(returns), dtype=torch.int64), 1)
        driven = tables.global_from_ego(after)[:3, 3] - tables.global_from_ego(before)[:3, 3]
        seconds = (tables.reference_time[after] - tables.reference_time[before]) * 1e-6
        assert known.all(), tables.token(row)
        found.append((float(velocity[0, 0]), float(driven @ tables.global_from_ego(row)[:3, 0] / seconds)))
    return np.array(found)


def test_synthetic_radars_measure_the_drive(synthetic_root):
    by_radar, by_pose = speeds(Tables.open(synthetic_root, VERSION), "train").T
    assert len(by_radar) >= 8 and by_pose.max() > 3
    assert np.median(abs(by_radar - by_pose)) < 0.1


def test_real_radars_measure_the_drive(real_root):
    """Poses say a mean over a second, in which the speed changes: the radars measure a moment."""
    by_radar, by_pose = speeds(Tables.open(real_root, "v1.0-mini"), "real_0061").T
    assert len(by_radar) == 36 and by_pose.max() > 5
    assert np.median(abs(by_radar - by_pose)) < 0.2 and np.quantile(abs(by_radar - by_pose), 0.9) < 0.5


def test_it_goes_with_the_world(synthetic_root):
    config = DataConfig(root=str(synthetic_root), version=VERSION, sensors=("radar",), radar_sweeps=2)
    dataset = NuScenesDataset(config, "train", BEVGrid(), with_map=False)
    batch = collate([dataset[3], dataset[9]])
    assert batch.radar is not None
    plain, known = ego_velocity(batch.radar.points, batch.radar.batch_index, 2)
    assert known.all() and plain[:, 0].max() > 1
    matrix = bev_matrix(0.4, 1.05, flip_y=True)
    moved = transform_batch(batch, matrix).radar
    found, _ = ego_velocity(moved.points, moved.batch_index, 2)
    expected = plain.double() @ torch.from_numpy(matrix[:2, :2]).T
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


def test_the_map_says_when_the_vehicle_would_be_where():
    grid = BEVGrid(x=(-8.0, 24.0), y=(-4.0, 4.0), resolution=1.0)
    branch = make_radar(RadarConfig(channels=8, odometry=True), grid).eval()
    points = torch.cat([seen((4.0, 0.0)), seen((0.0, 0.0), seed=1), seen((4.0, 0.0), 3, 0)])
    index = torch.tensor([0] * 80 + [1] * 80 + [2] * 3)
    maps = branch(PointCloud(points, index, torch.tensor([True, True, True, False])))
    assert maps.shape[1:] == (8, 8, 32)
    told = maps[:, 7]
    # At 4 m/s the cell 10.5 m ahead and half a metre aside is 10.51 m or 2.63 s away, of 4; and 16 m are 4 s.
    assert told[0, 4, 18].item() == pytest.approx(math.hypot(10.5, 0.5) / 16, abs=0.03)
    assert (told[0, :, 26:] == 1).all() and (told[0, 3:5, :8] < 1).all()
    assert (told[1, :, 14:] == 1).all() and told[1].mean().item() > 0.9  # which stands, to the noise of the radars
    assert not told[2:].any()  # too few returns, and no radar at all
    with pytest.raises(ConfigError, match=r"radar\.velocity and radar\.odometry take 4 of 4; expected at least 5"):
        make_radar(RadarConfig(channels=4, odometry=True), grid)
    for clash, message in (
        ({"fusion": {"stage": "early"}}, "radar.odometry is true, and with fusion.stage 'early'"),
        ({"augment": {"bev_shift": 0.5}}, "radar.odometry is true, and augment.bev_shift"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_model(from_dict({"radar": {"odometry": True}, **clash}), pretrained=False)
