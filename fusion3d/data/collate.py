"""Samples to a batch: packed, without padding; what is absent takes no place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fusion3d.rows import concat, select
from fusion3d.types import Batch, Boxes, Cameras, EgoStatus, History, Motion, PointCloud, Sample, Trajectory


def collate(samples: Sequence[Sample]) -> Batch:
    """A batch of samples, each with the sensors and targets that it happens to have.

    What no sample has is ``None``. Where only some have it: boxes are empty (and ``annotated`` False),
    trajectories have mask False, the status is NaN, no class of the map is known.

    Raises:
        ValueError: no sample at all, or images or targets of different sizes.
    """
    if not samples:
        raise ValueError("collate needs at least one sample")
    return Batch(
        tokens=tuple(sample.token for sample in samples),
        scenes=tuple(sample.scene for sample in samples),
        timestamp=torch.tensor([sample.timestamp for sample in samples], dtype=torch.int64),
        global_from_ego=torch.stack([sample.global_from_ego for sample in samples]),
        aug_from_ego=torch.stack([sample.aug_from_ego for sample in samples]),
        cameras=_pack_cameras([sample.cameras for sample in samples]),
        lidar=_pack_points([sample.lidar for sample in samples]),
        radar=_pack_points([sample.radar for sample in samples]),
        boxes=_pack_boxes([sample.boxes for sample in samples]),
        future=_stack_trajectories([sample.future for sample in samples]),
        past=_stack_trajectories([sample.past for sample in samples]),
        status=_stack_status([sample.status for sample in samples]),
        command=torch.tensor([sample.command for sample in samples], dtype=torch.int64),
        map_mask=_stack_masks([sample.map_mask for sample in samples]),
        map_known=_stack_masks([sample.map_known for sample in samples]),
        annotated=torch.tensor([sample.boxes is not None for sample in samples]),
        motion=_pack_motion([sample.motion for sample in samples]),
        history=_pack_history(samples),
    )


def _pack_history(samples: Sequence[Sample]) -> tuple[History, ...]:
    """As many steps back as any sample goes."""
    steps = []
    for back in range(max(len(sample.history) for sample in samples)):
        rows = [row for row, sample in enumerate(samples) if len(sample.history) > back]
        steps.append(History(collate([samples[row].history[back] for row in rows]), tuple(rows)))
    return tuple(steps)


def _pack_cameras(items: list[Cameras | None]) -> Cameras | None:
    there = [(index, item) for index, item in enumerate(items) if item is not None]
    if not there:
        return None
    sizes = {tuple(item.images.shape[-2:]) for _, item in there}
    if len(sizes) > 1:
        raise ValueError(f"images of different sizes in one batch: {sorted(sizes)}; read them with one image_size")
    return Cameras(
        images=torch.cat([item.images for _, item in there]),
        image_from_cam=torch.cat([item.image_from_cam for _, item in there]),
        ego_from_cam=torch.cat([item.ego_from_cam for _, item in there]),
        batch_index=torch.cat([torch.full_like(item.batch_index, index) for index, item in there]),
        channels=tuple(channel for _, item in there for channel in item.channels),
    )


def _pack_points(items: list[Tensor | None]) -> PointCloud | None:
    there = [item for item in items if item is not None]
    if not there:
        return None
    counts = torch.tensor([0 if item is None else len(item) for item in items])
    return PointCloud(
        points=torch.cat(there),
        batch_index=torch.repeat_interleave(torch.arange(len(items)), counts),
        present=torch.tensor([item is not None for item in items]),
    )


def _pack_boxes(items: list[Boxes | None]) -> tuple[Boxes, ...] | None:
    if all(item is None for item in items):
        return None
    return tuple(Boxes.empty() if item is None else item for item in items)


def _pack_motion(items: list[Motion | None]) -> tuple[Motion, ...] | None:
    there = next((item for item in items if item is not None), None)
    if there is None:
        return None
    steps = {item.path.mask.shape[1] for item in items if item is not None}
    if len(steps) > 1:
        raise ValueError(f"motions of different lengths in one batch: {sorted(steps)} steps")
    return tuple(there[:0] if item is None else item for item in items)


def _stack_trajectories(items: list[Trajectory | None]) -> Trajectory | None:
    there = next((item for item in items if item is not None), None)
    if there is None:
        return None
    steps = {item.mask.shape[-1] for item in items if item is not None}
    if len(steps) > 1:
        raise ValueError(f"trajectories of different lengths in one batch: {sorted(steps)} steps")
    unknown = Trajectory(*(torch.zeros_like(part) for part in (there.position, there.yaw, there.mask)))
    filled = [unknown if item is None else item for item in items]
    return concat([item[None] for item in filled])


def _stack_status(items: list[EgoStatus | None]) -> EgoStatus | None:
    if all(item is None for item in items):
        return None
    nan = torch.tensor(torch.nan)
    unknown = EgoStatus(velocity=nan.repeat(2), acceleration=nan.repeat(2), yaw_rate=nan)
    filled = [unknown if item is None else item for item in items]
    return concat([select(item, None) for item in filled])


def _stack_masks(items: list[Tensor | None]) -> Tensor | None:
    """Bool tensors, False for a sample without one."""
    there = [item for item in items if item is not None]
    if not there:
        return None
    shapes = {tuple(item.shape) for item in there}
    if len(shapes) > 1:
        raise ValueError(f"maps of different shapes in one batch: {sorted(shapes)}; cut them with one grid")
    return torch.stack([torch.zeros_like(there[0]) if item is None else item for item in items])
