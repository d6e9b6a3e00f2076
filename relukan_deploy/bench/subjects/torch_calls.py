"""Functions of PyTorch at their fastest, compiled or captured as CUDA graphs, and their time on the GPU's clock."""

from __future__ import annotations

import functools
import itertools
import statistics
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

from ...errors import RelukanError

__all__ = ["Captured", "compiled", "find_device", "first_line", "gpu_seconds", "set_up", "waiting"]

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


def compiled(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """The function compiled by torch.compile for arguments of these shapes. It has run once.

    Raises:
        RelukanError: it cannot be compiled, for want of a C++ compiler say.
    """
    import torch

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    # PyTorch counts what it compiled by code object, and falls back to eager beyond a few: each gets its own.
    own = types.FunctionType(call.__code__.replace(), call.__globals__, "call", None, call.__closure__)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fast: Callable[..., Any] = torch.compile(own, dynamic=False)
            fast(*arguments)
    except Exception as error:  # of torch._dynamo, of a backend, of a compiler
        raise RelukanError(f"torch.compile failed: {first_line(error)}") from error
    return fast


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


def first_line(error: BaseException) -> str:
    """What an error says, as far as it is one line: PyTorch adds advice and a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
