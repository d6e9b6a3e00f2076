"""One request in a `Batcher`: of a coroutine or of a thread, and how each is told its answer."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from collections.abc import Iterable
from concurrent import futures
from typing import Protocol, TypeAlias, Union

from ..errors import RelukanError
from .runner import Rows

__all__ = ["Call", "LoopCall", "Outcome", "ThreadCall", "deliver", "own_copy"]

Outcome: TypeAlias = Union[Rows, Exception]  # noqa: UP007  evaluated at run time


class LoopCall:
    """A request that a coroutine awaits.

    Attributes:
        rows: what to run, ``(batch, in)``.
        weight: its places in the queue: its rows, at least one.
        since, deadline: on the clock of `time.monotonic`.
        loop: the only one whose thread may touch `future`.
    """

    __slots__ = ("deadline", "future", "loop", "rows", "since", "weight")

    def __init__(self, rows: Rows, since: float, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        self.rows = rows
        self.weight = len(rows) or 1
        self.since = since
        self.deadline = deadline
        self.loop = loop
        self.future: asyncio.Future[Rows] = loop.create_future()

    def claim(self) -> bool:
        """Whether it is still wanted."""
        return not self.future.done()

    def tell(self, outcome: Outcome) -> bool:
        """Answers it, unless that was done. Whether it was answered now."""
        future = self.future
        if future.done():
            return False
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
            future.exception()  # or asyncio logs it, where a task cancelled in this moment never looks
        else:
            future.set_result(outcome)
        return True


class Owner(Protocol):
    """What a `ThreadCall` asks of the queue that it waits in."""

    def cancel(self, call: Call) -> bool: ...

    def expire(self, call: Call) -> None: ...

    def check_process(self) -> None: ...


class ThreadCall(futures.Future[Rows]):
    """A request of a thread, and the future that it holds; attributes as those of `LoopCall`.

    Looking at it after its deadline finds it failed, whatever the worker is doing.
    """

    loop = None

    def __init__(self, rows: Rows, since: float, deadline: float, owner: Owner) -> None:
        super().__init__()
        self.rows = rows
        self.weight = len(rows) or 1
        self.since = since
        self.deadline = deadline
        self._owner = owner

    def claim(self) -> bool:
        """Whether it is still wanted; from now on it cannot be cancelled. To be asked once."""
        return self.set_running_or_notify_cancel()

    def tell(self, outcome: Outcome) -> bool:
        """Answers it, unless that was done. Whether it was answered now."""
        try:
            if isinstance(outcome, Exception):
                self.set_exception(outcome)
            else:
                self.set_result(outcome)
        except futures.InvalidStateError:
            return False
        return True

    def cancel(self) -> bool:
        if not super().cancel():
            return False
        if self._owner.cancel(self):
            self.claim()  # wakes whoever waits for it
        return True

    def done(self) -> bool:
        self._wait(0.0)
        return super().done()

    def result(self, timeout: float | None = None) -> Rows:
        self._wait(timeout)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._wait(timeout)
        return super().exception(timeout)

    def _wait(self, timeout: float | None) -> None:
        """Waits for the answer until the deadline, if that comes within `timeout`."""
        if super().done():
            return
        self._owner.check_process()
        left = max(0.0, self.deadline - time.monotonic())
        if left == float("inf") or (timeout is not None and timeout < left):
            return
        try:
            with contextlib.suppress(futures.CancelledError):
                super().exception(left)
        except futures.TimeoutError:
            self._owner.expire(self)


Call: TypeAlias = Union[LoopCall, ThreadCall]  # noqa: UP007


def deliver(calls: Iterable[Call], outcomes: Iterable[Outcome], here: asyncio.AbstractEventLoop | None) -> None:
    """Tells every call its outcome; those of another loop than `here` with one message to that loop."""
    elsewhere: dict[asyncio.AbstractEventLoop, list[tuple[Call, Outcome]]] = {}
    for call, outcome in zip(calls, outcomes, strict=True):
        loop = call.loop
        if loop is here or loop is None:
            call.tell(outcome)
        else:
            elsewhere.setdefault(loop, []).append((call, outcome))
    for loop, answers in elsewhere.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits there
            loop.call_soon_threadsafe(_tell_all, answers)


def own_copy(error: Exception) -> Exception:
    """The same error for one waiter of several: raising an exception writes into it."""
    try:
        copied = copy.copy(error)
    except Exception:  # its class takes other arguments than it keeps
        copied = error
    if not isinstance(copied, Exception) or isinstance(copied, StopIteration):  # which no future can hold
        copied = RelukanError(f"running the batch failed with {error!r}")
    if copied is not error:
        copied.__cause__ = error
    return copied


def _tell_all(answers: Iterable[tuple[Call, Outcome]]) -> None:
    for call, outcome in answers:
        call.tell(outcome)
