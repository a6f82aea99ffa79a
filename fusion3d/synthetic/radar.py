"""The five radars, simulated: a fan of beams in the plane, clusters as the sensors of nuScenes report them.

A return is where a beam meets a body that it can see: through leaves and people, under vehicles, over kerbs, never
through walls. A body answers by its radar cross-section and aspect, all of it stronger or weaker from scan to scan
(Swerling's first case: exponential power), with up to 6 returns an actor; they share its cross-section. What is near
must stand out from clutter, whose echo of one range cell falls by R^-3 where the target's falls by R^-4, what is far
from noise: so most that is small is missed in most scans at any range, as in real files (people are in 3 of 10,
cones in 1 of 30; `tests/synthetic/test_radar_statistics.py`). The sensor measures range, azimuth and the radial
velocity; every other number is derived:

- ``vx_comp, vy_comp``: the radial velocity over ground, as a vector along the line of sight.
- ``vx, vy``: that, minus the velocity of the sensor against a resting point in its turning frame, in steps of 0.25 m/s,
  as in nuScenes files. Its projection on the line of sight is the Doppler velocity (relative, not compensated).

Also simulated: clutter, ghosts (reflections that seem to lie behind a vehicle, or at twice its range), ambiguous
velocities (``ambig_state`` is not 3), validity codes, the sensor's coarse idea of motion (``dyn_prop``). x and y lie on
a 0.2 m grid, z is 0, RCS comes in steps of 0.5 dBsm: all as in the real files. Weather and darkness do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusion3d.synthetic.kernels import kernel
from fusion3d.synthetic.rays import MISS, ROUND, X_FACE, hit_box, hit_cylinder, seed_of
from fusion3d.synthetic.rig import RIG, mount_of
from fusion3d.synthetic.scene import BOX, MATERIALS, SIM_STEP, Scene
from fusion3d.synthetic.stage import Stage, ego_at, global_from_ego, stage_of

RADAR_DTYPE = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("dyn_prop", "i1"), ("id", "<i2"), ("rcs", "<f4"), ("vx", "<f4"),
     ("vy", "<f4"), ("vx_comp", "<f4"), ("vy_comp", "<f4"), ("is_quality_valid", "i1"), ("ambig_state", "i1"),
     ("x_rms", "i1"), ("y_rms", "i1"), ("invalid_state", "i1"), ("pdh0", "i1"), ("vx_rms", "i1"), ("vy_rms", "i1")]
)  # the 18 fields of nuScenes, 43 bytes, packed in this order  # fmt: skip
MAX_RETURNS = 125
MAX_OF_ACTOR = 6
BEAM = np.radians(0.5)  # between neighbouring beams
BEAM_AZIMUTH = np.arange(-120, 121) * BEAM  # +-60 degree, sensor frame
RANGE_NOISE, VELOCITY_NOISE = 0.15, 0.1  # [m], [m/s] standard deviations
MIN_RANGE, SHORT_RANGE, LONG_RANGE = 0.8, 70.0, 250.0  # [m] nearest; at +-60 degree; straight ahead
_ABOVE_CLUTTER = 16.0  # [dB] a target of 0 dBsm just stands out at 40 m, on average
_ABOVE_NOISE = 84.0  # [dB] and is just seen at 125 m
_ELEVATION = 0.12  # [rad] half opening of the beam
_FADING, _FLUCTUATION = 5.0, 2.0  # [dB] standard deviations by body, beside Swerling's; and of what a beam meets of it
_SHARE_STATIC = 0.9  # of the beams that meet what is no actor, those that make a return

# RCS [dBsm] of a patch as wide as a beam sees, at normal incidence, and what the beam keeps after passing a body.
_STATIC = {
    "metal": (6, 0.7), "glass": (4, 0.2), "rubber": (0, 0.8), "plastic": (-2, 0.9), "skin_cloth": (-6, 0.9),
    "concrete": (9, 0.0), "brick": (8, 0.0), "vegetation": (0, 0.75), "wood": (0, 0.7), "asphalt": (-4, 0.9),
    "paint": (0, 0.9), "grass": (-8, 0.9), "reflective": (6, 0.7),
}  # fmt: skip
_STATIC_RCS = np.array([_STATIC[name][0] for name in MATERIALS], dtype=np.float64)
_STATIC_KEEPS = np.array([_STATIC[name][1] for name in MATERIALS])
_GHOST_STATES = np.array([0, 4, 6, 9, 10, 11, 16], dtype=np.int8)
_REAL, _CLUTTER, _GHOST = 0, 1, 2


@dataclass(frozen=True)
class RadarScan:
    """One scan of one radar."""

    points: np.ndarray  # [R] RADAR_DTYPE in the sensor frame, by range
    owner: np.ndarray  # [R] int32 index in scene.actors, -1 none; a ghost belongs to nobody


def max_range(azimuth: np.ndarray) -> np.ndarray:
    """[m] reach at azimuths [rad] in the sensor frame: far ahead, near at the sides."""
    narrow = np.clip((np.radians(20) - np.abs(azimuth)) / np.radians(9), 0, 1)
    return SHORT_RANGE + (LONG_RANGE - SHORT_RANGE) * narrow**2


def scan_radar(scene: Scene, channel: str, time: float, seed: int) -> RadarScan:
    """Measure once.

    Args:
        scene: What there is.
        channel: A radar of the rig, e.g. "RADAR_FRONT".
        time: [s] of the measurement.
        seed: Of its noise; the result depends on the arguments alone.

    Returns:
        Up to MAX_RETURNS returns; none at all where there is nothing to see.

    Raises:
        ValueError: The channel is no radar of the rig.
    """
    mount, stage = mount_of(channel, "RADAR_"), stage_of(scene)
    rng = np.random.Generator(
        np.random.Philox(int(seed_of(scene.seed, seed, round(time * 1e6), list(RIG).index(channel), 15)))
    )
    poses = global_from_ego(ego_at(scene, time)) @ mount.ego_from_sensor
    before, after = (
        global_from_ego(ego_at(scene, time + d)) @ mount.ego_from_sensor for d in (-SIM_STEP / 2, SIM_STEP / 2)
    )
    turn = poses[:2, :2]
    sensor_velocity = (after - before)[:2, 3] / SIM_STEP @ turn  # in sensor axes
    ego_yaw = scene.ego.at(np.array([time - SIM_STEP / 2, time + SIM_STEP / 2]))[1]
    yaw_rate = float(ego_yaw[1] - ego_yaw[0]) / SIM_STEP
    hits = _echoes(stage, time, poses, rng)
    moving = stage.velocities_at(time) @ turn  # [A, 2] in sensor axes
    found = _with_artefacts(hits, moving, sensor_velocity, rng)
    return _report(found, moving, sensor_velocity, yaw_rate, rng)


@dataclass
class _Returns:
    """Returns before they are measured, as columns."""

    azimuth: np.ndarray  # [rad] in the sensor frame
    range: np.ndarray  # [m]
    rcs: np.ndarray  # [dBsm]
    margin: np.ndarray  # [dB] above the threshold
    owner: np.ndarray  # int32
    sort: np.ndarray  # _REAL, _CLUTTER or _GHOST
    speed: np.ndarray  # [m/s] radial, over ground


def _echoes(stage: Stage, time: float, global_from_sensor: np.ndarray, rng: np.random.Generator) -> _Returns:
    """What the beams bring back: at most MAX_OF_ACTOR returns an actor, and a share of all others."""
    solids, first = stage.solids, int(stage.first[0])
    static, state = slice(0, first), stage.actors_at(time)
    actors = len(state)
    kind = np.concatenate([solids.kind[static], np.zeros(actors, np.uint8)])
    center = np.concatenate([solids.center[static], state[:, :3]])
    half = np.concatenate([solids.size[static], stage.size]) / 2
    yaw = np.concatenate([solids.yaw[static], state[:, 3]])
    rcs = np.concatenate([_STATIC_RCS[solids.material[static]], stage.rcs])
    keeps = np.concatenate([_STATIC_KEEPS[solids.material[static]], np.where(stage.size[:, 1] > 1.2, 0.35, 0.85)])
    keeps[center[:, 2] + half[:, 2] < 0.4] = 1.0  # the beam passes over kerbs
    offset = global_from_sensor[:3, 3]
    beam, distance, solid, facing, loss = _cross(
        kind, center - offset, half, yaw, keeps, np.arctan2(global_from_sensor[1, 0], global_from_sensor[0, 0]),
        BEAM_AZIMUTH, max_range(BEAM_AZIMUTH),
    )  # fmt: skip
    owner = np.where(solid >= first, solid - first, -1).astype(np.int32)
    count = len(beam)
    aspect = np.where(owner >= 0, 5 * facing - 3, 20 * np.log10(np.maximum(facing, 0.05)))
    fading = 10 * np.log10(rng.exponential(size=actors + 1) + 1e-3)  # the last is nobody's
    fading += _FADING * rng.standard_normal(actors + 1)
    strength = rcs[solid] + aspect + fading[owner] * (owner >= 0) + _FLUCTUATION * rng.standard_normal(count)
    above = np.minimum(_ABOVE_CLUTTER - 10 * np.log10(distance), _ABOVE_NOISE - 40 * np.log10(distance))
    margin = strength + loss + above
    luck = rng.random(count)
    keep = (margin > 0) & np.where(owner >= 0, True, luck < _SHARE_STATIC)
    for actor in np.unique(owner[keep & (owner >= 0)]):
        rows = np.flatnonzero(keep & (owner == actor))
        wanted = min(MAX_OF_ACTOR, 1 + int(max(margin[rows].max() - 6, 0) / 4 + luck[rows[0]]))
        keep[rows[np.argsort(-margin[rows] - 6 * luck[rows], kind="stable")[wanted:]]] = False
        strength[rows] -= 10 * np.log10(min(wanted, len(rows)))
    beam, distance, owner = beam[keep], distance[keep], owner[keep]
    depth = (
        np.where(owner >= 0, 0.5 * np.append(stage.size[:, :2].min(1), 0.0)[owner], 0.3) * rng.random(len(beam)) ** 1.5
    )
    azimuth = BEAM_AZIMUTH[beam] + BEAM * (rng.random(len(beam)) - 0.5)
    return _Returns(
        azimuth, distance + depth, strength[keep], margin[keep], owner, np.zeros(len(beam), int), np.zeros(len(beam))
    )


@kernel()
def _cross(kind, center, half, yaw, keeps, heading, azimuths, reach):
    """All crossings of the beams with the bodies, near to far, until a beam has lost its power.

    Args:
        kind, center, half, yaw: columns of solids, the centres relative to the sensor, in global axes.
        keeps: [S] part of the power that passes a body.
        heading: [rad] of the sensor in global.
        azimuths, reach: of the beams [rad], [m], in the sensor frame, evenly spaced.

    Returns:
        Columns: beam, range [m], solid, cosine of incidence, two-way loss on the way [dB].
    """
    count, beams = len(yaw), len(azimuths)
    lists = np.zeros((beams, 64), np.int64)
    filled = np.zeros(beams, np.int64)
    spacing = azimuths[1] - azimuths[0]
    for s in range(count):
        distance = np.sqrt(center[s, 0] ** 2 + center[s, 1] ** 2)
        radius = np.sqrt(half[s, 0] ** 2 + half[s, 1] ** 2)
        if distance - radius > LONG_RANGE:
            continue
        middle = (np.arctan2(center[s, 1], center[s, 0]) - heading + np.pi) % (2 * np.pi) - np.pi
        spread = np.arcsin(radius / distance) if distance > radius else np.pi
        low = int(np.floor((middle - spread - azimuths[0]) / spacing))
        high = int(np.ceil((middle + spread - azimuths[0]) / spacing))
        for beam in range(max(low, 0), min(high, beams - 1) + 1):
            if filled[beam] < 64 and distance - radius < reach[beam]:
                lists[beam, filled[beam]] = s
                filled[beam] += 1
    out = np.empty((beams * 8, 5))
    total = 0
    ranges, facings = np.empty(64), np.empty(64)
    for beam in range(beams):
        dx, dy = np.cos(heading + azimuths[beam]), np.sin(heading + azimuths[beam])
        for i in range(filled[beam]):
            s = lists[beam, i]
            cos, sin = np.cos(yaw[s]), np.sin(yaw[s])
            ox, oy = -cos * center[s, 0] - sin * center[s, 1], sin * center[s, 0] - cos * center[s, 1]
            lx, ly = cos * dx + sin * dy, cos * dy - sin * dx
            if kind[s] == BOX:
                t, face = hit_box(ox, oy, 0.0, lx, ly, 0.0, half[s, 0], half[s, 1], 1.0)
            else:
                t, face = hit_cylinder(ox, oy, 0.0, lx, ly, 0.0, half[s, 0], 1.0)
            rise = _ELEVATION * t + 0.1
            seen = center[s, 2] - half[s, 2] < rise and center[s, 2] + half[s, 2] > -rise
            ranges[i] = t if MIN_RANGE < t < reach[beam] and seen else MISS
            if face == ROUND:
                facings[i] = abs((ox + t * lx) * lx + (oy + t * ly) * ly) / half[s, 0] if t < MISS else 0.0
            else:
                facings[i] = abs(lx) if face == X_FACE else abs(ly)
        power = 1.0
        found = 0
        for i in np.argsort(ranges[: filled[beam]]):
            if ranges[i] >= MISS or power < 0.03 or found == 8:
                break
            s = lists[beam, i]
            out[total, 0], out[total, 1], out[total, 2] = beam, ranges[i], s
            out[total, 3], out[total, 4] = facings[i], 20 * np.log10(power)
            total, found = total + 1, found + 1
            power *= keeps[s]
    out = out[:total]
    beam, solid = out[:, 0].astype(np.int64), out[:, 2].astype(np.int64)
    return beam, out[:, 1].copy(), solid, out[:, 3].copy(), out[:, 4].copy()


def _with_artefacts(
    hits: _Returns, moving: np.ndarray, sensor_velocity: np.ndarray, rng: np.random.Generator
) -> _Returns:
    """The hits with their radial speed, and after them clutter and ghosts; the strongest MAX_RETURNS of all."""
    sight = np.stack([np.cos(hits.azimuth), np.sin(hits.azimuth)], axis=-1)
    velocity = np.concatenate([moving, np.zeros((1, 2))])[hits.owner]
    speed = (velocity * sight).sum(-1)
    count = rng.poisson(1.0 + 0.05 * len(hits.azimuth))
    azimuth = rng.uniform(BEAM_AZIMUTH[0], BEAM_AZIMUTH[-1], count)
    clutter = _Returns(
        azimuth, MIN_RANGE + (max_range(azimuth) - MIN_RANGE) * rng.random(count), rng.uniform(-5, 2, count),
        rng.uniform(0, 4, count), np.full(count, -1, np.int32), np.full(count, _CLUTTER),
        0.3 * rng.standard_normal(count),
    )  # fmt: skip
    seeds = np.flatnonzero((hits.owner >= 0) & (hits.margin > 12) & (rng.random(len(speed)) < 0.05))
    behind = rng.random(len(seeds)) < 0.6
    doppler = speed[seeds] - (sensor_velocity * sight[seeds]).sum(-1)
    ghost = _Returns(
        hits.azimuth[seeds],
        np.where(behind, hits.range[seeds] + rng.uniform(2, 9, len(seeds)), 2 * hits.range[seeds]),
        hits.rcs[seeds] - 8, hits.margin[seeds] - 10, np.full(len(seeds), -1, np.int32), np.full(len(seeds), _GHOST),
        np.where(behind, speed[seeds], speed[seeds] + doppler),  # bounced twice: twice the Doppler shift
    )  # fmt: skip
    hits.speed = speed
    groups = (hits, clutter, ghost)
    merged = _Returns(**{name: np.concatenate([getattr(g, name) for g in groups]) for name in vars(hits)})
    strongest = np.argsort(-merged.margin, kind="stable")
    strongest = strongest[merged.range[strongest] < max_range(merged.azimuth[strongest])][:MAX_RETURNS]
    chosen = strongest[np.argsort(merged.range[strongest], kind="stable")]
    return _Returns(**{name: column[chosen] for name, column in vars(merged).items()})


def _report(
    found: _Returns, moving: np.ndarray, sensor_velocity: np.ndarray, yaw_rate: float, rng: np.random.Generator
) -> RadarScan:
    """Measure: noise on range, angle and speed, then the 18 fields."""
    count = len(found.range)
    spread = np.radians(0.5 + 2.0 * (found.azimuth / BEAM_AZIMUTH[-1]) ** 2)
    azimuth = found.azimuth + spread * rng.standard_normal(count)
    distance = np.maximum(found.range + RANGE_NOISE * rng.standard_normal(count), 0.4)
    points = np.zeros(count, RADAR_DTYPE)
    points["x"] = np.round(distance * np.cos(azimuth) / 0.2) * 0.2
    points["y"] = np.round(distance * np.sin(azimuth) / 0.2) * 0.2
    place = np.stack([points["x"], points["y"]], axis=-1).astype(np.float64)
    sight = place / np.maximum(np.linalg.norm(place, axis=-1, keepdims=True), 0.2)
    ambiguous = rng.random(count) < 0.05
    alias = np.where(ambiguous, rng.choice([-1, 1], count) * rng.uniform(4, 12, count), 0.0)
    speed = found.speed + VELOCITY_NOISE * rng.standard_normal(count) + alias
    compensated = speed[:, None] * sight
    resting = -sensor_velocity - yaw_rate * np.stack([-place[:, 1], place[:, 0]], axis=-1)
    points["vx_comp"], points["vy_comp"] = compensated.T
    points["vx"], points["vy"] = (np.round((compensated + resting) / 0.25) * 0.25).T
    points["id"] = np.arange(count)
    points["rcs"] = np.clip(np.round(found.rcs / 0.5) * 0.5, -5, 60)
    points["is_quality_valid"] = 1
    points["ambig_state"] = np.where(ambiguous, rng.choice([0, 1, 2, 4], count), 3)
    points["invalid_state"] = _validity(found, rng)
    points["dyn_prop"] = _motion_class(found, speed, moving, sight, rng)
    points["pdh0"] = np.where(found.sort == _REAL, rng.choice([1, 1, 1, 2, 3], count), rng.choice([3, 4, 6], count))
    for name, low, decay in (("x_rms", 19, 0.55), ("y_rms", 19, 0.45), ("vx_rms", 16, 0.7)):
        points[name] = np.minimum(low - 1 + rng.geometric(decay, count), low + 5)
    points["vy_rms"] = 3
    return RadarScan(points, found.owner)


def _validity(found: _Returns, rng: np.random.Generator) -> np.ndarray:
    """[R] int8 invalid_state: 0 for most of what is really there, other codes for weak returns and artefacts."""
    count = len(found.range)
    weak, strong = rng.choice([0, 0, 0, 4, 4, 11, 16], count), rng.choice([0, 0, 0, 0, 0, 4, 9, 11], count)
    real = np.where(found.margin < 5, weak, strong)
    return np.where(found.sort == _REAL, real, rng.choice(_GHOST_STATES, count)).astype(np.int8)


def _motion_class(
    found: _Returns, speed: np.ndarray, moving: np.ndarray, sight: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """[R] int8 dyn_prop as the sensor guesses it: 0 moving, 1 stationary, 2 oncoming, 3 stationary?, 4 unknown, 5 and 6
    crossing, 7 stopped.
    """
    count = len(speed)
    velocity = np.concatenate([moving, np.zeros((1, 2))])[found.owner]
    across = np.abs(velocity[:, 0] * sight[:, 1] - velocity[:, 1] * sight[:, 0])
    rest = rng.choice([1] * 11 + [3] * 8 + [4], count)
    actor_rest = np.where(across > 1.0, 5, np.where(rng.random(count) < 0.1, 7, rest))
    still = np.where(found.owner >= 0, actor_rest, rest)
    going = np.where(speed < 0, 2, 0)
    going = np.where((across > 2 * np.abs(speed)) & (found.owner >= 0), 6, going)
    return np.where(np.abs(speed) < 0.8, still, going).astype(np.int8)
