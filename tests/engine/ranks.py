"""Checks that two processes make together; run by ``test_parallel.py``, each compares with what one process gets."""

from __future__ import annotations

from pathlib import Path

import torch
from small import RandomData, small_config, train_small
from torch import nn

from fusion3d.config import Config
from fusion3d.data.collate import collate
from fusion3d.data.subset import select_sensors
from fusion3d.engine import parallel
from fusion3d.engine.batchnorm import JointBatchNorm, join_batchnorms
from fusion3d.engine.distributed import Processes, processes
from fusion3d.engine.parallel import in_step, mean_counts


def check_batchnorm(where: Processes, shape: tuple[int, ...], counts: tuple[int, int], **options: object) -> None:
    """The same outputs, gradients and buffers as one batch of all, twice in a row, in float32."""
    torch.manual_seed(1)
    kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
    reference, model = kind(shape[0], **options), nn.Sequential(kind(shape[0], **options))
    for norm in (reference, model[0]):
        if norm.weight is not None:
            nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(2))
    join_batchnorms(model)
    assert (
        isinstance(model[0], JointBatchNorm)
        and model.state_dict().keys() == nn.Sequential(reference).state_dict().keys()
    )
    for _ in range(2):
        whole = (100 + 3 * torch.randn(sum(counts), *shape)).requires_grad_()
        weight = torch.randn_like(whole)
        mine = slice(0, counts[0]) if where.first else slice(counts[0], None)
        own = whole.detach()[mine].clone().requires_grad_()
        (model(own) * weight[mine]).sum().backward()
        expected = reference(whole)
        (expected * weight).sum().backward()
        torch.testing.assert_close(model(own.detach()), expected[mine].detach(), atol=1e-5, rtol=1e-5)
        reference(whole.detach())
        torch.testing.assert_close(own.grad, whole.grad[mine], atol=1e-5, rtol=1e-4)
    for (name, theirs), ours in zip(reference.named_parameters(), model.parameters(), strict=True):
        joint = sum(where.gather(ours.grad))
        torch.testing.assert_close(joint, theirs.grad, atol=1e-4, rtol=1e-4, msg=name)
    for (name, theirs), ours in zip(reference.named_buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, msg=name)
    model.eval(), reference.eval()
    torch.testing.assert_close(model(own), reference(own), atol=1e-3, rtol=1e-4)


def check_nothing(where: Processes) -> None:
    """Where no process has an element, nothing moves and nothing is NaN; 16 bits stay 16 bits."""
    model = nn.Sequential(nn.BatchNorm2d(3))
    join_batchnorms(model)
    empty = torch.zeros(0, 3, 2, 2, requires_grad=True)
    model(empty).sum().backward()
    assert torch.equal(model[0].running_var, torch.ones(3)) and torch.equal(model[0].weight.grad, torch.zeros(3))
    half = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    out = model(half)
    out.float().square().sum().backward()
    assert out.dtype == half.grad.dtype == torch.bfloat16 and model[0].running_var.dtype == torch.float32


def check_counts(where: Processes) -> None:
    """Sums of all, at least 1 each, over the number of processes; names and groups that one process lacks are 0."""
    shared = {"boxes": torch.tensor(3 if where.first else 8), "groups": torch.tensor([2, 0] if where.first else [1, 0])}
    counts = shared | ({"depth": torch.tensor(7)} if where.first else {"image": torch.tensor(0)})
    divisors = mean_counts(counts, where)
    assert {name: value.tolist() for name, value in divisors.items()} == {
        "boxes": 5.5, "groups": [1.5, 0.5], "depth": 3.5, "image": 0.5,
    }  # fmt: skip
    assert mean_counts({}, where) == {}


def check_in_step(where: Processes) -> None:
    """A process without cameras gets empty ones where the other has some; what nobody has stays absent."""
    data = RandomData(small_config(), history=1)
    batch = collate([data[0, 6 if where.first else 5]])  # no LiDAR and no past; no cameras
    batch = select_sensors(batch, ["camera", "lidar"])
    filled = in_step(batch, where)
    assert filled.cameras is not None and filled.lidar is not None and filled.radar is None
    assert len(filled.cameras.images) == (6 if where.first else 0)
    assert filled.present["camera"].tolist() == [where.first] and filled.present["lidar"].tolist() == [not where.first]
    assert len(batch.history) == (0 if where.first else 1) and len(filled.history) == 1
    assert len(filled.history[0].batch) == (0 if where.first else 1)
    assert filled.history[0].batch.cameras is None and filled.history[0].batch.lidar is not None


def train_with_own_counts(out: Path, config: Config) -> None:
    """``train_small``, with the mean of each process's means for a loss."""
    parallel.mean_counts = lambda counts, where: {name: count.clamp(min=1) for name, count in counts.items()}
    train_small(out, config)


def check_all() -> None:
    """In a process that is one of two."""
    with processes("cpu") as place:
        check_batchnorm(place, (3, 4, 5), (5, 2))
        check_batchnorm(place, (4,), (6, 0), momentum=None)
        check_batchnorm(place, (3, 2, 2), (1, 3), affine=False)
        check_nothing(place)
        check_counts(place)
        check_in_step(place)
