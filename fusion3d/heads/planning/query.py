"""The plain planner: one query for the vehicle says where to drive. Letters: B samples, T future steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.config import PlanningConfig
from fusion3d.counts import divisor
from fusion3d.heads.planning.ego import EgoQuery
from fusion3d.heads.planning.frame import EgoFrame
from fusion3d.types import Batch, BEVGrid, Boxes, Forecast, Occupancy, PlanModes, Trajectory

_TURNING = 0.1  # [m] a step shorter than this says nothing about heading


@dataclass(frozen=True)
class PlannedPath:
    """What the planner says."""

    position: Tensor  # [B, T, 2] in the frame of the batch [m]
    status: Tensor | None  # [B, 2] predicted speed and yaw rate, to order one


class QueryPlanner(EgoQuery):
    """BEV map and command to positions in the next T steps (BEV-Planner, Li et al., 2024).

    The path is of the vehicle's own heading and place, from which BEV augmentation turns and shifts the grid. (A
    mirrored or scaled world is a world of its own; the data layer mirrors the command with it.)
    """

    def __init__(self, config: PlanningConfig, inputs: int, grid: BEVGrid) -> None:
        super().__init__(config, inputs, grid)
        self.out = nn.Sequential(
            nn.LayerNorm(config.channels),
            nn.Linear(config.channels, config.channels),
            nn.ReLU(),
            nn.Linear(config.channels, 2 * config.steps),
        )

    def forward(self, bev_BCYX: Tensor, batch: Batch, occupancy: Occupancy | None = None) -> PlannedPath:
        """The planned path; what ``occupancy`` says is not looked at."""
        frame = EgoFrame.heading(batch)
        query_BC, status_B2 = self.ask(bev_BCYX, batch, frame)
        step_BT2 = self.out(query_BC).float().view(len(batch), self.config.steps, 2)
        # The sum up to each step, as a product with a triangle: cumsum has no deterministic kernel on CUDA.
        until_TT1 = torch.ones(self.config.steps, self.config.steps, device=step_BT2.device).tril()[..., None]
        return PlannedPath(frame.to_batch((until_TT1 * step_BT2[:, None]).sum(2)), status_B2)

    def losses(self, said: PlannedPath, batch: Batch) -> dict[str, Tensor]:
        """Smooth L1 error (beta 0.5 m) of x plus that of y, mean over the known steps; 0, in the graph, if none is."""
        terms = self.status_losses(said.status, batch, EgoFrame.heading(batch))
        plan_BT2 = said.position
        if batch.future is None:
            return {"planning": 0.0 * plan_BT2.sum()} | terms
        steps = min(self.config.steps, batch.future.mask.shape[1])
        mask_BT1 = batch.future.mask[:, :steps, None]
        target_BT2 = torch.where(mask_BT1, batch.future.position[:, :steps], 0)
        error_BT2 = F.smooth_l1_loss(plan_BT2[:, :steps], target_BT2, beta=0.5, reduction="none") * mask_BT1
        error = error_BT2.sum() / divisor("planning", mask_BT1.sum()) + 0.0 * plan_BT2[:, steps:].sum()
        return {"planning": error * self.config.loss_weight} | terms

    def path_of(
        self,
        said: PlannedPath,
        batch: Batch,
        boxes: tuple[Boxes, ...] | None = None,
        motion: tuple[Forecast, ...] | None = None,
    ) -> Tensor:
        """[B, T, 2] the planned positions in the frame of the batch, with their graph."""
        return said.position

    @torch.no_grad()
    def decode(
        self,
        said: PlannedPath,
        batch: Batch,
        boxes: tuple[Boxes, ...] | None = None,
        motion: tuple[Forecast, ...] | None = None,
    ) -> tuple[Trajectory, PlanModes | None]:
        """The plan; its heading is that of the motion, or the last one where it stands still. It is the only one."""
        frame, plan_BT2 = EgoFrame.heading(batch), said.position
        step_BT2 = plan_BT2.diff(dim=1, prepend=frame.place[:, None].to(plan_BT2))
        yaw_B = torch.atan2(frame.forward[:, 1], frame.forward[:, 0])
        yaws = []
        for step_B2 in step_BT2.unbind(1):
            yaw_B = torch.where(step_B2.norm(dim=1) < _TURNING, yaw_B, torch.atan2(step_B2[:, 1], step_B2[:, 0]))
            yaws.append(yaw_B)
        mask = torch.ones(plan_BT2.shape[:2], dtype=torch.bool, device=plan_BT2.device)
        return Trajectory(plan_BT2, torch.stack(yaws, dim=1), mask), None
