"""Where a model looks: heat over the cameras' images and over the scene from above, a panel for each sensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fusion3d.errors import Fusion3DError
from fusion3d.types import BEVGrid, Boxes, Sample, Trajectory
from fusion3d.view import colors
from fusion3d.view.birdseye import colour, draw_birdseye, lay_heat
from fusion3d.view.pictures import LAYOUT, draw_camera
from fusion3d.view.sheet import Sheet, png_path

_MARGIN, _GAP, _TITLE, _NAME = 28, 12, 62, 26  # [px]
_PANEL = 560  # side of a map [px]
_TILE = 400  # least width of a camera [px]


def draw_heat(
    sample: Sample,
    predictions: Boxes | None,
    plan: Trajectory | None,
    bev: Mapping[str, np.ndarray],
    images: Mapping[str, np.ndarray],
    path: str | Path,
    grid: BEVGrid,
    title: str = "",
    captions: Mapping[str, str] | None = None,
    place: tuple[float, float] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write one PNG: the cameras with heat over them in two rows, below them a map from above for each sensor.

    Every map is coloured up to its own hottest cell.

    Args:
        sample: the images must be those that the model saw.
        predictions: boxes in ego that are drawn on the images, or None; from above only true ones are.
        plan: [T] in ego, or None.
        bev: by name, [Y, X] heat, 0 or more, in the grid.
        images: by camera channel, [h, w] heat of the whole image; where there is none, no cameras are drawn.
        path: a ``.png``; its folder is made, the file appears whole.
        grid: the area of the maps.
        title: what is explained.
        captions: by name of a map, what is said beside the name.
        place: x, y in ego [m] of what is explained; it is marked.
        notes: lines at the bottom.

    Raises:
        Fusion3DError: there is no heat to draw, or the file cannot be written or is no ``.png``.
    """
    path = png_path(path)
    if not bev and not images:
        raise Fusion3DError(f"{title or path.name}: there is no map to draw heat over")
    rows, cols = sample.cameras.images.shape[-2:] if sample.cameras is not None and images else (0, 1)
    inner = max(3 * (_TILE + _GAP) if images else 0, len(bev) * (_PANEL + _GAP)) - _GAP
    wide = (inner - 2 * _GAP) / 3  # of a camera
    tall = wide * rows / cols
    cameras_height = 2 * (tall + _GAP) if images else 0
    high = round(_PANEL * (grid.x[1] - grid.x[0]) / (grid.y[1] - grid.y[0])) if bev else 0
    below = _MARGIN + 20 * len(notes)
    width, height = 2 * _MARGIN + inner, _TITLE + cameras_height + (_NAME + high if bev else 0) + below
    sheet = Sheet(width, height)
    page = sheet.page
    page.text(_MARGIN, 34, title, fontsize=14, color=colors.TEXT, weight="bold", va="center")
    page.text(width - _MARGIN, 34, sample.scene, fontsize=10, color=colors.MUTED, ha="right", va="center")
    for i, line in enumerate(LAYOUT if images else ()):
        for j, channel in enumerate(line):
            axes = sheet.place(_MARGIN + j * (wide + _GAP), _TITLE + i * (tall + _GAP), wide, tall)
            hottest = max((float(heat.max()) for heat in images.values()), default=0.0)
            over = colour(images[channel], hottest) if channel in images else None
            draw_camera(axes, sample.cameras, channel, None, predictions, over)
    for j, (name, heat) in enumerate(bev.items()):
        left, top = _MARGIN + j * (_PANEL + _GAP), _TITLE + cameras_height
        said = (captions or {}).get(name, "")
        page.text(left, top + _NAME / 2, name, fontsize=11, color=colors.TEXT, weight="bold", va="center")
        page.text(left + _PANEL, top + _NAME / 2, said, fontsize=9.5, color=colors.MUTED, ha="right", va="center")
        axes = sheet.place(left, top + _NAME, _PANEL, high)
        radar = sample.radar if "radar" in name else None  # its arrows would hide the heat of the others
        marks = () if place is None else (place,)
        draw_birdseye(axes, replace(sample, radar=radar, map_mask=None), Boxes.empty(), plan, grid, high, marks)
        lay_heat(axes, heat, grid)
    for i, note in enumerate(notes):
        page.text(_MARGIN, height - below + 20 + 20 * i, note, fontsize=9, color=colors.MUTED, va="center")
    return sheet.write(path)
