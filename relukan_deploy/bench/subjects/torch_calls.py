"""PyTorch set up to be timed, its functions captured as CUDA graphs, and their time on the GPU's clock."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

from ..._compiling import first_line
from ...errors import RelukanError

__all__ = ["Captured", "find_device", "gpu_seconds", "set_up", "waiting"]

_WARM_UPS = 3  # before a capture, on the stream beside, as torch.cuda.graph asks for
_SPLIT_ROUNDS = 15
_BUSY_CYCLES = 1 << 19  # of a GPU's clock, about a quarter of a millisecond
_MOST_BUSY_CYCLES = 1 << 28


def set_up(threads: int) -> None:
    """How PyTorch computes from now on: so many threads, no TF32, and the fastest of cuDNN's convolutions."""
    import torch

    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False  # on by default
    torch.backends.cudnn.benchmark = True


def find_device() -> Literal["cuda", "cpu"]:
    """Where PyTorch computes: on the GPU where it finds one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class Captured:
    """What a function enqueues on the GPU, as a CUDA graph: same addresses, one launch.

    Attributes:
        result: what the function gave. Its tensors are written anew by every replay.

    Raises:
        RelukanError: it cannot be captured.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        import torch

        try:
            beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(_WARM_UPS):
                    function()
            torch.cuda.current_stream().wait_stream(beside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self.result = function()
        except RuntimeError as error:
            raise RelukanError(f"it cannot be captured as a CUDA graph: {first_line(error)}") from error
        self._function = function  # and with it what lies at the graph's addresses

    def replay(self) -> None:
        """Enqueues the graph."""
        self._graph.replay()


def gpu_seconds(steps: Sequence[Callable[[], object]]) -> list[float]:
    """Median seconds of each step, which enqueues something, by CUDA events around them.

    The GPU is kept busy until all of it is enqueued, so that Python's part does not count: where it was
    not for long enough, it is kept longer.
    """
    import torch

    events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(len(steps) + 1)]  # type: ignore[no-untyped-call]
    cycles = _BUSY_CYCLES
    taken: list[list[float]] = []
    while len(taken) < _SPLIT_ROUNDS:
        torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
        events[0].record()
        for step, event in zip(steps, events[1:], strict=True):
            step()
            event.record()
        was_idle = events[0].query()
        events[-1].synchronize()
        if was_idle and cycles < _MOST_BUSY_CYCLES:
            cycles *= 2
        else:
            taken.append([begin.elapsed_time(end) * 1e-3 for begin, end in itertools.pairwise(events)])  # from ms
    return [statistics.median(seconds) for seconds in zip(*taken, strict=True)]


def waiting(every: Sequence[Callable[[], object]]) -> list[Callable[[], object]]:
    """Calls of functions that enqueue something on the GPU, each waiting until it is done."""
    import torch

    stream = torch.cuda.current_stream()

    def call(enqueue: Callable[[], object]) -> None:
        enqueue()
        stream.synchronize()

    return [functools.partial(call, enqueue) for enqueue in every]
