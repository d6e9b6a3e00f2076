"""pykan (Liu et al. 2024, arXiv:2404.19756 and 2408.10205): its state dict as a `KanSpec`.

pykan 0.2's KAN holds for each layer N, of `in` inputs, `sums` sums and `out` outputs,

    act_fun.N.grid            (in, G + 2k + 1)     the knots; G intervals and order k may differ by layer
    act_fun.N.coef            (in, sums, G + k)
    act_fun.N.mask, act_fun.N.scale_base, act_fun.N.scale_sp    (in, sums)
    symbolic_fun.N.mask       (sums, in)
    symbolic_fun.N.affine     (sums, in, 4)        a, b, c and d
    subnode_scale_N, subnode_bias_N                (sums,)
    node_scale_N, node_bias_N                      (out,)

and computes from them (MultKAN.forward in its MultKAN.py)

    s_o = subnode_bias_o + subnode_scale_o · Σ_i [
              mask_io (scale_base_io base(x_i) + scale_sp_io Σ_j coef_ioj B_ij(x_i))
              + symbolic_mask_oi (c f(a x_i + b) + d) ]
    y_n = node_bias_n + node_scale_n · (one of s, or the product of several)

where the outputs that are one sum come first, and each product takes the sums that are next. The
base, f and how many sums each product takes are not in a state dict, but in the configuration that
`model.saveckpt` writes with it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..spec import KanSpec
from ..splines import MOST_DEGREE, Function, SplineSpec
from ._pykan_files import Config, parse_config, read_saved
from ._pykan_symbolic import POWERS, symbolic_edges
from ._ranges import layer_range
from ._tensors import as_float64, check_tensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["load", "matches", "read_saved"]

Float64Array = NDArray[np.float64]

_PREFIX = re.compile(r"act_fun\.(\d+)\.")
_KEYS = {
    "grid": "act_fun.{}.grid",
    "coef": "act_fun.{}.coef",
    "mask": "act_fun.{}.mask",
    "scale_base": "act_fun.{}.scale_base",
    "scale_sp": "act_fun.{}.scale_sp",
    "symbolic_mask": "symbolic_fun.{}.mask",
    "affine": "symbolic_fun.{}.affine",
    "subnode_scale": "subnode_scale_{}",
    "subnode_bias": "subnode_bias_{}",
    "node_scale": "node_scale_{}",
    "node_bias": "node_bias_{}",
}
_BASES = ("silu", "identity", "zero")
_SAVECKPT = "save it with model.saveckpt('mark') and give mark_config.yml"


@dataclasses.dataclass(frozen=True, eq=False)
class _Layer:
    """A layer of the file in float64, under pykan's names; shapes as above."""

    index: int
    grid: Float64Array
    coef: Float64Array
    mask: Float64Array
    scale_base: Float64Array
    scale_sp: Float64Array
    symbolic_mask: Float64Array
    affine: Float64Array
    subnode_scale: Float64Array
    subnode_bias: Float64Array
    node_scale: Float64Array
    node_bias: Float64Array

    @property
    def order(self) -> int:
        return int(self.grid.shape[1] - self.coef.shape[2] - 1)

    @property
    def extra(self) -> int:
        """How many more sums there are than outputs: a product of n sums takes n − 1 more."""
        return self.subnode_bias.size - self.node_bias.size


def matches(state: Mapping[str, object]) -> bool:
    """Whether these are the keys of a pykan network."""
    return any(isinstance(key, str) and _PREFIX.match(key) for key in state)


def load(
    state: Mapping[str, Tensor], *, config: Mapping[str, Any] | None = None, mult_arity: int | None = None
) -> KanSpec:
    """The network of a state dict, in float64.

    Inputs that pykan's prune_input took away are not in a state dict: x are those that it kept, in order.
    A symbolic edge that is no polynomial holds on the values that reach it while the network's inputs
    keep to their grids.

    Args:
        state: the state dict; of any floating-point dtype.
        config: what `model.saveckpt` wrote about the same network. Without it the base is taken to be
            SiLU, pykan's default.
        mult_arity: how many sums each multiplication node multiplies, where that is not in `config`.

    Raises:
        CheckpointError: keys are missing or unknown, shapes do not fit together or are not those of
            `config`, or something cannot be told from the file or computed by a `KanSpec`.
    """
    layers = _read_layers(state)
    if config is None:
        _refuse_symbolic(layers)
        told = Config(_nodes(layers), _arities(layers, mult_arity), "silu", None)
    else:
        told = parse_config(config)
        _check_config(told, layers, mult_arity)
    box = layers[0].grid[:, [layers[0].order, -layers[0].order - 1]]  # (in, 2), the inner knots
    specs: list[SplineSpec] = []
    for layer, arities in zip(layers, told.arities, strict=True):
        names = told.functions[layer.index] if told.functions is not None else None
        specs.append(_spec_of(layer, told.base, arities, names, box))
        if names is not None and any(later.symbolic_mask.any() for later in layers[layer.index + 1 :]):
            box = layer_range(specs[-1], box)
    return KanSpec(tuple(specs))


