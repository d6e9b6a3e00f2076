"""The edges of a network one by one, as its pictures show them: what they give, how strong they are, what they join.

Numpy and float64, from the `KanSpec`, so that networks of bumps and of splines have one way here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .spec import KanSpec, LayerSpec, SplineSpec

__all__ = ["COLUMNS", "EdgeLayer", "edge_layers", "edges_of", "even_rows", "some_rows"]

Float64Array = NDArray[np.float64]

COLUMNS = 6  # of panels, at most

_MOST_ROWS = 4096  # enough for a deviation and a histogram
_POINTS = 401


@dataclasses.dataclass(frozen=True, eq=False)
class EdgeLayer:
    """What is drawn of one layer.

    Attributes:
        spec: the layer.
        inputs, outputs: names; of sums, where the layer multiplies them.
        rows: ``(rows, in)``, what reaches it; None without data.
        strength: ``(in, out)``, relative to the strongest edge.
        shown: the edges drawn, (input, output), in order.
        columns: panels in a row.
    """

    spec: LayerSpec | SplineSpec
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rows: Float64Array | None
    strength: Float64Array
    shown: list[tuple[int, int]]
    columns: int


def some_rows(spec: KanSpec, data: ArrayLike) -> Float64Array:
    """The rows, or 4096 of them, in float64; InputError if they do not fit the network."""
    rows = np.asarray(data, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != spec.in_features or not len(rows):
        raise InputError(f"data must be (rows, {spec.in_features}) with at least one row, got {rows.shape}")
    if not np.isfinite(rows).all():
        raise InputError("data must be finite, got NaN or infinity in it")
    if len(rows) > _MOST_ROWS:  # at random: every hundredth row may be every Monday's
        rows = rows[np.random.default_rng(0).choice(len(rows), _MOST_ROWS, replace=False)]
    return rows


def edge_layers(spec: KanSpec, rows: Float64Array | None, most: int) -> list[EdgeLayer]:
    """Every layer with its strongest edges, about `most` in all, shared by the layers in whole rows of panels.

    Args:
        spec: the network.
        rows: ``(rows, in)``; None measures strength over the inputs' intervals.
        most: how many.
    """
    share = -(-most // len(spec.layers) // COLUMNS) * COLUMNS  # rounded up
    names = _names(spec)
    layers: Sequence[LayerSpec | SplineSpec] = spec.layers
    result = []
    for number, layer in enumerate(layers):
        outputs = _of_sums(layer, names[number + 1])
        strength = _strength(layer, even_rows(layer) if rows is None else rows)
        order, columns = np.arange(strength.size), COLUMNS
        if strength.size > share:
            order = np.argsort(-strength, axis=None, kind="stable")[:share]
        elif len(outputs) <= COLUMNS:
            columns -= COLUMNS % len(outputs)  # all edges of an input in one row
        shown = [divmod(index, len(outputs)) for index in order.tolist()]
        result.append(EdgeLayer(layer, names[number], outputs, rows, strength, shown, min(columns, len(shown))))
        if rows is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                rows = KanSpec(spec.layers[number : number + 1]).evaluate(rows)
            rows = rows[np.isfinite(rows).all(axis=1)]
            rows = rows if len(rows) else None
    return result


def _names(spec: KanSpec) -> list[tuple[str, ...]]:
    """Of the inputs, of each hidden layer's nodes, and of the outputs."""
    inputs, *hidden, outputs = spec.widths
    named = spec.targets if spec.task == "regression" else spec.labels
    return [
        spec.columns or _numbered("x", inputs),
        *(_numbered("h", width) for width in hidden),
        named or _numbered("y", outputs),
    ]


def _numbered(letter: str, count: int) -> tuple[str, ...]:
    below = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
    return tuple(f"{letter}{index}".translate(below) for index in range(count))


def _of_sums(layer: LayerSpec | SplineSpec, nodes: tuple[str, ...]) -> tuple[str, ...]:
    """What to call the layer's sums: like its nodes, or a factor of one that multiplies several."""
    if isinstance(layer, LayerSpec) or layer.products is None:
        return nodes
    names = list(_numbered("s", layer.bias.size))
    for node, group in zip(nodes, layer.products, strict=True):
        for each in group:
            names[each] = node if len(group) == 1 else f"factor of {node}"
    return tuple(names)


def edges_of(layer: LayerSpec | SplineSpec, index: int) -> LayerSpec | SplineSpec:
    """The layer of one input alone, x ``(rows, 1)`` to what each of its edges adds to a sum, ``(rows, sums)``."""
    one = slice(index, index + 1)
    weights, bias = layer.coefficients[:, one], np.zeros_like(layer.bias)
    if isinstance(layer, LayerSpec):
        return LayerSpec(layer.starts[one], layer.ends[one], weights, bias, layer.power)
    functions = tuple(dataclasses.replace(each, input=0) for each in layer.functions if each.input == index)
    branches = (layer.silu[:, one], layer.polynomial[:, one])
    return SplineSpec(layer.degree, layer.knots[one], weights, bias, *branches, functions)


def _strength(layer: LayerSpec | SplineSpec, rows: Float64Array) -> Float64Array:
    """``(in, sums)``: the edges' standard deviations, relative to the largest."""
    with np.errstate(over="ignore", invalid="ignore"):
        each = [edges_of(layer, index).evaluate(rows[:, [index]]).std(axis=0) for index in range(layer.in_features)]
    result = np.nan_to_num(np.stack(each), posinf=0)  # an edge that is infinite somewhere has none
    strongest = float(result.max())
    return np.asarray(result / strongest) if strongest else result


def even_rows(layer: LayerSpec | SplineSpec) -> Float64Array:
    """``(points, in)``: evenly over each input's domain, and over [0, 1] where it has none."""
    low, high = np.where(layer.domain[:, :1] < layer.domain[:, 1:], layer.domain, (0.0, 1.0)).T
    return np.linspace(low, high, _POINTS)
