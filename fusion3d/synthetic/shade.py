"""What a ray brings home: the light of sky, ground and bodies, and how a camera makes 8-bit pixels of it.

Light is linear RGB, 1 being a white wall in the sun. ``light`` is one float64 vector (cheap to hand to every pixel);
its places are named by the constants here.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from fusion3d.synthetic.kernels import kernel
from fusion3d.synthetic.rays import bell, cell_noise, random_bits
from fusion3d.synthetic.scene import MATERIALS, Weather
from fusion3d.synthetic.stage import GRASS, PAINT, SHADOW, WALKWAY

SUN_X, SUN_Y, SUN_Z, SUN, AMBIENT, FOG, NIGHT, RAIN, EGO_X, EGO_Y, EGO_COS, EGO_SIN, PIXEL = range(13)
ZENITH, HORIZON, WARMTH = 13, 16, 19  # three places each
LIGHT_SIZE = 22
WINDOWS, STRIPES, FOLIAGE = 1, 2, 3  # textures of ``Solids``
_GLASS, _METAL, _RETRO = (MATERIALS.index(name) for name in ("glass", "metal", "reflective"))
_ROUGH = np.array([name in ("brick", "concrete", "wood", "skin_cloth") for name in MATERIALS])
_HEADLIGHT = np.array([3.6, 0.0, 0.7])  # of the ego, in ego [m]
_GROUND_ALBEDO = np.array([[0.10, 0.17, 0.05], [0.075, 0.076, 0.08], [0.62, 0.61, 0.57], [0.27, 0.25, 0.23]])


def light_of(weather: Weather, sun: np.ndarray, ego: np.ndarray, pixel: float) -> np.ndarray:
    """[LIGHT_SIZE] float64: the light of a scene for one picture.

    Args:
        weather: Of the scene.
        sun: [3] unit vector to the sun.
        ego: [4] x, y, z, yaw, for the headlights.
        pixel: [rad] angle between neighbouring pixels, to fade textures that are too fine.
    """
    day, grey = (1 - weather.night) ** 2, max(0.75 * weather.rain, 0.85 * weather.fog)
    light = np.zeros(LIGHT_SIZE)
    light[:3] = sun
    light[SUN] = 0.95 * day * (1 - grey) + 0.012 * weather.night
    light[AMBIENT] = day * (0.42 + 0.12 * grey) * (1 - 0.35 * weather.rain) + 0.02 * weather.night
    light[FOG] = 0.0012 + 0.035 * weather.fog + 0.006 * weather.rain
    light[NIGHT], light[RAIN] = weather.night, weather.rain
    light[EGO_X : EGO_X + 4] = ego[0], ego[1], np.cos(ego[3]), np.sin(ego[3])
    light[PIXEL] = pixel
    low = np.clip((0.75 - sun[2]) * 1.4, 0, 1)  # the lower the sun, the warmer its light
    clear = np.array([0.16, 0.33, 0.72]), np.array([0.62, 0.72, 0.85])
    overcast = np.array([0.48, 0.51, 0.55]), np.array([0.62, 0.64, 0.66])
    dark = np.array([0.004, 0.005, 0.012]), np.array([0.022, 0.019, 0.02])
    for place, index in ((ZENITH, 0), (HORIZON, 1)):
        sky = (1 - grey) * clear[index] + grey * overcast[index] * (1 - 0.35 * weather.rain)
        light[place : place + 3] = day * sky + weather.night * dark[index]
    light[WARMTH : WARMTH + 3] = np.array([1.0, 1.0, 1.0]) + low * np.array([0.08, -0.02, -0.16])
    return light


@kernel()
def _fade(amplitude, cell, blur):
    """A texture's amplitude when ``blur`` metres fall on one pixel."""
    return amplitude * min(1.0, max(0.0, 1.6 - blur / cell))


@kernel()
def _clouds(seed, x, y):
    """Smooth noise in [0, 1) on a plane."""
    i, j = np.floor(x), np.floor(y)
    a, b = x - i, y - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    low = cell_noise(seed, i, j, 0.0) * (1 - a) + cell_noise(seed, i + 1, j, 0.0) * a
    high = cell_noise(seed, i, j + 1, 0.0) * (1 - a) + cell_noise(seed, i + 1, j + 1, 0.0) * a
    return low * (1 - b) + high * b


