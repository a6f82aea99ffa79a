"""Operations on clouds, images and bird's-eye-view grids: the compiled kernel where there is one, else its pure-torch twin.

Coordinates are in ego: metres and radians. Wrong shapes and dtypes raise ``ValueError``.
"""

from fusion3d.ops.pooling import BEVPoolPlan, bev_pool, bev_pool_plan
from fusion3d.ops.boxes import box_iou_bev, nms_bev
from fusion3d.ops.segments import SegmentPlan, segment_plan, segment_reduce
from fusion3d.ops.sparse import SparseRulebook, sparse_conv, sparse_rulebook

__all__ = [
    "BEVPoolPlan",
    "SegmentPlan",
    "SparseRulebook",
    "bev_pool",
    "bev_pool_plan",
    "box_iou_bev",
    "nms_bev",
    "segment_plan",
    "segment_reduce",
    "sparse_conv",
    "sparse_rulebook",
]
