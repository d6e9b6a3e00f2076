"""What values the sums of a spline layer can take, by interval arithmetic.

Each bound holds up to rounding, and is wider than the truth, since the branches of an edge and the
edges of a sum are bounded one by one:

- B-splines are not negative and sum to 1 between the inner knots, to at most 1 beyond them. So a
  spline lies between the least and the largest coefficient of those that reach into the interval,
  and 0 where the interval leaves the inner knots (de Boor, A Practical Guide to Splines, ch. IX).
- SiLU falls to its one minimum and rises from there.
- A polynomial is largest and smallest at an end or where its derivative is zero.
- A named function is so too: all of `FUNCTIONS` are monotone between known turning points.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..splines import FUNCTIONS, SplineSpec

__all__ = ["layer_range", "value_range"]

Float64Array = NDArray[np.float64]

_SILU_TURNS_AT = -1.2784645427610738

# (offset, period): at offset + n · period; no period: at the offset alone.
_TURNS: dict[str, tuple[float, float | None]] = {
    "sin": (math.pi / 2, math.pi),
    "cos": (0, math.pi),
    "abs": (0, None),
    "gaussian": (0, None),
}
# Poles and jumps. Where a function has no value on one whole side, the interval's ends show that.
_BREAKS: dict[str, tuple[float, float | None]] = {
    "tan": (math.pi / 2, math.pi),
    "sgn": (0, None),
    **{name: (0, None) for name in FUNCTIONS if name.startswith("1/x")},
}


def value_range(name: str, low: float, high: float) -> tuple[float, float] | None:
    """The least and the largest value of a function of `FUNCTIONS` from low to high, both finite.

    None where it has no finite value, or jumps, at one or more points there.
    """
    if name in _BREAKS and _points(*_BREAKS[name], low, high):
        return None
    turns = _points(*_TURNS[name], low, high) if name in _TURNS else []
    with np.errstate(all="ignore"):
        values = FUNCTIONS[name](np.array([low, *turns, high], dtype=np.float64))
    if not np.isfinite(values).all():
        return None
    return float(values.min()), float(values.max())


def layer_range(layer: SplineSpec, box: Float64Array) -> Float64Array:
    """The ranges ``(out, 2)`` of a layer's outputs while each input keeps to its row of box ``(in, 2)``."""
    with np.errstate(over="ignore", invalid="ignore"):  # what has no bound is infinite, or NaN
        edges: Float64Array = _spline_ranges(layer, box) + _silu_ranges(layer, box) + _polynomial_ranges(layer, box)
        sums: Float64Array = edges.sum(axis=1) + layer.bias[:, np.newaxis]  # (sums, 2)
        for function in layer.functions:
            low, high = np.clip(box[function.input], function.low, function.high)
            inner = sorted((function.slope * low + function.shift, function.slope * high + function.shift))
            between = value_range(function.name, *inner) or (-math.inf, math.inf)
            sums[function.output] += np.sort(function.scale * np.array(between))
        if layer.products is None or layer.offset is None:
            return sums
        outputs = np.stack([_product(sums[list(group)]) for group in layer.products])  # (out, 2)
        outputs += layer.offset[:, np.newaxis]
        return outputs


def _points(offset: float, period: float | None, low: float, high: float) -> list[float]:
    """The first three at most of such points from low to high: further ones repeat their values."""
    if period is None:
        return [offset] if low <= offset <= high else []
    first = math.ceil((low - offset) / period)
    return [point for n in range(3) if (point := offset + (first + n) * period) <= high]


def _spline_ranges(layer: SplineSpec, box: Float64Array) -> Float64Array:
    degree, knots = layer.degree, layer.knots
    low, high = box[:, :1], box[:, 1:]
    reaching = (knots[:, : -degree - 1] < high) & (knots[:, degree + 1 :] > low)  # (in, K)
    least = np.where(reaching, layer.coefficients, np.inf).min(axis=2)  # (sums, in)
    largest = np.where(reaching, layer.coefficients, -np.inf).max(axis=2)
    inside = ((low >= knots[:, degree, np.newaxis]) & (high <= knots[:, -degree - 1, np.newaxis]))[:, 0]
    least = np.where(inside, least, np.minimum(least, 0))
    largest = np.where(inside, largest, np.maximum(largest, 0))
    return np.stack([least, largest], axis=-1)  # (sums, in, 2)


def _silu_ranges(layer: SplineSpec, box: Float64Array) -> Float64Array:
    turn = np.clip(_SILU_TURNS_AT, box[:, 0], box[:, 1])
    points = np.concatenate([box, turn[:, np.newaxis]], axis=1)  # (in, 3)
    values = layer.silu[:, :, np.newaxis] * (points / (1 + np.exp(-points)))
    return np.stack([values.min(axis=2), values.max(axis=2)], axis=-1)


def _polynomial_ranges(layer: SplineSpec, box: Float64Array) -> Float64Array:
    result = np.zeros((*layer.silu.shape, 2))
    for output, index in zip(*np.nonzero(layer.polynomial.any(axis=2)), strict=True):
        low, high = box[index]
        if not math.isfinite(high - low):
            result[output, index] = -math.inf, math.inf
            continue
        polynomial = np.polynomial.Polynomial([0.0, *layer.polynomial[output, index]])
        # From 0 to 1 its powers can be compared: those that are only rounding are left out.
        slope = polynomial(np.polynomial.Polynomial([low, high - low])).deriv()
        turns = np.clip(slope.trim(1e-14 * np.abs(slope.coef).max()).roots().real, 0, 1)
        values = polynomial(np.array([low, *(low + (high - low) * turns), high]))
        result[output, index] = values.min(), values.max()
    return result


def _product(ranges: Float64Array) -> Float64Array:
    result: Float64Array = ranges[0]
    for other in ranges[1:]:
        corners = np.outer(result, other)
        result = np.array([corners.min(), corners.max()])
    return result
