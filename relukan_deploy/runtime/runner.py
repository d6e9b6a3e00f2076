"""What a runner is, and what all of them do at their edges.

A `Protocol` and not a base class: runners share no state, only the two steps below, from the
caller's rows to the graph's layout and type and back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..bundle import Artifact
from ..errors import InputError
from ..spec import Layout, Precision

__all__ = ["Runner", "as_rows", "element_dtype", "from_graph", "slices", "to_graph"]

Rows = NDArray[np.float32]


class Runner(Protocol):
    """A network ready to answer. Use one from one thread at a time.

    Attributes:
        backend: its name in `relukan_deploy.runtime.BACKENDS`.
        artifact: what it runs.
        in_features, out_features: sizes of a row in and out.
    """

    backend: str
    artifact: Artifact
    in_features: int
    out_features: int

    def __call__(self, x: ArrayLike) -> Rows:
        """y ``(batch, out)`` float32, an array of its own, for x ``(batch, in)``.

        Any number of rows, none included. Other real dtypes than float32 are converted.

        Raises:
            InputError: x is not ``(batch, in)`` numbers, or the runner is closed.
        """

    def close(self) -> None:
        """Frees what the runner holds on its device. Closing it again does nothing."""


def as_rows(x: ArrayLike, in_features: int) -> Rows:
    """x as ``(batch, in)`` float32, not copied where it already is.

    Raises:
        InputError: it has another shape, or is not made of real numbers.
    """
    try:
        array = np.asarray(x)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"x must be (batch, {in_features}) numbers: {error}") from error
    if array.dtype != np.float32:
        if array.dtype.kind not in "fiu":
            raise InputError(f"x must hold real numbers (float32), got dtype {array.dtype}")
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN stay what they are
            array = array.astype(np.float32)
    if array.ndim != 2 or array.shape[1] != in_features:
        hint = f"; for a single row use x.reshape(1, {in_features})" if array.shape == (in_features,) else ""
        raise InputError(f"x must be (batch, {in_features}), got {array.shape}{hint}")
    return array


def slices(rows: int, most: int | None) -> Iterable[slice]:
    """Cuts `rows` into parts of at most `most`."""
    step = most or max(rows, 1)
    return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))


def element_dtype(precision: Precision) -> np.dtype[Any]:
    """The dtype of the graph's input and output in memory; bfloat16 as its bits, in uint16."""
    return np.dtype({"fp16": np.float16, "bf16": np.uint16}.get(precision, np.float32))


def to_graph(rows: Rows, layout: Layout, precision: Precision) -> NDArray[Any]:
    """Rows ``(batch, in)`` as the graph's input: its layout and type, contiguous."""
    if precision == "fp16":
        with np.errstate(over="ignore"):  # too large becomes infinite, which is far outside the domain
            typed: NDArray[Any] = rows.astype(np.float16)
    elif precision == "bf16":
        typed = _to_bfloat16(rows)
    else:
        typed = rows
    if layout == "batch-last":
        return np.ascontiguousarray(typed.T)[np.newaxis, :, np.newaxis, :]  # (1, in, 1, batch)
    return np.ascontiguousarray(typed)[:, :, np.newaxis]  # (batch, in, 1)


def from_graph(y: NDArray[Any], layout: Layout, precision: Precision) -> Rows:
    """The graph's output as rows ``(batch, out)`` float32."""
    rows = y[0, :, 0, :].T if layout == "batch-last" else y[:, :, 0]
    if precision == "bf16":
        rows = _from_bfloat16(rows)
    return np.ascontiguousarray(rows, dtype=np.float32)


def _to_bfloat16(rows: Rows) -> NDArray[np.uint16]:
    """Rounds to nearest, ties to even, as IEEE 754 does. NaN stays NaN."""
    bits = np.ascontiguousarray(rows).view(np.uint32)
    with np.errstate(over="ignore"):
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(rows), 0x7FC0, rounded).astype(np.uint16)


def _from_bfloat16(bits: NDArray[np.uint16]) -> Rows:
    return (bits.astype(np.uint32) << 16).view(np.float32)
