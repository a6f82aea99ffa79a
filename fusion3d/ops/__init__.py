"""Operations on clouds, images and bird's-eye-view grids: the compiled kernel where there is one, else its pure-torch twin.

Coordinates are in ego: metres and radians. Wrong shapes and dtypes raise ``ValueError``.
"""

from fusion3d.ops.boxes import box_iou_bev, nms_bev
from fusion3d.ops.deformable import ms_deform_attn
from fusion3d.ops.pooling import BEVPoolPlan, bev_pool, bev_pool_plan
from fusion3d.ops.segments import SegmentPlan, segment_plan, segment_reduce
from fusion3d.ops.windows import Windows, flat_windows, window_attention, window_partition

__all__ = [
    "BEVPoolPlan",
    "SegmentPlan",
    "Windows",
    "bev_pool",
    "bev_pool_plan",
    "box_iou_bev",
    "flat_windows",
    "ms_deform_attn",
    "nms_bev",
    "segment_plan",
    "segment_reduce",
    "window_attention",
    "window_partition",
]
