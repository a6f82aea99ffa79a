"""The map of a synthetic scene, as files: a mask that the devkit's ``MapMask`` reads, and a file of the map expansion.

``maps/<map token>.png``: 8-bit grey, 0.1 m a pixel, 255 where vehicles may drive, 0 elsewhere; global (x, y) is at
column x / 0.1 and row height - y / 0.1, so the map's corner of least x and y is (0, 0) and nothing on it is negative.

``maps/expansion/<location>.json``: the same as vectors, in the schema of the nuScenes map expansion 1.3, global metres.
The devkit's ``NuScenesMap`` opens it once the location is in its list ``map_api.locations``. There are no road blocks
in it, and nothing refers to blocks and segments, no traffic lights, and not which divider is beside which lane.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from fusion3d.errors import DataError
from fusion3d.geometry.arclines import MAX_RADIUS, connect, length_of, poses_on
from fusion3d.synthetic.curves import band
from fusion3d.synthetic.scene import RoadMap, Scene

RESOLUTION = 0.1  # [m] a pixel, the only one the devkit knows
MARGIN = 10.0  # [m] around everything there is
MAX_SIDE = 3000.0  # [m] of a map: a mask of 900 million pixels, more than any scene needs
STOP_WIDTH = 1.0  # [m] of the area of a stop line
_JOINT = 0.05  # [m] a lane begins where another ends
_TOLERANCE = 0.02  # [m] a centreline's curve is from its points, at most


def map_frame(scene: Scene, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the map lies: it holds all roads, and everything within ``reach`` [m] of the ego.

    Returns:
        [2] its corner of least x and y in the scene's frame, whole metres, and [2] its width and height [m].

    Raises:
        DataError: the map would be larger than ``MAX_SIDE``.
    """
    ego = scene.ego.position[:, :2]
    extent = [ego.min(0) - reach, ego.max(0) + reach]
    for lines in (scene.roads.drivable, scene.roads.walkways, scene.roads.lanes, scene.roads.crossings):
        extent += [line.min(0) for line in lines] + [line.max(0) for line in lines]
    corner = np.floor(np.min(extent, axis=0) - MARGIN)
    size = np.ceil(np.max(extent, axis=0) + MARGIN) - corner
    if not (size <= MAX_SIDE).all():
        raise DataError(
            f"{scene.name}: its map is {size[0]:.0f} x {size[1]:.0f} m, expected at most {MAX_SIDE:.0f} m a side; "
            "make shorter scenes (fewer keyframes)"
        )
    return corner, size


def encode_mask(roads: RoadMap, corner: np.ndarray, size: np.ndarray) -> bytes:
    """The PNG mask of the drivable area of a map with this [2] corner and [2] size (m)."""
    from PIL import Image, ImageDraw

    width, height = (round(side / RESOLUTION) for side in size)
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    for polygon in roads.drivable:
        pixels = (polygon - corner) / RESOLUTION
        pixels[:, 1] = height - pixels[:, 1]
        draw.polygon([(u, v) for u, v in pixels.tolist()], fill=255)
    data = io.BytesIO()
    mask.save(data, "PNG", compress_level=3)
    return data.getvalue()


