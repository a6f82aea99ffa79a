"""The scene in three dimensions: built as plain arrays, shown or rendered by Open3D.

``build_scene`` needs no Open3D. ``show`` opens a window; ``save`` renders off-screen in a process of its own, because a
graphics driver that is missing or broken ends its process instead of raising an error.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion3d.errors import Fusion3DError
from fusion3d.files import write_whole, writing
from fusion3d.geometry import apply, box_corners
from fusion3d.types import (
    EGO_CENTER,
    EGO_SIZE,
    KEY_SWEEP,
    LIDAR_FIELDS,
    RADAR_FIELDS,
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
from fusion3d.view.birdseye import SLOW, colour, likely_paths
from fusion3d.view.planner import drivable_edge, others_expected, weighed_paths
from fusion3d.view.projection import BOX_EDGES

EYE, TARGET = (-19.0, 7.0, 15.0), (9.0, -1.0, 0.0)  # [m] in ego: from behind, above and a little to the left
SYSTEM_LIBRARIES = "libusb-1.0-0 libgl1 libegl1 libgomp1 libx11-6 libvulkan1 mesa-vulkan-drivers"
_REMEDY = f"run 'pip install open3d' and 'apt-get install -y {SYSTEM_LIBRARIES}' (on Debian or Ubuntu)"
_FACES = ((0, 1, 2, 3), (4, 7, 6, 5), (0, 4, 5, 1), (3, 2, 6, 7), (0, 3, 7, 4), (1, 5, 6, 2))  # of box_corners


@dataclass(frozen=True)
class Scene:
    """What is to be drawn, in ego [m], with colours in [0, 1]."""

    points: np.ndarray  # [P, 3] float32
    point_colors: np.ndarray  # [P, 3] float32
    segments: np.ndarray  # [S, 2, 3] float32, lines
    segment_colors: np.ndarray  # [S, 3] float32
    triangles: np.ndarray  # [T, 3, 3] float32, surfaces
    triangle_colors: np.ndarray  # [T, 3] float32


class _Builder:
    """Collects coloured points, lines and surfaces."""

    def __init__(self) -> None:
        self.parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"points": [], "segments": [], "triangles": []}

    def add(self, kind: str, shapes: Tensor | np.ndarray, color: str | np.ndarray) -> None:
        """Add [N, ...] shapes with one colour, or with [N, 3] colours."""
        array = np.asarray(shapes.detach().cpu() if isinstance(shapes, Tensor) else shapes, dtype=np.float32)
        shade = np.asarray(colors.rgb(color) if isinstance(color, str) else color, dtype=np.float32)
        self.parts[kind].append((array, np.broadcast_to(shade, (len(array), 3))))

    def build(self) -> Scene:
        arrays = {}
        for kind, shape in (("points", (0, 3)), ("segments", (0, 2, 3)), ("triangles", (0, 3, 3))):
            parts = [*self.parts[kind], (np.zeros(shape, np.float32), np.zeros((0, 3), np.float32))]
            arrays[kind] = np.concatenate([part for part, _ in parts])
            arrays[f"{kind[:-1]}_colors"] = np.concatenate([shade for _, shade in parts])
        return Scene(**arrays)


def build_scene(
    sample: Sample,
    predictions: Boxes | None = None,
    plan: Trajectory | None = None,
    min_score: float = 0.2,
    motion: Forecast | None = None,
    occupancy: Occupancy | None = None,
    grid: BEVGrid | None = None,
    modes: PlanModes | None = None,
) -> Scene:
    """Everything in a sample, and what the model says about it, as coloured points, lines and surfaces.

    Args:
        sample: what is absent is left out.
        predictions: boxes in ego; those below ``min_score`` are left out, and a low score darkens the colour.
        plan: [T] planned path in ego.
        min_score: see ``predictions``.
        motion: how ``predictions`` go on, in ego; what is less likely is darker.
        occupancy: of the sample, probabilities in the grid; or None.
        grid: of the occupancy.
        modes: [K, T] the paths that the plan was chosen among, in ego; coloured by what they are expected to cost.
    """
    builder = _Builder()
    _add_rings(builder)
    if occupancy is not None and grid is not None:
        _add_heat(builder, others_expected(occupancy), grid)
        builder.add("segments", _on_ground(drivable_edge(occupancy, grid), 0.02), colors.DRIVABLE_EDGE)
    _add_ego(builder)
    if sample.lidar is not None:
        shade = colors.height_rgb(sample.lidar[:, 2].cpu().numpy())
        sweep = (sample.lidar[:, LIDAR_FIELDS.index("time")] > KEY_SWEEP).cpu().numpy()
        builder.add("points", sample.lidar[:, :3], _dim(shade, np.where(sweep, 0.45, 1.0)))
    if sample.radar is not None:
        _add_radar(builder, sample.radar)
    if sample.cameras is not None:
        _add_frusta(builder, sample.cameras)
    if predictions is not None:
        keep = predictions.score >= min_score
        if motion is not None:
            _add_motion(builder, predictions[keep], motion[keep])
        predictions = predictions[keep]
        shade = colors.class_rgb(predictions.label.cpu().numpy())
        score = predictions.score.detach().cpu().clamp(0, 1).numpy()
        _add_boxes(builder, predictions, _dim(shade, 0.35 + 0.65 * score))
    if sample.boxes is not None:
        shade = colors.class_rgb(sample.boxes.label.cpu().numpy())
        white = np.tile(colors.rgb(colors.TRUTH), (len(sample.boxes), 1))
        _add_boxes(builder, sample.boxes, shade if predictions is None else white)
    if modes is not None:
        pieces, shade = weighed_paths(modes)
        builder.add("segments", _on_ground(pieces.flatten(0, 1), 0.05), shade.repeat(pieces.shape[1], axis=0))
    _add_ribbon(builder, sample.future, 1.6, 0.03, "#5b6675")
    _add_ribbon(builder, plan, 0.6, 0.08, colors.PLAN)
    return builder.build()


def _dim(shade: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """[N, 3] colours mixed with the background: strength [N] 1 is the colour itself."""
    return np.array(colors.rgb(colors.BACKGROUND)) * (1 - strength[:, None]) + shade * strength[:, None]


def _add_rings(builder: _Builder) -> None:
    angle = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=-1)
    for radius in range(10, 60, 10):
        ring = circle * radius
        builder.add("segments", np.stack([ring[:-1], ring[1:]], axis=1), colors.RING)


def _add_heat(builder: _Builder, heat_YX: np.ndarray, grid: BEVGrid) -> None:
    """A tile on the ground for every cell with any heat, darker where there is less."""
    warm = heat_YX > 0
    middle = grid.centers().numpy()[warm]
    half = grid.resolution / 2 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    corners = np.pad(middle[:, None] + half, ((0, 0), (0, 0), (0, 1)), constant_values=0.01)
    shade = colour(heat_YX[warm], 1.0)
    shade = _dim(shade[:, :3], shade[:, 3])
    for chosen in ([0, 1, 2], [0, 2, 3]):
        builder.add("triangles", corners[:, chosen], shade)


def _box_edges(corners: Tensor) -> Tensor:
    """[K, 8, 3] corners to [12 K, 2, 3] edges."""
    return corners[:, torch.tensor(BOX_EDGES)].reshape(-1, 2, 3)


def _box_faces(corners: Tensor) -> Tensor:
    """[K, 8, 3] corners to [12 K, 3, 3] triangles."""
    faces = torch.tensor([corner for a, b, c, d in _FACES for corner in ((a, b, c), (a, c, d))])
    return corners[:, faces].reshape(-1, 3, 3)


def _add_ego(builder: _Builder) -> None:
    center = torch.tensor([[EGO_CENTER, 0.0, EGO_SIZE[2] / 2]])
    corners = box_corners(center, torch.tensor([EGO_SIZE]), torch.zeros(1))
    builder.add("triangles", _box_faces(corners), "#39434f")
    builder.add("segments", _box_edges(corners), colors.TRUTH)


def _add_boxes(builder: _Builder, boxes: Boxes, shade: np.ndarray) -> None:
    """Edges, a heading line on the ground side of the front, and the way of one second."""
    if len(boxes) == 0:
        return
    corners = box_corners(boxes.center, boxes.size, boxes.yaw).detach().cpu()
    builder.add("segments", _box_edges(corners), shade.repeat(len(BOX_EDGES), axis=0))
    bottom, front = corners[:, [2, 3, 6, 7]].mean(1), corners[:, [2, 3]].mean(1)
    builder.add("segments", torch.stack([bottom, front], dim=1), shade)
    _add_arrows(builder, bottom, boxes.velocity.detach().cpu(), shade)


def _add_motion(builder: _Builder, boxes: Boxes, motion: Forecast) -> None:
    """Lines on the ground along the likely ways of every box."""
    path, row, strength = likely_paths(boxes, motion)
    low = (boxes.center[:, 2] - boxes.size[:, 2] / 2)[row, None, None].expand(-1, path.shape[1], -1)
    at = torch.cat([path, low], dim=-1)
    segments = torch.stack([at[:, :-1], at[:, 1:]], dim=2)
    shade = _dim(colors.class_rgb(boxes.label.cpu().numpy())[row], strength)
    builder.add("segments", segments.flatten(0, 1), shade.repeat(segments.shape[1], axis=0))


def _add_radar(builder: _Builder, radar: Tensor) -> None:
    """Small cubes, faint for older sweeps and invalid returns, with an arrow of compensated velocity."""
    radar = radar.detach().cpu()
    if len(radar) == 0:
        return
    key = radar[:, RADAR_FIELDS.index("time")] < 0.1
    strong = key & (radar[:, RADAR_FIELDS.index("invalid_state")] == 0)
    shade = _dim(np.tile(colors.rgb(colors.RADAR), (len(radar), 1)), np.where(strong.numpy(), 1.0, 0.4))
    cubes = box_corners(radar[:, :3], torch.full((len(radar), 3), 0.35), torch.zeros(len(radar)))
    builder.add("triangles", _box_faces(cubes), shade.repeat(12, axis=0))
    velocity = radar[:, [RADAR_FIELDS.index("vx"), RADAR_FIELDS.index("vy")]]
    _add_arrows(builder, radar[key, :3], velocity[key], shade[key.numpy()])


def _add_arrows(builder: _Builder, start: Tensor, velocity: Tensor, shade: np.ndarray) -> None:
    """[N, 3] origins and [N, 2] velocities to arrows as long as one second of motion."""
    moving = velocity.norm(dim=-1) > SLOW  # NaN is False
    start, along = start[moving], torch.nn.functional.pad(velocity[moving], (0, 1))
    end, across = start + along, torch.stack([-along[:, 1], along[:, 0], along[:, 2]], dim=-1)
    size = 0.5 / along.norm(dim=-1, keepdim=True)
    for tip in (start, end - size * (along + 0.5 * across), end - size * (along - 0.5 * across)):
        builder.add("segments", torch.stack([tip, end], dim=1), shade[moving.cpu().numpy()])


def _add_frusta(builder: _Builder, cameras: Cameras, depth: float = 1.4) -> None:
    """A pyramid from every camera to the corners of its image."""
    rows, cols = cameras.images.shape[-2:]
    pixel = torch.tensor([[0.0, 0, 1], [cols - 1, 0, 1], [cols - 1, rows - 1, 1], [0, rows - 1, 1]])
    for intrinsics, pose in zip(cameras.image_from_cam.cpu(), cameras.ego_from_cam.cpu(), strict=True):
        rays = pixel @ torch.linalg.inv(intrinsics[:3, :3]).T * depth
        corners = apply(pose, torch.cat([torch.zeros(1, 3), rays]))  # the apex and four corners
        lines = torch.tensor([(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1)])
        builder.add("segments", corners[lines], colors.MUTED)


def _add_ribbon(builder: _Builder, path: Trajectory | None, width: float, height: float, color: str) -> None:
    """A path from the ego as a band on the ground, ``height`` above it so that bands do not fight for pixels."""
    if path is None or not path.mask.any():
        return
    at = torch.cat([torch.zeros(1, 2), path.position[path.mask].detach().cpu()])
    along = torch.cat([at[1:2] - at[:1], at[1:] - at[:-1]])
    across = torch.stack([-along[:, 1], along[:, 0]], dim=-1)
    across = across / across.norm(dim=-1, keepdim=True).clamp_min(1e-6) * width / 2
    left, right = (_on_ground(at + side, height) for side in (across, -across))
    builder.add("triangles", torch.stack([left[:-1], right[:-1], right[1:]], dim=1), color)
    builder.add("triangles", torch.stack([left[:-1], right[1:], left[1:]], dim=1), color)


def _on_ground(xy: Tensor, height: float) -> Tensor:
    """[..., 2] places to [..., 3], at a height [m] over the ground."""
    return torch.nn.functional.pad(xy, (0, 1), value=height)


def show(scene: Scene, title: str = "fusion3d") -> None:
    """Open a window and return when it is closed: drag to turn, wheel to zoom, Ctrl and drag to move.

    Raises:
        Fusion3DError: Open3D or a system library is missing, or there is no display.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise Fusion3DError("no display for a window (DISPLAY is not set): render to a file with --save PATH.png")
    o3d = _import_open3d()
    window = o3d.visualization.Visualizer()
    if not window.create_window(title, 1600, 1000):
        raise Fusion3DError("Open3D could not open a window on this display: use --save PATH.png instead")
    for _, geometry, _ in _geometries(o3d, scene):
        window.add_geometry(geometry)
    option = window.get_render_option()
    option.background_color = np.array(colors.rgb(colors.BACKGROUND))
    option.point_size = 2.0
    option.light_on = False
    option.mesh_show_back_face = True
    view = window.get_view_control()
    view.set_lookat(TARGET)
    view.set_front(np.subtract(EYE, TARGET))
    view.set_up((0, 0, 1))
    view.set_zoom(0.13)
    window.run()
    window.destroy_window()


