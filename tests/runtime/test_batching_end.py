"""`Batcher`: its end, and the end of its process."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from batching_runners import PATIENCE, Doubling, Rows, occupy, row, run, until
from numpy.typing import ArrayLike

from relukan_deploy.errors import (
    InputError,
    ServiceClosed,
)
from relukan_deploy.runtime.batching import Batcher


# --- the end


@pytest.mark.parametrize("close", ["close", "aclose", "with", "async with"])
def test_closing_answers_what_waits_and_refuses_what_comes(runner: Doubling, close: str) -> None:
    batcher = Batcher(runner, max_delay=10 * PATIENCE)

    async def end() -> list[Rows]:
        tasks = [asyncio.create_task(batcher(row(value))) for value in range(3)]
        await until(lambda: batcher.stats().pending == 3)
        if close == "close":
            batcher.close()
        elif close == "aclose":
            await batcher.aclose()
        elif close == "with":
            with batcher:
                pass
        else:
            async with batcher:
                pass
        assert batcher.stats().requests == 3
        with pytest.raises(ServiceClosed, match="this Batcher is closed: make another one"):
            await batcher(row(1))
        return list(await asyncio.gather(*tasks))

    assert np.concatenate(run(end()))[:, 0].tolist() == [0, 2, 4]
    with pytest.raises(ServiceClosed):
        batcher.submit(row(1))


def test_closing_without_draining_fails_what_waits_and_answers_what_runs(batcher: Batcher, runner: Doubling) -> None:
    first = occupy(batcher, runner)
    waiting, cancelled = batcher.submit(row(1)), batcher.submit(row(2))
    cancelled.cancel()
    closing = threading.Thread(target=lambda: batcher.close(drain=False))
    closing.start()
    assert isinstance(waiting.exception(PATIENCE), ServiceClosed)
    runner.gate.set()
    assert first.result(PATIENCE).tolist() == [[-2, -2]]
    closing.join()
    assert runner.batches == [[-1]]


def test_close_returns_only_when_nothing_runs_any_more(batcher: Batcher, runner: Doubling) -> None:
    first = occupy(batcher, runner)
    threading.Timer(0.02, runner.gate.set).start()
    batcher.close()
    assert first.done()


def test_closing_twice_or_without_a_request_does_nothing(runner: Doubling) -> None:
    batcher = Batcher(runner)
    batcher.close()
    batcher.close(drain=False)
    with pytest.raises(ServiceClosed):
        run(batcher(row(1)))


def test_a_futures_callback_may_close_the_batcher(batcher: Batcher, runner: Doubling) -> None:
    first = occupy(batcher, runner)
    closed = threading.Event()

    def close(_: object) -> None:
        batcher.close()
        closed.set()

    first.add_done_callback(close)
    runner.gate.set()
    assert closed.wait(PATIENCE)


def test_after_the_end_a_closed_runner_is_not_the_requests_fault(bundle_path: Path) -> None:
    class Refusing(Doubling):
        def admit(self, x: ArrayLike) -> Rows:
            raise InputError("this runner is closed")

    batcher = Batcher(Refusing())
    with pytest.raises(InputError):
        batcher.submit(row(1))
    batcher.close()
    with pytest.raises(ServiceClosed):
        batcher.submit(row(1))
    with pytest.raises(ServiceClosed):
        run(batcher(row(1)))


def test_a_forgotten_batcher_is_freed_and_its_worker_leaves(runner: Doubling) -> None:
    before = set(threading.enumerate())
    batcher = Batcher(runner)
    runner.gate.clear()
    future = batcher.submit(row(1))
    (worker,) = set(threading.enumerate()) - before
    del batcher
    gc.collect()
    runner.gate.set()
    assert future.result(PATIENCE).tolist() == [[2, 2]]
    worker.join(PATIENCE)
    assert not worker.is_alive()


# --- processes


def run_script(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints; it must end well and say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True, timeout=2 * PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


FORK = """
import asyncio, os, sys, numpy as np
from relukan_deploy import load
from relukan_deploy.errors import ServiceClosed
from relukan_deploy.runtime.batching import Batcher

runner = load(sys.argv[1])
x = np.full((1, runner.in_features), 0.5, np.float32)
used, unused = Batcher(runner, max_delay=3600, max_batch=2), Batcher(runner)
held = used.submit(x)

def attempt(what, call):
    try:
        print(what, "answered" if len(call()) == 1 else "wrongly", flush=True)
    except ServiceClosed as error:
        print(what, str(error).partition(" answers ")[0], flush=True)

with used._line._lock:  # as the worker may hold it when another thread forks
    child = os.fork()
if not child:
    used._line._lock.acquire(blocking=False)
    attempt("child: held:", held.result)
    attempt("child: submit:", lambda: used.submit(x).result())
    attempt("child: await:", lambda: asyncio.run(used(x)))
    attempt("child: unused:", lambda: unused.submit(x).result())
    used.close()
    unused.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
attempt("parent: submit:", lambda: used.submit(x).result())
attempt("parent: held:", held.result)
"""


@pytest.mark.slow
def test_after_a_fork_a_batcher_that_was_used_refuses_and_one_that_was_not_answers(bundle_path: Path) -> None:
    assert run_script(FORK, str(bundle_path)).splitlines() == [
        "child: held: this Batcher",
        "child: submit: this Batcher",
        "child: await: this Batcher",
        "child: unused: answered",
        "parent: submit: answered",
        "parent: held: answered",
    ]


LEAVE = """
import sys, numpy as np
from relukan_deploy import load
from relukan_deploy.runtime.batching import Batcher

runner = load(sys.argv[1])
batcher = Batcher(runner, max_queue=10**8)
x = np.full((10**6, runner.in_features), 0.5, np.float32)
futures = [batcher.submit(x) for _ in range(3)]
while batcher.stats().pending == 3 * 10**6:
    pass
print("leaving")
"""


@pytest.mark.slow
def test_a_process_ends_well_while_a_batch_runs(bundle_path: Path) -> None:
    assert run_script(LEAVE, str(bundle_path)) == "leaving\n"


def test_closing_while_a_loop_runs_a_batch_does_not_wait_for_a_request_that_is_then_cancelled(
    runner: Doubling,
) -> None:
    batcher = Batcher(runner, max_batch=1000)

    async def ask() -> None:
        for _ in range(20):
            await batcher(row(0, 1000))  # until the loop knows that a batch is short, and runs it itself
        tasks: list[asyncio.Task[object]] = []

        async def cancel_the_next_after_a_batch() -> None:
            await batcher(row(0, 1000))
            tasks[1].cancel()

        tasks.append(asyncio.create_task(cancel_the_next_after_a_batch()))
        tasks.append(asyncio.create_task(batcher(row(1))))
        runner.gate.clear()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close_meanwhile() -> None:
        for _ in range(21):
            assert runner.entered.acquire(timeout=PATIENCE)
        threading.Timer(0.2, runner.gate.set).start()  # close() begins while the batch stands at the gate
        batcher.close()

    closer = threading.Thread(target=close_meanwhile, daemon=True)
    closer.start()
    run(ask())
    closer.join(PATIENCE)
    assert not closer.is_alive()
