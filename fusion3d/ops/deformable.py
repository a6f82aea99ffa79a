"""Multi-scale deformable attention: each query reads a few points of a map, near where it is.

Letters: N maps, S pixels of all levels, H heads, D channels of a head, Q queries, L levels, P points, R 1 or L, A
anchors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fusion3d.ops import library, reference
from fusion3d.ops.checks import FLOATS, check, in_autocast, shape_of

MAX_LEVELS = 16  # of a map; they travel to the kernel by value


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    map_of_query: Tensor | None = None,
) -> Tensor:
    """Multi-scale deformable attention, with the softmax and the arithmetic of locations inside.

    For query q, head h: the sum over levels l and points p of ``softmax(logits[q, h])[l, p]`` times level l of the
    query's map, read bilinearly at ``reference_points[q] + offsets[q, h, l, p] / (columns, rows)``, where 0 and 1 are
    the outer edges of the level's first and last pixel (``align_corners=False``). What lies outside of a level is zero.

    One operation serves three uses; no query is ever padded:

    - *Self-attention in BEV*: N maps with Q queries each: leading dimensions [N, Q], no ``map_of_query``.
    - *Cross-attention to cameras*: each camera is a map, and only the queries that it sees are given, of all cameras in
      one row: leading dimension [Q], and ``map_of_query`` names the camera of each. Heights of a pillar are anchors.
    - *Fusion of sensors*: the sensors' maps are levels, of any sizes; an absent sensor is a level fewer.

    A map is ``[S, H, D]``: all heads of a pixel side by side, as a linear layer leaves them, and levels one after the
    other, so that no level needs a tensor of its own. Levels' sizes are plain numbers: nothing is read from the device.

    Locations, softmax and sums are in float32 (float64 for float64), whatever the dtypes. Results and gradients are
    the same to the bit in every run and for any number of threads. Under autocast value is cast to its type; offsets
    and logits are read in the type that they have, reference points never below float32.

    Args:
        value: [N, S, H, D] float, S the sum of rows * columns over the levels.
        spatial_shapes: (rows, columns) of each level, L of them, at most 16.
        reference_points: [..., 2], [..., R, 2] or [..., R, A, 2] float32 or float64: x, y in [0, 1] of a level's
            extent; one for all levels or one for each; of A anchors (A divides P), point p goes out from anchor p % A.
        offsets: [..., H, L, P, 2] float: x, y in pixels of the level.
        logits: [..., H, L, P] float.
        map_of_query: [Q] int32 or int64 in [0, N), in any order, or -1 for a query that reads nothing; ``...`` is then
            [Q]. Without it, ``...`` is [N, Q], or [Q] where there is one map.

    Returns:
        [..., H * D] in the dtype of value. Differentiable with respect to value, reference points, offsets and logits.

    Raises:
        ValueError: wrong shape, dtype or device, or (on the CPU, where it is cheap) a map out of range.

    Source: Zhu et al., "Deformable DETR" (2021); anchors and seen queries as in Li et al., "BEVFormer" (2022).
    """
    packed = offsets.ndim == 5
    check(value, "value", "NSHD", FLOATS)
    check(offsets, "offsets", "QHLP2" if packed else "NQHLP2", FLOATS)
    check(logits, "logits", "QHLP" if packed else "NQHLP", FLOATS)
    lead = logits.shape[:-3]
    _check_sizes(value, spatial_shapes, offsets, logits)
    _check_queries(value, lead, map_of_query)
    points_QRA2 = _anchors(reference_points, logits)
    for name, tensor in (("reference_points", points_QRA2), ("offsets", offsets), ("logits", logits)):
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device} and value on {value.device}; expected one device")
    (value,) = in_autocast(value)
    flat = [int(size) for shape in spatial_shapes for size in shape]
    args = (points_QRA2, offsets.flatten(0, len(lead) - 1), logits.flatten(0, len(lead) - 1))
    if map_of_query is not None:
        map_of_query = map_of_query.to(torch.int32).contiguous()
    if library.has_kernel(value.device):
        ready = [arg.contiguous() for arg in args]
        out = torch.ops.fusion3d.ms_deform_attn(value.contiguous(), flat, *ready, map_of_query)
    else:
        out = reference.ms_deform_attn(value, flat, *args, map_of_query)
    return out.reshape(*lead, value.shape[2] * value.shape[3])


def _check_sizes(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], offsets: Tensor, logits: Tensor) -> None:
    """Levels make up the map; heads, levels and points are the same everywhere."""
    num_heads, num_levels, num_points = logits.shape[-3:]
    if any(len(shape) != 2 or min(shape) < 1 for shape in spatial_shapes):
        raise ValueError(
            f"spatial_shapes: found {list(spatial_shapes)}; expected (rows, columns) of each level, above 0"
        )
    if len(spatial_shapes) != num_levels or not 1 <= num_levels <= MAX_LEVELS:
        raise ValueError(
            f"spatial_shapes has {len(spatial_shapes)} levels and logits {num_levels}; "
            f"expected as many, at most {MAX_LEVELS}"
        )
    area = sum(rows * cols for rows, cols in spatial_shapes)
    if value.shape[1] != area:
        raise ValueError(f"value has shape {shape_of(value)}; expected [N, {area}, H, D] for levels of these sizes")
    if num_heads != value.shape[2] or num_points < 1:
        raise ValueError(
            f"logits has shape {shape_of(logits)}; expected [..., {value.shape[2]}, {num_levels}, P], P at least 1"
        )
    if offsets.shape != (*logits.shape, 2):
        raise ValueError(f"offsets has shape {shape_of(offsets)}; expected {[*logits.shape, 2]} as logits")


def _check_queries(value: Tensor, lead: torch.Size, map_of_query: Tensor | None) -> None:
    """Every query has its map."""
    num_maps = value.shape[0]
    if map_of_query is None:
        if lead[0] != num_maps if len(lead) == 2 else num_maps != 1:
            raise ValueError(
                f"logits has leading dimensions {list(lead)} and value {num_maps} maps; expected [{num_maps}, Q], "
                "or queries in one row with map_of_query"
            )
        return
    check(map_of_query, "map_of_query", "Q", (torch.int32, torch.int64))
    if len(lead) != 1 or map_of_query.shape[0] != lead[0]:
        raise ValueError(
            f"map_of_query has shape {shape_of(map_of_query)} and logits leading dimensions {list(lead)}; "
            "expected [Q] both"
        )
    if map_of_query.device != value.device:
        raise ValueError(f"map_of_query is on {map_of_query.device} and value on {value.device}; expected one device")
    if map_of_query.device.type == "cpu" and not torch.compiler.is_compiling() and len(map_of_query):
        low, high = int(map_of_query.min()), int(map_of_query.max())
        if low < -1 or high >= num_maps:
            raise ValueError(f"map_of_query: found values in [{low}, {high}]; expected -1 or less than {num_maps}")


def _anchors(points: Tensor, logits: Tensor) -> Tensor:
    """[Q, R, A, 2] from what may lack R and A."""
    *lead, _, num_levels, num_points = logits.shape
    if points.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"reference_points is {points.dtype}; expected torch.float32 or torch.float64: coordinates are exact"
        )
    missing = len(lead) + 3 - points.ndim
    full = points
    if missing in (1, 2):  # one anchor; where both are missing, one point for all levels too
        full = points.unsqueeze(-2) if missing == 1 else points[..., None, None, :]
    if (
        not 0 <= missing <= 2
        or list(full.shape[: len(lead)]) != lead
        or full.shape[-3] not in (1, num_levels)
        or full.shape[-2] < 1
        or num_points % full.shape[-2]
        or full.shape[-1] != 2
    ):
        raise ValueError(
            f"reference_points has shape {shape_of(points)}; expected {lead} and then [2], [1 or {num_levels}, 2] or "
            f"[1 or {num_levels}, a divisor of {num_points}, 2]"
        )
    return full.flatten(0, len(lead) - 1)


def _register() -> None:
    """Tell torch the output shapes and the gradient of each operation."""

    @torch.library.register_fake("fusion3d::ms_deform_attn")
    def _(value: Tensor, spatial_shapes, points: Tensor, offsets: Tensor, logits: Tensor, map_of_query) -> Tensor:
        return value.new_empty(logits.shape[0], logits.shape[1], value.shape[3])

    @torch.library.register_fake("fusion3d::ms_deform_attn_backward")
    def _(grad, value: Tensor, spatial_shapes, points: Tensor, offsets: Tensor, logits: Tensor, map_of_query):
        return tuple(tensor.new_empty(tensor.shape) for tensor in (value, points, offsets, logits))

    def keep(ctx, inputs, output: Tensor) -> None:
        value, ctx.spatial_shapes, points, offsets, logits, map_of_query = inputs
        ctx.save_for_backward(value, points, offsets, logits, map_of_query)

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, points, offsets, logits, map_of_query = ctx.saved_tensors
        shapes = ctx.spatial_shapes
        grads = torch.ops.fusion3d.ms_deform_attn_backward(
            grad.contiguous(), value, shapes, points, offsets, logits, map_of_query
        )
        return grads[0], None, *grads[1:], None

    torch.library.register_autograd("fusion3d::ms_deform_attn", backward, setup_context=keep)
    library.not_twice_differentiable("ms_deform_attn_backward")


if not library.PROBLEM:
    _register()
