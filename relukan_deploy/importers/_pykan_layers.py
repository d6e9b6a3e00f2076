"""The tensors of a pykan state dict, layer by layer, of shapes that fit together."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ._tensors import as_float64, check_order, check_tensors, layer_count

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Layer", "matches", "read_layers"]

Float64Array = NDArray[np.float64]

_PREFIX = re.compile(r"act_fun\.(\d{1,18})\.")
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


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A layer of the file in float64, under pykan's names; pykan.py shows the shapes and what they mean."""

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


def read_layers(state: Mapping[str, Tensor]) -> list[Layer]:
    """All layers, in order.

    Raises:
        CheckpointError: keys are missing or unknown, a number is not finite, or shapes do not fit together.
    """
    count = layer_count(state, _PREFIX)
    check_tensors(state, {key.format(index) for index in range(count) for key in _KEYS.values()}, "pykan")
    layers: list[Layer] = []
    for index in range(count):
        arrays = {name: as_float64(state[key.format(index)]) for name, key in _KEYS.items()}
        _check_shapes(index, arrays, layers[-1].node_bias.size if layers else None)
        layers.append(Layer(index, **arrays))
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
    check_order(index, "pykan", knots=shapes["grid"][1], splines=shapes["coef"][2])
