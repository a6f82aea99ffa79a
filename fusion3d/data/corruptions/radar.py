"""Radar returns, corrupted. No benchmark of camera, LiDAR and radar together defines these: they are our own.

Fog and snow are not among them: at 77 GHz dense fog takes less than a decibel from an echo at 50 m, and dry snow little
more (Brooker et al., 2007; Zang et al., 2019). R returns.
"""

from __future__ import annotations

import numpy as np

from fusion3d.types import RADAR_FIELDS

_RCS, _VX, _VY, _DOPPLER, _RAY_X, _RAY_Y = (
    RADAR_FIELDS.index(name) for name in ("rcs", "vx", "vy", "doppler", "ray_x", "ray_y")
)


def points(returns: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """30, 50 or 70 % of the returns are lost."""
    kept = round(len(returns) * (1 - (0.3, 0.5, 0.7)[level]))
    return returns[np.sort(rng.permutation(len(returns))[:kept])]


def ghosts(returns: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """25, 50 or 100 % more returns, of echoes that came by a detour (Kraus et al., 2020, call them ghost images).

    Each is a return that is there, farther by a quarter to the double of its range, up to 20 degrees aside, weaker by
    5 to 15 dB, with its radial velocity in the direction where it seems to be.
    """
    count = round(len(returns) * (0.25, 0.5, 1.0)[level])
    chosen = rng.permutation(len(returns))
    farther, aside, weaker = rng.uniform(size=(3, len(returns)))
    ghost = returns[chosen]
    angle = np.radians(20) * (2 * aside - 1)
    cos, sin = np.cos(angle), np.sin(angle)
    for x, y, factor in ((0, 1, 1.25 + 0.75 * farther), (_VX, _VY, 1.0), (_RAY_X, _RAY_Y, 1.0)):
        ghost[:, x], ghost[:, y] = (
            factor * (cos * ghost[:, x] - sin * ghost[:, y]),
            factor * (sin * ghost[:, x] + cos * ghost[:, y]),
        )
    ghost[:, _RCS] -= 5 + 10 * weaker
    return np.concatenate([returns, ghost[:count]])


def rcs(returns: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Normal noise of 3, 6 or 10 dB on the radar cross-section."""
    out = returns.copy()
    out[:, _RCS] += (3.0, 6.0, 10.0)[level] * rng.standard_normal(len(out))
    return out


def doppler(returns: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Normal noise of 0.5, 1 or 2 m/s on the radial velocity; what lies across the ray is not measured, and stays."""
    out = returns.copy()
    noise = (0.5, 1.0, 2.0)[level] * rng.standard_normal(len(out))
    reach = np.maximum(np.hypot(out[:, 0], out[:, 1]), 1e-6)
    out[:, _VX] += noise * out[:, 0] / reach
    out[:, _VY] += noise * out[:, 1] / reach
    out[:, _DOPPLER] += noise
    return out


RETURNS = {"points": points, "ghosts": ghosts, "rcs": rcs, "doppler": doppler}
