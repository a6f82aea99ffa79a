"""Images, corrupted, in the network's size: [3, H, W] float32 in [0, 1], RGB.

Dark, bright, fog, snow, blur and black have MultiCorrupt's definitions and severities (Beemelmanns et al., 2024), most
of which go back to Hendrycks and Dietterich (2019) and RoboBEV (Xie et al., 2023). They made theirs in images of 1600 x
900 px, which are then made smaller; here lengths are scaled instead, which takes a fraction of the time. Every function
takes the image, the severity as an index, a generator, and how many pixels one of a 1600 px wide image is.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from fusion3d.data.corruptions.rig import ODDS

_MUD = np.array([0.16, 0.13, 0.1], dtype=np.float32)[:, None, None]  # colour of dirt on a lens


def black(image: np.ndarray, level: int, rng: np.random.Generator, unit: float) -> np.ndarray:
    """A camera that sends nothing but zeros, with probability 0.2, 0.4 or 0.6."""
    return np.zeros_like(image) if rng.random() < ODDS[level] else image


def dark(image: np.ndarray, level: int, rng: np.random.Generator, unit: float) -> np.ndarray:
    """The image's range, squared, up to 0.6, 0.4 or 0.3; then the noise of 250, 120 or 50 photons and of the sensor."""
    low, high = float(image.min()), float(image.max())
    dim = (0.6, 0.4, 0.3)[level] * ((image - low) / max(high - low, 1e-6)) ** 2
    photons = (250, 120, 50)[level]
    counted = (rng.poisson(dim * photons) / photons).clip(0, 1)
    noise = (0.008, 0.018, 0.026)[level] * rng.standard_normal(image.shape)
    return (counted + noise).clip(0, 1).astype(np.float32)


def bright(image: np.ndarray, level: int, rng: np.random.Generator, unit: float) -> np.ndarray:
    """0.1, 0.3 or 0.5 more value in HSV; hue and saturation stay."""
    value = image.max(axis=0, keepdims=True)
    more = np.minimum(value + (0.1, 0.3, 0.5)[level], 1)
    return np.where(value > 0, image * (more / np.maximum(value, 1e-6)), more)


def fog(image: np.ndarray, level: int, rng: np.random.Generator, unit: float) -> np.ndarray:
    """Drifting fog over all, and haze that is denser away from the road before the vehicle.

    The fog is cloudy noise, thinned and lit by two more such fields; the haze is Koschmieder's law with a distance
    that is made up from the place in the image. Unlike MultiCorrupt's, the noise is interpolated and not made by
    midpoint displacement; its spectrum is the same.
    """
    height, width = image.shape[1:]
    cloud, thin, lit = (_clouds(rng, height, width) for _ in range(3))
    strength, most = (2.0, 3.0, 4.0)[level], float(image.max())
    foggy = (image + strength * cloud * (1 - 0.8 * thin) * (1 + 0.5 * lit)) * most / (most + strength)
    rows, columns = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width) + 0.5) / width
    away = np.hypot(
        _outside(rows, 0.65, 0.99) * height / unit, _outside(columns, 0.1, 0.85) * width / unit
    )  # from a rectangle on the road [px of 1600]
    distance = 2 * away * (1 + rng.uniform(size=away.shape) / 4) + math.sqrt(max(height, width) / unit)
    clear = np.exp(-(0.0005, 0.001, 0.002)[level] * distance)
    return (foggy.clip(0, 1) * clear + 0.5 * (1 - clear)).astype(np.float32)


