"""The official evaluation beside ours: the devkit's ``DetectionEval`` on the same files, and how far it is away."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fusion3d.errors import Fusion3DError
from fusion3d.metrics.matching import TP_ERRORS
from fusion3d.metrics.protocol import DetectionProtocol
from fusion3d.types import DETECTION_CLASSES

_ERRORS = dict(zip(TP_ERRORS, ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err"), strict=True))


def devkit() -> SimpleNamespace:
    """The names of the devkit that are used, in one place.

    Raises:
        Fusion3DError: it cannot be imported.
    """
    try:
        from nuscenes import NuScenes
        from nuscenes.eval.common import data_classes, loaders
        from nuscenes.eval.detection import data_classes as detection
        from nuscenes.eval.detection.evaluate import DetectionEval
    except ImportError as error:
        raise Fusion3DError(
            f"the official nuScenes devkit cannot be imported ({error}); install it with: "
            "pip install --no-deps nuscenes-devkit==1.2.0 && pip install 'fusion3d[eval]'"
        ) from error
    return SimpleNamespace(
        NuScenes=NuScenes,
        EvalBoxes=data_classes.EvalBoxes,
        DetectionBox=detection.DetectionBox,
        DetectionConfig=detection.DetectionConfig,
        DetectionEval=DetectionEval,
        add_center_dist=loaders.add_center_dist,
        filter_eval_boxes=loaders.filter_eval_boxes,
        load_truth=loaders.load_gt_of_sample_tokens,
        load_results=loaders.load_prediction_of_sample_tokens,
    )


class Official:
    """The devkit's evaluation of result files of one set of samples; its tables are read once.

    ``DetectionEval`` itself takes its samples from a split that it knows by name and by version. Here it gets those
    that were evaluated, by the functions that it calls for a split of the user's own.

    Args:
        root: data root.
        version: table folder.
        tokens: of the samples.
        protocol: what is scored.

    Raises:
        Fusion3DError: the devkit cannot be imported, or cannot read the data set.
    """

    def __init__(self, root: str, version: str, tokens: Sequence[str], protocol: DetectionProtocol) -> None:
        self.kit, self.tokens, self.protocol = devkit(), list(tokens), protocol
        with _told(f"read {root} ({version})"):
            self.tables = self.kit.NuScenes(version, root, verbose=False)

    def score(self, results: Path, order: Sequence[str]) -> dict[str, Any]:
        """What ``DetectionEval`` says of a result file, in its own words.

        Args:
            results: JSON.
            order: the samples as they stand in the file: as for its own splits, it decides between equal scores.

        Raises:
            Fusion3DError: it cannot score it, such as samples without LIDAR_TOP.
        """
        kit, protocol = self.kit, self.protocol
        evaluation = kit.DetectionEval.__new__(kit.DetectionEval)
        evaluation.verbose = False
        evaluation.cfg = kit.DetectionConfig.deserialize(protocol.as_dict())
        with _told(f"score {results}"):
            limit = protocol.max_boxes_per_sample
            found, _ = kit.load_results(str(results), limit, kit.DetectionBox, list(order))
            evaluation.gt_boxes = self._filtered(kit.load_truth(self.tables, self.tokens, kit.DetectionBox))
            evaluation.pred_boxes = self._filtered(found)
            return evaluation.evaluate()[0].serialize()

    def _filtered(self, boxes: Any) -> Any:
        if not boxes.all:  # its filter cannot take none
            return boxes
        boxes = self.kit.add_center_dist(self.tables, boxes)
        return self.kit.filter_eval_boxes(self.tables, boxes, self.protocol.class_range)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """The devkit's bars and lines unsaid, and whatever stops it as a line of our own."""
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    except (AssertionError, KeyError, IndexError, ValueError, OSError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise Fusion3DError(f"the official devkit cannot {what} ({reason}); without --official ours can") from error


def greatest_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[float, str]:
    """The greatest absolute difference between all numbers, and which number it is.

    Args:
        ours: by ``score_matches``.
        theirs: by ``Official.score``.

    Returns:
        0 and "" where all are equal; infinity where one alone is NaN.
    """
    worst, where = 0.0, ""
    for name, one, other in _pairs(ours, theirs):
        if math.isnan(one) and math.isnan(other):
            continue
        apart = math.inf if math.isnan(one) or math.isnan(other) else abs(one - other)
        if apart > worst:
            worst, where = apart, name
    return worst, where


def _pairs(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    yield "NDS", ours["NDS"], theirs["nd_score"]
    yield "mAP", ours["mAP"], theirs["mean_ap"]
    for name, key in _ERRORS.items():
        yield f"m{name}", ours[f"m{name}"], theirs["tp_errors"][key]
        for label in DETECTION_CLASSES:
            yield f"{name} of {label}", ours["TP"][label][name], theirs["label_tp_errors"][label][key]
    for label in DETECTION_CLASSES:
        yield f"AP of {label}", ours["AP"][label], theirs["mean_dist_aps"][label]
        for threshold, ap in theirs["label_aps"][label].items():
            yield f"AP of {label} at {threshold} m", ours["AP_at"][label][str(threshold)], ap
