"""Corruptions at work: which of a data set's files are read, where they are believed to be, and what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fusion3d.data.corruptions.camera import IMAGES
from fusion3d.data.corruptions.kinds import Corruption
from fusion3d.data.corruptions.lidar import POINTS
from fusion3d.data.corruptions.radar import RETURNS
from fusion3d.data.corruptions.rig import ODDS, earlier, misaligned, shifted, turned
from fusion3d.data.nuscenes import Tables
from fusion3d.data.tables import REFERENCE_CHANNEL
from fusion3d.geometry import rotation_from_quaternion


@dataclass(frozen=True)
class Reading:
    """A sensor's file as it is believed to be, and the one that is read for it."""

    row: int  # of the data columns: time, pose and calibration that are believed
    content: int  # the file that is read; the same where nothing is late
    error: np.ndarray | None = None  # [4, 4] float64: from what was measured to where it is believed in row's sensor


class Corruptor:
    """Some corruptions, in the order in which they happen. It holds no state.

    Args:
        corruptions: none: the data are as they are.
        seed: of what is random.
    """

    def __init__(self, corruptions: Sequence[Corruption] = (), seed: int = 0) -> None:
        self.corruptions, self.seed = tuple(corruptions), seed

    def there(self, tables: Tables, sample: int, channels: Iterable[str]) -> list[str]:
        """Those of the channels that the sample has, and that have not failed."""
        found = [channel for channel in channels if tables.key(sample, channel) >= 0]
        for one in self.corruptions:
            if one.kind not in ("missing", "keep"):
                continue
            token = tables.token(sample)
            lot = {channel: self._rng(one.kind, token, channel).random() for channel in found if one.covers(channel)}
            if one.kind == "missing":
                lost = {channel for channel, drawn in lot.items() if drawn < ODDS[one.level]}
            else:
                lost = set(sorted(lot, key=lot.__getitem__)[int(one.amount) :])
            found = [channel for channel in found if channel not in lost]
        return found

    def readings(self, tables: Tables, sample: int, channel: str, count: int = 1) -> list[Reading]:
        """The files of a channel that is there: the keyframe's, then the sweeps before it, ``count`` at most."""
        found = [Reading(row, row) for row in tables.sweeps(tables.key(sample, channel), count)]
        for one in self._of(channel):
            if one.kind == "stale":
                found = self._stale(one, tables, sample, channel, found)
            elif one.kind == "late":
                found = [self._late(one, tables, reading) for reading in found]
            elif one.kind in ("turned", "shifted", "misaligned"):
                found = [self._misplaced(one, tables, reading) for reading in found]
        return found

    def points(self, points: np.ndarray, tables: Tables, reading: Reading) -> np.ndarray:
        """A LiDAR's file [P, 5] (x, y, z, intensity 0..255, ring) as the corrupted sensor would have written it."""
        rotation = rotation_from_quaternion(tables.calibration_rotation[tables.data_calibration[reading.content]])
        for one, rng in self._draws(REFERENCE_CHANNEL, POINTS, tables, reading):
            points = POINTS[one.kind](points, one.level, rng, rotation[0])  # row 0: ego's x axis in the sensor's frame
        return points

    def returns(self, returns: np.ndarray, channel: str, tables: Tables, reading: Reading) -> np.ndarray:
        """A radar's returns [R, 14] (RADAR_FIELDS in the sensor's frame) as the corrupted sensor would have them."""
        for one, rng in self._draws(channel, RETURNS, tables, reading):
            returns = RETURNS[one.kind](returns, one.level, rng)
        return returns

    def image(self, channel: str, tables: Tables, reading: Reading) -> Callable[[Tensor, float], Tensor] | None:
        """What happens to an image, None for nothing.

        Returns:
            From [3, H, W] uint8 and the width that the whole image would have at this scale [px] to [3, H, W] uint8.
        """
        draws = list(self._draws(channel, IMAGES, tables, reading))
        if not draws:
            return None

        def spoil(pixels: Tensor, width: float) -> Tensor:
            image = pixels.numpy().astype(np.float32) / 255
            for one, rng in draws:
                image = IMAGES[one.kind](image, one.level, rng, width / 1600)
            return torch.from_numpy(np.round(image.clip(0, 1) * 255).astype(np.uint8))

        return spoil

    def _of(self, channel: str) -> list[Corruption]:
        return [one for one in self.corruptions if one.covers(channel)]

    def _draws(
        self, channel: str, kinds: Iterable[str], tables: Tables, reading: Reading
    ) -> Iterable[tuple[Corruption, np.random.Generator]]:
        """Those of a channel that change what is in a file, each with what is random about that file."""
        for one in self._of(channel):
            if one.kind in kinds:
                yield one, self._rng(one.kind, *_name(tables, reading.content))

    def _rng(self, *words: str) -> np.random.Generator:
        """A generator that depends on the seed and the words alone."""
        digest = hashlib.blake2b("\n".join((str(self.seed), *words)).encode(), digest_size=16).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))

    def _stale(
        self, one: Corruption, tables: Tables, sample: int, channel: str, readings: list[Reading]
    ) -> list[Reading]:
        before = int(tables.sample_prev[sample])
        key = -1 if before < 0 else tables.key(before, channel)
        if key < 0 or self._rng(one.kind, tables.token(sample), channel).random() >= ODDS[one.level]:
            return readings
        rows = tables.sweeps(key, len(readings))
        return [replace(reading, content=row) for reading, row in zip(readings, rows, strict=False)]

    def _late(self, one: Corruption, tables: Tables, reading: Reading) -> Reading:
        content, error = earlier(tables, reading.content, one.amount * 1e-3)
        return _add(replace(reading, content=content), error)

    def _misplaced(self, one: Corruption, tables: Tables, reading: Reading) -> Reading:
        if one.kind == "misaligned":
            lot = self._rng(one.kind, *_name(tables, reading.content)).random()
            return _add(reading, misaligned(one.level) if lot < ODDS[one.level] else None)
        # A calibration is wrong in the same way as long as it is used.
        calibration = bytes(tables.calibration_token[tables.data_calibration[reading.row]]).decode()
        return _add(
            reading, (turned if one.kind == "turned" else shifted)(one.amount, self._rng(one.kind, calibration))
        )


CLEAN = Corruptor()


def placed(tables: Tables, sample: int, readings: Sequence[Reading]) -> np.ndarray:
    """[N, 4, 4] float64: from what each reading's file holds to where it is believed in the sample's ego frame."""
    transforms = tables.reference_from_sensor(sample, [reading.row for reading in readings])
    for transform, reading in zip(transforms, readings, strict=True):
        if reading.error is not None:
            transform[:] = transform @ reading.error
    return transforms


def _add(reading: Reading, error: np.ndarray | None) -> Reading:
    if error is None:
        return reading
    return replace(reading, error=error if reading.error is None else error @ reading.error)


def _name(tables: Tables, data: int) -> tuple[str, str]:
    """What a file is called in its data set, wherever that lies."""
    return bytes(tables.file_prefix[tables.data_prefix[data]]).decode(), bytes(tables.data_suffix[data]).decode()
