"""Times of several contenders that answer the same question, measured so that they can be divided.

All run in one process and take turns in short bursts, in an order that is drawn anew every round:
what else the machine does then hits all of them alike. A ratio is taken within each round, where
both sides saw the same machine, and reported as the median over the rounds.
"""

from __future__ import annotations

import dataclasses
import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

__all__ = ["Ratio", "Timing", "measure", "ratio"]


@dataclasses.dataclass(frozen=True)
class Timing:
    """One contender's times, in seconds per call.

    Attributes:
        median: of the rounds' medians.
        best: the fastest call.
        p90: nine of ten calls took at most this.
        spread: 90th less 10th percentile of the rounds' medians, as a part of `median`.
        rounds: each round's median, in the order they ran.
        calls: how many calls were timed.
    """

    median: float
    best: float
    p90: float
    spread: float
    rounds: tuple[float, ...]
    calls: int

    def summary(self) -> dict[str, float]:
        """Everything but the single rounds."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "rounds"}


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as long one contender takes as another: median, 10th and 90th percentile of the rounds."""

    median: float
    low: float
    high: float


def measure(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 41,
    burst: float = 0.005,
    warm_up: float = 0.1,
    seed: int = 0,
) -> dict[str, Timing]:
    """Times every contender, interleaved.

    Args:
        calls: what to run, by name. Their results are dropped.
        rounds: how often each contender gets its turn.
        burst: seconds of a turn, about; at least three calls, the first of which only brings
            code and data back into the caches and is not counted.
        warm_up: seconds that each contender runs before anything is timed; at least two calls.
        seed: of the order within a round.

    Raises:
        ValueError: there is nothing to measure, or no round to measure it in.
    """
    if not calls or rounds < 1:
        raise ValueError(f"needs at least one call and one round, got {len(calls)} calls and rounds={rounds}")
    repeats = {name: max(2, round(burst / _warm(call, warm_up))) for name, call in calls.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(seed).shuffle
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                times[name].append(_turn(calls[name], repeats[name]))
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    return {name: _summary(turns) for name, turns in times.items()}


def ratio(numerator: Timing, denominator: Timing) -> Ratio:
    """`numerator` / `denominator`, round by round; both from one call of `measure`."""
    ratios = [a / b for a, b in zip(numerator.rounds, denominator.rounds, strict=True)]
    return Ratio(statistics.median(ratios), _percentile(ratios, 10), _percentile(ratios, 90))


def _warm(call: Callable[[], object], seconds: float) -> float:
    """Runs `call` for a while; the shortest time it took."""
    shortest, end, done = float("inf"), time.perf_counter() + seconds, 0
    while done < 2 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        shortest = min(shortest, time.perf_counter() - begin)
        done += 1
    return max(shortest, 1e-9)


def _turn(call: Callable[[], object], repeats: int) -> list[float]:
    call()
    clock, taken = time.perf_counter_ns, []
    for _ in range(repeats):
        begin = clock()
        call()
        taken.append((clock() - begin) * 1e-9)
    return taken


def _summary(turns: list[list[float]]) -> Timing:
    medians = tuple(statistics.median(turn) for turn in turns)
    every = [taken for turn in turns for taken in turn]
    median = statistics.median(medians)
    return Timing(
        median=median,
        best=min(every),
        p90=_percentile(every, 90),
        spread=(_percentile(medians, 90) - _percentile(medians, 10)) / median,
        rounds=medians,
        calls=len(every),
    )


def _percentile(values: Sequence[float], percent: int) -> float:
    """The value that `percent` of a hundred do not exceed."""
    ordered = sorted(values)
    return ordered[round((len(ordered) - 1) * percent / 100)]
