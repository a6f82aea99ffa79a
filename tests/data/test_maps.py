"""Maps of polygons and lines: cells against shapely, and what a file does not say."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fusion3d.config import AugmentConfig, DataConfig
from fusion3d.data import NuScenesDataset, expansion
from fusion3d.data.augment import bev_matrix
from fusion3d.data.collate import collate
from fusion3d.data.maps import crop_map
from fusion3d.data.nuscenes import Tables
from fusion3d.data.raster import disc_spans, line_spans, paint, polygon_spans
from fusion3d.data.vector_map import LINE_WIDTH, open_map
from fusion3d.errors import DataError
from fusion3d.types import MAP_CLASSES, BEVGrid

VERSION = "v1.0-tiny"
GRID = BEVGrid(x=(-8.0, 10.0), y=(-6.0, 6.0), resolution=0.75)
INDEX = {name: number for number, name in enumerate(MAP_CLASSES)}


def star(rng: np.random.Generator, center: np.ndarray, reach: float) -> np.ndarray:
    """A polygon without crossings, either way round."""
    while True:
        angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))[:: rng.choice([-1, 1])]
        radius = reach * rng.uniform(0.3, 1, len(angle))
        ring = center + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        if shapely.Polygon(ring).is_valid:  # edges may cross where the centre lies outside
            return ring


def cells(shapes: list, grid: BEVGrid) -> np.ndarray:
    """Slow: is any of the shapes at each centre?"""
    points = shapely.points(grid.centers().double().numpy())
    return np.any([shapely.contains(shape, points) for shape in shapes] or [np.zeros(grid.shape, bool)], axis=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
@example(39)
def test_polygons_with_holes_are_those_of_shapely(seed):
    rng = np.random.default_rng(seed)
    rings, polygon, layer, shapes = [], [], [], ([], [])
    for number in range(5):
        center, reach = rng.uniform(-12, 12, 2), rng.uniform(1, 20)  # in the grid, across its edge, out of it
        outer = star(rng, center, reach)
        mine = [outer] + [star(rng, center + rng.uniform(-0.4, 0.4, 2) * reach, 0.2 * reach) for _ in range(2)]
        area = shapely.Polygon(outer)
        holes = [hole for hole in mine[1:] if area.is_valid and area.contains(shapely.Polygon(hole))]
        if not area.is_valid or (len(holes) == 2 and shapely.Polygon(holes[0]).intersects(shapely.Polygon(holes[1]))):
            holes = []
        of_layer = int(rng.integers(2))
        rings += [outer, *holes]
        polygon += [number] * (1 + len(holes))
        layer += [of_layer] * (1 + len(holes))
        shapes[of_layer].append(shapely.Polygon(outer, holes).buffer(0))
    start = np.cumsum([0, *map(len, rings)])
    spans = polygon_spans(np.concatenate(rings), start, np.array(polygon), np.array(layer), GRID)
    found = paint([spans], 2, GRID)
    for of_layer in range(2):
        np.testing.assert_array_equal(found[of_layer], cells(shapes[of_layer], GRID))


def test_lines_are_those_of_shapely():
    rng = np.random.default_rng(4)
    lines = [np.cumsum(rng.normal(0, 3, (count, 2)), axis=0) for count in (2, 6, 3)]
    lines.append(np.array([[1.0, 1], [1, 1], [3, 1], [3, 4]]))  # a vertex twice
    start = np.cumsum([0, *map(len, lines)])
    spans = line_spans(np.concatenate(lines), start, np.array([0, 0, 1, 1]), 1.1, GRID)
    found = paint(spans, 2, GRID)
    for layer, mine in enumerate((lines[:2], lines[2:])):
        points = shapely.points(GRID.centers().double().numpy())
        near = [shapely.distance(shapely.LineString(line), points) <= 0.55 for line in mine]
        np.testing.assert_array_equal(found[layer], np.any(near, axis=0))
    discs = disc_spans(np.array([[0.0, 0], [50, 0], [-8.2, 5.9]]), 2.0, np.zeros(3, dtype=np.int64), GRID)
    distance = [np.linalg.norm(GRID.centers().numpy() - at, axis=-1) <= 2 for at in ([0, 0], [-8.2, 5.9])]
    np.testing.assert_array_equal(paint([discs], 1, GRID)[0], np.any(distance, axis=0))


def test_edges_between_neighbours_belong_to_one_of_them():
    """Two squares that share an edge through cell centres: every centre in one of them, none in both."""
    grid = BEVGrid(x=(0.0, 8.0), y=(0.0, 8.0), resolution=1.0)
    square = np.array([[0.0, 0], [3.5, 0], [3.5, 3.5], [0, 3.5]])
    corners = [[0, 0], [3.5, 0], [0, 3.5], [3.5, 3.5]]
    masks = [
        paint([polygon_spans(square + at, np.array([0, 4]), np.zeros(1, int), np.zeros(1, int), grid)], 1, grid)[0]
        for at in corners
    ]
    assert np.sum(masks, axis=0).max() == 1 and np.sum(masks) == 7 * 7


def city(offset: tuple[float, float] = (76.0, 38.0)) -> dict:
    """A map expansion with something of every layer around a place."""
    content: dict = {"version": "1.3", "node": [], "polygon": [], "line": []}

    def nodes(places) -> list[str]:
        tokens = []
        for x, y in places:
            tokens.append(f"node-{len(content['node'])}")
            content["node"].append({"token": tokens[-1], "x": x + offset[0], "y": y + offset[1]})
        return tokens

    def square(x: float, y: float, side: float, hole: float = 0.0) -> str:
        def corners(half: float) -> list[tuple[float, float]]:
            return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]

        token = f"polygon-{len(content['polygon'])}"
        holes = [{"node_tokens": nodes(corners(hole / 2))}] if hole else []
        content["polygon"].append({"token": token, "exterior_node_tokens": nodes(corners(side / 2)), "holes": holes})
        return token

    def line(places) -> str:
        content["line"].append({"token": f"line-{len(content['line'])}", "node_tokens": nodes(places)})
        return content["line"][-1]["token"]

    content["drivable_area"] = [{"token": "d", "polygon_tokens": [square(0, 0, 30, hole=8), square(20, 3, 12)]}]
    content["ped_crossing"] = [{"token": "p", "polygon_token": square(6, 4, 5), "road_segment_token": ""}]
    content["walkway"] = [{"token": "w", "polygon_token": square(-18, 0, 6)}]
    content["stop_line"] = [{"token": "s", "polygon_token": square(3, -9, 3), "stop_line_type": "YIELD"}]
    content["carpark_area"] = [{"token": "c", "polygon_token": square(-9, 14, 7)}]
    content["road_divider"] = [{"token": "r", "line_token": line([(-15, -6), (0, -6), (12, 2)])}]
    content["lane_divider"] = [
        {"token": "l", "line_token": line([(0, 9), (14, 9)]), "lane_divider_segments": []},
        {"token": "e", "line_token": line([])},  # nuScenes has some without nodes
    ]
    return content


def shapes_of(content: dict) -> dict[str, list]:
    """The shapes of an expansion by class, in global."""
    node = {row["token"]: (row["x"], row["y"]) for row in content["node"]}
    polygon = {
        row["token"]: shapely.Polygon(
            [node[t] for t in row["exterior_node_tokens"]],
            [[node[t] for t in hole["node_tokens"]] for hole in row["holes"]],
        )
        for row in content["polygon"]
    }
    shapes: dict[str, list] = {name: [] for name in MAP_CLASSES}
    for name in MAP_CLASSES[:-1]:
        for row in content[name]:
            shapes[name] += [polygon[t] for t in row.get("polygon_tokens", [row.get("polygon_token")])]
    lines = [[node[t] for t in row["node_tokens"]] for row in content["line"] if row["node_tokens"]]
    shapes["divider"] = [shapely.LineString(line).buffer(LINE_WIDTH / 2, quad_segs=500) for line in lines]
    return shapes


@pytest.fixture
def expanded_root(own_root: Path) -> Path:
    """The tiny data set with a map expansion of its town."""
    path = own_root / "maps" / "expansion" / "tiny-town.json"
    path.parent.mkdir()
    path.write_text(json.dumps(city()))
    return own_root


@pytest.mark.parametrize(
    "matrix",
    [np.eye(4), bev_matrix(0.7), bev_matrix(-2.0, scale=1.3, flip_x=True), bev_matrix(0.3, scale=0.8, flip_y=True)],
    ids=["plain", "turned", "mirrored", "shrunk"],
)
def test_every_class_is_where_the_world_has_it(expanded_root, matrix):
    """Each centre of the augmented grid, brought back to the world, is asked of shapely."""
    tables, shapes = Tables.open(expanded_root, VERSION), shapes_of(city())
    grid = BEVGrid(x=(-36.0, 36.0), y=(-36.0, 36.0), resolution=0.6)
    mask, known = crop_map(tables, 3, grid, matrix)
    assert mask.shape == (6, *grid.shape) and mask.dtype == torch.bool and known.all()
    centers = grid.centers().double().numpy()
    world = tables.global_from_ego(3) @ np.linalg.inv(matrix)
    points = shapely.points(centers @ world[:2, :2].T + world[:2, 3])
    for name, layer in zip(MAP_CLASSES, mask.numpy(), strict=True):
        expected = np.any([shapely.contains(shape, points) for shape in shapes[name]], axis=0)
        assert expected.sum() > 5
        wrong = layer != expected
        assert wrong.sum() <= (2 if name == "divider" else 0), name  # its buffer has corners where a disc is round


def test_a_flipped_and_turned_sample_has_its_map_and_boxes_together(expanded_root):
    """Through the data set: where a box's centre is drivable, it is so under any augmentation."""
    config = DataConfig(root=str(expanded_root), version=VERSION, sensors=())
    grid = BEVGrid(resolution=0.3)
    plain = NuScenesDataset(config, "mine", grid)
    changed = NuScenesDataset(config, "mine", grid, AugmentConfig(), training=False)
    agree = []
    for index in range(6):
        answers = []
        for sample in (plain[index], changed[index]):
            cell, inside = grid.cell_of(sample.boxes.center)
            answers.append((sample.map_mask[0].flatten()[cell], inside))
        (a, a_in), (b, b_in) = answers
        agree += (a == b)[a_in & b_in].tolist()
    assert len(agree) > 20 and np.mean(agree) > 0.9  # but for a cell at an edge


