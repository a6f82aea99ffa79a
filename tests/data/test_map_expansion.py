"""The generator's map expansion as the devkit's ``NuScenesMap`` reads it and as we do: the same world twice."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from fusion3d.data import expansion
from fusion3d.data.lanes import STEP, Lanes, open_lanes
from fusion3d.data.vector_map import VectorMap, open_map
from fusion3d.errors import DataError
from fusion3d.synthetic.roadmap import map_expansion, map_frame
from fusion3d.synthetic.world import build_scene
from fusion3d.types import MAP_CLASSES

SCENES = {"intersection": 0, "curve": 2, "roundabout": 4}
LAYERS = {name: (name,) for name in MAP_CLASSES} | {"divider": ("road_divider", "lane_divider")}


@dataclasses.dataclass
class World:
    """One place, as its file, as the devkit has it, and as we do."""

    name: str
    path: Path
    content: dict[str, Any]
    devkit: Any
    shapes: VectorMap
    lanes: Lanes
    ego: np.ndarray  # [T, 3] x, y, yaw of a drive there

    def polygons(self, layer: str) -> list[shapely.Polygon]:
        """The devkit's, in the order of its records."""
        rows = getattr(self.devkit, layer)
        return [self.devkit.extract_polygon(t) for r in rows for t in r.get("polygon_tokens", [r.get("polygon_token")])]

    def ours(self, layer: str) -> list:
        """Our polygons, or lines, of a class or a kind of lane."""
        if layer in ("lane", "lane_connector"):
            m, of, chosen = self.lanes, self.lanes.lane, self.lanes.is_connector[self.lanes.lane] == (layer != "lane")
            area = np.ones(len(of), dtype=bool)
        else:
            m, of, chosen = self.shapes, self.shapes.shape, self.shapes.layer == MAP_CLASSES.index(layer)
            area = m.is_area
        found = []
        for number in np.unique(of[chosen]):
            rings = np.flatnonzero(of == number)
            outer, *holes = (m.xy[m.ring[ring] : m.ring[ring + 1]] for ring in rings)
            found.append(shapely.Polygon(outer, holes) if area[rings[0]] else shapely.LineString(outer))
        return found


@pytest.fixture(scope="module", params=SCENES)
def world(request, tmp_path_factory):
    scene = build_scene(SCENES[request.param], 0, 3.0)
    corner, size = map_frame(scene, 100.0)
    content = json.loads(json.dumps(map_expansion(scene.roads, corner, size)))
    root = tmp_path_factory.mktemp("expansion")
    path = root / "maps" / "expansion" / "boston-seaport.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "descartes", types.ModuleType("descartes"))  # for plots alone
        from nuscenes.map_expansion.map_api import NuScenesMap

        devkit = NuScenesMap(str(root), "boston-seaport")
    lanes = open_lanes(path)
    assert lanes is not None
    ego = np.column_stack([scene.ego.position[:, :2] - corner, scene.ego.yaw])
    return World(request.param, path, content, devkit, open_map(path), lanes, ego)


@pytest.fixture
def places(world) -> np.ndarray:
    """[M, 2] on and beside the roads."""
    rng = np.random.default_rng(0)
    on = world.lanes.pose[rng.integers(len(world.lanes.pose), size=12), :2]
    return on + rng.normal(0, 4, (12, 2))


def test_the_same_polygons_and_lines(world):
    assert world.shapes.known.all() and world.lanes.known
    for layer in (*MAP_CLASSES[:-1], "lane", "lane_connector"):
        theirs, ours = world.polygons(layer), world.ours(layer)
        assert len(ours) == len(theirs) and (theirs or layer == "lane_connector"), layer
        for a, b in zip(ours, theirs, strict=True):
            assert b.is_valid and a.symmetric_difference(b).area == 0, layer
    lines = [
        world.devkit.extract_line(row["line_token"])
        for layer in LAYERS["divider"]
        for row in getattr(world.devkit, layer)
    ]
    assert [line.equals(theirs) for line, theirs in zip(world.ours("divider"), lines, strict=True)] == [True] * len(
        lines
    )
    assert min(len(getattr(world.devkit, layer)) for layer in LAYERS["divider"]) > 0


