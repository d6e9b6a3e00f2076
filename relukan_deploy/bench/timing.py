"""Times of several contenders that answer the same question, measured so that they can be divided.

They take turns in short bursts, in an order that is drawn anew every round: what else the machine
does then hits all of them alike. A ratio is taken within each round, where both sides saw the same
machine, and reported as the median over the rounds.

A contender may live in another process: what takes its turn is a function that is told how many
calls to make, and gives the seconds that each took on the clock that suits it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import glob
import itertools
import math
import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["WIDE", "Ratio", "Rounds", "Timing", "Turn", "measure", "ratio", "rotated", "sample", "summarise", "timed"]

Turn = Callable[[int], Sequence[float]]
"""Makes so many calls, and gives the seconds that each took."""

Rounds = Sequence[Sequence[float]]
"""Of one contender: for each round, the seconds of each call that counts."""

WIDE = 0.25
"""A spread above which a time is marked as unsteady."""

_SLOW = 0.05  # seconds; the first call of a burst is not worth dropping where calls take longer
_STEADY = 1.05  # the slowest of three windows of the warm-up, over the fastest
_WINDOWS = 10  # of the warm-up, at most; three are the least
_LEAST_ROUNDS = 3
_RESAMPLES = 1000
_LONGEST_REST = 0.1  # seconds


@dataclasses.dataclass(frozen=True)
class Timing:
    """One contender's times, in seconds per call.

    Attributes:
        p50, p90, p99: percentiles of all calls; of fewer than a hundred, p99 is the slowest.
        mean: of all calls.
        mean_low, mean_high: its 95 % confidence interval, by resampling runs, and rounds within them
            (bootstrap): calls of one round saw the same machine, as rounds of one run did, and are not independent.
        best: the fastest call.
        spread: 90th less 10th percentile of the rounds' medians, as a part of p50. Above `WIDE` the
            machine was not steady.
        calls: how many were timed.
        rounds: each round's median, in the order they ran, one tuple for each run.
    """

    p50: float
    p90: float
    p99: float
    mean: float
    mean_low: float
    mean_high: float
    best: float
    spread: float
    calls: int
    rounds: tuple[tuple[float, ...], ...]

    @property
    def is_unsteady(self) -> bool:
        return self.spread > WIDE


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as long one contender takes as another: median, 10th and 90th percentile of the rounds."""

    median: float
    low: float
    high: float


def timed(call: Callable[[], object]) -> Turn:
    """Turns of a function, on this process's clock. Its results are dropped."""
    return rotated([call])


def rotated(calls: Sequence[Callable[[], object]]) -> Turn:
    """Turns of several functions that are called one after the other, each on inputs of its own."""
    following = itertools.cycle(calls).__next__

    def turn(count: int) -> list[float]:
        clock, taken = time.perf_counter_ns, []
        collecting = gc.isenabled()
        gc.disable()
        try:
            for _ in range(count):
                call = following()
                begin = clock()
                call()
                taken.append((clock() - begin) * 1e-9)
        finally:
            if collecting:
                gc.enable()
        _rest()
        return taken

    return turn


def measure(
    turns: Mapping[str, Turn],
    *,
    rounds: int = 41,
    burst: float = 0.005,
    warm_up: float = 0.1,
    most: float = float("inf"),
    seed: int = 0,
) -> dict[str, Timing]:
    """Times every contender, interleaved: `sample` and `summarise` in one."""
    sampled = sample(turns, rounds=rounds, burst=burst, warm_up=warm_up, most=most, seed=seed)
    return {name: summarise([taken]) for name, taken in sampled.items()}


