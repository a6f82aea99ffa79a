"""The map of a synthetic scene, as files: a mask that the devkit's ``MapMask`` reads, and the polygons behind it.

``maps/<map token>.png``: 8-bit grey, 0.1 m a pixel, 255 where vehicles may drive, 0 elsewhere; global (x, y) is at
column x / 0.1 and row height - y / 0.1, so the map's corner of least x and y is (0, 0) and nothing on it is negative.

``maps/<map token>.json`` holds the same map as vectors, in global metres::

    {"location": str, "size": [width, height], "resolution": 0.1,
     "drivable_area": [polygon, ...], "lane": [polygon, ...], "walkway": [polygon, ...], "ped_crossing": [polygon, ...],
     "lane_center": [polyline, ...] in driving direction, "lane_divider": [polyline, ...], "stop_line": [polyline, ...]}

A polygon or polyline is a list of [x, y]; polygons are counter-clockwise, not repeated at their end, and may overlap.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from fusion3d.errors import DataError
from fusion3d.synthetic.scene import RoadMap, Scene

RESOLUTION = 0.1  # [m] a pixel, the only one the devkit knows
MARGIN = 10.0  # [m] around everything there is
MAX_SIDE = 3000.0  # [m] of a map: a mask of 900 million pixels, more than any scene needs


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


def road_polygons(roads: RoadMap, corner: np.ndarray, size: np.ndarray, location: str) -> dict[str, Any]:
    """The JSON content described at the top of this file, rounded to millimetres."""

    def lines(group: tuple[np.ndarray, ...]) -> list[list[list[float]]]:
        return [np.round(line - corner, 3).tolist() for line in group]

    return {
        "location": location,
        "size": size.tolist(),
        "resolution": RESOLUTION,
        "drivable_area": lines(roads.drivable),
        "lane": lines(roads.lanes),
        "walkway": lines(roads.walkways),
        "ped_crossing": lines(roads.crossings),
        "lane_center": lines(roads.lane_centers),
        "lane_divider": lines(roads.dividers),
        "stop_line": lines(roads.stop_lines),
    }
