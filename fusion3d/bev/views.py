"""Image features into the grid: the view transforms behind one face.

Each is called ``view(features, cameras, num_samples, radar)`` and gives [B, C, Y, X], zero for the samples without a
camera; it knows its ``channels``, its ``stride`` and its depth ``bins``, None where it needs no depth.
"""

from __future__ import annotations

from fusion3d.bev.lift import DepthBins, LiftSplat
from fusion3d.bev.pillar_views import Deformable, Unproject
from fusion3d.bev.radar_lift import RadarLift
from fusion3d.config import Config
from fusion3d.errors import ConfigError

View = LiftSplat | Deformable | Unproject  # RadarLift is a LiftSplat

_DEPTHLESS = ("deformable", "unproject")


def make_view(config: Config) -> View:
    """The view transform that ``config.camera.view`` names.

    Raises:
        ConfigError: settings that do not go together.
    """
    camera, grid = config.camera, config.grid
    assert camera is not None
    check_helper(config)
    if camera.view in _DEPTHLESS:
        if camera.depth_loss > 0:
            raise ConfigError(f"camera.depth_loss: found {camera.depth_loss} with camera.view {camera.view!r}, which "
                              "has no depth; expected 0, or a view with depth")  # fmt: skip
        if camera.view == "unproject":
            return Unproject(grid, camera.stride, camera.channels, camera.heights)
        if camera.channels % 4:
            raise ConfigError(f"camera.channels: found {camera.channels} with camera.view 'deformable', whose heads "
                              "share them: expected a multiple of 4")  # fmt: skip
        return Deformable(grid, camera.stride, camera.channels, camera.heights, camera.layers)
    shape = DepthBins(*camera.depth), grid, camera.stride, camera.channels
    if camera.view == "radar_lift":
        return RadarLift(*shape, moving=config.radar is not None and config.radar.advance)
    return LiftSplat(*shape, norm="group" if camera.view == "lidar_lift" else "batch")


def check_helper(config: Config) -> None:
    """ConfigError where depth or view are to be helped by a sensor that the model does not see."""
    camera = config.camera
    assert camera is not None
    for sensor in ("lidar", "radar"):
        if camera.view == f"{sensor}_lift" and getattr(config, sensor) is None:
            raise ConfigError(f"camera.view: found {camera.view!r} with {sensor}: null, so the model sees no {sensor}; "
                              f"expected a {sensor} branch, or another view")  # fmt: skip
