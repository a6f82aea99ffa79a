"""Pooling plans that are made once for each calibration, as long as the calibration stays the same to the bit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from fusion3d.ops import BEVPoolPlan


class PlanCache:
    """The plans used last, by the exact bytes of what they were made from: a plan is never used for anything else.

    It holds no weights: it is no part of a state dict, and a copied or unpickled cache is empty.
    """

    def __init__(self, size: int = 4) -> None:
        """Of at most ``size`` plans, each some 12 bytes for every sample of the frustums."""
        self._size = size
        self._plans: OrderedDict[Hashable, BEVPoolPlan] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._plans)

    def __deepcopy__(self, memo: dict[int, Any]) -> PlanCache:
        return PlanCache(self._size)

    def __reduce__(self) -> tuple[type[PlanCache], tuple[int]]:
        return PlanCache, (self._size,)

    def get(self, tensors: tuple[Tensor, ...], settings: Hashable, make: Callable[[], BEVPoolPlan]) -> BEVPoolPlan:
        """The plan that ``make`` gives for these tensors and settings, which must be all that it depends on.

        Reads the tensors on the host, all of them at once.
        """
        flat = [tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in tensors]
        kinds = tuple((tensor.dtype, tensor.shape) for tensor in tensors)
        key = (torch.cat(flat).cpu().numpy().tobytes(), kinds, tensors[0].device, settings)
        with self._lock:
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key]
        # A plan made in inference mode could not serve a later pass with gradients.
        with torch.inference_mode(False), torch.no_grad():
            plan = make()
        with self._lock:
            self._plans[key] = plan
            while len(self._plans) > self._size:
                self._plans.popitem(last=False)
        return plan