@kernel()
def shade_sky(light, seed, dx, dy, dz):
    """Light of the sky from a direction."""
    up = np.sqrt(max(dz, 0.0))
    r = light[HORIZON] + (light[ZENITH] - light[HORIZON]) * up
    g = light[HORIZON + 1] + (light[ZENITH + 1] - light[HORIZON + 1]) * up
    b = light[HORIZON + 2] + (light[ZENITH + 2] - light[HORIZON + 2]) * up
    if dz > 0.03:
        cloud = _clouds(seed, 1.5 * dx / (dz + 0.15), 1.5 * dy / (dz + 0.15))
        cloud = 0.65 * cloud + 0.35 * _clouds(seed + np.uint64(1), 4 * dx / (dz + 0.15), 4 * dy / (dz + 0.15))
        cover = min(max(2.2 * (cloud - 0.45), 0.0), 1.0) * min(1.0, 8 * (dz - 0.03)) * 0.6
        white = 0.9 * (light[HORIZON] + light[HORIZON + 1] + light[HORIZON + 2]) / 2.1
        r, g, b = r + (white - r) * cover, g + (white - g) * cover, b + (white - b) * cover
    facing = dx * light[SUN_X] + dy * light[SUN_Y] + dz * light[SUN_Z]
    if facing > 0.9:
        glow = light[SUN] * ((facing - 0.9) * 10) ** 6
        r, g, b = r + glow, g + 0.95 * glow, b + 0.8 * glow
    return r, g, b


@kernel()
def _lit(light, x, y, z, nx, ny, nz, shadow):
    """How much light falls on a surface: from sky and sun, and from the own headlights."""
    sun = max(0.0, nx * light[SUN_X] + ny * light[SUN_Y] + nz * light[SUN_Z]) * light[SUN]
    around = light[AMBIENT] * (0.72 + 0.28 * nz) * (0.7 if shadow else 1.0)
    direct = 0.0 if shadow else sun
    lamp = 0.0
    if light[NIGHT] > 0.05:
        rx, ry = x - light[EGO_X], y - light[EGO_Y]
        ahead = light[EGO_COS] * rx + light[EGO_SIN] * ry - _HEADLIGHT[0]
        left = light[EGO_COS] * ry - light[EGO_SIN] * rx
        if ahead > 0.3:
            distance = np.sqrt(ahead * ahead + left * left + 0.01)
            beam = max(0.0, 1 - (left / ahead) ** 2 / 0.6) * max(0.0, min(1.0, 1.8 - 0.6 * z))
            fx = -(light[EGO_COS] * ahead - light[EGO_SIN] * left) / distance
            fy = -(light[EGO_SIN] * ahead + light[EGO_COS] * left) / distance
            toward = max(nx * fx + ny * fy + nz * 0.6 / distance, 0.0)
            lamp = light[NIGHT] * beam * (0.12 + 0.88 * toward) * 1.3 / (1 + (distance / 14) ** 2)
    return around, direct, lamp


@kernel()
def _mist(light, distance, r, g, b):
    """What fog, rain and haze leave of some light after a distance."""
    clear = np.exp(-light[FOG] * distance)
    return (
        light[HORIZON] + (r - light[HORIZON]) * clear,
        light[HORIZON + 1] + (g - light[HORIZON + 1]) * clear,
        light[HORIZON + 2] + (b - light[HORIZON + 2]) * clear,
    )


