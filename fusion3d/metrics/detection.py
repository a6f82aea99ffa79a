"""nuScenes detection scores, computed by the functions of the official devkit on boxes of any origin.

The devkit's ``DetectionEval`` reads its own tables and needs a LIDAR_TOP record for every sample. Here the
same functions (``add_center_dist``, ``filter_eval_boxes``, ``accumulate``, ``calc_ap``, ``calc_tp``,
``DetectionMetrics``) are fed with records in the submission format, so that a scene without LiDAR is scored
too; the numbers are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from fusion3d.errors import Fusion3DError

TP_NAMES = {
    "trans_err": "ATE", "scale_err": "ASE", "orient_err": "AOE", "vel_err": "AVE", "attr_err": "AAE",
}  # fmt: skip

Record = Mapping[str, Any]  # a box in the submission's format; ground truth has ``num_pts`` and no score


@dataclass(frozen=True)
class Truth:
    """What one sample is scored against, in the global frame."""

    boxes: Sequence[Record]  # the ten classes
    ego: tuple[float, float, float]  # [m] where the vehicle was at the reference time
    bicycle_racks: Sequence[Record] = field(default_factory=tuple)  # translation, size (w, l, h), rotation


class _Tables:
    """As much of ``nuscenes.NuScenes`` as the devkit's filters ask for."""

    def __init__(self, truths: Mapping[str, Truth]) -> None:
        self._truths = truths

    def get(self, table: str, token: Any) -> Any:
        if table == "sample":
            racks = [(token, i) for i in range(len(self._truths[token].bicycle_racks))]
            return {"data": {"LIDAR_TOP": token}, "anns": racks}
        if table == "sample_data":
            return {"ego_pose_token": token}
        if table == "ego_pose":
            return {"translation": self._truths[token].ego}
        sample, number = token
        return {"category_name": "static_object.bicycle_rack", **self._truths[sample].bicycle_racks[number]}


def score_detections(truths: Mapping[str, Truth], results: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Official nuScenes numbers (configuration ``detection_cvpr_2019``).

    Class ranges around the ego, boxes without any LiDAR or radar point, and cycles in bicycle racks are
    filtered by the devkit itself.

    Args:
        truths: by sample token.
        results: by sample token, predicted boxes as in a submission; every token of ``truths`` must be there.

    Returns:
        ``NDS``, ``mAP``, ``mATE`` ... ``mAAE``; ``AP`` by class; ``TP`` by class and error (``ATE`` ..., NaN
        where the devkit does not define it); ``num_truth`` by class, after the filters.

    Raises:
        Fusion3DError: the devkit is not installed, or samples are missing or unknown in ``results``.
    """
    devkit = _devkit()
    if set(truths) != set(results):
        missing, unknown = sorted(set(truths) - set(results)), sorted(set(results) - set(truths))
        raise Fusion3DError(
            f"the results have {len(missing)} samples too few (first {missing[:1]}) and {len(unknown)} too "
            f"many "
            f"(first {unknown[:1]}); every sample of the split must be there, with an empty list if nothing "
            f"was found"
        )
    config = devkit.config_factory("detection_cvpr_2019")
    tables = _Tables(truths)
    truth = _filtered(devkit, config, tables, {token: truths[token].boxes for token in truths})
    found = _filtered(devkit, config, tables, {token: results[token] for token in truths})

    metrics = devkit.DetectionMetrics(config)
    for name in config.class_names:
        # Matching never crosses classes: giving ``accumulate`` one class at a time changes its speed alone.
        of_class = _only(devkit, truth, name), _only(devkit, found, name)
        data = {
            distance: devkit.accumulate(*of_class, name, config.dist_fcn_callable, distance)
            for distance in config.dist_ths
        }
        for distance in config.dist_ths:
            ap = devkit.calc_ap(data[distance], config.min_recall, config.min_precision)
            metrics.add_label_ap(name, distance, ap)
        for error in devkit.TP_METRICS:
            undefined = error in {
                "traffic_cone": ("attr_err", "vel_err", "orient_err"),
                "barrier": ("attr_err", "vel_err"),
            }.get(name, ())
            value = np.nan if undefined else devkit.calc_tp(data[config.dist_th_tp], config.min_recall, error)
            metrics.add_label_tp(name, error, value)
    return {
        "NDS": metrics.nd_score,
        "mAP": metrics.mean_ap,
        **{f"m{TP_NAMES[error]}": value for error, value in metrics.tp_errors.items()},
        "AP": {name: float(ap) for name, ap in metrics.mean_dist_aps.items()},
        "TP": {
            name: {TP_NAMES[error]: float(metrics.get_label_tp(name, error)) for error in devkit.TP_METRICS}
            for name in config.class_names
        },
        "num_truth": {name: sum(box.detection_name == name for box in truth.all) for name in config.class_names},
    }


def _devkit() -> SimpleNamespace:
    """The names of the devkit that are used here, in one place."""
    try:
        from nuscenes.eval.common import config, data_classes, loaders
        from nuscenes.eval.detection import algo, constants
        from nuscenes.eval.detection import data_classes as detection
    except ImportError as error:
        raise Fusion3DError(
            f"the official nuScenes devkit, which does the scoring, cannot be imported ({error}); "
            "install it with: pip install --no-deps nuscenes-devkit==1.2.0 && pip install 'fusion3d[eval]'"
        ) from error
    return SimpleNamespace(
        config_factory=config.config_factory,
        EvalBoxes=data_classes.EvalBoxes,
        add_center_dist=loaders.add_center_dist,
        filter_eval_boxes=loaders.filter_eval_boxes,
        accumulate=algo.accumulate,
        calc_ap=algo.calc_ap,
        calc_tp=algo.calc_tp,
        TP_METRICS=constants.TP_METRICS,
        DetectionBox=detection.DetectionBox,
        DetectionMetrics=detection.DetectionMetrics,
    )


def _filtered(devkit: Any, config: Any, tables: _Tables, records: Mapping[str, Sequence[Record]]) -> Any:
    boxes = devkit.EvalBoxes.deserialize(records, devkit.DetectionBox)
    if not boxes.all:  # the devkit's filter cannot take none
        return boxes
    devkit.add_center_dist(tables, boxes)
    return devkit.filter_eval_boxes(tables, boxes, config.class_range)


def _only(devkit: Any, boxes: Any, name: str) -> Any:
    chosen = devkit.EvalBoxes()
    for token in boxes.sample_tokens:
        chosen.add_boxes(token, [box for box in boxes[token] if box.detection_name == name])
    return chosen
