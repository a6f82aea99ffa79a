"""The nuScenes submission: the one place where boxes become global (w, l, h, quaternion) records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion3d.files import write_json
from fusion3d.geometry import (
    apply,
    invert,
    quaternion_from_rotation,
    rotate,
    rotation_from_quaternion,
    yaw_of,
)
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES, SENSORS, Boxes

RESULTS_FILE = "results_nusc.json"
MAX_BOXES = 500  # per sample, the challenge's rule
MOVING = 0.2  # [m/s] above it an object without a predicted attribute counts as moving


def to_records(boxes: Boxes, global_from_ego: np.ndarray, token: str, limit: int = MAX_BOXES) -> list[dict[str, Any]]:
    """Boxes of one sample as submission records, best first.

    Args:
        boxes: in ego; an unknown velocity becomes 0, an unknown attribute what the velocity suggests.
        global_from_ego: [4, 4] of the sample.
        token: of the sample.
        limit: how many there may be; the others are left out.

    Raises:
        ValueError: a centre, size, yaw or score is not finite, or a size is not positive.
    """
    boxes = boxes[boxes.score.argsort(descending=True, stable=True)[:limit]]
    center, size, yaw, score = (_array(x) for x in (boxes.center, boxes.size, boxes.yaw, boxes.score))
    numbers = np.concatenate([center, size, yaw[:, None], score[:, None]], axis=1)
    if not np.isfinite(numbers).all() or (size <= 0).any():
        raise ValueError(
            f"sample {token}: a predicted box is not finite or has no size; expected finite metres and "
            f"radians: "
            "look at the detection head's output"
        )
    velocity = np.nan_to_num(np.pad(_array(boxes.velocity), ((0, 0), (0, 1))), posinf=0.0, neginf=0.0)
    turn = np.zeros((len(yaw), 3, 3))
    turn[:, 0, 0] = turn[:, 1, 1] = np.cos(yaw)
    turn[:, 1, 0] = np.sin(yaw)
    turn[:, 0, 1] = -turn[:, 1, 0]
    turn[:, 2, 2] = 1
    translation = apply(global_from_ego, center)
    rotation = quaternion_from_rotation(global_from_ego[:3, :3] @ turn)
    over_ground = rotate(global_from_ego, velocity)
    return [
        {
            "sample_token": token,
            "translation": translation[k].tolist(),
            "size": size[k, [1, 0, 2]].tolist(),
            "rotation": rotation[k].tolist(),
            "velocity": over_ground[k, :2].tolist(),
            "detection_name": DETECTION_CLASSES[label],
            "detection_score": float(score[k]),
            "attribute_name": attribute_name(DETECTION_CLASSES[label], attribute, float(np.hypot(*velocity[k, :2]))),
        }
        for k, (label, attribute) in enumerate(zip(boxes.label.tolist(), boxes.attribute.tolist(), strict=True))
    ]


def from_records(records: Sequence[Mapping[str, Any]], global_from_ego: np.ndarray) -> Boxes:
    """The boxes of one sample's submission records, in ego: what ``to_records`` undoes.

    Args:
        records: as in a submission; ground truth too, which has no score.
        global_from_ego: [4, 4] of the sample.
    """
    if not records:
        return Boxes.empty()
    ego_from_global = invert(global_from_ego)
    column = {name: np.array([box[name] for box in records], dtype=np.float64) for name in ("translation", "size")}
    rotation = rotation_from_quaternion(np.array([box["rotation"] for box in records], dtype=np.float64))
    velocity = np.array([[*box["velocity"], 0.0] for box in records], dtype=np.float64)
    attribute = [ATTRIBUTES.index(name) if (name := box["attribute_name"]) else -1 for box in records]
    return Boxes.of(
        center=_tensor(apply(ego_from_global, column["translation"])),
        size=_tensor(column["size"][:, [1, 0, 2]]),
        yaw=_tensor(yaw_of(ego_from_global[:3, :3] @ rotation)),
        velocity=_tensor(rotate(ego_from_global, velocity)[:, :2]),
        label=torch.tensor([DETECTION_CLASSES.index(box["detection_name"]) for box in records]),
        score=torch.tensor([float(box.get("detection_score", 1.0)) for box in records]),
        attribute=torch.tensor(attribute),
    )


def attribute_name(name: str, attribute: int, speed: float) -> str:
    """A box's attribute: the predicted one, else by class and speed [m/s]; cones and barriers have none."""
    if name in ("traffic_cone", "barrier"):
        return ""
    if attribute >= 0:
        return ATTRIBUTES[attribute]
    if name == "pedestrian":
        return "pedestrian.moving" if speed > MOVING else "pedestrian.standing"
    if name in ("bicycle", "motorcycle"):
        return "cycle.with_rider" if speed > MOVING else "cycle.without_rider"
    if speed > MOVING:
        return "vehicle.moving"
    return "vehicle.stopped" if name == "bus" else "vehicle.parked"


def write_submission(
    path: str | Path, results: Mapping[str, Sequence[Mapping[str, Any]]], sensors: Iterable[str]
) -> Path:
    """Write ``results_nusc.json`` as the evaluation server takes it.

    Args:
        path: file.
        results: by sample token, the records; a sample without boxes has an empty list.
        sensors: those of ``SENSORS`` that really went in.
    """
    used = set(sensors)
    meta = {f"use_{sensor}": sensor in used for sensor in SENSORS} | {"use_map": False, "use_external": False}
    return write_json(path, {"meta": meta, "results": dict(results)}, indent=None)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
