"""The sensor rig as numbers: where each sensor of the nuScenes vehicle sits, how it looks and when it fires.

The six cameras, LIDAR_TOP and RADAR_FRONT are the rounded calibration of nuScenes scene-0061; the other four radars are
at their usual places. Sensor frames: cameras x right, y down, z forward; LIDAR_TOP x right, y forward; radars x ahead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fusion3d.geometry import quaternion_from_yaw, transform_from

CAMERA_SIZE = (900, 1600)  # [px] height, width of the images that the intrinsics belong to
LIDAR_TURN = 0.05  # [s] one turn of LIDAR_TOP
NUM_RINGS = 32
NUM_COLUMNS = 1090  # firings in a turn
RING_ELEVATION = np.radians(np.linspace(-92 / 3, 32 / 3, NUM_RINGS))  # [32] rad, lowest ring first, 4/3 degree apart


@dataclass(frozen=True)
class Mount:
    """One sensor on the vehicle."""

    translation: np.ndarray  # [3] in ego [m]
    quaternion: np.ndarray  # [4] w, x, y, z: ego from sensor
    intrinsic: np.ndarray | None  # [3, 3] at CAMERA_SIZE [px], cameras only
    offset: float  # [s] of the keyframe trigger, relative to LIDAR_TOP's time
    rate: float  # [Hz]

    @cached_property
    def ego_from_sensor(self) -> np.ndarray:
        """[4, 4] float64."""
        return transform_from(self.translation, self.quaternion)

    def intrinsic_at(self, size: tuple[int, int]) -> np.ndarray:
        """[3, 3] intrinsics of images resized to (height, width), where pixel centres map as u' = (u + 1/2) s - 1/2."""
        if self.intrinsic is None:
            raise ValueError("intrinsics asked of a sensor that is not a camera: choose one of the CAM_ channels")
        if min(size) < 1:
            raise ValueError(f"image size {size}: expected (height, width), both at least 1 pixel")
        scale = np.array([size[1] / CAMERA_SIZE[1], size[0] / CAMERA_SIZE[0]])
        scaled = self.intrinsic.copy()
        scaled[:2] *= scale[:, None]
        scaled[:2, 2] += (scale - 1) / 2
        return scaled


def _camera(
    translation: list[float], quaternion: list[float], focal: float, u: float, v: float, offset: float
) -> Mount:
    intrinsic = np.array([[focal, 0.0, u], [0.0, focal, v], [0.0, 0.0, 1.0]])
    return Mount(np.array(translation), np.array(quaternion), intrinsic, offset, 12.0)


def _radar(translation: list[float], yaw: float, offset: float) -> Mount:
    return Mount(np.array(translation), quaternion_from_yaw(np.array(np.radians(yaw))), None, offset, 13.0)


RIG: dict[str, Mount] = {
    "LIDAR_TOP": Mount(
        np.array([0.943713, 0.0, 1.84023]), np.array([0.707796, -0.006492, 0.010646, -0.706307]), None, 0.0, 20.0
    ),
    "CAM_FRONT": _camera(
        [1.700791, 0.015946, 1.510958], [0.499802, -0.503032, 0.499780, -0.497371],
        1266.417203, 816.267020, 491.507066, -0.0355,
    ),
    "CAM_FRONT_RIGHT": _camera(
        [1.550848, -0.493405, 1.495748], [0.206035, -0.202694, 0.682451, -0.671361],
        1260.847445, 807.968245, 495.334427, -0.0276,
    ),
    "CAM_BACK_RIGHT": _camera(
        [1.014878, -0.480568, 1.562395], [0.122810, -0.132401, -0.700431, 0.690496],
        1259.513741, 807.252905, 501.195799, -0.0201,
    ),
    "CAM_BACK": _camera(
        [0.028326, 0.003451, 1.579103], [0.503787, -0.497402, -0.494185, 0.504550],
        809.220991, 829.219600, 481.778424, -0.0104,
    ),
    "CAM_BACK_LEFT": _camera(
        [1.035691, 0.484795, 1.590970], [0.692419, -0.703162, -0.116483, 0.112033],
        1256.741481, 792.112574, 492.775747, -0.0005,
    ),
    "CAM_FRONT_LEFT": _camera(
        [1.523878, 0.494631, 1.509328], [0.675727, -0.673627, 0.212140, -0.211228],
        1272.597947, 826.615493, 479.751654, -0.0431,
    ),
    "RADAR_FRONT": _radar([3.412, 0.0, 0.5], 0.2, 0.0162),
    "RADAR_FRONT_LEFT": _radar([2.422, 0.8, 0.78], 90.0, -0.0084),
    "RADAR_FRONT_RIGHT": _radar([2.422, -0.8, 0.77], -90.0, 0.0275),
    "RADAR_BACK_LEFT": _radar([-0.562, 0.628, 0.53], 175.0, -0.0310),
    "RADAR_BACK_RIGHT": _radar([-0.562, -0.618, 0.53], -176.0, 0.0053),
}  # fmt: skip


def mount_of(channel: str, prefix: str) -> Mount:
    """The mount of a channel that must be of one kind: ``prefix`` is "CAM_", "LIDAR_" or "RADAR_".

    Raises:
        ValueError: The channel is not on the rig, or is another kind of sensor.
    """
    if channel not in RIG or not channel.startswith(prefix):
        raise ValueError(f"channel {channel!r}: expected one of {', '.join(c for c in RIG if c.startswith(prefix))}")
    return RIG[channel]