def save(scene: Scene, path: str | Path, size: tuple[int, int] = (1600, 1000), timeout: float = 180.0) -> Path:
    """Render off-screen to a PNG, without display or GPU.

    Args:
        scene: from ``build_scene``.
        path: a name that ends in ``.png``; the folder is made, the file appears whole.
        size: width and height [px].
        timeout: seconds after which the renderer is given up.

    Raises:
        Fusion3DError: Open3D or a system library is missing, the renderer crashed, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise Fusion3DError(f"cannot render to {path}: expected a name that ends in .png")
    with tempfile.TemporaryDirectory(prefix="fusion3d-") as folder:
        source, target = Path(folder) / "scene.npz", Path(folder) / "scene.png"
        with writing(source):
            np.savez(source, **{f.name: getattr(scene, f.name) for f in fields(scene)})
        command = [sys.executable, "-m", "fusion3d.view.scene", str(source), str(target), *map(str, size)]
        # The child finds the package where this process found it, installed or not.
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout, env=environment, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Fusion3DError(f"the off-screen renderer did not finish in {timeout:g} s; {_REMEDY}") from error
        if done.returncode != 0 or not target.is_file():
            lines = done.stderr.strip().splitlines()
            why = lines[-1] if lines and done.returncode > 0 else f"it ended with status {done.returncode}"
            raise Fusion3DError(f"the off-screen renderer failed: {why}; {_REMEDY}")
        return write_whole(path, target.read_bytes())


def _import_open3d() -> Any:
    """Open3D's module, which is imported nowhere else."""
    if importlib.util.find_spec("open3d") is None:
        raise Fusion3DError(f"the 3-D view needs Open3D, which is not installed: {_REMEDY}")
    try:
        return importlib.import_module("open3d")  # no statement: types are checked where it is not installed too
    except (ImportError, OSError) as error:
        raise Fusion3DError(f"Open3D cannot be loaded ({error}): {_REMEDY}") from error