def test_the_same_answers_at_places(world, places):
    """``layers_on_point`` and ``get_records_in_radius``."""
    polygonal = (*MAP_CLASSES[:-1], "lane")
    ours = {layer: world.ours(layer) for layer in (*polygonal, "lane_connector", "divider")}
    lines = [
        world.devkit.extract_line(row["line_token"])
        for layer in LAYERS["divider"]
        for row in getattr(world.devkit, layer)
    ]
    hits = 0
    for x, y in places.tolist():
        there = world.devkit.layers_on_point(x, y, list(polygonal))
        point = shapely.Point(x, y)
        for layer in polygonal:
            assert bool(there[layer]) == any(shape.contains(point) for shape in ours[layer]), layer
            hits += bool(there[layer])
        near = world.devkit.get_records_in_radius(x, y, 6.0, [*polygonal, "lane_connector", *LAYERS["divider"]])
        box = shapely.box(x - 6, y - 6, x + 6, y + 6)
        for layer in (*polygonal, "lane_connector"):
            assert len(near[layer]) == sum(shape.intersects(box) for shape in ours[layer]), layer
        tokens = [*near["lane"], *near["lane_connector"]]
        mine = [shape.intersects(box) for layer in ("lane", "lane_connector") for shape in ours[layer]]
        assert world.lanes.token[np.array(mine)].tolist() == tokens
        assert [o.intersects(box) for o in ours["divider"]] == [o.intersects(box) for o in lines]
    assert hits > 10


def test_the_same_centrelines(world):
    from nuscenes.map_expansion.arcline_path_utils import length_of_lane

    tokens = world.lanes.token.tolist()
    theirs = world.devkit.discretize_lanes(tokens, STEP)
    for number, token in enumerate(tokens):
        line, poses = world.lanes.centreline(number), np.array(theirs[token])
        steps = np.linalg.norm(np.diff(line[:, :2], axis=0), axis=1)
        assert 0 < steps.min() and steps.max() <= STEP + 1e-9
        # Theirs has the places where two curves meet twice, and is a little off where it steps over a whole segment.
        apart = np.linalg.norm(line[:, None, :2] - poses[:, :2], axis=-1)
        assert max(apart.min(axis=0).max(), apart.min(axis=1).max()) < 0.02, token
        turn = poses[apart.argmin(axis=1), 2] - line[:, 2]
        assert np.cos(turn).min() > np.cos(0.02)
        curves = world.devkit.get_arcline_path(token)
        assert steps.sum() == pytest.approx(length_of_lane(curves), rel=2e-3)
        np.testing.assert_allclose(line[[0, -1]], [curves[0]["start_pose"], wrapped(curves[-1]["end_pose"])], atol=1e-5)
        ring = shapely.Polygon(world.devkit.extract_polygon(polygon_of(world, token))).buffer(0.02)
        assert ring.contains(shapely.LineString(line[:, :2])), "a centreline is on its lane"


def wrapped(pose: list[float]) -> list[float]:
    return [*pose[:2], (pose[2] + np.pi) % (2 * np.pi) - np.pi]


def polygon_of(world: World, token: str) -> str:
    return next(
        r["polygon_token"] for r in (*world.content["lane"], *world.content["lane_connector"]) if r["token"] == token
    )


def test_the_same_links(world):
    lanes = world.lanes
    for number, token in enumerate(lanes.token.tolist()):
        assert set(lanes.token[lanes.after(number)]) == set(world.devkit.get_outgoing_lane_ids(token))
        assert set(lanes.token[lanes.before(number)]) == set(world.devkit.get_incoming_lane_ids(token))
        for after in lanes.after(number):
            end, begin = lanes.centreline(number)[-1], lanes.centreline(int(after))[0]
            np.testing.assert_allclose(begin[:2], end[:2], atol=1e-6)
            assert np.cos(begin[2] - end[2]) > np.cos(0.02), "one goes on without a bend"
        assert lanes.is_connector[number] == (len(lanes.after(number)) > 0 and len(lanes.before(number)) > 0)
    num_links = {"intersection": 32, "curve": 0, "roundabout": 24}  # two of each way through
    assert len(lanes.link) == num_links[world.name] == 2 * lanes.is_connector.sum()


def test_the_closest_lane_and_the_way_along_it(world, places):
    anyway = np.column_stack([places, np.full(len(places), np.nan)])
    lane, along, place = world.lanes.nearest(anyway, 30.0)
    for row, (x, y) in enumerate(places.tolist()):
        theirs = world.devkit.get_closest_lane(x, y, 30.0)
        line = shapely.LineString(np.array(world.devkit.discretize_lanes([theirs], 0.05)[theirs])[:, :2])
        ours = shapely.LineString(world.lanes.centreline(int(lane[row]))[:, :2])
        assert ours.distance(shapely.Point(x, y)) == pytest.approx(line.distance(shapely.Point(x, y)), abs=0.1)
        assert along[row] == pytest.approx(ours.project(shapely.Point(x, y)), abs=1e-6)
        np.testing.assert_allclose(place[row, :2], ours.interpolate(along[row]).coords[0], atol=1e-6)
    kept = world.lanes.nearest(np.concatenate([anyway, np.full((1, 3), np.nan)]), 30.0)
    assert kept[0].tolist() == [*lane.tolist(), -1]  # a place that is not known spoils no other
    far, nowhere, none = world.lanes.nearest(np.array([[-500.0, -500.0, 0.0], [np.nan] * 3]), 30.0)
    assert far.tolist() == [-1, -1] and np.isnan(nowhere).all() and np.isnan(none).all()
    assert [len(of) for of in world.lanes.nearest(np.zeros((0, 3)), 5.0)] == [0, 0, 0]


