"""A bundle's backends as subjects, and any TensorRT engine.

host     what a caller waits for: `Runner`'s call with its checks, layout, and copies to a GPU and back
bound    ONNX Runtime on a CPU: the graph alone, its buffers bound, one binding for each rotated input
device   TensorRT: enqueuing a batch that is on the GPU already, and waiting for it
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .._tensorrt import Flavour
from ..bundle import Artifact, Bundle
from ..errors import InputError, RelukanError
from ..parity import compare
from ..runtime._cuda import Staging
from ..runtime._engine import EngineBackend
from ..runtime._graphs import cut
from ..runtime._lane import REMEMBERED, Lane
from ..runtime._session import SessionBackend, make_session
from ..runtime.guard import Guard
from ..runtime.load import BACKENDS, open_backend
from ..runtime.ort_cpu import level_for
from ..runtime.runner import Backend, Runner, element_dtype, to_graph
from .bound import bound_calls
from .gpu_clock import Step, gpu_seconds
from .limits import layers_of
from .results import Contender, Split
from .subjects import Shape, Subject, make_inputs
from .timing import Turn, rotated

__all__ = ["artifact_for", "bundle_subjects", "engine_subjects", "parameters_of", "shape_of"]

_INPUTS_BYTES = 64 << 20  # of rotated inputs together, about
_TEMPORARIES = 3  # of a layer's basis, that ONNX Runtime holds at a time
_SPLIT_ROUNDS = 15
_MOST_PAIRS = REMEMBERED - 1  # of device arrays; a lane keeps graphs for so many, and for one that the split looks at

Call = Callable[[NDArray[np.float32]], object]


def bundle_subjects(bundle: Bundle, backend: str, *, threads: int) -> list[Subject]:
    """Every way to run a bundle on a backend, which has just answered the golden inputs correctly.

    Args:
        backend: in `relukan_deploy.runtime.BACKENDS`.
        threads: of ONNX Runtime on a CPU.

    Raises:
        InputError: the bundle has nothing for the backend, or the backend cannot run its precision.
        ParityError: the golden inputs are answered wrongly.
        MissingDependencyError, MissingDeviceError, BundleError: it cannot run here.
    """
    manifest, artifact = bundle.manifest, artifact_for(bundle, backend)
    running = open_backend(bundle, backend, artifact, threads)
    base = Contender("this network", manifest.widths, backend, artifact.precision, artifact.layout)
    domain, parameters = _domain(bundle), parameters_of(bundle)
    difference = _difference(bundle, artifact, running)

    def guarded(answering: Backend) -> Call:
        return Runner(answering, bundle, artifact, Guard(manifest, "count", "count"))

    if isinstance(running, EngineBackend):
        flavour, plan = cast(Flavour, backend), bundle.contents[artifact.file]
        opened = functools.partial(EngineBackend, flavour, plan, artifact, manifest.in_features, manifest.out_features)
        return engine_subjects(
            base,
            lambda graphs: running if graphs else opened(graphs=False),
            domain,
            parameters=parameters,
            difference=difference,
            call=guarded,
        )
    chunk = running.chunk if isinstance(running, SessionBackend) else None
    basis = _TEMPORARIES * 4 * max(layer.bumps for layer in layers_of(bundle))  # bytes for a row
    host = _Host(
        base,
        parameters,
        difference,
        domain,
        call=guarded(running),
        taken=lambda batch: basis * min(batch, chunk or batch),
    )
    if backend != "onnxruntime-cpu":
        return [host]
    level = level_for(artifact.form)
    session = make_session(bundle.contents[artifact.file], ["CPUExecutionProvider"], threads, level=level)
    bound = dataclasses.replace(base, data="bound")
    return [host, _Bound(bound, parameters, difference, domain, session=session, basis=basis)]


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


def artifact_for(bundle: Bundle, backend: str) -> Artifact:
    """What a backend runs of a bundle. Raises InputError where there is nothing."""
    kind = BACKENDS[backend][0]
    for artifact in bundle.manifest.artifacts:
        if artifact.kind == kind:
            return artifact
    raise InputError(f"{bundle.path} has no {kind} artifact for the backend {backend}")


def parameters_of(bundle: Bundle) -> int:
    """The numbers that the network has learnt: coefficients, biases, and s and e of each bump that it kept."""
    return sum(layer.parameters for layer in layers_of(bundle))


def shape_of(bundle: Bundle, grid: int | None = None, order: int = 3) -> Shape:
    """What peers of the same size are built from: as many basis functions on each input as the bundle has bumps.

    Args:
        grid: of the network; None takes what the order leaves of the bumps.
        order: of the network, which its graph does not tell.

    Raises:
        InputError: grid and order do not make as many basis functions.
    """
    bumps = max(-(-layer.bumps // layer.inputs) for layer in layers_of(bundle))
    given = bumps - order if grid is None else grid
    if order < 0 or given < 1 or given + order != bumps:
        raise InputError(
            f"{bundle.path} has {bumps} bumps on each input, which are grid + order: "
            f"got --grid {'not given' if grid is None else grid} --order {order}"
        )
    return Shape(bundle.manifest.widths, given, order, _domain(bundle))


# --- subjects


class _Subject:
    """What all of them have."""

    def __init__(
        self, contender: Contender, parameters: int, difference: float | None, domain: NDArray[np.float64]
    ) -> None:
        self.contender = contender
        self.parameters = parameters
        self.difference = difference
        self._domain = domain

    def split(self) -> Split | None:
        return None

    def release(self) -> None:
        """Inputs belong to the turns alone."""

    def close(self) -> None:
        """What is held is freed when nobody refers to it any more."""

    def _io_bytes(self, batch: int) -> int:
        """Of rotated inputs, and of answers."""
        widths = self.contender.widths
        return max(2 * batch * widths[0] * 4, _INPUTS_BYTES) + batch * widths[-1] * 4


class _Host(_Subject):
    """Rows in host memory."""

    def __init__(self, *known: Any, call: Call, taken: Callable[[int], int]) -> None:
        super().__init__(*known)
        self._call: Call | None = call
        self._taken = taken

    def bytes_for(self, batch: int) -> int:
        return self._io_bytes(batch) + self._taken(batch)

    def prepare(self, batch: int) -> Turn:
        assert self._call is not None
        return rotated([functools.partial(self._call, x) for x in make_inputs(self._domain, batch)])

    def close(self) -> None:
        self._call = None


class _Bound(_Subject):
    """Rows in the graph's own buffers."""

    def __init__(self, *known: Any, session: Any, basis: int) -> None:
        super().__init__(*known)
        self._session = session
        self._basis = basis

    def bytes_for(self, batch: int) -> int:
        return self._io_bytes(batch) + self._basis * batch

    def prepare(self, batch: int) -> Turn:
        layout, precision = self.contender.layout, self.contender.precision
        assert layout is not None  # it is our own
        inputs = [to_graph(x, layout, precision) for x in make_inputs(self._domain, batch)]
        outputs = self.contender.widths[-1]
        shape = (1, outputs, 1, batch) if layout == "batch-last" else (batch, outputs, 1)
        return rotated(bound_calls(self._session, inputs, shape))

    def close(self) -> None:
        self._session = None


