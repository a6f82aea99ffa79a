"""Pure-torch twins of the compiled kernels.

They run on any device, differentiate through plain autograd, and are what the kernels are tested against.
"""

from fusion3d.ops.reference.pooling import bev_pool, bev_pool_pixel
from fusion3d.ops.reference.boxes import box_iou_bev, nms_bev
from fusion3d.ops.reference.segments import segment_plan, segment_reduce

__all__ = ["bev_pool", "bev_pool_pixel", "box_iou_bev", "nms_bev", "segment_plan", "segment_reduce"]
