"""The dense network behind sparse ones: SECOND's 2-D backbone and pyramid, which also brings the map to the grid.

Letters: B samples, C channels, Y X grid cells, H W rows and columns of the map that comes in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion3d.config import DenseConfig, LidarConfig
from fusion3d.encoders.blocks import Norm, conv_block, make_norm
from fusion3d.errors import ConfigError


class DenseBackbone(nn.Module):
    """Plain convolutions at a few scales, each brought to the grid's resolution and stacked (Yan et al., 2018).

    As in SECOND and CenterPoint, with one difference: where the map that comes in is finer than the grid, it is
    halved before the first scale, so that no dense convolution is computed finer than what is asked for.

    Args:
        config: scales.
        inputs: channels of the map that comes in.
        channels: C, shared evenly by the scales.
        halvings: log2 of the grid's resolution over the map's; negative where the map is the coarser one.
        shape: Y, X of the grid; what the coarser map has beyond it is cut off.
        norm: of the convolutions.

    Raises:
        ConfigError: settings that do not fit one another.
    """

    def __init__(
        self,
        config: DenseConfig,
        inputs: int,
        channels: int,
        halvings: int,
        shape: tuple[int, int],
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        count = len(config.channels)
        if len(config.blocks) != count:
            raise ConfigError(
                f"lidar.dense.blocks: found {len(config.blocks)} scales, lidar.dense.channels has {count}; "
                "expected as many"
            )
        if channels % count:
            raise ConfigError(
                f"lidar.channels: {channels} cannot be shared by the {count} scales of lidar.dense.channels; "
                f"expected a multiple of {count}"
            )
        self.shape = shape
        self.channels = channels
        self.scales, self.ups = nn.ModuleList(), nn.ModuleList()
        for scale, (width, blocks) in enumerate(zip(config.channels, config.blocks, strict=True)):
            strides = [2] if scale else [2] * halvings or [1]
            layers = [conv_block(inputs, width, stride=strides[0], norm=norm)]
            layers += [conv_block(width, width, stride=stride, norm=norm) for stride in [*strides[1:], *[1] * blocks]]
            self.scales.append(nn.Sequential(*layers))
            self.ups.append(_up(width, channels // count, 2 ** (scale + max(-halvings, 0)), norm))
            inputs = width

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, C, Y, X]."""
        map_BCHW = map_BCHW.contiguous(memory_format=torch.channels_last)
        maps = []
        for scale, up in zip(self.scales, self.ups, strict=True):
            map_BCHW = scale(map_BCHW)
            maps.append(up(map_BCHW)[..., : self.shape[0], : self.shape[1]])
        return torch.cat(maps, dim=1)


def make_dense(
    config: LidarConfig, inputs: int, halvings: int, shape: tuple[int, int], norm: Norm
) -> DenseBackbone | nn.Identity:
    """What ``config.dense`` says: the backbone, or the map as it comes. Arguments and errors as of the backbone."""
    if config.dense is not None:
        return DenseBackbone(config.dense, inputs, config.channels, halvings, shape, norm)
    if halvings:
        raise ConfigError(
            f"lidar.dense: found null, but lidar.{config.encoder} makes a map of {2.0**-halvings:g} times "
            "grid.resolution; expected the same, or a dense network"
        )
    if config.channels != inputs:
        raise ConfigError(
            f"lidar.channels: found {config.channels}; with lidar.dense null it is what lidar.{config.encoder} makes: "
            f"set {inputs}"
        )
    return nn.Identity()


def _up(inputs: int, outputs: int, factor: int, norm: Norm) -> nn.Sequential:
    """Every cell becomes ``factor`` x ``factor`` cells, each by a learned matrix of its own."""
    if factor == 1:
        return conv_block(inputs, outputs, kernel=1, norm=norm)
    deconvolution = nn.ConvTranspose2d(inputs, outputs, factor, stride=factor, bias=False)
    return nn.Sequential(deconvolution, make_norm(norm, outputs), nn.ReLU(inplace=True))
