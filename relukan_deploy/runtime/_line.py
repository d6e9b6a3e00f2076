"""The queue of a `Batcher`: who waits, who may run the next batch, and what has been counted."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import queue
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import DeadlineExceeded, InputError, QueueFull, ServiceClosed
from ._calls import Call, deliver

__all__ = ["Batch", "BatcherStats", "Line"]

_INLINE_SECONDS = 1e-3  # a batch that takes longer would hold up an event loop too much


@dataclasses.dataclass(frozen=True)
class BatcherStats:
    """What a `Batcher` has done so far, and what waits now.

    Attributes:
        requests, rows, batches: that were run, also where running them failed.
        queue_seconds: from a request's coming to its batch's start, summed over the requests.
        run_seconds: from a batch's start to its end, summed over the batches.
        full: requests turned away with `QueueFull`.
        expired: requests told `DeadlineExceeded`.
        cancelled: requests cancelled before they were run.
        pending: rows that wait now; a request without rows counts as one.
    """

    requests: int = 0
    rows: int = 0
    batches: int = 0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0
    full: int = 0
    expired: int = 0
    cancelled: int = 0
    pending: int = 0


class Batch(NamedTuple):
    """Requests to run together, their numbers of rows, and when they left the queue."""

    calls: list[Call]
    sizes: list[int]
    begin: float


class Line:
    """A bounded queue that gives out one batch at a time. Thread-safe.

    Attributes:
        bell: wakes the worker. Anything but None ends the service: True drops what waits, False does not.
        process: whose worker answers; None before its start.
        pending: rows that wait.
    """

    def __init__(self, max_batch: int, max_delay: float, max_queue: int) -> None:
        self.bell: queue.SimpleQueue[bool | None] = queue.SimpleQueue()
        self.process: int | None = None
        self.pending = 0
        self._max_batch = max_batch
        self._max_delay = max_delay
        self._max_queue = max_queue
        self._lock = threading.Lock()
        self._waiting: dict[Call, None] = {}  # in order of arrival, and left in O(1)
        self._rung = False
        self._busy = False  # a batch is out
        self._inline = 0  # batches up to this weight are expected to take less than _INLINE_SECONDS
        self._end: str | None = None
        self._cause: BaseException | None = None
        self._requests = self._rows = self._batches = self._full = self._expired = self._cancelled = 0
        self._queue_seconds = self._run_seconds = 0.0

    def put(self, call: Call) -> None:
        """Appends a request; wakes the worker if it is a thread's.

        Raises:
            QueueFull: it does not fit now.
            InputError: it never will.
            ServiceClosed: the queue is closed.
        """
        weight = call.weight
        with self._lock:
            if self._end is not None:
                raise self.closed()
            if self.pending + weight > self._max_queue:
                raise self._refused(weight)
            self._waiting[call] = None
            self.pending += weight
            if call.loop is None and not self._busy:
                self._ring()

    def take(self, here: asyncio.AbstractEventLoop | None) -> Batch | float | None:
        """The next batch, to be run and then told to `finish`.

        Args:
            here: the loop that would run it; None for the worker.

        Returns:
            Where there is none yet, the seconds until one is due; None if somebody else will see to it.
        """
        with self._lock:
            if here is None:
                self._rung = False
            now = time.monotonic()
            delay = None if self._busy else self._due(now)
            if delay is None or delay > 0:
                return delay
            if here is not None and self._next_weight() > self._inline:
                self._ring()
                return None
            calls, late = self._cut(now)
            self._busy = bool(calls)
        for call in late:
            if call.loop is None:  # the others have a timer in their loop
                self.expire(call)
        if not calls:
            return 0.0
        return Batch(calls, [len(call.rows) for call in calls], now)

    def finish(self, batch: Batch, here: asyncio.AbstractEventLoop | None) -> float | None:
        """Counts a batch that was run, and lets the next one out. As `take`: when `here` should look again."""
        with self._lock:
            now = time.monotonic()
            seconds = max(now - batch.begin, 1e-9)
            rows = sum(batch.sizes)
            self._requests += len(batch.calls)
            self._rows += rows
            self._batches += 1
            self._queue_seconds += sum([batch.begin - call.since for call in batch.calls])
            self._run_seconds += seconds
            fits = int(rows * _INLINE_SECONDS / seconds)  # time grows with the rows at most in proportion
            self._inline = max(self._inline, fits) if seconds <= _INLINE_SECONDS else min(self._inline, fits)
            self._busy = False
            if here is None:
                return 0.0
            if self._end is None and self._waiting and next(iter(self._waiting)).loop is here:
                return self._due(now)  # at the end it is the worker's, which leaves when nothing waits
            if self._waiting or self._end is not None:
                self._ring()
            return None

    def cancel(self, call: Call) -> bool:
        """Takes a cancelled request out. Whether it was still waiting."""
        with self._lock:
            waiting = self._remove(call)
            self._cancelled += waiting
        return waiting

    def expire(self, call: Call) -> None:
        """Fails a request whose time is up."""
        with self._lock:
            if self._remove(call) and not call.claim():
                self._cancelled += 1  # at this very moment
                return
        allowed = call.deadline - call.since
        if call.tell(DeadlineExceeded(f"not answered within {allowed:.3g} s: allow more, or send less at a time")):
            with self._lock:
                self._expired += 1

    def end(self, reason: str, *, drop: bool) -> None:
        """Takes no more requests, and gives `reason` to who comes. With `drop` those that wait fail too."""
        with self._lock:
            if self._end is None:
                self._end = reason
            dropped = self._drop() if drop else []
            self._ring()
        deliver(dropped, [self.closed() for _ in dropped], None)

    def die(self, error: BaseException, running: Sequence[Call] = ()) -> None:
        """Fails those that wait and those whose batch was running, because of `error`."""
        with self._lock:
            self._end = f"what answers has died of {error!r}: load the bundle and make a Batcher anew"
            self._cause = error
            self._busy = False
            dropped = [*running, *self._drop()]
            self._ring()
        deliver(dropped, [self.closed() for _ in dropped], None)

    def closed(self) -> ServiceClosed:
        """The error for callers after the end."""
        error = ServiceClosed(self._end)
        error.__cause__ = self._cause
        return error

    @property
    def ended(self) -> bool:
        """Whether requests are refused."""
        return self._end is not None

    @property
    def drained(self) -> bool:
        """Whether the worker may leave."""
        return self._end is not None and not self._waiting and not self._busy

    @property
    def foreign(self) -> bool:
        """Whether this is a fork of the worker's process, where nobody answers."""
        return self.process not in (None, os.getpid())

    def check_process(self) -> None:
        """Raises ServiceClosed in a fork."""
        if self.foreign:
            raise ServiceClosed(
                f"this Batcher answers in process {self.process}, and this is a fork of it: "
                f"load the bundle and make a Batcher after the fork"
            )

    def stats(self) -> BatcherStats:
        with self._lock:
            return BatcherStats(
                requests=self._requests,
                rows=self._rows,
                batches=self._batches,
                queue_seconds=self._queue_seconds,
                run_seconds=self._run_seconds,
                full=self._full,
                expired=self._expired,
                cancelled=self._cancelled,
                pending=self.pending,
            )

    # The rest is called with the lock held.

    def _cut(self, now: float) -> tuple[list[Call], list[Call]]:
        """Takes the next batch out of the queue: its calls, and those that were too late for it."""
        if self.pending <= self._max_batch:
            taken = list(self._waiting)
            self._waiting.clear()
            self.pending = 0
        else:
            taken = self._first()
        calls = [call for call in taken if call.deadline > now and call.claim()]
        late: list[Call] = []
        if len(calls) < len(taken):
            late = [call for call in taken if call.deadline <= now and call.claim()]
            self._cancelled += len(taken) - len(calls) - len(late)
        return calls, late

    def _first(self) -> list[Call]:
        """Takes as many calls as fit into a batch, at least one."""
        taken: list[Call] = []
        weight = 0
        for call in self._waiting:
            if taken and weight + call.weight > self._max_batch:
                break
            taken.append(call)
            weight += call.weight
        for call in taken:
            del self._waiting[call]
        self.pending -= weight
        return taken

    def _due(self, now: float) -> float | None:
        """Seconds until the next batch should be run; None if nothing waits."""
        if not self._waiting:
            return None
        if not self._max_delay or self.pending >= self._max_batch or self._end is not None:
            return 0.0
        return max(0.0, next(iter(self._waiting)).since + self._max_delay - now)

    def _next_weight(self) -> int:
        return max(min(self.pending, self._max_batch), next(iter(self._waiting)).weight)

    def _drop(self) -> list[Call]:
        """Empties the queue. Those who were in it and still wait for an answer."""
        dropped = [call for call in self._waiting if call.claim()]
        self._waiting.clear()
        self.pending = 0
        return dropped

    def _remove(self, call: Call) -> bool:
        if call not in self._waiting:
            return False
        del self._waiting[call]
        self.pending -= call.weight
        return True

    def _refused(self, weight: int) -> Exception:
        if weight > self._max_queue:
            return InputError(f"x has {weight} rows, more than max_queue={self._max_queue}: send fewer at a time")
        self._full += 1
        return QueueFull(
            f"{weight} more rows do not fit: {self.pending} of at most {self._max_queue} are waiting; ask again later"
        )

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            self.bell.put(None)
