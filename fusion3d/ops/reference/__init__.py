"""Pure-torch twins of the compiled kernels.

They run on any device, differentiate through plain autograd, and are what the kernels are tested against.
"""

from fusion3d.ops.reference.boxes import box_iou_bev, box_iou_bev_aligned, nms_bev, points_in_boxes
from fusion3d.ops.reference.deformable import ms_deform_attn
from fusion3d.ops.reference.pooling import bev_pool, bev_pool_pixel
from fusion3d.ops.reference.segments import segment_plan, segment_reduce
from fusion3d.ops.reference.sparse import sparse_conv, sparse_strided, sparse_submanifold
from fusion3d.ops.reference.voxels import voxel_gather, voxelize, voxelize_mean
from fusion3d.ops.reference.windows import window_attention

__all__ = [
    "bev_pool",
    "bev_pool_pixel",
    "box_iou_bev",
    "box_iou_bev_aligned",
    "ms_deform_attn",
    "nms_bev",
    "points_in_boxes",
    "segment_plan",
    "segment_reduce",
    "sparse_conv",
    "sparse_strided",
    "sparse_submanifold",
    "voxel_gather",
    "voxelize",
    "voxelize_mean",
    "window_attention",
]