def _geometries(o3d: Any, scene: Scene) -> list[tuple[str, Any, str]]:
    """(name, Open3D geometry, shader) of everything that is there."""
    vector, pairs = o3d.utility.Vector3dVector, o3d.utility.Vector2iVector
    found = []
    if len(scene.points):
        cloud = o3d.geometry.PointCloud(vector(scene.points.astype(np.float64)))
        cloud.colors = vector(scene.point_colors.astype(np.float64))
        found.append(("points", cloud, "defaultUnlit"))
    if len(scene.segments):
        ends = np.arange(2 * len(scene.segments), dtype=np.int32).reshape(-1, 2)
        lines = o3d.geometry.LineSet(vector(scene.segments.reshape(-1, 3).astype(np.float64)), pairs(ends))
        lines.colors = vector(scene.segment_colors.astype(np.float64))
        found.append(("lines", lines, "unlitLine"))
    if len(scene.triangles):
        corners = np.arange(3 * len(scene.triangles), dtype=np.int32).reshape(-1, 3)
        mesh = o3d.geometry.TriangleMesh(
            vector(scene.triangles.reshape(-1, 3).astype(np.float64)), o3d.utility.Vector3iVector(corners)
        )
        mesh.vertex_colors = vector(scene.triangle_colors.repeat(3, axis=0).astype(np.float64))
        found.append(("surfaces", mesh, "defaultUnlit"))
    return found


