"""Continuous piecewise polynomials for what is none: SiLU, and named functions such as sin.

A graph computes the powers u, u², … of every piece, so pieces times degree is what it costs. For
each degree the pieces are made as long as the bound allows, one after the other, and the degree
that needs the fewest powers is taken; then the bound is drawn as tight as so many pieces allow.

A piece interpolates at stretched Chebyshev nodes: the roots of a Chebyshev polynomial, spread so
that the outer two are the ends of the piece (Brutman 1978, SIAM Journal on Numerical Analysis 15).
So pieces meet, and with n nodes the product Π(x − node) in the error is only 1/cos(π/2n)ⁿ times the
smallest there can be: 1.2 times for degree 5.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .spec import KanSpec
from .splines import MOST_DEGREE, Function, SplineSpec

__all__ = ["SILU", "Approximation", "Pieces", "approximate", "approximations", "silu_pieces"]

Float64Array = NDArray[np.float64]

SILU = "SiLU"  # as it is called among the functions of a manifest

_MOST_PIECES = 256
_MOST_SAMPLES = 1 << 20  # of one function
_SAMPLES = 32  # in one unit of the function's argument
_SHORTEST = 2.0**-40  # a piece's part of the interval
# The sum of a piece's |coefficients| is at most so many times the function's range. It is what
# rounding errors of single precision are multiplied by.
_MOST_GROWTH = 16.0


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
    """A continuous function made of polynomials; beyond both ends it is constant.

    Attributes:
        breaks: t, ``(pieces + 1,)``, increasing.
        coefficients: ``(pieces, degree + 1)``: of the powers of u = (x − t_m) / (t_m+1 − t_m), which
            is 0 to 1 on piece m; index = power.
        error: the largest difference from the function that was measured between the ends.
    """

    breaks: Float64Array
    coefficients: Float64Array
    error: float

    def __post_init__(self) -> None:
        self.breaks.flags.writeable = self.coefficients.flags.writeable = False  # it is kept for the next call

    @property
    def degree(self) -> int:
        return int(self.coefficients.shape[1]) - 1

    def __len__(self) -> int:
        return len(self.coefficients)

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """The values at x, an array of any shape, in its arithmetic."""
        breaks = self.breaks.astype(x.dtype)
        piece = np.clip(np.searchsorted(breaks, x, side="right") - 1, 0, len(self) - 1)
        u = np.clip((x - breaks[piece]) / np.diff(breaks)[piece], 0, 1)
        return _horner(self.coefficients.astype(x.dtype)[piece], u)


@dataclasses.dataclass(frozen=True)
class Approximation:
    """What a network's artifacts hold instead of a function that is no piecewise polynomial.

    Attributes:
        function: its name.
        edges: how many edges compute it.
        bound: the largest difference that was allowed on an edge, before the edge's weight for SiLU.
        error: the largest that was measured.
        pieces, degree: of the polynomials of one edge; the most that any edge needs.
        interval: where the bound holds, over all these edges; None for everywhere.
    """

    function: str
    edges: int
    bound: float
    error: float
    pieces: int
    degree: int
    interval: tuple[float, float] | None


@functools.lru_cache(maxsize=4096)
def approximate(function: Function, low: float, high: float, bound: float) -> Pieces:
    """The function from low to high, nowhere there further off than the bound.

    Raises:
        InputError: the bound is not greater than 0, or cannot be reached: the function jumps, is
            infinite, or too steep.
    """
    what = f"{function.name} from {low:g} to {high:g}"
    break_at = _singularity(function, low, high)
    if break_at is not None and function.name != "abs":
        raise InputError(f"{what} cannot be approximated: it jumps or is infinite at {break_at:g}")
    ends = (low, high) if break_at is None else (low, break_at, high)
    return _fit(_Curve(what, function, ends, _SAMPLES * abs(function.slope)), bound)


@functools.lru_cache(maxsize=16)
def silu_pieces(bound: float) -> Pieces:
    """SiLU(x) − ReLU(x) as a function of t = |x|, from 0 to T, where it ends with 0.

    ReLU(x) + pieces(|x|) is within the bound of SiLU for all real x: with r(t) = t / (1 + exp(t)),
    which is the difference's size, pieces(t) is 0 beyond T, and r falls from t = 1.28 on, so the
    error there is less than r(T), half the bound.

    Raises:
        InputError: the bound is not greater than 0, or too small for float64.
    """

    end = 2.0
    for _ in range(64):  # t = log(t / target) solves t · exp(−t) = target, which is more than r(t)
        end = math.log(end / min(_checked(bound) / 2, 0.25))

    def remainder(t: Float64Array) -> Float64Array:
        return np.where(t < end, -t / (1 + np.exp(t)), 0.0)

    return _fit(_Curve(SILU, remainder, (0.0, end), _SAMPLES), bound)


def approximations(spec: KanSpec, *, strict: bool, bound: float) -> tuple[Approximation, ...]:
    """What is approximated in this network: its functions, and its SiLU branches if strict.

    Raises:
        InputError: a bound cannot be reached; the message names the edge.
    """
    layers = [layer for layer in spec.layers if isinstance(layer, SplineSpec)]
    found = []
    branches = sum(int(np.count_nonzero(layer.silu)) for layer in layers)
    if strict and branches:
        pieces = silu_pieces(bound)
        found.append(Approximation(SILU, branches, bound, pieces.error, len(pieces), pieces.degree, None))
    edges = [(index, function) for index, layer in enumerate(layers) for function in layer.functions]
    for name in sorted({function.name for _, function in edges}):
        same = [(index, function) for index, function in edges if function.name == name]
        each = [_approximate_edge(index, function, bound) for index, function in same]
        low, high = min(function.low for _, function in same), max(function.high for _, function in same)
        error, degree = max(pieces.error for pieces in each), max(pieces.degree for pieces in each)
        found.append(Approximation(name, len(same), bound, error, max(map(len, each)), degree, (low, high)))
    return tuple(found)


def _approximate_edge(layer: int, function: Function, bound: float) -> Pieces:
    try:
        return approximate(function, function.low, function.high, bound)
    except InputError as error:
        raise InputError(f"edge {function.input} → {function.output} of layer {layer}: {error}") from error


def _singularity(function: Function, low: float, high: float) -> float | None:
    """Where between low and high the function has a corner, a jump or a pole; None if it is smooth there."""
    if not function.slope:
        return None
    first, last = sorted((function.slope * low + function.shift, function.slope * high + function.shift))
    at = 0.0
    if function.name == "tan":
        at = math.pi * (math.ceil(first / math.pi - 0.5) + 0.5)
    elif function.name not in ("abs", "sgn") and not function.name.startswith("1/x"):
        return None
    inside = first < at < last if function.name == "abs" else first <= at <= last
    return (at - function.shift) / function.slope if inside else None


# --- pieces


@dataclasses.dataclass(frozen=True)
class _Curve:
    """A function between the first and the last of `ends`, with a corner at each in between.

    `what` names it in errors; `samples` in one unit of x tell what it is like.
    """

    what: str
    function: Callable[[Float64Array], Float64Array]
    ends: tuple[float, ...]
    samples: float

    @property
    def span(self) -> float:
        return self.ends[-1] - self.ends[0]

    def interpolate(self, begin: float, end: float, degree: int) -> Float64Array:
        """The coefficients of one piece, ``(degree + 1,)``."""
        nodes, inverse = _nodes(degree)
        values = self.function(np.append(begin + (end - begin) * nodes[:-1], end))
        coefficients: Float64Array = inverse @ values
        coefficients[0] = values[0]
        coefficients[1] += values[-1] - coefficients.sum()  # so that pieces meet
        return coefficients

    def error(self, begin: float, end: float, coefficients: Float64Array, finer: int = 1) -> float:
        """The largest difference on one piece, at points that lie closer together towards its ends."""
        count = finer * (16 * len(coefficients) + int(self.samples * (end - begin)))
        u = (1 - np.cos(np.linspace(0, np.pi, count))) / 2
        return float(np.abs(_horner(coefficients, u) - self.function(begin + (end - begin) * u)).max())

    def longest_pieces(self, degree: int, allowed: float, growth: float, most: int) -> Float64Array | None:
        """The breaks of pieces that are as long as they can be; None if more than `most` are needed."""

        def fits(begin: float, end: float) -> bool:
            coefficients = self.interpolate(begin, end, degree)
            small = float(np.abs(coefficients[1:]).sum()) <= growth + allowed
            return small and self.error(begin, end, coefficients) <= allowed

        breaks = [self.ends[0]]
        for last in self.ends[1:]:
            while breaks[-1] < last:
                if len(breaks) > most:
                    return None
                begin, end = breaks[-1], last
                while not fits(begin, end):
                    end = begin + (end - begin) / 2
                    if end - begin < _SHORTEST * self.span:
                        return None
                too_long = begin + 2 * (end - begin)
                for _ in range(12 if end < last else 0):
                    middle = (end + too_long) / 2
                    end, too_long = (middle, too_long) if fits(begin, middle) else (end, middle)
                breaks.append(end)
        return np.array(breaks)


def _fit(curve: _Curve, bound: float) -> Pieces:
    allowed = _checked(bound) * (1 - 2.0**-6)  # what is measured at the end is measured at more points
    count = curve.samples * curve.span
    x = np.linspace(curve.ends[0], curve.ends[-1], int(min(count, _MOST_SAMPLES)) + 1024)
    values = curve.function(x)
    if not np.isfinite(values).all():
        raise InputError(f"{curve.what} cannot be approximated: it is not finite at {x[~np.isfinite(values)][0]:g}")
    growth = _MOST_GROWTH * float(np.ptp(values))
    found = _fewest_powers(curve, allowed, growth) if count <= _MOST_SAMPLES else None
    if found is not None:
        breaks, degree = found
        each = list(itertools.pairwise(_evened_out(curve, breaks, degree, allowed, growth).tolist()))
        coefficients = np.stack([curve.interpolate(*piece, degree) for piece in each])
        error = max(curve.error(*piece, row, finer=4) for piece, row in zip(each, coefficients, strict=True))
        if error <= bound:
            return Pieces(np.array([each[0][0], *(end for _, end in each)]), coefficients, error)
    raise InputError(
        f"{curve.what} cannot be approximated within {bound:g} by {_MOST_PIECES} polynomials of degree {MOST_DEGREE}: "
        "it is too steep, or the bound is smaller than float64 can tell. Give a larger one with --bound"
    )


def _fewest_powers(curve: _Curve, allowed: float, growth: float) -> tuple[Float64Array, int] | None:
    """The breaks and the degree of the pieces that need the fewest powers; None if there are none."""
    best = None
    most = _MOST_PIECES * MOST_DEGREE
    for degree in range(MOST_DEGREE, 0, -1):
        breaks = curve.longest_pieces(degree, allowed, growth, min(most // degree, _MOST_PIECES))
        if breaks is not None:
            best, most = (breaks, degree), degree * (len(breaks) - 1)  # a lower degree wins a tie
    return best


def _evened_out(curve: _Curve, breaks: Float64Array, degree: int, allowed: float, growth: float) -> Float64Array:
    """The breaks of as many pieces, the last of which is not better than the others for nothing."""
    reachable, unreachable = allowed, 0.0
    for _ in range(6):
        closer = (reachable + unreachable) / 2
        moved = curve.longest_pieces(degree, closer, growth, len(breaks) - 1)
        if moved is None:
            unreachable = closer
        else:
            breaks, reachable = moved, closer
    return breaks


@functools.cache
def _nodes(degree: int) -> tuple[Float64Array, Float64Array]:
    """The stretched Chebyshev nodes in 0..1, and the matrix that makes coefficients of values there."""
    angles = np.pi * (2 * np.arange(degree + 1) + 1) / (2 * (degree + 1))
    nodes = (1 - np.cos(angles) / math.cos(angles[0])) / 2
    nodes[0], nodes[-1] = 0.0, 1.0
    return nodes, np.linalg.inv(np.vander(nodes, increasing=True)).astype(np.float64)


def _horner(coefficients: NDArray[Any], u: NDArray[Any]) -> NDArray[Any]:
    result = np.zeros_like(u)
    for column in np.moveaxis(coefficients, -1, 0)[::-1]:
        result = result * u + column
    return result


def _checked(bound: float) -> float:
    if not 0 < bound < math.inf:
        raise InputError(f"bound must be greater than 0, got {bound}")
    return bound