def test_a_line_is_never_thinner_than_a_cell_and_grows_with_the_world(expanded_root):
    shapes = open_map(expanded_root / "maps" / "expansion" / "tiny-town.json")
    to_grid = np.eye(3)
    to_grid[:2, 2] = -76, -38
    coarse = shapes.rasterise(BEVGrid(x=(-20.0, 20.0), y=(-20.0, 20.0), resolution=2.0), to_grid)[INDEX["divider"]]
    assert coarse.any(axis=0)[3:16].all()  # no gap along x from -14 to 12
    fine = BEVGrid(x=(-40.0, 40.0), y=(-40.0, 40.0), resolution=0.1)
    areas = [shapes.rasterise(fine, np.diag([s, s, 1.0]) @ to_grid)[INDEX["divider"]].sum() for s in (1.0, 1.5)]
    assert areas[1] / areas[0] == pytest.approx(1.5**2, rel=0.02)


def test_the_mask_alone_knows_the_drivable_area_alone(tiny_root):
    mask, known = crop_map(Tables.open(tiny_root, VERSION), 3, BEVGrid())
    assert known.tolist() == [True] + [False] * 5
    assert mask[0].any() and not mask[1:].any()


def test_what_a_file_lacks_is_not_known(expanded_root):
    path = expanded_root / "maps" / "expansion" / "tiny-town.json"
    content = city()
    for layer in ("drivable_area", "stop_line", "road_divider"):
        del content[layer]
    content["walkway"] = []
    path.write_text(json.dumps(content))
    tables = Tables.open(expanded_root, VERSION)
    mask, known = crop_map(tables, 3, BEVGrid())
    names = {name for name, said in zip(MAP_CLASSES, known.tolist(), strict=True) if said}
    assert names == {"drivable_area", "ped_crossing", "walkway", "carpark_area"}  # the first one by the mask
    assert mask[0].any() and not mask[INDEX["walkway"]].any() and not mask[INDEX["divider"]].any()


