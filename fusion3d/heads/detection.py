"""What the detection heads share: the parts of a box, the peaks of a heatmap, and their losses.

The heads themselves stand in ``center.py`` and ``query.py``. Both say where a box is from an anchor, a spot of the grid
with a class; sizes and heights are relative to the usual ones of that class, so that no regression need first learn
what a bus is.
Letters: B samples, K boxes or peaks, N classes, G groups of classes, Y X grid cells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.config import DetectionConfig
from fusion3d.counts import divisor
from fusion3d.heads.targets import DetectionTargets, allowed_attributes, usual_sizes
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES, BEVGrid, Boxes

BOX_CHANNELS = {"offset": 2, "height": 1, "size": 3, "yaw": 2, "velocity": 2, "attribute": len(ATTRIBUTES)}
_PRIOR_LOGIT = -2.19  # of 0.1
_MAX_LOG_SIZE = 2.5  # no box is more than e^2.5 times the usual size of its class

Output = TypeVar("Output")


@dataclass(frozen=True)
class Peaks:
    """The best peaks of every sample's heatmap, best first; equal ones by class, then by cell."""

    score: Tensor  # [B, K] in [0, 1]; 0 where there are not as many peaks
    label: Tensor  # [B, K] int64
    cell: Tensor  # [B, K] int64, iy * X + ix


def prior_bias_(layer: nn.Module) -> None:
    """Let the last layer of a heatmap start at 0.1 everywhere: objects are rare, and the first steps stay calm."""
    nn.init.constant_(layer.bias, _PRIOR_LOGIT)  # type: ignore[arg-type]


def in_float32(output: Output) -> Output:
    """A head's output with every float tensor in float32."""
    tensors = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}  # type: ignore[arg-type]
    rounded = {name: tensor.float() for name, tensor in tensors.items() if tensor.is_floating_point()}
    return dataclasses.replace(output, **rounded)  # type: ignore[type-var]


