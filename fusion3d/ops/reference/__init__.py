"""Pure-torch twins of the compiled kernels.

They run on any device, differentiate through plain autograd, and are what the kernels are tested against.
"""

from fusion3d.ops.reference.pooling import bev_pool
from fusion3d.ops.reference.boxes import box_iou_bev, nms_bev
from fusion3d.ops.reference.segments import segment_plan, segment_reduce
from fusion3d.ops.reference.sparse import sparse_conv, sparse_strided, sparse_submanifold

__all__ = [
    "bev_pool",
    "box_iou_bev",
    "nms_bev",
    "segment_plan",
    "segment_reduce",
    "sparse_conv",
    "sparse_strided",
    "sparse_submanifold",
]
