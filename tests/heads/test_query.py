"""The query head: decoding undoes encoding, the order of the truth does not matter, and where queries look."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch

from fusion3d.config import DetectionConfig, QueryConfig
from fusion3d.errors import ConfigError
from fusion3d.heads.decoder import DecoderLayer, Window
from fusion3d.heads.detection import BOX_CHANNELS
from fusion3d.heads.query import QueryHead
from fusion3d.heads.targets import USUAL_SIZE
from fusion3d.types import DETECTION_CLASSES, Batch, BEVGrid, Boxes

sys.path.insert(0, str(Path(__file__).parent))
from known import CONE, GRID, PEDESTRIAN, SMALL, assert_found, overfit, perfect_queries, some_batch, some_boxes

CONFIG = DetectionConfig(head="query", channels=16, query=QueryConfig(count=30, layers=2, points=2))
TRUTH = (some_boxes(0), Boxes.empty(), some_boxes(1, 45))


def make_head(config: DetectionConfig = CONFIG, grid: BEVGrid = SMALL) -> QueryHead:
    torch.manual_seed(0)
    return QueryHead(config, 6, grid)


def noise(batch: Batch) -> torch.Tensor:
    return torch.randn(len(batch), 6, *SMALL.shape, generator=torch.Generator().manual_seed(1))


def known_batch(truth: tuple[Boxes, ...] = TRUTH) -> Batch:
    return dataclasses.replace(some_batch(len(truth), grid=GRID), boxes=truth)


@pytest.mark.parametrize("nms", ["auto", "circle", "rotated", "none"])
def test_decoding_what_should_be_said_gives_the_boxes_back(nms):
    head = make_head(dataclasses.replace(CONFIG, score_threshold=0.9, nms=nms), GRID)
    assert_found(head.decode(perfect_queries(TRUTH)), TRUTH)


def test_who_knows_the_answer_pays_nothing_and_an_error_costs_what_it_is():
    head, said = make_head(grid=GRID), perfect_queries(TRUTH)
    losses = head.losses(said, known_batch())
    assert set(losses) == {"heatmap", "class", *BOX_CHANNELS}
    assert all(value.item() < 1e-5 for name, value in losses.items() if name != "heatmap")
    pairs = head.match(said, head.targets(known_batch()))  # type: ignore[arg-type]
    assert len(pairs.box) == 2 * 75
    first = (pairs.box < 30) & (pairs.layer == 0)
    assert torch.equal(pairs.query[first], pairs.box[first])
    # In one of the two layers everything is 0.1 m higher: a mean of 0.05 m, times the regression's weight.
    height = said.height.clone()
    height[0] += 0.1
    wrong = head.losses(dataclasses.replace(said, height=height), known_batch())
    torch.testing.assert_close(wrong["height"], torch.tensor(0.25 * 0.05), atol=1e-5, rtol=0)


def test_sizes_are_said_from_the_class_of_the_query():
    """A query that starts as a bus and is paired with a car must say how much smaller and lower it is."""
    head, car = make_head(grid=GRID), TRUTH[0][TRUTH[0].label == 0][:1]
    bus = DETECTION_CLASSES.index("bus")
    said = perfect_queries((car,), spare=0)
    ratio = torch.tensor(USUAL_SIZE["car"]) / torch.tensor(USUAL_SIZE["bus"])
    lower = (USUAL_SIZE["car"][2] - USUAL_SIZE["bus"][2]) / 2
    said = dataclasses.replace(
        said, label=torch.full((1, 1), bus), size=said.size + ratio.log(), height=said.height + lower
    )
    losses = head.losses(said, known_batch((car,)))
    assert losses["size"] < 1e-5 and losses["height"] < 1e-5 and losses["offset"] < 1e-5
    found = make_head(dataclasses.replace(CONFIG, score_threshold=0.0), GRID).decode(said)[0]
    torch.testing.assert_close(found.size, car.size, atol=1e-4, rtol=0)


def test_the_order_of_the_truth_does_not_matter():
    head, batch = make_head(), some_batch()
    assert batch.boxes is not None
    said = head(noise(batch), batch)
    turned = dataclasses.replace(batch, boxes=tuple(b[torch.randperm(len(b))] for b in batch.boxes))
    one, two = head.losses(said, batch), head.losses(said, turned)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5)


def test_more_boxes_than_queries_and_no_box_at_all():
    config = dataclasses.replace(CONFIG, query=QueryConfig(count=4, layers=1))
    head, batch = make_head(config), some_batch()
    said = head(noise(batch), batch)
    assert said.label.shape == (2, 4)
    assert all(value.isfinite() for value in head.losses(said, batch).values())
    losses = head.losses(said, dataclasses.replace(batch, boxes=(Boxes.empty(),) * 2))
    assert losses["class"] > 0 and losses["heatmap"] > 0 and losses["size"] == 0
    few = make_head(dataclasses.replace(CONFIG, query=QueryConfig(count=10**6)))
    assert few(noise(batch), batch).label.shape == (2, 10 * 16 * 24)


def test_samples_without_annotations_do_not_count():
    head, batch = make_head(), some_batch()
    assert batch.boxes is not None
    half = dataclasses.replace(batch, boxes=(batch.boxes[0], Boxes.empty()), annotated=torch.tensor([True, False]))
    both = head.losses(head(noise(batch), batch), half)
    alone = dataclasses.replace(some_batch(1), boxes=batch.boxes[:1])
    for name, value in head.losses(head(noise(batch)[:1], alone), alone).items():
        torch.testing.assert_close(both[name], value, atol=1e-5, rtol=1e-5)


def test_no_annotation_is_a_zero_that_reaches_every_parameter():
    head, batch = make_head(), some_batch()
    said = head(noise(batch), batch)
    for boxes in (None, (Boxes.empty(),) * 2):
        head.zero_grad()
        unknown = dataclasses.replace(batch, boxes=boxes, annotated=torch.zeros(2, dtype=torch.bool))
        losses = head.losses(said, unknown)
        assert set(losses) == {"heatmap", "class", *BOX_CHANNELS}
        total = torch.stack(list(losses.values())).sum()
        assert total == 0
        total.backward(retain_graph=True)
        assert all(p.grad is not None and (p.grad == 0).all() for p in head.parameters())


def test_every_parameter_learns_the_same_in_every_run_and_a_sample_is_alone():
    batch, grads = some_batch(), []
    torch.use_deterministic_algorithms(True)  # raises where an operation has no deterministic kernel
    try:
        for _ in range(2):
            head = make_head()
            said = head(noise(batch), batch)
            torch.stack(list(head.losses(said, batch).values())).sum().backward()
            grads.append([p.grad for p in head.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(a is not None and a.any() and torch.equal(a, b) for a, b in zip(*grads, strict=True))
    one = head(noise(batch)[:1], some_batch(1))
    assert torch.equal(one.cell, said.cell[:1]) and torch.equal(one.label, said.label[:1])
    for name in ("logits", *BOX_CHANNELS):
        torch.testing.assert_close(getattr(one, name), getattr(said, name)[:, :1], atol=1e-5, rtol=1e-5)


def test_bfloat16_stays_near_float32_and_positions_exact():
    head, batch = make_head().eval(), some_batch()
    exact = head.losses(head(noise(batch), batch), batch)
    with torch.autocast("cpu", torch.bfloat16):
        said = head(noise(batch), batch)
        rough = head.losses(said, batch)
    assert all(getattr(said, name).dtype == torch.float32 for name in ("logits", *BOX_CHANNELS))
    torch.stack(list(rough.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    for name, value in exact.items():  # other peaks may be chosen, so not to the percent
        assert rough[name].item() == pytest.approx(value.item(), rel=0.25, abs=0.05), name


def test_queries_start_from_peaks_and_from_every_cell_of_what_is_small():
    head, batch = make_head(), some_batch(1)
    heatmap = torch.full((1, 10, *SMALL.shape), -9.0)
    for label in (0, PEDESTRIAN, CONE):
        heatmap[0, label, 5, 5:8] = torch.tensor([3.0, 5.0, 4.0])
    head.heatmap.forward = lambda _: heatmap  # type: ignore[method-assign]
    said = head(noise(batch), batch)
    best = {(int(n), int(c) % 24) for n, c in zip(said.label[0, :7], said.cell[0, :7], strict=True)}
    assert best == {(0, 6), *((label, col) for label in (PEDESTRIAN, CONE) for col in (5, 6, 7))}
    assert DETECTION_CLASSES[PEDESTRIAN] == "pedestrian" and DETECTION_CLASSES[CONE] == "traffic_cone"


def test_a_window_turns_and_grows_its_steps():
    grid = BEVGrid(x=(0.0, 20.0), y=(0.0, 10.0), resolution=0.5)
    window = Window(torch.tensor([[[8.0, 6.0]]]), torch.tensor([[[4.0, 2.0]]]), torch.tensor([[math.pi / 2]]))
    steps = window.to_grid(torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [0.5, -1.0]]]]), grid)
    # 4 m are 8 cells: half of it and one more is 5; 2 m: 3. Forward is along y, left is against x.
    torch.testing.assert_close(steps[0, 0], torch.tensor([[0.0, 5.0], [-3.0, 0.0], [3.0, 2.5]]), atol=1e-5, rtol=0)


def test_a_layer_reads_the_map_where_its_window_is():
    """Against a loop over queries, heads and points, with steps that do not depend on the query."""
    torch.manual_seed(0)
    layer = DecoderLayer(16, 2)
    torch.nn.init.normal_(layer.weights.weight)
    torch.nn.init.normal_(layer.steps.bias)
    grid = BEVGrid(x=(0.0, 12.0), y=(0.0, 9.0), resolution=1.0)
    map_BNC, asked = torch.randn(1, 108, 16), torch.randn(1, 3, 16)
    layer.requires_grad_(False)
    window = Window(torch.rand(1, 3, 2) * 4 + 3, torch.rand(1, 3, 2) * 4, torch.rand(1, 3))
    read = layer._read(asked, window.center / torch.tensor([12.0, 9.0]), map_BNC, window, grid)
    value = layer.value(map_BNC).view(9, 12, 8, 2)
    logits = layer.weights(asked).view(3, 8, 2)
    expected = torch.zeros(3, 8, 2)
    for q in range(3):
        for h in range(8):
            for p, weight in enumerate(logits[q, h].softmax(0)):
                along, across = layer.steps.bias.view(8, 2, 2)[h, p] * (window.size[0, q] / 2 + 1)
                cos, sin = window.yaw[0, q].cos(), window.yaw[0, q].sin()
                x = window.center[0, q, 0] + cos * along - sin * across - 0.5
                y = window.center[0, q, 1] + sin * along + cos * across - 0.5
                for col in (math.floor(x), math.floor(x) + 1):
                    for row in (math.floor(y), math.floor(y) + 1):
                        if 0 <= row < 9 and 0 <= col < 12:
                            expected[q, h] += weight * (1 - abs(x - col)) * (1 - abs(y - row)) * value[row, col, h]
    torch.testing.assert_close(read[0], expected.view(3, 16), atol=1e-5, rtol=1e-4)


def test_later_layers_start_where_the_one_before_ended():
    head, batch = make_head(), some_batch()
    for layer in head.layers:
        last = layer.boxes[-1]
        torch.nn.init.zeros_(last.weight)
        last.bias.data = torch.cat([torch.tensor([0.5, -0.25]), torch.zeros(16)])
    said = head(noise(batch), batch)
    for layer in range(2):
        expected = torch.tensor([0.5, -0.25]) * (layer + 1)
        torch.testing.assert_close(said.offset[layer], expected.expand_as(said.offset[layer]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": "six"}, r"detection\.tasks: .*detection\.head 'query'.*expected 'one'"),
        ({"channels": 20}, r"detection\.channels: found 20 with detection\.head 'query'; expected a multiple of 8"),
    ],
)
def test_settings_of_the_other_head_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        make_head(dataclasses.replace(CONFIG, **change))


def test_it_overfits_two_samples():
    config = DetectionConfig(head="query", channels=32, query=QueryConfig(count=40))
    assert overfit(QueryHead, config, 120, 3e-3) == 1
