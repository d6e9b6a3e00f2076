"""What may stand where a file should hold a tensor."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..splines import MOST_DEGREE

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["as_float64", "check_order", "check_tensors", "describe", "is_plain", "layer_count"]

_MOST_EXPANDED = 1 << 24  # numbers of a tensor that are fewer in its file


def is_plain(value: object) -> bool:
    """Whether this is a dense tensor of floating-point numbers, in memory.

    A few numbers may stand for more, as torch's expand() makes them, but not for as many as would fill the memory.
    """
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.numel() <= max(_MOST_EXPANDED, value.untyped_storage().nbytes() // value.element_size())
    )


def describe(value: object) -> str:
    """What it is, for a message: its dtype where it is a tensor, what else makes it unusual; else its type."""
    import torch

    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    unusual = [str(value.layout).removeprefix("torch.")] if value.layout != torch.strided else []
    unusual += [f"on device {value.device.type}"] if value.device.type != "cpu" else []
    unusual += [f"of shape {tuple(value.shape)}"] if value.numel() > _MOST_EXPANDED else []
    return ", ".join([str(value.dtype), *unusual])


def as_float64(value: Tensor) -> NDArray[np.float64]:
    """The numbers of a plain tensor, of any floating-point dtype, exactly."""
    array: NDArray[np.float64] = value.detach().double().numpy()
    return array


def layer_count(state: Mapping[str, object], numbered: re.Pattern[str]) -> int:
    """How many layers a state dict is of: one more than the highest number in its keys, and at least one.

    No more than there are keys, whatever their numbers.

    Args:
        state: the state dict.
        numbered: what keys begin with, the number as its first group.
    """
    numbers = [int(found.group(1)) for key in state if (found := numbered.match(str(key)))]
    return min(len(state), 1 + max(numbers, default=0))


def check_order(layer: int, library: str, *, knots: int, splines: int) -> None:
    """Holds the number of knots of each input of a layer against that of its B-splines.

    Raises:
        CheckpointError: they leave an order that is not 1 to 7, or no interval.
    """
    order = knots - splines - 1
    if not 1 <= order <= MOST_DEGREE or splines <= order:
        raise CheckpointError(
            f"layer {layer} of this checkpoint of {library} has {knots} knots for {splines} splines, so order {order} "
            f"and {splines - order} intervals: expected order 1 to {MOST_DEGREE} and at least 1 interval"
        )


def check_tensors(
    state: Mapping[str, Tensor], expected: Collection[str], library: str, optional: Collection[str] = ()
) -> None:
    """Holds a state dict against the keys it should have; its values should be plain and finite tensors.

    Args:
        state: the state dict.
        expected: its keys.
        library: whose state dict it is, as in "a checkpoint of efficient-kan".
        optional: keys that may be there as well.

    Raises:
        CheckpointError: something is missing, unknown, no plain tensor or not finite; it is named.
    """
    names = set(map(str, state))
    missing, unknown = sorted(set(expected) - names), sorted(names - set(expected) - set(optional))
    if missing or unknown:
        raise CheckpointError(
            f"for a checkpoint of {library} this "
            + " and ".join(
                f"{what} {', '.join(keys[:4])}{' …' if len(keys) > 4 else ''}"
                for what, keys in (("lacks", missing), ("also holds", unknown))
                if keys
            )
            + ". Save it with torch.save(model.state_dict(), path)."
        )
    for name, value in state.items():
        if not is_plain(value):
            raise CheckpointError(
                f"{name} of this checkpoint of {library} is {describe(value)}: "
                "expected a tensor of floating-point numbers"
            )
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{name} of this checkpoint of {library} must be finite, got NaN or infinity")
