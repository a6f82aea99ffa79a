"""The scene from above, ego forward is up: map, points, radar, boxes and paths on one matplotlib axes.

The axes are in metres: right is -y of ego, up is +x. Velocity arrows are as long as one second of motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fusion3d.geometry import corners_bev
from fusion3d.types import (
    EGO_CENTER,
    EGO_SIZE,
    KEY_SWEEP,
    LIDAR_FIELDS,
    MAP_CLASSES,
    RADAR_FIELDS,
    BEVGrid,
    Boxes,
    Forecast,
    Occupancy,
    PlanModes,
    Sample,
    Trajectory,
)
from fusion3d.view import colors
from fusion3d.view.planner import drivable_edge, others_expected, weighed_paths

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SLOW = 0.5  # [m/s] below it a velocity gets no arrow
_LIKELY = 0.05  # ways that are less so are not drawn
_SHORT = 0.5  # [m] nor are those that hardly leave where the box is
THIN = 1.1  # width of a line [pt]
_OPAQUE = 0.85  # of the hottest cell
_TIME = LIDAR_FIELDS.index("time")


def to_page(xy: Tensor) -> np.ndarray:
    """[..., 2+] ego x, y to [..., 2] axes coordinates (right, up)."""
    xy_array = xy.detach().cpu().double().numpy()
    return np.stack([-xy_array[..., 1], xy_array[..., 0]], axis=-1)


def rasterise(sample: Sample, grid: BEVGrid, height: int) -> np.ndarray:
    """The map and LiDAR points as an image, [height, W, 3] float in [0, 1], first row farthest ahead.

    Points are coloured by height, high over low; those of older sweeps are faint and lie under the keyframe's.
    """
    depth, breadth = grid.x[1] - grid.x[0], grid.y[1] - grid.y[0]
    width = round(height * breadth / depth)
    image = np.empty((height, width, 3))
    image[:] = colors.rgb(colors.PANEL)
    if sample.map_mask is not None:
        masks = dict(zip(MAP_CLASSES, sample.map_mask.cpu().numpy(), strict=True))  # [Y, X] each
        rows = (np.arange(height)[::-1] * sample.map_mask.shape[2]) // height  # up the page is ego x
        cols = (np.arange(width)[::-1] * sample.map_mask.shape[1]) // width  # left on the page is ego y
        for name in colors.MAP_ORDER:
            image[masks[name].T[np.ix_(rows, cols)]] = colors.rgb(colors.MAP_COLORS[name])
    if sample.lidar is None:
        return image
    points = sample.lidar.detach().cpu().numpy()
    points = points[np.argsort(points[:, 2], kind="stable")]
    row = np.floor((grid.x[1] - points[:, 0]) / depth * height).astype(np.int64)
    col = np.floor((grid.y[1] - points[:, 1]) / breadth * width).astype(np.int64)
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    key = points[:, _TIME] < KEY_SWEEP
    for chosen, alpha in ((inside & ~key, 0.3), (inside & key, 1.0)):
        if chosen.any():
            at = row[chosen], col[chosen]
            image[at] = (1 - alpha) * image[at] + alpha * colors.height_rgb(points[chosen, 2])
    return image


def draw_birdseye(
    axes: Axes,
    sample: Sample,
    predictions: Boxes | None,
    plan: Trajectory | None,
    grid: BEVGrid,
    pixels: int,
    marks: Sequence[tuple[float, float]] = (),
    motion: Forecast | None = None,
    occupancy: Occupancy | None = None,
    modes: PlanModes | None = None,
) -> None:
    """Draw one sample from above.

    Args:
        axes: emptied of ticks and frame here; its aspect should be that of the grid.
        sample: what is absent is not drawn.
        predictions: in ego; the opacity is the score.
        plan: [T], in ego.
        grid: what is shown.
        pixels: height of the axes on the page, so that a LiDAR point is one pixel.
        marks: x, y in ego [m] of places that are circled.
        motion: how ``predictions`` go on, in ego; the opacity is how likely.
        occupancy: of the sample, probabilities in the grid; or None.
        modes: [K, T] the paths that the plan was chosen among, in ego; coloured by what they are expected to cost.
    """
    extent = (-grid.y[1], -grid.y[0], grid.x[0], grid.x[1])
    axes.imshow(rasterise(sample, grid, pixels), extent=extent, interpolation="nearest", zorder=0)
    axes.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[], aspect="auto")
    for spine in axes.spines.values():
        spine.set_color(colors.LINE)
    _draw_rings(axes, grid)
    if occupancy is not None:
        lay_heat(axes, others_expected(occupancy), grid, hottest=1.0)
        _draw_lines(axes, drivable_edge(occupancy, grid), colors.DRIVABLE_EDGE, zorder=3.6)
    if sample.map_mask is not None:
        _name_ground(axes, sample.map_mask)
    if sample.radar is not None:
        _draw_radar(axes, sample.radar)
    if predictions is not None:
        _draw_boxes(axes, predictions, truth=False)
        _draw_motion(axes, predictions, motion)
    if sample.boxes is not None:
        _draw_boxes(axes, sample.boxes, truth=True, filled=predictions is None)
    if modes is not None:
        _draw_modes(axes, modes)
    _draw_path(axes, sample.past, colors.MUTED, 1.4, zorder=6)
    _draw_path(axes, sample.future, colors.TRUTH, 5.0, zorder=7, alpha=0.55)
    _draw_path(axes, plan, colors.PLAN, 2.2, zorder=8, dots=True)
    _draw_ego(axes)
    if marks:
        at = to_page(torch.tensor(marks))
        axes.scatter(at[:, 0], at[:, 1], s=260, facecolors="none", edgecolors=colors.TRUTH, linewidths=1.6, zorder=10)


def lay_heat(axes: Axes, heat_YX: np.ndarray, grid: BEVGrid, hottest: float | None = None) -> None:
    """Lay heat [Y, X] over a bird's-eye view: above the points, below the boxes. None: its own largest is hottest."""
    hottest = float(heat_YX.max(initial=0)) if hottest is None else hottest
    up_left = colour(heat_YX, hottest).transpose(1, 0, 2)[::-1, ::-1]  # up is x, left is y
    extent = (-grid.y[1], -grid.y[0], grid.x[0], grid.x[1])
    axes.imshow(up_left, extent=extent, interpolation="bilinear", zorder=3.5, aspect="auto")


