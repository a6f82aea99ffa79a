"""Points of a cloud in the images of their sample, and the depth that they give to image cells.

Letters: B samples, M images (packed), P points, G groups of them, K images of a sample at most, H W rows and columns of
cells.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fusion3d.geometry.rays import image_from_ego, project
from fusion3d.types import Cameras, PointCloud

NEAREST = 0.1  # [m] what is closer to the lens than this is not seen


def seen_points(cameras: Cameras, cloud: PointCloud) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The points of every sample in its first image, then in its second, and so on.

    Yields:
        image [P] int64, u and v [P] [px] and depth [P] [m]; depth is NaN where the sample has no further image or the
        point is not in front of the lens. How many images a sample has takes one host read on CUDA.
    """
    # Each number of the matrices side by side for all points: what is read together then lies together.
    matrix_12M = image_from_ego(cameras.image_from_cam, cameras.ego_from_cam).flatten(1).T.contiguous()
    sample_M = cameras.batch_index
    rank_M = (sample_M[:, None] == sample_M).tril(-1).sum(1)
    most = int(rank_M.max()) + 1 if len(rank_M) else 0
    table_KB = torch.full((most, len(cloud.present)), -1, device=sample_M.device)
    table_KB[rank_M, sample_M] = torch.arange(len(sample_M), device=sample_M.device)
    xyz_P3 = cloud.points[:, :3].float()
    for image_B in table_KB:
        image_P = image_B[cloud.batch_index]
        matrix_12P = matrix_12M.index_select(1, image_P.clamp(min=0))
        u_P, v_P, depth_P = project(matrix_12P.view(3, 4, -1).permute(2, 0, 1), xyz_P3)
        yield image_P, u_P, v_P, torch.where((image_P >= 0) & (depth_P > NEAREST), depth_P, torch.nan)


@torch.no_grad()
def nearest_depth(
    cameras: Cameras, cloud: PointCloud, group_P: Tensor, num_groups: int, shape: tuple[int, int], cell: float
) -> Tensor:
    """The depth of the nearest point of each group in every cell of every image.

    Args:
        cameras: M images.
        cloud: points of the same batch; they are not changed.
        group_P: [P] int64 in [0, num_groups).
        num_groups: G.
        shape: rows and columns of cells.
        cell: side of a cell [px].

    Returns:
        [M, G, H, W] float32 [m], infinity where no point falls.
    """
    rows, cols = shape
    size = len(cameras.batch_index) * num_groups * rows * cols
    nearest = torch.full((size,), torch.inf, device=cloud.points.device)
    spot_P = torch.arange(len(cloud.points), device=nearest.device) % max(size, 1)
    for image_P, u_P, v_P, depth_P in seen_points(cameras, cloud):
        col, row = torch.floor((u_P + 0.5) / cell), torch.floor((v_P + 0.5) / cell)
        inside = (depth_P > 0) & (col >= 0) & (col < cols) & (row >= 0) & (row < rows)
        # In whole numbers, since floats end at 2^24. A point that is not seen changes nothing; it may go anywhere.
        layer_P = image_P * num_groups + group_P
        index = (layer_P * rows + row.nan_to_num(0).long()) * cols + col.nan_to_num(0).long()
        index = torch.where(inside, index, spot_P)
        nearest.scatter_reduce_(0, index, torch.where(inside, depth_P, torch.inf), "amin")
    return nearest.view(-1, num_groups, rows, cols)
