"""Motion head: where every detected box may go, in several ways, and how likely each is.

Each box is an agent with a query of its own, made of what it is and what the map holds ahead of it. Agents look at
their neighbours (as in SceneTransformer, Ngiam et al., 2022, and the agent heads of PnPNet, Liang et al., 2020, and
VAD, Jiang et al., 2023), then each query becomes K, one for every way to go on, and says a path for it, which is
refined by what the map holds along it (as in MTR, Shi et al., 2022). Everything happens in the agent's own frame,
whatever way the world is turned or shifted. Unlike there:
- A way starts from where the box's own velocity leads, with a turn and an acceleration of its own (the physical models
  of the nuScenes devkit); the network says how far off that is, and nothing at first. MTR and MultiPath (Chai et al.,
  2019) take typical paths, by k-means over a large data set: here the first guess is constant velocity, and so little
  data makes it better from there.
- Inputs are single boxes with a velocity, and the map of the sensors; there is no tracker and no history of its own.
- It learns from the model's own boxes, matched to the true ones by distance, and at the same time from true ones, moved
  a little: early on hardly a box is found, and later what is found shows how far off boxes are.
Letters: B samples, A agents, K ways, T steps, R passes, C channels, N map classes, Y X grid cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.config import MotionConfig
from fusion3d.counts import divisor
from fusion3d.encoders.blocks import conv_block
from fusion3d.geometry import turn, wrap_angle
from fusion3d.heads.crowd import NUM_HEADS, Agents, Interaction, MapReader, Maps, Traits, find_neighbours, two_layers
from fusion3d.heads.rollout import drive
from fusion3d.types import DETECTION_CLASSES, MAP_CLASSES, TIME_STEP, Batch, BEVGrid, Boxes, Forecast

MATCH_DISTANCE = 2.0  # [m] within which a found box is the nearest true one of its class
_AHEAD = (0.0, 2.0, 5.0, 10.0, 20.0)  # [m] along its heading, where an agent reads the map
_SURE = 0.5  # [m] errors below it weigh less
_YAW_WEIGHT = 0.5
_UNITS = (0.5, 2.0)  # [rad/s], [m/s^2] of what the network says of a way's turn and acceleration
# Turn and acceleration that the ways start with, in parts of those of the class; further ones are half as much.
_WAYS = ((0, 0), (0, -1), (0, 1), (1, 0), (-1, 0), (0, -2.5), (2, -1), (-2, -1), (1, 1), (-1, 1))
_USUAL = 2.0  # of the first one's logit, which is constant velocity, above the others'
_LIVELY = {"pedestrian": (0.4, 0.4), "motorcycle": (0.35, 1.2), "bicycle": (0.35, 0.8)}  # [rad/s], [m/s^2]
_LIVELY_VEHICLE = (0.25, 1.2)
STILL = ("traffic_cone", "barrier")  # they stay where they are


@dataclass(frozen=True)
class MotionPaths:
    """The paths that agents may take, each in its agent's own frame: from its centre, along its heading."""

    found: tuple[Boxes, ...]  # B, the boxes as they were found, of which the first agents are made
    agents: Agents
    position: Tensor  # [R, A, K, T, 2] float32 after every pass [m]
    yaw: Tensor  # [R, A, K, T] float32 [rad]
    logits: Tensor  # [R, A, K] float32


