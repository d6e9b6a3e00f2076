"""Running batches: `run_next`, which every event loop does for itself, and the worker thread that does nothing else."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import logging
import queue
import threading
import weakref
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from ..errors import RelukanError
from ._calls import Call, Outcome, deliver, own_copy
from ._line import Batch, Line
from .runner import Rows

__all__ = ["RowRunner", "run_next", "start_worker"]

logger = logging.getLogger("relukan_deploy.runtime")


class RowRunner(Protocol):
    """What a `Batcher` needs of a `Runner`; any object of a user's own with these two will do."""

    def admit(self, x: ArrayLike) -> Rows:
        """One caller's x as rows ``(batch, in)``, or the error that this caller gets. Called by any thread."""

    def run(self, rows: Rows) -> Rows:
        """y ``(batch, out)``, an array of its own, for admitted rows. Called by one thread at a time."""


def run_next(line: Line, runner: RowRunner, here: asyncio.AbstractEventLoop | None) -> float | None:
    """Runs a batch if one is due. Seconds until the next look; None if somebody else will see to it."""
    calls: Sequence[Call] = ()
    try:
        batch = line.take(here)
        if not isinstance(batch, Batch):
            return batch
        calls = batch.calls
        try:
            outcomes = _answers(runner, batch)
        except Exception as error:
            outcomes = [own_copy(error) for _ in calls]
        delay = line.finish(batch, here)
        deliver(calls, outcomes, here)
        return delay
    except BaseException as error:
        line.die(error, calls)
        raise


def _answers(runner: RowRunner, batch: Batch) -> list[Outcome]:
    """Every call's own part of the joint answer.

    Raises:
        RelukanError: the runner answered another number of rows, and nobody knows whose are whose.
    """
    parts = [call.rows for call in batch.calls]
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    y = runner.run(rows)
    if len(y) != len(rows):
        raise RelukanError(f"the runner answered {len(rows)} rows with {len(y)}")
    if len(parts) == 1:
        return [y]
    answers: list[Outcome] = []
    begin = 0
    for size in batch.sizes:
        end = begin + size
        answers.append(y[begin:end].copy())
        begin = end
    return answers


def start_worker(line: Line, runner: RowRunner) -> threading.Thread:
    """A thread that runs what is due in `line`, each time its bell rings, until the line is drained."""
    worker = threading.Thread(target=_work, args=(line, runner), name="relukan-batcher", daemon=True)
    _end_at_exit()[worker] = line.bell
    worker.start()
    return worker


def _work(line: Line, runner: RowRunner) -> None:
    delay: float | None = None
    try:
        while not line.drained:
            drop = None
            with contextlib.suppress(queue.Empty):  # then it is time
                drop = line.bell.get(timeout=delay)
            if drop is not None:
                line.end("this Batcher is gone: keep it as long as it is needed", drop=drop)
            delay = run_next(line, runner, None)
    except BaseException as error:
        line.die(error)
        logger.critical("the worker of a Batcher has died", exc_info=error)


@functools.cache
def _end_at_exit() -> weakref.WeakKeyDictionary[threading.Thread, queue.SimpleQueue[bool | None]]:
    """The workers and their bells. A thread that is left in ONNX Runtime at exit would abort the process."""
    workers: weakref.WeakKeyDictionary[threading.Thread, queue.SimpleQueue[bool | None]] = weakref.WeakKeyDictionary()

    def end() -> None:
        alive = [worker for worker in workers if worker.is_alive()]
        for worker in alive:
            workers[worker].put(True)
        for worker in alive:
            worker.join()

    atexit.register(end)
    return workers
