"""A planner that sees nothing: a small network from how the ego moved to how it will, trained in seconds.

It is the question that every open-loop number has to answer: how much of it is the ego's own past? No command, no
sensor, no map goes in; AD-MLP (arXiv 2305.10430) and BEV-Planner's Ego-MLP also get the command, which is made of the
answer. What comes out is the difference to driving on along the circle (``constant_turn``).
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import nn

from fusion3d.errors import DataError
from fusion3d.metrics.planning.baselines import constant_turn
from fusion3d.metrics.planning.drives import Drives
from fusion3d.metrics.planning.exact import usable
from fusion3d.metrics.planning.paths import wrap

_HIDDEN = 64
_ROUNDS = 600
_BATCH = 512
_DECAY = 1e-2
_SCALE = (10.0, 10.0, 3.0)  # of velocity [m/s], acceleration [m/s^2] and yaw rate [1/rad] to order one
LEAST = 20  # samples to train on


class EgoMLP:
    """The network. The same samples give the same one, whatever their order.

    Args:
        drives: to train on: samples with a whole known path and a keyframe before.

    Raises:
        DataError: there are fewer than ``LEAST``.
    """

    def __init__(self, drives: Drives) -> None:
        there = np.flatnonzero(usable(drives, drives.future.shape[1]))
        there = there[np.argsort(np.array(drives.tokens)[there])]
        if len(there) < LEAST:
            raise DataError(f"the ego-MLP has {len(there)} samples to train on; expected at least {LEAST}")
        steps = drives.future.shape[1]
        target = drives.path - constant_turn(drives, steps)
        target[..., 2] = wrap(target[..., 2])
        digest = hashlib.sha256("\n".join(drives.tokens[row] for row in there).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        inputs, wanted = torch.from_numpy(features(drives)[there]), torch.from_numpy(target[there]).flatten(1)
        self.steps = steps
        self.layers = _layers(inputs.shape[1], wanted.shape[1], generator)
        optimizer = torch.optim.AdamW(self.layers.parameters(), lr=3e-3, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _ROUNDS)
        with torch.enable_grad():
            for _ in range(_ROUNDS):
                rows = torch.randint(len(inputs), (min(_BATCH, len(inputs)),), generator=generator)
                loss = (self.layers(inputs[rows]) - wanted[rows]).abs().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    def plan(self, drives: Drives) -> np.ndarray:
        """[N, T, 3] paths in ego."""
        with torch.no_grad():
            change = self.layers(torch.from_numpy(features(drives))).numpy()
        return constant_turn(drives, self.steps) + change.reshape(len(drives), self.steps, 3)


def features(drives: Drives) -> np.ndarray:
    """[N, 8] what the network sees: velocity, acceleration and yaw rate from past poses alone, and what is known."""
    one, two = drives.past_known[:, 0], np.asarray(drives.past_known[:, :2].all(axis=1))
    velocity = np.nan_to_num(drives.velocity)
    seconds = np.where(drives.past_known, drives.past_time, 1.0)
    between = np.where(two, seconds[:, 1] - seconds[:, 0], 1.0)
    earlier = (drives.past[:, 0, :2] - drives.past[:, 1, :2]) / between[:, None]
    acceleration = np.where(two[:, None], (velocity - earlier) / ((seconds[:, 0] + between) / 2)[:, None], 0.0)
    rate = np.where(one, -wrap(drives.past[:, 0, 2]) / seconds[:, 0], 0.0)
    still = np.linalg.norm(velocity, axis=1) < 0.1
    return np.column_stack(
        [velocity / _SCALE[0], acceleration * _SCALE[2] / _SCALE[1], rate * _SCALE[2], one, two, still]
    ).astype(np.float64)


def _layers(inputs: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    """Three layers; the last begins at zero, so that training begins at the circle."""
    layers = nn.Sequential(
        nn.Linear(inputs, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, outputs)
    ).double()
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Linear):
                spread = (2 / layer.in_features) ** 0.5 if layer is not layers[-1] else 0.0
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64) * spread)
                layer.bias.zero_()
    return layers
