"""Training losses of the parts that stand between the encoders and the heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fusion3d.types import Batch


class Auxiliary(nn.Module):
    """A part with a training loss of its own, at whatever depth of the model; ``Fusion3D.losses`` finds it.

    The part keeps nothing of a forward pass: what its loss needs besides its weights stands in the outputs.
    """

    def auxiliary_losses(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
        """Weighted scalar terms, of ``Fusion3D.forward``'s outputs and the batch with every sensor."""
        raise NotImplementedError


def auxiliary_losses(model: nn.Module, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
    """The terms of every ``Auxiliary`` in the model; those of one name are added up."""
    terms: dict[str, Tensor] = {}
    for part in model.modules():
        if isinstance(part, Auxiliary):
            for name, value in part.auxiliary_losses(outputs, batch).items():
                terms[name] = terms[name] + value if name in terms else value
    return terms
