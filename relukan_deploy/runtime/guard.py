"""What a network is asked outside its domain, where it silently answers without what it has learnt.

Beyond its domain an input has no influence on the answer any more, or only that of a branch which goes
on (SiLU, powers), and nothing in the answer shows it. So every row is compared with the domain before
it is run; what lies outside is counted, and the caller decides what else happens.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..bundle import Manifest
from ..errors import InputError

__all__ = ["Guard", "Limits", "Nonfinite", "OutOfDomain", "Rows", "Stats", "limits_of"]

logger = logging.getLogger("relukan_deploy.runtime")

OutOfDomain = Literal["count", "warn", "raise", "clip"]
Nonfinite = Literal["count", "raise"]
Rows = NDArray[np.float32]
Limits = tuple[Rows, Rows]
"""The lowest and the highest value inside the domain of each input, in many equal rows ``(repeats, in)``."""

_LIMIT_ELEMENTS = 1 << 13
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Stats:
    """What a runner has been asked so far.

    Attributes:
        rows: answered.
        outside: for each input, the finite values outside its domain, those of refused rows included.
        nonfinite: for each input, the values that were NaN or infinite, likewise.
    """

    rows: int
    outside: tuple[int, ...]
    nonfinite: tuple[int, ...]


class Guard:
    """Compares rows with the domain, counts, and does what the policies say. Thread-safe.

    Args:
        manifest: of the network: its domain, and the names of its inputs.
        out_of_domain: what a finite value outside the domain leads to. "count" counts it. "warn" also logs
            a warning, the first time for an input and each time its count is ten times as high.
            "raise" refuses the call. "clip" moves the value to the edge of the domain.
        nonfinite: "count", or "raise" to refuse a call with NaN or infinity in it.

    Attributes:
        refuses: whether `inspect` may raise.
        clips: whether rows that are not inside are to be clipped before they are run.

    Raises:
        InputError: a policy is not one of these.
    """

    def __init__(self, manifest: Manifest, out_of_domain: OutOfDomain, nonfinite: Nonfinite) -> None:
        for name, value, choices in (
            ("out_of_domain", out_of_domain, get_args(OutOfDomain)),
            ("nonfinite", nonfinite, get_args(Nonfinite)),
        ):
            if value not in choices:
                raise InputError(f"{name} must be {', '.join(choices)}, got {value!r}")
        self.refuses = "raise" in (out_of_domain, nonfinite)
        self.clips = out_of_domain == "clip"
        self._out_of_domain = out_of_domain
        self._nonfinite = nonfinite
        self._names = manifest.input_names
        self._lock = threading.Lock()
        self._rows = 0
        self._outside = np.zeros(manifest.in_features, np.int64)
        self._not_finite = np.zeros(manifest.in_features, np.int64)
        self._warn_at = np.ones(manifest.in_features, np.int64)

    def inspect(self, rows: Rows, limits: Limits) -> bool:
        """Whether all of rows ``(batch, in)`` is finite and inside the domain. Counts what is not.

        Raises:
            InputError: a policy refuses them; the message names the first such value.
        """
        if _all_inside(rows, *limits):
            return True
        self._report(rows, limits[0][:1], limits[1][:1])
        return False

    def answered(self, rows: int) -> None:
        with self._lock:
            self._rows += rows

    def stats(self) -> Stats:
        with self._lock:
            return Stats(self._rows, tuple(self._outside.tolist()), tuple(self._not_finite.tolist()))

    def _report(self, rows: Rows, low: Rows, high: Rows) -> None:
        finite = np.isfinite(rows)
        outside = finite & ((rows < low) | (rows > high))
        with self._lock:
            self._outside += outside.sum(axis=0)
            self._not_finite += len(rows) - finite.sum(axis=0)
            warn = np.flatnonzero(self._outside >= self._warn_at) if self._out_of_domain == "warn" else ()
            for index in warn:
                self._warn_at[index] = 10 ** len(str(self._outside[index]))  # the next power of ten
        for index in warn:
            logger.warning("%s", self._describe(rows, outside, int(index), low, high))
        if self._nonfinite == "raise" and not finite.all():
            row, index = np.argwhere(~finite)[0]
            raise InputError(f"row {row} has {self._names[index]} = {rows[row, index]}, expected a finite number")
        if self._out_of_domain == "raise" and outside.any():
            raise InputError(self._describe(rows, outside, int(np.argwhere(outside)[0][1]), low, high))

    def _describe(self, rows: Rows, outside: NDArray[np.bool_], index: int, low: Rows, high: Rows) -> str:
        row = int(outside[:, index].argmax())
        return (
            f"row {row} has {self._names[index]} = {rows[row, index]:g}, outside the domain "
            f"[{low[0, index]:g}, {high[0, index]:g}], "
            "beyond which nothing was learnt"
        )


def limits_of(domain: Sequence[tuple[float, float] | None]) -> Limits:
    """The limits for a manifest's domain. An input that never matters is inside wherever it is finite."""
    wide = np.array([interval or (-_LARGEST, _LARGEST) for interval in domain])
    low, high = _inwards(np.clip(wide, -_LARGEST, _LARGEST))
    # Many rows of each: numpy compares equal shapes several times as fast as it broadcasts short rows.
    repeats = max(1, _LIMIT_ELEMENTS // len(domain)), 1
    return np.tile(low, repeats), np.tile(high, repeats)


def _all_inside(rows: Rows, low: Rows, high: Rows) -> bool:
    """Whether every value is within its limits, which NaN is not. The limits are one row, repeated."""
    count, most = len(rows), len(low)
    if count > most:
        return all(_all_inside(rows[begin : begin + most], low, high) for begin in range(0, count, most))
    inside = np.count_nonzero(rows >= low[:count]) + np.count_nonzero(rows <= high[:count])
    return bool(inside == 2 * rows.size)


def _inwards(domain: NDArray[np.float64]) -> NDArray[np.float32]:
    """``(2, in)`` for ``(in, 2)``: the outermost float32 within each interval, so that float32 compare exactly."""
    nearest = domain.astype(np.float32)
    low, high = nearest.T
    low = np.where(low < domain[:, 0], np.nextafter(low, np.float32(np.inf)), low)
    high = np.where(high > domain[:, 1], np.nextafter(high, np.float32(-np.inf)), high)
    return np.stack([low, high])
