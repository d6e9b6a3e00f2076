"""Splines in terms of ramps, as numbers: what `lowering/splines.py` writes nodes for.

A spline is a polynomial on each interval between two knots and zero outside the first and the last. A ramp is 1 on
one side, 0 on the other, and linear between:

    w(x) = ReLU(1 − g · ReLU(σ(x − t)))        σ = 1: from 1 at t down to 0 at t + 1/g; σ = −1: mirrored

Two ways to write the sum of a layer's splines of degree d:

single intervals (N = 1): with u = 1 − w of each interval, the products u^k w^(d−k) give each B-spline by a
    Conv within the input, and the B-splines give the sums. The weights are Bernstein's coefficients, at most 1
    before they are scaled, and a B-spline is exactly 0 where it should be: as many digits as the recursion of
    Cox and de Boor keeps, however fine the grid.

blocks of N intervals: in a block a spline is a polynomial plus a truncated power (x − t)^d for each knot,
    so d-th powers of ramps that end at the block's edges span it: as many as there are intervals, and
    d − 1 more for each inner block, all in one Conv. The first block and the last one need no polynomial:
    a spline and its d − 1 derivatives are zero at its ends (de Boor, A Practical Guide to Splines, ch. VIII
    and IX). Truncated powers cancel: with long blocks float32 loses digits, more where knots are close.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from ..approximation import approximate
from ..splines import Function, SplineSpec
from .graph import Float64Array

__all__ = [
    "Ramps",
    "bernstein_weights",
    "block_edges",
    "by_interval",
    "function_ramps",
    "in_blocks",
    "mirrored",
    "spline_pieces",
]

_BITS = 24  # of B-splines' values at knots, after the point: what float32 has


@dataclasses.dataclass(frozen=True, eq=False)
class Ramps:
    """Σ of weights · powers of ramps, plus a constant.

    Attributes:
        ones, zeros: ``(in, F)``, where each ramp reaches 1 and 0.
        weights: for each power, ``(sums, in, F)``.
        constant: ``(sums,)``.
    """

    ones: Float64Array
    zeros: Float64Array
    weights: dict[int, Float64Array]
    constant: Float64Array


def by_interval(breaks: Float64Array, pieces: Float64Array) -> Ramps:
    """Continuous piecewise polynomials, which start at 0 and are constant outside their breaks.

    Args:
        breaks: ``(in, M + 1)``.
        pieces: ``(sums, in, M, d + 1)``, by powers of u = (x − t_m) / h_m.
    """
    falling = mirrored(pieces)  # each piece falls from w = 1 to w = 0
    weights = {power: falling[..., power] for power in range(1, pieces.shape[-1])}
    constant = -sum(weight.sum(axis=(1, 2)) for weight in weights.values())
    return Ramps(breaks[:, :-1], breaks[:, 1:], weights, np.asarray(constant))


def mirrored(pieces: Float64Array) -> Float64Array:
    """The coefficients of P(1 − w), by powers of w, of P by powers of u."""
    count = pieces.shape[-1]
    binomial = np.zeros((count, count))  # (1 − w)^n = Σ_k binomial[n, k] w^k
    binomial[0, 0] = 1
    for n in range(1, count):
        binomial[n] = binomial[n - 1]
        binomial[n, 1:] -= binomial[n - 1, :-1]
    return pieces @ binomial


def in_blocks(layer: SplineSpec, length: int) -> Ramps:
    """The layer's splines as d-th powers of ramps, in blocks of at most `length` intervals."""
    degree, knots, pieces = layer.degree, layer.knots, _layer_pieces(layer)
    edges = block_edges(knots.shape[1] - 1, length)
    ones, zeros, weights = [], [], []
    constant = np.zeros(layer.bias.size)
    for begin, end in itertools.pairwise(edges):
        if begin == 0:
            zero, one = knots[:, :end], np.repeat(knots[:, [end]], end, axis=1)  # (in, F): all rising
        elif end == edges[-1]:
            zero, one = knots[:, begin + 1 :], np.repeat(knots[:, [begin]], end - begin, axis=1)
        else:
            zero, one = _inner_ramps(knots[:, begin : end + 1], degree)
        samples, values = _samples(knots, pieces, begin, end)  # (in, S), (sums, in, S), 0 at the block's start
        start = np.where(one < zero, 1.0, 0.0)[:, np.newaxis]  # (in, 1, F): the ramps' values at the block's start
        features = _ramps(samples, one, zero) ** degree - start  # (in, S, F)
        weight = np.einsum("ifs,ois->oif", np.linalg.pinv(features, rcond=1e-14), values)
        constant -= (weight * start[:, 0]).sum(axis=(1, 2))
        ones.append(one)
        zeros.append(zero)
        weights.append(weight)
    weight = np.concatenate(weights, axis=2)
    return Ramps(np.concatenate(ones, axis=1), np.concatenate(zeros, axis=1), {degree: weight}, constant)