def _nodes(layers: Sequence[_Layer]) -> tuple[int, ...]:
    return (len(layers[0].grid), *(layer.node_bias.size for layer in layers))


def _read_layers(state: Mapping[str, Tensor]) -> list[_Layer]:
    names = set(map(str, state))
    # No more layers than there are keys, whatever their numbers.
    count = min(len(names), 1 + max((int(found[1]) for name in names if (found := _PREFIX.match(name))), default=0))
    check_tensors(state, {key.format(index) for index in range(count) for key in _KEYS.values()}, "pykan")
    layers: list[_Layer] = []
    for index in range(count):
        arrays = {name: as_float64(state[key.format(index)]) for name, key in _KEYS.items()}
        _check_shapes(index, arrays, layers[-1].node_bias.size if layers else None)
        layers.append(_Layer(index, **arrays))
    return layers


def _check_shapes(index: int, arrays: Mapping[str, Float64Array], previous: int | None) -> None:
    shapes = {name: array.shape for name, array in arrays.items()}
    inputs, sums = shapes["mask"] if arrays["mask"].ndim == 2 else (0, 0)
    outputs = arrays["node_bias"].size
    fits = (
        arrays["grid"].ndim == 2
        and arrays["coef"].ndim == 3
        and shapes["grid"][0] == inputs
        and shapes["coef"][:2] == shapes["scale_base"] == shapes["scale_sp"] == (inputs, sums)
        and shapes["symbolic_mask"] == (sums, inputs)
        and shapes["affine"] == (sums, inputs, 4)
        and shapes["subnode_scale"] == shapes["subnode_bias"] == (sums,)
        and shapes["node_scale"] == shapes["node_bias"] == (outputs,)
        and 0 < outputs <= sums
        and inputs > 0
        and previous in (None, inputs)
    )
    if not fits:
        raise CheckpointError(
            f"layer {index} of this checkpoint of pykan does not fit together: "
            + ", ".join(f"{_KEYS[name].format(index)} {shape}" for name, shape in shapes.items())
            + (f"; the layer before has {previous} outputs" if previous is not None else "")
        )
    (_, knots), (*_, splines) = shapes["grid"], shapes["coef"]
    order = knots - splines - 1
    if not 1 <= order <= MOST_DEGREE or splines <= order:
        raise CheckpointError(
            f"layer {index} of this checkpoint of pykan has {knots} knots for {splines} splines, so order {order} "
            f"and {splines - order} intervals: expected order 1 to {MOST_DEGREE} and at least 1 interval"
        )


def _refuse_symbolic(layers: Sequence[_Layer]) -> None:
    edges = [(layer.index, *edge) for layer in layers for edge in np.argwhere(layer.symbolic_mask).tolist()]
    if edges:
        index, output, source = edges[0]
        more = f" (and {len(edges) - 1} more)" if len(edges) > 1 else ""
        raise CheckpointError(
            f"edge {source} → {output} of layer {index}{more} of this checkpoint of pykan is symbolic, and a state "
            f"dict does not say which function it computes: {_SAVECKPT}"
        )


