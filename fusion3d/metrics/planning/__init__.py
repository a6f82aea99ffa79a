"""Open-loop planning: every published protocol beside an exact one, from the same plans.

drives      what is known around the samples: how the human drove, who was there
paths       headings, ten poses a second, the LiDAR's path
rectangles  overlap and distance
raster      the cells that published protocols look for collisions in
protocols   the published protocols as data, with their bugs
published   scoring by one of them
contacts    whom a plan meets, ten times a second: collisions, fault, time to collision, clearance
consistency  how far successive plans are apart
exact       the protocol ``exact``
pdm         a score in the manner of NAVSIM's
baselines   stationary, constant velocity, constant turn, nearest anchor
modes       the paths that a planner chooses among
slices      skill over constant turn by manoeuvre, speed, light, weather and neighbours, with intervals
score       all of it in one call
"""

from fusion3d.metrics.planning.drives import Agents, Drives
from fusion3d.metrics.planning.pdm import Ground
from fusion3d.metrics.planning.published import Boundaries
from fusion3d.metrics.planning.score import PROTOCOLS, Map, score_plans

__all__ = ["PROTOCOLS", "Agents", "Boundaries", "Drives", "Ground", "Map", "score_plans"]