@kernel()
def shade_ground(light, seed, cell, under, x, y, dx, dy, dz, distance):
    """Light of the ground at global x, y: ``cell`` as ``ground_at``, ``under`` that of the actors' shadows."""
    kind, shadow = cell & ~SHADOW, (cell & SHADOW) != 0 or under
    blur = distance * light[PIXEL] / np.sqrt(max(-dz, 0.02))
    r, g, b = _GROUND_ALBEDO[kind]
    if kind == GRASS:
        tone = 1 + _fade(0.8, 0.25, blur) * (cell_noise(seed, 4 * x, 4 * y, 1.0) - 0.5)
        tone *= 1 + _fade(0.35, 3.0, blur) * (_clouds(seed, x / 3, y / 3) - 0.5)
        r *= 1 + _fade(0.5, 8.0, blur) * (_clouds(seed, x / 8, y / 8 + 50) - 0.5)
    elif kind == WALKWAY:
        tone = 1 + _fade(0.14, 1.0, blur) * (cell_noise(seed, x, y, 2.0) - 0.5)
        if x - np.floor(x) < 0.06 or y - np.floor(y) < 0.06:
            tone *= 1 - _fade(0.35, 0.1, blur)
    else:
        tone = 1 + _fade(0.3, 0.12, blur) * (cell_noise(seed, 8 * x, 8 * y, 3.0) - 0.5)
        tone *= 1 + _fade(0.3, 2.5, blur) * (_clouds(seed, x / 2.5, y / 2.5) - 0.5)
        if kind == PAINT:
            tone *= 0.85 + 0.25 * _clouds(seed, 3 * x, 3 * y)
    around, direct, lamp = _lit(light, x, y, 0.0, 0.0, 0.0, 1.0, shadow)
    wet = light[RAIN] if kind != GRASS else 0.3 * light[RAIN]
    total = tone * (1 - 0.4 * wet)
    r *= total * (around + direct * light[WARMTH] + lamp)
    g *= total * (around + direct * light[WARMTH + 1] + lamp)
    b *= total * (around + direct * light[WARMTH + 2] + 0.9 * lamp)
    if wet > 0.05:
        graze = (1 + dz) ** 3 * wet * (0.45 + 0.4 * _clouds(seed, x / 1.7, y / 1.7))
        sky_r, sky_g, sky_b = shade_sky(light, seed, dx, dy, -dz)
        r, g, b = r + graze * (sky_r - r), g + graze * (sky_g - g), b + graze * (sky_b - b)
    return _mist(light, distance, r, g, b)


@kernel()
def shade_solid(light, seed, look, face_x, px, py, height, x, y, z, nx, ny, nz, dx, dy, dz, distance):
    """Light of a solid.

    Args:
        light, seed: Of the picture, and of the solid's texture.
        look: [6] diffuse RGB in [0, 1], material, texture and glow of the solid.
        face_x: is the face one across the solid's x axis (so that y runs along it)?
        px, py, height: the point in the solid's own frame, the height from its bottom [m].
        x, y, z, nx, ny, nz: the point and its normal in global.
        dx, dy, dz, distance: of the ray.
    """
    material, texture = int(look[3]), int(look[4])
    r, g, b = look[0] * look[0], look[1] * look[1], look[2] * look[2]
    blur, gleam, glow = distance * light[PIXEL], 0.0, look[5]
    along = py if face_x else px
    if texture == WINDOWS and abs(nz) < 0.5:
        a, h = along / 2.7, height / 3.1
        if 0.22 < a - np.floor(a) < 0.78 and 0.3 < h - np.floor(h) < 0.82:
            pane = cell_noise(seed, a, h, 1.0 if face_x else 2.0)
            r, g, b, gleam = 0.03 + 0.03 * pane, 0.04 + 0.03 * pane, 0.06 + 0.03 * pane, 0.25 + 0.2 * pane
            if pane > 0.68:
                glow = 0.5 * light[NIGHT]
                if light[NIGHT] > 0.3:
                    r, g, b = 0.9, 0.7, 0.35
        else:
            tone = 1 + _fade(0.2, 0.4, blur) * (cell_noise(seed, 2.5 * along, 2.5 * height, 3.0) - 0.5)
            r, g, b = r * tone, g * tone, b * tone
    elif texture == STRIPES:
        if np.floor((along + height) / 0.3) % 2 == 0:
            if r > 0.4 and g > 0.4:
                r, g, b = 0.65, 0.06, 0.03
            else:
                r, g, b = 0.8, 0.8, 0.78
    elif texture == FOLIAGE:
        tone = 0.55 + 0.5 * _fade(1.0, 0.3, blur) * cell_noise(seed, 3.3 * px, 3.3 * py, 3.3 * height)
        tone += 0.6 * cell_noise(seed, 0.9 * px, 0.9 * py, 0.9 * height) - 0.1
        r, g, b = r * tone, g * tone, b * tone
    elif _ROUGH[material]:
        tone = 1 + _fade(0.25, 0.12, blur) * (cell_noise(seed, 8 * px, 8 * py, 8 * height) - 0.5)
        r, g, b = r * tone, g * tone, b * tone
    facing = max(0.0, -(nx * dx + ny * dy + nz * dz))
    if material == _GLASS and texture != WINDOWS:
        gleam = 0.12 + 0.6 * (1 - facing) ** 3
    elif material == _METAL:
        gleam = 0.05 + 0.35 * (1 - facing) ** 4
    around, direct, lamp = _lit(light, x, y, z, nx, ny, nz, False)
    around *= 0.55 + 0.45 * min(1.0, z / 0.8)  # less sky near the ground
    if material == _RETRO:
        lamp *= 4.0
    out_r = r * (around + direct * light[WARMTH] + lamp) + r * glow
    out_g = g * (around + direct * light[WARMTH + 1] + lamp) + g * glow
    out_b = b * (around + direct * light[WARMTH + 2] + 0.9 * lamp) + b * glow
    if gleam > 0.0:
        mirror = -2 * (nx * dx + ny * dy + nz * dz)
        up = dz + mirror * nz
        if up > 0:
            sky_r, sky_g, sky_b = shade_sky(light, seed, dx + mirror * nx, dy + mirror * ny, up)
        else:
            sky_r = sky_g = sky_b = 0.12 * light[AMBIENT]
        out_r, out_g, out_b = (
            out_r + gleam * (sky_r - out_r), out_g + gleam * (sky_g - out_g), out_b + gleam * (sky_b - out_b),
        )  # fmt: skip
    return _mist(light, distance, out_r, out_g, out_b)


