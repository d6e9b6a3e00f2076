"""efficient-kan (Blealtan/efficient-kan, src/efficient_kan/kan.py): its state dict as a `KanSpec`.

Each layer N holds, under `layers.N.`:

    base_weight    (out, in)         of each edge's base branch
    spline_weight  (out, in, G + k)  of each edge's B-splines
    spline_scaler  (out, in)         a factor on those; not there with enable_standalone_scale_spline=False
    grid           (in, G + 2k + 1)  the knots of each input, which update_grid adapts to data

for G intervals and order k, which follow from the shapes. The base branch's activation is no
tensor: a state dict is taken to have SiLU, its default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import CheckpointError
from ..spec import KanSpec
from ..splines import Float64Array, SplineSpec
from ._tensors import as_float64, check_order, check_tensors, layer_count

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Base", "base_of", "load", "matches"]

Base = Literal["silu", "identity"]
_LIBRARY = "efficient-kan"
_KEY = re.compile(r"layers\.(\d{1,18})\.(?:base_weight|spline_weight|spline_scaler)$")
_KEYS = ("base_weight", "spline_weight", "grid")
_BASES: Mapping[str, Base] = {
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.linear.Identity": "identity",
}
_PLACES = re.compile(r"|layers|layers\.\d+|layers\.\d+\.base_activation")


def matches(state: Mapping[str, object]) -> bool:
    """Whether these are the keys of an efficient-kan network."""
    return any(isinstance(key, str) and _KEY.match(key) for key in state)


def load(state: Mapping[str, Tensor], *, base: Base = "silu") -> KanSpec:
    """The network of a state dict, in float64.

    Args:
        state: the state dict; of any floating-point dtype.
        base: the activation of its base branches.

    Raises:
        CheckpointError: keys are missing or unknown, shapes do not fit together, or knots do not increase.
    """
    count = layer_count(state, _KEY)
    scalers = {f"layers.{index}.spline_scaler" for index in range(count)}
    check_tensors(state, {f"layers.{i}.{key}" for i in range(count) for key in _KEYS}, _LIBRARY, optional=scalers)
    layers: list[SplineSpec] = []
    for index in range(count):
        tensors = {key: as_float64(state[f"layers.{index}.{key}"]) for key in _KEYS}
        scaler = state.get(f"layers.{index}.spline_scaler")
        if scaler is not None:
            tensors["spline_scaler"] = as_float64(scaler)
        _check_shapes(index, tensors, layers[-1].out_features if layers else None)
        layers.append(_layer(tensors, base))
    return KanSpec(tuple(layers))


def base_of(classes: Mapping[str, str]) -> Base:
    """The activation of the base branches of a network that was saved whole.

    Args:
        classes: the class of each of its modules, by the module's name; see `_pickled.unpack`.

    Raises:
        CheckpointError: the activation is another one, or the network holds other modules than a KAN's.
    """
    strangers = [f"{name} ({kind})" for name, kind in classes.items() if not _PLACES.fullmatch(name)]
    if strangers:
        raise CheckpointError(
            f"for a network of efficient-kan this also holds {', '.join(strangers[:4])}: "
            "expected layers, each with its base_activation"
        )
    kinds = {kind for name, kind in classes.items() if name.endswith(".base_activation")}
    bases = {_BASES.get(kind) for kind in kinds}
    base = bases.pop() if len(bases) == 1 else None
    if base is None:
        raise CheckpointError(
            f"the base activation of this efficient-kan is {', '.join(sorted(kinds)) or 'no module'}: "
            "expected SiLU or Identity, the same in all layers"
        )
    return base


def _layer(tensors: Mapping[str, Float64Array], base: Base) -> SplineSpec:
    weight, knots, splines = tensors["base_weight"], tensors["grid"], tensors["spline_weight"]
    if "spline_scaler" in tensors:
        splines = splines * tensors["spline_scaler"][:, :, np.newaxis]
    silu = base == "silu"
    return SplineSpec(
        degree=knots.shape[1] - splines.shape[2] - 1,
        knots=knots,
        coefficients=splines,
        bias=np.zeros(len(weight)),
        silu=weight if silu else np.zeros_like(weight),
        polynomial=np.zeros((*weight.shape, 0)) if silu else weight[:, :, np.newaxis],
    )


def _check_shapes(index: int, tensors: Mapping[str, Float64Array], previous: int | None) -> None:
    shapes = {key: array.shape for key, array in tensors.items()}
    weight, splines, knots = (shapes[key] for key in _KEYS)
    fits = (
        len(weight) == 2
        and len(splines) == 3
        and len(knots) == 2
        and weight == splines[:2] == shapes.get("spline_scaler", weight)
        and min(weight) > 0
        and knots[0] == weight[1]
        and previous in (None, weight[1])
    )
    if not fits:
        raise CheckpointError(
            f"layer {index} of this checkpoint of {_LIBRARY} does not fit together: "
            + ", ".join(f"{key} {shape}" for key, shape in shapes.items())
            + "; expected base_weight (out, in), spline_weight (out, in, G + k), spline_scaler (out, in) "
            "and grid (in, G + 2k + 1)" + (f" with in = {previous}, the layer before's outputs" if previous else "")
        )
    check_order(index, _LIBRARY, knots=knots[1], splines=splines[2])
    steps = np.diff(tensors["grid"]).min(axis=1)
    if not (steps > 0).all():
        raise CheckpointError(
            f"layers.{index}.grid of this checkpoint of {_LIBRARY} does not increase along input {steps.argmin()}: "
            "its own code answers NaN there. Update the grid with data whose values differ, or a larger grid_eps"
        )
