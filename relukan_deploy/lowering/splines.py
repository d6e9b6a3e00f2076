"""A network of splines as a graph of Relu, Mul, Add and Conv, and Sigmoid where SiLU is kept exact.

A spline is a polynomial on each interval between two knots and zero outside the first and the last.
Everything is built of ramps, which are 1 on one side, 0 on the other, and linear between:

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

The other branches are added: powers of x, SiLU, functions of edges as piecewise polynomials. Then
multiplication nodes select their factors by a Conv of zeros and ones.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
from numpy.typing import NDArray

from ..approximation import approximate, silu_pieces
from ..spec import Form, KanSpec, Layout, Precision
from ..splines import Function, SplineSpec
from .graph import OPERATORS, Emitter, Float64Array, Graph

__all__ = ["distinct_blocks", "lower_splines"]

_BITS = 24  # of B-splines' values at knots, after the point: what float32 has
_BLOCKS = (6, 4, 3, 2)  # intervals in a block, the fastest first


def distinct_blocks(spec: KanSpec) -> list[int]:
    """The block lengths that this network can be written in, the fastest first; 1 for single intervals."""
    found: dict[tuple[tuple[int, ...], ...], int] = {}
    for length in _BLOCKS:
        layers = _layers(spec)
        edges = tuple(tuple(_edges(layer.knots.shape[1] - 1, length)) for layer in layers)
        fits = all(
            np.diff(each)[1:-1].min(initial=layer.degree) >= layer.degree - 1
            for each, layer in zip(edges, layers, strict=True)
        )
        if fits:
            found.setdefault(edges, length)
    return [*found.values(), 1]


def lower_splines(
    spec: KanSpec,
    *,
    layout: Layout,
    form: Form,
    precision: Precision,
    strict: bool,
    bound: float,
    drop_dead: bool = True,
) -> Graph:
    """Writes the network as a graph; see the module's docstring, and `lower` for the arguments."""
    way, _, block = form.partition("-")
    emit = Emitter(layout, precision)
    writer = _Writer(emit, grouped=way == "grouped", block=int(block), strict=strict, bound=bound)
    value = "x"
    for index, layer in enumerate(_compact(spec) if drop_dead else _layers(spec)):
        value = writer.layer(f"layer{index}", value, layer)
    exact = any(layer.silu.any() for layer in _layers(spec)) and not strict
    return emit.graph(spec.in_features, spec.out_features, (*OPERATORS, "Sigmoid") if exact else OPERATORS)


def _layers(spec: KanSpec) -> list[SplineSpec]:
    return [layer for layer in spec.layers if isinstance(layer, SplineSpec)]


def _compact(spec: KanSpec) -> list[SplineSpec]:
    """The layers without the hidden features that nothing depends on."""
    layers = _layers(spec)
    for index in reversed(range(1, len(layers))):
        layer = layers[index]
        weights = np.concatenate([layer.coefficients, layer.silu[..., np.newaxis], layer.polynomial], axis=2)
        used = np.array(weights.any(axis=(0, 2)))
        used[[function.input for function in layer.functions]] = True
        if not used.any():
            used[0] = True  # a constant layer still needs an input to take the batch size from
        kept = np.flatnonzero(used)
        layers[index] = _with_inputs(layer, kept)
        layers[index - 1] = _with_outputs(layers[index - 1], kept)
    return layers


def _with_inputs(layer: SplineSpec, kept: NDArray[np.intp]) -> SplineSpec:
    place = {old: new for new, old in enumerate(kept.tolist())}
    return dataclasses.replace(
        layer,
        knots=layer.knots[kept],
        coefficients=layer.coefficients[:, kept],
        silu=layer.silu[:, kept],
        polynomial=layer.polynomial[:, kept],
        functions=tuple(dataclasses.replace(f, input=place[f.input]) for f in layer.functions),
    )


def _with_outputs(layer: SplineSpec, kept: NDArray[np.intp]) -> SplineSpec:
    if layer.products is not None and layer.offset is not None:
        products = tuple(layer.products[index] for index in kept)
        return dataclasses.replace(layer, products=products, offset=layer.offset[kept])
    place = {old: new for new, old in enumerate(kept.tolist())}
    return dataclasses.replace(
        layer,
        coefficients=layer.coefficients[kept],
        bias=layer.bias[kept],
        silu=layer.silu[kept],
        polynomial=layer.polynomial[kept],
        functions=tuple(dataclasses.replace(f, output=place[f.output]) for f in layer.functions if f.output in place),
    )


