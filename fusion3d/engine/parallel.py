"""A model trained by several processes as by one with all their batches: losses, steps and weights are the same.

DDP averages the gradients of the processes' losses. For that to be the gradient of the joint loss, each loss is divided
by what all processes count (``Objective``). Layers that talk to the other processes need every process to go through
them: ``in_step`` gives an empty sensor to those whose batch lacks what another's has.

Of ``fusion.representation``, the losses of ``factorised`` stay each process's own, whose mean is not the joint batch's:
they relate statistics of its cells. That of ``coordinated`` is the joint one, of whatever cells each process draws
where a sample has many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from fusion3d.counts import counting
from fusion3d.engine.distributed import Processes
from fusion3d.types import LIDAR_FIELDS, RADAR_FIELDS, SENSORS, Batch, Cameras, History, PointCloud

_IMAGE = (64, 64)  # [px] of images of which there are none


class Objective(nn.Module):
    """Model and losses as one forward pass, so that DDP sees which parameters a batch really used.

    Args:
        model: with ``forward(batch)`` and ``losses(outputs, batch)``.
        where: this process.
        together: every process must go through the layers that any of them uses.
        touch: every parameter gets a gradient, of zeros where it was not used (``drop_untouched`` takes it back).
    """

    def __init__(self, model: nn.Module, where: Processes, together: bool = False, touch: bool = False) -> None:
        super().__init__()
        self.model = model
        self.where = where
        self.together = together
        self.touch = touch
        self.used: set[str] = set()  # names of the parameters that losses came from, by any process

    def forward(self, seen: Batch, full: Batch, subsets: Sequence[Batch] = ()) -> dict[str, Tensor]:
        """Losses of what the model makes of ``seen`` (sensors dropped) against the targets of ``full``.

        With ``subsets``, which are ``seen`` with fewer kinds of sensors, it is what the model makes of each of these.

        With several processes their mean over the processes is the loss of the joint batch. What there is to count
        depends on the batch and on what the model saw, and processes differ in which losses they have at all. So the
        losses are gone through twice, the first time only to count.
        """
        if self.together and self.where.world > 1:
            seen, *subsets = (in_step(batch, self.where) for batch in (seen, *subsets))
        outputs = self.model.under(seen, subsets) if subsets else self.model(seen)  # type: ignore[operator]
        if self.where.world == 1:
            return self.model.losses(outputs, full)  # type: ignore[operator]
        counts: dict[str, Tensor] = {}

        def note(name: str, count: Tensor) -> Tensor:
            assert name not in counts, f"two divisors are named {name}"
            counts[name] = count
            return count.clamp(min=1)

        with torch.no_grad(), counting(note):
            self.model.losses(outputs, full)  # type: ignore[operator]
        divisors = mean_counts(counts, self.where)
        with counting(lambda name, count: divisors[name]):
            losses = self.model.losses(outputs, full)  # type: ignore[operator]
        if self.touch:
            self.used.update(*self.where.gather(used_parameters(self.model, losses)))
            name, value = next(iter(losses.items()))
            losses[name] = value + 0.0 * torch.stack([p.sum() for p in self.model.parameters()]).sum()
        return losses


def used_parameters(model: nn.Module, losses: Mapping[str, Tensor]) -> set[str]:
    """Names of the parameters of a model that losses depend on."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    nodes = [value.grad_fn for value in losses.values() if value.grad_fn is not None]
    seen, found = set(nodes), set()
    while nodes:
        node = nodes.pop()
        leaf = getattr(node, "variable", None)  # leaves of the graph have one
        if id(leaf) in names:
            found.add(names[id(leaf)])
        nodes += (more := {following for following, _ in node.next_functions if following is not None} - seen)
        seen |= more
    return found


def drop_untouched(objective: nn.Module) -> None:
    """After the backward passes of a step: no gradient for what no process used, as DDP leaves it.

    The optimiser then passes over a branch whose sensor was nowhere: its weights do not decay, nor go on by momentum.
    """
    if isinstance(objective, Objective) and objective.touch and objective.where.world > 1:
        for name, parameter in objective.model.named_parameters():
            if name not in objective.used:
                parameter.grad = None
        objective.used.clear()


