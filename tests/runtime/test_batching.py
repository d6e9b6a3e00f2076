"""`Batcher`: who gets which answer, from whom and when."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batching_runners import PATIENCE, Doubling, Rows, occupy, row, run

import relukan_deploy
from relukan_deploy.errors import (
    InputError,
    QueueFull,
)
from relukan_deploy.runtime import Runner
from relukan_deploy.runtime.batching import Batcher


@pytest.fixture(scope="module")
def network(bundle_path: Path) -> Runner:
    return relukan_deploy.load(bundle_path)


# --- answers


def test_a_real_network_answers_as_it_does_alone(network: Runner) -> None:
    x = np.random.default_rng(0).uniform(0, 1, (50, network.in_features)).astype(np.float32)

    async def ask(batcher: Batcher) -> list[Rows]:
        return list(await asyncio.gather(*(batcher(x[i : i + 1]) for i in range(50))))

    with Batcher(network) as batcher:
        futures = [batcher.submit(x[i : i + 1]) for i in range(50)]
        answers = run(ask(batcher)) + [future.result(PATIENCE) for future in futures]
    np.testing.assert_allclose(np.concatenate(answers), np.concatenate([network(x), network(x)]), rtol=1e-5, atol=1e-6)


def test_what_gathers_while_a_batch_runs_is_the_next_batch(batcher: Batcher, runner: Doubling) -> None:
    occupy(batcher, runner)
    futures = [batcher.submit(row(value)) for value in range(3)]
    runner.gate.set()
    assert [future.result(PATIENCE)[0, 0] for future in futures] == [0, 2, 4]
    assert runner.batches == [[-1], [0, 1, 2]]


def test_a_batch_has_at_most_max_batch_rows_and_requests_keep_their_order(batcher: Batcher, runner: Doubling) -> None:
    occupy(batcher, runner)
    futures = [batcher.submit(row(value, rows)) for value, rows in enumerate((3, 3, 3, 4, 1, 2))]
    runner.gate.set()
    concurrent.futures.wait(futures, PATIENCE)
    assert runner.batches == [[-1], [0] * 3 + [1] * 3, [2] * 3 + [3] * 4 + [4], [5] * 2]


def test_a_request_longer_than_a_batch_is_run_alone(batcher: Batcher, runner: Doubling) -> None:
    occupy(batcher, runner)
    futures = [batcher.submit(row(value, rows)) for value, rows in enumerate((1, 9, 1))]
    runner.gate.set()
    assert [len(future.result(PATIENCE)) for future in futures] == [1, 9, 1]
    assert runner.batches == [[-1], [0], [1] * 9, [2]]


def test_a_request_without_rows_is_answered_without_rows(batcher: Batcher, runner: Doubling) -> None:
    occupy(batcher, runner)
    empty, full = batcher.submit(row(0, 0)), batcher.submit(row(1))
    runner.gate.set()
    assert empty.result(PATIENCE).shape == (0, 2)
    assert full.result(PATIENCE).tolist() == [[2, 2]]
    assert run(batcher(row(0, 0))).shape == (0, 2)


def test_a_bad_request_fails_at_once_and_alone(batcher: Batcher, runner: Doubling) -> None:
    async def ask() -> list[Any]:
        return [*await asyncio.gather(batcher(row(1)), batcher([[1.0]]), batcher(row(3)), return_exceptions=True)]

    first, bad, last = run(ask())
    assert (first[0, 0], last[0, 0]) == (2, 6)
    assert isinstance(bad, InputError)
    with pytest.raises(InputError, match=r"x must be \(batch, 2\), got \(1, 1\)"):
        batcher.submit([[1.0]])
    assert batcher.stats().requests == 2


def test_a_row_that_a_policy_refuses_fails_alone(bundle_path: Path) -> None:
    network = relukan_deploy.load(bundle_path, nonfinite="raise")
    good = np.full((1, network.in_features), 0.5, np.float32)

    async def ask(batcher: Batcher) -> list[Any]:
        return [*await asyncio.gather(batcher(good), batcher(good * np.nan), batcher(good), return_exceptions=True)]

    with Batcher(network) as batcher:
        first, bad, last = run(ask(batcher))
    np.testing.assert_allclose([first, last], [network(good)] * 2, rtol=1e-5)
    assert isinstance(bad, InputError)


def test_answers_are_arrays_of_their_own(batcher: Batcher, runner: Doubling) -> None:
    occupy(batcher, runner)
    futures = [batcher.submit(row(value)) for value in range(2)]
    runner.gate.set()
    first, second = (future.result(PATIENCE) for future in futures)
    first[:] = 77
    assert second.tolist() == [[2, 2]]
    assert first.base is None
    assert second.base is None


def test_x_may_be_changed_once_it_is_submitted(batcher: Batcher, runner: Doubling) -> None:
    occupy(batcher, runner)
    x = row(1, 2)
    futures = [batcher.submit(x), batcher.submit(x[1:])]
    x[:] = 5
    runner.gate.set()
    assert [future.result(PATIENCE)[0, 0] for future in futures] == [2, 2]


def test_a_runner_is_asked_by_one_thread_at_a_time() -> None:
    class Alone(Doubling):
        inside = most = 0

        def run(self, rows: Rows) -> Rows:
            self.inside += 1
            self.most = max(self.most, self.inside)
            time.sleep(1e-4)  # lets go of the interpreter
            self.inside -= 1
            return super().run(rows)

    runner = Alone()
    with Batcher(runner, max_batch=4) as batcher:

        async def client() -> None:
            for _ in range(20):
                await batcher(row(1))

        async def clients() -> None:
            await asyncio.gather(*(client() for _ in range(6)))

        def thread() -> None:
            for _ in range(20):
                batcher.submit(row(1)).result(PATIENCE)

        targets: list[Callable[[], None]] = [lambda: run(clients())] * 2 + [thread] * 3
        threads = [threading.Thread(target=target) for target in targets]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert runner.most == 1
    assert batcher.stats().requests == 2 * 6 * 20 + 3 * 20


def test_a_batch_runs_in_the_context_of_none_of_its_callers(runner: Doubling) -> None:
    secret = contextvars.ContextVar("secret", default="nobody's")
    seen = []

    class Curious(Doubling):
        def run(self, rows: Rows) -> Rows:
            seen.append(secret.get())
            return super().run(rows)

    async def ask(batcher: Batcher) -> None:
        secret.set("mine")
        for _ in range(3):  # the first by the worker, the others in this loop
            await batcher(row(1))

    with Batcher(Curious()) as batcher:
        run(ask(batcher))
    assert seen == ["nobody's"] * 3


# --- where a batch runs


def test_the_worker_runs_the_first_batch_and_the_event_loop_short_ones_after_it(
    batcher: Batcher, runner: Doubling
) -> None:
    async def ask() -> int:
        for _ in range(100):  # a busy machine can make any single one look long
            await batcher(row(1))
        return threading.get_ident()

    loop = run(ask())
    assert runner.threads[0] != loop
    assert loop in runner.threads


def test_the_worker_runs_long_batches_and_the_event_loop_goes_on(runner: Doubling) -> None:
    class Slow(Doubling):
        def run(self, rows: Rows) -> Rows:
            time.sleep(0.005)
            return super().run(rows)

    slow = Slow()

    async def ask(batcher: Batcher) -> int:
        for _ in range(5):
            await batcher(row(1))
        return threading.get_ident()

    with Batcher(slow) as batcher:
        assert run(ask(batcher)) not in slow.threads


def test_batches_that_become_long_go_back_to_the_worker() -> None:
    class Tiring(Doubling):
        def run(self, rows: Rows) -> Rows:
            if rows[0, 0] > 1:
                time.sleep(0.005)
            return super().run(rows)

    tiring = Tiring()

    async def ask(batcher: Batcher) -> int:
        while threading.get_ident() not in tiring.threads:  # until this loop runs its batches itself
            await batcher(row(1))
        for _ in range(2):  # the first may come as a surprise
            await batcher(row(2))
        return threading.get_ident()

    with Batcher(tiring) as batcher:
        assert run(ask(batcher)) != tiring.threads[-1]


def test_an_event_loop_goes_on_with_what_did_not_fit_into_its_batch(batcher: Batcher, runner: Doubling) -> None:
    async def ask() -> None:
        while threading.get_ident() not in runner.threads:  # until this loop runs its batches itself
            await batcher(row(0))
        await asyncio.gather(*(batcher(row(value, 3)) for value in range(1, 6)))

    run(ask())
    assert [batch for batch in runner.batches if 0 not in batch] == [[1] * 3 + [2] * 3, [3] * 3 + [4] * 3, [5] * 3]


def test_a_request_longer_than_any_before_it_is_the_workers(runner: Doubling) -> None:
    with Batcher(runner, max_batch=10**9, max_queue=10**9) as batcher:

        async def ask() -> int:
            for _ in range(5):
                await batcher(row(1))
            await batcher(row(1, 10**6))
            return threading.get_ident()

        loop = run(ask())
    assert runner.threads[-1] != loop


# --- max_delay


def test_a_full_batch_does_not_wait_for_max_delay(runner: Doubling) -> None:
    with Batcher(runner, max_batch=4, max_delay=10 * PATIENCE) as batcher:
        futures = [batcher.submit(row(value)) for value in range(4)]
        concurrent.futures.wait(futures, PATIENCE)

        async def ask() -> None:
            await asyncio.gather(*(batcher(row(value)) for value in range(4, 8)))

        run(ask())
    assert runner.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_requests_are_held_back_for_max_delay_and_joined(runner: Doubling) -> None:
    with Batcher(runner, max_delay=10 * PATIENCE) as batcher:
        futures = [batcher.submit(row(value)) for value in range(3)]
        assert not concurrent.futures.wait(futures, 0.02).done
    assert runner.batches == [[0, 1, 2]]


def test_a_lone_request_is_held_back_for_max_delay_and_then_run(runner: Doubling) -> None:
    with Batcher(runner, max_delay=0.05) as batcher:

        async def ask() -> None:
            for _ in range(2):
                await batcher(row(1))

        batcher.submit(row(1)).result(PATIENCE)
        run(ask())
        stats = batcher.stats()
    assert stats.batches == 3
    assert stats.queue_seconds >= 3 * 0.05


def test_close_does_not_wait_for_max_delay(runner: Doubling) -> None:
    batcher = Batcher(runner, max_delay=10 * PATIENCE)
    future = batcher.submit(row(1))
    batcher.close()
    assert future.result(0).tolist() == [[2, 2]]


# --- a bounded queue


def test_a_request_that_does_not_fit_is_turned_away_at_once(batcher: Batcher, runner: Doubling) -> None:
    occupy(batcher, runner)
    waiting = batcher.submit(row(1, 18))
    with pytest.raises(QueueFull, match="3 more rows do not fit: 18 of at most 20 are waiting; ask again later"):
        batcher.submit(row(2, 3))
    with pytest.raises(QueueFull):
        run(batcher(row(2, 3)))
    last = batcher.submit(row(3, 2))
    runner.gate.set()
    assert (len(waiting.result(PATIENCE)), len(last.result(PATIENCE))) == (18, 2)
    assert batcher.stats().full == 2


def test_requests_without_rows_fill_the_queue_too(batcher: Batcher, runner: Doubling) -> None:
    occupy(batcher, runner)
    for _ in range(20):
        batcher.submit(row(0, 0))
    with pytest.raises(QueueFull):
        batcher.submit(row(0, 0))


def test_a_request_that_can_never_fit_says_so(batcher: Batcher) -> None:
    with pytest.raises(InputError, match="x has 21 rows, more than max_queue=20"):
        batcher.submit(row(1, 21))


# --- figures


def test_stats_are_exact_whoever_asks(runner: Doubling) -> None:
    with Batcher(runner, max_batch=16) as batcher:

        async def client(rows: int) -> None:
            for _ in range(50):
                await batcher(row(1, rows))

        async def clients() -> None:
            await asyncio.gather(*(client(rows) for rows in range(1, 5)))

        def thread() -> None:
            for _ in range(50):
                batcher.submit(row(1, 3)).result(PATIENCE)

        targets: list[Callable[[], None]] = [lambda: run(clients())] * 2 + [thread] * 3
        threads = [threading.Thread(target=target) for target in targets]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        stats = batcher.stats()
    assert stats.requests == 2 * 4 * 50 + 3 * 50
    assert stats.rows == 2 * 50 * (1 + 2 + 3 + 4) + 3 * 50 * 3 == sum(map(len, runner.batches))
    assert stats.batches == len(runner.batches)
    assert (stats.full, stats.expired, stats.cancelled, stats.pending) == (0, 0, 0, 0)


def test_stats_say_how_long_requests_waited_and_batches_ran(batcher: Batcher, runner: Doubling) -> None:
    occupy(batcher, runner)
    futures = [batcher.submit(row(1)) for _ in range(2)]
    time.sleep(0.02)
    runner.gate.set()
    concurrent.futures.wait(futures, PATIENCE)
    batcher.close()
    stats = batcher.stats()
    assert stats.queue_seconds >= 2 * 0.02
    assert stats.run_seconds >= 0.02


@pytest.mark.parametrize(
    "limits",
    [{"max_batch": 0}, {"max_queue": 0}, {"max_delay": -1.0}, {"max_delay": math.inf}, {"max_delay": math.nan}],
)
def test_limits_that_cannot_be_are_refused(runner: Doubling, limits: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(limits))):
        Batcher(runner, **limits)


class Lender:
    """An array-like that hands out its own memory."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __array__(self, dtype: Any = None, copy: Any = None) -> Rows:
        return self.rows


def test_what_is_submitted_may_be_changed_right_away(runner: Doubling, batcher: Batcher) -> None:
    first = occupy(batcher, runner)
    given: list[Any] = [row(1), Lender(row(1)), np.asfortranarray(row(1, 3))[:1]]
    futures = [batcher.submit(x) for x in given]
    for x in given:
        (x.rows if isinstance(x, Lender) else x)[...] = 7
    runner.gate.set()
    first.result(PATIENCE)
    assert [future.result(PATIENCE).tolist() for future in futures] == [[[2, 2]]] * 3
