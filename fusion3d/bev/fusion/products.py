"""Operators that multiply what the sensors say: bilinear, tensor, low_rank. All of them work cell by cell.

Letters: B samples, S sensors, C channels, R rank, Y X grid cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.bev.fusion.entry import Projections, absent_vectors, fill_absent
from fusion3d.encoders.blocks import conv_block, make_norm
from fusion3d.types import BEVGrid

_MOST_PRODUCTS = 512  # entries of a cell's tensor in TensorFusion


class BilinearFusion(nn.Module):
    """Factorised bilinear pooling of every pair of sensors (MFB; Yu et al., 2017), in every cell.

    For channel o of a pair: the sum over R factors of (u_or x)(v_or y), that is x^T W_o y with W_o of rank R; then the
    signed square root and the L2 norm over the channels, as in the paper. Each sensor has one set of factors for all
    its pairs. What differs: the sensors' own maps are added to the pairs, with a learned vector for one that is absent,
    so that a sensor alone, which has no pair, is heard too.
    """

    def __init__(self, inputs: Sequence[int], channels: int, grid: BEVGrid, rank: int) -> None:
        super().__init__()
        self.shape = grid.shape
        self.rank = rank
        self.project = Projections(inputs, channels)
        self.absent = absent_vectors([channels] * len(inputs))
        self.factors = nn.ModuleList(nn.Conv2d(count, rank * channels, 1) for count in inputs)
        self.mix = conv_block(channels, channels, norm="group")

    def forward(self, maps: Sequence[Tensor | None], present: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, Y, X] and [B] bool each, to [B, channels, Y, X]."""
        total_BCYX, *others = fill_absent(self.project(maps, present), present, self.absent, self.shape)
        for other_BCYX in others:
            total_BCYX = total_BCYX + other_BCYX
        there = [
            (factor(map_BCYX), present_B)
            for map_BCYX, present_B, factor in zip(maps, present, self.factors, strict=True)
            if map_BCYX is not None
        ]
        for (a_BFYX, has_a_B), (b_BFYX, has_b_B) in combinations(there, 2):
            both_B111 = (has_a_B & has_b_B)[:, None, None, None]
            pair_BCYX = normalise(self.pool(a_BFYX, b_BFYX))
            total_BCYX = total_BCYX + pair_BCYX.masked_fill(~both_B111, 0)
        return self.mix(total_BCYX.contiguous(memory_format=torch.channels_last))

    def pool(self, a_BFYX: Tensor, b_BFYX: Tensor) -> Tensor:
        """Two sensors' factors [B, R * C, Y, X] to the sum over the R products of every channel, [B, C, Y, X]."""
        a, b = a_BFYX.chunk(self.rank, dim=1), b_BFYX.chunk(self.rank, dim=1)
        total_BCYX = a[0] * b[0]
        for one_BCYX, other_BCYX in zip(a[1:], b[1:], strict=True):
            total_BCYX = torch.addcmul(total_BCYX, one_BCYX, other_BCYX)
        return total_BCYX


def normalise(map_BCYX: Tensor) -> Tensor:
    """Signed square root, then a root mean square of 1 over the channels of a cell; smooth where all of it is zero."""
    root_BCYX = map_BCYX.float() * (map_BCYX.float().abs() + 1e-4).rsqrt()
    return root_BCYX * (root_BCYX.square().mean(1, keepdim=True) + 1e-4).rsqrt()


class TensorFusion(nn.Module):
    """Tensor fusion network (Zadeh et al., 2017): the outer product of all sensors, each with a 1 appended.

    So every product of up to S sensors' channels is there, those of one sensor alone included. Sensors are first made
    narrow, that the tensor of a cell has at most 512 entries (7 channels each for three sensors); a linear layer reads
    it. An absent sensor is a learned vector, which starts near zero: then the products without it remain.
    """

    def __init__(self, inputs: Sequence[int], channels: int, grid: BEVGrid) -> None:
        super().__init__()
        self.shape = grid.shape
        width = tensor_width(len(inputs))
        self.narrow = nn.ModuleList(nn.Conv2d(count, width, 1) for count in inputs)
        self.absent = absent_vectors([width] * len(inputs))
        self.read = nn.Linear((width + 1) ** len(inputs), channels, bias=False)
        self.out = nn.Sequential(make_norm("group", channels), nn.ReLU(inplace=True))

    def forward(self, maps: Sequence[Tensor | None], present: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, Y, X] and [B] bool each, to [B, channels, Y, X]."""
        narrow = [None if x is None else layer(x) for layer, x in zip(self.narrow, maps, strict=True)]
        filled = fill_absent(narrow, present, self.absent, self.shape)
        tensor_BYXT = outer_product([map_BCYX.permute(0, 2, 3, 1) for map_BCYX in filled])
        return self.out(self.read(tensor_BYXT).permute(0, 3, 1, 2))


def tensor_width(num_sensors: int) -> int:
    """Channels of each sensor, at least 1, with which the tensor of a cell has at most 512 entries."""
    width = 1
    while (width + 2) ** num_sensors <= _MOST_PRODUCTS:
        width += 1
    return width


def outer_product(vectors: Sequence[Tensor]) -> Tensor:
    """[..., C_i] of each sensor to [..., prod(C_i + 1)]: the outer product of all [x_i; 1], the last one fastest."""
    product, *others = (F.pad(vector, (0, 1), value=1.0) for vector in vectors)
    for other in others:
        product = (product[..., :, None] * other[..., None, :]).flatten(-2)
    return product


class LowRankFusion(nn.Module):
    """Low-rank multimodal fusion (Liu et al., 2018): tensor fusion whose weight is a sum of R rank-one tensors.

    The tensor is never made: for every channel, the sum over R of the product over the sensors of w . [x; 1]. So the
    sensors need not be made narrow. Factors of the appended 1 start at 1: the product then starts near a sum. An
    absent sensor is a learned vector.
    """

    def __init__(self, inputs: Sequence[int], channels: int, grid: BEVGrid, rank: int) -> None:
        super().__init__()
        self.shape = grid.shape
        self.absent = absent_vectors(inputs)
        self.factors = nn.ModuleList(_factors(count, rank * channels) for count in inputs)
        self.weight = nn.Parameter(torch.full((rank,), rank**-0.5))  # of the R products
        # Starts by taking away the product of all the 1's, for a mean much larger than the spread is bad for the norm.
        self.bias = nn.Parameter(torch.full((channels,), -(rank**0.5)))
        self.out = nn.Sequential(make_norm("group", channels), nn.ReLU(inplace=True))

    def forward(self, maps: Sequence[Tensor | None], present: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, Y, X] and [B] bool each, to [B, channels, Y, X]."""
        filled = fill_absent(maps, present, self.absent, self.shape)
        sum_BYXC = self.multiply([map_BCYX.permute(0, 2, 3, 1) for map_BCYX in filled])
        return self.out((sum_BYXC + self.bias).permute(0, 3, 1, 2))

    def multiply(self, vectors: Sequence[Tensor]) -> Tensor:
        """[..., C_i] of each sensor to [..., channels]."""
        product, *others = (factor(vector) for factor, vector in zip(self.factors, vectors, strict=True))
        for other in others:
            product = product * other
        return (product.unflatten(-1, (len(self.weight), -1)) * self.weight[:, None]).sum(-2)


def _factors(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer whose bias, the factors of the appended 1, starts at 1."""
    layer = nn.Linear(inputs, outputs)
    nn.init.ones_(layer.bias)
    return layer
