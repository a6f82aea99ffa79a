"""LiDAR clouds, corrupted: x, y, z [m] in the sensor's frame, intensity 0..255, ring; as in the file.

Beams, points, blur and fog are MultiCorrupt's (Beemelmanns et al., 2024), fog after Hahner et al. (2021); snow is of
their severities, in a model of our own after Hahner et al. (2022). Every function takes [P, 5] float32, the severity as
an index, a generator and the direction ahead of the vehicle in the sensor's frame [3].
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

PULSE = 20e-9 * 299_792_458.0  # [m] of light's way in the half-power width of a pulse
NEAR, FULL = 0.9, 1.0  # [m] from which range on the receiver sees the beam, and from which on all of it
REFLECTIVITY = 1e-6 / math.pi  # of a hard target, per steradian (Hahner et al.'s beta_0)
FOG = ((0.02, 0.008), (0.03, 0.008), (0.06, 0.05))  # extinction [1/m] and backscatter [1/sr]: MultiCorrupt's
SNOW = ((0.5, 1.2), (2.5, 1.6), (1.5, 0.4))  # snowfall [mm/h] and speed of the flakes [m/s]: MultiCorrupt's
DIVERGENCE = 3e-3  # [rad] opening of a beam
FLAKE = 3e-3  # [m] across
_STEP, _REACH = 0.1, 200.0  # [m] of the table of fog echoes; what is farther is as there


def beams(points: np.ndarray, level: int, rng: np.random.Generator, ahead: np.ndarray) -> np.ndarray:
    """Every second, fourth or eighth ring is left, from the second one on: 16, 8 or 4 of 32."""
    return points[points[:, 4] % (2, 4, 8)[level] == 1]


def drop(points: np.ndarray, level: int, rng: np.random.Generator, ahead: np.ndarray) -> np.ndarray:
    """70, 80 or 90 % of the points are lost."""
    kept = round(len(points) * (1 - (0.7, 0.8, 0.9)[level]))
    return points[np.sort(rng.permutation(len(points))[:kept])]


def view(points: np.ndarray, level: int, rng: np.random.Generator, ahead: np.ndarray) -> np.ndarray:
    """270, 180 or 120 degrees round the direction ahead are left (the last two as in Yu et al., 2023)."""
    along = points[:, :2] @ ahead[:2] / np.linalg.norm(ahead[:2])
    limit = math.cos(math.radians((135, 90, 60)[level]))
    return points[along >= limit * np.hypot(points[:, 0], points[:, 1])]


def blur(points: np.ndarray, level: int, rng: np.random.Generator, ahead: np.ndarray) -> np.ndarray:
    """The cloud is shifted as a whole, by 6, 10 or 13 cm along each axis (standard deviation), and its points jitter.

    The jitter is 0.15, 0.2 and 0.12 of that in x, y and z, cut off at three times the shift's deviation.
    """
    deviation = (0.06, 0.1, 0.13)[level]
    shift, jitter = rng.standard_normal(3), rng.standard_normal((len(points), 3)) * (0.15, 0.2, 0.12)
    out = points.copy()
    out[:, :3] += deviation * (shift + jitter.clip(-3, 3))
    return out


def fog(points: np.ndarray, level: int, rng: np.random.Generator, ahead: np.ndarray) -> np.ndarray:
    """Fog after Hahner et al., "Fog Simulation on Real LiDAR Point Clouds for 3D Object Detection" (2021).

    What comes back of a point at range R is exp(-2 alpha R) of its intensity, rounded. Where the fog itself returns
    more, the point is where it does, near the sensor. Unlike there, fog echoes brighter than a file can say are cut to
    255, and the noise of their range is bounded: a factor from 1/2 to 2.
    """
    extinction, backscatter = FOG[level]
    reach = _reach(points)
    response, place = _fog_echo(extinction)
    cell = np.minimum(np.rint(reach / _STEP), len(response) - 1).astype(np.int64)
    soft = points[:, 3] * reach**2 * backscatter / REFLECTIVITY * response[cell]
    hard = np.round(np.exp(-2 * extinction * reach) * points[:, 3])
    noise = (1 + 10.0 / np.maximum(reach, 1e-6) * rng.uniform(-1, 1, len(points))).clip(0.5, 2)
    echo = soft > hard
    out = points.copy()
    out[:, 3] = np.where(echo, np.minimum(soft, 255), hard)
    out[:, :3] *= np.where(echo, place[cell] / np.maximum(reach, 1e-6) / noise, 1.0)[:, None]
    return out


def _reach(points: np.ndarray) -> np.ndarray:
    """[P] float64 range of each point [m]; 0 for those that are nowhere (NaN, infinite), which weather leaves alone."""
    reach = np.linalg.norm(points[:, :3].astype(np.float64), axis=1)
    return np.where(np.isfinite(reach), reach, 0.0)


@lru_cache(maxsize=8)
def _fog_echo(extinction: float) -> tuple[np.ndarray, np.ndarray]:
    """By the range of the target in steps: the strongest echo of the fog before it, and where that seems to be [m].

    The echo at R is the integral over the pulse, sin(pi t / 2 tau)^2, of exp(-2 alpha r) xi(r) / r^2 at r = R - c t /
    2; the pulse's peak comes tau later than its begin.
    """
    light = 299_792_458.0
    ranges = np.arange(0, _REACH + _STEP / 2, _STEP)
    part = (np.arange(300) + 0.5) / 300  # of the pulse
    r = ranges[:, None] - PULSE * part
    seen = ((r - NEAR) / (FULL - NEAR)).clip(0, 1)
    returned = np.sin(math.pi * part) ** 2 * np.exp(-2 * extinction * r) * seen / np.maximum(r, NEAR) ** 2
    echo = returned.mean(axis=1) * 2 * PULSE / light
    best = np.maximum.accumulate(np.where(echo >= np.maximum.accumulate(echo), np.arange(len(echo)), 0))
    return echo[best], np.maximum(ranges[best] - PULSE / 2, NEAR)


def snow(points: np.ndarray, level: int, rng: np.random.Generator, ahead: np.ndarray) -> np.ndarray:
    """Snow after Hahner et al., "LiDAR Snowfall Simulation for Robust 3D Object Detection" (2022).

    Flakes of 3 mm fill the share of the air that follows from MultiCorrupt's rates; in the plane of a beam each shades
    the part that it covers, and returns 90 % of what falls on it. The stronger echo of flake and target is the point,
    whose power is what the file calls intensity, a calibrated reflectivity, over the square of its range; a target of
    which less than one of 255 is left is lost. Unlike there, flakes are of one size and are drawn beam by beam, echoes
    do not add up within a pulse, and the ground is not wet. It takes milliseconds a cloud where the original takes
    minutes.
    """
    fall, speed = SNOW[level]
    density = fall / (3.6e6 * 0.1 * speed) / (math.pi / 4 * FLAKE**2)  # [1/m^2]; snow weighs a tenth of water
    reach = _reach(points)
    far = np.minimum(reach, _REACH)  # what a flake returns from beyond is nothing
    room = DIVERGENCE * far**2 / 2 + FLAKE * far  # [m^2] where a flake's centre meets the beam
    beam = np.repeat(np.arange(len(points)), rng.poisson(density * room))
    filled = rng.uniform(size=len(beam)) * room[beam]
    r = (np.sqrt(FLAKE**2 + 2 * DIVERGENCE * filled) - FLAKE) / DIVERGENCE
    order = np.lexsort((r, beam))
    beam, r = beam[order], r[order]
    cover = (FLAKE / np.maximum(DIVERGENCE * r, 1e-9)).clip(0, 1 - 1e-9)
    light, left = _shade(beam, cover, len(points))
    bright = 0.9 * 255 * cover * light * ((r - NEAR) / (FULL - NEAR)).clip(0, 1)
    power = bright / np.maximum(r, NEAR) ** 2
    strongest = np.zeros(len(points))
    np.maximum.at(strongest, beam, power)
    flake = strongest > points[:, 3] * left / np.maximum(reach, NEAR) ** 2
    is_it = flake[beam] & (power == strongest[beam])
    out = points.copy()
    out[:, 3] = np.where(left < 1, np.floor(points[:, 3] * left), points[:, 3])
    out[beam[is_it], 3] = np.rint(bright[is_it])
    out[beam[is_it], :3] *= (r[is_it] / reach[beam[is_it]])[:, None]
    return out[(left == 1) | flake | (out[:, 3] >= 1)]


def _shade(beam: np.ndarray, cover: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The light that reaches each of the flakes, which are in order of beam and range, and each of ``count`` targets.

    Args:
        beam: [F] of each flake.
        cover: [F] share of its beam, below 1.
        count: beams.

    Returns:
        [F] and [count] in 0..1.
    """
    dimmed = np.concatenate([[0.0], np.cumsum(np.log1p(-cover))])
    start = np.searchsorted(beam, np.arange(count))
    end = np.searchsorted(beam, np.arange(count), side="right")
    left = np.where(end > start, np.exp(dimmed[end] - dimmed[start]), 1.0)
    return np.exp(dimmed[:-1] - dimmed[start[beam]]), left


POINTS = {"beams": beams, "points": drop, "view": view, "blur": blur, "fog": fog, "snow": snow}
