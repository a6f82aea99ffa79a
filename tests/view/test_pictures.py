"""Pictures of samples, whatever is absent: read back and checked by their pixels."""

import dataclasses
import time

import numpy as np
import pytest
import torch
from PIL import Image

from fusion3d.errors import Fusion3DError
from fusion3d.types import BEVGrid, Boxes, Forecast
from fusion3d.view import colors
from fusion3d.view.birdseye import box_alpha, likely_paths, rasterise, to_page
from fusion3d.view.pictures import compose, draw_sample, sensors_line

GRID = BEVGrid()


def near(image: np.ndarray, color: str, tolerance: float = 0.06) -> np.ndarray:
    """[H, W] bool: pixels of about this colour."""
    return (np.abs(image[..., :3] - np.array(colors.rgb(color))) < tolerance).all(-1)


def rendered(sample, predictions=None, plan=None, **more) -> tuple[np.ndarray, dict]:
    """The page as an image, and the pixel frame of every axes: (left, top, right, bottom), in drawing order."""
    figure = compose(sample, predictions, plan, GRID, **more).figure
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba()) / 255
    height = image.shape[0]
    frames = [axes.get_window_extent() for axes in figure.axes]
    return image, [(round(f.x0), round(height - f.y1), round(f.x1), round(height - f.y0)) for f in frames]


def crop(image: np.ndarray, frame: tuple[int, int, int, int]) -> np.ndarray:
    left, top, right, bottom = frame
    return image[top:bottom, left:right]


def test_a_picture_is_a_whole_png_and_quick(sample, predicted, tmp_path):
    draw_sample(sample, *predicted, tmp_path / "warm.png")
    start = time.perf_counter()
    path = draw_sample(sample, *predicted, tmp_path / "new" / "one.png", caption="camera + LiDAR + radar")
    assert time.perf_counter() - start < 3 * 3  # 3 s on an idle core; the machine may be busy
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 2000 and image.height > 800
    assert [p.name for p in path.parent.iterdir()] == ["one.png"]  # no temporary file stays


@pytest.mark.parametrize(
    ("channels", "sensors", "truth"),
    [
        (None, True, True),
        (None, False, False),
        (("CAM_FRONT",), True, False),
        (("CAM_BACK", "CAM_FRONT_LEFT"), True, False),
        (("CAM_BACK", "CAM_FRONT_LEFT"), False, True),
    ],
)
def test_anything_may_be_absent(sample_with, tmp_path, channels, sensors, truth):
    path = draw_sample(sample_with(channels, sensors, truth), None, None, tmp_path / "a.png")
    assert path.stat().st_size > 20_000


def test_a_sensor_that_saw_nothing_and_no_prediction_are_drawn(sample, tmp_path):
    empty = dataclasses.replace(
        sample, lidar=sample.lidar[:0], radar=sample.radar[:0], boxes=Boxes.empty(), map_mask=None, past=None
    )
    assert draw_sample(empty, Boxes.empty(), None, tmp_path / "a.png").is_file()
    assert "LiDAR 0 points" in sensors_line(empty) and "no LiDAR" not in sensors_line(empty)


def test_cameras_stand_where_they_look(sample_with):
    """Each camera's tile holds its own image, alone or among others: give each a colour of its own and look for it."""
    order = ["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"]
    shades = dict(zip(order, ("#00ff00", "#ff0000", "#0000ff", "#00ffff", "#ff00ff", "#ffff00"), strict=True))
    for channels in (tuple(reversed(order)), ("CAM_BACK_LEFT",)):
        sample = sample_with(channels, sensors=False, truth=False)
        rgb = torch.tensor([colors.rgb(shades[channel]) for channel in channels]).float()
        images = rgb[:, :, None, None].expand(-1, -1, 198, 352)
        sample = dataclasses.replace(sample, cameras=dataclasses.replace(sample.cameras, images=images))
        image, frames = rendered(sample)
        for k, tile in enumerate(frames[1:7]):
            shares = [near(crop(image, tile), shade).mean() for shade in shades.values()]
            assert (shares[k] > 0.9) == (order[k] in channels) and sum(shares) - shares[k] == 0


def test_truth_and_prediction_look_different(sample, predicted):
    """In the front camera: class colour for the truth alone; white beside the class colour with a prediction."""
    alone = dataclasses.replace(sample, boxes=sample.boxes[torch.tensor([0])])  # the car ahead
    boxes = predicted[0][torch.tensor([0])]
    boxes = dataclasses.replace(boxes, center=boxes.center + torch.tensor([0.0, -3.0, 0.0]))
    car = colors.CLASS_COLORS["car"]

    def counts(predictions: Boxes | None) -> tuple[int, int]:
        image, frames = rendered(alone, predictions)
        front = crop(image, frames[2])
        return int(near(front, car, 0.12).sum()), int(near(front, colors.TRUTH, 0.15)[40:].sum())

    (blue_alone, white_alone), (blue, white) = counts(None), counts(boxes)
    assert blue_alone > 100 and white_alone < 20
    assert blue > 100 and white > 100


