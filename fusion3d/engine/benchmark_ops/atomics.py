"""BEV pooling by index lists and atomic additions, as detectors' CUDA extensions do it: a peer, on CUDA alone.

The frustum of features is not written out, and nothing is sorted: a thread for each listed sample and channel adds to
the cell's row, and going back to the sample's depth and the pixel's row. It is compiled when it is first called.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

SOURCE = """
extern "C" __global__ void pool(
    const float* depth, const float* feat, const int* sample, const int* pixel, const int* cell, int samples,
    int channels, float* out) {
  const long long i = blockIdx.x * 256ll + threadIdx.x, s = i / channels, c = i % channels;
  if (s >= samples) return;
  atomicAdd(out + cell[s] * 1ll * channels + c, depth[sample[s]] * feat[pixel[s] * 1ll * channels + c]);
}

extern "C" __global__ void pool_backward(
    const float* grad, const float* depth, const float* feat, const int* sample, const int* pixel, const int* cell,
    int samples, int channels, float* grad_depth, float* grad_feat) {
  const long long i = blockIdx.x * 256ll + threadIdx.x, s = i / channels, c = i % channels;
  if (s >= samples) return;
  const float g = grad[cell[s] * 1ll * channels + c];
  atomicAdd(grad_depth + sample[s], g * feat[pixel[s] * 1ll * channels + c]);
  atomicAdd(grad_feat + pixel[s] * 1ll * channels + c, g * depth[sample[s]]);
}
"""
THREADS = 256  # of a block, as the source has it


@cache
def _kernel(name: str) -> Callable[..., Any]:
    compiler = getattr(torch.cuda, "_compile_kernel", None)  # by NVRTC, which torch brings; since 2.9
    if compiler is None:
        raise ImportError("this torch compiles no CUDA source", name="torch.cuda._compile_kernel")
    return compiler(SOURCE, name)


def _launch(name: str, samples: int, channels: int, arguments: list[Tensor | int]) -> None:
    _kernel(name)(grid=(-(-samples * channels // THREADS), 1, 1), block=(THREADS, 1, 1), args=arguments)


def pool(depth_MDHW: Tensor, feat_MHWC: Tensor, lists: tuple[Tensor, Tensor, Tensor], num_cells: int) -> Tensor:
    """[cells, C] float32; ``lists`` are int32: sample, pixel and cell of every sample inside the grid."""
    samples, channels = lists[0].shape[0], feat_MHWC.shape[3]
    out = feat_MHWC.new_zeros(num_cells, channels)
    _launch("pool", samples, channels, [depth_MDHW, feat_MHWC, *lists, samples, channels, out])
    return out


def pool_backward(
    grad: Tensor, depth_MDHW: Tensor, feat_MHWC: Tensor, lists: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradients to depth and features."""
    samples, channels = lists[0].shape[0], feat_MHWC.shape[3]
    grads = torch.zeros_like(depth_MDHW), torch.zeros_like(feat_MHWC)
    _launch("pool_backward", samples, channels, [grad, depth_MDHW, feat_MHWC, *lists, samples, channels, *grads])
    return grads
