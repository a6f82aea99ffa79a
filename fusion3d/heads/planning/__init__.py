"""Planning heads: BEV map to where the vehicle should drive.

frame       places as seen from the vehicle, whatever BEV augmentation did to its world
ego         a query for the vehicle reads the whole map; commands and ego status
query       one path, said by that query
read        the map along paths: what a vehicle that drove them would stand on
anchors     many paths, from typical ones, refined and scored
targets     the scores, by the definitions of ``metrics.planning``
choice      which path is driven
"""

from fusion3d.heads.planning.anchors import AnchorPlanner
from fusion3d.heads.planning.query import QueryPlanner

Planner = QueryPlanner | AnchorPlanner

__all__ = ["AnchorPlanner", "Planner", "QueryPlanner"]