def test_the_closest_lane_is_that_of_the_closest_line_whatever_its_points(world):
    """Beside lanes that are close together, and between their points."""
    rng = np.random.default_rng(0)
    lines = [shapely.LineString(world.lanes.centreline(k)[:, :2]) for k in range(len(world.lanes))]
    chosen = rng.integers(len(world.lanes.pose), size=300)
    pose = world.lanes.pose[chosen] + np.column_stack([rng.normal(0, 0.3, (300, 2)), np.full(300, np.nan)])
    _, _, place = world.lanes.nearest(pose, 5.0)
    least = shapely.distance(np.array(lines), shapely.points(pose[:, None, :2])).min(axis=1)
    np.testing.assert_allclose(np.linalg.norm(place[:, :2] - pose[:, :2], axis=1), least, atol=1e-9)


def test_the_ego_drives_its_lane_onwards(world):
    """A vehicle is on a lane that leads its way, and gets on along it as far as it drives."""
    ego = world.ego[::5]
    lane, along, place = world.lanes.nearest(ego, 3.0)
    assert (lane >= 0).all() and np.linalg.norm(place[:, :2] - ego[:, :2], axis=1).max() < 0.3
    assert np.cos(place[:, 2] - ego[:, 2]).min() > np.cos(0.2)
    same = lane[1:] == lane[:-1]
    driven = np.linalg.norm(np.diff(ego[:, :2], axis=0), axis=1)
    np.testing.assert_allclose(np.diff(along)[same], driven[same], atol=0.2)  # it cuts the bend a little
    back, _, _ = world.lanes.nearest(ego + np.array([0, 0, np.pi]), 10.0)
    assert not (back == lane).any(), "those against it are other lanes"


def test_a_file_without_lanes_is_not_known(world, tmp_path):
    """Versions before 1.2 have no curves and links: their lanes are not known, and all else is."""
    for lacking in ("arcline_path_3", "connectivity", "lane_connector"):
        path = tmp_path / f"{lacking}.json"
        path.write_text(json.dumps({name: of for name, of in world.content.items() if name != lacking}))
        assert open_lanes(path) is None and open_map(path).known.all()


def test_a_lane_without_curve_and_a_link_to_nowhere(world, tmp_path):
    """Both are in nuScenes."""
    content = json.loads(json.dumps(world.content))
    first, second = (row["token"] for row in content["lane"][:2])
    del content["arcline_path_3"][first]
    content["connectivity"][second] = {"incoming": ["gone"], "outgoing": ["gone", first]}
    path = tmp_path / "some.json"
    path.write_text(json.dumps(content))
    lanes = open_lanes(path)
    assert lanes is not None and len(lanes) == len(world.lanes) and len(lanes.centreline(0)) == 0
    assert lanes.token[lanes.after(1)].tolist() == [first]
    np.testing.assert_array_equal(lanes.centreline(1), world.lanes.centreline(1))


def spoil(content: dict[str, Any], **change: Any) -> None:
    next(iter(content["arcline_path_3"].values()))[0].update(change)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: spoil(content, shape="XYZ"),
        lambda content: spoil(content, radius=None),
        lambda content: spoil(content, segment_length=[1.0, 1e12, 0.0]),
        lambda content: spoil(content, start_pose=[0.0, float("nan"), 0.0]),
        lambda content: content.update(arcline_path_3=[]),
        lambda content: content.update(connectivity={content["lane"][0]["token"]: 3}),
        lambda content: content["lane"][0].update(polygon_token="gone"),
    ],
)
def test_damaged_lanes_are_an_error(world, tmp_path, damage):
    content = json.loads(json.dumps(world.content))
    damage(content)
    path = tmp_path / "some.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"cannot read .*some\.json.*the map again"):
        open_lanes(path)


def test_lanes_are_kept_in_the_cache(world, monkeypatch, tmp_path):
    monkeypatch.setenv("FUSION3D_CACHE", str(tmp_path))
    monkeypatch.setattr(expansion, "_CACHE_FROM", 0)
    expansion._open.cache_clear()
    first, shapes = open_lanes(world.path), open_map(world.path)
    expansion._open.cache_clear()
    monkeypatch.setattr(expansion, "read_json_as", lambda path, make, remedy: pytest.fail("read again"))
    for kept, read in ((open_lanes(world.path), first), (open_map(world.path), shapes)):
        for field in dataclasses.fields(read):
            np.testing.assert_array_equal(getattr(kept, field.name), getattr(read, field.name))
    expansion._open.cache_clear()
    monkeypatch.setattr(expansion, "_FORMAT", expansion._FORMAT + 1)
    monkeypatch.setattr(expansion, "read_json_as", lambda path, make, remedy: first)
    # what an older version kept is not what it reads
    assert open_lanes(world.path) is first
    expansion._open.cache_clear()
