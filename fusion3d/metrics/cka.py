"""How alike two sets of features of the same examples are: linear centred kernel alignment.

CKA(X, Y) = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) with HSIC(X, Y) = |Yc^T Xc|^2, of centred columns (Kornblith et
al., 2019): 1 for features that differ by a rotation and one scale, 0 for uncorrelated ones. Of few examples with many
channels it is too high, even of independent ones. The unbiased estimate of HSIC (Song et al., 2012), whose mean over
minibatches Nguyen et al. (2021) take, is not. With linear kernels both are sums over the examples, so that neither
needs minibatches: examples are added up as they come, in float64.
Letters: N examples, C D channels.
"""

from __future__ import annotations

import math

import numpy as np


class Alignment:
    """Linear CKA of two sets of features, of examples that come in parts.

    Args:
        channels: C and D.
    """

    def __init__(self, channels: tuple[int, int]) -> None:
        self.count = 0
        self.shift: list[np.ndarray] | None = None  # of the first part; nothing depends on it but rounding
        self.sides = [_Moments(count) for count in channels]
        self.product_CD = np.zeros(channels)
        self.square = 0.0  # sum of |x|^2 |y|^2
        self.crossed = [np.zeros(count) for count in channels]  # sums of x |y|^2 and y |x|^2

    def add(self, x_NC: np.ndarray, y_ND: np.ndarray) -> None:
        """More examples.

        Raises:
            ValueError: other numbers of examples or channels than expected, or a value that is not finite.
        """
        shapes = [side.total.shape[0] for side in self.sides]
        if x_NC.shape != (len(x_NC), shapes[0]) or y_ND.shape != (len(x_NC), shapes[1]):
            raise ValueError(f"features {x_NC.shape} and {y_ND.shape}; expected [N, {shapes[0]}] and [N, {shapes[1]}]")
        parts = [np.asarray(part, dtype=np.float64) for part in (x_NC, y_ND)]
        if not all(np.isfinite(part).all() for part in parts):
            raise ValueError("features are not finite: look at the encoder's output")
        if not len(x_NC):
            return
        self.shift = [part.mean(0) for part in parts] if self.shift is None else self.shift
        x_NC, y_ND = (part - shift for part, shift in zip(parts, self.shift, strict=True))
        self.count += len(x_NC)
        squares = [side.add(part) for side, part in zip(self.sides, (x_NC, y_ND), strict=True)]
        self.product_CD += x_NC.T @ y_ND
        self.square += float(squares[0] @ squares[1])
        self.crossed[0] += squares[1] @ x_NC
        self.crossed[1] += squares[0] @ y_ND

    def biased(self) -> float:
        """CKA as Kornblith et al. define it; NaN where one side does not vary."""
        x, y = self.sides
        return _ratio(
            _hsic(self.product_CD, x.total, y.total, self.count),
            _hsic(x.product, x.total, x.total, self.count),
            _hsic(y.product, y.total, y.total, self.count),
        )

    def unbiased(self) -> float:
        """CKA of unbiased HSIC, which may be below 0; NaN of less than four examples, or where a side does not vary."""
        if self.count < 4:
            return math.nan
        x, y = self.sides
        crossed = (self.crossed[0], self.crossed[1])
        return _ratio(
            _unbiased(self.count, x, y, self.product_CD, self.square, crossed),
            _unbiased(self.count, x, x, x.product, x.fourth, (x.third, x.third)),
            _unbiased(self.count, y, y, y.product, y.fourth, (y.third, y.third)),
        )


class _Moments:
    """Sums over the examples of one side."""

    def __init__(self, channels: int) -> None:
        self.total = np.zeros(channels)
        self.product = np.zeros((channels, channels))
        self.square = 0.0  # of |x|^2
        self.third = np.zeros(channels)  # of x |x|^2
        self.fourth = 0.0  # of |x|^4

    def add(self, x_NC: np.ndarray) -> np.ndarray:
        """Add examples; returns [N] their squared lengths."""
        square_N = np.einsum("nc,nc->n", x_NC, x_NC)
        self.total += x_NC.sum(0)
        self.product += x_NC.T @ x_NC
        self.square += float(square_N.sum())
        self.third += square_N @ x_NC
        self.fourth += float(square_N @ square_N)
        return square_N


def _hsic(product_CD: np.ndarray, x_C: np.ndarray, y_D: np.ndarray, count: int) -> float:
    return float(((product_CD - np.outer(x_C, y_D) / max(count, 1)) ** 2).sum())


def _unbiased(
    count: int,
    x: _Moments,
    y: _Moments,
    product_CD: np.ndarray,
    square: float,
    crossed: tuple[np.ndarray, np.ndarray],
) -> float:
    """Equation 5 of Song et al. (2012), times n (n - 3), with K = X X^T and L = Y Y^T without their diagonals.

    Args:
        count: n.
        x, y: sums of the sides.
        product_CD: sum of x y^T.
        square: sum of |x|^2 |y|^2.
        crossed: sums of x |y|^2 and of y |x|^2.
    """
    trace = float((product_CD**2).sum()) - square
    sums = (float(x.total @ x.total) - x.square) * (float(y.total @ y.total) - y.square)
    # 1^T K L 1: the sum over the examples of (x . sum of x - |x|^2) (y . sum of y - |y|^2).
    rows = float(x.total @ product_CD @ y.total - x.total @ crossed[0] - y.total @ crossed[1]) + square
    return trace + sums / ((count - 1) * (count - 2)) - 2 * rows / (count - 2)


def _ratio(between: float, of_x: float, of_y: float) -> float:
    return between / math.sqrt(of_x * of_y) if of_x > 0 and of_y > 0 else math.nan
