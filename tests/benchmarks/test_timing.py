"""The timing helper on contenders whose durations are known."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks._timing import Timing, measure, ratio


def test_a_call_that_sleeps_is_timed_in_seconds() -> None:
    found = measure({"sleeper": lambda: time.sleep(0.002)}, rounds=3, burst=0.006, warm_up=0.0)["sleeper"]
    assert 0.002 <= found.best <= found.median <= found.p90
    assert found.median < 0.2
    assert len(found.rounds) == 3


def test_contenders_take_turns_rather_than_run_one_after_the_other() -> None:
    log: list[str] = []

    def contender(name: str) -> Callable[[], None]:
        def call() -> None:
            log.append(name)
            time.sleep(0.001)

        return call

    measure({name: contender(name) for name in "ab"}, rounds=4, burst=0.002, warm_up=0.0)
    changes = sum(first != second for first, second in itertools.pairwise(log))
    assert changes >= 4  # at least one in every round


def test_ratio_is_taken_round_by_round() -> None:
    slow, fast = (Timing(0, 0, 0, 0, rounds, 3) for rounds in ((2.0, 30.0, 8.0), (1.0, 10.0, 2.0)))
    found = ratio(slow, fast)
    assert (found.median, found.low, found.high) == (3.0, 2.0, 4.0)


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="got 0 calls and rounds=3"):
        measure({}, rounds=3)
