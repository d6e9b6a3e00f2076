"""The reference implementation of ReLU-KAN (Qiu et al. 2024): its state dict as a `ReLUKAN`.

Each layer N of the reference holds, under `rk_layers.N.`:

    phase_low                 (in, K)          s
    phase_height              (in, K)          e
    equal_size_conv.weight    (out, 1, K, in)  the coefficients
    equal_size_conv.bias      (out,)

It reshapes its basis (batch, in, K) to (batch, 1, K, in) without transposing it, so the
coefficients in (out, in, K) order are the same numbers in the same flat order. Its factor
r = 4·grid²/(order+1)² is a constant that the file does not hold: grid and order must be known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from ._tensors import check_tensors, layer_count

if TYPE_CHECKING:
    from torch import Tensor

    from ..model import ReLUKAN

__all__ = ["load", "matches"]

_PREFIX = re.compile(r"rk_layers\.(\d{1,18})\.")
_KEYS = ("phase_low", "phase_height", "equal_size_conv.weight", "equal_size_conv.bias")


def matches(state: Mapping[str, object]) -> bool:
    """Whether these are the keys of a reference ReLU-KAN."""
    return any(isinstance(key, str) and _PREFIX.match(key) for key in state)


def load(state: Mapping[str, Tensor], *, grid: int | None = None, order: int | None = None) -> ReLUKAN:
    """The network of a reference state dict, in the dtype it was saved in.

    Args:
        state: the state dict.
        grid, order: as the network was built with. Either may be left out while every s and e
            still lies on the lattice they began on, since that shows them.

    Raises:
        CheckpointError: keys are missing or unknown, shapes do not fit together, or grid and
            order are neither given nor to be read off the intervals.
    """
    from ..model import ReLUKAN

    count = _check_tensors(state)
    layers = [[state[f"rk_layers.{index}.{key}"] for key in _KEYS] for index in range(count)]
    bumps = _check_shapes(layers)
    grid, order = _grid_and_order(layers, bumps, grid, order)

    widths = [layers[0][0].shape[0], *(bias.shape[0] for *_, bias in layers)]
    model = ReLUKAN(widths, grid, order, normalization="fixed", train_intervals=True).to(layers[0][0].dtype)
    converted = {}
    for index, (low, high, weight, bias) in enumerate(layers):
        converted[f"layers.{index}.starts"] = low
        converted[f"layers.{index}.ends"] = high
        converted[f"layers.{index}.weight"] = weight.reshape(len(bias), *low.shape)
        converted[f"layers.{index}.bias"] = bias
    model.load_state_dict(converted)
    return model


def _check_tensors(state: Mapping[str, Tensor]) -> int:
    count = layer_count(state, _PREFIX)
    expected = {f"rk_layers.{index}.{key}" for index in range(count) for key in _KEYS}
    check_tensors(state, expected, "the reference ReLU-KAN")
    return count


def _check_shapes(layers: list[list[Tensor]]) -> int:
    previous = None
    bumps = layers[0][0].shape[-1] if layers[0][0].ndim == 2 else 0
    for index, (low, high, weight, bias) in enumerate(layers):
        inputs = low.shape[0] if low.ndim == 2 else 0
        fits = (
            tuple(low.shape) == tuple(high.shape) == (inputs, bumps)
            and tuple(weight.shape) == (bias.numel(), 1, bumps, inputs)
            and bias.ndim == 1
            and weight.numel() > 0
            and previous in (None, inputs)
        )
        if not fits:
            raise CheckpointError(
                f"layer {index} of the reference ReLU-KAN does not fit together: phase_low {tuple(low.shape)}, "
                f"phase_height {tuple(high.shape)}, weight {tuple(weight.shape)}, bias {tuple(bias.shape)}; expected "
                f"(in, K), (in, K), (out, 1, K, in) and (out,)"
                + (f" with in = {previous}, the layer before's outputs" if previous else "")
            )
        previous = bias.numel()
    return bumps


def _grid_and_order(layers: list[list[Tensor]], bumps: int, grid: int | None, order: int | None) -> tuple[int, int]:
    candidates = [
        (candidate, bumps - candidate)
        for candidate in range(1, bumps + 1)
        if grid in (None, candidate) and order in (None, bumps - candidate)
    ]
    if not candidates:
        raise CheckpointError(
            f"grid + order must be {bumps}, the bumps on each input, got --grid {grid} --order {order}"
        )
    if len(candidates) == 1:
        return candidates[0]
    for candidate in candidates:
        if all(_on_lattice(low, high, *candidate) for low, high, *_ in layers):
            return candidate
    raise CheckpointError(
        "the intervals of this reference ReLU-KAN were trained, so grid and order cannot be read off the file: "
        f"give both, --grid G --order K with G + K = {bumps}, as the network was built with"
    )


def _on_lattice(low: Tensor, high: Tensor, grid: int, order: int) -> bool:
    import torch

    starts = torch.arange(-order, grid, dtype=torch.float64) / grid
    ends = starts + (order + 1) / grid
    near = 1e-6  # float32 rounding of numbers near 1, with room
    return bool(((low.double() - starts).abs() < near).all() and ((high.double() - ends).abs() < near).all())