class MotionHead(nn.Module):
    """Boxes and BEV map to paths; ``losses`` and ``decode`` say what they mean."""

    seeds_NK2: Tensor
    moves_N: Tensor

    def __init__(self, config: MotionConfig, inputs: int, grid: BEVGrid, ground: BEVGrid | None = None) -> None:
        """``ground`` is the grid of the map head, where there is one."""
        super().__init__()
        channels, self.config = config.channels, config
        self.grids = (grid,) if ground is None else (grid, ground)
        self.shrink = conv_block(inputs, channels, norm="group")
        self.values = nn.ModuleList([nn.Linear(channels, channels)])
        if ground is not None:
            self.values.append(nn.Linear(len(MAP_CLASSES), channels))
        self.traits = Traits(channels)
        self.ahead = MapReader(channels, len(_AHEAD), len(self.grids))
        self.layers = nn.ModuleList(Interaction(channels) for _ in range(config.layers))
        self.ways = nn.Embedding(config.modes, channels)
        self.usual = nn.Parameter(_USUAL * F.one_hot(torch.tensor(0), config.modes))
        self.passes = nn.ModuleList(_Pass(channels, config.steps, len(self.grids)) for _ in range(config.passes))
        self.register_buffer("seeds_NK2", _seeds(config.modes), persistent=False)
        moves = torch.tensor([float(name not in STILL) for name in DETECTION_CLASSES])
        self.register_buffer("moves_N", moves, persistent=False)

    def forward(
        self, bev_BCYX: Tensor, found: Sequence[Boxes], batch: Batch, ground_BNYX: Tensor | None = None
    ) -> MotionPaths:
        """The paths of all found boxes and, in training, of true ones beside them.

        Args:
            bev_BCYX: the model's map.
            found: of every sample, in the frame of the batch.
            batch: its true boxes are read in training alone.
            ground_BNYX: logits of the map head, where there is one; what it says is taken as given.
        """
        config = self.config
        teaches = self.training and config.truth_weight > 0
        agents = Agents.of(found, (teaches and batch.boxes) or (), config.truth_noise)
        maps = self._maps(bev_BCYX, ground_BNYX)
        start_QP2 = F.pad(bev_BCYX.new_tensor(_AHEAD, dtype=torch.float32)[:, None], (0, 1)).expand(len(agents), -1, -1)
        token_AC = self.traits(agents)
        token_AC = token_AC + self.ahead(token_AC, start_QP2, agents, maps)
        near = find_neighbours(agents, config.neighbours, config.min_score)
        for layer in self.layers:
            token_AC = layer(token_AC, near)
        query_AKC = token_AC[:, None] + self.ways.weight

        label = agents.boxes.label
        velocity_A12 = agents.velocity.nan_to_num()[:, None]
        moves_A = self.moves_N[label][:, None, None]
        times = TIME_STEP * torch.arange(1, config.steps + 1, device=label.device)
        control_AK2 = self.seeds_NK2[label]
        off_AKT3 = control_AK2.new_zeros(*control_AK2.shape[:2], config.steps, 3)
        paths: list[tuple[Tensor, Tensor, Tensor]] = []
        for refine in self.passes:
            path_AKT2 = self._drive(velocity_A12, control_AK2, times, off_AKT3)[0].detach()
            query_AKC, more_AK2, more_AKT3, logit_AK = refine(query_AKC, path_AKT2, agents, maps)
            control_AK2, off_AKT3 = control_AK2 + more_AK2, off_AKT3 + more_AKT3
            position, yaw = self._drive(velocity_A12, control_AK2, times, off_AKT3)
            paths.append((position * moves_A[..., None], yaw * moves_A, logit_AK + self.usual))
        return MotionPaths(tuple(found), agents, *(torch.stack(part) for part in zip(*paths, strict=True)))

    @staticmethod
    def _drive(velocity_A12: Tensor, control_AK2: Tensor, times: Tensor, off_AKT3: Tensor) -> tuple[Tensor, Tensor]:
        """[A, K, T, 2] and [A, K, T]: where turns and accelerations lead, and what is off it."""
        velocity = velocity_A12.expand(-1, control_AK2.shape[1], -1)
        position, yaw = drive(velocity, control_AK2[..., 0], control_AK2[..., 1], times)
        return position + off_AKT3[..., :2], yaw + off_AKT3[..., 2]

    def _maps(self, bev_BCYX: Tensor, ground_BNYX: Tensor | None) -> Maps:
        """What is read: the map, and what the map head says of the ground."""
        levels = [self.shrink(bev_BCYX)]
        if len(self.grids) > 1:
            assert ground_BNYX is not None, "the head was made for a model with a map head"
            levels.append(ground_BNYX.detach().float().sigmoid())
        values = [layer(level.flatten(2).transpose(1, 2)) for layer, level in zip(self.values, levels, strict=True)]
        return Maps(torch.cat(values, dim=1).unflatten(2, (NUM_HEADS, -1)), self.grids)

    def losses(self, paths: MotionPaths, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms over the agents whose future is known; zeros, in the graph, where there is none.

        The best of an agent's ways, by mean distance over the known steps, takes it all: smooth L1 of its positions
        (x plus y, beta 0.5 m), 1 - cos of its headings, both means over the known steps, and the cross-entropy of being
        it. All are means over agents, weighted, and over passes.

        Args:
            paths: of ``forward``.
            batch: with true boxes and motion.
        """
        target = self.targets(paths.agents, batch)
        weight_A = torch.where(paths.agents.truth < 0, 1.0, self.config.truth_weight) * target.known.any(1)
        away_RAKT = (paths.position.detach() - target.position[:, None]).norm(dim=-1)
        known_AT = target.known / target.known.sum(1, keepdim=True).clamp(min=1)
        best_RA1 = (away_RAKT * known_AT[:, None]).sum(-1).argmin(-1, keepdim=True)
        error_RAK = F.smooth_l1_loss(
            paths.position, target.position[:, None].expand_as(paths.position), beta=_SURE, reduction="none"
        ).sum(-1)
        turned_RAK = 1 - (paths.yaw - target.yaw[:, None]).cos()
        per_agent = {
            "motion": (error_RAK * known_AT[:, None]).sum(-1).gather(-1, best_RA1)[..., 0],
            "motion_yaw": _YAW_WEIGHT * (turned_RAK * known_AT[:, None]).sum(-1).gather(-1, best_RA1)[..., 0],
            "motion_mode": -paths.logits.log_softmax(-1).gather(-1, best_RA1)[..., 0],
        }
        scale = self.config.loss_weight / (divisor("motion", weight_A.sum()) * len(paths.position))
        return {name: scale * (value * weight_A).sum() for name, value in per_agent.items()}

    @torch.no_grad()
    def targets(self, agents: Agents, batch: Batch) -> MotionTargets:
        """How agents really go on: those made of the truth as it does, found ones as the nearest true box of their
        class within ``MATCH_DISTANCE``; nobody else, and nothing that always stays, has anything to learn.
        """
        boxes, steps = agents.boxes, self.config.steps
        position = boxes.center.new_zeros(len(agents), steps, 2)
        yaw = position.new_zeros(position.shape[:2])
        known = torch.zeros_like(yaw, dtype=torch.bool)
        for sample, (true, motion) in enumerate(zip(batch.boxes or (), batch.motion or (), strict=False)):
            number = min(len(true), len(motion))  # a sample may have boxes and no motion
            mine = (agents.sample == sample).nonzero()[:, 0]
            if not number or not len(mine):
                continue
            away = (boxes.center[mine, None, :2] - true.center[:number, :2]).norm(dim=-1)
            away = away.masked_fill(boxes.label[mine, None] != true.label[:number], torch.inf)
            least, row = away.min(1)
            made = agents.truth[mine]
            row = torch.where(made < 0, torch.where(least <= MATCH_DISTANCE, row, number), made)
            mine, row = mine[row < number], row[row < number]
            part, reach = motion.path, min(steps, motion.path.mask.shape[1])
            position[mine, :reach] = part.position[row, :reach]
            yaw[mine, :reach] = part.yaw[row, :reach]
            known[mine, :reach] = part.mask[row, :reach]
        known &= (self.moves_N[boxes.label] > 0)[:, None]
        own = turn(position - boxes.center[:, None, :2], -boxes.yaw)
        return MotionTargets(torch.where(known[..., None], own, 0), yaw - boxes.yaw[:, None], known)

    @torch.no_grad()
    def decode(self, paths: MotionPaths) -> tuple[Forecast, ...]:
        """After the last pass, the forecasts of the boxes that stand in ``paths.found``, in the frame of the batch."""
        boxes, score = paths.agents.boxes, paths.logits[-1].softmax(-1)
        order = score.argsort(dim=-1, descending=True, stable=True)
        each = torch.arange(len(boxes), device=order.device)[:, None]
        position = turn(paths.position[-1].flatten(1, 2), boxes.yaw).view(paths.position.shape[1:])
        position = (position + boxes.center[:, None, None, :2])[each, order]
        yaw = wrap_angle(paths.yaw[-1] + boxes.yaw[:, None, None])[each, order]
        every = Forecast(position, yaw, score.gather(1, order))
        counts = paths.agents.crowds[: len(paths.found)]
        starts = [sum(counts[:number]) for number in range(len(counts))]
        return tuple(every[start : start + count] for start, count in zip(starts, counts, strict=True))


@dataclass(frozen=True)
class MotionTargets:
    """How agents really go on, in their own frames."""

    position: Tensor  # [A, T, 2] float32 [m]
    yaw: Tensor  # [A, T] float32 [rad]
    known: Tensor  # [A, T] bool


class _Pass(nn.Module):
    """Each way's query reads the map along its path, and says how far off the path is and how likely the way."""

    units_2: Tensor

    def __init__(self, channels: int, steps: int, levels: int) -> None:
        super().__init__()
        self.steps = steps
        self.of_path = two_layers(2 * steps, channels, channels)
        self.read = MapReader(channels, steps, levels)
        self.inner = two_layers(channels, 2 * channels, channels)
        self.norm_read, self.norm_inner = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.out = two_layers(channels, channels, 2 + 3 * steps)
        self.likely = two_layers(channels, channels, 1)
        self.register_buffer("units_2", torch.tensor(_UNITS), persistent=False)
        for last in (self.out[-1], self.likely[-1]):
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(
        self, query_AKC: Tensor, path_AKT2: Tensor, agents: Agents, maps: Maps
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries [A, K, C] that know more; what to add to turn and acceleration [A, K, 2], and to x, y and heading at
        every step [A, K, T, 3]; logits [A, K]. The latter three are in float32.
        """
        num_modes = query_AKC.shape[1]
        asked_AKC = self.norm_read(query_AKC + self.of_path(path_AKT2.flatten(2) / 10))
        read_QC = self.read(asked_AKC.flatten(0, 1), path_AKT2.flatten(0, 1), agents, maps)
        query_AKC = asked_AKC + read_QC.unflatten(0, (len(agents), num_modes))
        query_AKC = query_AKC + self.inner(self.norm_inner(query_AKC))
        said_AKE = self.out(query_AKC).float()
        step_AKT3 = said_AKE[..., 2:].unflatten(2, (self.steps, 3))
        # The sum up to each step, as a product with a triangle: cumsum has no deterministic kernel on CUDA.
        until_TT1 = torch.ones(self.steps, self.steps, device=step_AKT3.device).tril()[..., None]
        off_AKT3 = (until_TT1 * step_AKT3[:, :, None]).sum(3)
        return query_AKC, said_AKE[..., :2] * self.units_2, off_AKT3, self.likely(query_AKC).float()[..., 0]


def _seeds(modes: int) -> Tensor:
    """[10, K, 2] turn [rad/s] and acceleration [m/s^2] that the ways of each class start with."""
    ways = [tuple(part * 0.5 ** (k // len(_WAYS)) for part in _WAYS[k % len(_WAYS)]) for k in range(modes)]
    lively = [_LIVELY.get(name, _LIVELY_VEHICLE) for name in DETECTION_CLASSES]
    return torch.tensor(lively)[:, None] * torch.tensor(ways)
