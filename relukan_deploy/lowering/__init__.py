"""A `KanSpec` as a graph of Relu, Mul, Add and Conv: bumps.py, and ramps.py and splines.py, say how.

In which form depends on the target, on the batch size, and on what float32 bears of this network:
`candidate_forms` lists them, the fastest first, and `relukan_deploy.export` takes the first whose answers
are close enough to the float64 reference.

| form | network | how |
|---|---|---|
| direct | bumps | a product of two sums |
| quadratic | bumps | a parabola, by a grouped Conv over two features |
| direct-N | splines | truncated powers in blocks of N intervals; with N = 1 the B-splines themselves |
| grouped-N | splines | the same, with the input spread out by a grouped Conv |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from ..errors import InputError
from ..spec import Form, KanSpec, Layout, Precision
from ..splines import SplineSpec
from .bumps import bump_constants, is_narrow, lower_bumps
from .graph import OPERATORS, Float64Array, Graph, Node, Operator, storage_dtype
from .splines import distinct_blocks, lower_splines

__all__ = [
    "ENGINE_FORM",
    "OPERATORS",
    "Float64Array",
    "Graph",
    "Node",
    "Operator",
    "candidate_forms",
    "constants_like",
    "engine_form",
    "lower",
    "storage_dtype",
]

# TensorRT fuses elementwise operators into one kernel, so the direct form leaves it two kernels a
# layer, and the other three. Not yet measured on a GPU.
ENGINE_FORM: Form = "direct"
# From these batch sizes on they are the faster ones on a CPU (benchmarks/forms.py).
_QUADRATIC_FROM_BATCH, _GROUPED_FROM_BATCH = 16, 2


def candidate_forms(spec: KanSpec, *, layout: Layout, precision: Precision, batch: int) -> list[Form]:
    """The forms to try, the fastest in ONNX Runtime on a CPU first, and last the one that keeps most digits.

    Args:
        spec: the network.
        layout, precision: of the graph.
        batch: the batch size to be fastest at.
    """
    spread = layout == "batch-last" and precision == "fp32"  # what the grouped Conv over the inputs is good for
    if not isinstance(spec.layers[0], SplineSpec):
        return (
            ["quadratic", "direct"] if spread and batch >= _QUADRATIC_FROM_BATCH and not is_narrow(spec) else ["direct"]
        )
    way = "grouped" if spread and batch >= _GROUPED_FROM_BATCH else "direct"
    blocks = distinct_blocks(spec) if precision == "fp32" else [1]
    return [cast("Form", f"{way}-{block}") for block in blocks]


def engine_form(form: Form) -> Form:
    """What an engine is written in beside a graph of this form: TensorRT fuses what ONNX Runtime does not."""
    return cast("Form", form.replace("grouped", "direct")) if "-" in form else ENGINE_FORM


def lower(
    spec: KanSpec, *, layout: Layout, form: Form, precision: Precision, strict: bool = False, bound: float = 1e-6
) -> Graph:
    """Writes the network as a graph.

    Args:
        spec: the network.
        layout, precision: of the graph.
        form: one of `candidate_forms`.
        strict: write SiLU branches as piecewise polynomials too, where otherwise a graph needs Sigmoid.
        bound: the largest error of such a SiLU, and of each function of an edge, absolute.

    Raises:
        InputError: the form is not for this network, or the bound cannot be reached.
    """
    _check_form(spec, form)
    if isinstance(spec.layers[0], SplineSpec):
        return lower_splines(spec, layout=layout, form=form, precision=precision, strict=strict, bound=bound)
    return lower_bumps(spec, layout=layout, form=form, precision=precision)


def constants_like(
    spec: KanSpec,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    layout: Layout,
    form: Form,
    precision: Precision,
    strict: bool = False,
    bound: float = 1e-6,
) -> dict[str, Float64Array]:
    """The constants that make a graph which was lowered from another network compute this one.

    Args:
        spec: the network.
        shapes: the names and shapes of that graph's constants.
        layout, form, precision, strict, bound: of that graph; see `lower`.

    Raises:
        InputError: the graph has no place for this network's constants.
    """
    _check_form(spec, form)
    for drop_dead in (True, False):  # whether a bump or a feature is dead may have changed with the weights
        if isinstance(spec.layers[0], SplineSpec):
            made = dict(
                lower_splines(
                    spec,
                    layout=layout,
                    form=form,
                    precision=precision,
                    strict=strict,
                    bound=bound,
                    drop_dead=drop_dead,
                ).constants
            )
        else:
            made = bump_constants(spec, shapes, drop_dead=drop_dead, layout=layout, form=form, precision=precision)
        try:
            return {name: _spread(name, made[name], shape) for name, shape in shapes.items()}
        except (KeyError, ValueError):
            continue
    raise InputError(
        "the graph has no place for this network's constants: it was exported from one with other inputs, hidden "
        "features or basis functions. Export the network anew with relukan-export"
    )


def _check_form(spec: KanSpec, form: Form) -> None:
    if isinstance(spec.layers[0], SplineSpec) != ("-" in form):
        kind = "splines" if "-" in form else "bumps"
        raise InputError(f"form {form!r} is for networks of {kind}: ask candidate_forms for those of this network")


def _spread(name: str, array: Float64Array, shape: tuple[int, ...]) -> Float64Array:
    """A constant in the shape it has in another graph. Raises ValueError where that changes what it means."""
    if name.endswith(("weight", "bias")) and array.shape != shape:  # each number of a sum stands there once
        raise ValueError(f"{name} is {array.shape}, not {shape}")
    return np.broadcast_to(array, shape)