# --- sums of powers of ramps


@dataclasses.dataclass(frozen=True, eq=False)
class _Ramps:
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


def _by_interval(breaks: Float64Array, pieces: Float64Array) -> _Ramps:
    """Continuous piecewise polynomials, which start at 0 and are constant outside their breaks.

    Args:
        breaks: ``(in, M + 1)``.
        pieces: ``(sums, in, M, d + 1)``, by powers of u = (x − t_m) / h_m.
    """
    mirrored = _mirrored(pieces)  # each piece falls from w = 1 to w = 0
    weights = {power: mirrored[..., power] for power in range(1, pieces.shape[-1])}
    constant = -sum(weight.sum(axis=(1, 2)) for weight in weights.values())
    return _Ramps(breaks[:, :-1], breaks[:, 1:], weights, np.asarray(constant))


def _mirrored(pieces: Float64Array) -> Float64Array:
    """The coefficients of P(1 − w), by powers of w, of P by powers of u."""
    count = pieces.shape[-1]
    binomial = np.zeros((count, count))  # (1 − w)^n = Σ_k binomial[n, k] w^k
    binomial[0, 0] = 1
    for n in range(1, count):
        binomial[n] = binomial[n - 1]
        binomial[n, 1:] -= binomial[n - 1, :-1]
    return pieces @ binomial


def _in_blocks(layer: SplineSpec, length: int) -> _Ramps:
    """The layer's splines as d-th powers of ramps, in blocks of at most `length` intervals."""
    degree, knots, pieces = layer.degree, layer.knots, _spline_pieces(layer)
    edges = _edges(knots.shape[1] - 1, length)
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
    return _Ramps(np.concatenate(ones, axis=1), np.concatenate(zeros, axis=1), {degree: weight}, constant)


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


def _edges(intervals: int, length: int) -> list[int]:
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


def _spline_pieces(layer: SplineSpec) -> Float64Array:
    """The layer's splines on each interval, ``(sums, in, M, d + 1)`` by powers of u = (x − t_m) / h_m."""
    pieces: Float64Array = np.einsum("oik,ikmd->oimd", layer.coefficients, _b_splines(layer), optimize=True)
    return pieces


def _b_splines(layer: SplineSpec) -> Float64Array:
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


def _bernstein(pieces: Float64Array) -> Float64Array:
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


def _functions(functions: tuple[Function, ...], sums: int, inputs: int, bound: float) -> _Ramps:
    """Edges of other functions, each as a piecewise polynomial within `bound`."""
    made = [(each, approximate(each, each.low, each.high, bound)) for each in functions]
    degree = max(pieces.coefficients.shape[1] - 1 for _, pieces in made)
    widths = [sum(len(pieces.coefficients) for each, pieces in made if each.input == index) for index in range(inputs)]
    ones, zeros = np.zeros((inputs, max(widths))), np.ones((inputs, max(widths)))  # any ramp, where there is none
    weights = {power: np.zeros((sums, inputs, max(widths))) for power in range(1, degree + 1)}
    constant, used = np.zeros(sums), [0] * inputs
    for each, pieces in made:
        single = _by_interval(pieces.breaks[np.newaxis], pieces.coefficients[np.newaxis, np.newaxis])
        place = slice(used[each.input], used[each.input] + single.ones.size)
        ones[each.input, place], zeros[each.input, place] = single.ones[0], single.zeros[0]
        for power, weight in single.weights.items():
            weights[power][each.output, each.input, place] = weight[0, 0]
        constant[each.output] += pieces.coefficients[0, 0] + single.constant[0]
        used[each.input] = place.stop
    return _Ramps(ones, zeros, weights, constant)


# --- nodes

_Term = tuple[str, str, Float64Array]
"""What is summed up by a Conv: a name for it, a tensor, the weights."""


