"""Plans to all their numbers in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion3d.errors import DataError
from fusion3d.metrics.planning import baselines, exact
from fusion3d.metrics.planning.contacts import meet
from fusion3d.metrics.planning.drives import Drives, sample_hash
from fusion3d.metrics.planning.pdm import Ground, between_lanes, in_junction, off_road, score_pdm
from fusion3d.metrics.planning.protocols import PUBLISHED
from fusion3d.metrics.planning.published import HORIZONS, Boundaries, score_published
from fusion3d.metrics.planning.slices import BASELINE, HUMAN, skill_table
from fusion3d.types import TIME_STEP

PROTOCOLS = (exact.NAME, *PUBLISHED)


@dataclass(frozen=True, eq=False)
class Map:
    """What maps say around the samples."""

    ground: Ground
    boundaries: Boundaries | None = None

    def __getitem__(self, chosen: np.ndarray) -> Map:
        """Of the samples of a mask or an ascending index."""
        rows = np.arange(len(self.ground.known))[chosen]
        number = np.full(len(self.ground.known), -1)
        number[rows] = np.arange(len(rows))
        ground, edges, lanes, junction = self.ground, self.boundaries, self.ground.lanes, self.ground.junction
        return Map(
            Ground(
                ground.known[rows],
                lambda row, xy: ground.drivable(int(rows[row]), xy),
                None if lanes is None else lambda row, xy: lanes(int(rows[row]), xy),
                None if ground.by_mask is None else ground.by_mask[rows],
                None if junction is None else lambda row, xy: junction(int(rows[row]), xy),
            ),
            None if edges is None else edges[number],
        )


def with_baselines(plans: Mapping[str, np.ndarray], drives: Drives) -> dict[str, np.ndarray]:
    """The plans, the baselines that need no training, and the human, all of the same number of steps.

    Raises:
        DataError: a plan has another shape than [N, T, 3] with a T that all share, more steps than the future, a
            number that is not finite, or the name of a baseline.
    """
    length = drives.future.shape[1]
    steps = min([plan.shape[1] for plan in plans.values()], default=length)
    for name, plan in plans.items():
        if plan.shape != (len(drives), steps, 3) or steps > length or not np.isfinite(plan).all():
            raise DataError(
                f"plan {name!r} of shape {plan.shape} with {np.count_nonzero(~np.isfinite(plan))} numbers that are not "
                f"finite; expected {(len(drives), steps, 3)} of at most {length} steps, finite metres and radians"
            )
    own = {
        kind: make(drives, steps)
        for kind, make in (
            (BASELINE, baselines.constant_turn),
            ("constant_velocity", baselines.constant_velocity),
            ("stationary", baselines.stationary),
        )
    }
    own[HUMAN] = drives.path[:, :steps]
    if taken := sorted(plans.keys() & own.keys()):
        raise DataError(f"a plan is called {taken[0]!r} as a baseline is; give it another name")
    return {**plans, **own}


def score_plans(
    plans: Mapping[str, np.ndarray],
    drives: Drives,
    protocols: Sequence[str] = PROTOCOLS,
    maps: Map | None = None,
) -> dict[str, Any]:
    """Score planners and baselines by the asked-for protocols, all over the same samples.

    Args:
        plans: by name, [N, T, 3] x, y, yaw in ego every 0.5 s.
        drives: N samples.
        protocols: of ``PROTOCOLS``.
        maps: None: there is no map, and what needs one is NaN.

    Returns:
        ``protocols.<name>``: ``about`` (in words), ``samples`` (hash of those that count at the last step) and
        ``planners`` (as ``score_exact`` and ``score_published`` give them, and ``N@1s``, ``N@2s``, ``N@3s``: how many
        samples the numbers at that time are of). With ``exact``: ``pdm`` (``score_pdm``) and ``skill``
        (``skill_table``).
    """
    every = with_baselines(plans, drives)
    steps = every[HUMAN].shape[1]
    found: dict[str, Any] = {"protocols": {}}
    for name in protocols:
        if name != exact.NAME:
            protocol = PUBLISHED[name]
            counts = protocol.counts(drives.known, drives.past_known)[:, :steps]
            table = score_published(protocol, every, drives, None if maps is None else maps.boundaries)
            found["protocols"][name] = _of_protocol(protocol.about, counts, table, drives)
            continue
        ground = None if maps is None else maps.ground
        off = None if ground is None else {of: off_road(plan, ground) for of, plan in every.items()}
        astray = junction = None
        if ground is not None and off is not None:
            astray = {of: off[of] | between_lanes(plan, ground) for of, plan in every.items()}
            junction = {of: in_junction(plan, ground) for of, plan in every.items()}
        contacts = meet(every, drives, astray, junction)
        counts = np.repeat(exact.usable(drives, steps)[:, None], steps, axis=1)
        table = exact.score_exact(every, contacts, drives)
        found["protocols"][name] = _of_protocol(exact.ABOUT, counts, table, drives)
        found["pdm"] = score_pdm(every, contacts, off, drives, ground)
        found["skill"] = skill_table(every, drives)
    return found


def _of_protocol(
    about: dict[str, str], counts: np.ndarray, table: dict[str, dict[str, float]], drives: Drives
) -> dict[str, Any]:
    """One protocol's numbers, from which samples count at which step, [N, T] bool."""
    steps = {horizon: round(horizon / TIME_STEP) for horizon in HORIZONS}
    numbers = {
        f"N@{horizon}s": float(counts[:, step - 1].sum()) if step <= counts.shape[1] else np.nan
        for horizon, step in steps.items()
    }
    tokens = [token for token, counted in zip(drives.tokens, counts[:, -1], strict=True) if counted]
    return {
        "about": about,
        "samples": sample_hash(tokens),
        "planners": {name: {**row, **numbers} for name, row in table.items()},
    }
