"""Results as a measurement would leave them, for tests that read results."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from relukan_deploy.bench.results import Conditions, Contender, Environment, Peaks, Point, Results, Series
from relukan_deploy.bench.timing import Timing

HOST = Contender("this network", (2, 5, 1), "onnxruntime-cpu", layout="batch-last")
PEAKS = Peaks("cpu", "fp32", 1e11, 1e10, 3e-6)


def environment(**changes: Any) -> Environment:
    known: dict[str, Any] = {
        "command": "relukan-bench bundle",
        "date": "2026-03-01T12:00:00+00:00",
        "commit": "c0ffee",
        "processor": "Some CPU",
        "cores": 8,
        "memory_bytes": 1 << 34,
        "architecture": "x86_64",
        "system": "Linux 6.1",
        "gpu": None,
        "versions": {"python": "3.12.1", "onnxruntime": "1.20.0"},
        "threads": 1,
        "before": Conditions(load=0.5),
        "after": Conditions(load=1.1),
        "peaks": (PEAKS,),
    }
    return Environment(**known | changes)


def point(batch: int, medians: Sequence[Sequence[float]]) -> Point:
    """A point whose rounds have these medians, one sequence for each run: every call took its round's median."""
    every = sorted(itertools.chain(*medians))
    low, middle, high = (every[round(share * (len(every) - 1))] for share in (0.1, 0.5, 0.9))
    mean, spread = math.fsum(every) / len(every), (high - low) / middle
    rounds = tuple(tuple(values) for values in medians)
    return Point(batch, Timing(middle, high, every[-1], mean, low, high, every[0], spread, len(every), rounds))


def series(contender: Contender, times: Mapping[int, Sequence[Sequence[float]]], place: int = 0) -> Series:
    points = tuple(point(batch, medians) for batch, medians in times.items())
    return Series(contender, place, 100, 1e-7, points)


def results(*several: Series, **changes: Any) -> Results:
    known: dict[str, Any] = {"bundle": "bundle", "environments": (environment(),), "series": several}
    return Results(**known | changes)


def steady(seconds: float, runs: int = 5, rounds: int = 9) -> list[list[float]]:
    """Rounds that hardly differ: by a part in ten thousand, and not at random."""
    return [[seconds * (1 + 1e-4 * math.sin(run * rounds + number)) for number in range(rounds)] for run in range(runs)]
