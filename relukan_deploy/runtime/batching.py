"""`Batcher`: requests of many threads and event loops, answered in joint batches of one runner.

One queue and two that take from it, never both at once: a worker thread, and each event loop for
itself. A loop runs what waits in its own thread when that is expected to be short, because a hop to
another thread and back takes several times as long as a small network; all else is the worker's.
While a batch runs, the next one gathers.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import os
import threading
import time
import weakref
from concurrent.futures import Future
from types import TracebackType

from numpy.typing import ArrayLike

from ..errors import InputError
from ._calls import LoopCall, ThreadCall
from ._line import BatcherStats, Line
from ._worker import RowRunner, run_next, start_worker
from .runner import Rows

__all__ = ["Batcher", "BatcherStats", "RowRunner"]


class Batcher:
    """Joins the requests of many callers into batches. Thread-safe.

    Nobody waits for a batch to fill unless `max_delay` says so: what has gathered while the last batch
    ran is the next one. Requests keep their order; results are never swapped.

    A Batcher is made for one process. Until its first request it may be forked.

    Args:
        runner: what answers; it stays the caller's to close, after the Batcher.
        max_batch: rows of a batch. A single request with more is run alone.
        max_delay: seconds that the oldest waiting request may be held back for more to join it.
        max_queue: rows that may wait.

    Raises:
        InputError: a limit that cannot be.
    """

    def __init__(
        self, runner: RowRunner, *, max_batch: int = 1024, max_delay: float = 0.0, max_queue: int = 65536
    ) -> None:
        if max_batch < 1 or max_queue < 1:
            raise InputError(f"max_batch and max_queue must be at least 1 row, got {max_batch} and {max_queue}")
        if not 0 <= max_delay < math.inf:
            raise InputError(f"max_delay must be seconds from 0 on, got {max_delay}")
        self._runner = runner
        self._max_batch = max_batch
        self._max_delay = max_delay
        self._line = Line(max_batch, max_delay, max_queue)
        self._lanes: dict[asyncio.AbstractEventLoop, _Lane] = {}
        self._worker: threading.Thread | None = None
        self._changing = threading.Lock()  # held to start or end

    async def __call__(self, x: ArrayLike, *, timeout: float | None = None) -> Rows:
        """y ``(batch, out)`` float32, an array of its own, for x ``(batch, in)``. From any event loop.

        Args:
            x: as a runner takes it; not to be changed until it is answered.
            timeout: seconds after which the answer is of no use.

        Raises:
            InputError: x is not ``(batch, in)`` numbers, what the runner's policy refuses, or longer than the queue.
            QueueFull: too many rows are waiting.
            DeadlineExceeded: `timeout` passed first. The rows were not run, or are being run now.
            ServiceClosed: the Batcher is closed, or has died.
            Exception: what running the batch raised, to everybody in it.
        """
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(loop) or self._open_lane(loop)
        rows = self._admit(x)
        since = time.monotonic()
        call = LoopCall(rows, since, _deadline(since, timeout), loop)
        self._line.put(call)
        if not lane.soon:
            self._arm(lane)
        timer = None if call.deadline == math.inf else loop.call_later(call.deadline - since, self._line.expire, call)
        try:
            return await call.future
        except asyncio.CancelledError:
            self._line.cancel(call)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def submit(self, x: ArrayLike, *, timeout: float | None = None) -> Future[Rows]:
        """The same from any thread, as a future at once; x may be changed right away.

        A request that is being run can no longer be cancelled. `DeadlineExceeded` is found in the future by
        whoever looks at it; callbacks and `concurrent.futures.wait` hear of it when its turn would have come.

        Raises:
            InputError, QueueFull, ServiceClosed: as above, and at once. All else is in the future.
        """
        self._start()
        rows = self._admit(x).copy()  # they may be x itself, or share its memory
        since = time.monotonic()
        call = ThreadCall(rows, since, _deadline(since, timeout), self._line)
        self._line.put(call)
        return call

    def stats(self) -> BatcherStats:
        """What was done since the start."""
        return self._line.stats()

    def close(self, *, drain: bool = True) -> None:
        """Takes no more requests, and returns when nothing is being run any more.

        What waits is answered, or without `drain` fails with `ServiceClosed`. May be called from anywhere:
        in an event loop it holds up the loop, whose callers have their answers when it goes on.
        """
        if self._line.foreign:
            return  # the worker is the other process's
        with self._changing:
            self._line.end("this Batcher is closed: make another one", drop=not drain)
            worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join()

    async def aclose(self, *, drain: bool = True) -> None:
        """`close`, while the event loop goes on."""
        await asyncio.to_thread(self.close, drain=drain)

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Batcher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    def _admit(self, x: ArrayLike) -> Rows:
        try:
            return self._runner.admit(x)
        except Exception:
            if self._line.ended:  # its runner may be closed by now, which is not the request's fault
                raise self._line.closed() from None
            raise

    def _start(self) -> None:
        """Starts the worker with the first request, in the process that sends it."""
        self._line.check_process()
        if self._worker is not None:
            return
        with self._changing:
            if self._worker is not None or self._line.ended:
                return
            self._worker = start_worker(self._line, self._runner)
            self._line.process = os.getpid()
            # The worker does not know the Batcher: a forgotten one is freed, and its worker then leaves. This
            # takes no lock, because any thread may be the one that frees.
            weakref.finalize(self, self._line.bell.put, False)

    def _open_lane(self, loop: asyncio.AbstractEventLoop) -> _Lane:
        self._start()
        with self._changing:
            self._lanes = {known: lane for known, lane in self._lanes.items() if not known.is_closed()}
            lane = self._lanes[loop] = _Lane(loop)
        return lane

    def _arm(self, lane: _Lane, delay: float | None = None) -> None:
        """Lets the lane's loop look at the queue when a batch is due; `delay` seconds, if that is known."""
        if delay is None:
            delay = 0.0 if self._line.pending >= self._max_batch else self._max_delay
        if delay <= 0.0:
            lane.soon = True
            lane.loop.call_soon(self._drain, lane, context=lane.context)
        elif lane.timer is None:
            lane.timer = lane.loop.call_later(delay, self._drain, lane, context=lane.context)

    def _drain(self, lane: _Lane) -> None:
        lane.soon = False
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        delay = run_next(self._line, self._runner, lane.loop)
        if delay is not None and not lane.soon:
            self._arm(lane, delay)


class _Lane:
    """When an event loop will look at the queue: in its next round, or at a time."""

    __slots__ = ("context", "loop", "soon", "timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.soon = False
        self.timer: asyncio.TimerHandle | None = None
        self.context = contextvars.Context()  # a batch runs in nobody's context, such as one caller's numpy.errstate


def _deadline(since: float, timeout: float | None) -> float:
    if timeout is None:
        return math.inf
    if math.isnan(timeout):
        raise InputError("timeout must be seconds, got NaN")
    return since + timeout