def map_expansion(roads: RoadMap, corner: np.ndarray, size: np.ndarray) -> dict[str, Any]:
    """The content of the file of the map expansion, for a map with this [2] corner and [2] size (m)."""
    layers = _Layers(corner)
    crossed = [
        line[len(line) // 2] for line, joined in zip(roads.lane_centers, _follows(roads)[1], strict=True) if joined
    ]
    for ring in roads.drivable:
        polygon = layers.polygon(ring)
        area = layers.add("drivable_area", polygon_tokens=[polygon])
        layers.add(
            "road_segment", polygon_token=polygon, is_intersection=any(_holds(ring, place) for place in crossed),
            drivable_area_token=area,
        )  # fmt: skip
    for ring in roads.walkways:
        layers.add("walkway", polygon_token=layers.polygon(ring))
    for ring in roads.carparks:
        (x, y), polygon = ring[1] - ring[0], layers.polygon(ring)
        layers.add("carpark_area", polygon_token=polygon, orientation=float(np.arctan2(y, x)), road_block_token="")
    for ring in roads.crossings:
        layers.add("ped_crossing", polygon_token=layers.polygon(ring), road_segment_token="")
    for line in roads.stop_lines:
        away = [np.linalg.norm(crossing.mean(0) - line.mean(0)) for crossing in roads.crossings]
        layers.add(
            "stop_line", polygon_token=layers.polygon(band(line, STOP_WIDTH / 2, -STOP_WIDTH / 2)),
            stop_line_type="PED_CROSSING", ped_crossing_tokens=[f"ped_crossing-{np.argmin(away)}"],
            traffic_light_tokens=[], road_block_token="",
        )  # fmt: skip
    for line in roads.dividers:
        layers.add("lane_divider", line_token=layers.line(line), lane_divider_segments=[])
    for line in roads.road_dividers:
        layers.add("road_divider", line_token=layers.line(line), road_segment_token="")
    curves, links = _add_lanes(layers, roads)
    about = {"version": "1.3", "canvas_edge": size.tolist()}
    return about | layers.rows | {"arcline_path_3": curves, "connectivity": links}


def _add_lanes(layers: _Layers, roads: RoadMap) -> tuple[dict[str, Any], dict[str, Any]]:
    """Add the lanes, and as connectors those that both begin and end at others; their curves and links by token."""
    follows, connects = _follows(roads)
    first = [line[0] for line in roads.lane_centers]
    tokens = []
    for ring, joined in zip(roads.lanes, connects, strict=True):
        polygon = layers.polygon(ring)
        if joined:
            tokens.append(layers.add("lane_connector", polygon_token=polygon))
            continue
        half, begin = len(ring) // 2, first[len(tokens)]
        edges = [ring[[-1, 0]], ring[[half - 1, half]]]
        edges.sort(key=lambda edge: float(np.linalg.norm(edge.mean(0) - begin)))
        tokens.append(layers.add(
            "lane", polygon_token=polygon, lane_type="CAR", from_edge_line_token=layers.line(edges[0]),
            to_edge_line_token=layers.line(edges[1]), left_lane_divider_segments=[], right_lane_divider_segments=[],
        ))  # fmt: skip
    curves = {
        token: _arclines(_poses(line - layers.corner))
        for token, line in zip(tokens, roads.lane_centers, strict=True)
    }  # fmt: skip
    links = {
        token: {
            "incoming": [tokens[k] for k in np.flatnonzero(follows[:, row])],
            "outgoing": [tokens[k] for k in np.flatnonzero(follows[row])],
        }
        for row, token in enumerate(tokens)
    }
    return curves, links


def _follows(roads: RoadMap) -> tuple[np.ndarray, np.ndarray]:
    """[K, K] bool: the second lane begins where the first one ends; [K] bool: it both begins and ends at others."""
    first, last = (np.array([line[end] for line in roads.lane_centers]).reshape(-1, 2) for end in (0, -1))
    follows = np.linalg.norm(last[:, None] - first, axis=-1) < _JOINT
    return follows, follows.any(axis=0) & follows.any(axis=1)


def _holds(ring: np.ndarray, place: np.ndarray) -> bool:
    """Is a place [2] inside of a ring [V, 2]? A ray to its right cuts an odd number of edges."""
    (x, y), before = place, np.roll(ring, 1, axis=0)
    cut = (before[:, 1] <= y) != (ring[:, 1] <= y)
    (x0, y0), (x1, y1) = before[cut].T, ring[cut].T
    return bool(((x0 + (y - y0) * (x1 - x0) / (y1 - y0)) > x).sum() % 2)


class _Layers:
    """Collects records. Places are rounded to millimetres; those of several shapes are one node."""

    def __init__(self, corner: np.ndarray) -> None:
        names = ("polygon", "line", "node", "drivable_area", "road_segment", "road_block", "lane", "ped_crossing")
        names += ("walkway", "stop_line", "carpark_area", "road_divider", "lane_divider", "traffic_light")
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in (*names, "lane_connector")}
        self.corner = corner  # [2] of the map
        self._node: dict[tuple[float, float], str] = {}

    def add(self, layer: str, **row: Any) -> str:
        """Add a record; its token."""
        token = f"{layer}-{len(self.rows[layer])}"
        self.rows[layer].append({"token": token, **row})
        return token

    def polygon(self, ring: np.ndarray) -> str:
        nodes = self._nodes(ring[_bends(ring, closed=True)])
        return self.add("polygon", exterior_node_tokens=nodes, holes=[])

    def line(self, line: np.ndarray) -> str:
        return self.add("line", node_tokens=self._nodes(line[_bends(line, closed=False)]))

    def _nodes(self, places: np.ndarray) -> list[str]:
        tokens = []
        for x, y in np.round(places - self.corner, 3).tolist():
            if (x, y) not in self._node:
                self._node[x, y] = self.add("node", x=x, y=y)
            tokens.append(self._node[x, y])
        return tokens


def _bends(line: np.ndarray, closed: bool) -> np.ndarray:
    """[V] bool: vertices [V, 2] that do not lie on the straight line between their neighbours; open ends do not."""
    before, after = line - np.roll(line, 1, axis=0), np.roll(line, -1, axis=0) - line
    cross, length = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0], np.linalg.norm(before, axis=1)
    bends = (np.abs(cross) > 1e-9 * length * np.linalg.norm(after, axis=1)) | ((before * after).sum(axis=1) < 0)
    if not closed:
        bends[[0, -1]] = True
    return bends


def _poses(line: np.ndarray) -> np.ndarray:
    """[N, 3] x, y and unwrapped heading at the points [N, 2] of a smooth line."""
    along = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))]
    way = np.gradient(line, along, axis=0, edge_order=2)
    return np.column_stack([line, np.unwrap(np.arctan2(way[:, 1], way[:, 0]))])


def _arclines(poses: np.ndarray) -> list[dict[str, Any]]:
    """A chain of curves through the first and the last of [N, 3] poses, and by the others within ``_TOLERANCE``."""
    step = np.linalg.norm(np.diff(poses[:, :2], axis=0), axis=1)
    along = np.r_[0.0, np.cumsum(step)]
    bend = float((np.abs(np.diff(poses[:, 2])) / step).max())
    for sharper in (1.05, 1.5, 3.0):
        curve = connect(poses[0], poses[-1], round(min(1 / max(sharper * bend, 1e-9), MAX_RADIUS), 3))
        length = length_of(curve)
        away = np.linalg.norm(poses_on(curve, along * length / along[-1])[:, :2] - poses[:, :2], axis=1)
        if length < 1.1 * along[-1] and away.max() < _TOLERANCE:  # a longer one goes round in a circle
            return [curve]
    assert len(poses) > 2, "a lane turns on the spot"
    middle = len(poses) // 2
    return _arclines(poses[: middle + 1]) + _arclines(poses[middle:])
