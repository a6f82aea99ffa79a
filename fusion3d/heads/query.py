"""Detection by queries: a set of boxes, each found by a query that reads the map (TransFusion, Bai et al., 2022).

Queries start from the highest peaks of a heatmap, with what the map holds there and an embedding of the peak's class.
In each layer they attend to each other and to the map, and say their boxes, which training matches one to one with
those that are there; so nothing need be suppressed. As published but for:
- The map is read by deformable attention (Zhu et al., 2021) at points that are said in the frame of the box, instead of
  all over under a gaussian mask: the box of the layer before, or at first one of the usual size of the class.
- It is the fused map alone. TransFusion reads LiDAR, and then images.
- Sizes and heights are relative to the usual ones of the query's class, and yaw's loss knows symmetric classes.
- The score is the geometric mean of the heatmap's and the query's, which orders boxes as the published product does but
  stays a probability; thresholds mean the same as for head center.
- There is no dropout.
Letters: B samples, Q queries, K boxes, M matched pairs, L layers, C channels, N classes or map cells, H heads, P points
of a head, Y X grid cells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fusion3d.config import DetectionConfig
from fusion3d.counts import divisor
from fusion3d.encoders.blocks import conv_block
from fusion3d.errors import ConfigError
from fusion3d.heads.decoder import NUM_HEADS, DecoderLayer, Window
from fusion3d.heads.detection import (
    BOX_CHANNELS,
    box_losses,
    box_sizes,
    heatmap_loss,
    in_float32,
    make_boxes,
    no_losses,
    place_boxes,
    prior_bias_,
    top_peaks,
    weigh,
)
from fusion3d.heads.matching import Pairs, matching_cost, pair_up, sigmoid_focal_loss
from fusion3d.heads.selection import Selection
from fusion3d.heads.targets import DetectionTargets, corners, describe_boxes, encode_boxes, usual_sizes
from fusion3d.types import DETECTION_CLASSES, Batch, BEVGrid, Boxes

_PLACE = ("offset", "height", "size", "yaw")  # the parts that say where a box is
_SMALL = ("pedestrian", "traffic_cone")  # they stand so close that each cell may be a peak of its own


@dataclass(frozen=True)
class QueryBoxes:
    """What the queries say in every layer; the targets of the same names say what each means."""

    heatmap: Tensor  # [B, 10, Y, X] logits
    label: Tensor  # [B, Q] int64, class that a query starts with, and that sizes and heights are relative to
    cell: Tensor  # [B, Q] int64, where it starts: iy * X + ix
    logits: Tensor  # [L, B, Q, 10]
    offset: Tensor  # [L, B, Q, 2] from the middle of that cell [cells]
    height: Tensor  # [L, B, Q, 1] [m]
    size: Tensor  # [L, B, Q, 3]
    yaw: Tensor  # [L, B, Q, 2] sin, cos
    velocity: Tensor  # [L, B, Q, 2] [m/s]
    attribute: Tensor  # [L, B, Q, 8] logits


class QueryHead(nn.Module):
    """BEV map to boxes of queries; ``losses`` and ``decode`` say what they mean.

    Raises:
        ConfigError: settings that belong to the other head, or a width that the attention heads cannot share.
    """

    usual_N3: Tensor
    small_N: Tensor

    def __init__(self, config: DetectionConfig, inputs: int, grid: BEVGrid) -> None:
        super().__init__()
        if config.tasks != "one":
            raise ConfigError(
                f"detection.tasks: found {config.tasks!r} with detection.head 'query', which has no groups of classes; "
                "expected 'one', or head 'center'"
            )
        channels = config.channels
        if channels % NUM_HEADS:
            raise ConfigError(
                f"detection.channels: found {channels} with detection.head 'query'; expected a multiple of "
                f"{NUM_HEADS}, its attention heads"
            )
        self.config = config
        self.grid = grid
        self.select = Selection(config, usual=None)
        self.shared = conv_block(inputs, channels, norm="group")
        self.heatmap = nn.Sequential(
            conv_block(channels, channels, norm="group"),
            nn.Conv2d(channels, len(DETECTION_CLASSES), 1),
        )
        prior_bias_(self.heatmap[-1])
        self.of_class = nn.Embedding(len(DETECTION_CLASSES), channels)
        self.register_buffer("usual_N3", usual_sizes(), persistent=False)
        self.register_buffer("small_N", torch.tensor([n in _SMALL for n in DETECTION_CLASSES]), persistent=False)
        self.layers = nn.ModuleList(DecoderLayer(channels, config.query.points) for _ in range(config.query.layers))

    def forward(self, bev_BCYX: Tensor, batch: Batch) -> QueryBoxes:
        """What every query says in every layer; positions are in float32 under autocast too."""
        shared_BCYX = self.shared(bev_BCYX)
        heatmap_BNYX = self.heatmap(shared_BCYX)
        peaks = top_peaks(heatmap_BNYX.detach().float(), self.config.query.count, self.small_N)
        sample_B1 = torch.arange(len(bev_BCYX), device=bev_BCYX.device)[:, None]
        map_BNC = shared_BCYX.flatten(2).transpose(1, 2)
        query_BQC = map_BNC[sample_B1, peaks.cell] + self.of_class(peaks.label)

        start_BQ2, usual_BQ3 = self._middle(peaks.cell), self.usual_N3[peaks.label]
        # The way that the object faces is not known yet: a square of its length, along the grid.
        window = Window(start_BQ2, usual_BQ3[..., :1].expand(-1, -1, 2), torch.zeros_like(start_BQ2[..., 0]))
        layers = []
        for layer in self.layers:
            query_BQC, said = layer(query_BQC, map_BNC, window, self.grid)
            said["offset"] = said["offset"] + (window.center - start_BQ2)
            layers.append(said)
            center_BQ2 = start_BQ2 + said["offset"].detach()
            size_BQ3 = box_sizes(said["size"].detach(), usual_BQ3)
            window = Window(center_BQ2, size_BQ3[..., :2], torch.atan2(*said["yaw"].detach().unbind(-1)))
        parts = {name: torch.stack([said[name] for said in layers]) for name in layers[0]}
        return QueryBoxes(heatmap_BNYX, peaks.label, peaks.cell, **parts)

    def targets(self, batch: Batch) -> DetectionTargets | None:
        """What the head should say of a batch; None where nothing is annotated."""
        return None if batch.boxes is None else encode_boxes(batch.boxes, self.grid, self.config.heatmap_radius)

    def losses(self, said: QueryBoxes, batch: Batch, targets: DetectionTargets | None = None) -> dict[str, Tensor]:
        """Weighted loss terms over the annotated samples; zeros, still in the graph, where there are none.

        Terms of the queries are means over the layers.

        Args:
            said: of ``forward``.
            batch: with annotations.
            targets: of ``targets(batch)``, where they are known already.
        """
        said = in_float32(said)
        targets = self.targets(batch) if targets is None else targets
        if targets is None:
            return no_losses(said, ("heatmap", "class"))
        pairs = self.match(said, targets)
        said_M = {name: getattr(said, name)[pairs.layer, pairs.sample, pairs.query] for name in BOX_CHANNELS}
        boxes, label_M, cell_M = (
            targets.boxes[pairs.box],
            *(x[pairs.sample, pairs.query] for x in (said.label, said.cell)),
        )
        wanted = replace(targets, **describe_boxes(boxes, self._middle(cell_M), label_M, self.grid))
        there_LBQN = torch.zeros_like(said.logits)
        there_LBQN[pairs.layer, pairs.sample, pairs.query, boxes.label] = 1
        class_LBQN = sigmoid_focal_loss(said.logits, there_LBQN) * batch.annotated[:, None, None]
        scores = {
            "heatmap": heatmap_loss(said.heatmap, targets, batch.annotated),
            "class": class_LBQN.sum() / divisor("class", label_M.new_tensor(len(boxes))),
        }
        return weigh(scores, box_losses(said_M, wanted), self.config)

    @torch.no_grad()
    def match(self, said: QueryBoxes, targets: DetectionTargets) -> Pairs:
        """The cheapest one-to-one matching of queries and boxes, sample by sample and layer by layer."""
        parts = {name: getattr(said, name) for name in _PLACE}
        center, size, yaw = place_boxes(parts, self._middle(said.cell), said.label, self.grid)
        counts = torch.bincount(targets.sample, minlength=len(said.cell)).tolist()
        rows, costs = torch.arange(len(targets.cell), device=targets.cell.device).split(counts), []
        for sample, row_K in enumerate(rows):
            boxes = Boxes.of(center[:, sample].flatten(0, 1), size[:, sample].flatten(0, 1), yaw[:, sample].flatten())
            logits_LQN = said.logits[:, sample]
            cost = matching_cost(logits_LQN.flatten(0, 1), boxes, targets.boxes[row_K], self.grid)
            costs.append(cost.view(*logits_LQN.shape[:2], len(row_K)))
        return pair_up(costs)

    @torch.no_grad()
    def decode(self, said: QueryBoxes) -> tuple[Boxes, ...]:
        """The boxes of every sample, best first, in the frame of the batch; attributes fit their class."""
        said = in_float32(said)
        heatmap_BNS = said.heatmap.flatten(2).sigmoid()
        sample_B1 = torch.arange(len(said.cell), device=said.cell.device)[:, None]
        peak_BQ = heatmap_BNS[sample_B1, said.label, said.cell]
        own_BQ = said.logits[-1].gather(2, said.label[..., None])[..., 0].sigmoid()
        parts = {name: getattr(said, name)[-1].flatten(0, 1) for name in BOX_CHANNELS}
        score = (peak_BQ * own_BQ).sqrt().flatten()
        boxes = make_boxes(parts, self._middle(said.cell).flatten(0, 1), said.label.flatten(), score, self.grid)
        return self.select(boxes, len(said.cell))

    def _middle(self, cell: Tensor) -> Tensor:
        """[...] cells to [..., 2] x, y of their middles [cells]."""
        return corners(cell, self.grid) + 0.5
