"""Result files of nuScenes detection and tracking: reading anybody's, and what is wrong with them."""

from fusion3d.engine.results.examine import examine_results, read_results
from fusion3d.engine.results.file import Limits, Results
from fusion3d.engine.results.rules import Problems

__all__ = ["Limits", "Problems", "Results", "examine_results", "read_results"]
