"""The road's edge as BEV-Planner's evaluation draws it, against its released steps and the devkit's maps."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest
import shapely
from shapely import affinity, ops

from fusion3d.data.expansion import open_expansion
from fusion3d.data.road_edge import POINTS, RoadEdge
from fusion3d.synthetic.roadmap import map_expansion, map_frame
from fusion3d.synthetic.world import build_scene

SCENES = {"intersection": 0, "curve": 2, "roundabout": 4}


def released(devkit, x: float, y: float, degrees: float) -> list[np.ndarray]:
    """Its steps: polygons cut by the patch, brought to ego, joined; each ring cut again, merged, and sampled."""
    patch = devkit.explorer.get_patch_coord((x, y, 50, 102.4), degrees)
    local = []
    for layer in ("road_segment", "lane"):
        for row in getattr(devkit, layer):
            polygon = devkit.extract_polygon(row["polygon_token"])
            if polygon.is_valid and not (cut := polygon.intersection(patch)).is_empty:
                turned = affinity.rotate(cut, -degrees, origin=(x, y))
                local.append(affinity.translate(turned, -x, -y))
    union = ops.unary_union(local)
    window = shapely.box(-51.0, -24.8, 51.0, 24.8)
    found = []
    for polygon in getattr(union, "geoms", [union]):
        for ring in (polygon.exterior, *polygon.interiors):
            lines = ring.intersection(window)
            lines = ops.linemerge(lines) if lines.geom_type == "MultiLineString" else lines
            for line in getattr(lines, "geoms", [lines]):
                if line.length:
                    found.append(np.array([line.interpolate(d).coords[0] for d in np.linspace(0, line.length, 20)]))
    return found


@pytest.mark.parametrize("name", SCENES)
def test_the_lines_are_those_of_the_released_steps(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "descartes", types.ModuleType("descartes"))  # for plots alone
    from nuscenes.map_expansion.map_api import NuScenesMap

    scene = build_scene(SCENES[name], 0, 3.0)
    corner, size = map_frame(scene, 100.0)
    content = map_expansion(scene.roads, corner, size)
    path = tmp_path / "maps" / "expansion" / "boston-seaport.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    devkit, edge = NuScenesMap(str(tmp_path), "boston-seaport"), open_expansion(path, RoadEdge)
    assert edge.known
    crossings = [row["is_intersection"] for row in content["road_segment"]]
    assert len(crossings) == len(content["drivable_area"]) and any(crossings) == (name != "curve")
    for step in range(0, len(scene.ego.yaw), max(len(scene.ego.yaw) // 4, 1)):
        x, y = (scene.ego.position[step, :2] - corner).tolist()
        yaw = float(scene.ego.yaw[step])
        pose = np.eye(4)
        pose[:2, :2], pose[:2, 3] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]], (x, y)
        ours, theirs = (
            [line for line in lines if np.linalg.norm(line[0] - line[-1]) > 1e-6 or shapely.Polygon(line).area > 0.1]
            for lines in (edge.lines(pose), released(devkit, x, y, np.degrees(yaw)))
        )  # without gaps of a millimetre between polygons, which come and go with rounding
        assert len(ours) == len(theirs) > 0
        for line in theirs:  # the way round is the same line
            away = [min(np.abs(own - line).max(), np.abs(own[::-1] - line).max()) for own in ours]
            closed = np.linalg.norm(line[0] - line[-1]) < 1e-6
            if closed:  # begins anywhere: compared as a shape
                away = [shapely.LinearRing(own).hausdorff_distance(shapely.LinearRing(line)) for own in ours]
            assert min(away) < (2.0 if closed else 1e-6)


def test_polygons_that_share_a_side_have_none_there():
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10]], dtype=float)
    crossed = square[[0, 2, 1, 3]] + 100
    edge = RoadEdge.around([[square], [square + np.array([10, 0])], [crossed]])
    (line,) = edge.lines(np.eye(4))
    assert line.shape == (POINTS, 2) and len(edge.ring) == 2
    np.testing.assert_allclose(np.linalg.norm(np.diff(line, axis=0), axis=1).sum(), 60, atol=3)
    assert not ((np.abs(line[:, 0] - 10) < 1e-6) & (line[:, 1] > 0) & (line[:, 1] < 10)).any()
    hole = [square * 4 - 10, square + 2]
    assert len(RoadEdge.around([hole]).lines(np.eye(4))) == 2
    assert len(RoadEdge.around([]).lines(np.eye(4))) == 0 and not RoadEdge.around([]).known
    far = np.eye(4)
    far[:2, 3] = 1000
    assert len(edge.lines(far)) == 0
