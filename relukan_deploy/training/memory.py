"""What a step of training holds in memory, measured by counting every tensor that it makes."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .loop import LBFGS_HISTORY, Method, Objective

__all__ = ["is_out_of_memory", "step_bytes"]


def step_bytes(network: nn.Module, x: Tensor, y: Tensor, method: Method) -> int:
    """The most bytes that one step holds at a time: weights, average, gradients, the optimiser's, and the rows' values.

    A forward and a backward pass are made of a copy of the network, on its device, not compiled.

    Args:
        network: it is not changed.
        x, y: the rows of a step in one process; of them, a micro-batch is taken.
        method: how it is trained.
    """
    objective = Objective(copy.deepcopy(network).train(), method)
    rows = slice(method.micro_batch)
    with _Counting() as counted:
        objective(x[rows], y[rows]).backward()
    weights = sum(each.numel() * each.element_size() for each in network.parameters() if each.requires_grad)
    kept = 2 * LBFGS_HISTORY if method.optimizer == "lbfgs" else 2  # vectors as long as the weights
    return int(counted.most) + weights * (2 + kept)  # the gradients are among what was counted


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, of a GPU or of the machine."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are alive of those made within it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self._alive:
            self._alive.add(id(storage))
            weakref.finalize(storage, self._forget, id(storage), storage.nbytes())
            self._now += storage.nbytes()
            self.most = max(self.most, self._now)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size
