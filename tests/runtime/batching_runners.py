"""A runner that can be made to stop and to fail, for the tests of `Batcher`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from relukan_deploy.errors import InputError
from relukan_deploy.runtime.batching import Batcher

Rows = NDArray[np.float32]
T = TypeVar("T")

PATIENCE = 60.0  # seconds until a test gives up on an answer that does not come


class Doubling:
    """A user's own runner: y = 2 x. It notes what it was asked, and can be made to stop or to fail.

    Attributes:
        batches: the first column of every batch it was asked.
        threads: who asked.
        gate: while it is not set, a batch stays in `run`.
        entered: is released by every batch that comes into `run`.
        failure: what `run` raises instead of answering.
    """

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.threads: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.failure: BaseException | None = None

    def admit(self, x: ArrayLike) -> Rows:
        rows = np.asarray(x, np.float32)
        if rows.ndim != 2 or rows.shape[1] != 2:
            raise InputError(f"x must be (batch, 2), got {rows.shape}")
        return rows

    def run(self, rows: Rows) -> Rows:
        self.batches.append([float(value) for value in rows[:, 0]])
        self.threads.append(threading.get_ident())
        self.entered.release()
        assert self.gate.wait(PATIENCE)
        if self.failure is not None:
            raise self.failure
        y: Rows = rows * np.float32(2)
        return y


def row(value: float, rows: int = 1) -> Rows:
    return np.full((rows, 2), value, np.float32)


def occupy(batcher: Batcher, runner: Doubling) -> concurrent.futures.Future[Rows]:
    """Shuts the gate, and waits until the worker stands before it with a request of its own, whose value is -1."""
    runner.gate.clear()
    first = batcher.submit(row(-1))
    assert runner.entered.acquire(timeout=PATIENCE)
    return first


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in an event loop of its own."""
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE))


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)
