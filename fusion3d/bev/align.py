"""The sensors' maps moved so that they agree: what a calibration error or a late trigger has shifted is put back.

Letters: B samples, C channels, Q cells of the grid, Y X its rows and columns, y x those of the coarse grid.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusion3d.bev.fusion.entry import only_present
from fusion3d.bev.tokens import cell_centers, interpolation, read_places, to_map
from fusion3d.config import FusionConfig
from fusion3d.encoders.blocks import conv_block
from fusion3d.errors import ConfigError
from fusion3d.types import BEVGrid

_WIDTH = 32  # channels of what is compared
_REACH = 4.0  # [m] farthest that a cell is moved: 3 degrees are 2.8 m at the grid's edge


def make_align(config: FusionConfig, channels: Mapping[str, int], grid: BEVGrid) -> DeformableAlign | None:
    """The alignment that the configuration names, for sensors with so many channels.

    Raises:
        ConfigError: there is one sensor only.
    """
    if config.align == "none":
        return None
    if len(channels) < 2:
        raise ConfigError(f"fusion.align 'deformable' compares sensors, and all but {', '.join(channels)} are null")
    return DeformableAlign(channels, grid)


class DeformableAlign(nn.Module):
    """Each sensor's map, read at offsets that are predicted from it and from the mean of the others.

    The offsets of deformable convolution (Dai et al., 2017) as the flow that aligns feature maps in SFNet (Li et al.,
    "Semantic Flow", 2020); between sensors, as in GraphBEV's global alignment (Song et al., 2024). Offsets are smooth,
    predicted in a grid of a quarter of the resolution, and at most 4 m along x and y. They start at zero: the maps then
    pass unchanged. A sensor without another in its sample has nothing to agree with and is never moved.
    """

    def __init__(self, channels: Mapping[str, int], grid: BEVGrid) -> None:
        super().__init__()
        self.reach = _REACH / grid.resolution
        self.enter = nn.ModuleDict(
            {name: conv_block(count, _WIDTH, kernel=1, norm="group") for name, count in channels.items()}
        )
        self.find = nn.ModuleDict({name: _offset_net() for name in channels})
        coarse = tuple(-(-count // 4) for count in grid.shape)
        for name, fine, few in zip(("to_Yy", "to_Xx"), grid.shape, coarse, strict=True):
            middle = (torch.arange(fine) + 0.5) / 4 - 0.5  # of each fine cell, among the coarse ones
            self.register_buffer(name, interpolation(middle, few), persistent=False)
        self.to_Yy: Tensor
        self.to_Xx: Tensor
        self.center_Q2: Tensor
        self.register_buffer("center_Q2", cell_centers(grid), persistent=False)

    def forward(self, maps: Mapping[str, Tensor | None], present: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """Maps [B, C, Y, X] and [B] bool of each sensor, to maps of the same shapes."""
        seen = {name: only_present(self.enter[name](x), present[name]) for name, x in maps.items() if x is not None}
        moved = dict(maps)
        for name, map_BCYX in maps.items():
            others = [other for other in seen if other != name]
            if map_BCYX is not None and others:
                moved[name] = self.resample(map_BCYX, self.offsets(name, others, seen, present))
        return moved

    def offsets(
        self, name: str, others: list[str], seen: Mapping[str, Tensor], present: Mapping[str, Tensor]
    ) -> Tensor:
        """[B, 2, Y, X] float32: how far along x and y from each cell the sensor's map is to be read [cells]."""
        count_B111 = torch.stack([present[other] for other in others]).sum(0)[:, None, None, None]
        mean_BCYX = torch.stack([seen[other] for other in others]).sum(0) / count_B111.clamp(min=1)
        pair_BCYX = torch.cat([seen[name], mean_BCYX.to(seen[name].dtype)], dim=1)
        found_B2yx = self.find[name](pair_BCYX.contiguous(memory_format=torch.channels_last))
        with torch.autocast(found_B2yx.device.type, enabled=False):
            # By products with matrices: the built-in interpolation has no deterministic gradient on CUDA.
            offset_B2YX = self.to_Yy @ (self.reach * found_B2yx.float().tanh()) @ self.to_Xx.T
        return offset_B2YX.masked_fill(count_B111 == 0, 0)

    def resample(self, map_BCYX: Tensor, offset_B2YX: Tensor) -> Tensor:
        """The map read bilinearly ``offset`` [cells] away from each cell; what lies outside is zero."""
        place_BQ2 = self.center_Q2 + offset_B2YX.permute(0, 2, 3, 1).flatten(1, 2)
        return to_map(read_places(map_BCYX, place_BQ2), (map_BCYX.shape[2], map_BCYX.shape[3]))


def _offset_net() -> nn.Sequential:
    """What a sensor and the others say, side by side, to offsets at a quarter of the resolution; zero at first."""
    last = nn.Conv2d(2 * _WIDTH, 2, 3, padding=1)
    for weights in last.parameters():
        nn.init.zeros_(weights)
    return nn.Sequential(
        conv_block(2 * _WIDTH, 2 * _WIDTH, norm="group"),
        conv_block(2 * _WIDTH, 2 * _WIDTH, stride=2, norm="group"),
        conv_block(2 * _WIDTH, 2 * _WIDTH, stride=2, norm="group"),
        last,
    )
