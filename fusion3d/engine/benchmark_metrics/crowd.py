"""Detections and truth of any size with the crowds of the nuScenes validation split, and the devkit's form of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from fusion3d.geometry import quaternion_from_yaw
from fusion3d.metrics.columns import BoxColumns, Racks, Samples, Truth
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES

FULL_SAMPLES = 6019  # of the validation split
SCENE = 40  # samples
TRUE = 31  # boxes of the ten classes per sample
FREQUENCY = np.array([80004, 15704, 3158, 4159, 2678, 34010, 2508, 2381, 15597, 26992], dtype=np.float64)
SIZE = np.array(
    [[4.6, 1.9, 1.7], [6.9, 2.5, 2.8], [11.1, 2.9, 3.5], [12.3, 2.9, 3.9], [6.6, 2.8, 3.2],
     [0.7, 0.7, 1.8], [2.1, 0.8, 1.5], [1.7, 0.6, 1.3], [0.4, 0.4, 1.1], [0.5, 2.5, 1.0]]
)  # [m] length, width, height of a usual box of each class  # fmt: skip
_REACH = 75.0  # [m] truth lies within


def make_crowd(num_samples: int, num_boxes: int, seed: int = 0) -> tuple[Truth, BoxColumns]:
    """A split and a submission for it: near each truth box a detection or two, and clutter with low scores.

    Args:
        num_samples: of the split.
        num_boxes: detections of each sample.
        seed: of the generator.
    """
    rng = np.random.default_rng(seed)
    num_scenes = -(-num_samples // SCENE)
    samples = Samples(
        tokens=tuple(f"{row:032x}" for row in range(num_samples)),
        scene=np.arange(num_samples) // SCENE,
        scenes=tuple(f"scene-{row:04d}" for row in range(num_scenes)),
        descriptions=("",) * num_scenes,
        ego=rng.uniform(0, 2000, (num_samples, 2)),
        heading=rng.uniform(-np.pi, np.pi, num_samples),
    )
    sample = np.repeat(np.arange(num_samples), rng.poisson(TRUE, num_samples))
    true = _boxes(rng, sample, samples.ego)
    racks = np.flatnonzero(rng.random(num_samples) < 0.1)
    corner = np.c_[samples.ego[racks] + rng.uniform(-30, 30, (len(racks), 2)), np.ones(len(racks))]
    size = np.tile([6.0, 2.0, 2.0], (len(racks), 1))
    truth = Truth(samples, true, Racks(racks, corner, size, quaternion_from_yaw(rng.uniform(-3, 3, len(racks)))))
    return truth, _detections(rng, truth, num_boxes)


def _boxes(rng: np.random.Generator, sample: np.ndarray, ego: np.ndarray) -> BoxColumns:
    count = len(sample)
    away, towards = _REACH * np.sqrt(rng.random(count)), rng.uniform(-np.pi, np.pi, count)
    label = rng.choice(len(FREQUENCY), count, p=FREQUENCY / FREQUENCY.sum())
    height = rng.uniform(0.5, 1.5, (count, 1))
    return BoxColumns.of(
        sample=sample,
        center=np.c_[ego[sample] + away[:, None] * np.c_[np.cos(towards), np.sin(towards)], height],
        size=SIZE[label] * rng.uniform(0.8, 1.2, (count, 3)),
        yaw=rng.uniform(-np.pi, np.pi, count),
        velocity=np.where(rng.random((count, 1)) < 0.05, np.nan, rng.normal(0, 3, (count, 2))),
        label=label,
        attribute=rng.integers(-1, len(ATTRIBUTES), count),
        num_points=rng.poisson(20, count) * (rng.random(count) < 0.85),
        visibility=rng.integers(1, 5, count),
    )


def _detections(rng: np.random.Generator, truth: Truth, num_boxes: int) -> BoxColumns:
    """In each sample, first the noisy copies of its truth, then clutter."""
    true, num_samples = truth.boxes, len(truth.samples)
    clutter = _boxes(rng, np.repeat(np.arange(num_samples), num_boxes), truth.samples.ego)
    seen = np.flatnonzero(rng.random(len(true)) < 0.85)
    seen = np.sort(np.concatenate([seen, seen[rng.random(len(seen)) < 0.3]]))
    copies, count = true[seen], len(seen)
    place = np.arange(count) - np.searchsorted(copies.sample, copies.sample)  # the how manieth of its sample
    seen = place < num_boxes
    row = (copies.sample * num_boxes + place)[seen]
    attribute = np.where(rng.random(count) < 0.8, copies.attribute, rng.integers(-1, len(ATTRIBUTES), count))
    columns = {
        "center": copies.center + rng.normal(0, 0.6, (count, 3)) * (1, 1, 0.2),
        "size": copies.size * rng.uniform(0.8, 1.2, (count, 3)),
        "yaw": copies.yaw + rng.normal(0, 0.2, count),
        "velocity": np.nan_to_num(copies.velocity) + rng.normal(0, 0.5, (count, 2)),
        "label": copies.label,
        "attribute": attribute,
        "score": rng.beta(4, 2, count),
    }
    whole = {name: getattr(clutter, name).copy() for name in columns}
    whole["velocity"] = np.nan_to_num(whole["velocity"])
    whole["score"] = rng.beta(1, 6, len(clutter))
    for name, values in columns.items():
        whole[name][row] = values[seen]
    return BoxColumns.of(sample=clutter.sample, **whole)


class CrowdTables:
    """As much of ``nuscenes.NuScenes`` as the devkit's filters ask for, of a ``Truth``."""

    def __init__(self, truth: Truth) -> None:
        racks, tokens = truth.racks, truth.samples.tokens
        self.ego = {token: [*ego, 0.0] for token, ego in zip(tokens, truth.samples.ego.tolist(), strict=True)}
        self.racks: dict[str, list[dict[str, Any]]] = {}
        for row, sample in enumerate(racks.sample.tolist()):
            record = {
                "category_name": "static_object.bicycle_rack", "translation": racks.center[row].tolist(),
                "size": racks.size[row, [1, 0, 2]].tolist(), "rotation": racks.rotation[row].tolist(),
            }  # fmt: skip
            self.racks.setdefault(tokens[sample], []).append(record)

    def get(self, table: str, token: Any) -> Any:
        """A record of a table."""
        if table == "sample":
            return {"data": {"LIDAR_TOP": token}, "anns": [(token, i) for i in range(len(self.racks.get(token, [])))]}
        if table == "sample_data":
            return {"ego_pose_token": token}
        return {"translation": self.ego[token]} if table == "ego_pose" else self.racks[token[0]][token[1]]


