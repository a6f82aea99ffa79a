"""How the sensors' maps relate to each other before they become one: joint, coordinated or factorised."""

from __future__ import annotations

from collections.abc import Mapping

from fusion3d.bev.represent.contrast import Coordinated, CoordinatedOutput
from fusion3d.bev.represent.factors import Factorised, FactorisedOutput
from fusion3d.config import FusionConfig
from fusion3d.errors import ConfigError
from fusion3d.types import BEVGrid

__all__ = ["Coordinated", "CoordinatedOutput", "Factorised", "FactorisedOutput", "make_representation"]


def make_representation(
    config: FusionConfig, channels: Mapping[str, int], grid: BEVGrid
) -> Coordinated | Factorised | None:
    """What the configuration names, for sensors with so many channels; None for joint, the maps as they are.

    Its ``forward(maps, present)`` gives maps, with ``channels`` of them, and what its losses ask for.

    Raises:
        ConfigError: there is one sensor only, or there are too few channels for two parts.
    """
    if config.representation == "joint":
        return None
    if len(channels) < 2:
        raise ConfigError(
            f"fusion.representation {config.representation!r} relates sensors, "
            f"and all but {', '.join(channels)} are null"
        )
    if config.representation == "coordinated":
        return Coordinated(channels, grid, config.temperature, config.contrast_weight)
    if config.channels < 2:
        raise ConfigError(
            f"fusion.channels: found {config.channels}; fusion.representation 'factorised' makes two parts: take 2"
        )
    return Factorised(channels, config, grid)
