"""Networks in PyTorch as subjects: eager, compiled, or replayed as CUDA graphs, on the GPU where there is one.

host     rows and answers in host memory; beside a GPU it is page-locked, so that copying takes least
device   rows and answers on the GPU
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..._compiling import first_line
from ...errors import RelukanError
from ..results import Contender, Data, Split
from ..timing import Turn, rotated
from . import Subject
from .networks import Network, Rows, difference
from .torch_calls import Captured, find_device, gpu_seconds, waiting

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TORCH_ENGINES", "TorchEngine", "in_torch"]

TorchEngine = Literal["torch", "torch.compile", "torch CUDA graph"]
TORCH_ENGINES: tuple[TorchEngine, ...] = ("torch", "torch.compile", "torch CUDA graph")

_MOST_GRAPHS = 4  # inputs in turn, each with a graph of its own

Function = Callable[["Tensor"], "Tensor"]
Call = Callable[[], object]


def in_torch(network: Network, engine: TorchEngine) -> list[Subject]:
    """The network eager, compiled, or as CUDA graphs of what is compiled, if it can be.

    Raises:
        RelukanError: it answers wrongly.
    """
    import torch

    def answer(x: Rows) -> Rows:
        with torch.no_grad():
            return _to_numpy(network.placed(torch.from_numpy(x).to(find_device())))

    on_gpu = find_device() == "cuda"
    known = None
    if network.reference or on_gpu:  # otherwise it would be compared with itself
        known = network.check(answer, f"{network.name} in PyTorch")
    places: tuple[Data, ...] = ("host", "device") if on_gpu else ("host",)
    return [_TorchSubject(network, engine, data, known) for data in places]


class _Work(NamedTuple):
    """A batch made ready.

    Attributes:
        calls: each on an input of its own; they wait for the answer.
        steps: what the first call has the GPU do, one after the other; none on a CPU.
        answer: the answer to the first input, after the first call.
    """

    calls: list[Call]
    steps: list[Call]
    answer: Callable[[], Tensor]


class _TorchSubject:
    """A `Subject`. What it compiled it keeps: a batch is prepared again in every run."""

    def __init__(self, network: Network, engine: TorchEngine, data: Data, known: float | None) -> None:
        graph = engine == "torch CUDA graph"
        self.contender = Contender(network.name, network.widths, engine, data=data, cuda_graph=graph)
        self.parameters = network.parameters
        self.difference = known
        self._engine = engine
        self._network: Network | None = network
        self._work: _Work | None = None
        self._checked: set[int] = set()

    def bytes_for(self, batch: int) -> int:
        assert self._network is not None
        return self._network.bytes_for(batch)

    def prepare(self, batch: int) -> Turn:
        import torch

        self.release()
        assert self._network is not None
        inputs = self._network.inputs.of(batch)
        try:
            with torch.no_grad():
                function = self._function(self._network, torch.from_numpy(inputs[0]))
                self._work = self._make(function, inputs)
                self._work.calls[0]()
                self._check(self._network, inputs[0], self._work)
        except RuntimeError as error:  # no memory, mostly
            raise RelukanError(f"PyTorch could not run {batch} rows: {first_line(error)}") from error
        turn = rotated(self._work.calls)

        def without_gradients(count: int) -> Sequence[float]:
            with torch.no_grad():
                return turn(count)

        return without_gradients

    def split(self) -> Split | None:
        import torch

        if self._work is None or not self._work.steps:
            return None
        with torch.no_grad():
            seconds = gpu_seconds(self._work.steps)
        to_device, compute, to_host = seconds if len(seconds) == 3 else (0.0, seconds[0], 0.0)
        return Split(to_device, compute, to_host)

    def release(self) -> None:
        import torch

        self._work = None
        if self._network is not None:
            self._network.inputs.forget()
        if find_device() == "cuda":
            torch.cuda.empty_cache()  # for engines that do not get their memory from PyTorch

    def close(self) -> None:
        self.release()
        self._network = None

    def _function(self, network: Network, x: Tensor) -> Function:
        if self._engine == "torch":
            return network.placed
        try:
            return network.compiled(x.to(find_device()))
        except RelukanError:
            if self._engine == "torch.compile":
                raise
            return network.placed

    def _make(self, function: Function, inputs: Sequence[Rows]) -> _Work:
        graphs = self.contender.cuda_graph
        if self.contender.data == "device":
            return _on_device(function, inputs, graphs=graphs)
        return _beside_device(function, inputs, graphs=graphs) if find_device() == "cuda" else _on_cpu(function, inputs)

    def _check(self, network: Network, x: Rows, work: _Work) -> None:
        """Compares with eager, once for each batch size.

        Raises:
            RelukanError: the answer is another one.
        """
        import torch

        if self._engine == "torch" or len(x) in self._checked:
            return
        expected = network.placed(torch.from_numpy(x).to(find_device()))
        found = difference(_to_numpy(work.answer()), _to_numpy(expected), f"{network.name} in {self._engine}")
        self.difference = max(self.difference or 0.0, found)
        self._checked.add(len(x))


def _on_cpu(function: Function, inputs: Sequence[Rows]) -> _Work:
    import torch

    calls = [functools.partial(function, torch.from_numpy(x)) for x in inputs]
    return _Work([*calls], [], calls[0])


def _beside_device(function: Function, inputs: Sequence[Rows], *, graphs: bool) -> _Work:
    """Rows from page-locked memory to the GPU, answers from there back: one graph does it all."""
    import torch

    rows = [torch.from_numpy(x).pin_memory() for x in (inputs[:_MOST_GRAPHS] if graphs else inputs)]
    x = rows[0].cuda()
    y = function(x)
    answer = torch.empty(y.shape, pin_memory=True)

    def copy_in(given: Tensor) -> None:
        x.copy_(given, non_blocking=True)

    def copy_out(made: Tensor) -> None:
        answer.copy_(made, non_blocking=True)

    def work(given: Tensor) -> None:
        copy_in(given)
        copy_out(function(x))

    every: list[Call] = [functools.partial(work, given) for given in rows]
    compute: Call = functools.partial(function, x)
    if graphs:
        every = [Captured(each).replay for each in every]
        compute = Captured(compute).replay
    steps: list[Call] = [functools.partial(copy_in, rows[0]), compute, functools.partial(copy_out, y)]
    return _Work(waiting(every), steps, lambda: answer)


def _on_device(function: Function, inputs: Sequence[Rows], *, graphs: bool) -> _Work:
    """From rows on the GPU to answers there."""
    import torch

    rows = [torch.from_numpy(x).cuda() for x in (inputs[:_MOST_GRAPHS] if graphs else inputs)]
    every = [functools.partial(function, x) for x in rows]
    if not graphs:
        return _Work(waiting(every), [every[0]], every[0])
    captured = [Captured(each) for each in every]
    replays = [each.replay for each in captured]
    return _Work(waiting(replays), [replays[0]], lambda: captured[0].result)


def _to_numpy(y: Tensor) -> Rows:
    array: Rows = y.detach().cpu().numpy()
    return array
