"""`Batcher`: deadlines, cancellation, and runners that fail."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from batching_runners import PATIENCE, Doubling, Rows, occupy, row, run, until

from relukan_deploy.errors import (
    DeadlineExceeded,
    InputError,
    MissingDependencyError,
    RelukanError,
    ServiceClosed,
)
from relukan_deploy.runtime.batching import Batcher


# --- deadlines


def test_a_request_whose_time_is_up_is_not_run(batcher: Batcher, runner: Doubling) -> None:
    occupy(batcher, runner)
    late, good = batcher.submit(row(1), timeout=0.001), batcher.submit(row(2), timeout=PATIENCE)
    time.sleep(0.01)
    runner.gate.set()
    assert good.result(PATIENCE).tolist() == [[4, 4]]
    with pytest.raises(DeadlineExceeded, match=r"not answered within 0.001 s"):
        late.result(PATIENCE)
    assert runner.batches == [[-1], [2]]
    assert batcher.stats().expired == 1


@pytest.mark.parametrize("look", ["result", "exception", "done"])
def test_a_future_that_is_looked_at_after_its_deadline_has_failed(
    batcher: Batcher, runner: Doubling, look: str
) -> None:
    occupy(batcher, runner)
    future = batcher.submit(row(1), timeout=0.01)
    assert batcher.stats().pending == 1
    if look == "result":
        with pytest.raises(DeadlineExceeded):
            future.result()
    elif look == "exception":
        assert isinstance(future.exception(), DeadlineExceeded)
    else:
        time.sleep(0.02)
        assert future.done()
    assert batcher.stats().pending == 0
    assert batcher.stats().expired == 1


def test_a_future_that_nobody_looks_at_fails_when_its_turn_comes(batcher: Batcher, runner: Doubling) -> None:
    occupy(batcher, runner)
    future = batcher.submit(row(1), timeout=0.001)
    told = threading.Event()
    future.add_done_callback(lambda _: told.set())
    time.sleep(0.01)
    runner.gate.set()
    assert told.wait(PATIENCE)


def test_waiting_less_than_the_deadline_is_an_ordinary_timeout(batcher: Batcher, runner: Doubling) -> None:
    occupy(batcher, runner)
    future = batcher.submit(row(1), timeout=PATIENCE)
    with pytest.raises(concurrent.futures.TimeoutError) as caught:
        future.result(0.001)
    assert not isinstance(caught.value, DeadlineExceeded)
    runner.gate.set()
    assert future.result(PATIENCE).tolist() == [[2, 2]]


def test_a_coroutine_hears_of_its_deadline_while_the_worker_is_busy(batcher: Batcher, runner: Doubling) -> None:
    occupy(batcher, runner)
    with pytest.raises(DeadlineExceeded):
        run(batcher(row(1), timeout=0.01))
    assert batcher.stats().pending == 0
    assert batcher.stats().expired == 1
    runner.gate.set()


def test_a_deadline_holds_while_the_request_itself_is_being_run(batcher: Batcher, runner: Doubling) -> None:
    runner.gate.clear()
    with pytest.raises(DeadlineExceeded):
        run(batcher(row(1), timeout=0.01))
    with pytest.raises(DeadlineExceeded):
        batcher.submit(row(1), timeout=0.01).result(PATIENCE)
    runner.gate.set()


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_no_time_at_all_is_a_deadline_that_has_passed(batcher: Batcher, runner: Doubling, timeout: float) -> None:
    with pytest.raises(DeadlineExceeded):
        run(batcher(row(1), timeout=timeout))
    with pytest.raises(DeadlineExceeded):
        batcher.submit(row(1), timeout=timeout).result(PATIENCE)
    assert runner.batches == []


def test_an_infinite_timeout_is_none(batcher: Batcher) -> None:
    assert run(batcher(row(1), timeout=math.inf)).tolist() == [[2, 2]]
    assert batcher.submit(row(1), timeout=math.inf).result(PATIENCE).tolist() == [[2, 2]]


def test_a_timeout_that_is_no_number_is_refused(batcher: Batcher) -> None:
    with pytest.raises(InputError, match="timeout must be seconds, got NaN"):
        batcher.submit(row(1), timeout=math.nan)


# --- cancellation


def test_a_cancelled_future_is_not_run_and_leaves_the_queue(batcher: Batcher, runner: Doubling) -> None:
    occupy(batcher, runner)
    cancelled, other = batcher.submit(row(1, 15)), batcher.submit(row(2))
    assert cancelled.cancel()
    assert batcher.stats().pending == 1
    assert cancelled in concurrent.futures.wait([cancelled], PATIENCE).done
    runner.gate.set()
    other.result(PATIENCE)
    assert runner.batches == [[-1], [2]]
    assert batcher.stats().cancelled == 1
    with pytest.raises(concurrent.futures.CancelledError):
        cancelled.result()


def test_a_future_that_is_being_run_cannot_be_cancelled(batcher: Batcher, runner: Doubling) -> None:
    first = occupy(batcher, runner)
    assert not first.cancel()
    runner.gate.set()
    assert first.result(PATIENCE).tolist() == [[-2, -2]]
    assert not first.cancel()


def test_a_cancelled_task_is_not_run_and_leaves_the_queue(batcher: Batcher, runner: Doubling) -> None:
    async def ask() -> None:
        tasks = [asyncio.create_task(batcher(row(value, 9))) for value in range(2)]
        await until(lambda: batcher.stats().pending == 18)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        assert tasks[0].cancelled()
        assert batcher.stats().pending == 9
        runner.gate.set()
        await tasks[1]

    occupy(batcher, runner)
    run(ask())
    assert runner.batches == [[-1], [1] * 9]
    assert batcher.stats().cancelled == 1


def test_a_task_cancelled_just_before_its_batch_is_not_run(batcher: Batcher, runner: Doubling) -> None:
    async def ask() -> None:
        for _ in range(20):  # until this loop runs its batches itself
            await batcher(row(0))
        tasks = [asyncio.create_task(batcher(row(value))) for value in (1, 2)]
        await asyncio.sleep(0)  # both wait now, and their batch is the loop's next step
        tasks[0].cancel()
        await asyncio.wait(tasks)

    run(ask())
    assert [1] not in runner.batches
    assert [2] in runner.batches
    assert batcher.stats().cancelled == 1


def test_cancelling_while_the_batch_runs_leaves_the_others_their_answers(batcher: Batcher, runner: Doubling) -> None:
    async def ask() -> Rows:
        tasks = [asyncio.create_task(batcher(row(value))) for value in range(2)]
        assert await asyncio.to_thread(runner.entered.acquire, timeout=PATIENCE)
        tasks[0].cancel()
        runner.gate.set()
        return await tasks[1]

    runner.gate.clear()
    assert run(ask()).tolist() == [[2, 2]]


# --- failures


def test_a_failed_batch_fails_for_everybody_in_it_and_for_nobody_else(batcher: Batcher, runner: Doubling) -> None:
    occupy(batcher, runner)
    runner.failure = KeyError("no memory left on the device")
    futures = [batcher.submit(row(value)) for value in range(3)]
    runner.gate.set()
    errors = [future.exception(PATIENCE) for future in futures]
    assert [type(error) for error in errors] == [KeyError] * 3
    assert len({id(error) for error in errors}) == 3  # raising one writes into it
    assert all(error is not None and error.__cause__ is runner.failure for error in errors)
    runner.failure = None
    assert batcher.submit(row(1)).result(PATIENCE).tolist() == [[2, 2]]
    assert run(batcher(row(1))).tolist() == [[2, 2]]


def test_a_failed_batch_fails_for_coroutines(batcher: Batcher, runner: Doubling) -> None:
    runner.failure = ZeroDivisionError("of all things")

    async def ask() -> list[Any]:
        return await asyncio.gather(*(batcher(row(1)) for _ in range(3)), return_exceptions=True)

    for _ in range(3):  # by the worker, then in the loop
        assert [type(error) for error in run(ask())] == [ZeroDivisionError] * 3


@pytest.mark.parametrize("failure", [StopIteration(), MissingDependencyError("This", "that", "all")])
def test_errors_that_cannot_be_copied_or_stored_arrive_too(
    batcher: Batcher, runner: Doubling, failure: Exception
) -> None:
    runner.failure = failure
    with pytest.raises(RelukanError):
        run(batcher(row(1)))
    with pytest.raises(RelukanError):
        batcher.submit(row(1)).result(PATIENCE)


def test_a_runner_that_answers_another_number_of_rows_fails_the_batch(batcher: Batcher, runner: Doubling) -> None:
    class Short(Doubling):
        def run(self, rows: Rows) -> Rows:
            return super().run(rows)[1:]

    with (
        Batcher(Short()) as batcher,
        pytest.raises(RelukanError, match="the runner answered 3 rows with 2"),
    ):
        batcher.submit(row(1, 3)).result(PATIENCE)


class Death(BaseException):
    """Nothing that anybody catches."""


def test_when_the_worker_dies_every_waiter_and_every_later_caller_hears_of_it(
    batcher: Batcher, runner: Doubling
) -> None:
    first = occupy(batcher, runner)
    runner.failure = Death("out of the blue")

    async def ask() -> Rows:
        asked.set()
        return await batcher(row(1))

    asked = threading.Event()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        awaited = pool.submit(run, ask())
        assert asked.wait(PATIENCE)
        waiting = batcher.submit(row(2))
        while batcher.stats().pending < 2:
            time.sleep(0.001)
        runner.gate.set()
        errors = [each.exception(PATIENCE) for each in (first, waiting, awaited)]
    assert [type(error) for error in errors] == [ServiceClosed] * 3
    assert all(error is not None and error.__cause__ is runner.failure for error in errors)
    with pytest.raises(ServiceClosed, match=r"died of Death\('out of the blue'\): load the bundle"):
        batcher.submit(row(1))
    with pytest.raises(ServiceClosed):
        run(batcher(row(1)))
    assert batcher.stats().pending == 0


def test_a_worker_that_is_killed_from_outside_has_died(runner: Doubling) -> None:
    before = set(threading.enumerate())
    batcher = Batcher(runner)
    batcher.submit(row(1)).result(PATIENCE)
    (worker,) = set(threading.enumerate()) - before
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident or 0), ctypes.py_object(Death)) == 1
    with pytest.raises(ServiceClosed):  # it hears of it with the next request
        batcher.submit(row(1)).result(PATIENCE)
    batcher.close()


def test_when_a_batch_dies_in_an_event_loop_the_batcher_has_died(batcher: Batcher, runner: Doubling) -> None:
    async def ask() -> None:
        loop = threading.get_ident()
        while loop not in runner.threads:  # until this loop runs its batches itself
            await batcher(row(1))
        runner.failure = SystemExit("enough")
        await batcher(row(1))

    with pytest.raises((SystemExit, ServiceClosed)):
        run(ask())
    with pytest.raises(ServiceClosed):
        batcher.submit(row(1))


def test_a_callback_that_kills_the_worker_costs_nobody_an_answer_or_an_error(
    batcher: Batcher, runner: Doubling
) -> None:
    def kill(_: object) -> None:
        raise Death

    occupy(batcher, runner)
    first, second = batcher.submit(row(1)), batcher.submit(row(2))
    first.add_done_callback(kill)
    runner.gate.set()
    assert first.result(PATIENCE).tolist() == [[2, 2]]
    assert isinstance(second.exception(PATIENCE), ServiceClosed)


def test_an_event_loop_that_ended_with_requests_waiting_troubles_nobody(batcher: Batcher, runner: Doubling) -> None:
    occupy(batcher, runner)
    loop = asyncio.new_event_loop()
    pending = batcher(row(1))

    async def start() -> None:
        pending.send(None)  # puts the request into the queue, in a coroutine that nobody goes on with

    loop.run_until_complete(start())
    loop.close()
    other = batcher.submit(row(2))
    runner.gate.set()
    assert other.result(PATIENCE).tolist() == [[4, 4]]
    assert run(batcher(row(3))).tolist() == [[6, 6]]
    pending.close()