def test_predictions_below_the_score_are_left_out(sample, predicted, tmp_path):
    """With a threshold above every score, the picture is that of no box."""
    boxes, plan = predicted
    high = draw_sample(sample, boxes, plan, tmp_path / "high.png", min_score=0.99)
    none = draw_sample(sample, Boxes.empty(), plan, tmp_path / "none.png", min_score=0.99)
    low = draw_sample(sample, boxes, plan, tmp_path / "low.png", min_score=0.5)
    assert high.read_bytes() == none.read_bytes() != low.read_bytes()


def test_likely_ways_are_drawn_from_the_box_and_as_faint_as_they_are_unlikely(sample):
    boxes = Boxes.of(torch.tensor([[20.0, 0, 1], [-20, 0, 1]]), torch.ones(2, 3), torch.zeros(2))
    step = torch.arange(1, 7)[:, None] * torch.tensor([0.0, 2.0])
    ways = torch.stack([step, -step, 0.01 * step, step + 1])
    motion = Forecast(
        boxes.center[:, None, None, :2] + ways, torch.zeros(2, 4, 6), torch.tensor([[0.6, 0.3, 0.08, 0.02]] * 2)
    )
    path, row, alpha = likely_paths(boxes, motion)
    assert row.tolist() == [0, 0, 1, 1] and path.shape == (4, 7, 2)  # one hardly moves, one is unlikely
    torch.testing.assert_close(path[:, 0], boxes.center[row, :2])
    np.testing.assert_allclose(alpha, [0.2 + 0.8 * 0.6, 0.2 + 0.8 * 0.3] * 2)
    bare = dataclasses.replace(
        sample, lidar=None, radar=None, boxes=None, map_mask=None, cameras=None, past=None, future=None
    )
    images = []
    for shown in (motion, None):
        figure = compose(bare, boxes, None, GRID, motion=shown).figure
        figure.canvas.draw()
        images.append(np.asarray(figure.canvas.buffer_rgba()).astype(int))
        above = next(axes for axes in figure.axes if set(axes.get_xlim()) == {-54.0, 54.0})
        corners = above.transData.transform(to_page(torch.tensor([[20.0, 6.0], [-20.0, -6.0]])))
    changed = (images[0] != images[1]).any(-1)
    for x, y in corners:
        at = round(images[0].shape[0] - y), round(x)
        assert changed[at[0] - 2 : at[0] + 3, at[1] - 2 : at[1] + 3].any(), "a way passes here"


