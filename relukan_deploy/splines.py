"""`SplineSpec`: one layer of a B-spline KAN, as pykan and efficient-kan train them.

A layer maps x ``(batch, in)`` to sums s ``(batch, sums)`` by

    s_o = b_o + Σ_i [ Σ_j C_oij B_ij(x_i) + w_oi SiLU(x_i) + Σ_p P_oip x_i^p ] + Σ_f f(x_input(f))

B are the B-splines of one degree on the knots of input i, by the recursion of Cox and de Boor (de
Boor, A Practical Guide to Splines, ch. IX). They are zero outside the first and the last knot, so
that only the other branches are left there, as in the libraries above. y are the sums, or products of
them where the layer has multiplication nodes (KAN 2.0, arXiv:2408.10205, section 2).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

__all__ = ["FUNCTIONS", "MOST_DEGREE", "Function", "SplineSpec"]

Float64Array = NDArray[np.float64]

MOST_DEGREE = 7

FUNCTIONS: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "1/x": lambda x: 1 / x,
    "1/x^2": lambda x: 1 / x**2,
    "1/x^3": lambda x: 1 / x**3,
    "1/x^4": lambda x: 1 / x**4,
    "1/x^5": lambda x: 1 / x**5,
    "1/sqrt(x)": lambda x: 1 / np.sqrt(x),
    "1/x^0.5": lambda x: 1 / np.sqrt(x),
    "sqrt": np.sqrt,
    "x^0.5": np.sqrt,
    "x^1.5": lambda x: np.sqrt(x) ** 3,
    "exp": np.exp,
    "log": np.log,
    "abs": np.abs,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "tanh": np.tanh,
    "sgn": np.sign,
    "arcsin": np.arcsin,
    "arccos": np.arccos,
    "arctan": np.arctan,
    "arctanh": np.arctanh,
    "gaussian": lambda x: np.exp(-(x**2)),
}
"""What an edge can compute that is no polynomial, by the names pykan gives it."""


@dataclasses.dataclass(frozen=True)
class Function:
    """An edge that is a named function: scale · f(slope · x + shift), for x from `low` to `high`.

    Beyond that interval it keeps the value it has at the nearer end.

    Args:
        name: of `FUNCTIONS`.
        input, output: the edge: from this input to this sum.
        slope, shift, scale: as above.
        low, high: the interval of x, finite, low < high.

    Raises:
        InputError: the function is unknown, a number is not finite, or the interval is empty.
    """

    name: str
    input: int
    output: int
    slope: float
    shift: float
    scale: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.name not in FUNCTIONS:
            raise InputError(f"{self.name!r} is not a known function: expected one of {', '.join(FUNCTIONS)}")
        if not all(map(math.isfinite, (self.slope, self.shift, self.scale, self.low, self.high))):
            raise InputError(f"{self.name} needs finite numbers, got {self}")
        if not self.low < self.high:
            raise InputError(f"{self.name} needs an interval with low < high, got {self.low} to {self.high}")

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """The edge's values at x, an array of any shape."""
        inside = np.clip(x, self.low, self.high)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return self.scale * FUNCTIONS[self.name](self.slope * inside + self.shift)


