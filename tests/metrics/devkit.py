"""The official evaluation on records, without tables of a data set: the tests' oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionConfig
from nuscenes.eval.detection.evaluate import DetectionEval

from fusion3d.geometry import yaw_from_quaternion
from fusion3d.metrics.columns import BoxColumns, Racks, Samples, Truth
from fusion3d.metrics.protocol import CVPR_2019, DetectionProtocol
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES

Record = dict[str, Any]


class FakeTables:
    """As much of ``nuscenes.NuScenes`` as the official filters ask for."""

    def __init__(self, ego: dict[str, list[float]], racks: dict[str, list[Record]]) -> None:
        self.ego, self.racks = ego, racks

    def get(self, table: str, token: Any) -> Record:
        if table == "sample":
            return {"data": {"LIDAR_TOP": token}, "anns": [(token, i) for i in range(len(self.racks.get(token, [])))]}
        if table == "sample_data":
            return {"ego_pose_token": token}
        if table == "ego_pose":
            return {"translation": self.ego[token]}
        return {"category_name": "static_object.bicycle_rack", **self.racks[token[0]][token[1]]}


def official(
    truth: dict[str, list[Record]],
    results: dict[str, list[Record]],
    ego: dict[str, list[float]],
    racks: dict[str, list[Record]] | None = None,
    protocol: DetectionProtocol = CVPR_2019,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summary and the curves of ``DetectionEval.evaluate``."""
    evaluation = DetectionEval.__new__(DetectionEval)
    evaluation.cfg = DetectionConfig.deserialize(protocol.as_dict())
    evaluation.verbose = False
    tables = FakeTables(ego, racks or {})
    for name, records in (("gt_boxes", truth), ("pred_boxes", results)):
        boxes = EvalBoxes.deserialize(records, DetectionBox)
        if boxes.all:  # the official filter cannot take none
            boxes = filter_eval_boxes(tables, add_center_dist(tables, boxes), evaluation.cfg.class_range)
        setattr(evaluation, name, boxes)
    summary, curves = evaluation.evaluate()
    return summary.serialize(), curves.serialize()


def truth_columns(
    truth: dict[str, list[Record]],
    ego: dict[str, list[float]],
    racks: dict[str, list[Record]] | None = None,
    scene: list[int] | None = None,
    descriptions: tuple[str, ...] | None = None,
    heading: list[float] | None = None,
) -> Truth:
    """The same truth as columns, made without the package's readers."""
    tokens = tuple(truth)
    rows = [(s, record) for s, token in enumerate(tokens) for record in truth[token]]
    standing = [(s, record) for s, token in enumerate(tokens) for record in (racks or {}).get(token, [])]
    scene = list(range(len(tokens))) if scene is None else scene
    names = tuple(f"scene-{n:04d}" for n in range(max(scene, default=-1) + 1))

    def column(key: str, width: int, of: list[tuple[int, Record]] = rows) -> np.ndarray:
        return np.array([record[key] for _, record in of], dtype=float).reshape(len(of), width)

    samples = Samples(
        tokens, np.array(scene, dtype=np.int64), names, descriptions or ("",) * len(names),
        np.array([ego[token][:2] for token in tokens], dtype=float).reshape(-1, 2),
        np.zeros(len(tokens)) if heading is None else np.array(heading, dtype=float),
    )  # fmt: skip
    boxes = BoxColumns.of(
        np.array([s for s, _ in rows]), column("translation", 3), column("size", 3)[:, [1, 0, 2]],
        yaw_from_quaternion(column("rotation", 4)), column("velocity", 2),
        np.array([DETECTION_CLASSES.index(record["detection_name"]) for _, record in rows]),
        np.array([("", *ATTRIBUTES).index(record["attribute_name"]) - 1 for _, record in rows]),
        num_points=np.array([record["num_pts"] for _, record in rows]),
        visibility=np.array([record.get("visibility", 0) for _, record in rows]),
    )  # fmt: skip
    return Truth(
        samples,
        boxes,
        Racks(
            np.array([s for s, _ in standing], dtype=np.int64),
            column("translation", 3, standing),
            column("size", 3, standing)[:, [1, 0, 2]],
            column("rotation", 4, standing),
        ),
    )
