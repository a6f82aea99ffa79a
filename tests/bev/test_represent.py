"""Representation: which cells are compared, what each loss is, and that training does what it says."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from fusion3d.bev.represent import Coordinated, Factorised, make_representation
from fusion3d.bev.represent.cells import MOST, Interest, find_interest, take_cells
from fusion3d.bev.represent.contrast import info_nce
from fusion3d.bev.represent.factors import correlation, moment_discrepancy, relative_error
from fusion3d.config import Config, FusionConfig
from fusion3d.engine.random_batch import random_batch
from fusion3d.errors import ConfigError
from fusion3d.types import Batch, BEVGrid, Boxes, PointCloud

GRID = BEVGrid(x=(-8.0, 8.0), y=(-6.0, 6.0), resolution=1.0)
Y, X = GRID.shape
CHANNELS = {"camera": 4, "lidar": 6, "radar": 2}
CONFIG = dataclasses.replace(Config(), grid=GRID, data=dataclasses.replace(Config().data, image_size=(64, 96)))
REPRESENTATIONS = ["coordinated", "factorised"]


def make_batch(size: int = 2, seed: int = 0) -> Batch:
    return random_batch(CONFIG, size, 60, 30, 4, seed)


def maps(size: int = 2, seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(size, count, Y, X, requires_grad=True) for name, count in CHANNELS.items()}


def present(**marks: str) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([mark == "x" for mark in marks.get(name, "xx")]) for name in CHANNELS}


def make(kind: str, seed: int = 0, **settings) -> Coordinated | Factorised:
    torch.manual_seed(seed)
    represent = make_representation(FusionConfig(channels=8, representation=kind, **settings), CHANNELS, GRID)  # type: ignore[arg-type]
    assert represent is not None
    return represent


def losses(represent, given, there, batch=None) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return represent.auxiliary_losses({"representation": represent(given, there)[1]}, batch or make_batch())


def cell(x: float, y: float) -> int:
    return math.floor(y + 6) * X + math.floor(x + 8)


def test_cells_of_objects_and_points():
    box = Boxes.of(torch.tensor([[2.0, 1.0, 0.5]]), torch.tensor([[4.0, 2.0, 1.5]]), torch.tensor([math.pi / 2]))
    points = torch.tensor([[-3.5, 0.5, 0.0], [0.5, 0.5, 9.0], [torch.nan, 0.5, 0.0], [50.0, 0.0, 0.0]])
    cloud = PointCloud(torch.nn.functional.pad(points, (0, 2)), torch.tensor([1, 1, 1, 1]), torch.tensor([True, True]))
    batch = dataclasses.replace(make_batch(), boxes=(Boxes.empty(), box), lidar=cloud, radar=None)
    interest = find_interest(batch, GRID)
    expected = {cell(x, y) for x in (1.5, 2.5) for y in (-0.5, 0.5, 1.5, 2.5)}
    assert set(interest.objects_BQ[1].nonzero()[:, 0].tolist()) == expected and not interest.objects_BQ[0].any()
    assert interest.points_BQ["lidar"].nonzero().tolist() == [[1, cell(-3.5, 0.5)]]
    assert not interest.points_BQ["radar"].any()
    for nothing in (None, (Boxes.empty(), Boxes.empty())):
        assert not find_interest(dataclasses.replace(batch, boxes=nothing), GRID).objects_BQ.any()


def test_cells_are_chosen_where_both_see_or_an_object_is():
    objects, lidar, radar = (torch.zeros(1, 400, dtype=torch.bool) for _ in range(3))
    objects[0, :5], lidar[0, 3:40], radar[0, 30:60] = True, True, True
    interest = Interest(objects, {"lidar": lidar, "radar": radar})
    for sensors, expected in (
        (["lidar", "radar"], {*range(5), *range(30, 40)}),
        (["camera", "lidar"], set(range(40))),
        (["camera"], None),
    ):
        chosen, valid = interest.choose(sensors)
        assert chosen.shape == valid.shape == (1, MOST)
        found = chosen[valid].tolist()
        assert len(set(found)) == len(found) and (set(found) == expected if expected else len(found) == MOST)
    torch.manual_seed(0)
    often = [set(interest.choose(["camera"])[0][0].tolist()) for _ in range(40)]
    share = torch.tensor([[cell in some for cell in range(400)] for some in often]).float().mean(0)
    assert share[:5].mean() > share[5:].mean() + 0.1


def test_taking_cells():
    given = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5).float()
    chosen = torch.tensor([[0, 7], [19, 3]])
    taken = take_cells(given, chosen)
    for b in range(2):
        for n in range(2):
            assert torch.equal(taken[b, n], given[b, :, chosen[b, n] // 5, chosen[b, n] % 5])


def test_info_nce_against_a_loop():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    valid = torch.tensor([[True, False, True, True, False], [True, True, False, False, False]])
    terms = []
    for s in range(2):
        rows = valid[s].nonzero()[:, 0].tolist()
        for n in rows:
            for one, other in ((a, b), (b, a)):
                x = one[s, n].numpy()
                near = [
                    math.exp(float(x @ other[s, m].numpy()) / np.linalg.norm(x) / float(other[s, m].norm()) / 0.5)
                    for m in rows
                ]
                terms.append(-math.log(near[rows.index(n)] / sum(near)))
    assert info_nce(a, b, valid, 0.5).item() == pytest.approx(np.mean(terms))


def test_info_nce_of_nothing_and_of_certainty():
    x = torch.eye(4)[None].requires_grad_()
    none = info_nce(x, x, torch.zeros(1, 4, dtype=torch.bool), 0.1)
    none.backward()
    assert none == 0 and x.grad is not None and (x.grad == 0).all()
    everything = torch.ones(1, 4, dtype=torch.bool)
    assert info_nce(x, x, everything, 0.05) < 1e-3 < math.log(4) < info_nce(x, x.flip(1), everything, 0.05)
    assert info_nce(torch.ones(1, 4, 2), torch.ones(1, 4, 2), everything, 0.1).item() == pytest.approx(math.log(4))


def test_correlation_against_numpy():
    torch.manual_seed(0)
    a, b = torch.randn(50, 3), torch.randn(50, 2)
    b[:, 0] += a[:, 1]
    valid = torch.arange(50) < 40
    expected = np.corrcoef(a[:40].numpy().T, b[:40].numpy().T)[:3, 3:]
    assert correlation(a, b, valid).item() == pytest.approx((expected**2).mean(), rel=1e-4)
    assert correlation(a, torch.ones(50, 2), valid) == 0 == correlation(a, b, torch.zeros(50, dtype=torch.bool))


def test_moment_discrepancy_against_numpy():
    torch.manual_seed(0)
    a, b = torch.rand(60, 4), torch.rand(60, 4) ** 2
    valid = torch.arange(60) < 45
    x, y = np.tanh(a[:45].numpy()), np.tanh(b[:45].numpy())
    expected = np.linalg.norm(x.mean(0) - y.mean(0)) + sum(
        np.linalg.norm(((x - x.mean(0)) ** k).mean(0) - ((y - y.mean(0)) ** k).mean(0)) for k in range(2, 6)
    )
    assert moment_discrepancy(a, b, valid).item() == pytest.approx(expected, rel=1e-4)
    assert moment_discrepancy(a, a[torch.randperm(60)], torch.ones(60, dtype=torch.bool)) < 1e-4


def test_relative_error():
    torch.manual_seed(0)
    true, valid = 5 * torch.randn(400, 3) + 2, torch.arange(400) < 300
    mean = true[:300].mean(0).expand(400, 3)
    assert relative_error(mean, true, valid).item() == pytest.approx(1, rel=1e-3)
    assert relative_error(true, true, valid) == 0


@pytest.mark.parametrize("kind", REPRESENTATIONS)
def test_maps_and_their_widths(kind):
    represent, given = make(kind), maps()
    given["radar"] = None  # type: ignore[assignment]
    out, said = represent(given, present())
    assert out["radar"] is None and set(said.maps) == {"camera", "lidar"}
    for name in ("camera", "lidar"):
        assert out[name].shape == (2, represent.channels[name], Y, X)
        assert kind == "factorised" or out[name] is given[name]


def test_one_encoder_for_what_is_shared_and_own_ones_for_the_rest():
    represent = make("factorised")
    given = maps()
    represent.enter["radar"] = represent.enter["lidar"]
    given["radar"] = given["lidar"]
    _, said = represent(given, present())
    assert torch.equal(said.shared["lidar"], said.shared["radar"])
    assert not torch.allclose(said.private["lidar"], said.private["radar"])


@pytest.mark.parametrize("kind", REPRESENTATIONS)
def test_absent_sensors_have_no_part_in_it(kind):
    """Whatever stands in the map of a sample that lacks the sensor; and it gets no gradient."""
    represent, there = make(kind), present(camera="xx", lidar="x.", radar=".x")
    results = []
    for filler in (0.0, 100.0):
        given = maps()
        for name, marks in there.items():
            given[name].data[~marks] = filler
        terms = losses(represent, given, there)
        torch.stack(list(terms.values())).sum().backward()
        results.append(list(terms.values()))
        for name, marks in there.items():
            grad = given[name].grad
            assert grad is not None and (grad[~marks] == 0).all() and grad[marks].any()
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", REPRESENTATIONS)
def test_gradients_reach_every_parameter(kind):
    represent = make(kind)
    said = represent(maps(), present())[1]
    terms = represent.auxiliary_losses({"representation": said}, make_batch())
    assert set(terms) == ({"contrast"} if kind == "coordinated" else {"similarity", "difference", "reconstruction"})
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in represent.parameters())


@pytest.mark.parametrize("kind", REPRESENTATIONS)
def test_nothing_to_compare_is_zero_and_in_the_graph(kind):
    represent, batch = make(kind), make_batch()
    empty = dataclasses.replace(batch, boxes=None, lidar=None, radar=None)
    assert represent.auxiliary_losses({}, batch) == {}
    assert losses(represent, dict.fromkeys(CHANNELS), present()) == {}
    for given, there, full in (
        ({**maps(), "lidar": None, "radar": None}, present(lidar="..", radar=".."), batch),
        (maps(), present(camera="x.", lidar=".x", radar=".."), batch),
        (maps(), present(camera="..", lidar="..", radar=".."), batch),
        (maps(), present(), empty),
    ):
        terms = losses(represent, given, there, full)
        assert terms and all(value.isfinite() and value.requires_grad for value in terms.values())
        torch.stack(list(terms.values())).sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in represent.parameters())
    apart = losses(represent, maps(), present(camera="x.", lidar=".x", radar=".."))
    assert apart["contrast" if kind == "coordinated" else "similarity"] < 1e-5


@pytest.mark.parametrize("kind", REPRESENTATIONS)
def test_bfloat16_and_weights(kind):
    represent = make(kind)
    with torch.autocast("cpu", torch.bfloat16):
        rough = losses(represent, maps(), present())
    exact = losses(represent, maps(), present())
    for name, value in exact.items():
        assert rough[name].dtype == torch.float32
        assert rough[name].item() == pytest.approx(value.item(), rel=0.1, abs=1e-3), name
    doubled = {f.name: 0.2 for f in dataclasses.fields(FusionConfig) if f.name.endswith("_weight")}
    for name, value in losses(make(kind, **doubled), maps(), present()).items():
        assert value.item() == pytest.approx(2 * exact[name].item(), rel=1e-4)


def test_coordination_is_learned():
    """Three views of one world, each through a mixing of its own: after training, cells are recognised."""
    torch.manual_seed(0)
    represent, mix = make("coordinated", contrast_weight=1.0), {n: torch.randn(c, 2) for n, c in CHANNELS.items()}
    optimizer, history = torch.optim.Adam(represent.parameters(), 0.02), []
    for _ in range(40):
        world = torch.randn(2, 2, Y, X)
        given = {name: torch.einsum("oc,bcyx->boyx", m, world) for name, m in mix.items()}
        loss = represent.auxiliary_losses({"representation": represent(given, present())[1]}, make_batch())["contrast"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.6 * history[0]


def test_factorisation_is_learned():
    """What all sensors see goes to the shared part; what one sees, to its own."""
    torch.manual_seed(0)
    represent = make("factorised", similarity_weight=1.0, difference_weight=1.0, reconstruction_weight=1.0)
    optimizer, history = torch.optim.Adam(represent.parameters(), 0.01), []
    for _ in range(50):
        given = {name: torch.randn(2, count, Y, X) for name, count in CHANNELS.items()}
        world = torch.randn(2, 1, Y, X)
        given = {name: torch.cat([world, x[:, 1:]], dim=1) for name, x in given.items()}
        terms = represent.auxiliary_losses({"representation": represent(given, present())[1]}, make_batch())
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        history.append({name: value.item() for name, value in terms.items()})
    for name in ("similarity", "difference", "reconstruction"):
        assert history[-1][name] < 0.8 * history[0][name], (name, history[0], history[-1])


def test_what_cannot_be_combined_is_refused():
    assert make_representation(FusionConfig(), {"lidar": 4}, GRID) is None
    for kind in REPRESENTATIONS:
        with pytest.raises(ConfigError, match=r"fusion\.representation.*lidar"):
            make_representation(FusionConfig(representation=kind), {"lidar": 4}, GRID)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"fusion\.channels.*fusion\.representation"):
        make_representation(FusionConfig(representation="factorised", channels=1), CHANNELS, GRID)
