"""pykan's symbolic edges, c · f(a · x + b) + d: polynomials where they are such, else a `Function` on an interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..splines import FUNCTIONS, Function
from ._ranges import value_range

__all__ = ["POWERS", "symbolic_edges"]

Float64Array = NDArray[np.float64]

POWERS = 5
_DEGREES = {"x": 1, **{f"x^{degree}": degree for degree in range(2, POWERS + 1)}}

# The pieces that would follow a function over more are too many.
_WIDEST = 1e6


def symbolic_edges(
    layer: int, affine: Float64Array, names: Sequence[Sequence[str]], box: Float64Array
) -> tuple[Float64Array, tuple[Function, ...]]:
    """The edges of one layer as polynomials ``(sums, in, POWERS + 1)``, from the power 0, and functions.

    Args:
        layer: its index, for messages.
        affine: ``(sums, in, 4)``: a, b, c, d, masks and scales already in c and d.
        names: of the functions, ``[output][input]``.
        box: ``(in, 2)``, the interval on which the edges of each input hold.

    Raises:
        CheckpointError: an edge's function is unknown or not finite on its interval, or that is too wide.
    """
    polynomial = np.zeros((*affine.shape[:2], POWERS + 1))
    polynomial[:, :, 0] = affine[:, :, 3]
    functions = []
    for output, index in zip(*np.nonzero(affine[:, :, 2]), strict=True):
        slope, shift, scale, _ = affine[output, index].tolist()
        name = names[output][index]
        if name == "0":
            continue
        if name in _DEGREES:
            powers = np.polynomial.Polynomial([shift, slope]) ** _DEGREES[name]
            polynomial[output, index, : len(powers)] += scale * powers.coef
            continue
        edge = f"edge {index} → {output} of layer {layer} computes {name!r}"
        if name not in FUNCTIONS:
            raise CheckpointError(
                f"{edge}, which is none of the functions that pykan comes with: expected one of "
                f"{', '.join(('0', *_DEGREES, *FUNCTIONS))}. Make it a spline again: "
                f"model.unfix_symbolic({layer}, {index}, {output})"
            )
        low, high = box[index].tolist()
        _check_interval(edge, f"model.unfix_symbolic({layer}, {index}, {output})", name, slope, shift, low, high)
        functions.append(Function(name, int(index), int(output), slope, shift, scale, low, high))
    return polynomial, tuple(functions)


def _check_interval(edge: str, instead: str, name: str, slope: float, shift: float, low: float, high: float) -> None:
    if not high - low <= _WIDEST:  # NaN neither
        raise CheckpointError(
            f"{edge} of anything from {low:.6g} to {high:.6g}, by the network's grids and the bounds of its layers: "
            f"at most {_WIDEST:g} wide can be followed. Prune the network, or make the edge a spline again: {instead}"
        )
    inner = sorted((slope * low + shift, slope * high + shift))
    if value_range(name, *inner) is None:
        raise CheckpointError(
            f"{edge} of values from {inner[0]:.6g} to {inner[1]:.6g}, while its input goes from {low:.6g} to "
            f"{high:.6g}: it is not finite and continuous there. Fit the grid to the data, "
            f"model.update_grid_from_samples(x), or make the edge a spline again: {instead}"
        )
