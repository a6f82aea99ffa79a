"""The colours of everything that is drawn: pictures, the 3-D scene and the report share them.

Truth is light, what the model says has the colour of its class. Colours are hex strings or floats in [0, 1].
"""

from __future__ import annotations

import numpy as np

from fusion3d.types import DETECTION_CLASSES, MAP_CLASSES

BACKGROUND = "#0e1116"  # the page
PANEL = "#151a21"  # a surface on it
LINE = "#2a323d"  # frames
RING = "#364252"  # grid rings
TEXT = "#e3e8ef"
MUTED = "#8b97a7"
TRUTH = "#f4f6f8"  # outlines of the ground truth and the path that was driven
PLAN = "#ffd84d"
RADAR = "#ff4fd0"
DRIVABLE = "#1e2733"
DRIVABLE_EDGE = "#6f9f8a"

# The ground, dark under everything else; later classes are painted over earlier ones.
MAP_COLORS: dict[str, str] = dict(
    zip(MAP_CLASSES, (DRIVABLE, "#4a4a30", "#2c2740", "#5a2f38", "#1c3a3a", "#59616e"), strict=True)
)
MAP_ORDER = ("drivable_area", "walkway", "carpark_area", "ped_crossing", "stop_line", "divider")

CLASS_COLORS = dict(
    zip(
        DETECTION_CLASSES,
        ("#38b6ff", "#7f8cff", "#2fe0b5", "#bb8cff", "#ffb02e",
         "#ff5a67", "#ff9ad5", "#c9f04b", "#ff7b1c", "#cfa377"),
        strict=True,
    )
)  # fmt: skip

# Height of LiDAR points: dark ground, blue bumpers, pale roofs and trees. Low in saturation, so that boxes stand out.
HEIGHT_RANGE = (-0.5, 4.0)  # [m] over the ground, in ego
_HEIGHT_STOPS = np.array([[58, 69, 86], [66, 104, 138], [86, 160, 168], [168, 203, 172], [236, 226, 178]]) / 255
_HEAT_STOPS = np.array([[46, 16, 101], [190, 24, 93], [249, 115, 22], [254, 240, 138]]) / 255  # cold to hot
# From the plan's own colour to the rings'.
_COST_STOPS = np.array([[255, 216, 77], [139, 151, 167], [62, 74, 92]]) / 255


def rgb(color: str) -> tuple[float, float, float]:
    """``#rrggbb`` to three floats in [0, 1]."""
    return int(color[1:3], 16) / 255, int(color[3:5], 16) / 255, int(color[5:7], 16) / 255


def class_rgb(labels: np.ndarray) -> np.ndarray:
    """[K] class indices to [K, 3] colours."""
    table = np.array([rgb(CLASS_COLORS[name]) for name in DETECTION_CLASSES])
    return table[np.asarray(labels, dtype=np.int64)]


def height_rgb(z: np.ndarray) -> np.ndarray:
    """[P] heights in ego [m] to [P, 3] colours; beyond ``HEIGHT_RANGE`` the ends are held."""
    low, high = HEIGHT_RANGE
    return _between(_HEIGHT_STOPS, (np.asarray(z) - low) / (high - low))


def heat_rgb(part: np.ndarray) -> np.ndarray:
    """[...] heat from 0, cold, to 1, hot, to [..., 3] colours."""
    return _between(_HEAT_STOPS, part)


def cost_rgb(part: np.ndarray) -> np.ndarray:
    """[...] cost from 0, the cheapest, to 1, the dearest, to [..., 3] colours."""
    return _between(_COST_STOPS, part)


def _between(stops: np.ndarray, part: np.ndarray) -> np.ndarray:
    """[..., 3] colours between evenly spaced stops [S, 3]; below 0 and above 1 the ends are held."""
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(part, at, stops[:, channel]) for channel in range(3)], axis=-1)
