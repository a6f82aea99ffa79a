"""Planning by choice: typical paths are laid over the map, refined by what lies under them, and scored.

Letters: B samples, K paths, T steps, S scores, C channels, N map tokens, L passes, Y X grid cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.config import PlanningConfig
from fusion3d.counts import divisor
from fusion3d.errors import ConfigError
from fusion3d.heads.planning.choice import choose, crashes, expected_cost
from fusion3d.heads.planning.ego import EgoQuery, ReadLayer
from fusion3d.heads.planning.frame import EgoFrame
from fusion3d.heads.planning.read import PathReader
from fusion3d.heads.planning.targets import LEARNED, driven_path, score_targets
from fusion3d.types import PLAN_SCORES, Batch, BEVGrid, Boxes, Forecast, Occupancy, PlanModes, Trajectory

_PASSES = 2
USUAL_PRICES = dict(zip(PLAN_SCORES, (40.0, 5.0, 0.0, 0.0, 0.0, 0.0), strict=True))  # [m] of being bad at it for sure


@dataclass(frozen=True)
class ScoredPaths:
    """What the planner says of every path."""

    path: Tensor  # [L, B, K, T, 3] x, y, yaw of the rear axle as seen from the vehicle, after every pass
    imitation: Tensor  # [L, B, K] logits: does the human drive so?
    score: Tensor  # [B, K, S] logits by targets.LEARNED, of the last paths
    cost: Tensor  # [B, K, 2] occupied and undrivable, in [0, 1]; NaN without an occupancy head
    status: Tensor | None  # [B, 2] predicted speed and yaw rate, to order one


class AnchorPlanner(nn.Module):
    """BEV map, command and anchors to paths, how likely each is driven, and what it is worth.

    Anchors are k-means paths of the training split (SparseDrive, Sun et al., 2024; DiffusionDrive, Liao et al., 2025),
    a buffer of the checkpoint. Each pass reads the map along the paths, where nine points of the vehicle would be at
    every step; the paths attend to each other and to the query of the vehicle, which has read the whole map; and each
    is moved. Scores are of the paths as they end (Hydra-MDP, Li et al., 2024). Unlike there: one set of anchors for all
    commands; what is refined is a path's poses themselves; the map is read at points instead of by attention.

    The vehicle's frame has all that BEV augmentation did to its world undone: what is planned goes with the world,
    whatever is done to it.

    Args:
        config: of the planner.
        inputs: channels of the BEV map.
        grid: of the BEV map.
        map_grid: that maps are cut in.
        occupancy: is there an occupancy to read?
    """

    anchors: Tensor  # [K, T, 3]

    def __init__(
        self, config: PlanningConfig, inputs: int, grid: BEVGrid, map_grid: BEVGrid, occupancy: bool = False
    ) -> None:
        super().__init__()
        self.config, self.map_grid, channels = config, map_grid, config.channels
        self.ego = EgoQuery(config, inputs, grid)
        self.reader = PathReader(channels, inputs, grid, config.steps, occupancy)
        self.layers = nn.ModuleList(ReadLayer(channels) for _ in range(_PASSES))
        self.moves = nn.ModuleList(_said(channels, 3 * config.steps) for _ in range(_PASSES))
        self.imitation = nn.ModuleList(_said(channels, 1) for _ in range(_PASSES))
        self.scores = _said(channels, len(LEARNED))
        self.register_buffer("anchors", torch.full((config.anchors.count, config.steps, 3), torch.nan))
        self._ready = False

    @torch.no_grad()
    def set_anchors(self, anchors_KT3: Tensor) -> None:
        """Take anchors, [K, T, 3] x, y, yaw in ego [m, rad]; ValueError for others than finite ones of this shape."""
        if anchors_KT3.shape != self.anchors.shape or not anchors_KT3.isfinite().all():
            raise ValueError(
                f"anchors have shape {list(anchors_KT3.shape)}; expected {list(self.anchors.shape)}, all of them finite"
            )
        self.anchors.copy_(anchors_KT3)

    def forward(self, bev_BCYX: Tensor, batch: Batch, occupancy: Occupancy | None = None) -> ScoredPaths:
        """What is said of every path.

        Args:
            bev_BCYX: the fused map.
            batch: commands, status and augmentation.
            occupancy: logits of the head, where the planner was built for one.

        Raises:
            ConfigError: there are no anchors.
        """
        self._check_anchors()
        frame = EgoFrame.whole(batch)
        ego_BC, status_B2 = self.ego.ask(bev_BCYX, batch, frame)
        map_BCYX = self.reader.prepare(bev_BCYX, occupancy)
        path_BKT3 = self.anchors.expand(len(batch), -1, -1, -1)
        tokens_BKC, ego_B1C = ego_BC[:, None], ego_BC[:, None]
        paths, imitation = [], []
        for layer, move, likely in zip(self.layers, self.moves, self.imitation, strict=True):
            read_BKC, _ = self.reader(map_BCYX, path_BKT3, frame)
            tokens_BKC = tokens_BKC + read_BKC
            around_BNC = torch.cat([tokens_BKC, ego_B1C.to(tokens_BKC.dtype)], dim=1)
            tokens_BKC = layer(tokens_BKC, around_BNC, around_BNC)
            path_BKT3 = path_BKT3 + move(tokens_BKC).float().view_as(path_BKT3)
            paths.append(path_BKT3)
            imitation.append(likely(tokens_BKC).float()[..., 0])
            path_BKT3 = path_BKT3.detach()
        read_BKC, cost_BK2 = self.reader(map_BCYX, path_BKT3, frame)
        score_BKS = self.scores(tokens_BKC + read_BKC).float()
        return ScoredPaths(torch.stack(paths), torch.stack(imitation), score_BKS, cost_BK2, status_B2)

    def _check_anchors(self) -> None:
        if not self._ready:  # asked once: a GPU would be waited for
            if not self.anchors.isfinite().all():
                raise ConfigError(
                    "planning.head 'anchors': the model has no anchors yet; train finds them in the training split and "
                    "keeps them in its checkpoints: load one, or give some to set_anchors"
                )
            self._ready = True

    def losses(self, said: ScoredPaths, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms over what is known; zeros, in the graph, where nothing is.

        Anchors are as likely as their mean distance from the driven path is small, on the scale of ``spread``. That is
        what ``imitation`` learns (cross-entropy), and how much it matters that a path becomes the driven one (L1 of x
        plus that of y, and one minus the cosine of the heading, means over the known steps): all but the nearest are
        free, as where the winner takes it all. Every path learns its ``scores``. Of both passes the mean.
        """
        frame, config = EgoFrame.whole(batch), self.config.anchors
        driven_BT3, known_BT = driven_path(batch, frame, self.config.steps)
        steps_B = known_BT.sum(1)
        away_BKT = (self.anchors[..., :2] - driven_BT3[:, None, :, :2]).norm(dim=-1) * known_BT[:, None]
        away_BK = away_BKT.sum(-1) / steps_B.clamp(min=1)[:, None]
        wanted_BK = (-away_BK / config.spread).softmax(-1)
        chosen_LBK = -wanted_BK * said.imitation.log_softmax(-1) * (steps_B > 0)[:, None]
        counts_BKT = wanted_BK[..., None] * known_BT[:, None]
        beside_LBKT3 = said.path - driven_BT3[:, None]
        place_LBKT = beside_LBKT3[..., :2].abs().sum(-1) * counts_BKT
        turn_LBKT = (1 - beside_LBKT3[..., 2].cos()) * counts_BKT
        num_steps, num_drives = divisor("planning", steps_B.sum()), divisor("planning_imitation", (steps_B > 0).sum())
        terms = {
            "planning": config.position_weight * place_LBKT.mean(0).sum() / num_steps,
            "planning_heading": config.heading_weight * turn_LBKT.mean(0).sum() / num_steps,
            "planning_imitation": config.imitation_weight * chosen_LBK.mean(0).sum() / num_drives,
            "planning_scores": config.score_weight * self._score_loss(said, batch, frame),
        }
        terms = {name: value * self.config.loss_weight for name, value in terms.items()}
        return terms | self.ego.status_losses(said.status, batch, frame)

    def _score_loss(self, said: ScoredPaths, batch: Batch, frame: EgoFrame) -> Tensor:
        """Binary cross-entropy of every score, mean over the paths it is known of, summed over the scores."""
        value_BKS, known_BKS = score_targets(said.path[-1].detach(), batch, frame, self.map_grid)
        error_BKS = F.binary_cross_entropy_with_logits(said.score, value_BKS, reduction="none") * known_BKS
        return (error_BKS.sum((0, 1)) / divisor("planning_scores", known_BKS.sum((0, 1)))).sum()

    def path_of(
        self,
        said: ScoredPaths,
        batch: Batch,
        boxes: tuple[Boxes, ...] | None = None,
        motion: tuple[Forecast, ...] | None = None,
    ) -> Tensor:
        """[B, T, 2] the positions of the path that ``decode`` chooses, in the frame of the batch, with their graph."""
        sample_B = torch.arange(len(batch), device=said.score.device)
        chosen_BT3 = said.path[-1][sample_B, choose(*self._weigh(said, batch, boxes, motion))]
        return EgoFrame.whole(batch).to_batch(chosen_BT3[..., :2])

    @torch.no_grad()
    def decode(
        self,
        said: ScoredPaths,
        batch: Batch,
        boxes: tuple[Boxes, ...] | None = None,
        motion: tuple[Forecast, ...] | None = None,
    ) -> tuple[Trajectory, PlanModes | None]:
        """The path that is expected to cost least, and all of them.

        Args:
            said: of ``forward``.
            batch: that it was said of.
            boxes: found in every sample; with ``planning.anchors.reject`` a path that hits one is not chosen, if there
                is another.
            motion: how these go on, where it is known; else straight on.
        """
        frame, path_BKT3 = EgoFrame.whole(batch), said.path[-1]
        cost_BK, rejected_BK = self._weigh(said, batch, boxes, motion)
        position_BKT2, yaw_BKT = frame.to_batch(path_BKT3[..., :2]), frame.yaw_to_batch(path_BKT3[..., 2])
        paths = Trajectory(position_BKT2, yaw_BKT, torch.ones_like(yaw_BKT, dtype=torch.bool))
        score_BKS = torch.cat([said.score.sigmoid(), said.cost], dim=-1)
        likely_BK, chosen_B = said.imitation[-1].softmax(-1), choose(cost_BK, rejected_BK)
        modes = PlanModes(paths, likely_BK, score_BKS, cost_BK, rejected_BK, chosen_B)
        return modes.plan, modes

    @torch.no_grad()
    def _weigh(
        self, said: ScoredPaths, batch: Batch, boxes: tuple[Boxes, ...] | None, motion: tuple[Forecast, ...] | None
    ) -> tuple[Tensor, Tensor]:
        """What each path is expected to cost and whether it is rejected, [B, K] each, as of ``PlanModes``."""
        path_BKT3, anchors = said.path[-1], self.config.anchors
        prices = {**USUAL_PRICES, **anchors.prices}
        each = [prices[name] for name in PLAN_SCORES]
        cost_BK = expected_cost(path_BKT3, said.imitation[-1], said.score, said.cost, each)
        if not anchors.reject or boxes is None:
            return cost_BK, torch.zeros_like(cost_BK)
        hit_BK = crashes(path_BKT3, boxes, EgoFrame.whole(batch), anchors.reject_score, motion)
        return cost_BK, hit_BK.to(cost_BK)


def _said(channels: int, outputs: int) -> nn.Sequential:
    """What tokens say: nothing at first, and for ever where nothing teaches it."""
    last = nn.Linear(channels, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels), nn.ReLU(), last)
