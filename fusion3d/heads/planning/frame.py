"""Places as seen from the vehicle. Letters: B samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion3d.rows import select
from fusion3d.types import Batch


@dataclass(frozen=True)
class EgoFrame:
    """The vehicle's own frame in the frame of a batch, which BEV augmentation may have turned, mirrored, scaled and
    shifted. Written out, its products stay clear of reduced precision.
    """

    forward: Tensor  # [B, 2] its x axis in the frame of the batch
    left: Tensor  # [B, 2] its y axis
    place: Tensor  # [B, 2] where it is [m]

    @staticmethod
    def whole(batch: Batch) -> EgoFrame:
        """With all that was done to the world undone: metres are metres and left is left."""
        matrix = batch.aug_from_ego.float()
        return EgoFrame(matrix[:, :2, 0], matrix[:, :2, 1], matrix[:, :2, 3])

    @staticmethod
    def heading(batch: Batch) -> EgoFrame:
        """Turned and shifted only: a mirrored or scaled world is a world of its own."""
        whole = EgoFrame.whole(batch)
        forward = F.normalize(whole.forward, dim=1)
        return EgoFrame(forward, torch.stack([-forward[:, 1], forward[:, 0]], dim=1), whole.place)

    @property
    def scale(self) -> Tensor:
        """[B] metres in the frame of the batch to one of the vehicle's."""
        return self.forward.norm(dim=1)

    @property
    def mirrored(self) -> Tensor:
        """[B] bool: is the vehicle's left to the right in the frame of the batch?"""
        return self.forward[:, 0] * self.left[:, 1] < self.forward[:, 1] * self.left[:, 0]

    def turn_out(self, vector: Tensor) -> Tensor:
        """[B, ..., 2] of the vehicle's frame in that of the batch, without the shift."""
        forward, left = (_like(axis, vector) for axis in (self.forward, self.left))
        return vector[..., :1] * forward + vector[..., 1:] * left

    def turn_in(self, vector: Tensor) -> Tensor:
        """The inverse of ``turn_out``."""
        forward, left = (_like(axis, vector) for axis in (self.forward, self.left))
        both = torch.stack([(vector * forward).sum(-1), (vector * left).sum(-1)], dim=-1)
        return both / _like(self.scale[:, None] ** 2, both)

    def to_batch(self, xy: Tensor) -> Tensor:
        """[B, ..., 2] places of the vehicle's frame in that of the batch."""
        return self.turn_out(xy) + _like(self.place, xy)

    def to_ego(self, xy: Tensor) -> Tensor:
        """The inverse of ``to_batch``."""
        return self.turn_in(xy - _like(self.place, xy))

    def yaw_to_batch(self, yaw: Tensor) -> Tensor:
        """[B, ...] headings of the vehicle's frame in that of the batch."""
        return _yaw(self.turn_out(_direction(yaw)))

    def yaw_to_ego(self, yaw: Tensor) -> Tensor:
        """The inverse of ``yaw_to_batch``."""
        return _yaw(self.turn_in(_direction(yaw)))

    def __getitem__(self, sample: int) -> EgoFrame:
        """That of one sample alone, B = 1."""
        return select(self, slice(sample, sample + 1))


def _like(of_sample: Tensor, values: Tensor) -> Tensor:
    """[B, n] with as many axes as values [B, ..., n]."""
    return of_sample.view(len(of_sample), *[1] * (values.ndim - 2), of_sample.shape[-1])


def _direction(yaw: Tensor) -> Tensor:
    return torch.stack([yaw.cos(), yaw.sin()], dim=-1)


def _yaw(direction: Tensor) -> Tensor:
    return torch.atan2(direction[..., 1], direction[..., 0])