def sample(
    turns: Mapping[str, Turn],
    *,
    rounds: int,
    burst: float = 0.005,
    warm_up: float = 0.1,
    most: float = float("inf"),
    seed: int = 0,
) -> Mapping[str, Rounds]:
    """Times of every contender's calls, interleaved.

    Args:
        turns: what to run, by name.
        rounds: how often each contender gets its turn.
        burst: seconds of a turn, about. Its first call only brings code and data back into the caches
            and is not counted, unless calls take 0.05 s or more.
        warm_up: seconds that each contender runs before anything is timed, at least; up to three
            times as long until it is steady.
        most: seconds for all rounds together, about; fewer rounds are made where they would take longer.
        seed: of the order within a round.

    Raises:
        ValueError: there is nothing to measure, or no round to measure it in.
    """
    if not turns or rounds < 1:
        raise ValueError(f"needs at least one contender and one round, got {len(turns)} and rounds={rounds}")
    plans: dict[str, tuple[int, int]] = {}  # calls of a turn, and how many of the first are not counted
    one_round = 0.0
    for name, turn in turns.items():
        seconds = _warm(turn, warm_up)
        leading = 0 if seconds >= _SLOW else 1
        plans[name] = leading + max(1, round(burst / seconds)), leading
        one_round += plans[name][0] * seconds
    rounds = min(rounds, max(_LEAST_ROUNDS, int(most / one_round) if most < float("inf") else rounds))
    taken: dict[str, list[Sequence[float]]] = {name: [] for name in turns}
    order = list(turns)
    shuffle = random.Random(seed).shuffle
    gc.collect()
    gc.freeze()  # what is there stays; looking at it after every round would take longer than the rounds
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                calls, leading = plans[name]
                taken[name].append(turns[name](calls)[leading:])
            gc.collect()
    finally:
        gc.unfreeze()
    return taken


def summarise(runs: Sequence[Rounds]) -> Timing:
    """The figures of one contender, from the rounds of each run."""
    every = np.concatenate([np.asarray(calls) for rounds in runs for calls in rounds])
    medians = tuple(tuple(statistics.median(calls) for calls in rounds) for rounds in runs)
    p10, p90 = np.percentile(list(itertools.chain(*medians)), [10, 90])
    p50 = float(np.percentile(every, 50))
    low, high = np.percentile(_resampled_means(runs), [2.5, 97.5])
    return Timing(
        p50=p50,
        p90=float(np.percentile(every, 90)),
        p99=float(np.percentile(every, 99, method="higher")),
        mean=float(every.mean()),
        mean_low=float(low),
        mean_high=float(high),
        best=float(every.min()),
        spread=float((p90 - p10) / p50),
        calls=len(every),
        rounds=medians,
    )


def ratio(numerator: Timing, denominator: Timing) -> Ratio:
    """`numerator` / `denominator`, round by round; both from the same call of `measure`, or the same sweep.

    Raises:
        ValueError: their rounds do not belong together.
    """
    above, below = (list(itertools.chain(*timing.rounds)) for timing in (numerator, denominator))
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, middle, high = np.percentile(ratios, [10, 50, 90])
    return Ratio(float(middle), float(low), float(high))


def _rest() -> None:
    """Waits until the other threads of this process sleep: those of ONNX Runtime spin for more work for a while.

    Whoever is next would share its cores with them. Seen on Linux alone, and waited for so long at most.
    """
    end = time.perf_counter() + _LONGEST_REST
    while time.perf_counter() < end and _others_run():
        time.sleep(0.001)


def _others_run() -> bool:
    """Whether another thread of this process is running."""
    own = threading.get_native_id()
    for path in glob.iglob("/proc/self/task/*/stat"):
        with contextlib.suppress(OSError), open(path, "rb") as file:  # it may have ended
            number, _, rest = file.read().partition(b" ")
            if int(number) != own and rest.rpartition(b") ")[2][:1] == b"R":
                return True
    return False


def _resampled_means(runs: Sequence[Rounds]) -> NDArray[np.float64]:
    """Means of all calls, had other runs, and other rounds in them, been met: a bootstrap in two stages."""
    generator = np.random.default_rng(0)
    totals = np.zeros((_RESAMPLES, 2))  # seconds and calls
    rounds = [np.array([(math.fsum(calls), len(calls)) for calls in each]) for each in runs]
    for _ in runs:
        chosen = generator.integers(len(runs), size=_RESAMPLES)
        for index, each in enumerate(rounds):
            places = np.flatnonzero(chosen == index)
            totals[places] += each[generator.integers(len(each), size=(len(places), len(each)))].sum(axis=1)
    means: NDArray[np.float64] = totals[:, 0] / totals[:, 1]
    return means


def _warm(turn: Turn, seconds: float) -> float:
    """Runs a contender until it is steady; the shortest time a call took."""
    shortest, window, medians = float("inf"), seconds / 3, []
    for _ in range(_WINDOWS):
        end, taken = time.perf_counter() + window, list(turn(1))
        while time.perf_counter() < end:
            taken += turn(max(1, min(1000, int(window / 4 / max(min(taken), 1e-9)))))
        shortest = min(shortest, *taken)
        medians.append(statistics.median(taken))
        last = medians[-3:]
        if len(last) == 3 and max(last) <= _STEADY * min(last):
            break
        if shortest >= _SLOW and len(medians) == 2:
            break
    return max(shortest, 1e-9)