@dataclasses.dataclass(frozen=True, eq=False)
class SplineSpec:
    """One layer of a B-spline KAN.

    Args:
        degree: of the splines, 1 to 7 ("order" in pykan's and efficient-kan's terms).
        knots: ``(in, T)``, strictly increasing along each row, in the units of the layer's input.
        coefficients: C, ``(sums, in, T − degree − 1)``.
        bias: b, ``(sums,)``.
        silu: w, ``(sums, in)``, the weight of each edge's SiLU branch.
        polynomial: P, ``(sums, in, powers)``: of x, x², …; powers may be 0.
        functions: edges of other functions, added to the rest.
        products: for each output the sums that are multiplied, by index; None where the outputs are the sums.
        offset: ``(out,)``, added to the products; only with products.

    Arrays are stored as read-only float64.

    Raises:
        InputError: the parts do not fit together, a number is not finite, or knots do not increase.
    """

    degree: int
    knots: Float64Array
    coefficients: Float64Array
    bias: Float64Array
    silu: Float64Array
    polynomial: Float64Array
    functions: tuple[Function, ...] = ()
    products: tuple[tuple[int, ...], ...] | None = None
    offset: Float64Array | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.degree <= MOST_DEGREE:
            raise InputError(f"a spline's degree must be 1 to {MOST_DEGREE}, got {self.degree}")
        for name in ("knots", "coefficients", "bias", "silu", "polynomial", "offset"):
            if getattr(self, name) is None:
                continue
            array = np.array(getattr(self, name), dtype=np.float64)  # a copy of our own
            if not np.isfinite(array).all():
                raise InputError(f"{name} must be finite, got NaN or infinity in an array of {array.shape}")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        sums, inputs = self.bias.size, len(np.atleast_1d(self.knots))
        fits = (
            self.knots.ndim == 2
            and self.bias.ndim == 1
            and self.coefficients.shape == (sums, inputs, self.knots.shape[1] - self.degree - 1)
            and self.coefficients.shape[2] > 0
            and self.silu.shape == (sums, inputs)
            and self.polynomial.shape[:2] == (sums, inputs)
            and self.polynomial.ndim == 3
        )
        if not fits:
            raise InputError(
                "a spline layer needs knots (in, T), coefficients (sums, in, T − degree − 1), bias (sums,), "
                f"silu (sums, in) and polynomial (sums, in, powers), got {self.knots.shape}, "
                f"{self.coefficients.shape}, {self.bias.shape}, {self.silu.shape} and {self.polynomial.shape} "
                f"for degree {self.degree}"
            )
        if not (np.diff(self.knots) > 0).all():
            worst = int(np.argmin(np.diff(self.knots).min(axis=1)))
            raise InputError(f"knots must increase strictly, those of input {worst} do not: {self.knots[worst]}")
        if any(not (0 <= f.input < inputs and 0 <= f.output < sums) for f in self.functions):
            raise InputError(f"a function lies on an edge that a layer of {inputs} inputs and {sums} sums has not")
        _check_products(self.products, self.offset, sums)

    @property
    def in_features(self) -> int:
        return int(self.knots.shape[0])

    @property
    def out_features(self) -> int:
        return len(self.products) if self.products is not None else self.bias.size

    @property
    def domain(self) -> Float64Array:
        """``(in, 2)``: the interval outside which an input has only its SiLU and polynomial branches left.

        An input with such branches alone has the interval of its knots, where it was trained, and one with
        functions what lies within theirs. Empty, (inf, -inf), for an input that nothing depends on.
        """
        live = self.coefficients.any(axis=(0, 2)) | (self.growth > 0)
        low, high = np.where(live, self.knots[:, 0], np.inf), np.where(live, self.knots[:, -1], -np.inf)
        for each in self.functions:
            alone = low[each.input] > high[each.input]
            low[each.input] = each.low if alone else max(low[each.input], each.low)
            high[each.input] = each.high if alone else min(high[each.input], each.high)
        return np.stack([low, high], axis=1)

    @property
    def grid_range(self) -> Float64Array:
        """``(in, 2)``: between the inner knots, where the grid was fitted to data and splines overlap in full."""
        return self.knots[:, [self.degree, -self.degree - 1]]

    @property
    def breaks(self) -> Float64Array:
        """``(in, T)``: where one piece of an input ends and the next begins."""
        return self.knots

    @property
    def pieces(self) -> Float64Array:
        """``(in, T − 1, 2)``: from where to where each piece goes."""
        return np.stack([self.knots[:, :-1], self.knots[:, 1:]], axis=2)

    @property
    def growth(self) -> NDArray[np.int64]:
        """``(in,)``: like which power of an input the sums grow beyond its domain: 1 for SiLU, 0 if they do not."""
        powers = np.arange(1, self.polynomial.shape[2] + 1)
        highest: NDArray[np.int64] = (self.polynomial.any(axis=0) * powers).max(axis=1, initial=0)
        return np.maximum(highest, self.silu.any(axis=0))

    @property
    def basis(self) -> int:
        """How many basis functions are evaluated for one row, over all inputs."""
        return self.knots.size

    def evaluate(self, x: NDArray[Any]) -> NDArray[Any]:
        """y ``(batch, out)`` for x ``(batch, in)``, in the arithmetic of x: float64 or float32."""
        dtype = x.dtype
        basis = _b_splines(x, self.knots.astype(dtype), self.degree).reshape(len(x), -1)  # (batch, in·K)
        result: NDArray[Any] = basis @ self.coefficients.reshape(self.bias.size, -1).T.astype(dtype)
        result = result + _silu(x) @ self.silu.T.astype(dtype) + self.bias.astype(dtype)  # (batch, sums)
        for power, column in enumerate(np.moveaxis(self.polynomial, 2, 0), start=1):  # (sums, in)
            used = column.any(axis=0)  # another input's power may well be too large for a number
            result = result + x[:, used] ** power @ column[:, used].T.astype(dtype)
        for function in self.functions:
            result[:, function.output] += function(x[:, function.input]).astype(dtype)
        if self.products is None:
            return result
        assert self.offset is not None  # as __post_init__ saw to
        multiplied = [result[:, list(group)].prod(axis=1) for group in self.products]
        result = np.stack(multiplied, axis=1) + self.offset.astype(dtype)
        return result


def _check_products(products: tuple[tuple[int, ...], ...] | None, offset: Float64Array | None, sums: int) -> None:
    if (products is None) != (offset is None):
        raise InputError("products and offset belong together: give both or neither")
    if products is None or offset is None:
        return
    if not products or not all(group and all(0 <= index < sums for index in group) for group in products):
        raise InputError(f"products must name sums from 0 to {sums - 1}, got {products}")
    if offset.shape != (len(products),):
        raise InputError(f"offset must be ({len(products)},), one for each product, got {offset.shape}")


def _b_splines(x: NDArray[Any], knots: NDArray[Any], degree: int) -> NDArray[Any]:
    """The B-splines ``(batch, in, T − degree − 1)`` at x ``(batch, in)``: Cox and de Boor."""
    x = np.clip(x, knots[:, 0], knots[:, -1])[:, :, np.newaxis]  # all are zero at both ends
    basis = ((x >= knots[:, :-1]) & (x < knots[:, 1:])).astype(x.dtype)  # degree 0: (batch, in, T − 1)
    for p in range(1, degree + 1):
        rising = (x - knots[:, : -p - 1]) / (knots[:, p:-1] - knots[:, : -p - 1])
        falling = (knots[:, p + 1 :] - x) / (knots[:, p + 1 :] - knots[:, 1:-p])
        basis = rising * basis[:, :, :-1] + falling * basis[:, :, 1:]
    return basis


def _silu(x: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        result: NDArray[Any] = x / (1 + np.exp(-x))
    return result