def _render(source: Path, target: Path, width: int, height: int) -> None:
    """The body of the process that ``save`` starts."""
    o3d = _import_open3d()
    with np.load(source, allow_pickle=False) as arrays:
        scene = Scene(**arrays)
    renderer = o3d.visualization.rendering.OffscreenRenderer(width, height)
    # The renderer takes the background for sRGB and, without post-processing, never turns it back: encode it twice.
    background = [1.055 * value ** (1 / 2.4) - 0.055 for value in colors.rgb(colors.BACKGROUND)]
    renderer.scene.set_background([*background, 1.0])
    renderer.scene.view.set_post_processing(False)  # no tone mapping: colours stay what they are
    for name, geometry, shader in _geometries(o3d, scene):
        material = o3d.visualization.rendering.MaterialRecord()
        material.shader = shader
        material.point_size = 2.0
        material.line_width = 2.0
        renderer.scene.add_geometry(name, geometry, material)
    renderer.setup_camera(50.0, TARGET, EYE, (0, 0, 1))
    image = renderer.render_to_image()
    if not o3d.io.write_image(str(target), image):
        raise Fusion3DError(f"Open3D could not write {target}")


if __name__ == "__main__":
    try:
        _render(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    except Fusion3DError as error:
        sys.exit(str(error))
