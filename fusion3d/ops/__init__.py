"""Operations on clouds, images and bird's-eye-view grids: compiled kernels, or else their pure-torch twins.

Coordinates are in ego: metres and radians. Wrong shapes and dtypes raise ``ValueError``.
"""

from fusion3d.ops.boxes import KeptBoxes, PointsInBoxes, box_iou_bev, box_iou_bev_aligned, nms_bev, points_in_boxes
from fusion3d.ops.deformable import ms_deform_attn
from fusion3d.ops.pooling import BEVPoolPlan, bev_pool, bev_pool_plan
from fusion3d.ops.segments import SegmentPlan, segment_plan, segment_reduce
from fusion3d.ops.sparse import SparseRulebook, sparse_conv, sparse_rulebook
from fusion3d.ops.voxels import Voxels, voxelize, voxelize_mean
from fusion3d.ops.windows import Windows, flat_windows, window_attention, window_partition

__all__ = [
    "BEVPoolPlan",
    "KeptBoxes",
    "PointsInBoxes",
    "SegmentPlan",
    "SparseRulebook",
    "Voxels",
    "Windows",
    "bev_pool",
    "bev_pool_plan",
    "box_iou_bev",
    "box_iou_bev_aligned",
    "flat_windows",
    "ms_deform_attn",
    "nms_bev",
    "points_in_boxes",
    "segment_plan",
    "segment_reduce",
    "sparse_conv",
    "sparse_rulebook",
    "voxelize",
    "voxelize_mean",
    "window_attention",
    "window_partition",
]