def colour(heat: np.ndarray, hottest: float) -> np.ndarray:
    """[...] heat to [..., 4] colours in [0, 1]; where there is none they are clear."""
    part = np.clip(heat / hottest, 0, 1) if hottest > 0 else np.zeros(heat.shape)
    return np.concatenate([colors.heat_rgb(part), _OPAQUE * np.sqrt(part)[..., None]], axis=-1)


def _draw_rings(axes: Axes, grid: BEVGrid) -> None:
    from matplotlib.patches import Circle

    reach = max(abs(edge) for edge in (*grid.x, *grid.y))
    for radius in np.arange(10, reach * 1.42, 10):
        axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor=colors.RING, linewidth=0.8, zorder=1))
        along = radius * 0.5**0.5  # labels stand on the diagonal ahead to the right, where no path runs
        if along < min(grid.x[1], -grid.y[0]) - 2:
            axes.text(
                along, along, f"{radius:.0f} m", color=colors.MUTED, fontsize=7, ha="center", va="center", zorder=1.5,
                bbox={"facecolor": colors.PANEL, "edgecolor": "none", "pad": 1.2, "alpha": 0.8},
            )  # fmt: skip


def _name_ground(axes: Axes, mask: Tensor) -> None:
    """What the colours of the ground mean, in the lower left corner."""
    there = [name for name, layer in zip(MAP_CLASSES, mask, strict=True) if bool(layer.any())]
    for row, name in enumerate(reversed(there)):
        axes.text(
            0.014, 0.014 + 0.022 * row, name.replace("_", " "), color=colors.TEXT, fontsize=7, transform=axes.transAxes,
            zorder=10, bbox={"facecolor": colors.MAP_COLORS[name], "edgecolor": colors.LINE, "pad": 2.0},
        )  # fmt: skip


def _draw_radar(axes: Axes, radar: Tensor) -> None:
    time = radar[:, RADAR_FIELDS.index("time")]
    velocity = radar[:, [RADAR_FIELDS.index("vx"), RADAR_FIELDS.index("vy")]]
    key = time < 0.1  # a radar fires every 77 ms, so its keyframe is up to that old
    valid = radar[:, RADAR_FIELDS.index("invalid_state")] == 0
    at = to_page(radar)
    for chosen, size, alpha in ((~key, 3, 0.25), (key & ~valid, 7, 0.4), (key & valid, 11, 1.0)):
        if chosen.any():
            dots = at[chosen.cpu().numpy()]
            axes.scatter(dots[:, 0], dots[:, 1], s=size, color=colors.RADAR, alpha=alpha, linewidths=0, zorder=3)
    _draw_arrows(axes, radar[key], velocity[key], colors.RADAR, zorder=3)


def _draw_arrows(axes: Axes, start: Tensor, velocity: Tensor, color: object, zorder: float) -> None:
    moving = velocity.norm(dim=-1) > SLOW  # NaN is False
    if not moving.any():
        return
    at, length = to_page(start[moving]), to_page(velocity[moving])
    if isinstance(color, np.ndarray):
        color = color[moving.cpu().numpy()]
    axes.quiver(
        at[:, 0], at[:, 1], length[:, 0], length[:, 1], color=color, angles="xy", scale_units="xy", scale=1,
        units="dots", width=1.3, headwidth=5, headlength=5, headaxislength=4.2, minlength=0.1, zorder=zorder,
    )  # fmt: skip


