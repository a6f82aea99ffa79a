"""The 3-D scene: its arrays by hand, its rendering by the pixels."""

import dataclasses
import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fusion3d.errors import Fusion3DError
from fusion3d.types import RADAR_FIELDS, BEVGrid, Boxes, Forecast, Sample, Trajectory
from fusion3d.view import colors, scene


def bare(**there) -> Sample:
    known = {"token": "t", "scene": "s", "timestamp": 0, "global_from_ego": torch.eye(4).double()}
    return Sample(**known, aug_from_ego=torch.eye(4), **there)


def added(built: scene.Scene, kind: str, color: str) -> np.ndarray:
    """What a scene has of one colour."""
    shade = np.float32(colors.rgb(color))
    return getattr(built, kind)[(getattr(built, f"{kind[:-1]}_colors") == shade).all(-1)]


def test_a_box_is_twelve_edges_with_heading_and_velocity():
    box = Boxes.of(torch.tensor([[10.0, 0, 1]]), torch.tensor([[4.0, 2, 2]]), torch.zeros(1), torch.tensor([[3.0, 0]]))
    edges = added(scene.build_scene(bare(boxes=box)), "segments", colors.CLASS_COLORS["car"])
    assert len(edges) == 12 + 1 + 3  # edges, heading, arrow
    lengths = np.linalg.norm(edges[:12, 0] - edges[:12, 1], axis=-1)
    assert sorted(lengths.round(5)) == [2.0] * 8 + [4.0] * 4
    np.testing.assert_allclose(edges[12], [[10, 0, 0], [12, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(edges[13], [[10, 0, 0], [13, 0, 0]], atol=1e-6)  # one second of motion


def test_with_predictions_the_truth_is_white_and_weak_boxes_are_left_out():
    box = Boxes.of(torch.tensor([[10.0, 0, 1]] * 2), torch.tensor([[4.0, 2, 2]] * 2), torch.zeros(2))
    weak = Boxes.of(box.center, box.size, box.yaw, score=torch.tensor([1.0, 0.1]))
    built = scene.build_scene(bare(boxes=box), weak)
    assert len(added(built, "segments", colors.CLASS_COLORS["car"])) == 13
    assert len(added(built, "segments", colors.TRUTH)) == 2 * 13 + 12  # and the ego


def test_the_ways_of_a_box_are_lines_on_the_ground():
    box = Boxes.of(
        torch.tensor([[10.0, 0, 1]] * 2),
        torch.tensor([[4.0, 2, 2]] * 2),
        torch.zeros(2),
        score=torch.tensor([1.0, 0.1]),
    )
    path = torch.tensor([[13.0, 0], [14, 1]]).expand(2, 1, 2, 2)
    motion = Forecast(path, torch.zeros(2, 1, 2), torch.ones(2, 1))
    without, built = (scene.build_scene(bare(), box, motion=of) for of in (None, motion))
    lines = [line for line in built.segments.tolist() if line not in without.segments.tolist()]
    np.testing.assert_allclose(lines, [[[10, 0, 0], [13, 0, 0]], [[13, 0, 0], [14, 1, 0]]], atol=1e-6)


def test_radar_arrows_point_where_the_return_moves():
    radar = torch.zeros(3, len(RADAR_FIELDS))
    radar[:, :3] = torch.tensor([[20.0, 5.0, 0.5]])
    radar[0, RADAR_FIELDS.index("vx")], radar[0, RADAR_FIELDS.index("vy")] = -6.0, 2.0
    radar[1, RADAR_FIELDS.index("vx")] = torch.nan
    radar[2, RADAR_FIELDS.index("time")] = 0.2  # an old sweep
    built = scene.build_scene(bare(radar=radar))
    arrows = added(built, "segments", colors.RADAR)
    assert len(arrows) == 3
    np.testing.assert_allclose(arrows[0], [[20, 5, 0.5], [14, 7, 0.5]], atol=1e-5)
    assert len(added(built, "triangles", colors.RADAR)) == 2 * 12


def test_a_path_is_a_band_of_its_width():
    straight = torch.stack([torch.arange(1, 7) * 2.0, torch.zeros(6)], -1)
    plan = Trajectory(straight, torch.zeros(6), torch.tensor([True] * 4 + [False] * 2))
    band = added(scene.build_scene(bare(), plan=plan), "triangles", colors.PLAN)
    assert len(band) == 2 * 4
    a, b = band[:, 1] - band[:, 0], band[:, 2] - band[:, 0]
    area = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / 2
    assert area == pytest.approx(8.0 * 0.6, rel=1e-5)  # masked positions are not drawn


def test_the_occupancy_is_tiles_on_the_ground_and_a_line_around_the_drivable_area(occupancy):
    grid = BEVGrid(x=(-8.0, 8.0), y=(-8.0, 8.0), resolution=2.0)
    there, road = torch.zeros(2, *grid.shape)
    there[5, 1] = 1.0  # y 2 to 4, x -6 to -4
    road[:, :6] = 0.9  # x up to 4
    said = occupancy(grid, there, road)
    plain, warm = scene.build_scene(bare()), scene.build_scene(bare(), occupancy=said, grid=grid)
    assert len(warm.triangles) == len(plain.triangles) + 2
    tile = warm.triangles[:2].reshape(-1, 3)
    np.testing.assert_allclose(tile.min(axis=0), [-6, 2, 0.01], atol=1e-6)
    np.testing.assert_allclose(tile.max(axis=0), [-4, 4, 0.01], atol=1e-6)
    edge = added(warm, "segments", colors.DRIVABLE_EDGE).reshape(-1, 3)
    assert len(edge) == 2 * 8 and (edge[:, 0] == 4).all() and (edge[:, 1].min(), edge[:, 1].max()) == (-8, 8)


def test_the_paths_to_choose_from_are_lines_on_the_ground(modes):
    plain, built = scene.build_scene(bare()), scene.build_scene(bare(), modes=modes)
    lines = built.segments[len(plain.segments) :]
    assert len(lines) == 3 * 6 and (lines[..., 2] == np.float32(0.05)).all()
    cheapest = added(built, "segments", colors.PLAN)
    np.testing.assert_allclose(cheapest[:, 1, :2], modes.path.position[1], atol=1e-6)


def test_frusta_pass_through_the_image_corners(front_camera):
    built = scene.build_scene(bare(cameras=front_camera))
    lines = added(built, "segments", colors.MUTED)
    assert len(lines) == 8
    apex = front_camera.ego_from_cam[0, :3, 3].numpy()
    np.testing.assert_allclose(lines[:4, 0], np.tile(apex, (4, 1)), atol=1e-5)
    corners = torch.tensor(lines[:4, 1])
    in_camera = (torch.linalg.inv(front_camera.ego_from_cam[0]) @ torch.nn.functional.pad(corners, (0, 1), value=1).T).T
    pixels = (front_camera.image_from_cam[0] @ in_camera.T).T
    expected = [[0, 0], [351, 0], [351, 197], [0, 197]]
    np.testing.assert_allclose((pixels[:, :2] / pixels[:, 2:3]).numpy(), expected, atol=1e-2)


def test_no_display_says_how_to_save(sample, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(Fusion3DError, match="--save"):
        scene.show(scene.build_scene(sample))


def run_instead(monkeypatch, code: str) -> None:
    """Let ``save`` start a Python that does something else."""
    real = subprocess.run
    monkeypatch.setattr(
        scene.subprocess, "run", lambda command, **options: real([sys.executable, "-c", code], **options)
    )


def test_a_crash_of_the_renderer_is_an_error_with_its_remedy(sample, tmp_path, monkeypatch):
    run_instead(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(Fusion3DError, match=r"status -11.*apt-get install -y libusb"):
        scene.save(scene.build_scene(sample), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(sample, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scene.np, "savez", full)
    with pytest.raises(Fusion3DError, match=r"cannot write .*scene\.npz: No space left on device; check free space"):
        scene.save(scene.build_scene(sample), tmp_path / "a.png")


def test_the_car_stands_around_its_rear_axle(sample):
    corners = scene.build_scene(dataclasses.replace(sample, lidar=None, radar=None)).triangles[:12].reshape(-1, 3)
    low, high = [1.39 - 4.084 / 2, -1.73 / 2, 0], [1.39 + 4.084 / 2, 1.73 / 2, 1.562]
    np.testing.assert_allclose([corners.min(0), corners.max(0)], [low, high], atol=1e-5)


def test_a_renderer_without_open3d_or_end_is_an_error(sample, tmp_path, monkeypatch):
    built = scene.build_scene(sample)
    monkeypatch.setattr(scene.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Fusion3DError, match="pip install open3d"):
        scene._import_open3d()
    run_instead(monkeypatch, "import time; time.sleep(60)")
    with pytest.raises(Fusion3DError, match=r"did not finish in 0\.3 s"):
        scene.save(built, tmp_path / "a.png", timeout=0.3)
    with pytest.raises(Fusion3DError, match=r"a\.gif"):
        scene.save(built, tmp_path / "a.gif")


@pytest.fixture(scope="module")
def open3d() -> None:
    """Skips where Open3D cannot be loaded; asked of another process, because loading it may end the process."""
    done = subprocess.run([sys.executable, "-c", "import open3d"], capture_output=True, text=True, env=os.environ)
    if done.returncode != 0:
        pytest.skip(f"Open3D cannot be loaded: {(done.stderr.strip().splitlines() or ['it crashed'])[-1]}")


def test_what_is_rendered_is_the_scene(open3d, sample, predicted, tmp_path):
    path = scene.save(scene.build_scene(sample, *predicted), tmp_path / "scene.png", size=(800, 500))
    with Image.open(path) as opened:
        assert opened.size == (800, 500)
        image = np.asarray(opened.convert("RGB")) / 255
    for color, least in ((colors.BACKGROUND, 100_000), (colors.PLAN, 100), (colors.RADAR, 50), (colors.TRUTH, 200)):
        assert (np.abs(image - np.array(colors.rgb(color))) < 0.05).all(-1).sum() > least
    yellow = np.nonzero((np.abs(image - np.array(colors.rgb(colors.PLAN))) < 0.05).all(-1))
    assert yellow[0].max() < 330 and 250 < yellow[1].mean() < 450  # the plan leads away from the ego, ahead
