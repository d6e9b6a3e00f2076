"""Subjects whose rows are in host memory, and what all subjects have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.runner import to_graph
from ..results import Contender, Split
from ..timing import Turn, rotated
from . import make_inputs
from .bound import bound_calls

__all__ = ["Base", "Bound", "Call", "Host"]

_INPUTS_BYTES = 64 << 20  # of rotated inputs together, about

Call = Callable[[NDArray[np.float32]], object]
"""Answers rows in host memory."""


class Base:
    """What all of them have.

    Args:
        contender, parameters, difference: as in `Subject`.
        domain: ``(in, 2)``: the interval of each input.
    """

    def __init__(
        self, contender: Contender, parameters: int, difference: float | None, domain: NDArray[np.float64]
    ) -> None:
        self.contender = contender
        self.parameters = parameters
        self.difference = difference
        self.domain = domain

    def split(self) -> Split | None:
        return None

    def release(self) -> None:
        """Inputs belong to the turns alone."""

    def close(self) -> None:
        """What is held is freed when nobody refers to it any more."""

    def io_bytes(self, batch: int) -> int:
        """Of rotated inputs, and of answers."""
        widths = self.contender.widths
        return max(2 * batch * widths[0] * 4, _INPUTS_BYTES) + batch * widths[-1] * 4


class Host(Base):
    """Rows in host memory.

    Args:
        known: as of `Base`.
        call: answers them.
        taken: the bytes that so many rows take meanwhile.
    """

    def __init__(self, *known: Any, call: Call, taken: Callable[[int], int]) -> None:
        super().__init__(*known)
        self._call: Call | None = call
        self._taken = taken

    def bytes_for(self, batch: int) -> int:
        return self.io_bytes(batch) + self._taken(batch)

    def prepare(self, batch: int) -> Turn:
        assert self._call is not None
        return rotated([functools.partial(self._call, x) for x in make_inputs(self.domain, batch)])

    def close(self) -> None:
        self._call = None


class Bound(Base):
    """Rows in the graph's own buffers.

    Args:
        known: as of `Base`.
        session: of ONNX Runtime on a CPU.
        basis: the bytes that a row takes meanwhile.
    """

    def __init__(self, *known: Any, session: Any, basis: int) -> None:
        super().__init__(*known)
        self._session = session
        self._basis = basis

    def bytes_for(self, batch: int) -> int:
        return self.io_bytes(batch) + self._basis * batch

    def prepare(self, batch: int) -> Turn:
        layout, precision = self.contender.layout, self.contender.precision
        assert layout is not None  # it is our own
        inputs = [to_graph(x, layout, precision) for x in make_inputs(self.domain, batch)]
        outputs = self.contender.widths[-1]
        shape = (1, outputs, 1, batch) if layout == "batch-last" else (batch, outputs, 1)
        return rotated(bound_calls(self._session, inputs, shape))

    def close(self) -> None:
        self._session = None
