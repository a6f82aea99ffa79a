"""The fused maps of the keyframes before help the present one, each moved to where the vehicle is now.

One face for training on short clips and for a stream without end: a map and what is remembered go in, a map and what is
to be remembered come out. Nothing is remembered across scenes or across gaps in time.
Letters: B samples, C channels, Y X grid cells, K keyframes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion3d.bev.fusion.linear import ConcatFusion
from fusion3d.bev.tokens import read_places, to_map
from fusion3d.config import TemporalConfig
from fusion3d.encoders.blocks import make_norm
from fusion3d.types import Batch, BEVGrid


@dataclass(frozen=True)
class Frame:
    """A map and the vehicle's place when it was made, for each sample of a batch."""

    bev: Tensor  # [B, C, Y, X]
    global_from_grid: Tensor  # [B, 4, 4] float64: undoes the BEV augmentation too
    there: Tensor  # [B] bool: False where a sample has no such frame


@dataclass(frozen=True)
class Memory:
    """What is kept from one batch to the next."""

    frames: tuple[Frame, ...]  # newest first
    streams: tuple[Hashable, ...]  # B: what each sample is the newest one of, such as its scene
    timestamp: Tensor  # [B] int64 of the newest frame [us]

    def recall(self, streams: Sequence[Hashable], timestamp: Tensor, max_gap: float) -> tuple[Frame, ...]:
        """The frames in the order of other samples; not there for new streams, and those that are not just before.

        Args:
            streams: B' of them, each at most once.
            timestamp: [B'] int64 [us].
            max_gap: longest time from the newest frame to the sample [s].

        Raises:
            ValueError: a stream comes twice, so that it is not known what goes before what.
        """
        for name, there in (("batch", streams), ("memory", self.streams)):
            twice = [stream for stream, count in Counter(there).items() if count > 1]
            if twice:
                raise ValueError(f"{twice[0]!r} comes twice in the {name}; a stream has one sample at a time")
        place = {stream: row for row, stream in enumerate(self.streams)}
        row = torch.tensor([place.get(stream, -1) for stream in streams], device=timestamp.device)
        index = row.clamp(min=0)
        gap = timestamp - self.timestamp[index]
        known = (row >= 0) & (gap > 0) & (gap <= round(max_gap * 1e6))
        return tuple(
            Frame(frame.bev[index], frame.global_from_grid[index], frame.there[index] & known) for frame in self.frames
        )


