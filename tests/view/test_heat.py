"""Heat lies where it belongs, on maps and images, and only there."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fusion3d.errors import Fusion3DError
from fusion3d.types import CAMERAS, BEVGrid
from fusion3d.view.birdseye import colour, lay_heat
from fusion3d.view.heat import draw_heat

GRID = BEVGrid(x=(-40.0, 60.0), y=(-20.0, 30.0), resolution=1.0)


def test_a_hot_cell_is_where_it_is_in_ego():
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    heat = np.zeros(GRID.shape)
    heat[int(12.3 + 20), int(47.8 + 40)] = 3.0  # y 12.3, x 47.8
    lay_heat(axes, heat, GRID)
    (image,) = axes.images
    alpha = np.asarray(image.get_array())[..., 3]
    left, right, low, high = image.get_extent()
    row, col = np.argwhere(alpha > 0)[0]
    across = left + (col + 0.5) / alpha.shape[1] * (right - left)  # right of the page is -y, up is x
    up = high - (row + 0.5) / alpha.shape[0] * (high - low)
    assert (alpha > 0).sum() == 1 and (-across, up) == (pytest.approx(12.5), pytest.approx(47.5))


def test_colours_rise_with_heat_and_none_is_clear():
    shades = colour(np.array([0.0, 0.5, 1.0, 2.0]), 2.0)
    assert shades.shape == (4, 4) and (np.diff(shades[:, 3]) > 0).all() and shades[0, 3] == 0
    assert (colour(np.zeros((2, 2)), 0.0)[..., 3] == 0).all()
    assert shades.min() >= 0 and shades.max() <= 1


def test_the_page_has_the_hot_image_and_the_maps(sample, tmp_path):
    grid = BEVGrid()
    bev = {"lidar": np.zeros(grid.shape), "radar": np.zeros(grid.shape)}
    images = {channel: np.zeros((6, 11)) for channel in CAMERAS}
    cold = np.asarray(Image.open(draw_heat(sample, None, None, bev, images, tmp_path / "cold.png", grid, "car")))
    images["CAM_BACK_LEFT"] = np.ones((6, 11))
    bev["lidar"] = np.ones(grid.shape)
    hot = np.asarray(Image.open(draw_heat(sample, None, None, bev, images, tmp_path / "hot.png", grid, "car")))
    rows, cols = np.nonzero((hot != cold).any(-1))
    assert hot.shape == cold.shape and cols.max() < hot.shape[1] / 2  # the camera at the left, and the first map
    gap = np.flatnonzero(np.diff(np.unique(rows)) > 1)
    assert len(gap) >= 1  # the second row of images, then the maps
    assert rows.min() > hot.shape[0] * 0.2


def test_what_cannot_be_drawn_is_said(sample, tmp_path):
    with pytest.raises(Fusion3DError, match=r"ends in \.png"):
        draw_heat(sample, None, None, {"lidar": np.zeros((2, 2))}, {}, tmp_path / "x.jpg", GRID)
    with pytest.raises(Fusion3DError, match="car: there is no map to draw heat over"):
        draw_heat(sample, None, None, {}, {}, tmp_path / "x.png", GRID, "car")