def top_peaks(logits_BNYX: Tensor, count: int, anywhere_N: Tensor | None = None) -> Peaks:
    """The cells that no neighbour among the eight surpasses.

    Args:
        logits_BNYX: float32 heatmaps of DETECTION_CLASSES.
        count: K, or less where there are not as many cells.
        anywhere_N: bool, classes of which every cell counts as a peak.
    """
    is_peak = logits_BNYX == F.max_pool2d(logits_BNYX, 3, stride=1, padding=1)
    if anywhere_N is not None:
        is_peak |= anywhere_N[:, None, None]
    score = torch.where(is_peak, logits_BNYX.sigmoid(), 0).flatten(1)
    # As integers, scores that are not negative are in the same order; the index behind them makes every key unique.
    last, area = score.shape[1] - 1, logits_BNYX.shape[2] * logits_BNYX.shape[3]
    key = (score.view(torch.int32).long() << 32) + last - torch.arange(last + 1, device=score.device)
    index = last - (key.topk(min(count, last + 1)).values & 0xFFFFFFFF)
    return Peaks(score.gather(1, index), index // area, index % area)


def box_sizes(said: Tensor, usual: Tensor) -> Tensor:
    """[..., 3] logarithms of sizes over the usual ones [m] to sizes [m]."""
    return usual * said.clamp(-_MAX_LOG_SIZE, _MAX_LOG_SIZE).exp()


def place_boxes(
    said: Mapping[str, Tensor], anchor_K2: Tensor, label_K: Tensor, grid: BEVGrid
) -> tuple[Tensor, Tensor, Tensor]:
    """Centre [..., 3] [m], size [..., 3] [m] and yaw [...] of boxes.

    Args:
        said: parts of a box, [..., c] each, as DetectionTargets explains them.
        anchor_K2: [..., 2] x, y of what offsets are said from [cells].
        label_K: [...] int64, class that sizes and heights are said relative to.
        grid: where cells are.
    """
    usual = usual_sizes(label_K.device)[label_K]
    center = torch.cat([grid.xy_of(anchor_K2 + said["offset"]), said["height"] + usual[..., 2:] / 2], dim=-1)
    return center, box_sizes(said["size"], usual), torch.atan2(*said["yaw"].unbind(-1))


def make_boxes(said: Mapping[str, Tensor], anchor_K2: Tensor, label_K: Tensor, score_K: Tensor, grid: BEVGrid) -> Boxes:
    """K boxes from their parts, [K, c] each; attributes fit the class. The arguments are those of ``place_boxes``."""
    center, size, yaw = place_boxes(said, anchor_K2, label_K, grid)
    allowed = allowed_attributes(label_K.device)[label_K]
    attribute = said["attribute"].masked_fill(~allowed, -torch.inf).argmax(1)
    return Boxes.of(
        center=center,
        size=size,
        yaw=yaw,
        velocity=said["velocity"],
        label=label_K,
        score=score_K,
        attribute=torch.where(allowed.any(1), attribute, -1),
    )


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Gaussian focal loss (CornerNet, Law and Deng, 2018), element by element.

    Every element is pushed down with weight (1 - target)^4 p^2; where the target is 1, up with (1 - p)^2. Written with
    logits, so nothing is clamped.
    """
    p, minus_log_not_p = logits.sigmoid(), F.softplus(logits)
    down = (1 - target) ** 4 * p**2 * minus_log_not_p
    up = (1 - p) ** 2 * (minus_log_not_p - logits)
    return torch.where(target == 1, up, down)


def heatmap_loss(
    logits_BNYX: Tensor,
    targets: DetectionTargets,
    counts_B: Tensor,
    group_NG: Tensor | None = None,
    name: str = "heatmap",
) -> Tensor:
    """Focal loss of the N classes' heatmaps, per object. Only the samples that count do, with their objects.

    Args:
        logits_BNYX: float32.
        targets: of the same grid.
        counts_B: bool.
        group_NG: float, 1 where a class is of a group: then it is the sum over the groups, per object of each. None:
            all are of one.
        name: of the divisor.
    """
    loss_BN = focal_loss(logits_BNYX, targets.heatmap).flatten(2).sum(2)
    group_NG = loss_BN.new_ones(loss_BN.shape[1], 1) if group_NG is None else group_NG
    loss_G = ((loss_BN * counts_B[:, None]).sum(0)[:, None] * group_NG).sum(0)
    objects_G = (counts_B[targets.sample, None] * group_NG[targets.label]).sum(0)
    return (loss_G / divisor(name, objects_G)).sum()


def box_losses(
    said: Mapping[str, Tensor], targets: DetectionTargets, group_NG: Tensor | None = None
) -> dict[str, Tensor]:
    """L1 of what is said of boxes, and cross-entropy of their attributes; each a mean over the boxes it is known of.

    A barrier looks the same from behind and a cone from everywhere, and nuScenes scores them so: the barrier's yaw is
    compared up to half a turn and the cone's not at all.

    Args:
        said: parts of the boxes of ``targets``, [K, c] each.
        targets: K boxes.
        group_NG: as in ``heatmap_loss``; the means are then taken group by group, and summed.
    """
    label_K = targets.label
    group_KG = said["offset"].new_ones(len(label_K), 1) if group_NG is None else group_NG[label_K]

    def mean(name: str, loss_K: Tensor, known_K: Tensor) -> Tensor:
        counts_KG = group_KG * known_K[:, None]
        return ((loss_K[:, None] * counts_KG).sum(0) / divisor(name, counts_KG.sum(0))).sum()

    all_K = torch.ones_like(label_K, dtype=torch.bool)
    terms = {
        name: mean(name, (said[name] - getattr(targets, name)).abs().sum(1), all_K)
        for name in ("offset", "height", "size")
    }
    barrier_K, cone_K = (label_K == DETECTION_CLASSES.index(name) for name in ("barrier", "traffic_cone"))
    straight_K, turned_K = ((said["yaw"] - sign * targets.yaw).abs().sum(1) for sign in (1, -1))
    terms["yaw"] = mean("yaw", torch.where(barrier_K, torch.minimum(straight_K, turned_K), straight_K), ~cone_K)
    velocity_K = (said["velocity"] - targets.velocity.nan_to_num()).abs().sum(1)
    terms["velocity"] = mean("velocity", velocity_K, targets.velocity.isfinite().all(1))
    allowed = allowed_attributes(label_K.device)[label_K]
    fits_K = (targets.attribute >= 0) & allowed.gather(1, targets.attribute.clamp(min=0)[:, None])[:, 0]
    logits = said["attribute"].masked_fill(~allowed & fits_K[:, None], -1e4)
    attribute_K = F.cross_entropy(logits, targets.attribute.clamp(min=0), reduction="none")
    terms["attribute"] = mean("attribute", attribute_K, fits_K)
    return terms


def weigh(scores: Mapping[str, Tensor], boxes: Mapping[str, Tensor], config: DetectionConfig) -> dict[str, Tensor]:
    """Terms about classes and terms about boxes, as the configuration weighs them."""
    weights = {**config.code_weights, "velocity": config.velocity_weight}
    regression = {name: value * weights.get(name, 1.0) * config.regression_weight for name, value in boxes.items()}
    return {name: value * config.loss_weight for name, value in (*scores.items(), *regression.items())}


def no_losses(output: object, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Zeros by name, with every float tensor of a head's output still in the graph."""
    tensors = [getattr(output, f.name) for f in dataclasses.fields(output)]  # type: ignore[arg-type]
    zero = 0.0 * torch.stack([tensor.sum() for tensor in tensors if tensor.is_floating_point()]).sum()
    return dict.fromkeys((*names, *BOX_CHANNELS), zero)