class Temporal(nn.Module):
    """What the two operators share: moving maps to now, and keeping memory."""

    def __init__(self, config: TemporalConfig, grid: BEVGrid) -> None:
        super().__init__()
        self.grid = grid
        self.max_gap = config.max_gap

    def forward(
        self, bev_BCYX: Tensor, batch: Batch, memory: Memory | None, streams: Sequence[Hashable]
    ) -> tuple[Tensor, Memory]:
        """The map with what is remembered, of the same shape, and the memory for the next batch.

        Args:
            bev_BCYX: fused map of now.
            batch: whose map it is.
            memory: of the batch before; None for none.
            streams: B, what each sample goes on with, as in the memory.
        """
        global_from_grid = batch.global_from_ego @ torch.linalg.inv(batch.aug_from_ego.double())
        past = () if memory is None else memory.recall(streams, batch.timestamp, self.max_gap)
        moved = [(move(frame, global_from_grid, self.grid), frame.there) for frame in past]
        out_BCYX, kept_BCYX = self.combine(bev_BCYX, moved)
        now = Frame(kept_BCYX, global_from_grid, torch.ones_like(batch.annotated))
        return out_BCYX, Memory(self.keep(now, past), tuple(streams), batch.timestamp)

    def combine(self, bev_BCYX: Tensor, past: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The map with the past in it, and what to remember of it. ``past``: moved maps and [B] bool, newest first."""
        raise NotImplementedError

    def keep(self, now: Frame, past: tuple[Frame, ...]) -> tuple[Frame, ...]:
        """The frames of the next memory."""
        raise NotImplementedError


class ConcatTemporal(Temporal):
    """The last maps are stacked and convolved (BEVDet4D, Huang and Huang, 2022), any number of them absent.

    One more channel of each moved map says how much of a cell lay inside of it.
    """

    def __init__(self, config: TemporalConfig, channels: int, grid: BEVGrid) -> None:
        super().__init__(config, grid)
        self.length = config.keyframes - 1
        self.fuse = ConcatFusion([channels, *[channels + 1] * self.length], channels, grid)

    def combine(self, bev_BCYX: Tensor, past: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """See the class."""
        none = torch.zeros(len(bev_BCYX), dtype=torch.bool, device=bev_BCYX.device)
        missing = self.length - len(past)
        maps = [bev_BCYX, *[moved.to(bev_BCYX.dtype) for moved, _ in past], *[None] * missing]
        present = [~none, *[there for _, there in past], *[none] * missing]
        return self.fuse(maps, present), bev_BCYX

    def keep(self, now: Frame, past: tuple[Frame, ...]) -> tuple[Frame, ...]:
        """The maps as they came, without their past."""
        return (now, *past)[: self.length]


class RecurrentTemporal(Temporal):
    """A state is moved along and updated by gates (ConvGRU, Ballas et al., 2016), as in streaming detectors.

    The state of a new scene, and in cells that come into view, is zero. It is float32 whatever the autocast type: what
    is rounded in every frame would drift.
    """

    def __init__(self, config: TemporalConfig, channels: int, grid: BEVGrid) -> None:
        super().__init__(config, grid)
        self.gates = nn.Conv2d(2 * channels + 1, 2 * channels, 3, padding=1)
        self.candidate = nn.Conv2d(2 * channels + 1, channels, 3, padding=1)
        self.norm = make_norm("group", channels)

    def combine(self, bev_BCYX: Tensor, past: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """See the class."""
        if past:
            ((moved, there),) = past
            moved = torch.where(there[:, None, None, None], moved, 0).float()
            moved = moved.contiguous()  # as a state of zeros is: the convolution rounds alike
        else:
            size = (len(bev_BCYX), bev_BCYX.shape[1] + 1, *bev_BCYX.shape[2:])
            moved = bev_BCYX.new_zeros(size, dtype=torch.float32)
        state, seen = moved[:, :-1], moved[:, -1:]
        update, reset = self.gates(torch.cat([bev_BCYX, state, seen], dim=1)).sigmoid().chunk(2, dim=1)
        candidate = self.candidate(torch.cat([bev_BCYX, reset * state, seen], dim=1)).tanh()
        state = torch.lerp(state, candidate.float(), update.float())
        return (bev_BCYX + self.norm(state)).relu(), state

    def keep(self, now: Frame, past: tuple[Frame, ...]) -> tuple[Frame, ...]:
        """The state alone: the past is in it."""
        return (now,)


def move(frame: Frame, global_from_grid: Tensor, grid: BEVGrid) -> Tensor:
    """[B, C + 1, Y, X]: a frame's map as it would lie in the grid of another place, bilinear, zero where it was not.

    The last channel says how much of a cell's reading lay inside of the frame's map, 0 to 1. The ground is taken for
    flat: a cell is where its point at height 0 is. Deterministic in both directions, on CUDA too.

    Args:
        frame: maps and places.
        global_from_grid: [B, 4, 4] float64, the other place.
        grid: of both.
    """
    past_from_now = torch.linalg.inv(frame.global_from_grid) @ global_from_grid
    centers_YX2 = grid.centers(frame.bev.device).double()
    turn_B22, shift_B2 = past_from_now[:, :2, :2], past_from_now[:, :2, 3]
    xy_BYX2 = (turn_B22[:, None, None] * centers_YX2[:, :, None]).sum(-1) + shift_B2[:, None, None]
    place_BQ2 = grid.place_of(xy_BYX2).flatten(1, 2).float()
    whole_BCYX = torch.cat([frame.bev, torch.ones_like(frame.bev[:, :1])], dim=1)
    return to_map(read_places(whole_BCYX, place_BQ2), grid.shape)


def make_temporal(config: TemporalConfig, channels: int, grid: BEVGrid) -> Temporal:
    """The operator that the configuration names, for maps with ``channels`` channels."""
    return {"concat": ConcatTemporal, "recurrent": RecurrentTemporal}[config.operator](config, channels, grid)