def wet_lens(linear: np.ndarray, rain: float, rng: np.random.Generator) -> None:
    """Rain in front of the camera, in place on [H, W, 3] light: falling streaks, and drops that blur what is behind."""
    height, width = linear.shape[:2]
    level = float(linear.mean())
    for _ in range(int(0.3 * width * rain)):
        row, column = rng.integers(0, height), rng.integers(0, width)
        linear[row : row + rng.integers(3, 5 + height // 14), column] += 0.14 * level * rng.random()
    for _ in range(rng.binomial(14, rain)):
        row, column = rng.integers(0, height), rng.integers(0, width)
        radius = int(height * rng.uniform(0.015, 0.05)) + 1
        patch = linear[max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1]
        rows = np.arange(patch.shape[0])[:, None] - min(row, radius)
        columns = np.arange(patch.shape[1])[None] - min(column, radius)
        weight = np.clip(1.4 * (1 - np.hypot(rows, columns) / radius), 0, 0.85)[..., None]
        patch += weight * (1.08 * patch.mean((0, 1)) - patch)


@kernel()
def _develop_row(row, seed, linear, gain, noise, image):
    """Lens blur, exposure, vignetting, film curve and sensor noise of one row."""
    height, width, _ = linear.shape
    above, below = max(row - 1, 0), min(row + 1, height - 1)
    for column in range(width):
        left, right = max(column - 1, 0), min(column + 1, width - 1)
        off = ((row - height / 2) ** 2 + (column - width / 2) ** 2) / (height * height + width * width) * 4
        shown = gain * (1 - 0.22 * off)
        for c in range(3):
            sides = linear[above, column, c] + linear[below, column, c] + linear[row, left, c] + linear[row, right, c]
            value = 1 - np.exp(-1.35 * shown * (0.6 * linear[row, column, c] + 0.1 * sides))
            value = 255 * np.sqrt(max(value, 0.0)) + noise * bell(random_bits(seed, (row * width + column) * 3 + c))
            image[row, column, c] = np.uint8(min(max(value + 0.5, 0.0), 255.0))


@kernel()
def develop(seed, linear, gain, noise, image):
    """[H, W, 3] float32 light to uint8 pixels in ``image``; ``noise`` is the standard deviation in grey levels."""
    for row in range(linear.shape[0]):
        _develop_row(row, seed, linear, gain, noise, image)


@kernel(parallel=True)
def develop_threads(seed, linear, gain, noise, image):
    """``develop`` on numba's threads."""
    for row in prange(linear.shape[0]):
        _develop_row(row, seed, linear, gain, noise, image)
