"""`Batcher` under many callers: results are never swapped, and nobody is forgotten."""

from __future__ import annotations

import asyncio
import collections
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import relukan_deploy
from relukan_deploy.errors import DeadlineExceeded, QueueFull
from relukan_deploy.runtime import Runner
from relukan_deploy.runtime.batching import Batcher

Rows = NDArray[np.float32]
NewLoop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(scope="module")
def network(bundle_path: Path) -> Runner:
    return relukan_deploy.load(bundle_path)


def new_uvloop() -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = pytest.importorskip("uvloop").new_event_loop()
    return loop


class Callers:
    """Asks for parts of x in every way there is, and keeps each part's answer in its place."""

    def __init__(self, batcher: Batcher, x: Rows, sizes: Sequence[int]) -> None:
        self.batcher = batcher
        ends = np.cumsum(sizes)
        self.parts = [x[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        self.answers: dict[int, Rows] = {}

    def ask_all(self, new_loop: NewLoop, *, loops: int, threads: int) -> None:
        """Shares the parts out among event loops, with a task for each part, and threads."""
        groups = [range(start, len(self.parts), loops + threads) for start in range(loops + threads)]
        targets = [self._loop] * loops + [self._thread] * threads
        workers = [
            threading.Thread(target=target, args=(group, new_loop))
            for target, group in zip(targets, groups, strict=True)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _loop(self, group: Sequence[int], new_loop: NewLoop) -> None:
        async def ask(index: int) -> None:
            while index not in self.answers:
                try:
                    self.answers[index] = await self.batcher(self.parts[index])
                except QueueFull:
                    await asyncio.sleep(0.001)

        async def ask_group() -> None:
            await asyncio.gather(*(ask(index) for index in group))

        loop = new_loop()
        loop.run_until_complete(ask_group())
        loop.close()

    def _thread(self, group: Sequence[int], _: NewLoop) -> None:
        asked: dict[int, futures.Future[Rows]] = {}
        for index in group:
            while index not in asked:
                try:
                    asked[index] = self.batcher.submit(self.parts[index])
                except QueueFull:
                    time.sleep(0.001)
        self.answers |= {index: future.result(60) for index, future in asked.items()}


def assert_each_has_its_own(callers: Callers, network: Runner) -> None:
    assert len(callers.answers) == len(callers.parts)
    for index, part in enumerate(callers.parts):
        np.testing.assert_allclose(callers.answers[index], network(part), rtol=1e-4, atol=1e-5)


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=150),
    max_batch=st.integers(1, 200),
    max_delay=st.sampled_from([0.0, 0.0, 0.002]),
    loops=st.integers(0, 3),
    threads=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_every_caller_gets_the_answer_to_its_own_rows(
    network: Runner, sizes: list[int], max_batch: int, max_delay: float, loops: int, threads: int, seed: int
) -> None:
    x = np.random.default_rng(seed).uniform(0, 1, (sum(sizes), network.in_features)).astype(np.float32)
    with Batcher(network, max_batch=max_batch, max_delay=max_delay) as batcher:
        callers = Callers(batcher, x, sizes)
        callers.ask_all(asyncio.new_event_loop, loops=loops + (not threads), threads=threads)
    assert_each_has_its_own(callers, network)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, new_uvloop])
def test_so_do_thousands_at_once_on_a_queue_that_is_often_full(network: Runner, new_loop: NewLoop) -> None:
    generator = np.random.default_rng(0)
    sizes = [int(size) for size in generator.integers(0, 30, 4000)]
    x = generator.uniform(0, 1, (sum(sizes), network.in_features)).astype(np.float32)
    with Batcher(network, max_batch=256, max_queue=8192) as batcher:
        callers = Callers(batcher, x, sizes)
        callers.ask_all(new_loop, loops=3, threads=5)
    assert_each_has_its_own(callers, network)


class Impatient:
    """Callers with little time, who now and then change their minds; they note what becomes of their requests."""

    def __init__(self, batcher: Batcher, rows: Rows) -> None:
        self.batcher = batcher
        self.rows = rows
        self.outcomes: list[str] = []

    def thread(self, seed: int) -> None:
        generator = random.Random(seed)
        for _ in range(150):
            try:
                future = self.batcher.submit(self._some(generator), timeout=generator.choice([None, 0.0, 1e-4, 60]))
                if not generator.randrange(4):
                    future.cancel()
                future.result(60)
            except (QueueFull, DeadlineExceeded, futures.CancelledError) as error:
                self.outcomes.append(type(error).__name__)
            else:
                self.outcomes.append("answered")

    def loop(self, seed: int) -> None:
        asyncio.run(self._tasks(random.Random(seed)))

    async def _tasks(self, generator: random.Random) -> None:
        tasks = []
        for _ in range(600):
            timeout = generator.choice([None, 0.0, 1e-4, 60])
            tasks.append(asyncio.create_task(self.batcher(self._some(generator), timeout=timeout)))
            if not generator.randrange(4):
                await asyncio.sleep(0)
                generator.choice(tasks).cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            self.outcomes.append("answered" if isinstance(outcome, np.ndarray) else type(outcome).__name__)

    def _some(self, generator: random.Random) -> Rows:
        return self.rows[: generator.randrange(len(self.rows))]


@pytest.mark.parametrize("max_delay", [0.0, 0.001])
def test_every_request_of_impatient_callers_has_one_outcome_and_is_counted(network: Runner, max_delay: float) -> None:
    with Batcher(network, max_batch=16, max_delay=max_delay, max_queue=200) as batcher:
        callers = Impatient(batcher, np.full((10, network.in_features), 0.5, np.float32))
        targets = [callers.loop, callers.loop, callers.thread, callers.thread, callers.thread]
        workers = [threading.Thread(target=target, args=(seed,)) for seed, target in enumerate(targets)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        stats = batcher.stats()
    outcomes = collections.Counter(callers.outcomes)
    assert len(callers.outcomes) == 2 * 600 + 3 * 150
    assert set(outcomes) == {"answered", "QueueFull", "DeadlineExceeded", "CancelledError"}
    assert stats.pending == 0
    assert stats.full == outcomes["QueueFull"]
    assert stats.requests >= outcomes["answered"]
    # A task that is cancelled between its deadline and its next step hears of the cancellation alone.
    assert 0 <= stats.expired - outcomes["DeadlineExceeded"] <= outcomes["CancelledError"]