def test_no_map_of_the_place(own_root):
    (own_root / "maps" / "mask.png").unlink()
    assert crop_map(Tables.open(own_root, VERSION), 0, BEVGrid()) is None


def test_maps_of_an_older_synthetic_set_are_not_known(own_root):
    """They had a dialect of their own: the mask is read, and a warning says so."""
    (own_root / "maps" / "mask.json").write_text(json.dumps({"lane": [], "drivable_area": []}))
    with pytest.warns(UserWarning, match="older synthetic data set.*make the data set again"):
        mask, known = crop_map(Tables.open(own_root, VERSION), 3, BEVGrid())
    assert known.tolist() == [True] + [False] * 5 and mask[0].any()


def test_a_location_cannot_lead_out_of_the_root(expanded_root):
    tables = Tables.open(expanded_root, VERSION)
    outside = dataclasses.replace(tables, scene_location=np.array([b"../../../secret"] * 2))
    with pytest.raises(DataError, match="leads out"):
        crop_map(outside, 0, BEVGrid())


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: json.dumps(content)[:-50],
        lambda content: "[]",
        lambda content: "{}",
        lambda content: "[" * 100_000,
        lambda content: json.dumps(content | {"node": content["node"][5:]}),
        lambda content: json.dumps(content | {"node": [row | {"x": float("nan")} for row in content["node"]]}),
        lambda content: json.dumps(content | {"walkway": [{"token": "w", "polygon_token": None}]}),
        lambda content: json.dumps(content | {"walkway": 3}),
        lambda content: json.dumps({"drivable_area": [[[1.0, 2.0], [3.0, 1.0], [2.0, 2.0]]]}),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(expanded_root, damage):
    (expanded_root / "maps" / "expansion" / "tiny-town.json").write_text(damage(city()))
    config = DataConfig(root=str(expanded_root), version=VERSION, sensors=())
    with pytest.raises(DataError, match=r"tiny-town\.json.*again"):
        NuScenesDataset(config, "mine", BEVGrid())[0]
    with pytest.warns(UserWarning, match="skipped"):
        sample = NuScenesDataset(dataclasses.replace(config, skip_broken=True), "mine", BEVGrid())[0]
    assert sample.map_mask is None and sample.map_known is None