def devkit_boxes(kit: SimpleNamespace, boxes: BoxColumns, tokens: tuple[str, ...]) -> Any:
    """Columns in the devkit's form, an object for each box."""
    whole = kit.EvalBoxes()
    names = ("", *ATTRIBUTES)
    rotation = quaternion_from_yaw(boxes.yaw)
    starts = np.searchsorted(boxes.sample, np.arange(len(tokens) + 1))
    for token, start, end in zip(tokens, starts[:-1], starts[1:], strict=True):
        part = slice(start, end)
        columns = (
            boxes.center[part], boxes.size[part][:, [1, 0, 2]], rotation[part], boxes.velocity[part],
            boxes.num_points[part], boxes.label[part], boxes.score[part], boxes.attribute[part],
        )  # fmt: skip
        rows = zip(*(column.tolist() for column in columns), strict=True)
        made = [
            kit.DetectionBox(
                sample_token=token, translation=tuple(center), size=tuple(size), rotation=tuple(turn),
                velocity=tuple(velocity), num_pts=points, detection_name=DETECTION_CLASSES[label],
                detection_score=score, attribute_name=names[attribute + 1],
            )
            for center, size, turn, velocity, points, label, score, attribute in rows
        ]  # fmt: skip
        whole.add_boxes(token, made)
    return whole
