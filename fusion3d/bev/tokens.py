"""Maps as rows of tokens, where each of them is, and maps read at any place.

Letters: B samples, K tokens or positions, Q places, C channels, Y X grid cells, M images, H W their rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusion3d import ops
from fusion3d.types import BEVGrid

_BANDS = 6  # frequencies of a position, each twice the one before


def to_tokens(map_BCYX: Tensor) -> Tensor:
    """[B, C, Y, X] to [B, Y * X, C], without a copy where channels lie last."""
    return map_BCYX.permute(0, 2, 3, 1).flatten(1, 2)


def to_map(tokens_BKC: Tensor, shape: tuple[int, int]) -> Tensor:
    """[B, Y * X, C] to [B, C, Y, X], channels last in memory."""
    return tokens_BKC.unflatten(1, shape).permute(0, 3, 1, 2)


def encode_positions(shape: tuple[int, int]) -> Tensor:
    """[Y * X, 4 * bands + 2] float32: y and x of the middle of each cell in [-1, 1], their sines and cosines.

    Fourier features as in Perceiver (Jaegle et al., 2021).
    """
    y, x = ((2 * torch.arange(count) + 1) / count - 1 for count in shape)
    yx_K2 = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
    angle = (yx_K2[..., None] * (torch.pi * 2.0 ** torch.arange(_BANDS))).flatten(1)
    return torch.cat([yx_K2, angle.sin(), angle.cos()], dim=1)


def cell_centers(grid: BEVGrid) -> Tensor:
    """[Y * X, 2] float32: x, y of the middle of each cell, counted in cells."""
    rows, cols = grid.shape
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(cols) + 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def interpolation(position_K: Tensor, count: int) -> Tensor:
    """[K, count] matrix that reads ``count`` values in a row at K positions, linearly; beyond the ends as it is there.

    Two products with it resample a map, deterministically in both directions: CUDA's own interpolation is not.
    """
    return (1 - (position_K.clamp(0, count - 1)[:, None] - torch.arange(count)).abs()).clamp(min=0)


def read_places(map_BCYX: Tensor, place_BQ2: Tensor) -> Tensor:
    """[B, Q, C]: the map read bilinearly at places; what lies outside is zero.

    Never in reduced precision, and deterministic in both directions, on CUDA too.

    Args:
        map_BCYX: any map.
        place_BQ2: float32 x, y of each place, counted in cells from the map's corner: a middle is at one half.
    """
    shape = (map_BCYX.shape[2], map_BCYX.shape[3])
    with torch.autocast(map_BCYX.device.type, enabled=False):
        # Places are given as offsets from 0: then a middle is met exactly.
        corner_BQ2, one_BQ111 = torch.zeros_like(place_BQ2), place_BQ2.new_zeros(*place_BQ2.shape[:2], 1, 1, 1)
        value_BK1C, place_BQ1112 = to_tokens(map_BCYX)[:, :, None], place_BQ2[:, :, None, None, None]
        return ops.ms_deform_attn(value_BK1C, [shape], corner_BQ2, place_BQ1112, one_BQ111)


def read_images(images_MCHW: Tensor, image_Q: Tensor, place_Q2: Tensor) -> Tensor:
    """[Q, C] float32: feature maps of images read bilinearly, each place in an image of its own.

    Never in reduced precision, and deterministic in both directions, on CUDA too.

    Args:
        images_MCHW: any maps.
        image_Q: int64, which.
        place_Q2: float32 x, y; 0 and 1 are the outer edges of the image.
    """
    shape = (images_MCHW.shape[2], images_MCHW.shape[3])
    still_Q1112 = place_Q2.new_zeros(len(image_Q), 1, 1, 1, 2)  # offsets; and without the last axis, one weight
    with torch.autocast(images_MCHW.device.type, enabled=False):
        value_MK1C = to_tokens(images_MCHW.float())[:, :, None]
        return ops.ms_deform_attn(value_MK1C, [shape], place_Q2, still_Q1112, still_Q1112[..., 0], map_of_query=image_Q)