class _Writer:
    """Writes layer after layer.

    Args:
        emit: where the nodes go.
        grouped: whether ramps are made by a grouped Conv over the inputs, or element by element.
        block: intervals in a block of truncated powers; 1 for single intervals.
        strict, bound: as for `lower`.
    """

    def __init__(self, emit: Emitter, *, grouped: bool, block: int, strict: bool, bound: float) -> None:
        self.emit = emit
        self.grouped = grouped
        self.block = block
        self.strict = strict
        self.bound = bound

    def layer(self, name: str, x: str, layer: SplineSpec) -> str:
        emit, sums = self.emit, layer.bias.size
        terms: list[_Term] = []
        bias = layer.bias
        if layer.coefficients.any():
            if self.block == 1:
                weight = layer.coefficients.reshape(sums, -1, 1)
                terms.append((name, self._b_splines(f"{name}/basis", x, layer), weight))
            else:
                ramps = _in_blocks(layer, self.block)
                terms += self._ramps(name, x, ramps)
                bias = bias + ramps.constant
        if layer.functions:
            ramps = _functions(layer.functions, sums, layer.in_features, self.bound)
            terms += self._ramps(f"{name}/functions", x, ramps)
            bias = bias + ramps.constant
        if layer.silu.any():
            added, constant = self._silu(f"{name}/silu", x, layer.silu)
            terms += added
            bias = bias + constant
        power = x
        for index, weight in enumerate(np.moveaxis(layer.polynomial, 2, 0)):
            if index:
                factor = self._powered(f"{name}/in_x{index + 1}", x, layer.polynomial[:, :, index:])
                power = emit.node("Mul", f"{name}/x{index + 1}", power, factor)
            terms.append((f"{name}/x{index + 1}", power, weight[..., np.newaxis]))
        if not terms:  # constant, and it needs an input to take the batch size from
            terms.append((name, x, np.zeros((sums, layer.in_features, 1))))
        return self._products(name, self._sum(name, terms, bias), layer)

    def _sum(self, name: str, terms: list[_Term], bias: Float64Array) -> str:
        total = ""
        for index, (term, value, weight) in enumerate(terms):
            added = self.emit.conv(f"{term}/sum", value, f"{term}/", weight, None if index else bias)
            total = self.emit.node("Add", f"{name}/sum{index}", total, added) if index else added
        return total

    def _ramps(self, name: str, x: str, ramps: _Ramps) -> list[_Term]:
        """The terms of a sum of powers of ramps."""
        tensors = self.emit.powers(f"{name}/w", self._ramp(name, x, ramps.ones, ramps.zeros))
        terms = []
        for power, weight in ramps.weights.items():
            term = f"{name}/power{power}" if len(ramps.weights) > 1 else name
            terms.append((term, tensors(power), self._spread(weight)))
        return terms

    def _b_splines(self, name: str, x: str, layer: SplineSpec) -> str:
        """The B-splines themselves, ``(in · K, 1)``."""
        emit, degree = self.emit, layer.degree
        w = self._ramp(name, x, layer.knots[:, :-1], layer.knots[:, 1:])
        u = emit.node("Add", f"{name}/rising", emit.negated(f"{name}/negated", w), self._one())
        w_power, u_power = self.emit.powers(f"{name}/w", w), self.emit.powers(f"{name}/u", u)
        total = ""
        for k, weight in enumerate(_bernstein(_b_splines(layer)), start=1):  # (in, K, M)
            feature = u_power(k) if k == degree else emit.node("Mul", f"{name}/u{k}w", u_power(k), w_power(degree - k))
            weight = weight.reshape(-1, weight.shape[2])
            kernel = weight[..., np.newaxis] if self.grouped else weight[:, np.newaxis]
            added = emit.conv(f"{name}/part{k}", feature, f"{name}/part{k}_", kernel, group=layer.in_features)
            total = emit.node("Add", f"{name}/parts{k}", total, added) if total else added
        return total

    def _ramp(self, name: str, x: str, ones: Float64Array, zeros: Float64Array) -> str:
        """w = ReLU(1 − g · ReLU(σ(x − t))): ``(in, F)``, or ``(in · F, 1)`` by a grouped Conv."""
        emit = self.emit
        sign, steepness = np.where(ones < zeros, 1.0, -1.0), 1 / np.abs(zeros - ones)
        if self.grouped:
            sign, ones, steepness = (each.reshape(-1, 1) for each in (sign, ones, steepness))
            inputs = len(zeros)
            value = emit.conv(
                f"{name}/distance", x, f"{name}/sides_", sign[..., np.newaxis], (-sign * ones)[:, 0], group=inputs
            )
        else:
            if (sign < 0).any():
                x = emit.node("Mul", f"{name}/mirrored", x, emit.elementwise(f"{name}/sides", sign))
            value = emit.add(f"{name}/distance", x, f"{name}/ones", -sign * ones)  # exact near the knot
        value = emit.node("Relu", f"{name}/beyond", value)
        value = emit.node("Mul", f"{name}/slope", value, emit.elementwise(f"{name}/steepness", -steepness))
        value = emit.node("Add", f"{name}/falling", value, self._one())
        return emit.node("Relu", f"{name}/ramps", value)

    def _one(self) -> str:
        return self.emit.elementwise("one", np.array([[1.0]]))

    def _spread(self, weight: Float64Array) -> Float64Array:
        """A weight ``(out, in, F)`` as the Conv over ramps takes it."""
        return weight.reshape(len(weight), -1, 1) if self.grouped else weight

    def _shared(self, name: str, array: Float64Array, inputs: int) -> str:
        """A constant ``(F,)`` that is the same for each input, as it is combined with ramps."""
        return self.emit.elementwise(name, np.tile(array, inputs)[:, np.newaxis] if self.grouped else array[np.newaxis])

    def _powered(self, name: str, x: str, weights: Float64Array) -> str:
        """x, and 0 for inputs whose weights ``(sums, in, powers)`` are: what is multiplied by 0 must not overflow."""
        used = np.array(weights.any(axis=(0, 2)))
        if used.all():
            return x
        return self.emit.node(
            "Mul", name, x, self.emit.elementwise(f"{name}/used", used[:, np.newaxis].astype(np.float64))
        )

    def _silu(self, name: str, x: str, weight: Float64Array) -> tuple[list[_Term], Float64Array]:
        """The terms of SiLU branches with weights ``(sums, in)``, and what they add to the bias."""
        emit = self.emit
        if not self.strict:
            value = emit.node("Mul", f"{name}/product", x, emit.node("Sigmoid", f"{name}/sigmoid", x))
            return [(name, value, weight[..., np.newaxis])], np.zeros(len(weight))
        rising = emit.node("Relu", f"{name}/relu", x)  # SiLU is ReLU and an even function of x
        falling = emit.node("Relu", f"{name}/mirrored", emit.negated(f"{name}/negated", x))
        distance = emit.node("Add", f"{name}/distance_from_zero", rising, falling)
        pieces, inputs = silu_pieces(self.bound), weight.shape[1]
        ones, zeros = (np.tile(each, (inputs, 1)) for each in (pieces.breaks[:-1], pieces.breaks[1:]))
        ramp = self._ramp(f"{name}/even", distance, ones, zeros)
        powers = _mirrored(pieces.coefficients).T[1:]  # (d, pieces): of powers of the ramp
        value = ""
        for power in range(len(powers), 0, -1):  # Horner's rule: one Conv instead of one for each power
            factor = self._shared(f"{name}/even/coefficient{power}", powers[power - 1], inputs)
            if value:
                factor = emit.node("Add", f"{name}/even/sum{power}", value, factor)
            value = emit.node("Mul", f"{name}/even/power{power}", ramp, factor)
        kernel = self._spread(np.repeat(weight[..., np.newaxis], len(pieces), axis=2))
        constant = pieces.coefficients[0, 0] - powers.sum()
        return [(f"{name}/even", value, kernel), (name, rising, weight[..., np.newaxis])], weight.sum(axis=1) * constant

    def _products(self, name: str, sums: str, layer: SplineSpec) -> str:
        """Products of sums: each factor is selected by a Conv of zeros and ones."""
        if layer.products is None or layer.offset is None:
            return sums
        emit, value = self.emit, ""
        for place in range(max(map(len, layer.products))):
            chosen = np.zeros((len(layer.products), layer.bias.size, 1))
            for output, group in enumerate(layer.products):
                if place < len(group):
                    chosen[output, group[place]] = 1
            missing = 1 - chosen.sum(axis=(1, 2))
            factor = emit.conv(f"{name}/factor{place}", sums, f"{name}/factor{place}_", chosen, missing)
            value = emit.node("Mul", f"{name}/product{place}", value, factor) if place else factor
        if layer.offset.any():
            offset = emit.elementwise(f"{name}/offset", layer.offset[:, np.newaxis])
            value = emit.node("Add", f"{name}/moved", value, offset)
        return value