def test_a_large_file_is_read_once(expanded_root, monkeypatch, tmp_path):
    monkeypatch.setenv("FUSION3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(expansion, "_CACHE_FROM", 0)
    path = expanded_root / "maps" / "expansion" / "tiny-town.json"

    def opened():
        expansion._open.cache_clear()
        return open_map(path)

    first = opened()
    (cached,) = (tmp_path / "cache" / "maps").iterdir()
    monkeypatch.setattr(expansion, "read_json_as", lambda path, make, remedy: pytest.fail("read again"))
    for field in dataclasses.fields(first):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(opened(), field.name))
    monkeypatch.undo()
    monkeypatch.setenv("FUSION3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(expansion, "_CACHE_FROM", 0)
    cached.write_bytes(cached.read_bytes()[:100])
    np.testing.assert_array_equal(opened().xy, first.xy)


def test_a_synthetic_scene_knows_its_paint(synthetic_root):
    """Its polygons agree with its own mask, and its dividers and crossings lie on the road."""
    config = DataConfig(root=str(synthetic_root), version="v1.0-synthetic", sensors=())
    dataset = NuScenesDataset(config, "train", BEVGrid(x=(-40.0, 40.0), y=(-40.0, 40.0), resolution=0.5))
    samples = [dataset[index] for index in (0, len(dataset) - 1)]
    batch = collate(samples)
    assert batch.map_known.all()
    for sample in samples:
        drivable, divider = sample.map_mask[0], sample.map_mask[INDEX["divider"]]
        assert 0.05 < drivable.float().mean() < 0.9 and divider.any() and sample.map_mask[INDEX["walkway"]].any()
        assert (divider & drivable).sum() > 0.9 * divider.sum()
        assert all(sample.map_mask[INDEX[name]].any() for name in ("ped_crossing", "stop_line", "carpark_area"))
        assert drivable.flatten()[dataset.grid.cell_of(torch.zeros(1, 3))[0]]  # the ego drives on the road
    (root,) = {Path(dataset.tables.root)}
    tables, row = dataset.tables, int(dataset.rows[0])
    from fusion3d.data.maps import crop_mask

    same = torch.from_numpy(crop_mask(tables, row, dataset.grid)) == samples[0].map_mask[0]
    assert root == synthetic_root and same.float().mean() > 0.99  # a pixel at edges


def test_other_angles_than_right_ones_keep_areas(expanded_root):
    tables = Tables.open(expanded_root, VERSION)
    grid = BEVGrid(x=(-60.0, 60.0), y=(-60.0, 60.0), resolution=0.25)
    sums = [crop_map(tables, 3, grid, bev_matrix(angle))[0].sum((1, 2)) for angle in (0.0, 0.4, math.pi / 2)]
    for turned in sums[1:]:
        np.testing.assert_allclose(turned, sums[0], rtol=0.02)


def test_the_devkit_draws_the_same_shapes(tmp_path, monkeypatch):
    """Its masks, from which BEVFusion takes its labels, round corners to pixels: alike, but for a rim."""
    monkeypatch.setitem(sys.modules, "descartes", types.ModuleType("descartes"))  # for plots alone
    from nuscenes.map_expansion.map_api import NuScenesMap

    unused = ("road_segment", "road_block", "lane", "traffic_light", "lane_connector")
    content = city() | {layer: [] for layer in unused} | {"arcline_path_3": {}, "connectivity": {}}
    path = tmp_path / "maps" / "expansion" / "boston-seaport.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content | {"canvas_edge": [200.0, 200.0]}))
    grid = BEVGrid(x=(-30.0, 30.0), y=(-25.0, 25.0), resolution=0.5)
    ours = open_map(path).rasterise(grid, np.array([[1.0, 0, -76], [0, 1, -38], [0, 0, 1]]))
    layers = [*MAP_CLASSES[:-1], "road_divider", "lane_divider"]
    devkit = NuScenesMap(str(tmp_path), "boston-seaport")
    drawn = devkit.get_map_mask((76.0, 38.0, 50.0, 60.0), 0.0, layers, grid.shape).astype(bool)
    theirs = np.stack([*drawn[:5], drawn[5] | drawn[6]])
    iou = (ours & theirs).sum((1, 2)) / (ours | theirs).sum((1, 2))
    assert (iou > [0.9, 0.7, 0.7, 0.6, 0.7, 0.5]).all(), iou
