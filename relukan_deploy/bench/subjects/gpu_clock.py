"""What work on a GPU takes on the GPU's own clock."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from ...runtime._cuda import Cuda

__all__ = ["Step", "gpu_seconds"]

_BUSY_BYTES = 256 << 20  # filling so many takes a GPU from 0.1 ms to 1 ms
_MOST_FILLS = 64

Step = Callable[[], object]
"""Enqueues something."""


def gpu_seconds(cuda: Cuda, stream: Any, rounds: Sequence[Sequence[Step]]) -> list[float]:
    """Median seconds of each step over the rounds, by CUDA events around the steps.

    The GPU is kept busy with something else until a round is enqueued, so that Python's part does not count:
    where it was not for long enough, the round is repeated behind more of it.

    Args:
        cuda: the GPU, current in this thread.
        stream: the `cuda.core.Stream` that the steps enqueue on.
        rounds: the same steps each time, on other data say.
    """
    from cuda.core import EventOptions

    timing = EventOptions(timing_enabled=True)
    events = [cuda.device.create_event(timing) for _ in range(len(rounds[0]) + 1)]
    busy = cuda.device.allocate(_BUSY_BYTES, stream=stream)
    fills, taken = 1, []
    try:
        for steps in rounds:
            while True:
                for _ in range(fills):
                    busy.fill(0, stream=stream)
                stream.record(events[0])
                for step, event in zip(steps, events[1:], strict=True):
                    step()
                    stream.record(event)
                waited = events[0].is_done  # the GPU, for Python
                events[-1].sync()
                if not waited or fills >= _MOST_FILLS:
                    break
                fills *= 2
            taken.append([(end - begin) * 1e-3 for begin, end in itertools.pairwise(events)])  # from ms
    finally:
        for held in (busy, *events):
            held.close()
    return [statistics.median(seconds) for seconds in zip(*taken, strict=True)]
