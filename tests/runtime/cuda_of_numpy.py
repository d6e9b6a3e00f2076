"""A GPU, its driver and a TensorRT of numpy, which keep to the rules of the real ones.

Streams are queues: nothing happens until somebody waits, and then in the order that events
prescribe, so that a missing wait shows. What a real GPU would leave undefined is a fault here.
Device memory is host memory at its own address. tests/gpu has the real things.
"""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import itertools
import threading
import types
from collections.abc import Callable
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import pytest
from cuda.bindings import driver
from numpy.typing import NDArray

from relukan_deploy.bundle import Artifact
from relukan_deploy.spec import KanSpec

DTYPES = {"fp32": np.float32, "tf32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
DEFAULT_STREAM = 0

CUresult = driver.CUresult
Operation = Callable[[], Any]
Made = TypeVar("Made")


@dataclasses.dataclass(eq=False)
class Stream:
    """A queue of operations; `captured` takes them instead while the stream is captured."""

    gpu: Gpu
    handle: int
    waiting: collections.deque[Operation] = dataclasses.field(default_factory=collections.deque)
    captured: list[Operation] | None = None

    def sync(self) -> None:
        assert self.captured is None, "a stream that is captured was waited for"
        self.gpu.drain(self)

    def record(self, event: Event) -> None:
        def mark() -> None:
            event.milliseconds = float(self.gpu.done)
            self.gpu.done -= 1  # takes no time

        event.mark = self, mark
        self.gpu.enqueue(self.handle, mark)

    def close(self) -> None:
        self.gpu.free(self)


@dataclasses.dataclass(eq=False)
class Event:
    gpu: Gpu
    handle: int
    mark: tuple[Stream, Operation] | None = None
    milliseconds: float = 0.0

    @property
    def is_done(self) -> bool:
        return self.mark is None or self.mark[1] not in self.mark[0].waiting

    def sync(self) -> None:
        assert self.mark is not None
        self.gpu.drain(*self.mark)

    def __sub__(self, earlier: Event) -> float:
        return self.milliseconds - earlier.milliseconds

    def close(self) -> None:
        self.gpu.free(self)


@dataclasses.dataclass(eq=False)
class Memory:
    gpu: Gpu
    bytes: NDArray[np.uint8]

    @property
    def handle(self) -> int:
        return int(self.bytes.ctypes.data)

    def fill(self, value: int, *, stream: Stream) -> None:
        self.gpu.enqueue(stream.handle, lambda: self.bytes.fill(value))

    def close(self) -> None:
        self.gpu.free(self)


@dataclasses.dataclass(eq=False)
class Graph:
    operations: tuple[Operation, ...]


class Gpu:
    """The device and the driver.

    Attributes:
        calls: how often each function of the driver was called.
        live: what was made and not freed.
        faults: what a real GPU would not have taken well.
        done: operations so far; on the clock of events, each takes a millisecond.
    """

    device_id = 0
    name = "a GPU of numpy"
    alignment = 256

    def __init__(self) -> None:
        self.calls: collections.Counter[str] = collections.Counter()
        self.live: set[Any] = set()
        self.faults: list[str] = []
        self.refused: set[str] = set()
        self.done = 0
        self._handles = itertools.count(100)
        self._by_handle: dict[int, Any] = {DEFAULT_STREAM: Stream(self, DEFAULT_STREAM)}
        self._lock = threading.RLock()
        self._thread = threading.local()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Puts this GPU in the place of the driver's functions and cuda-core's device."""
        for name in [name for name in dir(self) if name.startswith("cu")]:
            monkeypatch.setattr(driver, name, self._counted(name))
        monkeypatch.setattr("relukan_deploy.runtime._cuda.open_device", lambda: self)
        pinned = types.SimpleNamespace(allocate=self._allocate)
        monkeypatch.setattr("cuda.core.LegacyPinnedMemoryResource", lambda: pinned)

    # --- cuda-core

    def create_stream(self) -> Stream:
        return self._made(Stream(self, next(self._handles)))

    def create_event(self, options: Any = None) -> Event:
        return self._made(Event(self, next(self._handles)))

    def allocate(self, size: int, *, stream: Stream) -> Memory:
        assert stream in self.live
        return self._allocate(size)

    def _allocate(self, size: int) -> Memory:
        room = np.full(size + 256, 0xFF, np.uint8)  # NaN until something is written
        return self._made(Memory(self, room[-room.ctypes.data % 256 :][:size]))

    # --- the driver

    @property
    def stack(self) -> list[int]:
        """The contexts of the calling thread, the current one last."""
        if not hasattr(self._thread, "stack"):
            self._thread.stack = []
        stack: list[int] = self._thread.stack
        return stack

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:  # noqa: N802
        return CUresult.CUDA_SUCCESS, 1

    def cuCtxPushCurrent(self, context: int) -> Any:  # noqa: N802
        self.stack.append(context)
        return (CUresult.CUDA_SUCCESS,)

    def cuCtxPopCurrent(self) -> Any:  # noqa: N802
        return CUresult.CUDA_SUCCESS, self.stack.pop()

    def cuMemGetInfo(self) -> Any:  # noqa: N802
        taken = sum(len(thing.bytes) for thing in self.live if isinstance(thing, Memory))
        return CUresult.CUDA_SUCCESS, (1 << 30) - taken, 1 << 30

    def cuMemcpyAsync(self, target: int, source: int, size: int, stream: int) -> Any:  # noqa: N802
        self._require_memory(target, size)
        self._require_memory(source, size)
        return self._enqueue(stream, lambda: ctypes.memmove(target, source, size))

    def cuEventRecord(self, event: int, stream: int) -> Any:  # noqa: N802
        def mark() -> None:
            pass

        self._by_handle[event].mark = self._by_handle[stream], mark
        return self._enqueue(stream, mark)

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> Any:  # noqa: N802
        source, mark = self._by_handle[event].mark
        return self._enqueue(stream, lambda: self.drain(source, until=mark))

    def cuStreamIsCapturing(self, stream: int) -> Any:  # noqa: N802
        states = driver.CUstreamCaptureStatus
        captured = self._by_handle[stream].captured is not None
        state = states.CU_STREAM_CAPTURE_STATUS_ACTIVE if captured else states.CU_STREAM_CAPTURE_STATUS_NONE
        return CUresult.CUDA_SUCCESS, state

    def cuStreamBeginCapture(self, stream: int, mode: Any) -> Any:  # noqa: N802
        assert mode == driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        assert stream != DEFAULT_STREAM
        assert self._by_handle[stream].captured is None
        self._by_handle[stream].captured = []
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamEndCapture(self, stream: int) -> Any:  # noqa: N802
        operations, self._by_handle[stream].captured = self._by_handle[stream].captured, None
        if "capture" in self.refused:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None
        return CUresult.CUDA_SUCCESS, self._made(Graph(tuple(operations)))

    def cuGraphInstantiate(self, graph: Graph, flags: int) -> Any:  # noqa: N802
        return CUresult.CUDA_SUCCESS, self._made(Graph(graph.operations))

    def cuGraphDestroy(self, graph: Any) -> Any:  # noqa: N802
        self.free(graph)
        return (CUresult.CUDA_SUCCESS,)

    def cuGraphLaunch(self, graph: Any, stream: int) -> Any:  # noqa: N802
        if graph not in self.live:
            self.faults.append("a graph was launched after it was freed")
        return self._enqueue(stream, *graph.operations)

    def cuGraphExecDestroy(self, graph: Any) -> Any:  # noqa: N802
        self.free(graph)
        return (CUresult.CUDA_SUCCESS,)

    # --- how it works

    def stream(self) -> Stream:
        """Another stream, of somebody else."""
        made = Stream(self, next(self._handles))
        self._by_handle[made.handle] = made
        return made

    def enqueue(self, stream: int, *operations: Operation) -> None:
        with self._lock:
            queue = self._by_handle[stream]
            (queue.waiting if queue.captured is None else queue.captured).extend(operations)

    def run_ahead(self) -> None:
        """Does what waits in streams that the backend has made, before any other."""
        for stream in [thing for thing in self.live if isinstance(thing, Stream)]:
            self.drain(stream)

    def drain(self, stream: Stream | int, until: Operation | None = None) -> None:
        """Does what waits in a stream: everything, or up to `until`, which may have been done before."""
        queue = self._by_handle[stream] if isinstance(stream, int) else stream
        with self._lock:
            while queue.waiting and (until is None or until in queue.waiting):
                queue.waiting.popleft()()
                self.done += 1

    def free(self, thing: Any) -> None:
        if thing not in self.live:
            self.faults.append(f"{type(thing).__name__} was freed twice")
        self.live.discard(thing)

    def _made(self, thing: Made) -> Made:
        self.live.add(thing)
        if hasattr(thing, "handle"):
            self._by_handle[thing.handle] = thing
        return thing

    def _enqueue(self, stream: int, *operations: Operation) -> tuple[Any, ...]:
        if not self.stack:
            return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
        self.enqueue(stream, *operations)
        return (CUresult.CUDA_SUCCESS,)

    def _require_memory(self, address: int, size: int) -> None:
        for thing in self.live:
            if (
                isinstance(thing, Memory)
                and thing.handle <= address
                and address + size <= thing.handle + len(thing.bytes)
            ):
                return
        self.faults.append(f"a copy of {size} bytes is not within memory that was allocated")

    def _counted(self, name: str) -> Callable[..., Any]:
        function = getattr(self, name)

        def count(*arguments: Any) -> Any:
            self.calls[name] += 1
            return function(*arguments)

        return count


class Context:
    """An execution context. A captured run is bound to the state it was captured in."""

    profiler: Any = None

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.scratch = 0
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.flushed = False  # whether it has run since the shape was set

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size == self.engine.device_memory_size_v2
        self.scratch = memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "x"
        least, _, most = self.engine.artifact.batch or (0, 0, 0)
        last = self.engine.artifact.layout == "batch-last"
        batch = shape[3] if last else shape[0]
        features = self.engine.spec.in_features
        fits = least <= batch <= most and shape == ((1, features, 1, batch) if last else (batch, features, 1))
        if not fits:
            self.engine.log(f"{shape} is not within the profile")
        self.shape, self.flushed = shape, self.flushed and shape == self.shape
        return fits

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % self.engine.gpu.alignment == 0

    def execute_async_v3(self, stream: int) -> bool:
        engine, gpu = self.engine, self.engine.gpu
        engine.enqueued.append(self.shape)
        capturing = gpu._by_handle[stream].captured is not None
        if engine.fails or (capturing and (engine.fails_captured or not self.flushed)):
            engine.log("it went wrong")
            return False
        self.flushed = True
        state = self.shape, dict(self.addresses), self.scratch

        def kernel() -> None:
            if capturing and state != (self.shape, self.addresses, self.scratch):
                gpu.faults.append("a context was changed after a graph had been captured from it")
            if engine.scratch_user.setdefault(self.scratch, stream) != stream:
                gpu.faults.append("two streams run in the same scratch memory")
            engine.compute(*state)

        gpu.enqueue(stream, kernel)
        if self.profiler is not None:
            gpu.drain(stream)
            self.profiler.report_layer_time("all of it", 1.5)
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.capturable


class Engine:
    """A deserialised engine that evaluates a network on what is in the memory.

    Attributes:
        enqueued: the shape of each run that was not a replay.
        ran: the addresses of x and y of each run.
        weights: what a refitter can replace; it does not change the answers.
    """

    device_memory_size_v2 = 1000

    def __init__(self, gpu: Gpu, spec: KanSpec, artifact: Artifact, logger: Any) -> None:
        self.gpu, self.spec, self.artifact, self.logger = gpu, spec, artifact, logger
        self.dtype = np.dtype(DTYPES[artifact.precision])
        self.enqueued: list[tuple[int, ...]] = []
        self.ran: list[tuple[int, int]] = []
        self.scratch_user: dict[int, int] = {}
        self.weights: dict[str, NDArray[Any]] = {}
        self.fails, self.fails_captured, self.capturable, self.refittable = False, False, True, False

    def create_execution_context(self, strategy: str) -> Context | None:
        assert strategy == "USER_MANAGED"
        return Context(self)

    def log(self, message: str) -> None:
        self.logger.log(1, message)

    def compute(self, shape: tuple[int, ...], addresses: dict[str, int], scratch: int) -> None:
        self.ran.append((addresses["x"], addresses["y"]))
        features, last = self.spec.in_features, self.artifact.layout == "batch-last"
        batch = int(np.prod(shape)) // features
        x = self._array(addresses["x"], batch * features).astype(np.float64)
        x = np.clip(x, -1e30, 1e30)  # to a lowered graph infinity is a number outside the domain
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are asked too
            y = self.spec.evaluate(x.reshape(features, batch).T if last else x.reshape(batch, features))
        flat = (y.T if last else y).reshape(-1)
        self._array(addresses["y"], flat.size)[:] = flat.astype(self.dtype)

    def _array(self, address: int, count: int) -> NDArray[Any]:
        raw = (ctypes.c_uint8 * (count * self.dtype.itemsize)).from_address(address)
        return np.ctypeslib.as_array(raw).view(self.dtype)


class Refitter:
    def __init__(self, engine: Engine, logger: Any) -> None:
        self.engine, self.given = engine, set[str]()

    def get_all_weights(self) -> list[str]:
        return list(self.engine.weights)

    def set_named_weights(self, name: str, weights: tuple[str, int, int]) -> bool:
        type_, address, count = weights
        kept = self.engine.weights[name]
        if count != kept.size or type_ != {2: "HALF", 4: "FLOAT"}[kept.itemsize]:
            return False
        raw = (ctypes.c_uint8 * kept.nbytes).from_address(address)
        self.engine.weights[name] = np.ctypeslib.as_array(raw).view(kept.dtype).reshape(kept.shape).copy()
        self.given.add(name)
        return True

    def refit_cuda_engine(self) -> bool:
        return self.given == set(self.engine.weights)


def fake_tensorrt(make: Callable[[Any], Engine | None]) -> Any:
    """A TensorRT whose plans all become what `make` gives for a logger."""
    logger = type("ILogger", (), {"Severity": types.SimpleNamespace(ERROR=1)})

    def runtime(log: Any) -> Any:
        return types.SimpleNamespace(deserialize_cuda_engine=lambda plan: make(log))

    return types.SimpleNamespace(
        ILogger=logger,
        IProfiler=type("IProfiler", (), {}),
        Runtime=runtime,
        Refitter=Refitter,
        Weights=lambda type_, address, count: (type_, address, count),
        DataType=types.SimpleNamespace(FLOAT="FLOAT", HALF="HALF", BF16="BF16"),
        ExecutionContextAllocationStrategy=types.SimpleNamespace(USER_MANAGED="USER_MANAGED"),
        __version__="99.0",
    )
