"""A network of splines as a graph of Relu, Mul, Add and Conv, and Sigmoid where SiLU is kept exact.

A spline is a polynomial on each interval between two knots and zero outside the first and the last.
Layers are written one after the other: hidden features that nothing depends on are left out, then each layer is
the sum of its branches: splines, by ramps.py in one of two ways; functions of edges, as piecewise polynomials;
SiLU; powers of x. Multiplication nodes select their factors by a Conv of zeros and ones.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ..approximation import silu_pieces
from ..spec import Form, KanSpec, Layout, Precision
from ..splines import SplineSpec
from .graph import OPERATORS, Emitter, Float64Array, Graph
from .ramps import Ramps, bernstein_weights, block_edges, function_ramps, in_blocks, mirrored, spline_pieces

__all__ = ["distinct_blocks", "lower_splines"]

_BLOCKS = (6, 4, 3, 2)  # intervals in a block, the fastest first


def distinct_blocks(spec: KanSpec) -> list[int]:
    """The block lengths that this network can be written in, the fastest first; 1 for single intervals."""
    found: dict[tuple[tuple[int, ...], ...], int] = {}
    for length in _BLOCKS:
        layers = _layers(spec)
        edges = tuple(tuple(block_edges(layer.knots.shape[1] - 1, length)) for layer in layers)
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
                terms.append((name, self._basis(f"{name}/basis", x, layer), weight))
            else:
                ramps = in_blocks(layer, self.block)
                terms += self._ramps(name, x, ramps)
                bias = bias + ramps.constant
        if layer.functions:
            ramps = function_ramps(layer.functions, sums, layer.in_features, self.bound)
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

    def _ramps(self, name: str, x: str, ramps: Ramps) -> list[_Term]:
        """The terms of a sum of powers of ramps."""
        tensors = self.emit.powers(f"{name}/w", self._ramp(name, x, ramps.ones, ramps.zeros))
        terms = []
        for power, weight in ramps.weights.items():
            term = f"{name}/power{power}" if len(ramps.weights) > 1 else name
            terms.append((term, tensors(power), self._spread(weight)))
        return terms

    def _basis(self, name: str, x: str, layer: SplineSpec) -> str:
        """The B-splines themselves, ``(in · K, 1)``."""
        emit, degree = self.emit, layer.degree
        w = self._ramp(name, x, layer.knots[:, :-1], layer.knots[:, 1:])
        u = emit.node("Add", f"{name}/rising", emit.negated(f"{name}/negated", w), self._one())
        w_power, u_power = self.emit.powers(f"{name}/w", w), self.emit.powers(f"{name}/u", u)
        total = ""
        for k, weight in enumerate(bernstein_weights(spline_pieces(layer)), start=1):  # (in, K, M)
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
        powers = mirrored(pieces.coefficients).T[1:]  # (d, pieces): of powers of the ramp
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
