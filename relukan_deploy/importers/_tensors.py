"""What may stand where a file should hold a tensor."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["as_float64", "check_tensors", "describe", "is_plain", "layer_count"]


def is_plain(value: object) -> bool:
    """Whether this is a dense tensor of floating-point numbers, in memory."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


def describe(value: object) -> str:
    """What it is, for a message: its dtype where it is a tensor, else its type."""
    return str(getattr(value, "dtype", type(value).__name__))


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