def _arities(layers: Sequence[_Layer], mult_arity: int | None) -> tuple[tuple[int, ...], ...]:
    """Of a state dict alone, where neither `mult_arity` nor the counts may leave a doubt."""
    most = max(layer.extra for layer in layers) + 1
    certain = all(layer.extra <= 1 or layer.node_bias.size == 1 for layer in layers)
    if certain and (mult_arity is None or most == 1):
        return tuple((layer.extra + 1,) * (layer.extra > 0) for layer in layers)
    fitting = [
        arity
        for arity in range(2, most + 1)
        if all(layer.extra % (arity - 1) == 0 and layer.extra <= layer.node_bias.size * (arity - 1) for layer in layers)
    ]
    if mult_arity in fitting:
        return tuple((mult_arity,) * (layer.extra // (mult_arity - 1)) for layer in layers)
    counts = ", ".join(f"{layer.subnode_bias.size} sums for {layer.node_bias.size} outputs" for layer in layers)
    raise CheckpointError(
        f"this checkpoint of pykan has layers of {counts}, "
        + (f"which --mult-arity {mult_arity} does not give" if mult_arity is not None else "in more than one way")
        + (f": give --mult-arity {' or '.join(map(str, fitting))}, which all of them have, or " if fitting else ": ")
        + _SAVECKPT
    )


def _check_config(told: Config, layers: Sequence[_Layer], mult_arity: int | None) -> None:
    extra = [sum(arity - 1 for arity in arities) for arities in told.arities]
    if told.nodes != _nodes(layers) or extra != [layer.extra for layer in layers]:
        raise CheckpointError(
            f"the configuration of this checkpoint of pykan is for {_said(told.nodes, extra)}, its state dict is of "
            f"{_said(_nodes(layers), [layer.extra for layer in layers])}: expected both from one model.saveckpt"
        )
    if told.base not in _BASES:
        raise CheckpointError(
            f"the base function of this checkpoint of pykan is {told.base!r}: expected one of {', '.join(_BASES)}"
        )
    if mult_arity is not None and any(arity != mult_arity for arity in itertools.chain(*told.arities)):
        raise CheckpointError(
            f"the configuration of this checkpoint of pykan holds its own mult_arity, which is not {mult_arity}: "
            "leave out --mult-arity"
        )


def _said(nodes: Sequence[int], extra: Sequence[int]) -> str:
    sums = [number + more for number, more in zip(nodes[1:], extra, strict=False)]
    return f"widths {list(nodes)} made of {sums} sums"


def _spec_of(
    layer: _Layer, base: str, arities: Sequence[int], names: Sequence[Sequence[str]] | None, box: Float64Array
) -> SplineSpec:
    products = _products(layer.node_bias.size, arities)
    node_scale = np.ones_like(layer.subnode_scale)  # of each sum: a product is scaled in its first factor
    node_scale[[group[0] for group in products]] = layer.node_scale
    scale = (layer.subnode_scale * node_scale)[:, np.newaxis]  # (sums, 1)

    knots, constant = _knots(layer)
    spline = scale * (layer.mask * layer.scale_sp).T * ~constant  # (sums, in)
    based = scale * (layer.mask * layer.scale_base).T
    polynomial = np.zeros((*based.shape, POWERS + 1))
    functions: tuple[Function, ...] = ()
    if names is not None:
        affine = layer.affine.copy()
        affine[:, :, 2:] *= (scale * layer.symbolic_mask)[:, :, np.newaxis]
        polynomial, functions = symbolic_edges(layer.index, affine, names, _widened(box))
    if base == "identity":
        polynomial[:, :, 1] += based
    powers = int(np.flatnonzero(polynomial.any(axis=(0, 1))).max(initial=0))
    bias = layer.subnode_bias * node_scale + polynomial[:, :, 0].sum(axis=1)
    return SplineSpec(
        degree=layer.order,
        knots=knots,
        coefficients=spline[:, :, np.newaxis] * layer.coef.transpose(1, 0, 2),
        bias=bias if arities else bias + layer.node_bias,
        silu=based if base == "silu" else np.zeros_like(based),
        polynomial=polynomial[:, :, 1 : powers + 1],
        functions=functions,
        products=products if arities else None,
        offset=layer.node_bias if arities else None,
    )


def _products(outputs: int, arities: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The sums that each output is the product of: one, or with a multiplication node several."""
    counts = (1,) * (outputs - len(arities)) + tuple(arities)
    ends = itertools.accumulate(counts)
    return tuple(tuple(range(end - count, end)) for end, count in zip(ends, counts, strict=True))


def _knots(layer: _Layer) -> tuple[Float64Array, NDArray[np.bool_]]:
    """Increasing knots, and which inputs ``(in,)`` have no splines.

    Where data was constant when pykan fitted the grid to it, all knots are one. It divides 0 by 0 there,
    and takes each such B-spline to be zero everywhere.
    """
    first = layer.grid[:, :1]
    constant = (layer.grid == first).all(axis=1)
    apart = first + np.maximum(1, np.abs(first)) * np.arange(layer.grid.shape[1])
    knots = np.where(constant[:, np.newaxis], apart, layer.grid)
    steps = np.diff(knots).min(axis=1)
    if not (steps > 0).all():
        raise CheckpointError(
            f"some knots of input {int(steps.argmin())} of layer {layer.index} of this checkpoint of pykan are equal "
            "or do not increase, and pykan's own splines break off there: update the grid with more varied data, "
            "model.update_grid_from_samples(x), or build the network with a larger grid_eps"
        )
    return knots, constant


def _widened(box: Float64Array) -> Float64Array:
    """Each interval as it is, or a short one around it where it has no width."""
    room = np.where(box[:, 0] < box[:, 1], 0, 1e-3 * np.maximum(1, np.abs(box[:, 0])))
    return np.stack([box[:, 0] - room, box[:, 1] + room], axis=1)
