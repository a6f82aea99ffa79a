"""The settings of nuScenes detection scoring, in the words of the official configuration files."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusion3d.errors import ConfigError
from fusion3d.types import DETECTION_CLASSES


def _default_ranges() -> dict[str, float]:
    far = dict.fromkeys(("car", "truck", "bus", "trailer", "construction_vehicle"), 50.0)
    middle = dict.fromkeys(("pedestrian", "motorcycle", "bicycle"), 40.0)
    return {**far, **middle, "traffic_cone": 30.0, "barrier": 30.0}


@dataclass(frozen=True)
class DetectionProtocol:
    """How detections are scored; the default is ``detection_cvpr_2019``, that of the benchmark."""

    class_range: Mapping[str, float] = field(default_factory=_default_ranges)  # [m] from the ego; beyond: not scored
    dist_ths: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)  # [m] between centres, below which a detection is right
    dist_th_tp: float = 2.0  # [m] the one at which errors are measured
    min_recall: float = 0.1  # recall up to which nothing counts
    min_precision: float = 0.1  # precision that counts as none
    max_boxes_per_sample: int = 500
    mean_ap_weight: float = 5  # of mAP in NDS, where each of the five errors has 1
    dist_fcn: str = "center_distance"  # the only one that there is

    def __post_init__(self) -> None:
        """ConfigError where a setting is none that scores can be made with."""
        if set(self.class_range) != set(DETECTION_CLASSES):
            odd = sorted(set(self.class_range) ^ set(DETECTION_CLASSES))
            raise ConfigError(f"class_range: expected a range for each of the ten classes; too few or too many: {odd}")
        numbers = {
            **{f"class_range.{name}": value for name, value in self.class_range.items()},
            **{f"dist_ths[{i}]": value for i, value in enumerate(self.dist_ths)},
            "mean_ap_weight": self.mean_ap_weight,
            "max_boxes_per_sample": self.max_boxes_per_sample,
        }
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ConfigError(f"{name}: expected a number above 0, found {value!r}")
        if not self.dist_ths or len(set(self.dist_ths)) < len(self.dist_ths):
            raise ConfigError(f"dist_ths: expected different distances, one at least, found {list(self.dist_ths)}")
        if self.dist_th_tp not in self.dist_ths:
            raise ConfigError(f"dist_th_tp: expected one of dist_ths {list(self.dist_ths)}, found {self.dist_th_tp}")
        for name in ("min_recall", "min_precision"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ConfigError(f"{name}: expected a number from 0 up to but not 1, found {value!r}")
        if self.first > 100:
            raise ConfigError(f"min_recall: {self.min_recall} leaves no recall to score at; take less than 0.995")
        if self.dist_fcn != "center_distance":
            raise ConfigError(f"dist_fcn: expected 'center_distance', found {self.dist_fcn!r}")

    @property
    def first(self) -> int:
        """The first of the 101 recalls that counts: the one after ``min_recall``."""
        return round(100 * self.min_recall) + 1

    @staticmethod
    def of(content: Any) -> DetectionProtocol:
        """A protocol from the content of an official configuration file, such as ``detection_cvpr_2019.json``.

        Raises:
            ConfigError: a setting is missing, unknown, or of the wrong kind.
        """
        names = [f.name for f in dataclasses.fields(DetectionProtocol)]
        if not isinstance(content, Mapping):
            raise ConfigError(f"a detection protocol: expected an object with {', '.join(names)}, found {content!r}")
        for name in content:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)[0]
                raise ConfigError(f"unknown setting {name!r} of a detection protocol; did you mean {near!r}?")
        missing = [name for name in names if name not in content]
        if missing:
            raise ConfigError(f"a detection protocol lacks {', '.join(missing)}")
        if not isinstance(content["class_range"], Mapping) or not isinstance(content["dist_ths"], (list, tuple)):
            raise ConfigError("a detection protocol: expected an object as class_range and a list as dist_ths")
        return DetectionProtocol(**{**content, "dist_ths": tuple(content["dist_ths"])})

    def as_dict(self) -> dict[str, Any]:
        """In the official form."""
        return {**dataclasses.asdict(self), "dist_ths": list(self.dist_ths), "class_range": dict(self.class_range)}


CVPR_2019 = DetectionProtocol()
