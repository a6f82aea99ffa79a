"""What the suite tries: families of corruptions, each by severity or along a curve."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusion3d.config import Config
from fusion3d.data.corruptions import KINDS
from fusion3d.data.corruptions.kinds import CHANNELS, SEVERITY
from fusion3d.engine.inference import choose_subsets
from fusion3d.errors import ConfigError
from fusion3d.types import SENSORS


@dataclass(frozen=True)
class Condition:
    """One thing wrong; or nothing, where there are no corruptions."""

    name: str
    corruptions: tuple[str, ...]


CLEAN = Condition("clean", ())


@dataclass(frozen=True)
class Family:
    """One kind of failure in several amounts."""

    name: str
    parts: tuple[str, ...]  # SENSOR.KIND, all of which get the amount
    unit: str
    amounts: tuple[float, ...]

    @property
    def sensors(self) -> tuple[str, ...]:
        """Whose failure it is."""
        return tuple(part.partition(".")[0] for part in self.parts)

    @property
    def graded(self) -> bool:
        """By severity? Else it is a curve."""
        return self.unit == SEVERITY

    def at(self, amount: float) -> Condition:
        """The family's condition of an amount."""
        return Condition(f"{self.name}:{amount:g}", tuple(f"{part}:{amount:g}" for part in self.parts))

    def told(self, amount: float) -> str:
        """The same in words."""
        return f"{self.name}, {f'{SEVERITY} {amount:g}' if self.graded else f'{amount:g} {self.unit}'}"


def _alone() -> list[Family]:
    """Every kind for every sensor that knows it."""
    families = []
    for sensor in SENSORS:
        for name, kind in KINDS.items():
            if sensor in kind.sensors:
                left = tuple(range(1, len(CHANNELS[sensor])))
                amounts = left if name == "keep" else kind.amounts
                families.append(Family(f"{sensor}.{name}", (f"{sensor}.{name}",), kind.unit, amounts))
    return families


JOINT = tuple(
    Family(name, (f"camera.{name}", f"lidar.{name}"), SEVERITY, (1, 2, 3)) for name in ("fog", "snow", "blur", "stale")
)
FAMILIES = (*_alone(), *JOINT)
# The ten of MultiCorrupt (Beemelmanns et al., 2024), in its order, by our names.
MULTICORRUPT = (
    "lidar.beams", "camera.bright", "camera.dark", "fog", "camera.black", "blur", "lidar.points", "snow",
    "lidar.misaligned", "stale",
)  # fmt: skip
_JOINT_NAMES = {family.name for family in JOINT}
GROUPS: Mapping[str, tuple[str, ...]] = {
    "severities": tuple(family.name for family in FAMILIES if family.graded),
    "curves": tuple(family.name for family in FAMILIES if not family.graded),
    "multicorrupt": MULTICORRUPT,
    **{sensor: tuple(family.name for family in FAMILIES if family.sensors == (sensor,)) for sensor in SENSORS},
    **{
        kind: tuple(family.name for family in FAMILIES if family.name.endswith(f".{kind}"))
        for kind in KINDS
        if kind not in _JOINT_NAMES
    },
}


def choose(
    config: Config,
    names: Sequence[str] | None = None,
    severities: Sequence[int] = (1, 2, 3),
    subsets: Sequence[str] | None = None,
) -> list[Family]:
    """The families that the sensors which are corrupted can suffer.

    Args:
        config: of the model and what is read.
        names: of families, or of ``GROUPS``; None: all.
        severities: those to try of what has them.
        subsets: names of subsets, the largest of which is corrupted; None: all sensors of the model are.

    Raises:
        ConfigError: a name is unknown, a subset cannot be, or nothing is left.
    """
    wanted = set(names or [family.name for family in FAMILIES])
    known = {*GROUPS, *(family.name for family in FAMILIES)}
    for name in sorted(wanted - known):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"--conditions: unknown {name!r}; did you mean {near!r}? known: {', '.join(GROUPS)}, and "
            f"{', '.join(family.name for family in FAMILIES)}"
        )
    wanted |= {member for name in wanted for member in GROUPS.get(name, ())}
    there = set(list(choose_subsets(config, subsets).values())[-1])
    count = {"camera": len(config.data.cameras), "radar": len(config.data.radars)}
    found = []
    for family in FAMILIES:
        if family.name not in wanted or not there.issuperset(family.sensors):
            continue
        if family.graded:
            amounts = tuple(amount for amount in family.amounts if amount in severities)
        elif family.unit == KINDS["keep"].unit:
            amounts = tuple(amount for amount in family.amounts if amount < count[family.sensors[0]])
        else:
            amounts = family.amounts
        if amounts:
            found.append(Family(family.name, family.parts, family.unit, amounts))
    if not found:
        raise ConfigError(
            f"--conditions and --severities leave nothing to try with the sensors {', '.join(sorted(there))}"
        )
    return found
