"""What can be timed: `Subject`, a network and one way to run it.

A `Protocol`, since a subject may stand for one in another process.

    bundles.py                  a bundle's backends: host.py in host memory, device.py on a GPU
    torch_engines.py            networks in PyTorch: torch_subjects.py runs them there, and exports.py through
                                their own ONNX export; networks.py checks them and tells what memory they take
    bound.py, torch_calls.py    single calls: buffers bound, compiled, captured
    gpu_clock.py                CUDA events; engine_profile.py: which layer of an engine takes how long
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..results import Contender, Split
from ..timing import Turn

__all__ = ["Shape", "Subject", "make_inputs"]

_ROTATED_BYTES = 64 << 20  # more than most last-level caches
_MOST_INPUTS = 64


@dataclasses.dataclass(frozen=True)
class Shape:
    """What peers of the same size are built from.

    Attributes:
        widths: features before, between and after the layers.
        grid, order: intervals and degree of the splines; grid + order basis functions on each input.
        domain: ``(in, 2)``, finite: the interval of each input.
    """

    widths: tuple[int, ...]
    grid: int
    order: int
    domain: NDArray[np.float64]


class Subject(Protocol):
    """A network and one way to run it. One batch size is prepared at a time.

    Attributes:
        contender: what it is.
        parameters, difference: as in `Series`.
    """

    contender: Contender
    parameters: int
    difference: float | None

    def bytes_for(self, batch: int) -> int:
        """How much memory a call with so many rows takes, about: the largest temporaries."""

    def prepare(self, batch: int) -> Turn:
        """Turns of calls with so many rows, on inputs that change from call to call.

        Raises:
            RelukanError: it cannot be run so; the message says why.
        """

    def split(self) -> Split | None:
        """Where the time of a call goes that `prepare` was asked for last; None where that is not known."""

    def release(self) -> None:
        """Frees what `prepare` made."""

    def close(self) -> None:
        """Frees everything. Closing again does nothing."""


def make_inputs(domain: NDArray[np.float64], batch: int, *, most: int = _MOST_INPUTS) -> list[NDArray[np.float32]]:
    """Several inputs ``(batch, in)``, uniform in the domain: as many as do not fit into a cache, up to `most`.

    Calls that take them in turn find none of them in the cache by accident; of the smallest, `most` are enough,
    since those have just been made in a service too.
    """
    generator = np.random.default_rng()
    count = min(most, max(2, -(-_ROTATED_BYTES // max(1, batch * len(domain) * 4))))
    low, high = domain[:, 0], domain[:, 1]
    return [
        (low + (high - low) * generator.random((batch, len(domain)), np.float32)).astype(np.float32)
        for _ in range(count)
    ]
