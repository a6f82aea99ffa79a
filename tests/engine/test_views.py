"""Test-time views: what a model says of each is brought back, and merged into what it would say at its best."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fusion3d.config import AugmentConfig, Config, EvaluationConfig, from_dict
from fusion3d.engine.random_batch import random_batch
from fusion3d.engine.views import predict_views, views_of
from fusion3d.errors import ConfigError
from fusion3d.heads.merge import mean_path, merge_boxes, merge_plans
from fusion3d.types import COMMANDS, PLAN_SCORES, Batch, BEVGrid, Boxes, PlanModes, Predictions, Trajectory

TTA = ("none", "flip", "rotate", "flip_rotate")


def config_of(tta: str) -> Config:
    return dataclasses.replace(Config(), evaluation=EvaluationConfig(tta))  # type: ignore[arg-type]


def batch_of(size: int = 2, seed: int = 0) -> Batch:
    config = dataclasses.replace(Config(), grid=BEVGrid(x=(-16.0, 16.0), y=(-12.8, 12.8), resolution=0.8))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=(64, 96)))
    return random_batch(config, size, 60, 20, 12, seed)


class Faithful(nn.Module):
    """Says what it is shown: boxes from the points and returns of its batch, a plan from command, status and place."""

    def forward(self, batch: Batch) -> dict:
        return {"seen": batch.aug_from_ego}

    def decode(self, outputs: dict, batch: Batch) -> Predictions:
        assert batch.boxes is None or torch.equal(batch.aug_from_ego, torch.eye(4).expand_as(batch.aug_from_ego))
        boxes = []
        for sample in range(len(batch)):
            points = batch.lidar.points[batch.lidar.batch_index == sample]
            returns = batch.radar.points[batch.radar.batch_index == sample][: len(points)]
            points = points[: len(returns)]
            forward = returns[:, :2] - points[:, :2]
            boxes.append(
                Boxes.of(
                    center=points[:, :3], size=1 + points[:, 3:4] + returns[:, [3, 6, 7]].abs(),
                    yaw=torch.atan2(forward[:, 1], forward[:, 0]), velocity=returns[:, 4:6],
                    label=torch.arange(len(points)) % 10, score=torch.linspace(0.1, 0.9, len(points)),
                    attribute=torch.arange(len(points)) % 8,
                )
            )  # fmt: skip
        forward, place = batch.aug_from_ego[:, :2, 0], batch.aug_from_ego[:, None, :2, 3]
        mirrored = torch.det(batch.aug_from_ego[:, :2, :2]) < 0
        # Left is left of the vehicle: in a mirrored world the command has been mirrored, and the side with it.
        side = torch.tensor([1.0, -1.0, 0.0, 0.0])[batch.command] * 3
        left = torch.stack([-forward[:, 1], forward[:, 0]], dim=1)
        step = torch.arange(1, 7)[None, :, None]
        plan = place + step * (batch.status.velocity + side[:, None] * left)[:, None]
        assert mirrored.all() or not mirrored.any()
        yaw = torch.atan2(forward[:, 1], forward[:, 0])[:, None].expand(-1, 6)
        return Predictions(
            batch.tokens, tuple(boxes), Trajectory(plan, yaw, torch.ones(plan.shape[:2], dtype=torch.bool))
        )


def ordered(boxes: Boxes) -> Boxes:
    return boxes[boxes.score.argsort(descending=True, stable=True)]


@pytest.mark.parametrize("tta", TTA)
def test_a_model_that_sees_the_same_in_every_view_says_the_same(tta):
    model, batch = Faithful(), batch_of()
    batch = dataclasses.replace(batch, command=torch.tensor([COMMANDS.index("left"), COMMANDS.index("straight")]))
    views = views_of(config_of(tta))
    assert len(views) == {"none": 1, "flip": 4, "rotate": 5, "flip_rotate": 20}[tta]
    plain, merged = model.decode(model(batch), batch), predict_views(model, batch, views)
    assert merged.tokens == plain.tokens
    for one, other in zip(map(ordered, plain.boxes), map(ordered, merged.boxes), strict=True):
        assert len(one) == len(other) > 10
        for name in ("center", "size", "velocity", "score", "label", "attribute"):
            torch.testing.assert_close(getattr(other, name), getattr(one, name), atol=1e-4, rtol=1e-4)
        assert torch.cos(one.yaw - other.yaw).min() > 1 - 1e-6
    torch.testing.assert_close(merged.plan.position, plain.plan.position, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(merged.plan.yaw, plain.plan.yaw, atol=1e-4, rtol=1e-4)


def test_what_only_targets_say_is_not_shown_to_the_model():
    batch = dataclasses.replace(batch_of(), map_mask=torch.ones(2, 1, 32, 40, dtype=torch.bool))
    predict_views(Faithful(), batch, views_of(config_of("flip")))  # boxes would be asserted to be absent
    bare = dataclasses.replace(batch, cameras=None, status=batch.status, past=None)
    predict_views(Faithful(), bare, views_of(config_of("flip")))


def box(x: float, y: float, score: float, yaw: float = 0.0, label: int = 0, size: float = 4.0) -> Boxes:
    return Boxes.of(
        torch.tensor([[x, y, 1.0]]), torch.tensor([[size, 2, 1.5]]), torch.tensor([yaw]), torch.tensor([[x, -y]]),
        torch.tensor([label]), torch.tensor([score]),
    )  # fmt: skip


def test_weighted_means_and_scores():
    merged = merge_boxes([box(10, 0, 0.6, yaw=0.1), box(10.4, 0.2, 0.2, yaw=-0.3, size=5), Boxes.empty()])
    assert len(merged) == 1
    torch.testing.assert_close(merged.center, torch.tensor([[10.1, 0.05, 1]]))
    torch.testing.assert_close(merged.size, torch.tensor([[4.25, 2, 1.5]]))
    torch.testing.assert_close(merged.velocity, torch.tensor([[10.1, -0.05]]))
    torch.testing.assert_close(merged.score, torch.tensor([0.8 / 3]))
    heading = math.atan2(0.75 * math.sin(0.1) - 0.25 * math.sin(0.3), 0.75 * math.cos(0.1) + 0.25 * math.cos(0.3))
    assert float(merged.yaw) == pytest.approx(heading, abs=1e-6)
    turned = merge_boxes([box(10, 0, 0.6, yaw=0.1), *[box(10, 0, 0.5, yaw=0.1 + math.pi)] * 3])
    assert float(turned.yaw) == pytest.approx(0.1, abs=1e-5), "the best one says which end is the front"


def test_what_does_not_belong_together_stays_apart():
    far, other_class = box(13, 0, 0.5), box(10, 0, 0.5, label=1)
    assert len(merge_boxes([box(10, 0, 0.6), far])) == len(merge_boxes([box(10, 0, 0.6), other_class])) == 2
    # Two of one view are two objects, however close; each gets the nearest of the other view.
    pair = Boxes.cat([box(10, 0, 0.6), box(10.5, 0, 0.4)])
    merged = merge_boxes([pair, Boxes.cat([box(10.48, 0, 0.9), box(10.02, 0, 0.3)])])
    assert len(merged) == 2 and sorted(merged.score.tolist()) == pytest.approx([0.45, 0.65])
    assert len(merge_boxes([Boxes.empty(), Boxes.empty()])) == 0
    many = Boxes.of(torch.arange(1800.0).view(600, 3), torch.ones(600, 3), torch.zeros(600))
    assert len(merge_boxes([many, Boxes.empty()])) == 500


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), views=st.integers(1, 5))
def test_every_box_has_a_part_in_one_merged_box(seed, views):
    """Scores add up to the whole, best first; a merged box lies among its members."""
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(views):
        count = int(torch.randint(0, 8, (1,), generator=draw))
        xyz = torch.rand(count, 3, generator=draw) * 6
        parts.append(
            Boxes.of(
                xyz, torch.ones(count, 3), torch.rand(count, generator=draw), torch.zeros(count, 2),
                torch.randint(0, 2, (count,), generator=draw), torch.rand(count, generator=draw),
            )
        )  # fmt: skip
    merged = merge_boxes(parts)
    total = torch.cat([part.score for part in parts]).sum() / views
    torch.testing.assert_close(merged.score.sum(), total, atol=1e-5, rtol=1e-5)
    assert (merged.score.diff() <= 0).all() and len(merged) >= max(len(part) for part in parts)


def test_the_mean_of_paths():
    yaw = torch.tensor([[math.pi - 0.1, -math.pi + 0.1]])
    mask = torch.tensor([[True, True]])
    paths = [
        Trajectory(torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]), yaw, mask),
        Trajectory(torch.tensor([[[3.0, 1.0], [2.0, 0.0]]]), -yaw, torch.tensor([[True, False]])),
    ]
    mean = mean_path(paths)
    assert mean.position.tolist() == [[[2.0, 0.5], [2.0, 0.0]]] and mean.mask.tolist() == [[True, False]]
    assert mean.yaw.abs().flatten().tolist() == pytest.approx([math.pi, math.pi], abs=1e-5)


SIDES = torch.tensor([1.0, 0.0, -1.0])  # of three paths: left, straight, right


def ways(cost: list[float], rejected: tuple[float, ...] = (0.0, 0.0, 0.0)) -> PlanModes:
    """Left of something, into it and right of it, as one answer weighs them."""
    step = torch.arange(1, 7.0)
    y = SIDES[:, None] * step
    path = Trajectory(torch.stack([step.expand_as(y), y], -1)[None], y[None] / 6, torch.ones(1, 3, 6, dtype=torch.bool))
    chosen = torch.tensor([min(range(3), key=lambda k: (rejected[k], cost[k]))])
    share, each = torch.full((1, 3), 1 / 3), torch.zeros(1, 3, len(PLAN_SCORES))
    return PlanModes(path, share, each, torch.tensor([cost]), torch.tensor([rejected]), chosen)


def test_a_left_and_a_right_plan_give_no_straight_one():
    """What all together expect to cost least is driven, of what the fewest refuse, and each path is of one side."""
    left, right = ways([1.0, 9.0, 3.0]), ways([3.5, 9.0, 2.0])
    assert mean_path([left.plan, right.plan]).position[0, :, 1].abs().max() == 0, "what must not be driven"
    for answers, side in (
        ([left, right], 1.0),  # 2.25 m against 2.5 m on average
        ([left, right, right], -1.0),  # 2.7 m against 2.3 m
        ([left, ways([3.5, 9.0, 2.0], (1.0, 0.0, 0.0))], -1.0),  # one of them sees something on the left
        ([ways([1.0, 2.0, 9.0], (1.0, 1.0, 0.0)), ways([1.0, 2.0, 9.0], (1.0, 1.0, 1.0))], -1.0),  # none is free
    ):
        plan, modes = merge_plans([one.plan for one in answers], answers)
        assert modes is not None and SIDES[modes.chosen] == side
        torch.testing.assert_close(plan.position[0, :, 1], side * torch.arange(1, 7.0))
        torch.testing.assert_close(plan.position, modes.plan.position)
    plan, modes = merge_plans([left.plan, right.plan], [None, None])  # of planners that say one path each
    assert modes is None and plan.position[0, :, 1].abs().max() == 0


class Torn(Faithful):
    """Takes the left way in the world as it is, and the right one in a mirror."""

    def decode(self, outputs: dict, batch: Batch) -> Predictions:
        forward, left = batch.aug_from_ego[0, :2, 0], batch.aug_from_ego[0, :2, 1]
        mirrored = bool(torch.det(batch.aug_from_ego[0, :2, :2]) < 0)
        of_view = ways([2.5, 9.0, 1.0] if mirrored else [2.0, 9.0, 3.0])
        position = of_view.path.position[..., :1] * forward + of_view.path.position[..., 1:] * left
        path = dataclasses.replace(of_view.path, position=position)
        modes = dataclasses.replace(of_view, path=path)
        return Predictions(batch.tokens, plan=modes.plan, modes=modes)


def test_views_that_choose_different_ways_are_not_averaged():
    plain, merged = (predict_views(Torn(), batch_of(1), views_of(config_of(tta))) for tta in ("none", "flip"))
    torch.testing.assert_close(plain.plan.position[0, :, 1], torch.arange(1, 7.0))
    torch.testing.assert_close(merged.modes.path.position, plain.modes.path.position)
    torch.testing.assert_close(merged.modes.cost, torch.tensor([[2.25, 9.0, 2.0]]))
    torch.testing.assert_close(merged.plan.position[0, :, 1], -torch.arange(1, 7.0))


def test_a_mirror_that_training_never_saw_is_told():
    config = dataclasses.replace(config_of("flip"), augment=AugmentConfig(bev_flip=False))
    with pytest.warns(UserWarning, match=r"evaluation\.tta flip .*augment\.bev_flip false"):
        views_of(config)
    with pytest.raises(ConfigError, match="'flip_rotate'"):
        from_dict({"evaluation": {"tta": "twice"}})