def test_opacity_says_score_and_whether_truth_was_seen():
    boxes = Boxes.of(torch.zeros(3, 3), torch.ones(3, 3), torch.zeros(3), score=torch.tensor([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(box_alpha(boxes, truth=False), [0.25, 0.625, 1.0])
    seen = dataclasses.replace(boxes, num_points=torch.tensor([[0, 0], [0, 1], [-1, -1]]))
    np.testing.assert_allclose(box_alpha(seen, truth=True), [0.35, 1.0, 1.0])


def test_above_is_forward_up_and_left_left(sample):
    """Points and drivable cells at known places of ego land on the pixels that the axes give them."""
    height = 540  # 0.2 m a pixel
    mask = torch.zeros(6, *GRID.shape, dtype=torch.bool)
    mask[0, 150, 30] = True  # the cell at y = 36.0 .. 36.6, x = -36.0 .. -35.4
    mask[:, 10, 10] = True  # of every class: the last one is drawn
    points = torch.tensor([[40.1, 20.1, 5.0, 0, 0], [40.1, 20.1, 0.0, 0, 0.5]])  # high in the key, low in a sweep
    image = rasterise(dataclasses.replace(sample, lidar=points, map_mask=mask), GRID, height)
    assert image.shape == (540, 540, 3)
    row, col = int((54 - 40.1) / 0.2), int((54 - 20.1) / 0.2)
    np.testing.assert_allclose(image[row, col], colors.height_rgb(np.array([5.0]))[0])  # the keyframe lies on top
    rows, cols = np.nonzero(near(image, colors.DRIVABLE, 0.01))
    assert (rows.min(), rows.max()) == (447, 449)  # 54 + 35.4 m and 54 + 36 m down the page
    assert (cols.min(), cols.max()) == (87, 89)  # 54 - 36.6 m and 54 - 36 m from the left
    divider = near(image, colors.MAP_COLORS["divider"], 0.01)
    assert divider.sum() == 9 and not (divider & near(image, colors.DRIVABLE, 0.01)).any()
    np.testing.assert_allclose(to_page(torch.tensor([[3.0, 2.0]])), [[-2.0, 3.0]])


def test_the_plan_is_drawn_along_its_positions(sample, predicted):
    bare = dataclasses.replace(sample, lidar=None, radar=None, boxes=None, future=None, past=None)
    _, plan = predicted
    image, frames = rendered(bare, None, plan)
    above = crop(image, frames[7])
    per_metre = above.shape[0] / 108
    yellow = near(above, colors.PLAN, 0.15)
    for x, y in plan.position.tolist():
        row, col = int((54 - x) * per_metre), int((54 - y) * per_metre)
        assert yellow[row - 6 : row + 7, col - 6 : col + 7].sum() > 10
    assert yellow[: int(20 * per_metre)].sum() == 0  # nothing beyond the last position


def test_the_occupancy_lies_where_others_are_expected(sample, occupancy):
    """Warm at its cell, to the left and behind; beside it, and where nobody is, nothing changes."""
    bare = dataclasses.replace(sample, lidar=None, radar=None, boxes=None, future=None, past=None, map_mask=None)
    heat = torch.zeros(GRID.shape)
    y, x = 20.0, -30.0
    iy, ix = round((y - GRID.y[0]) / GRID.resolution), round((x - GRID.x[0]) / GRID.resolution)
    heat[iy - 3 : iy + 3, ix - 3 : ix + 3] = 1.0
    nobody, somebody = (occupancy(GRID, there, torch.ones(GRID.shape)) for there in (0 * heat, heat))
    (plain, frames), (cold, _), (warm, _) = (rendered(bare, occupancy=of) for of in (None, nobody, somebody))
    assert (crop(plain, frames[7]) == crop(cold, frames[7])).all(), "the drivable area has no edge"
    changed = (np.abs(crop(warm, frames[7]) - crop(cold, frames[7])) > 0.2).any(-1)
    rows, cols = np.nonzero(changed)
    per_metre = changed.shape[0] / 108
    assert abs(rows.mean() - (54 - x) * per_metre) < 3 and abs(cols.mean() - (54 - y) * per_metre) < 3
    assert np.ptp(rows) < 5 * per_metre and np.ptp(cols) < 5 * per_metre
    assert (warm != plain).any(-1).sum() > changed.sum() + 100, "the legend says what it is"


def test_the_edge_of_the_drivable_area_is_drawn_where_it_is_predicted(sample, occupancy):
    bare = dataclasses.replace(sample, lidar=None, radar=None, boxes=None, future=None, past=None, map_mask=None)
    x, y = GRID.centers().unbind(-1)
    road = torch.where((x > 12) & (x < 24) & (y > -30) & (y < -6), 0.9, 0.2)
    of_each = (occupancy(GRID, torch.zeros(GRID.shape), there) for there in (road, 0 * road))
    (image, frames), (without, _) = (rendered(bare, occupancy=of) for of in of_each)
    above, before = crop(image, frames[7]), crop(without, frames[7])
    rows, cols = np.nonzero(near(above, colors.DRIVABLE_EDGE, 0.1) & (above != before).any(-1))
    per_metre = above.shape[0] / 108
    np.testing.assert_allclose([rows.min(), rows.max()], [(54 - 24) * per_metre, (54 - 12) * per_metre], atol=2)
    np.testing.assert_allclose([cols.min(), cols.max()], [(54 + 6) * per_metre, (54 + 30) * per_metre], atol=2)


def test_the_paths_to_choose_from_are_drawn_by_what_they_cost(sample, modes):
    """The cheap one in the plan's colour, the dear one, which is rejected, faint and broken."""
    bare = dataclasses.replace(sample, lidar=None, radar=None, boxes=None, future=None, past=None, map_mask=None)
    (plain, frames), (image, _) = rendered(bare), rendered(bare, modes=modes)
    above, before = crop(image, frames[7]), crop(plain, frames[7])
    per_metre, changed = above.shape[0] / 108, (above != before).any(-1)

    def at(place: torch.Tensor, pixels: np.ndarray) -> int:
        row, col = int((54 - place[0]) * per_metre), int((54 - place[1]) * per_metre)
        return int(pixels[row - 2 : row + 3, col - 2 : col + 3].sum())

    straight, left, right = modes.path.position
    assert at(left[5], near(above, colors.PLAN, 0.1)) > 3 and at(left[3], near(above, colors.PLAN, 0.2)) > 3
    assert not near(above, colors.PLAN, 0.1)[: int((54 - 10.5) * per_metre)].any(), "the others are no plans"
    assert at(straight[5], changed) > 3 and at(right[4] * 1.1, changed) > 3
    assert at(right[5], changed) == 0, "the last piece breaks off"
    assert (changed != 0).sum() < (image != plain).any(-1).sum() - 100, "the legend says what they are"


def test_the_title_says_which_sensors_are_there(sample, sample_with):
    assert sensors_line(sample).split("   ·   ") == [
        "6 of 6 cameras",
        "LiDAR 20,000 points, 3 sweeps",
        "radar 60 returns of 5 of 5 units",
    ]
    assert sensors_line(sample_with(None, sensors=False)).split("   ·   ") == ["no camera", "no LiDAR", "no radar"]


def test_a_bad_path_is_named(sample, tmp_path):
    with pytest.raises(Fusion3DError, match=r"a\.jpg.*\.png"):
        draw_sample(sample, None, None, tmp_path / "a.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(Fusion3DError, match="cannot write"):
        draw_sample(sample, None, None, tmp_path / "file" / "a.png")