def mean_counts(counts: Mapping[str, Tensor], where: Processes) -> dict[str, Tensor]:
    """Counts of all processes, summed, at least 1, and divided by the number of processes; float32.

    Args:
        counts: by name; a name that a process does not have counts as 0 there.
        where: this process.
    """
    shapes: dict[str, torch.Size] = {}
    for theirs in where.gather({name: count.shape for name, count in counts.items()}):
        shapes |= theirs
    if not shapes:
        return {}
    names = sorted(shapes)
    parts = [counts.get(name, torch.zeros(shapes[name], device=where.device)).float().flatten() for name in names]
    sums = torch.cat(parts)
    torch.distributed.all_reduce(sums)
    split = (sums.clamp(min=1) / where.world).split([len(part) for part in parts])
    return {name: values.view(shapes[name]) for name, values in zip(names, split, strict=True)}


def in_step(batch: Batch, where: Processes) -> Batch:
    """The batch with an empty sensor for each that another process has, now and in the keyframes before.

    An empty sensor is in no sample, but the model goes through its layers as with any other.
    """
    frames = [batch, *(past.batch for past in batch.history)]
    there = where.gather([[name for name in SENSORS if frame.sensor(name) is not None] for frame in frames])
    wanted: list[set[str]] = [set() for _ in range(max(len(theirs) for theirs in there))]
    for theirs in there:
        for names, more in zip(wanted, theirs, strict=False):
            names.update(more)
    history = list(batch.history)
    history += [History(no_samples(batch), ()) for _ in range(len(wanted) - len(frames))]
    filled = [
        dataclasses.replace(past, batch=fill_sensors(past.batch, names))
        for past, names in zip(history, wanted[1:], strict=True)
    ]
    return dataclasses.replace(fill_sensors(batch, wanted[0]), history=tuple(filled))


def fill_sensors(batch: Batch, names: set[str]) -> Batch:
    """The batch with an empty sensor for each of the names that it lacks."""
    device = batch.command.device
    cameras, lidar, radar = batch.cameras, batch.lidar, batch.radar
    index, none = torch.zeros(0, dtype=torch.int64, device=device), torch.zeros_like(batch.annotated)
    if "camera" in names and cameras is None:
        matrices = torch.zeros(0, 4, 4, device=device)
        cameras = Cameras(torch.zeros(0, 3, *_IMAGE, device=device), matrices, matrices, index, ())
    if "lidar" in names and lidar is None:
        lidar = PointCloud(torch.zeros(0, len(LIDAR_FIELDS), device=device), index, none)
    if "radar" in names and radar is None:
        radar = PointCloud(torch.zeros(0, len(RADAR_FIELDS), device=device), index, none)
    return dataclasses.replace(batch, cameras=cameras, lidar=lidar, radar=radar)


def no_samples(batch: Batch) -> Batch:
    """A batch of 0 samples."""
    return Batch(
        tokens=(),
        scenes=(),
        timestamp=batch.timestamp[:0],
        global_from_ego=batch.global_from_ego[:0],
        aug_from_ego=batch.aug_from_ego[:0],
        cameras=None,
        lidar=None,
        radar=None,
        boxes=None,
        future=None,
        past=None,
        status=None,
        command=batch.command[:0],
        map_mask=None,
        annotated=batch.annotated[:0],
    )


def share_out(objective: Objective, where: Processes, shard: bool) -> nn.Module:
    """The objective for several processes: as DDP, or, in place, with its parameters in parts (FSDP2).

    Only the root is sharded: gradients and optimiser state are in parts, weights are whole during a step. No
    communication stands inside of a branch that another process may leave out.

    Args:
        objective: on the device of ``where``; for ``shard``, with ``touch``.
        where: this process.
        shard: FSDP2.
    """
    if where.world == 1:
        return objective
    if not shard:
        devices = [where.device] if where.device.type == "cuda" else None
        return DistributedDataParallel(objective, devices, find_unused_parameters=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with torch.no_grad():
        for tensor in objective.state_dict().values():
            torch.distributed.broadcast(tensor, 0)
    fully_shard(objective, mesh=init_device_mesh(where.device.type, (where.world,)))
    return objective


def accumulating(objective: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Gradients of the block stay in the process, but for the last batch of a step."""
    if hasattr(objective, "set_requires_gradient_sync"):
        objective.set_requires_gradient_sync(last)  # type: ignore[operator]
    elif isinstance(objective, DistributedDataParallel) and not last:
        return objective.no_sync()
    return nullcontext()


def whole(tree: Any) -> Any:
    """Nested containers with every tensor that is in parts put together; every process must ask."""
    return tree_map(lambda value: value.full_tensor() if hasattr(value, "full_tensor") else value, tree)


def part_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in the parts that ``like`` is in, if it is."""
    if not hasattr(like, "device_mesh"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy whole values into tensors, which may be in parts."""
    for name, tensor in tensors.items():
        tensor.copy_(part_like(values[name], tensor))
