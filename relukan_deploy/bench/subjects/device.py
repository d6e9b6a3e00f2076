"""TensorRT engines as subjects: with rows on the host and on the GPU, with CUDA graphs and without."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RelukanError
from ...runtime._cuda import Staging
from ...runtime._engine import EngineBackend
from ...runtime._graphs import cut
from ...runtime._lane import REMEMBERED, Lane
from ...runtime.runner import element_dtype, to_graph
from ..results import Contender, Split
from ..timing import Turn, rotated
from . import Subject, make_inputs
from .gpu_clock import Step, gpu_seconds
from .host import Base, Call, Host

__all__ = ["engine_subjects"]

_SPLIT_ROUNDS = 15
_MOST_PAIRS = REMEMBERED - 1  # of device arrays; a lane keeps graphs for so many, and for one that the split looks at


def engine_subjects(
    base: Contender,
    open_backend: Callable[[bool], EngineBackend],
    domain: NDArray[np.float64],
    *,
    parameters: int,
    difference: float | None,
    call: Callable[[EngineBackend], Call] = lambda backend: backend.run,
) -> list[Subject]:
    """An engine with rows on the host and on the GPU, each with CUDA graphs and without.

    Args:
        base: the network, the engine and its precision.
        open_backend: gives a backend, with CUDA graphs or without.
        domain: ``(in, 2)``: the interval of each input.
        parameters, difference: as in `Series`.
        call: what answers rows in host memory.

    Raises:
        RelukanError: the engine cannot be opened.
    """
    subjects: list[Subject] = []
    for graphs in (True, False):
        backend = open_backend(graphs)
        host = dataclasses.replace(base, data="host", cuda_graph=graphs)
        device = dataclasses.replace(base, data="device", cuda_graph=graphs)
        subjects += [
            _HostToHost(host, parameters, difference, domain, call=call(backend), backend=backend),
            _OnDevice(device, parameters, difference, domain, backend=backend),
        ]
    return subjects


class _HostToHost(Host):
    """An engine, asked from host memory."""

    def __init__(self, *known: Any, call: Call, backend: EngineBackend) -> None:
        lane = backend.lane_bytes  # for any batch: it has room for the largest
        super().__init__(*known, call=call, taken=lambda batch: lane)
        self._backend: EngineBackend | None = backend
        self._batch = 0

    def prepare(self, batch: int) -> Turn:
        self._batch = batch
        return super().prepare(batch)

    def split(self) -> Split:
        backend, found = self._backend, np.zeros(3)
        assert backend is not None
        sizes = collections.Counter(size for _, size in cut(self._batch, backend.sizes))
        with backend.lane() as lane:
            for size, count in sizes.items():
                steps = _steps(backend, lane, size)
                for _ in range(3):  # the second time, the network becomes a graph
                    for step in steps:
                        step()
                found += count * np.array(gpu_seconds(backend.cuda, lane.stream, [steps] * _SPLIT_ROUNDS))
        return Split(*found.tolist())

    def close(self) -> None:
        super().close()
        self._backend = None


class _OnDevice(Base):
    """An engine, asked from the GPU's memory: as many inputs as it keeps graphs for."""

    def __init__(self, *known: Any, backend: EngineBackend) -> None:
        super().__init__(*known)
        self._backend: EngineBackend | None = backend
        self._stream: Any = None
        self._memory: list[Any] = []
        self._calls: list[tuple[int, int, int]] = []  # rows, and the addresses of x and y

    def bytes_for(self, batch: int) -> int:
        return self.io_bytes(batch)  # the lane is the one that `_HostToHost` counts

    def prepare(self, batch: int) -> Turn:
        backend = self._backend
        assert backend is not None
        least, _, most = backend.artifact.batch or (1, 1, 1)
        if not least <= batch <= most:
            raise RelukanError(f"the engine was built for {least} to {most} rows of data on the device, got {batch}")
        self.release()
        try:
            with backend.cuda:
                self._fill(backend, make_inputs(self.domain, batch, most=_MOST_PAIRS))
        except RelukanError:
            raise
        except Exception as error:  # cuda-core's own errors
            raise RelukanError(f"{backend.cuda.device.name} has no room for {batch} rows: {error}") from error
        stream, handle = self._stream, int(self._stream.handle)

        def call(arguments: tuple[int, int, int]) -> None:
            backend.enqueue(*arguments, handle)
            stream.sync()

        rotating = rotated([functools.partial(call, arguments) for arguments in self._calls])

        def turn(count: int) -> Sequence[float]:
            with backend.cuda:  # for waiting; as a caller of torch has it
                return rotating(count)

        turn(3 * len(self._calls))  # the second time, a call becomes a graph
        return turn

    def split(self) -> Split:
        backend = self._backend
        assert backend is not None
        with backend.lane() as lane:
            rounds = [
                [functools.partial(lane.compute, *self._calls[index % len(self._calls)])]
                for index in range(_SPLIT_ROUNDS)
            ]
            (compute,) = gpu_seconds(backend.cuda, lane.stream, rounds)
        return Split(0.0, compute, 0.0)

    def release(self) -> None:
        self._calls.clear()
        if self._backend is not None and self._stream is not None:
            with self._backend.cuda:
                self._stream.sync()
                for held in (*self._memory, self._stream):
                    held.close()
        self._memory.clear()
        self._stream = None

    def close(self) -> None:
        self.release()
        self._backend = None

    def _fill(self, backend: EngineBackend, inputs: Sequence[NDArray[np.float32]]) -> None:
        """Copies the inputs to the GPU, and makes room for their answers there."""
        cuda, artifact = backend.cuda, backend.artifact
        self._stream = stream = cuda.device.create_stream()
        answers = len(inputs[0]) * backend.out_features * element_dtype(artifact.precision).itemsize
        for x in inputs:
            graph_input = to_graph(x, artifact.layout, artifact.precision)
            given = Staging(cuda, stream, graph_input.nbytes)
            self._memory.append(given)
            given.bytes[:] = graph_input.reshape(-1).view(np.uint8)
            cuda.copy(given.device, given.host, graph_input.nbytes, int(stream.handle))
            made = cuda.device.allocate(answers, stream=stream)
            self._memory.append(made)
            self._calls.append((len(x), given.device, int(made.handle)))
        stream.sync()


def _steps(backend: EngineBackend, lane: Lane, size: int) -> list[Step]:
    """What a call with host memory has the GPU do: copy, compute, copy."""
    item, handle = element_dtype(backend.artifact.precision).itemsize, int(lane.stream.handle)
    x, y = size * backend.in_features * item, size * backend.out_features * item
    return [
        functools.partial(backend.cuda.copy, lane.x.device, lane.x.host, x, handle),
        functools.partial(lane.compute, size, lane.x.device, lane.y.device),
        functools.partial(backend.cuda.copy, lane.y.host, lane.y.device, y, handle),
    ]
