"""Batch sizes, and CUDA graphs that replay them.

A graph is captured for one batch size at fixed addresses; then a call is one launch, however many
kernels there are. So calls are brought to few sizes: 1, 2, 4, … and the profile's limits.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ._cuda import Cuda

__all__ = ["Replay", "buckets", "cut", "preparing"]

# A GPU takes as long for so few rows as for none: filling up by them is free. Not yet measured.
_FREE_ROWS = 256
_WASTE = 4  # beyond, at most one part in so many is filled up

preparing = threading.Lock()
"""Held while work is captured, or prepared for it.

While any stream is captured, CUDA refuses what synchronises the whole device, and loading kernels or
creating an execution context may.
"""


def buckets(least: int, most: int) -> tuple[int, ...]:
    """The batch sizes that are run: powers of two within the profile, and its limits."""
    powers = {1 << exponent for exponent in range(most.bit_length())}
    return tuple(sorted({least, most} | {size for size in powers if least < size < most}))


def cut(rows: int, sizes: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Cuts `rows` into parts, and gives for each the size in `sizes`, ascending, that it is filled up to.

    Up to 256 rows, or a quarter of the part, are filled up. Where it would take more, the largest size
    that the part fills is split off: 33000 rows are 32768, and 232 filled up to 256.
    """
    begin = 0
    while begin < rows:
        left = rows - begin
        index = bisect.bisect_left(sizes, left)
        filled = index < len(sizes) and (index == 0 or sizes[index] - left <= max(_FREE_ROWS, left // _WASTE))
        size = sizes[index] if filled else sizes[index - 1]
        end = begin + min(left, size)
        yield slice(begin, end), size
        begin = end


class Replay:
    """Work on a stream, always the same: done step by step the first time, then captured and launched as one graph.

    Where no graph can be made of it, it is done step by step for good, and `complain` is told why.

    Args:
        cuda: the GPU; current whenever a method is called.
        stream: the address of a stream that is not a default one.
        enqueue: enqueues the work there.
        obstacle: asked before the capture: why it is not to be tried, or None.
        complain: told why there is no graph; None tries to make none.
    """

    def __init__(
        self,
        cuda: Cuda,
        stream: int,
        enqueue: Callable[[], None],
        *,
        obstacle: Callable[[], str | None],
        complain: Callable[[str], None] | None,
    ) -> None:
        self._cuda = cuda
        self._stream = stream
        self._enqueue = enqueue
        self._obstacle = obstacle
        self._complain = complain or (lambda _: None)
        self._settled = complain is None
        self._graph: Any = None

    def launch(self) -> None:
        """Enqueues the work."""
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
        elif self._settled:
            self._enqueue()
        else:
            with preparing:
                # TensorRT and the driver put off work to the first run, which no capture allows.
                self._enqueue()
                self._settled = True
                self._graph = self._captured()

    def close(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self._cuda.forget(graph)

    def _captured(self) -> Any:
        reason = self._obstacle()
        if reason is None:
            try:
                return self._cuda.capture(self._enqueue, self._stream)
            except Exception as error:  # whatever it was, step by step it has just worked
                reason = str(error)
        self._complain(reason)
        return None
