"""Networks for the tests of the exporters, and what evaluates them."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from relukan_deploy.spec import Form, KanSpec, LayerSpec, Layout, SplineSpec

Array = NDArray[np.float64]
LAYOUTS: tuple[Layout, ...] = ("batch-last", "batch-major")
BUMP_FORMS: tuple[Form, ...] = ("direct", "quadratic")


def random_layer(
    rng: np.random.Generator,
    inputs: int,
    outputs: int,
    *,
    grid: int,
    order: int,
    slope: float,
    dead: float = 0.0,
    power: int = 2,
) -> LayerSpec:
    """Bumps on the lattice of [0, 1], moved a little. No output is steeper than `slope`.

    A share of `dead` has s and e crossed, and as large a share has no weight.
    """
    starts = np.tile(np.arange(-order, grid) / grid, (inputs, 1))
    ends = starts + (order + 1) / grid
    starts, ends = (each + rng.uniform(-0.1, 0.1, starts.shape) / grid for each in (starts, ends))
    crossed = rng.random(starts.shape) < dead
    starts, ends = np.where(crossed, ends, starts), np.where(crossed, starts, ends)
    coefficients = rng.uniform(-1, 1, (outputs, inputs, grid + order))
    coefficients[:, rng.random(starts.shape) < dead] = 0
    # (1−t²)^m is nowhere steeper than this, in half-widths, and order + 3 bumps overlap at most.
    at = (2 * power - 1) ** -0.5
    steepest = (
        2
        * power
        * at
        * (1 - at**2) ** (power - 1)
        * 2
        / np.abs(ends - starts).min()
        * inputs
        * min(order + 3, grid + order)
    )
    return LayerSpec(starts, ends, coefficients * min(1.0, slope / steepest), rng.uniform(0.1, 0.9, outputs), power)


def random_network(
    seed: int,
    widths: list[int],
    *,
    grid: int = 5,
    order: int = 3,
    dead: float = 0.0,
    power: int = 2,
    ranges: tuple[Array, Array] | None = None,
) -> KanSpec:
    """A network whose hidden layers do not stretch errors, so that rounding stays what it is."""
    rng = np.random.default_rng(seed)
    layers = [
        random_layer(rng, i, o, grid=grid, order=order, slope=20 if n == len(widths) - 2 else 1, dead=dead, power=power)
        for n, (i, o) in enumerate(itertools.pairwise(widths))
    ]
    if ranges is not None:
        low, span = (each[:, np.newaxis] for each in ranges)
        first = layers[0]
        layers[0] = dataclasses.replace(first, starts=low + first.starts * span, ends=low + first.ends * span)
    return KanSpec(tuple(layers))


@st.composite
def networks(draw: st.DrawFn, *, exponents: float = 0.0, distances: float = 0.0) -> tuple[KanSpec, Array]:
    """A network, and float32 rows in and around its domain.

    Args:
        exponents: inputs span 10 to a power between minus this and this.
        distances: and lie up to 10 to this power of their span away from zero.
    """
    widths = draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    span = 10 ** rng.uniform(-exponents, exponents, widths[0])
    low = span * rng.uniform(-1, 1, widths[0]) * 10 ** rng.uniform(0, distances, widths[0])
    spec = random_network(
        int(rng.integers(2**32)),
        widths,
        grid=draw(st.integers(1, 10)),
        order=draw(st.integers(0, 4)),
        dead=draw(st.sampled_from([0.0, 0.1, 0.5])),
        ranges=(low, span),
    )
    rows = draw(st.sampled_from([1, 2, 33]))
    x = (low + span * rng.uniform(-0.8, 1.8, (rows, widths[0]))).astype(np.float32)
    return spec, x.astype(np.float64)


def spline_network(
    seed: int, widths: list[int], *, grid: int = 5, degree: int = 3, silu: float = 1.0, powers: int = 0
) -> KanSpec:
    """B-splines on uneven knots around [-1, 1], as updated grids leave them, and base branches.

    Args:
        silu: how large the weights of SiLU are, beside coefficients of 1. 0 is without.
        powers: of the polynomials; 0 is without.
    """
    rng = np.random.default_rng(seed)
    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        knots = np.arange(-degree, grid + degree + 1) * 2 / grid - 1
        layers.append(
            SplineSpec(
                degree,
                knots + rng.uniform(-0.5, 0.5, (inputs, knots.size)) / grid,
                rng.normal(0, inputs**-0.5, (outputs, inputs, grid + degree)),
                rng.uniform(-0.1, 0.1, outputs),
                rng.normal(0, silu * inputs**-0.5, (outputs, inputs)),
                rng.normal(0, 0.3 * inputs**-0.5, (outputs, inputs, powers)),
            )
        )
    return KanSpec(tuple(layers))


def bump_layers(spec: KanSpec) -> tuple[LayerSpec, ...]:
    """The layers of a network that has bumps alone."""
    layers = tuple(layer for layer in spec.layers if isinstance(layer, LayerSpec))
    assert len(layers) == len(spec.layers)
    return layers


def spline_layers(spec: KanSpec) -> tuple[SplineSpec, ...]:
    """The layers of a network that has splines alone."""
    layers = tuple(layer for layer in spec.layers if isinstance(layer, SplineSpec))
    assert len(layers) == len(spec.layers)
    return layers


def to_graph(x: Array, layout: Layout) -> Array:
    """Rows ``(batch, in)`` in the shape of a graph's input."""
    return np.ascontiguousarray(x.T[np.newaxis, :, np.newaxis] if layout == "batch-last" else x[..., np.newaxis])


def from_graph(y: NDArray[Any], layout: Layout) -> Array:
    """A graph's output as rows ``(batch, out)`` in float64."""
    return np.asarray(y[0, :, 0].T if layout == "batch-last" else y[..., 0], dtype=np.float64)


def run_onnx(model: bytes, x: Array, layout: Layout, dtype: Any = np.float32) -> Array:
    """Rows through ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with np.errstate(over="ignore"):
        fed = to_graph(x, layout).astype(dtype)
    return from_graph(session.run(None, {"x": fed})[0], layout)


def error_of(y: Array, expected: Array) -> float:
    """The largest error, relative to the outputs' range or 1."""
    return float(np.abs(y - expected).max() / max(1.0, np.abs(expected).max()))
