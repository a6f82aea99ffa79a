"""LiDAR by voxels: sparse 3-D convolution, then a dense 2-D network (VoxelNet, SECOND, as in CenterPoint).

Letters: B samples that have the sensor, P points, F numbers of a point, N voxels, C channels, Z Y X cells. Axes of the
voxel grid are in the order z, y, x.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d import ops
from fusion3d.config import LidarConfig, VoxelConfig
from fusion3d.encoders.blocks import Norm
from fusion3d.encoders.clouds import halvings
from fusion3d.encoders.dense import make_dense
from fusion3d.encoders.sparse import SparseConv3d, SparseSequential, SparseTensor, SubmanifoldConv3d
from fusion3d.encoders.sparse_peers import Backend
from fusion3d.errors import ConfigError
from fusion3d.types import BEVGrid

_STRIDE = 8  # voxels along a side of a cell of the map that comes out of the sparse layers


class VoxelNet(nn.Module):
    """Points to a map in the shared grid, through voxels.

    Residual submanifold blocks at four scales joined by strided convolutions, the height folded into channels, then
    SECOND's dense backbone (Zhou and Tuzel, "VoxelNet", 2018; Yan et al., "SECOND", 2018; Yin et al., "CenterPoint",
    2021). What differs: voxels and their points are unlimited in number; a voxel is described by the mean offset of
    its points from its middle instead of their mean position, so that a scene moved by whole cells gives a moved map
    and nothing is lost in 16 bits. Where a point lies is in which voxel it has; its height is in the channels.

    Args:
        config: ``voxels``, ``dense`` and ``channels`` are read.
        grid: the shared one.
        num_features: F - 3, what is known of a point besides x, y, z.
        norm: "group" normalises each voxel by itself, and the dense maps as elsewhere.

    Raises:
        ConfigError: voxels that do not fit the grid.
    """

    def __init__(self, config: LidarConfig, grid: BEVGrid, num_features: int, norm: Norm = "batch") -> None:
        super().__init__()
        voxels = config.voxels
        down = halvings(_STRIDE * voxels.side, grid.resolution)
        if down is None:
            raise ConfigError(
                f"lidar.voxels.side: {_STRIDE} voxels of {voxels.side} m are no power of two times grid.resolution "
                f"{grid.resolution} m; use {grid.resolution / _STRIDE:g} or {grid.resolution / _STRIDE / 2:g}"
            )
        rows, cols = (round((high - low) / voxels.side) for low, high in (grid.y, grid.x))
        self.size = [voxels.side, voxels.side, voxels.height]
        self.range = [grid.x[0], grid.y[0], grid.z[0], grid.x[1], grid.y[1], grid.z[1]]
        # One layer more than grid.z holds, always empty: SECOND's 41 for 40, with which its strides leave two.
        self.shape = (_layers(voxels, grid) + 1, rows, cols)
        self.sparse = _sparse_layers(voxels, 3 + num_features, norm)
        height = _height_after(self.shape[0])
        if height < 1:
            raise ConfigError(
                f"lidar.voxels.height: {voxels.height} m leaves {self.shape[0] - 1} layers in grid.z {grid.z}, too few "
                "for four scales; expected at least 24"
            )
        self.dense = make_dense(config, voxels.channels[-1] * height, down, grid.shape, norm)

    def forward(self, points_PF: Tensor, sample_P: Tensor, num_samples: int) -> Tensor:
        """Points [P, F], x, y, z [m] in ego first, and sample [P] ascending, to a map [B, C, Y, X]."""
        volume_BCZYX = self.sparse(self.voxelize(points_PF, sample_P, num_samples)).dense()
        return self.dense(volume_BCZYX.flatten(1, 2))

    def voxelize(self, points_PF: Tensor, sample_P: Tensor, num_samples: int) -> SparseTensor:
        """Voxels that hold a point, with the means of its offset from the voxel's middle [voxels] and of the rest.

        Points with NaN for a place and those out of range are in no voxel; what else is NaN or infinite is 0.
        """
        samples = torch.arange(num_samples + 1, device=sample_P.device)
        ptr = torch.searchsorted(sample_P.contiguous(), samples)
        with torch.autocast(points_PF.device.type, enabled=False):
            steps_P3 = (points_PF[:, :3] - points_PF.new_tensor(self.range[:3])) / points_PF.new_tensor(self.size)
            told_PF = torch.cat([steps_P3 - steps_P3.floor() - 0.5, points_PF[:, 3:].nan_to_num(0.0, 0.0, 0.0)], dim=1)
            no_limit = max(len(points_PF), 1)
            means_NF, voxels = ops.voxelize_mean(
                points_PF, self.size, self.range, no_limit, no_limit, ptr, order="key", features=told_PF
            )
            count = int(voxels.num_voxels)
        return SparseTensor(means_NF[:count], voxels.coords[:count], self.shape, num_samples)


class VoxelNorm(nn.BatchNorm1d):
    """Batch normalisation over voxels that also trains on fewer than two: then by the running statistics.

    The statistics are one sensor's own. A voxel alone has no variance, and an empty cloud nothing at all; neither
    changes the running statistics.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3)

    def forward(self, input: Tensor) -> Tensor:
        """[N, C] to [N, C]."""
        if len(input) > 1:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def _norm(norm: Norm, channels: int) -> nn.Module:
    return VoxelNorm(channels) if norm == "batch" else nn.LayerNorm(channels, eps=1e-3)


