"""One picture of one sample: what the cameras see, with boxes, beside the scene from above.

Left, the six cameras as they sit on the vehicle; right, the bird's-eye view; below the cameras, what the colours mean.
Truth is outlined in white, what the model says has the colour of its class.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusion3d.types import (
    COMMANDS,
    DETECTION_CLASSES,
    LIDAR_FIELDS,
    PLAN_SCORES,
    RADAR_FIELDS,
    RADARS,
    TIME_STEP,
    BEVGrid,
    Boxes,
    Cameras,
    Forecast,
    Occupancy,
    PlanModes,
    Sample,
    Trajectory,
)
from fusion3d.view import colors
from fusion3d.view.birdseye import THIN, box_alpha, colour, draw_birdseye
from fusion3d.view.projection import project_boxes
from fusion3d.view.sheet import Sheet, png_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Where each camera stands on the page, as it looks from the vehicle.
LAYOUT = (
    ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
)
MIN_SCORE = 0.2  # predictions below it are not drawn

_MARGIN, _GAP, _TITLE = 28, 8, 62  # [px]
_TILE = 520  # width of a camera [px]
_LEGEND = 270  # smallest height of the legend [px]
_BIRDSEYE = 860  # smallest side of the bird's-eye view [px]
_ARROW = {"arrowstyle": "-|>", "lw": 1.3, "shrinkA": 0, "shrinkB": 0}


def draw_sample(
    sample: Sample,
    predictions: Boxes | None,
    plan: Trajectory | None,
    path: str | Path,
    grid: BEVGrid | None = None,
    min_score: float = MIN_SCORE,
    caption: str = "",
    marks: Sequence[tuple[float, float]] = (),
    motion: Forecast | None = None,
    occupancy: Occupancy | None = None,
    modes: PlanModes | None = None,
) -> Path:
    """Write one PNG of a sample.

    Args:
        sample: any sensors, with or without ground truth; best without augmentation.
        predictions: boxes in ego, or None: ground truth only.
        plan: [T] planned path in ego, or None.
        path: where to; the folder is made, the file appears whole.
        grid: the area that is shown from above (and the extent of ``sample.map_mask``); None: +-54 m.
        min_score: predictions below it are not drawn.
        caption: said in the title, such as the sensors that the model was given.
        marks: x, y in ego [m] of places that are circled from above.
        motion: how ``predictions`` go on, or None.
        occupancy: what the planner goes by, of the sample: probabilities in the grid; or None.
        modes: [K, T] the paths that the plan was chosen among, in ego; or None.

    Returns:
        The path.

    Raises:
        Fusion3DError: the file cannot be written or is no ``.png``.
    """
    path = png_path(path)
    if predictions is not None:
        keep = predictions.score >= min_score
        predictions, motion = predictions[keep], None if motion is None else motion[keep]
    return compose(sample, predictions, plan, grid or BEVGrid(), caption, marks, motion, occupancy, modes).write(path)


def compose(
    sample: Sample,
    predictions: Boxes | None,
    plan: Trajectory | None,
    grid: BEVGrid,
    caption: str = "",
    marks: Sequence[tuple[float, float]] = (),
    motion: Forecast | None = None,
    occupancy: Occupancy | None = None,
    modes: PlanModes | None = None,
) -> Sheet:
    """The page of ``draw_sample``."""
    rows, cols = sample.cameras.images.shape[-2:] if sample.cameras is not None else (9, 16)
    tile_height = round(_TILE * min(rows / cols, 0.75))
    cameras_height = 2 * tile_height + _GAP
    depth, breadth = grid.x[1] - grid.x[0], grid.y[1] - grid.y[0]
    view_height = max(cameras_height + _MARGIN + _LEGEND, _BIRDSEYE)
    view_width = round(view_height * breadth / depth)
    cameras_width = 3 * _TILE + 2 * _GAP
    width = _MARGIN + cameras_width + _MARGIN + view_width + _MARGIN
    sheet = Sheet(width, _TITLE + view_height + _MARGIN)
    _write_title(sheet.page, sample, caption, width)
    for i, line in enumerate(LAYOUT):
        for j, channel in enumerate(line):
            axes = sheet.place(_MARGIN + j * (_TILE + _GAP), _TITLE + i * (tile_height + _GAP), _TILE, tile_height)
            draw_camera(axes, sample.cameras, channel, sample.boxes, predictions)
    above = sheet.place(_MARGIN * 2 + cameras_width, _TITLE, view_width, view_height)
    draw_birdseye(above, sample, predictions, plan, grid, view_height, marks, motion, occupancy, modes)
    top, left = _TITLE + cameras_height + _MARGIN, _MARGIN
    _legend_classes(sheet.page, sample.boxes, predictions, left, top)
    marks_left, ego_left = (left + round(share * cameras_width) for share in (0.42, 0.74))
    _legend_marks(sheet.page, sample, predictions, plan, motion, occupancy is not None, modes, marks_left, top)
    _legend_plan(sheet.page, sample, plan, modes, ego_left, top)
    return sheet


def draw_camera(
    axes: Axes,
    cameras: Cameras | None,
    channel: str,
    truth: Boxes | None,
    predictions: Boxes | None,
    over: np.ndarray | None = None,
) -> None:
    """One camera's image and the boxes in it; an empty frame where the camera is absent.

    Args:
        axes: emptied of ticks here.
        cameras: of one sample.
        channel: of CAMERAS.
        truth: boxes in ego, or None.
        predictions: boxes in ego, or None.
        over: [h, w, 4] colours in [0, 1] that are laid over the whole image.
    """
    axes.set(xticks=[], yticks=[])
    axes.set_facecolor(colors.PANEL)
    for spine in axes.spines.values():
        spine.set_color(colors.LINE)
    name = channel.removeprefix("CAM_").replace("_", " ").lower()
    label: dict[str, Any] = {"fontsize": 9, "color": colors.TEXT, "transform": axes.transAxes, "zorder": 10}
    if cameras is None or channel not in cameras.channels:
        for spine in axes.spines.values():
            spine.set_linestyle((0, (4, 4)))
        label["color"] = colors.MUTED
        axes.text(0.5, 0.5, f"{name}\nabsent", ha="center", va="center", **label)
        return
    index = cameras.channels.index(channel)
    image = cameras.images[index].detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    rows, cols = image.shape[:2]
    axes.imshow((image * 255).round().astype(np.uint8), interpolation="bilinear", aspect="auto")
    if over is not None:
        axes.imshow(over, extent=(-0.5, cols - 0.5, rows - 0.5, -0.5), interpolation="bilinear", aspect="auto")
    pose, intrinsics = cameras.ego_from_cam[index].cpu(), cameras.image_from_cam[index].cpu()
    if truth is not None:
        seen = project_boxes(truth, pose, intrinsics, (rows, cols))
        _draw_projected(axes, truth, seen, truth=True, alone=predictions is None)
    if predictions is not None:
        _draw_projected(axes, predictions, project_boxes(predictions, pose, intrinsics, (rows, cols)), truth=False)
    axes.set(xlim=(-0.5, cols - 0.5), ylim=(rows - 0.5, -0.5))
    pill = {"facecolor": colors.BACKGROUND, "edgecolor": "none", "alpha": 0.7, "boxstyle": "round,pad=0.3"}
    axes.text(8 / _TILE * 1.6, 0.955, name, ha="left", va="top", bbox=pill, **label)


def _draw_projected(axes: Axes, boxes: Boxes, seen: list, truth: bool, alone: bool = False) -> None:
    """Wireframes with a tinted front face: class colours, or white where both truth and predictions are drawn."""
    from matplotlib.collections import LineCollection, PolyCollection

    if not seen:
        return
    kind = colors.class_rgb(boxes.label.cpu().numpy())
    alpha = box_alpha(boxes, truth)
    white = truth and not alone
    lines, lines_color, faces, faces_color = [], [], [], []
    for k, edges, face in seen:
        color = (*(colors.rgb(colors.TRUTH) if white else kind[k]), alpha[k] * (0.8 if white else 1.0))
        lines += list(edges.numpy())
        lines_color += [color] * len(edges)
        if len(face) >= 3 and not white:
            faces.append(face.numpy())
            faces_color.append((*kind[k], 0.25 * alpha[k]))
    if faces:
        axes.add_collection(PolyCollection(faces, facecolors=faces_color, edgecolors="none", zorder=2))
    axes.add_collection(
        LineCollection(lines, colors=lines_color, linewidths=1.0 if white else 1.3, capstyle="round", zorder=3)
    )


def sensors_line(sample: Sample) -> str:
    """Which sensors a sample has, and how much they saw, in words."""
    parts = []
    parts.append("no camera" if sample.cameras is None else f"{len(sample.cameras.channels)} of 6 cameras")
    if sample.lidar is None:
        parts.append("no LiDAR")
    else:
        sweeps = len(torch.unique((sample.lidar[:, LIDAR_FIELDS.index("time")] * 1000).round()))
        parts.append(f"LiDAR {len(sample.lidar):,} points, {sweeps} sweep{'s' * (sweeps != 1)}")
    if sample.radar is None:
        parts.append("no radar")
    else:
        units = len(torch.unique(sample.radar[:, RADAR_FIELDS.index("sensor")]))
        parts.append(f"radar {len(sample.radar):,} returns of {units} of {len(RADARS)} units")
    return "   ·   ".join(parts)


def _write_title(page: Axes, sample: Sample, caption: str, width: int) -> None:
    when = datetime.fromtimestamp(sample.timestamp / 1e6, tz=timezone.utc)
    page.text(_MARGIN, 34, sample.scene, fontsize=16, color=colors.TEXT, weight="bold", va="center")
    left = _MARGIN + 14 * len(sample.scene) + 24
    page.text(left, 27, sensors_line(sample), fontsize=9.5, color=colors.TEXT, va="center")
    page.text(
        left, 44, f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03d} UTC   ·   {sample.token}",
        fontsize=8, color=colors.MUTED, va="center",
    )  # fmt: skip
    if caption:
        page.text(width - _MARGIN, 34, caption, fontsize=11, color=colors.TEXT, va="center", ha="right")


def _heading(page: Axes, x: float, y: float, text: str) -> None:
    page.text(x, y, text, fontsize=10, color=colors.TEXT, weight="bold", va="center")


def _legend_classes(page: Axes, truth: Boxes | None, predictions: Boxes | None, left: int, top: int) -> None:
    from matplotlib.patches import Rectangle

    _heading(page, left, top + 8, "Objects")
    for column in (0, 1):
        for offset, what, there in ((190, "true", truth), (250, "found", predictions)):
            if there is not None:
                x = left + column * 310 + offset
                page.text(x, top + 8, what, fontsize=8, color=colors.MUTED, ha="right", va="center")
    for i, name in enumerate(DETECTION_CLASSES):
        x, y = left + 310 * (i // 5), top + 40 + 32 * (i % 5)
        page.add_patch(Rectangle((x, y - 7), 14, 14, facecolor=colors.CLASS_COLORS[name], edgecolor="none"))
        page.text(x + 24, y, name.replace("_", " "), fontsize=9.5, color=colors.TEXT, va="center")
        for offset, boxes in ((190, truth), (250, predictions)):
            if boxes is not None:
                count = int((boxes.label == i).sum())
                shade = colors.TEXT if count else colors.LINE
                page.text(x + offset, y, str(count), fontsize=9.5, color=shade, ha="right", va="center")


def _legend_marks(
    page: Axes,
    sample: Sample,
    predictions: Boxes | None,
    plan: Trajectory | None,
    motion: Forecast | None,
    foreseen: bool,
    modes: PlanModes | None,
    left: int,
    top: int,
) -> None:
    """What is drawn and how, row by row; ``foreseen``: is there an occupancy?"""
    from matplotlib.patches import Rectangle

    _heading(page, left, top + 8, "Marks")
    y = top + 40

    def row(text: str) -> None:
        nonlocal y
        page.text(left + 54, y, text, fontsize=9.5, color=colors.TEXT, va="center")
        y += 22

    def line(color: str, width: float) -> None:
        page.plot([left + 4, left + 40], [y, y], color=color, linewidth=width, solid_capstyle="round")

    def bar(shade: np.ndarray) -> None:
        page.imshow(shade[None], extent=(left + 2, left + 42, y + 5, y - 5), aspect="auto", zorder=2)

    def arrow(color: str) -> None:
        page.annotate("", (left + 42, y), (left + 2, y), arrowprops=_ARROW | {"color": color})

    def swatch(face: str, edge: str, line: float) -> None:
        page.add_patch(Rectangle((left + 2, y - 8), 40, 16, facecolor=face, edgecolor=edge, linewidth=line))

    car = colors.CLASS_COLORS["car"]
    if sample.boxes is not None:
        swatch("none" if predictions is not None else car + "99", colors.TRUTH, 1.0)
        row("ground truth")
    if predictions is not None:
        swatch(car + "4d", car, 2.0)
        row("prediction (opacity: score)")
    if sample.boxes is not None or predictions is not None:
        arrow(colors.TRUTH)
        row("velocity: 1 s of motion")
    if motion is not None:
        line(car, THIN)
        row(f"ways to go on, {motion.yaw.shape[2] * TIME_STEP:g} s (opacity: how likely)")
    if sample.radar is not None:
        page.scatter([left + 2], [y], s=12, color=colors.RADAR, linewidths=0)
        arrow(colors.RADAR)
        row("radar return, radial velocity")
    if sample.lidar is not None:
        bar(colors.height_rgb(np.linspace(*colors.HEIGHT_RANGE, 64)))
        low, high = colors.HEIGHT_RANGE
        row(f"LiDAR height {low:g} to {high:g} m, sweeps faint")
    if foreseen:
        bar(colour(np.linspace(0, 1, 64), 1.0))
        row("others expected, now to 3 s")
        line(colors.DRIVABLE_EDGE, THIN)
        row("drivable area expected up to here")
    if modes is not None:
        bar(colors.cost_rgb(np.linspace(0, 1, 64)))
        costs = f"costs {modes.cost.min():.0f} to {modes.cost.max():.0f} m"
        row(f"{len(modes.cost)} paths, {costs}" + "; broken: it would hit" * bool(modes.rejected.any()))
    for there, color, width, text in (
        (plan, colors.PLAN, 2.2, "planned path, 0.5 s between dots"),
        (sample.future, colors.TRUTH + "8c", 5, "driven path"),
    ):
        if there is not None and there.mask.any():
            line(color, width)
            row(text)


def _legend_plan(
    page: Axes, sample: Sample, plan: Trajectory | None, modes: PlanModes | None, left: int, top: int
) -> None:
    """The plan in numbers, and what the planner thinks of it."""
    _heading(page, left, top + 8, "Ego")
    command = COMMANDS[sample.command] if sample.command >= 0 else "unknown"
    lines = [("command", command)]
    if sample.status is not None and bool(sample.status.velocity.isfinite().all()):
        lines.append(("speed", f"{float(sample.status.velocity.norm()):.1f} m/s"))
    if plan is not None and bool(plan.mask.any()):
        last = int(plan.mask.nonzero()[-1])
        lines.append((f"plan after {(last + 1) / 2:g} s", f"{float(plan.position[last].norm()):.1f} m away"))
        if sample.future is not None:
            for step in range(1, min(len(plan.mask), len(sample.future.mask)), 2):
                if plan.mask[step] and sample.future.mask[step]:
                    gap = float((plan.position[step] - sample.future.position[step]).norm())
                    lines.append((f"off the driven path at {(step + 1) / 2:g} s", f"{gap:.2f} m"))
    if modes is not None:
        chosen = int(modes.chosen)
        lines.append(("the plan's expected cost", f"{float(modes.cost[chosen]):.1f} m"))
        for risk, name in (("a collision", "collision"), ("leaving the road", "off_road")):
            lines.append((f"its risk of {risk}", f"{float(modes.score[chosen, PLAN_SCORES.index(name)]):.0%}"))
    for i, (what, value) in enumerate(lines):
        y = top + 40 + 24 * i
        page.text(left, y, what, fontsize=9.5, color=colors.MUTED, va="center")
        page.text(left + 330, y, value, fontsize=9.5, color=colors.TEXT, va="center", ha="right")
