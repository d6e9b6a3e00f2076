"""Calls with arrays in host memory, on a real GPU, from one thread and from many.

python -m pytest tests/gpu
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np
import pytest
from subjects import KINDS, Subject, make_subject, require_gpu, rows, stand_in

from relukan_deploy.errors import InputError
from relukan_deploy.runtime._cuda import Cuda
from relukan_deploy.runtime._engine import EngineBackend
from relukan_deploy.spec import KanSpec, Layout

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")  # of whichever TensorRT is here

MOST = 32
Open = Callable[..., EngineBackend]


@pytest.fixture(scope="module", params=itertools.product(KINDS, get_args(Layout)), ids=" ".join)
def subject(
    request: pytest.FixtureRequest, make_spec: Callable[..., KanSpec], tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    kind, layout = request.param
    return make_subject(kind, make_spec((8, 16, 4), seed=4), tmp_path_factory.mktemp("host"), layout=layout)


@pytest.fixture
def opened(subject: Subject) -> Iterator[EngineBackend]:
    backend = subject.open()
    yield backend
    backend.close()


def current() -> int:
    """The context of the calling thread; 0 for none."""
    from cuda.bindings import driver

    status, context = driver.cuCtxGetCurrent()
    assert not status
    return int(context)


def free_memory() -> int:
    from cuda.bindings import driver

    with Cuda():
        driver.cuCtxSynchronize()
        status, free, _ = driver.cuMemGetInfo()
    assert not status
    return int(free)


# --- answers


def test_every_batch_is_answered_alike_with_graphs_and_without(subject: Subject, opened: EngineBackend) -> None:
    without = subject.open(graphs=False)
    for turn, count in itertools.product(range(3), (*range(MOST + 2), 3 * MOST + 5)):
        x = rows(count, seed=100 * turn + count)
        y = opened.run(x)
        subject.check(y, x)
        np.testing.assert_array_equal(y, without.run(x))
    without.close()


def test_graphs_are_made(subject: Subject, opened: EngineBackend, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        subject.check(opened.run(rows(8)), rows(8))
    assert [record.getMessage() for record in caplog.records] == []


def test_a_row_is_answered_the_same_whatever_was_sent_before(subject: Subject, opened: EngineBackend) -> None:
    alone = {count: opened.run(rows(count)) for count in (1, 3, 5, 17)}
    for poison in (np.nan, np.inf, 3e38):
        opened.run(np.full((MOST, 8), poison, np.float32))
        for count, expected in alone.items():
            np.testing.assert_array_equal(opened.run(rows(count)), expected)


def test_an_answer_is_not_overwritten_by_the_next(opened: EngineBackend) -> None:
    for count in (1, 3, MOST):
        for _ in range(3):
            first = opened.run(rows(count))
            kept = first.copy()
            opened.run(rows(count, seed=1))
            np.testing.assert_array_equal(first, kept)


# --- captures


def test_a_capture_that_fails_falls_back_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    from cuda.bindings import driver

    subject = stand_in(during_capture=lambda: driver.cuMemAlloc(1 << 20))  # which no capture allows
    backend = subject.open()
    for count in (3, 3, 3, 8, 8, 1):
        subject.check(backend.run(rows(count)), rows(count))
    backend.close()
    (record,) = caplog.records
    assert "runs without a CUDA graph" in record.getMessage()


def test_an_engine_that_fails_while_it_is_captured_still_answers(caplog: pytest.LogCaptureFixture) -> None:
    subject = stand_in(during_capture=lambda: 1 / 0)
    backend = subject.open()
    for _ in range(3):
        subject.check(backend.run(rows(3)), rows(3))
    backend.close()
    assert "division by zero" in caplog.text


def test_first_calls_of_many_threads_at_once_are_all_captured(
    subject: Subject, opened: EngineBackend, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Barrier(8)

    def ask(seed: int) -> None:
        start.wait(timeout=60)
        for count in (1, 2, 4, 8, 16, 32):
            subject.check(opened.run(rows(count, seed)), rows(count, seed))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(8)))
    assert [record.getMessage() for record in caplog.records] == []


# --- threads


def test_every_thread_gets_its_own_answers(subject: Subject, opened: EngineBackend) -> None:
    def ask(seed: int) -> None:
        count = 1 + seed % (MOST + 7)
        subject.check(opened.run(rows(count, seed)), rows(count, seed))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(ask, range(3000)))


def test_lanes_do_not_disturb_each_other() -> None:
    subject = stand_in(spin=200_000)  # about 0.1 ms, so that calls overlap on the GPU
    backend = subject.open()

    def ask(seed: int) -> None:
        subject.check(backend.run(rows(MOST, seed)), rows(MOST, seed))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(400)))
    backend.close()


def test_closing_waits_for_calls_under_way() -> None:
    subject = stand_in(spin=20_000_000)  # about 10 ms
    backend = subject.open()
    backend.run(rows(4))
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(backend.run, rows(4)) for _ in range(40)]
        asked[0].result(timeout=60)
        backend.close()
        with pytest.raises(InputError, match="is closed"):
            backend.run(rows(1))
    for each in asked:
        if each.exception() is None:
            subject.check(each.result(), rows(4))
        else:
            assert isinstance(each.exception(), InputError)  # it came too late
    assert any(each.exception() for each in asked)


# --- whose GPU it is


def test_a_thread_without_a_context_has_none_after_a_call(subject: Subject) -> None:
    found: list[int] = []

    def work() -> None:
        found.append(current())
        backend = subject.open()
        found.append(current())
        for count in (3, 3, 40):
            backend.run(rows(count))
            found.append(current())
        backend.close()
        found.append(current())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0] * 6


def test_a_thread_keeps_its_own_context(subject: Subject, opened: EngineBackend) -> None:
    require_gpu()
    with Cuda():
        before = current()
        assert before
        for _ in range(3):
            opened.run(rows(3))
            assert current() == before


# --- memory


def test_no_memory_is_taken_once_a_batch_size_is_known(opened: EngineBackend) -> None:
    for _ in range(3):
        opened.run(rows(5))
    before = free_memory()
    for _ in range(2000):
        opened.run(rows(5))
    assert free_memory() >= before


def test_closing_gives_everything_back(subject: Subject) -> None:
    def use() -> int:
        backend = subject.open()
        for count in (1, 5, 32):
            backend.run(rows(count))
            backend.run(rows(count))
        backend.close()
        return free_memory()

    settled = [use() for _ in range(5)][-1]
    assert [use() for _ in range(15)][-1] >= settled


def test_dropping_the_last_reference_gives_everything_back(subject: Subject) -> None:
    def use() -> int:
        backend = subject.open()
        backend.run(rows(5))
        backend.run(rows(5))
        del backend
        return free_memory()

    settled = [use() for _ in range(5)][-1]
    assert [use() for _ in range(15)][-1] >= settled