def snow(image: np.ndarray, level: int, rng: np.random.Generator, unit: float) -> np.ndarray:
    """Flakes that fall past the lens, near ones and far ones, over a whitened and slightly darker image."""
    loc, zoom, least, radius, clear = (
        (0.3, 5, 0.9, 7, 0.9), (0.4, 4, 0.85, 8, 0.85), (0.5, 3, 0.8, 10, 0.8)
    )[level]  # fmt: skip
    height, width = image.shape[1:]
    grain = max(zoom * unit, 1.0)  # [px] of the noise's cells
    noise = rng.normal(loc, 0.3, (math.ceil(height / grain) + 1, math.ceil(width / grain) + 1))
    layer = _enlarge(noise, height, width)
    layer = np.where(layer < least, 0, layer).clip(0, 1)
    layer = _smear(layer[None], radius, radius, rng.uniform(-135, -45), unit)
    grey = np.tensordot(np.array([0.299, 0.587, 0.114], dtype=np.float32), image, 1)
    white = clear * image + (1 - clear) * np.maximum(image, 1.5 * grey + 0.5)
    return (0.9 * white + layer + layer[:, ::-1, ::-1]).clip(0, 1)


def blur(image: np.ndarray, level: int, rng: np.random.Generator, unit: float) -> np.ndarray:
    """Motion blur along a line up to 45 degrees off the horizontal: half a bell of 6, 10 or 13 px deviation, 31 px."""
    return _smear(image, 15, (6.0, 10.0, 13.0)[level], rng.uniform(-45, 45), unit)


def occluded(image: np.ndarray, level: int, rng: np.random.Generator, unit: float) -> np.ndarray:
    """Dirt on the lens: patches that cover 10, 25 or 50 % of the image, with soft edges. Not in MultiCorrupt."""
    patches = _clouds(rng, *image.shape[1:])
    edge = np.quantile(patches, 1 - (0.1, 0.25, 0.5)[level])
    cover = ((patches - edge) / 0.02 + 1).clip(0, 1)  # all of it where the dirt is, less up to 0.02 below
    return image * (1 - cover) + _MUD * cover


def _outside(at: np.ndarray, first: float, last: float) -> np.ndarray:
    return np.maximum(0, np.maximum(first - at, at - last))


def _clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """[H, W] float32 noise in 0..1 with an amplitude that falls by 2.89 from an octave to the next, finer one."""
    side = max(height, width)
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(1, max(2, math.ceil(math.log2(side)))):
        cells = 2**octave
        grid = rng.uniform(-1, 1, (math.ceil(cells * height / side) + 1, math.ceil(cells * width / side) + 1))
        total += _enlarge(grid, height, width) / 2.89**octave
    total -= total.min()
    return total / max(float(total.max()), 1e-6)


def _enlarge(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W] float32, linearly between the values of a grid."""
    tensor = torch.from_numpy(grid.astype(np.float32))[None, None]
    return F.interpolate(tensor, (height, width), mode="bilinear", align_corners=True)[0, 0].numpy()


def _smear(image: np.ndarray, radius: int, deviation: float, degrees: float, unit: float) -> np.ndarray:
    """[C, H, W] drawn out along a line, to one side: with the weights of half a bell over 2 radius + 1 px of 1600."""
    reach = 2 * radius * unit
    steps = np.linspace(0, reach, math.ceil(reach) + 1)
    weights = np.exp(-0.5 * (steps / (deviation * unit)) ** 2)
    weights /= weights.sum()
    dx = np.rint(steps * math.cos(math.radians(degrees))).astype(int)
    dy = np.rint(-steps * math.sin(math.radians(degrees))).astype(int)
    margin = math.ceil(reach) + 1
    padded = np.pad(image, ((0, 0), (margin, margin), (margin, margin)), mode="edge")
    height, width = image.shape[1:]
    out = np.zeros_like(image, dtype=np.float32)
    for x, y, weight in zip(dx, dy, weights, strict=True):
        out += np.float32(weight) * padded[:, margin - y : margin - y + height, margin - x : margin - x + width]
    return out


IMAGES = {
    "black": black,
    "dark": dark,
    "bright": bright,
    "fog": fog,
    "snow": snow,
    "blur": blur,
    "occluded": occluded,
}