class _HostToHost(_Host):
    """An engine, asked from host memory."""

    def __init__(self, *known: Any, call: Call, backend: EngineBackend) -> None:
        super().__init__(*known, call=call, taken=lambda batch, taken=backend.lane_bytes: taken)  # type: ignore[misc]
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


class _OnDevice(_Subject):
    """An engine, asked from the GPU's memory: as many inputs as it keeps graphs for."""

    def __init__(self, *known: Any, backend: EngineBackend) -> None:
        super().__init__(*known)
        self._backend: EngineBackend | None = backend
        self._stream: Any = None
        self._memory: list[Any] = []
        self._calls: list[tuple[int, int, int]] = []  # rows, and the addresses of x and y

    def bytes_for(self, batch: int) -> int:
        return self._io_bytes(batch)  # the lane is the one that `_HostToHost` counts

    def prepare(self, batch: int) -> Turn:
        backend = self._backend
        assert backend is not None
        least, _, most = backend.artifact.batch or (1, 1, 1)
        if not least <= batch <= most:
            raise RelukanError(f"the engine was built for {least} to {most} rows of data on the device, got {batch}")
        self.release()
        try:
            with backend.cuda:
                self._fill(backend, make_inputs(self._domain, batch, most=_MOST_PAIRS))
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


def _difference(bundle: Bundle, artifact: Artifact, running: Backend) -> float:
    """The largest error on the golden inputs, relative to max(1, max|y|)."""
    x, y = bundle.golden()
    try:
        report = compare(
            running.run, x, y, tolerance=artifact.tolerance, task=bundle.manifest.task, batches=[32, len(x)]
        )
        report.require(f"{bundle.path / artifact.file} on {running.name}")
    except BaseException:
        running.close()
        raise
    return report.error


def _domain(bundle: Bundle) -> NDArray[np.float64]:
    """``(in, 2)``, with [0, 1] for an input that never matters."""
    return np.array([interval or (0.0, 1.0) for interval in bundle.manifest.domain])
