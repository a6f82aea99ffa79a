"""Corruptions of files: what each does to a cloud, an image or returns, against formulas and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from fusion3d.data.corruptions import camera, lidar, radar
from fusion3d.types import RADAR_FIELDS

AHEAD = np.array([0.1, 0.99, 0.0])  # as of LIDAR_TOP, whose y axis looks ahead
LEVELS = (0, 1, 2)
RCS, VX, VY, DOPPLER = (RADAR_FIELDS.index(name) for name in ("rcs", "vx", "vy", "doppler"))


def cloud(seed: int = 0, count: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    points = np.zeros((count, 5), dtype=np.float32)
    reach, angle = rng.uniform(2, 70, count), rng.uniform(-math.pi, math.pi, count)
    points[:, 0], points[:, 1], points[:, 2] = reach * np.cos(angle), reach * np.sin(angle), rng.normal(0, 1, count)
    points[:, 3], points[:, 4] = rng.integers(0, 256, count), rng.integers(0, 32, count)
    return points


def returns(seed: int = 0, count: int = 3000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = rng.normal(0, 10, (count, len(RADAR_FIELDS))).astype(np.float32)
    out[:, 0] = rng.uniform(1, 80, count)
    return out


def image(seed: int = 0, height: int = 48, width: int = 80) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.kron(rng.uniform(0, 1, (3, height // 8, width // 8)), np.ones((1, 8, 8))).astype(np.float32)


def rows(points: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in points}


def on_points(name: str, level: int, points: np.ndarray, seed: int = 1) -> np.ndarray:
    return lidar.POINTS[name](points, level, np.random.default_rng(seed), AHEAD)


@given(seed=st.integers(0, 99), level=st.sampled_from(LEVELS))
@settings(max_examples=20, deadline=None)
def test_beams_that_are_left_are_exactly_those(seed, level):
    points = cloud(seed, 500)
    left = on_points("beams", level, points)
    rings = {0: range(1, 32, 2), 1: range(1, 32, 4), 2: (1, 9, 17, 25)}[level]  # MultiCorrupt's lists
    np.testing.assert_array_equal(left, np.array([row for row in points if int(row[4]) in rings]).reshape(-1, 5))


@pytest.mark.parametrize(
    ("do", "data", "shares"),
    [(lidar.drop, cloud(), (0.7, 0.8, 0.9)), (radar.points, returns(), (0.3, 0.5, 0.7))],
    ids=["lidar", "radar"],
)
def test_dropped_points_are_so_many_and_those_of_a_lower_severity(do, data, shares):
    more = () if data.shape[1] == len(RADAR_FIELDS) else (AHEAD,)
    left = [do(data, level, np.random.default_rng(5), *more) for level in LEVELS]
    assert [len(of) for of in left] == [round(len(data) * (1 - share)) for share in shares]
    assert rows(left[2]) < rows(left[1]) < rows(left[0]) < rows(data)
    assert len(rows(left[0])) == len(left[0])  # each once
    order = {row.tobytes(): place for place, row in enumerate(data)}
    places = [order[row.tobytes()] for row in left[0]]
    assert places == sorted(places)


def test_the_view_that_is_left_lies_ahead():
    points = cloud()
    off = np.degrees(np.arctan2(points[:, 1], points[:, 0]) - math.atan2(AHEAD[1], AHEAD[0]))
    off = np.abs((off + 180) % 360 - 180)
    for level, half in enumerate((135, 90, 60)):
        np.testing.assert_array_equal(on_points("view", level, points), points[off <= half])


def test_a_blurred_cloud_is_shifted_and_jitters():
    points = cloud(count=20_000)
    moves = [on_points("blur", level, points)[:, :3] - points[:, :3] for level in LEVELS]
    for move, deviation in zip(moves, (0.06, 0.1, 0.13), strict=True):
        assert move.std(0) == pytest.approx(deviation * np.array([0.15, 0.2, 0.12]), rel=0.03)
    np.testing.assert_allclose(moves[1] / 0.1, moves[0] / 0.06, atol=2e-3)  # the same draws, more of them
    shifts = [on_points("blur", 2, points[:1], seed)[0, :3] - points[0, :3] for seed in range(800)]
    assert np.std(shifts) == pytest.approx(0.13 * math.hypot(1, 0.16), rel=0.1)


def fog_by_quadrature(reach: float, extinction: float) -> float:
    """The strongest echo of the fog before a target, by scipy."""
    pulse, best = lidar.PULSE, 0.0
    for peak in np.arange(0, reach + 1e-9, 0.1):

        def echo(time: float, peak: float = peak) -> float:  # time as a part of the pulse
            r = peak - pulse * time
            seen = min(max((r - 0.9) / 0.1, 0), 1)
            return math.sin(math.pi * time) ** 2 * math.exp(-2 * extinction * r) * seen / max(r, 0.9) ** 2

        kinks = sorted({min(max((peak - r) / pulse, 0), 1) for r in (0.9, 1.0)})
        best = max(best, quad(echo, 0, 1, points=kinks, limit=200)[0] * 40e-9)
    return best


@pytest.mark.parametrize("reach", [1.0, 2.5, 4.0, 12.0])
def test_fog_echoes_are_the_integral(reach):
    response, place = lidar._fog_echo(0.06)
    cell = round(reach / 0.1)
    assert response[cell] == pytest.approx(fog_by_quadrature(reach, 0.06), rel=0.02, abs=1e-12)
    assert (np.diff(response) >= 0).all() and (place >= 0.9).all()


@pytest.mark.parametrize("level", LEVELS)
def test_fog_dims_by_its_law_and_where_it_does_not_it_shows_itself(level):
    points = cloud(3)
    extinction = lidar.FOG[level][0]
    out = on_points("fog", level, points)
    reach = np.linalg.norm(points[:, :3].astype(float), axis=1)
    hard = np.round(points[:, 3] * np.exp(-2 * extinction * reach))
    moved = (out[:, :3] != points[:, :3]).any(1)
    assert moved.any() and not moved.all()
    np.testing.assert_array_equal(out[~moved, 3], hard[~moved])
    assert (out[moved, 3] > hard[moved]).all()  # only what is brighter than the target takes its place
    np.testing.assert_array_equal(out[:, 4], points[:, 4])
    seen = np.linalg.norm(out[moved, :3], axis=1)
    assert seen.min() > 0.4 and seen.max() < 8
    cosine = (out[moved, :3] * points[moved, :3]).sum(1) / seen / reach[moved]
    np.testing.assert_allclose(cosine, 1, atol=1e-5)  # on the same ray


def test_denser_fog_hides_more():
    points = cloud(3)
    moved = [(on_points("fog", level, points)[:, :3] != points[:, :3]).any(1) for level in LEVELS]
    # Of one with as much backscatter, a few targets are brighter by the rounding.
    assert (moved[0] <= moved[1]).mean() > 0.99 and (moved[1] <= moved[2]).all()
    assert moved[0].sum() < moved[1].sum() < moved[2].sum()


def test_snow_leaves_beams_without_a_flake_alone():
    points = cloud(5)[:1].repeat(20_000, 0)
    points[:, :3] = [30.0, 0, 0]
    points[:, 3] = 255
    for level, (fall, speed) in enumerate(lidar.SNOW):
        out = on_points("snow", level, points)
        alone = (out == points[: len(out)]).all(1).sum()
        density = fall / (3.6e6 * 0.1 * speed) / (math.pi / 4 * 0.003**2)
        expected = math.exp(-density * (0.003 * 30**2 / 2 + 0.003 * 30))
        assert alone / 20_000 == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("level", LEVELS)
def test_snow_is_on_the_ray_and_nearer(level):
    points = cloud(6)
    points[:, 4] = np.arange(len(points))  # names
    out = on_points("snow", level, points)
    before = points[out[:, 4].astype(int)]
    reach, seen = (np.linalg.norm(of[:, :3].astype(float), axis=1) for of in (before, out))
    assert (seen <= reach * (1 + 1e-6)).all()
    np.testing.assert_allclose((out[:, :3] * before[:, :3]).sum(1) / seen / reach, 1, atol=1e-5)
    stayed = np.isclose(seen, reach)
    assert (out[stayed, 3] <= before[stayed, 3]).all()
    assert (out[:, 3] >= 0).all() and (out[:, 3] <= 255).all()


def test_heavier_snow_moves_more():
    points = cloud(7)
    near = [(np.linalg.norm(on_points("snow", level, points)[:, :3], axis=1)).mean() for level in LEVELS]
    assert near[0] > near[1] > near[2]


@given(
    covers=st.lists(st.floats(0, 0.99), max_size=12),
    beams=st.lists(st.integers(0, 4), min_size=12, max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_shade_is_the_product_of_what_is_before(covers, beams):
    beam = np.array(sorted(beams[: len(covers)]), dtype=np.int64)
    light, left = lidar._shade(beam, np.array(covers), 5)
    rest = dict.fromkeys(range(5), 1.0)
    for n, (of, cover) in enumerate(zip(beam.tolist(), covers, strict=True)):
        assert light[n] == pytest.approx(rest[of], rel=1e-9)
        rest[of] *= 1 - cover
    np.testing.assert_allclose(left, list(rest.values()), rtol=1e-9)


@pytest.mark.parametrize("name", lidar.POINTS)
@pytest.mark.parametrize("level", LEVELS)
def test_clouds_of_no_and_of_odd_points(name, level):
    assert on_points(name, level, np.zeros((0, 5), np.float32)).shape == (0, 5)
    odd = np.zeros((3, 5), dtype=np.float32)
    odd[1, :3], odd[2, :3] = 1e-6, 500
    before = odd.copy()
    out = on_points(name, level, odd)
    assert np.isfinite(out).all() and out.dtype == np.float32 and len(out) <= 3
    np.testing.assert_array_equal(odd, before)  # the argument stays


@pytest.mark.parametrize("name", ["fog", "snow"])
@pytest.mark.parametrize("level", LEVELS)
def test_points_that_are_nowhere_stay_there(name, level):
    points = cloud(count=300)
    nowhere = points.copy()
    nowhere[-3:, 0] = np.nan, np.inf, -np.inf
    out = on_points(name, level, nowhere)
    lost = ~np.isfinite(out[:, :3]).all(axis=1)
    np.testing.assert_array_equal(out[lost], nowhere[-3:])
    assert len(out) > 3 and (np.linalg.norm(out[~lost, :3], axis=1) < 71).all()
    nowhere[-3:, 0] = 1e20  # farther than light comes back
    assert np.isfinite(on_points(name, level, nowhere)).all()


@pytest.mark.parametrize("level", LEVELS)
def test_doppler_noise_is_along_the_ray(level):
    data = returns()
    noise = radar.doppler(data, level, np.random.default_rng(0)) - data
    reach = np.hypot(data[:, 0], data[:, 1])
    along = (noise[:, VX] * data[:, 0] + noise[:, VY] * data[:, 1]) / reach
    across = (noise[:, VX] * data[:, 1] - noise[:, VY] * data[:, 0]) / reach
    assert along.std() == pytest.approx((0.5, 1, 2)[level], rel=0.05) and abs(along.mean()) < 0.1
    np.testing.assert_allclose(across, 0, atol=1e-5)
    np.testing.assert_allclose(noise[:, DOPPLER], along, atol=1e-4)  # what was measured, before compensation
    rest = [column for column in range(data.shape[1]) if column not in (VX, VY, DOPPLER)]
    assert (noise[:, rest] == 0).all()


@pytest.mark.parametrize("level", LEVELS)
def test_rcs_noise(level):
    data = returns()
    noise = radar.rcs(data, level, np.random.default_rng(0)) - data
    assert noise[:, RCS].std() == pytest.approx((3, 6, 10)[level], rel=0.05)
    assert (np.delete(noise, RCS, axis=1) == 0).all()


def test_ghosts_are_farther_weaker_and_as_fast():
    data = returns()
    all_ghosts = [radar.ghosts(data, level, np.random.default_rng(2))[len(data) :] for level in LEVELS]
    assert [len(ghosts) for ghosts in all_ghosts] == [round(len(data) * share) for share in (0.25, 0.5, 1)]
    np.testing.assert_array_equal(all_ghosts[2][: len(all_ghosts[0])], all_ghosts[0])  # the same, and more
    np.testing.assert_array_equal(radar.ghosts(data, 1, np.random.default_rng(2))[: len(data)], data)
    order = np.random.default_rng(2).permutation(len(data))  # whose echo each is
    source, ghosts = data[order], all_ghosts[2]
    stretch = np.hypot(ghosts[:, 0], ghosts[:, 1]) / np.hypot(source[:, 0], source[:, 1])
    assert (stretch > 1.2499).all() and (stretch < 2.0001).all()
    weaker = source[:, RCS] - ghosts[:, RCS]
    assert (weaker > 4.999).all() and (weaker < 15.001).all()
    np.testing.assert_allclose(
        np.hypot(ghosts[:, VX], ghosts[:, VY]), np.hypot(source[:, VX], source[:, VY]), rtol=1e-4
    )


@pytest.mark.parametrize("name", radar.RETURNS)
def test_no_returns(name):
    empty = np.zeros((0, len(RADAR_FIELDS)), np.float32)
    assert radar.RETURNS[name](empty, 2, np.random.default_rng(0)).shape == empty.shape


@pytest.mark.parametrize("name", camera.IMAGES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["random", "white", "dark", "one_pixel"])
def test_images_stay_images(name, level, kind):
    pixels = {
        "random": image(), "white": np.ones((3, 20, 33), np.float32), "dark": np.zeros((3, 20, 33), np.float32),
        "one_pixel": np.full((3, 1, 1), 0.5, np.float32),
    }[kind]  # fmt: skip
    before = pixels.copy()
    out = camera.IMAGES[name](pixels, level, np.random.default_rng(0), pixels.shape[2] / 1600)
    assert out.shape == pixels.shape and np.isfinite(out).all() and out.min() >= 0 and out.max() <= 1 + 1e-6
    np.testing.assert_array_equal(pixels, before)


def test_bright_is_value_in_hsv():
    import colorsys

    pixels = image(2, 8, 8)
    pixels[:, 0, 0] = 0
    for level, more in enumerate((0.1, 0.3, 0.5)):
        out = camera.bright(pixels, level, np.random.default_rng(0), 1)
        for at in ((0, 0), (3, 3), (7, 7)):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixels[(slice(None), *at)].tolist())
            expected = colorsys.hsv_to_rgb(hue, saturation, min(value + more, 1))
            np.testing.assert_allclose(out[(slice(None), *at)], expected, atol=1e-5)


def test_dark_is_the_squared_range_with_noise():
    pixels = np.linspace(0.1, 0.9, 200, dtype=np.float32)[None, None].repeat(400, 1).repeat(3, 0)
    for level, (most, photons, sensor) in enumerate(((0.6, 250, 0.008), (0.4, 120, 0.018), (0.3, 50, 0.026))):
        out = camera.dark(pixels, level, np.random.default_rng(1), 1)
        expected = most * ((pixels[0, 0] - 0.1) / 0.8) ** 2
        bright = slice(100, 200)  # far from 0, where noise is cut off
        np.testing.assert_allclose(out.mean((0, 1))[bright], expected[bright], atol=0.02)
        deviation = np.sqrt(expected / photons + sensor**2)
        np.testing.assert_allclose(out.std((0, 1))[bright], deviation[bright], rtol=0.15)


def test_occluded_covers_its_share_and_more_of_the_same():
    pixels = np.ones((3, 90, 160), np.float32)
    mud = [np.isclose(camera.occluded(pixels, n, np.random.default_rng(3), 0.1), camera._MUD).all(0) for n in LEVELS]
    assert [of.mean() for of in mud] == pytest.approx([0.1, 0.25, 0.5], abs=0.005)
    assert (mud[0] <= mud[1]).all() and (mud[1] <= mud[2]).all()


@pytest.mark.parametrize(
    ("name", "measure", "sign"),
    [
        ("dark", np.mean, -1),
        ("bright", np.mean, 1),
        ("snow", np.mean, 1),
        ("occluded", np.mean, -1),
        ("fog", lambda pixels: np.abs(np.diff(pixels, axis=2)).mean(), -1),  # contrast
        ("blur", lambda pixels: np.square(np.diff(pixels, axis=2)).mean(), -1),  # sharpness
    ],
)
def test_more_of_it_is_worse(name, measure, sign):
    pixels = image(4, 96, 160)
    values = [measure(pixels)]
    values += [measure(camera.IMAGES[name](pixels, n, np.random.default_rng(5), 0.4)) for n in LEVELS]
    assert (np.diff(sign * np.array(values)) > 0).all(), values


def test_blur_draws_a_dot_out_along_its_line():
    pixels = np.zeros((3, 61, 61), np.float32)
    pixels[:, 30, 30] = 1
    out = camera._smear(pixels, 5, 3.0, 0.0, 1.0)  # along the row
    weights = np.exp(-0.5 * (np.arange(11) / 3.0) ** 2)
    np.testing.assert_allclose(out[0, 30, 30:41], weights / weights.sum(), rtol=1e-5)
    assert out.sum() == pytest.approx(3, rel=1e-5)
    uphill = camera._smear(pixels, 5, 3.0, 45.0, 1.0)
    assert uphill[0, 29, 31] > 0 and uphill[0, 31, 31] == 0


def test_black_images_come_by_chance():
    pixels = np.ones((3, 2, 2), np.float32)
    for level, odds in enumerate((0.2, 0.4, 0.6)):
        share = np.mean([camera.black(pixels, level, np.random.default_rng(n), 1).sum() == 0 for n in range(600)])
        assert share == pytest.approx(odds, abs=0.06)
