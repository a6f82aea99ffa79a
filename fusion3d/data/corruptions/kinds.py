"""Which corruptions there are, and how one is written: ``SENSOR.KIND:AMOUNT``.

SENSOR is a kind of sensor ("camera") or a channel ("CAM_FRONT"), KIND a key of ``KINDS``, AMOUNT a severity of 1, 2 or
3, or a number in the kind's unit.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fusion3d.data.tables import REFERENCE_CHANNEL
from fusion3d.errors import ConfigError
from fusion3d.types import CAMERAS, RADARS, SENSORS

SEVERITY = "severity"
CHANNELS = {"camera": CAMERAS, "lidar": (REFERENCE_CHANNEL,), "radar": RADARS}


@dataclass(frozen=True)
class Kind:
    """A way to corrupt."""

    sensors: tuple[str, ...]  # of SENSORS, those that know it
    text: str
    unit: str = SEVERITY  # of the amount
    amounts: tuple[float, ...] = (1, 2, 3)  # of a curve, and those that training draws from
    whole: bool = False  # the amount is a whole number


KINDS = {
    "missing": Kind(SENSORS, "each sensor is absent with probability 0.2, 0.4, 0.6"),
    "black": Kind(("camera",), "each image is black with probability 0.2, 0.4, 0.6, and nobody knows"),
    "dark": Kind(("camera",), "little light, with the noise of few photons"),
    "bright": Kind(("camera",), "overexposed"),
    "fog": Kind(("camera", "lidar"), "fog"),
    "snow": Kind(("camera", "lidar"), "falling snow"),
    "blur": Kind(("camera", "lidar"), "motion blur; of a cloud a shift and jitter"),
    "occluded": Kind(("camera",), "dirt covers 10, 25, 50 % of each image"),
    "beams": Kind(("lidar",), "16, 8, 4 of 32 beams are left"),
    "points": Kind(("lidar", "radar"), "70, 80, 90 % of a cloud's points are lost; of radar returns 30, 50, 70 %"),
    "view": Kind(("lidar",), "270, 180, 120 degrees ahead are left"),
    "ghosts": Kind(("radar",), "multipath adds 25, 50, 100 % of returns that are nowhere"),
    "rcs": Kind(("radar",), "noise of 3, 6, 10 dB on the radar cross-section"),
    "doppler": Kind(("radar",), "noise of 0.5, 1, 2 m/s on the radial velocity"),
    "stale": Kind(SENSORS, "with probability 0.2, 0.4, 0.6 the previous keyframe's data, believed to be of now"),
    "misaligned": Kind(("lidar",), "with probability 0.2, 0.4, 0.6 a cloud is turned 1, 2, 3 degrees and shifted 2 m"),
    "turned": Kind(SENSORS, "turned against its calibration, about an axis at random", "degrees", (0.5, 1, 2, 3, 5, 8)),
    "shifted": Kind(SENSORS, "shifted against its calibration, in a direction at random", "m", (0.1, 0.2, 0.5, 1, 2)),
    "late": Kind(SENSORS, "data of an earlier moment, believed to be of now", "ms", (25, 50, 100, 200, 500)),
    "keep": Kind(("camera", "radar"), "only so many are there, chosen at random", "left", (1, 2, 3, 4), whole=True),
}


@dataclass(frozen=True)
class Corruption:
    """One kind, of one amount, of one sensor or of all of a kind."""

    sensor: str  # of SENSORS, or a channel
    kind: str  # of KINDS
    amount: float

    def covers(self, channel: str) -> bool:
        """Is this channel meant?"""
        return channel in CHANNELS.get(self.sensor, (self.sensor,))

    @property
    def level(self) -> int:
        """The severity as an index: 0, 1 or 2."""
        return int(self.amount) - 1

    def __str__(self) -> str:
        return f"{self.sensor}.{self.kind}:{self.amount:g}"


def parse(text: str, setting: str = "data.corruptions") -> Corruption:
    """A corruption as it is written.

    Args:
        text: such as "lidar.fog:2" or "CAM_FRONT.turned:1.5".
        setting: named by an error.

    Raises:
        ConfigError: it is not of that form, a name is unknown, or the amount is none of that kind.
    """
    name, _, number = text.partition(":")
    sensor, kind = _names(name, text, setting)
    known = KINDS[kind]
    expected = "a severity of 1, 2 or 3" if known.unit == SEVERITY else f"a number of {known.unit}, 0 or more"
    try:
        amount = float(number)
    except ValueError:
        amount = math.nan
    fits = amount in known.amounts if known.unit == SEVERITY else 0 <= amount < math.inf
    if not fits or (known.whole and amount != int(amount)):
        raise ConfigError(f"{setting}: {text!r}: expected {sensor}.{kind}:AMOUNT with {expected}; found {number!r}")
    return Corruption(sensor, kind, amount)


def choices(texts: Sequence[str], sensors: Sequence[str], setting: str) -> list[Corruption]:
    """What training draws from.

    Args:
        texts: corruptions, those without an amount of any; none of them: all that have severities.
        sensors: of SENSORS, those that are read.
        setting: named by an error.

    Raises:
        ConfigError: as in ``parse``, one is of a sensor that is not read, or there is nothing to draw.
    """
    found: list[Corruption] = []
    graded = [f"{s}.{name}" for name, kind in KINDS.items() if kind.unit == SEVERITY for s in kind.sensors]
    for text in texts or [name for name in graded if name.partition(".")[0] in sensors]:
        if ":" in text:
            found.append(parse(text, setting))
        else:
            sensor, kind = _names(text, text, setting)
            found += [Corruption(sensor, kind, amount) for amount in KINDS[kind].amounts]
    channels = [channel for sensor in sensors for channel in CHANNELS[sensor]]
    check_reach(found, channels, setting, "data.sensors")
    if not found:
        raise ConfigError(f"{setting}: none for the sensors {', '.join(sensors)} that are read")
    return found


def check_reach(corruptions: Iterable[Corruption], channels: Collection[str], setting: str, reader: str) -> None:
    """See that every corruption befalls one of the channels that are read.

    Args:
        corruptions: of ``setting``.
        channels: that are read.
        setting: where the corruptions stand.
        reader: the setting that says what is read.

    Raises:
        ConfigError: one befalls none; both settings are named.
    """
    for one in corruptions:
        if not any(map(one.covers, channels)):
            raise ConfigError(f"{setting}: {str(one)!r} befalls nothing: {reader} leaves out its sensor; do so here")


def draw_one(candidates: Sequence[Corruption], rng: np.random.Generator) -> Corruption:
    """One of the corruptions: of any kind alike, then of any of its amounts alike."""
    kinds = list(dict.fromkeys((one.sensor, one.kind) for one in candidates))
    chosen = kinds[rng.integers(len(kinds))]
    amounts = [one for one in candidates if (one.sensor, one.kind) == chosen]
    return amounts[rng.integers(len(amounts))]


def _names(name: str, text: str, setting: str) -> tuple[str, str]:
    """The sensor and the kind of "lidar.fog"."""
    sensor, _, kind = name.partition(".")
    of = next((of for of, channels in CHANNELS.items() if sensor in (of, *channels)), None)
    if of is None:
        everything = [*SENSORS, *(channel for channels in CHANNELS.values() for channel in channels)]
        raise ConfigError(
            f"{setting}: {text!r}: unknown sensor {sensor!r}; did you mean {_near(sensor, everything)!r}? expected "
            f"SENSOR.KIND:AMOUNT, such as lidar.fog:2"
        )
    there = [name for name, known in KINDS.items() if of in known.sensors]
    if kind not in there:
        raise ConfigError(
            f"{setting}: {text!r}: no corruption {kind!r} of {of}; did you mean {_near(kind, there)!r}? known: "
            f"{', '.join(there)}"
        )
    return sensor, kind


def _near(name: str, known: Sequence[str]) -> str:
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