def _draw_boxes(axes: Axes, boxes: Boxes, truth: bool, filled: bool = True) -> None:
    from matplotlib.collections import LineCollection, PolyCollection

    if len(boxes) == 0:
        return
    corners = to_page(corners_bev(boxes.center, boxes.size, boxes.yaw))  # [K, 4, 2] clockwise from front left
    kind = colors.class_rgb(boxes.label.cpu().numpy())
    alpha = box_alpha(boxes, truth)[:, None]
    if truth:
        edge = np.concatenate([np.tile(colors.rgb(colors.TRUTH), (len(boxes), 1)), 0.95 * alpha], axis=1)
        face = np.concatenate([kind, alpha * (0.6 if filled else 0.0)], axis=1)
    else:
        edge = np.concatenate([kind, alpha], axis=1)
        face = np.concatenate([kind, 0.3 * alpha], axis=1)
    width, zorder = (0.9, 5) if truth else (2.0, 4)
    axes.add_collection(
        PolyCollection(list(corners), facecolors=face, edgecolors=edge, linewidths=width, zorder=zorder)
    )
    front = corners[:, :2].mean(1)
    heading = np.stack([corners.mean(1), front], axis=1)  # [K, 2, 2]
    axes.add_collection(LineCollection(list(heading), colors=edge, linewidths=width, zorder=zorder))
    _draw_arrows(axes, boxes.center, boxes.velocity, edge, zorder)


def _draw_motion(axes: Axes, boxes: Boxes, motion: Forecast | None) -> None:
    if motion is None:
        return
    path, row, alpha = likely_paths(boxes, motion)
    color = np.concatenate([colors.class_rgb(boxes.label.cpu().numpy()[row]), alpha[:, None]], axis=1)
    _draw_lines(axes, path, color, zorder=4.5)


def _draw_modes(axes: Axes, modes: PlanModes) -> None:
    """Each path, and a dot where it ends: many differ in nothing but how fast they are driven."""
    pieces, shade = weighed_paths(modes)
    _draw_lines(axes, pieces.flatten(0, 1), shade.repeat(pieces.shape[1], axis=0), zorder=7.5)
    ends = to_page(pieces[:, -1, 1])
    axes.scatter(ends[:, 0], ends[:, 1], s=7, color=shade, linewidths=0, zorder=7.5)


def _draw_lines(axes: Axes, lines: Tensor, color: str | np.ndarray, zorder: float) -> None:
    """Thin lines [N, points, 2] in ego, of one colour or of [N, 3 or 4]."""
    from matplotlib.collections import LineCollection

    axes.add_collection(LineCollection(list(to_page(lines)), colors=color, linewidths=THIN, zorder=zorder))


def likely_paths(boxes: Boxes, motion: Forecast) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """The paths that are worth drawing, from where the boxes are now.

    Args:
        boxes: A.
        motion: how they go on.

    Returns:
        Points [S, 1 + T, 2], the row of the box of each path [S], and its opacity [S] in [0, 1].
    """
    far = (motion.position[:, :, -1] - boxes.center[:, None, :2]).norm(dim=-1) > _SHORT
    row, way = ((motion.score >= _LIKELY) & far).nonzero(as_tuple=True)
    path = torch.cat([boxes.center[row, None, :2], motion.position[row, way]], dim=1)
    likely, of_box = motion.score[row, way].cpu().double().numpy(), row.cpu().numpy()
    return path, of_box, (0.2 + 0.8 * likely) * box_alpha(boxes, truth=False)[of_box]


def box_alpha(boxes: Boxes, truth: bool) -> np.ndarray:
    """[K] opacity in [0, 1]: a prediction's grows with its score and is never invisible.

    Ground truth is opaque, but faint where no LiDAR or radar point is in the box: it is not scored either.
    """
    if truth:
        return np.where((boxes.num_points == 0).all(-1).cpu().numpy(), 0.35, 1.0)
    return 0.25 + 0.75 * boxes.score.detach().cpu().double().clamp(0, 1).numpy()


def _draw_path(
    axes: Axes,
    path: Trajectory | None,
    color: str,
    width: float,
    zorder: float,
    alpha: float = 1.0,
    dots: bool = False,
) -> None:
    if path is None or not path.mask.any():
        return
    at = np.concatenate([np.zeros((1, 2)), to_page(path.position[path.mask])])
    axes.plot(at[:, 0], at[:, 1], color=color, linewidth=width, alpha=alpha, solid_capstyle="round", zorder=zorder)
    if dots:
        edge = {"edgecolors": colors.BACKGROUND, "linewidths": 0.8}
        axes.scatter(at[1:, 0], at[1:, 1], s=16, color=color, zorder=zorder, **edge)


def _draw_ego(axes: Axes) -> None:
    from matplotlib.patches import Polygon

    x, y, length, width = EGO_CENTER, 0.0, *EGO_SIZE[:2]
    corners = to_page(corners_bev(torch.tensor([[x, y]]), torch.tensor([[length, width]]), torch.zeros(1))[0])
    axes.add_patch(Polygon(corners, facecolor="#39434f", edgecolor=colors.TRUTH, linewidth=1.2, zorder=9))
    tip, base, half = x + length * 0.42, x + length * 0.1, width * 0.3
    nose = to_page(torch.tensor([[tip, y], [base, y + half], [base, y - half]]))
    axes.add_patch(Polygon(nose, facecolor=colors.TRUTH, edgecolor="none", zorder=9))
