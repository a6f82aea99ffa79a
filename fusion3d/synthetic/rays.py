"""Numba primitives that all simulated sensors share: counter-based randomness and rays against solids.

Every random number is a hash of (seed, counter), so a result does not depend on the order of the rays, nor on the
number of threads. Kernels come in two forms, with and without numba threads; ``threaded`` says which to call: after
``numba.set_num_threads(1)`` no thread pool is used at all, so that a forked worker process may run them safely.
"""

from __future__ import annotations

import numba
import numpy as np

from fusion3d.synthetic.kernels import kernel

MISS = 1e30  # a distance that stands for "no hit"
X_FACE, Y_FACE, Z_FACE, ROUND = 0, 1, 2, 3  # which kind of surface a ray met

_A, _B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S11 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(11)
_S16, _S32, _S48, _MASK16 = np.uint64(16), np.uint64(32), np.uint64(48), np.uint64(0xFFFF)
_GOLDEN, _STRIDE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1342543DE82EF95)


def threaded() -> bool:
    """Should the kernels use numba's threads?"""
    return numba.get_num_threads() > 1


def seed_of(*parts: int) -> np.uint64:
    """One 64-bit seed of any number of integers (negative ones too); order matters."""
    words = [part & 0xFFFFFFFF for number in parts for part in (int(number), int(number) >> 32)]
    return np.random.SeedSequence(words).generate_state(1, np.uint64)[0]


@kernel(inline="always")
def random_bits(seed, counter):
    """64 random bits, uint64, of a uint64 seed and an integer counter (splitmix64 finaliser)."""
    x = seed + np.uint64(counter) * _STRIDE + _GOLDEN
    x = (x ^ (x >> _S30)) * _A
    x = (x ^ (x >> _S27)) * _B
    return x ^ (x >> _S31)


@kernel(inline="always")
def unit(bits):
    """Uniform in [0, 1) of 64 random bits."""
    return np.float64(bits >> _S11) * (1.0 / 9007199254740992.0)


@kernel(inline="always")
def bell(bits):
    """Near-normal number of 64 random bits: mean 0, standard deviation 1, never beyond 3.47 (sum of four uniforms)."""
    total = (
        np.float64(bits & _MASK16)
        + np.float64((bits >> _S16) & _MASK16)
        + np.float64((bits >> _S32) & _MASK16)
        + np.float64(bits >> _S48)
    )
    return (total - 131070.0) * (1.0 / 37837.2)


@kernel(inline="always")
def cell_noise(seed, x, y, z):
    """Uniform in [0, 1), constant in each integer cell of space."""
    i, j, k = np.int64(np.floor(x)), np.int64(np.floor(y)), np.int64(np.floor(z))
    return unit(random_bits(seed, i * 73856093 ^ j * 19349663 ^ k * 83492791))


@kernel(inline="always")
def _slab(origin, direction, half):
    """Where a line enters and leaves |x| <= half, as ray parameters."""
    if abs(direction) < 1e-12:
        if abs(origin) > half:
            return MISS, -MISS
        return -MISS, MISS
    a, b = (-half - origin) / direction, (half - origin) / direction
    return (a, b) if a < b else (b, a)


@kernel()
def hit_box(ox, oy, oz, dx, dy, dz, hx, hy, hz):
    """First hit of a ray with the box |x| <= hx, |y| <= hy, |z| <= hz, seen from outside.

    Returns:
        Ray parameter (MISS when it passes, or starts inside) and the kind of face.
    """
    near, far = _slab(ox, dx, hx)
    face = X_FACE
    a, b = _slab(oy, dy, hy)
    if a > near:
        near, face = a, Y_FACE
    far = min(far, b)
    if near > far:
        return MISS, face
    a, b = _slab(oz, dz, hz)
    if a > near:
        near, face = a, Z_FACE
    far = min(far, b)
    return (near if near <= far and near > 0.0 else MISS), face


@kernel()
def hit_cylinder(ox, oy, oz, dx, dy, dz, radius, hz):
    """First hit of a ray with the upright cylinder x^2 + y^2 <= radius^2, |z| <= hz, seen from outside.

    Returns:
        As ``hit_box``.
    """
    near, far = _slab(oz, dz, hz)
    face = Z_FACE
    a = dx * dx + dy * dy
    c = ox * ox + oy * oy - radius * radius
    if a < 1e-18:
        if c > 0.0:
            return MISS, face
    else:
        half_b = ox * dx + oy * dy
        root = half_b * half_b - a * c
        if root <= 0.0:
            return MISS, face
        root = np.sqrt(root)
        enter = (-half_b - root) / a
        if enter > near:
            near, face = enter, ROUND
        far = min(far, (root - half_b) / a)
    return (near if near <= far and near > 0.0 else MISS), face


@kernel()
def fill_lists(first, last, order, num_columns):
    """Which solids does each column have to look at? Solids keep the given order inside every list.

    Args:
        first, last: [S] int64 first and last column of a solid, last < first for none; columns wrap modulo num_columns.
        order: [N] int64 solids to be listed.
        num_columns: number of lists.

    Returns:
        [num_columns + 1] int64 starts, and the concatenated lists.
    """
    start = np.zeros(num_columns + 1, np.int64)
    for s in order:
        for column in range(first[s], min(last[s], first[s] + num_columns - 1) + 1):
            start[column % num_columns + 1] += 1
    for column in range(num_columns):
        start[column + 1] += start[column]
    items = np.empty(start[num_columns], np.int64)
    cursor = start[:-1].copy()
    for s in order:
        for column in range(first[s], min(last[s], first[s] + num_columns - 1) + 1):
            column %= num_columns
            items[cursor[column]] = s
            cursor[column] += 1
    return start, items
