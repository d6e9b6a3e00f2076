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

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..spec import KanSpec
from ..splines import Function, SplineSpec
from ._pykan_files import Config, parse_config, read_saved
from ._pykan_layers import Layer, matches, read_layers
from ._pykan_symbolic import POWERS, symbolic_edges
from ._ranges import layer_range

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["load", "matches", "read_saved"]

Float64Array = NDArray[np.float64]

_BASES = ("silu", "identity", "zero")
_SAVECKPT = "save it with model.saveckpt('mark') and give mark_config.yml"


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
    layers = read_layers(state)
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


def _nodes(layers: Sequence[Layer]) -> tuple[int, ...]:
    return (len(layers[0].grid), *(layer.node_bias.size for layer in layers))


def _refuse_symbolic(layers: Sequence[Layer]) -> None:
    edges = [(layer.index, *edge) for layer in layers for edge in np.argwhere(layer.symbolic_mask).tolist()]
    if edges:
        index, output, source = edges[0]
        more = f" (and {len(edges) - 1} more)" if len(edges) > 1 else ""
        raise CheckpointError(
            f"edge {source} → {output} of layer {index}{more} of this checkpoint of pykan is symbolic, and a state "
            f"dict does not say which function it computes: {_SAVECKPT}"
        )


def _arities(layers: Sequence[Layer], mult_arity: int | None) -> tuple[tuple[int, ...], ...]:
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
    counts = ", ".join(f"{layer.subnode_bias.size}:{layer.node_bias.size}" for layer in layers)
    raise CheckpointError(
        f"this checkpoint of pykan has layers of sums and outputs {counts}, "
        + (f"which --mult-arity {mult_arity} does not give" if mult_arity is not None else "in more than one way")
        + (f": give --mult-arity {' or '.join(map(str, fitting))}, which all of them have, or " if fitting else ": ")
        + _SAVECKPT
    )


def _check_config(told: Config, layers: Sequence[Layer], mult_arity: int | None) -> None:
    extra = [sum(arity - 1 for arity in arities) for arities in told.arities]
    if told.nodes != _nodes(layers) or extra != [layer.extra for layer in layers]:
        raise CheckpointError(
            f"the configuration of this checkpoint of pykan is for {_said(told.nodes, extra)}, its state dict is of "
            f"{_said(_nodes(layers), [layer.extra for layer in layers])}: expected both from one model.saveckpt"
        )
    if told.base not in _BASES:
        raise CheckpointError(
            f"the base function of this checkpoint of pykan is {told.base!r}: expected one of {', '.join(_BASES)}. "
            "Train with one of those"
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
    layer: Layer, base: str, arities: Sequence[int], names: Sequence[Sequence[str]] | None, box: Float64Array
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


def _knots(layer: Layer) -> tuple[Float64Array, NDArray[np.bool_]]:
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
