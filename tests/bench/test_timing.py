"""The timing harness on contenders whose durations are known."""

from __future__ import annotations

import hashlib
import itertools
import sys
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relukan_deploy.bench import timing
from relukan_deploy.bench.timing import Timing, Turn, measure, ratio, rotated, sample, summarise, timed

seconds = st.floats(1e-7, 1e2)


def constant(duration: float) -> Turn:
    """A contender that does nothing and says how long it took."""
    return lambda count: [duration] * count


def test_a_call_that_sleeps_is_timed_in_seconds() -> None:
    found = measure({"sleeper": timed(lambda: time.sleep(0.002))}, rounds=3, burst=0.006, warm_up=0.0)["sleeper"]
    assert 0.002 <= found.best <= found.p50 <= found.p90 <= found.p99
    assert found.p50 < 0.2
    assert len(found.rounds) == 1
    assert len(found.rounds[0]) == 3


def test_contenders_take_turns_rather_than_run_one_after_the_other() -> None:
    log: list[str] = []

    def contender(name: str) -> Callable[[], None]:
        def call() -> None:
            log.append(name)
            time.sleep(0.001)

        return call

    sample({name: timed(contender(name)) for name in "ab"}, rounds=4, burst=0.002, warm_up=0.0)
    changes = sum(first != second for first, second in itertools.pairwise(log))
    assert changes >= 4  # at least one in every round


def test_inputs_are_taken_in_turn_from_burst_to_burst() -> None:
    log: list[int] = []
    turn = rotated([lambda index=index: log.append(index) for index in range(3)])  # type: ignore[misc]
    turn(2)
    turn(2)
    assert log == [0, 1, 2, 0]


def test_the_first_call_of_a_burst_is_not_counted() -> None:
    def turn(count: int) -> list[float]:
        return [1e-3, *[1e-4] * (count - 1)] if count > 1 else [1e-4]

    found = measure({"a": turn}, rounds=3, burst=0.001, warm_up=0.0)["a"]
    assert found.p99 == found.best == 1e-4


def test_slow_calls_are_all_counted_and_their_rounds_limited() -> None:
    found = measure({"a": constant(0.5), "b": constant(0.01)}, rounds=40, burst=0.01, warm_up=0.0, most=2.6)
    assert found["a"].calls == 5
    assert [len(timing.rounds[0]) for timing in found.values()] == [5, 5]


def test_at_least_three_rounds_are_made_however_long_they_take() -> None:
    assert measure({"a": constant(9.0)}, rounds=40, warm_up=0.0, most=1.0)["a"].calls == 3


def test_the_warm_up_goes_on_until_calls_are_steady() -> None:
    durations = itertools.chain([1e-2, 9e-3, 8e-3, 7e-3], itertools.repeat(1e-3))
    found = measure({"a": lambda count: list(itertools.islice(durations, count))}, rounds=3, warm_up=0.0)["a"]
    assert found.p99 == 1e-3


@given(st.lists(st.lists(st.lists(seconds, min_size=1, max_size=4), min_size=1, max_size=4), min_size=1, max_size=4))
def test_figures_are_in_order_and_within_what_was_measured(runs: list[list[list[float]]]) -> None:
    every = list(itertools.chain(*itertools.chain(*runs)))
    found = summarise(runs)
    within = 1 + 1e-9
    assert found.calls == len(every)
    assert found.best == min(every)
    assert found.best <= found.p50 * within
    assert found.p50 <= found.p90 * within
    assert found.p90 <= found.p99 * within <= max(every) * within**2
    assert found.mean == pytest.approx(sum(every) / len(every))
    assert min(every) <= found.mean_low * within
    assert found.mean_low <= found.mean_high * within <= max(every) * within**2
    assert [len(rounds) for rounds in found.rounds] == [len(rounds) for rounds in runs]


def test_the_confidence_interval_widens_with_the_scatter_of_the_rounds() -> None:
    calm = summarise([[[1.0], [1.01], [0.99], [1.0]]])
    wild = summarise([[[1.0], [2.0], [0.1], [0.9]]])
    assert calm.mean_low <= 1.0 <= calm.mean_high
    assert wild.mean_high - wild.mean_low > 10 * (calm.mean_high - calm.mean_low)
    assert wild.is_unsteady
    assert not calm.is_unsteady


def test_the_confidence_interval_knows_how_runs_differ() -> None:
    """Each run is steady; forty rounds of two kinds are no forty opinions."""
    found = summarise([[[1.0]] * 20, [[2.0]] * 20])
    assert (found.mean_low, found.mean_high) == (1.0, 2.0)


def test_the_mean_is_within_its_interval_where_runs_have_other_numbers_of_calls() -> None:
    found = summarise([[[1.0] * 1000] * 9, [[2.0] * 10] * 9])
    assert found.mean_low <= found.mean <= found.mean_high


def test_ratio_is_taken_round_by_round() -> None:
    slow, fast = (
        Timing(0, 0, 0, 0, 0, 0, 0, 0, 3, rounds) for rounds in (((2.0, 30.0), (8.0,)), ((1.0, 10.0), (2.0,)))
    )
    found = ratio(slow, fast)
    assert found.median == 3.0
    assert (found.low, found.high) == pytest.approx((2.2, 3.8))


def test_a_turn_ends_when_no_other_thread_runs_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    running = iter([True, True, False])
    monkeypatch.setattr(timing, "_others_run", lambda: next(running))
    timed(lambda: None)(1)
    assert not list(running)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are seen in /proc")
def test_a_thread_that_computes_is_seen() -> None:
    thread = threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", 1_000_000))
    thread.start()
    found = False
    while thread.is_alive() and not found:
        time.sleep(0.001)
        found = timing._others_run()
    thread.join()
    assert found


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="got 0 and rounds=3"):
        measure({}, rounds=3)
