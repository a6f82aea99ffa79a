"""nuScenes detection scores: equal to those of the official evaluation, on columns of boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusion3d.metrics.columns import BoxColumns, Truth
from fusion3d.metrics.lanes import CLASSES, make_lanes
from fusion3d.metrics.matching import TP_ERRORS, Matches, match_detections
from fusion3d.metrics.protocol import CVPR_2019, DetectionProtocol
from fusion3d.types import DETECTION_CLASSES

MEANS = ("NDS", "mAP", *(f"m{error}" for error in TP_ERRORS))
LOWER = tuple(f"m{error}" for error in TP_ERRORS)  # less is better


def score_detections(truth: Truth, found: BoxColumns, protocol: DetectionProtocol = CVPR_2019) -> dict[str, Any]:
    """Official nuScenes numbers.

    Args:
        truth: of the split.
        found: detections, in the order of the result file.
        protocol: by default that of the benchmark.

    Returns:
        See ``score_matches``.

    Raises:
        Fusion3DError: a sample has too many detections, or a box is none.
    """
    return score_matches(match_detections(truth, found, protocol))


def score_matches(matches: Matches) -> dict[str, Any]:
    """Official nuScenes numbers of what is matched already.

    Returns:
        ``NDS``, ``mAP``, ``mATE`` ... ``mAAE``; by class ``AP``, ``AP_at`` (by threshold), ``TP`` (``ATE`` ..., NaN
        where it is not defined), and ``num_truth`` after the filters. A class without truth has AP 0 and errors 1.
        ``micro``: ``AP`` and errors of all classes in one ranking.
    """
    lanes = make_lanes(matches)
    counted = lanes.count()
    flat = numbers(counted, matches.protocol, absent=~counted["present"][0])
    truth = np.bincount(matches.truth.label, minlength=CLASSES)
    at = counted["AP"][0].tolist()
    return {
        **nested({name: float(value[0]) for name, value in flat.items()}),
        "AP_at": {
            name: dict(zip(map(str, matches.protocol.dist_ths), at[c], strict=True))
            for c, name in enumerate(DETECTION_CLASSES)
        },
        "num_truth": dict(zip(DETECTION_CLASSES, truth.tolist(), strict=True)),
    }


def numbers(
    counted: Mapping[str, np.ndarray], protocol: DetectionProtocol, absent: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """All numbers of each resample, from what ``Lanes.count`` counted.

    Args:
        counted: by ``Lanes.count``.
        protocol: weighs mAP in NDS.
        absent: [C + 1] bool, classes that count in means though they have no truth at all, with AP 0 and errors 1 (the
            benchmark's rule); those that miss truth in a resample alone are left out of its means. None: no such class.

    Returns:
        [B] each: MEANS, ``AP.car`` ..., ``ATE.car`` ..., ``micro.AP``, ``micro.ATE`` ...; NaN where nothing is known.
    """
    there = counted["present"] | (False if absent is None else absent)
    ap = np.where(there, counted["AP"].mean(axis=2), np.nan)
    tp = np.where(there[..., None], counted["TP"], np.nan)
    mean_ap, errors = _mean(ap[:, :CLASSES]), _mean(tp[:, :CLASSES])
    weight = protocol.mean_ap_weight
    found = {
        "NDS": (weight * mean_ap + np.maximum(0.0, 1.0 - errors).sum(axis=1)) / (weight + len(TP_ERRORS)),
        "mAP": mean_ap,
        **{f"m{error}": errors[:, e] for e, error in enumerate(TP_ERRORS)},
    }
    for c, name in enumerate((*DETECTION_CLASSES, "micro")):
        key = "micro.{}" if name == "micro" else "{}." + name
        found[key.format("AP")] = ap[:, c]
        found |= {key.format(error): tp[:, c, e] for e, error in enumerate(TP_ERRORS)}
    return found


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one evaluation by kind: MEANS, ``AP.<class>``, ``TP.<class>.<error>``, ``micro.<AP or error>``."""
    return {
        **{name: flat[name] for name in MEANS},
        "AP": {name: flat[f"AP.{name}"] for name in DETECTION_CLASSES},
        "TP": {name: {error: flat[f"{error}.{name}"] for error in TP_ERRORS} for name in DETECTION_CLASSES},
        "micro": {name: flat[f"micro.{name}"] for name in ("AP", *TP_ERRORS)},
    }


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over axis 1 of what is known; NaN where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)
