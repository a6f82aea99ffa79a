"""The matrix that comes with an image says where its pixels went: found again by looking."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fusion3d.config import AugmentConfig
from fusion3d.data.augment import bev_matrix, transform_sample
from fusion3d.data.images import ImageAugmentation, draw_image_augmentation, load_image
from fusion3d.errors import DataError
from fusion3d.geometry import apply
from fusion3d.types import Cameras, Sample


def dots(path: Path, size: tuple[int, int], places: list[tuple[float, float]], radius: float) -> Path:
    """An image of red, green and blue Gaussian dots with their centres at exact (u, v)."""
    v, u = np.mgrid[: size[0], : size[1]]
    image = [255 * np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * radius**2)) for x, y in places]
    Image.fromarray(np.stack(image, axis=-1).round().astype(np.uint8)).save(path, quality=98, subsampling=0)
    return path


def centroids(image: np.ndarray) -> np.ndarray:
    """[3, 2] (u, v) centre of mass of each colour."""
    v, u = np.mgrid[: image.shape[1], : image.shape[2]]
    weight = np.where(image > 0.08, image, 0)
    return np.array([[(w * u).sum(), (w * v).sum()] / w.sum() for w in weight])


def expected_places(matrix: np.ndarray, places: list[tuple[float, float]]) -> np.ndarray:
    return (np.c_[places, np.ones(len(places))] @ matrix.T)[:, :2]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(
    ("old", "new"),
    # The same size; halves and quarters decoded small; odd sizes whose eighth has half a pixel; a taller target.
    [((180, 320), (180, 320)), ((360, 640), (128, 320)), ((900, 1600), (256, 704)), ((900, 1600), (99, 176)),
     ((451, 803), (100, 201)), ((300, 400), (200, 160))],
)  # fmt: skip
def test_pixels_are_where_the_matrix_says(tmp_path: Path, suffix: str, old, new):
    factor = max(new[0] / old[0], new[1] / old[1])
    places = [(old[1] * 0.4, old[0] * 0.6), (old[1] * 0.5, old[0] * 0.75), (old[1] * 0.6, old[0] * 0.85)]
    path = dots(tmp_path / f"dots.{suffix}", old, places, radius=4 / factor)
    image, matrix = load_image(path, new, old)
    assert image.shape == (3, *new) and image.dtype.is_floating_point and 0 <= image.min() and image.max() <= 1
    np.testing.assert_allclose(centroids(image.numpy()), expected_places(matrix, places), atol=0.05)


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(-0.08, 0.2), shift=st.floats(0, 1), flip=st.booleans(), angle=st.floats(-0.15, 0.15))
def test_random_change_moves_pixels_as_its_matrix(tmp_path_factory, scale, shift, flip, angle):
    old, new = (450, 800), (128, 352)
    folder = tmp_path_factory.getbasetemp()
    places = [(330.0, 300.0), (400.25, 340.5), (470.0, 310.0)]
    path = folder / "random.jpg"
    if not path.exists():
        dots(path, old, places, radius=9)
    image, matrix = load_image(path, new, old, ImageAugmentation(scale, shift, flip, angle))
    expected = expected_places(matrix, places)
    inside = ((expected > 12) & (expected < np.array([new[1], new[0]]) - 13)).all(1)
    np.testing.assert_allclose(centroids(image.numpy())[inside], expected[inside], atol=0.15)
    assert np.sign(np.linalg.det(matrix)) == (-1 if flip else 1)


@settings(max_examples=30, deadline=None)
@given(
    image=st.builds(
        ImageAugmentation, scale=st.floats(-0.05, 0.15), shift=st.floats(0, 1), flip=st.booleans(),
        angle=st.floats(-0.1, 0.1),
    ),
    angle=st.floats(-3.2, 3.2), scale=st.floats(0.9, 1.1), flip_x=st.booleans(), flip_y=st.booleans(),
    shift=st.tuples(*[st.floats(-2, 2)] * 3),
)  # fmt: skip
def test_a_marker_in_the_world_is_seen_where_it_projects(tmp_path_factory, image, **world):
    """Three coloured marks at known places in ego, rendered: after every change of the image and of the world the
    matrices still lead from each mark's new place to the pixels that show it."""
    old, new = (450, 800), (128, 352)
    intrinsic = torch.tensor([[633.0, 0, 408, 0], [0, 633.0, 245, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    ego_from_cam = torch.tensor(
        [[0.02, 0.01, 1, 1.7], [-1, 0.01, 0.02, 0.1], [-0.01, -1, 0.01, 1.5], [0, 0, 0, 1]], dtype=torch.float64
    )
    marks = torch.tensor([[14.0, 1.4, 0.2], [22.0, 0.3, -0.6], [9.0, -0.9, 0.6]], dtype=torch.float64)

    def pixels(image_from_cam, ego_from_cam, points) -> np.ndarray:
        seen = apply(image_from_cam.double(), apply(torch.linalg.inv(ego_from_cam.double()), points.double()))
        return (seen[:, :2] / seen[:, 2:]).numpy()

    path = tmp_path_factory.getbasetemp() / "marks.jpg"
    if not path.exists():
        dots(path, old, pixels(intrinsic, ego_from_cam, marks).tolist(), radius=9)
    loaded, new_from_old = load_image(path, new, old, image)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.from_numpy(new_from_old) @ intrinsic[:3, :3]
    cameras = Cameras(
        loaded[None],
        matrix[None].float(),
        ego_from_cam[None].float(),
        torch.zeros(1, dtype=torch.int64),
        ("CAM_FRONT",),
    )
    lidar = torch.cat([marks.float(), torch.zeros(3, 2)], dim=1)
    sample = Sample("t", "s", 0, torch.eye(4, dtype=torch.float64), torch.eye(4), cameras=cameras, lidar=lidar)
    there = transform_sample(sample, bev_matrix(**world))
    expected = pixels(there.cameras.image_from_cam[0], there.cameras.ego_from_cam[0], there.lidar[:, :3])
    inside = ((expected > 12) & (expected < np.array([new[1], new[0]]) - 13)).all(1)
    np.testing.assert_allclose(centroids(there.cameras.images[0].numpy())[inside], expected[inside], atol=0.2)


def test_the_bottom_is_kept_and_a_margin_is_black(tmp_path: Path):
    path = tmp_path / "white.png"
    Image.new("RGB", (160, 90), "white").save(path)
    _, matrix = load_image(path, (40, 160), (90, 160))
    np.testing.assert_allclose(matrix, [[1, 0, 0], [0, 1, -50], [0, 0, 1]], atol=1e-9)
    small, matrix = load_image(path, (90, 160), (90, 160), ImageAugmentation(scale=-0.5))
    assert small[:, 45:, 40:120].min() == 1 and small[:, :45].max() == 0 and small[:, :, :40].max() == 0
    np.testing.assert_allclose(matrix @ [159.5, 89.5, 1], [119.5, 89.5, 1])  # the lower right corner


def test_full_size_image_is_untouched(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    image, matrix = load_image(tmp_path / "noise.png", (37, 53))
    np.testing.assert_array_equal((image.numpy() * 255).round(), pixels.transpose(2, 0, 1))
    np.testing.assert_allclose(matrix, np.eye(3), atol=1e-12)


def test_drawn_changes_stay_in_their_limits():
    config = AugmentConfig(image_scale=(-0.1, 0.2), image_rotation=10.0)
    drawn = [draw_image_augmentation(config, np.random.default_rng(seed)) for seed in range(300)]
    assert all(-0.1 <= d.scale <= 0.2 and abs(d.angle) <= math.radians(10) and 0 <= d.shift <= 1 for d in drawn)
    assert 100 < sum(d.flip for d in drawn) < 200 and max(d.scale for d in drawn) > 0.18
    none = AugmentConfig(image_scale=(0, 0), image_rotation=0, image_flip=False)
    assert draw_image_augmentation(none, np.random.default_rng(0)) == ImageAugmentation()


def test_broken_images_are_named(tmp_path: Path):
    good = dots(tmp_path / "good.jpg", (90, 160), [(40, 40)] * 3, 8)
    truncated = tmp_path / "truncated.jpg"
    truncated.write_bytes(good.read_bytes()[:700])
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    for path in (truncated, text, tmp_path / "missing.jpg"):
        with pytest.raises(DataError, match=path.name):
            load_image(path, (45, 80), (90, 160))
    with pytest.raises(DataError, match="160 x 90 px, its table says 1600 x 900"):
        load_image(good, (45, 80), (900, 1600))


def test_grey_image_becomes_rgb(tmp_path: Path):
    Image.new("L", (160, 90), 51).save(tmp_path / "grey.jpg")
    image, _ = load_image(tmp_path / "grey.jpg", (45, 80))
    assert image.shape == (3, 45, 80) and abs(float(image.mean()) - 0.2) < 0.01