def _inner_ramps(knots: Float64Array, degree: int) -> tuple[Float64Array, Float64Array]:
    """Where ramps reach 0 and 1, ``(in, L + degree − 1)`` each, whose powers span a block of L intervals.

    A knot in the left half falls towards it, one in the right half rises: ramps that are short differ most
    from each other, and so cancel least. With both ways at `degree` places the powers span the polynomial.
    """
    left, right = knots[:, :1], knots[:, -1:]
    if degree == 1:
        return knots[:, :-1], np.repeat(right, knots.shape[1] - 1, axis=1)
    inner, middle = knots[:, 1:-1], (left + right) / 2
    one = np.where(inner < middle, left, right)
    nearest = np.argsort(np.abs(inner - middle), axis=1)[:, : degree - 2]
    twice = np.take_along_axis(inner, nearest, axis=1)
    other = left + right - np.take_along_axis(one, nearest, axis=1)
    return np.concatenate([left, right, inner, twice], axis=1), np.concatenate([right, left, one, other], axis=1)


def block_edges(intervals: int, length: int) -> list[int]:
    """Where blocks of at most `length` of so many intervals begin and end: two of them at least, of nearly one size."""
    count = min(max(2, -(-intervals // length)), intervals)
    return [intervals * index // count for index in range(count + 1)]


def _ramps(x: Float64Array, one: Float64Array, zero: Float64Array) -> Float64Array:
    """The ramps ``(in, S, F)`` at x ``(in, S)``."""
    result: Float64Array = np.clip((x[:, :, np.newaxis] - zero[:, np.newaxis]) / (one - zero)[:, np.newaxis], 0, 1)
    return result


def _samples(knots: Float64Array, pieces: Float64Array, begin: int, end: int) -> tuple[Float64Array, Float64Array]:
    """Points inside the intervals from `begin` to `end`, and the splines there less their value at the start."""
    count = 2 * pieces.shape[-1]
    u = (1 - np.cos(np.pi * (np.arange(count) + 0.5) / count)) / 2  # Chebyshev's points
    left, width = knots[:, begin:end], np.diff(knots[:, begin : end + 1])
    points = left[..., np.newaxis] + width[..., np.newaxis] * u  # (in, L, count)
    powers = u ** np.arange(pieces.shape[-1])[:, np.newaxis]  # (d + 1, count)
    values = pieces[:, :, begin:end] @ powers  # (sums, in, L, count)
    values = values - pieces[:, :, begin, 0][..., np.newaxis, np.newaxis]
    return points.reshape(len(knots), -1), values.reshape(*values.shape[:2], -1)


def _layer_pieces(layer: SplineSpec) -> Float64Array:
    """The layer's splines on each interval, ``(sums, in, M, d + 1)`` by powers of u = (x − t_m) / h_m."""
    pieces: Float64Array = np.einsum("oik,ikmd->oimd", layer.coefficients, spline_pieces(layer), optimize=True)
    return pieces


def spline_pieces(layer: SplineSpec) -> Float64Array:
    """Each B-spline on each interval, ``(in, K, M, d + 1)`` by powers of u = (x − t_m) / h_m.

    The recursion of Cox and de Boor on polynomials instead of numbers.
    """
    knots, intervals = layer.knots, layer.knots.shape[1] - 1
    start, width = knots[:, np.newaxis, :-1], np.diff(knots)[:, np.newaxis]  # (in, 1, M)
    basis = np.zeros((len(knots), intervals, intervals, layer.degree + 1))
    basis[..., 0] = np.eye(intervals)
    for p in range(1, layer.degree + 1):
        first, last = knots[:, : -p - 1, np.newaxis], knots[:, p + 1 :, np.newaxis]  # of each new spline's support
        rising = knots[:, p:-1, np.newaxis] - first
        falling = last - knots[:, 1:-p, np.newaxis]
        left = _times(basis[:, :-1], (start - first) / rising, width / rising)
        right = _times(basis[:, 1:], (last - start) / falling, -width / falling)
        basis = left + right
    return basis


def bernstein_weights(pieces: Float64Array) -> Float64Array:
    """The weights ``(d, …, M)`` of u^k w^(d−k), k = 1 … d and w = 1 − u, for pieces ``(…, M, d + 1)``.

    They are Bernstein's coefficients (Farouki 2012, Computer Aided Geometric Design 29, section 3) less the
    value at u = 0, so that continuous pieces add up to the whole. Left of a piece all products are 0; right of it
    u^d is 1, and the sum of its weights is exactly 0 in float32 too, in whatever order: the values at knots, at most
    1, are rounded to the digits that float32 has, and no partial sum of their differences needs more.
    """
    degree = pieces.shape[-1] - 1
    choose = np.array([[math.comb(k, i) / math.comb(degree, i) for i in range(degree + 1)] for k in range(degree + 1)])
    values = pieces @ choose.T  # Bernstein's coefficients
    counts = np.array([math.comb(degree, k) for k in range(degree + 1)])
    weights = (values - values[..., :1]) * counts
    ends = np.round(values[..., [0, -1]] * 2.0**_BITS) / 2.0**_BITS
    weights[..., degree] = ends[..., 1] - ends[..., 0]
    return np.moveaxis(weights[..., 1:], -1, 0)


def _times(polynomials: Float64Array, constant: Float64Array, slope: Float64Array) -> Float64Array:
    """Each polynomial of u times (constant + slope · u)."""
    product = polynomials * constant[..., np.newaxis]
    product[..., 1:] += polynomials[..., :-1] * slope[..., np.newaxis]
    return product


def function_ramps(functions: tuple[Function, ...], sums: int, inputs: int, bound: float) -> Ramps:
    """Edges of other functions, each as a piecewise polynomial within `bound`."""
    made = [(each, approximate(each, each.low, each.high, bound)) for each in functions]
    degree = max(pieces.coefficients.shape[1] - 1 for _, pieces in made)
    widths = [sum(len(pieces.coefficients) for each, pieces in made if each.input == index) for index in range(inputs)]
    ones, zeros = np.zeros((inputs, max(widths))), np.ones((inputs, max(widths)))  # any ramp, where there is none
    weights = {power: np.zeros((sums, inputs, max(widths))) for power in range(1, degree + 1)}
    constant, used = np.zeros(sums), [0] * inputs
    for each, pieces in made:
        single = by_interval(pieces.breaks[np.newaxis], pieces.coefficients[np.newaxis, np.newaxis])
        place = slice(used[each.input], used[each.input] + single.ones.size)
        ones[each.input, place], zeros[each.input, place] = single.ones[0], single.zeros[0]
        for power, weight in single.weights.items():
            weights[power][each.output, each.input, place] = weight[0, 0]
        constant[each.output] += pieces.coefficients[0, 0] + single.constant[0]
        used[each.input] = place.stop
    return Ramps(ones, zeros, weights, constant)
