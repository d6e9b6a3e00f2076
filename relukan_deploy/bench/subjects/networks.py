"""`Network`: a module of PyTorch, and what all the ways to run it share."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..._compiling import compiled
from ...errors import RelukanError
from . import Shape, make_inputs
from .torch_calls import find_device

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["TOLERANCE", "Inputs", "Network", "Rows", "difference"]

TOLERANCE = 1e-4
"""The largest difference at which something still computes the function of its network."""

_CHECKED_ROWS = 64

Rows = NDArray[np.float32]


class Inputs:
    """Inputs ``(batch, in)`` in a domain, to be rotated. Networks that share them need the memory once."""

    def __init__(self, domain: NDArray[np.float64]) -> None:
        self.domain = domain
        self._made: tuple[int, list[Rows]] = (0, [])

    def of(self, batch: int) -> list[Rows]:
        """The same arrays for the same batch size, until another one is asked for."""
        if self._made[0] != batch:
            self._made = batch, make_inputs(self.domain, batch)
        return self._made[1]

    def forget(self) -> None:
        self._made = 0, []


class Network:
    """A module, from x ``(batch, in)`` to y ``(batch, out)``, float32. It is put into eval().

    Args:
        name: as in `Contender`.
        module: on the CPU; it stays there.
        shape: that it was built for.
        inputs: for calls; None makes its own.
        reference: what it should compute; None where nothing but the module itself tells.

    Attributes:
        widths, parameters: as in `Contender` and `Series`.
        graphs: its exports, with the batch-major layout or without.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        shape: Shape,
        inputs: Inputs | None = None,
        *,
        reference: Callable[[Rows], NDArray[Any]] | None = None,
    ) -> None:
        self.name = name
        self.module = module.eval()
        self.widths: tuple[int, ...] = getattr(module, "widths", shape.widths)
        self.parameters = sum(each.numel() for each in module.parameters() if each.requires_grad)
        self.inputs = inputs or Inputs(shape.domain)
        self.reference = reference
        self.graphs: dict[bool, bytes] = {}
        self._bytes: dict[int, int] = {}
        self._compiled: dict[int, Callable[[Tensor], Tensor] | RelukanError] = {}

    @functools.cached_property
    def placed(self) -> nn.Module:
        """The module where PyTorch runs it: on the GPU where there is one."""
        return self.module if find_device() == "cpu" else copy.deepcopy(self.module).to("cuda")

    def compiled(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """`placed`, compiled for x's batch size. Who asks for the same one later gets it at once.

        Raises:
            RelukanError: it cannot be compiled.
        """
        if len(x) not in self._compiled:
            try:
                self._compiled[len(x)] = compiled(self.placed, x)
            except RelukanError as error:  # finding out takes as long every time
                self._compiled[len(x)] = error
        found = self._compiled[len(x)]
        if isinstance(found, RelukanError):
            raise found
        return found

    def bytes_for(self, batch: int) -> int:
        """What a call keeps in memory at most: its inputs, and the tensors of an eager forward pass."""
        if batch not in self._bytes:
            self._bytes[batch] = 3 * batch * self.widths[0] * 4 + _peak_bytes(self.module, batch, self.widths[0])
        return self._bytes[batch]

    def check(self, answer: Callable[[Rows], NDArray[Any]], way: str) -> float:
        """The `difference` of answers to random rows from what the network should compute.

        Raises:
            RelukanError: it is too large, and so a time would mean nothing.
        """
        import torch

        x = make_inputs(self.inputs.domain, _CHECKED_ROWS, most=1)[0]
        if self.reference:
            return difference(answer(x), self.reference(x), way)
        with torch.no_grad():
            return difference(answer(x), self.module(torch.from_numpy(x)).numpy(), way)


def difference(y: NDArray[Any], expected: NDArray[Any], way: str) -> float:
    """The largest difference of y from what was expected, relative to max(1, max|expected|).

    Raises:
        RelukanError: it is above the tolerance, or not a number, or y has another shape; `way` says of what.
    """
    if y.shape != expected.shape:
        raise RelukanError(f"{way} answers {y.shape} where {expected.shape} was expected: nothing is timed")
    found = float(np.abs(y.astype(np.float64) - expected).max() / max(1.0, np.abs(expected).max()))
    if not found <= TOLERANCE:
        raise RelukanError(f"{way} is wrong by {found:.2g}, and {TOLERANCE:g} is allowed: nothing is timed")
    return found


def _peak_bytes(module: nn.Module, batch: int, in_features: int) -> int:
    """The most bytes of tensors that are alive at a time in a forward pass. Nothing is computed."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
            self.now = 0
            self.most = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.known:
                    self.count(tensor.untyped_storage())
            return result

        def count(self, storage: torch.UntypedStorage) -> None:
            self.known.add(storage)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.forget, storage.nbytes())

        def forget(self, size: int) -> None:
            self.now -= size

    own = copy.deepcopy(module)  # some keep tensors of their last call
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.zeros(batch, in_features)
        alive = Alive()
        with alive:
            own(x)
    return alive.most