class SparseResidual(SparseSequential):
    """Two submanifold convolutions beside a shortcut."""

    def __init__(self, channels: int, key: str, backend: Backend, norm: Norm) -> None:
        first, second = (SubmanifoldConv3d(channels, channels, bias=False, key=key, backend=backend) for _ in range(2))
        super().__init__(first, _norm(norm, channels), nn.ReLU(inplace=True), second, _norm(norm, channels))

    def forward(self, input: SparseTensor) -> SparseTensor:
        """The same voxels with as many channels."""
        return input.with_features(F.relu(super().forward(input).features + input.features))


def _sparse_layers(config: VoxelConfig, inputs: int, norm: Norm) -> SparseSequential:
    """Four scales, halved between them, and at the end the height halved once more."""

    def joined(convolution: nn.Module, channels: int) -> list[nn.Module]:
        return [convolution, _norm(norm, channels), nn.ReLU(inplace=True)]

    layers: list[nn.Module] = []
    for scale, channels in enumerate(config.channels):
        key = f"scale{scale}"
        if scale == 0:
            convolution = SubmanifoldConv3d(inputs, channels, bias=False, key=key, backend=config.backend)
        else:
            padding = (0, 1, 1) if scale == 3 else 1
            convolution = SparseConv3d(inputs, channels, stride=2, padding=padding, bias=False, backend=config.backend)
        layers += joined(convolution, channels)
        layers += [SparseResidual(channels, key, config.backend, norm) for _ in range(config.blocks)]
        inputs = channels
    last = SparseConv3d(inputs, inputs, (3, 1, 1), stride=(2, 1, 1), bias=False, backend=config.backend)
    return SparseSequential(*layers, *joined(last, inputs))


def _layers(config: VoxelConfig, grid: BEVGrid) -> int:
    """Layers of voxels in the height of the grid."""
    layers = (grid.z[1] - grid.z[0]) / config.height
    if abs(layers - round(layers)) > 1e-4:
        raise ConfigError(
            f"lidar.voxels.height: {config.height} m does not divide grid.z {grid.z}; found {layers:.3f} layers, "
            "expected a whole number"
        )
    return round(layers)


def _height_after(layers: int) -> int:
    """Layers that the strided convolutions leave: padded twice, then unpadded twice."""
    for padding in (1, 1, 0, 0):
        layers = (layers + 2 * padding - 3) // 2 + 1
    return layers
