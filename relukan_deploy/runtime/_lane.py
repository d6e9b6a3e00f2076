"""Lanes: what one call at a time needs of the GPU, and as many of them as there are calls at a time."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..bundle import Artifact
from ..errors import InputError
from ..spec import Layout
from ._cuda import Cuda, Staging
from ._graphs import Replay
from ._plan import Plan
from .runner import Rows, element_dtype, from_graph, to_graph

__all__ = ["REMEMBERED", "Lane", "Lanes"]

REMEMBERED = 16  # pairs of device arrays, for each lane


class Lane:
    """A stream, and on it everything that a call needs: buffers, execution contexts, captured graphs.

    All work is on this stream, so that contexts may share their scratch memory. A graph lives on the
    state of the context it was captured from, so each has a context of its own. For one call at a
    time, within ``with cuda:``.

    Args:
        cuda, plan: the GPU and the engine.
        artifact: the engine in its bundle.
        in_features, out_features: sizes of a row in and out.
        complain: told why there is no graph; None to make none.

    Attributes:
        stream: all its work is on it.
        x, y: rows come from there, and answers go there, when they are in host memory.
    """

    def __init__(
        self,
        cuda: Cuda,
        plan: Plan,
        artifact: Artifact,
        in_features: int,
        out_features: int,
        complain: Callable[[str], None] | None,
    ) -> None:
        assert artifact.batch is not None  # engines always have a profile
        self._cuda = cuda
        self._plan = plan
        self._precision = artifact.precision
        self._converts = artifact.precision in ("fp16", "bf16")
        self._layout = artifact.layout
        self._complain = complain
        most, dtype = artifact.batch[2], element_dtype(artifact.precision)
        self.stream = cuda.device.create_stream()  # neither waits for the default stream, nor that for it
        self._handle = int(self.stream.handle)
        self._event = cuda.device.create_event()
        self._event_handle = int(self._event.handle)
        self._scratch = cuda.device.allocate(max(plan.scratch_bytes, 1), stream=self.stream)
        self.x = Staging(cuda, self.stream, most * in_features * dtype.itemsize)
        self.y = Staging(cuda, self.stream, most * out_features * dtype.itemsize)
        self._host_work: dict[int, _HostWork] = {}
        self._device_work: collections.OrderedDict[tuple[int, int, int], Replay | None] = collections.OrderedDict()
        self._loose: Any = None  # the context for device arrays that were not seen before
        self._features = in_features, out_features

    def run(self, rows: Rows, result: Rows, size: int) -> None:
        """Answers rows ``(count, in)`` into result ``(count, out)``, as a batch of `size`; waits for it."""
        work = self._host_work.get(size)
        if work is None:
            work = self._host_work[size] = self._make_host_work(size)
        count = len(rows)
        work.x[:count] = to_graph(rows, "batch-major", self._precision)[:, :, 0] if self._converts else rows
        work.x[count:] = 0
        work.replay.launch()
        self.stream.sync()
        y = work.y[:count]
        result[:] = from_graph(y[:, :, np.newaxis], "batch-major", self._precision) if self._converts else y

    def run_on_device(self, rows: int, x: int, y: int, stream: int) -> None:
        """Enqueues a batch from address x to address y, after what `stream` holds, and before what it is given next."""
        self._cuda.order(stream, self._handle, self._event_handle)
        self.compute(rows, x, y)
        self._cuda.order(self._handle, stream, self._event_handle)

    def compute(self, rows: int, x: int, y: int) -> None:
        """Enqueues a batch: runs a size at addresses that are new, and replays what has been seen before."""
        key, known = (rows, x, y), self._device_work
        if key not in known:
            known[key] = None
            if self._loose is None:
                self._loose = self._plan.context(int(self._scratch.handle), fixed=False)
            self._plan.aim(self._loose, *key)
            self._plan.enqueue(self._loose, self._handle)
        else:
            replay = known[key]
            if replay is None:
                context = self.context(*key)
                replay = known[key] = self._replay(context, lambda: self._plan.enqueue(context, self._handle))
            replay.launch()
            known.move_to_end(key)
        if len(known) > REMEMBERED:
            _, oldest = known.popitem(last=False)
            if oldest is not None:
                self.stream.sync()  # its context may be running
                oldest.close()

    def context(self, rows: int, x: int, y: int) -> Any:
        """A new execution context for one batch size at these addresses. It may run on this stream alone."""
        context = self._plan.context(int(self._scratch.handle), fixed=True)
        self._plan.aim(context, rows, x, y)
        return context

    def close(self) -> None:
        """Waits for what is enqueued, and frees everything."""
        self.stream.sync()
        for replay in (*(work.replay for work in self._host_work.values()), *self._device_work.values()):
            if replay is not None:
                replay.close()
        self._host_work.clear()
        self._device_work.clear()
        self._loose = None
        for held in (self.x, self.y, self._scratch, self._event, self.stream):
            held.close()

    def _make_host_work(self, size: int) -> _HostWork:
        context = self.context(size, self.x.device, self.y.device)
        dtype = element_dtype(self._precision)
        x, y = (
            _rows_of(staging.bytes, size, features, dtype, self._layout)
            for staging, features in zip((self.x, self.y), self._features, strict=True)
        )

        def enqueue() -> None:
            self._cuda.copy(self.x.device, self.x.host, x.nbytes, self._handle)
            self._plan.enqueue(context, self._handle)
            self._cuda.copy(self.y.host, self.y.device, y.nbytes, self._handle)

        return _HostWork(x, y, self._replay(context, enqueue))

    def _replay(self, context: Any, enqueue: Callable[[], None]) -> Replay:
        def obstacle() -> str | None:
            return self._plan.obstacle(context, self._handle)

        return Replay(self._cuda, self._handle, enqueue, obstacle=obstacle, complain=self._complain)


class Lanes:
    """Lanes for calls on any number of threads. Made when they are needed, up to a limit; beyond, calls wait.

    Args:
        make: makes a lane.
        most: the limit.
        closed: the message of the error for calls after the end.
    """

    def __init__(self, make: Callable[[], Lane], most: int, closed: str) -> None:
        self._make = make
        self._most = most
        self._closed_message = closed
        self._closed = False
        self._made = 0
        self._idle: list[Lane] = []
        self._changed = threading.Condition()

    def take(self) -> Lane:
        """A lane for the calling thread alone, until it is given back.

        Raises:
            InputError: the lanes are closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._idle or self._made < self._most)
            if self._closed:
                raise InputError(self._closed_message)
            if self._idle:
                return self._idle.pop()  # the last one used, so that few callers use few lanes
            self._made += 1
        try:
            return self._make()
        except BaseException:
            with self._changed:
                self._made -= 1
                self._changed.notify_all()
            raise

    def give(self, lane: Lane) -> None:
        with self._changed:
            self._idle.append(lane)
            self._changed.notify()

    def close(self) -> None:
        """Refuses new calls, lets those under way finish, and closes the lanes. Closing again does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._idle) == self._made)
            lanes, self._idle, self._made = self._idle, [], 0
        for lane in lanes:
            lane.close()


class _HostWork(NamedTuple):
    """A batch size from and to pinned memory: its rows ``(batch, in)`` and answers ``(batch, out)`` there."""

    x: NDArray[Any]
    y: NDArray[Any]
    replay: Replay


def _rows_of(memory: NDArray[np.uint8], rows: int, features: int, dtype: np.dtype[Any], layout: Layout) -> NDArray[Any]:
    """The beginning of the memory as ``(rows, features)``, where the layout has them."""
    values = memory[: rows * features * dtype.itemsize].view(dtype)
    return values.reshape(features, rows).T if layout == "batch-last" else values.reshape(rows, features)
