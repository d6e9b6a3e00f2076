"""Which differences between two results are more than noise, and which of those are regressions.

What is compared is the median of each run, on a scale of logarithms: the rounds within a run saw the same
minutes of the same machine and count as one, so what tells noise is how runs differ. For one point that is
estimated from few runs; so it is drawn towards what is typical of all points of both files, as if that had been
seen in a few runs more (an empirical Bayes estimate; Smyth, "Linear models and empirical Bayes methods",
2004, section 3). The interval is Student's, as wide as so many points at once take (Bonferroni) and never
narrower than two processes differ that run the same code.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .results import Contender, Environment, Peaks, Results, Series
from .timing import Timing

__all__ = ["Comparison", "Difference", "compare"]

_Array = NDArray[np.float64]

_CONFIDENCE = 0.95  # that no interval of all of them misses
_PROCESS = 0.01  # standard deviation between processes that run the same code, as a part of the time
_ASSUMED = 0.03  # between runs, where there are too few to know it
_WEIGHT = 6  # degrees of freedom of what is typical of all points, or assumed
_FEW = 5  # points, of which nothing is typical
_MACHINE = 0.1  # a change of the machine's peaks that is mentioned


@dataclasses.dataclass(frozen=True)
class Difference:
    """One contender at one batch size, in both results.

    Attributes:
        contender, batch: what was timed.
        old, new: seconds of a call: the mean of the runs' medians, geometric.
        ratio: new / old; above 1 it has become slower.
        low, high: the interval of `ratio`: 95 % that of all those compared none misses.
        is_regression: slower by more than the threshold, and beyond noise.
    """

    contender: Contender
    batch: int
    old: float
    new: float
    ratio: float
    low: float
    high: float
    is_regression: bool

    @property
    def is_beyond_noise(self) -> bool:
        return not self.low <= 1 <= self.high

    @property
    def name(self) -> str:
        return f"{self.contender.name}, {_rows(self.batch)}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What comparing two results found.

    Attributes:
        differences: of every point that both have, the noisy ones too.
        only_old, only_new: points that only one has.
        warnings: why times may differ for reasons outside the program.
    """

    differences: tuple[Difference, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    warnings: tuple[str, ...]


class _Point(NamedTuple):
    """A contender at one batch size, in both results."""

    contender: Contender
    batch: int
    old: Timing
    new: Timing


def compare(old: Results, new: Results, *, threshold: float) -> Comparison:
    """The differences between two results, points matched by contender and batch size.

    Args:
        threshold: a part of the old time; what is slower by more, and beyond noise, is a regression.

    Raises:
        InputError: they have no point in common, or the threshold is negative.
    """
    if not 0 <= threshold < math.inf:
        raise InputError(f"the threshold must be 0 or more, got {threshold}")
    pairs = _pairs(old, new)
    points = [
        _Point(before.contender, batch, timings[batch], others[batch])
        for before, after in pairs
        for timings, others in [(_timings(before), _timings(after))]
        for batch in sorted(timings.keys() & others.keys())
    ]
    if not points:
        raise InputError(
            "the two files have no point in common: expected the same networks, backends and batch sizes in both"
        )
    return Comparison(
        differences=tuple(_differences(points, threshold)),
        only_old=tuple(_alone(old.series, new.series)),
        only_new=tuple(_alone(new.series, old.series)),
        warnings=tuple(_warnings(old, new, pairs)),
    )


def _differences(points: Sequence[_Point], threshold: float) -> Iterator[Difference]:
    sides = [(_logarithms(point.old), _logarithms(point.new)) for point in points]
    freedom = np.array([len(before) + len(after) - 2 for before, after in sides])
    squares = np.array([sum(((runs - runs.mean()) ** 2).sum() for runs in pair) for pair in sides])
    variances = (squares + _WEIGHT * _typical(squares, freedom)) / (freedom + _WEIGHT)
    miss = (1 - _CONFIDENCE) / 2 / len(points)
    for point, (before, after), degrees, variance in zip(points, sides, freedom, variances, strict=True):
        change = after.mean() - before.mean()
        unknown = 2 * _PROCESS**2 + _within(point.old) + _within(point.new)
        error = math.sqrt(variance * (1 / len(before) + 1 / len(after)) + unknown)
        half = _student(1 - miss, degrees + _WEIGHT) * error
        low, ratio, high = (math.exp(value) for value in (change - half, change, change + half))
        yield Difference(
            contender=point.contender,
            batch=point.batch,
            old=math.exp(before.mean()),
            new=math.exp(after.mean()),
            ratio=ratio,
            low=low,
            high=high,
            is_regression=low > 1 and ratio > 1 + threshold,
        )


def _logarithms(timing: Timing) -> _Array:
    """Of each run's median."""
    return np.log([statistics.median(rounds) for rounds in timing.rounds])


def _within(timing: Timing) -> float:
    """The variance of the median of a single run, of its rounds; with several runs, theirs holds it already."""
    if len(timing.rounds) > 1:
        return 0.0
    low, high = np.percentile(np.log(timing.rounds[0]), [16, 84])  # two standard deviations; outliers do not count
    return float(math.pi / 2 * ((high - low) / 2) ** 2 / len(timing.rounds[0]))


def _typical(squares: _Array, freedom: _Array) -> float:
    """The variance between runs that half of the points exceed; assumed where there are too few to tell."""
    known = freedom > 0
    if known.sum() < _FEW:
        return _ASSUMED**2
    # A chi-squared of n degrees has its median near n (1 − 2/(9n))³ (Wilson and Hilferty, 1931).
    middle = (1 - 2 / (9 * freedom[known])) ** 3
    return float(np.median(squares[known] / freedom[known] / middle))


def _student(probability: float, freedom: float) -> float:
    """The quantile of Student's distribution (Abramowitz and Stegun, 26.7.5)."""
    x = statistics.NormalDist().inv_cdf(probability)
    return (
        x
        + (x**3 + x) / (4 * freedom)
        + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * freedom**2)
        + (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / (384 * freedom**3)
    )


def _pairs(old: Results, new: Results) -> list[tuple[Series, Series]]:
    """Series of the same contender. Where a file has several of it, those of the same machine."""
    found = []
    for contender in dict.fromkeys(series.contender for series in old.series):
        before, after = _by_machine(old, contender), _by_machine(new, contender)
        if len(before) == len(after) == 1:
            found += list(zip(before.values(), after.values(), strict=True))
        else:
            found += [(before[machine], after[machine]) for machine in before if machine in after]
    return found


def _by_machine(results: Results, contender: Contender) -> dict[Hashable, Series]:
    """The series of a contender."""
    found = [series for series in results.series if series.contender == contender]
    return {_machine(results.environments[series.environment]): series for series in found}


def _machine(environment: Environment) -> Hashable:
    return environment.processor, environment.cores, environment.gpu and environment.gpu.name, environment.threads


def _timings(series: Series) -> dict[int, Timing]:
    return {point.batch: point.timing for point in series.points if point.timing}


def _alone(several: Iterable[Series], others: Iterable[Series]) -> list[str]:
    """What was timed in the first and not in the second."""
    known = {(series.contender, batch) for series in others for batch in _timings(series)}
    return [
        f"{series.contender.name}, {_rows(batch)}"
        for series in several
        for batch in _timings(series)
        if (series.contender, batch) not in known
    ]


def _warnings(old: Results, new: Results, pairs: Sequence[tuple[Series, Series]]) -> Iterator[str]:
    """Why times may differ for reasons outside the program, and what the intervals do not know."""
    for name, results in (("old", old), ("new", new)):
        runs = [len(timing.rounds) for series in results.series for timing in _timings(series).values()]
        if min(runs) == 1:
            yield (
                f"the {name} file holds a single run: how runs differ is assumed or taken from other points, "
                "not measured; measure with --runs 5"
            )
        for environment in results.environments:
            load, free = environment.before.load, environment.cores - environment.threads
            if load is not None and load > max(free, 0.5):
                yield (
                    f"the machine was busy when the {name} file was measured: a load of {load:.1f} before it began, "
                    f"on {environment.cores} cores"
                )
    for then, now in pairs:
        if then.parameters != now.parameters:
            yield (
                f"another network of the same widths: {then.contender.name} has {now.parameters} parameters, "
                f"and had {then.parameters}"
            )
    for before, after in dict.fromkeys((before.environment, after.environment) for before, after in pairs):
        one, other = old.environments[before], new.environments[after]
        facts = _facts(one), _facts(other)
        changes = [
            f"{name} {facts[0].get(name, 'none')} → {facts[1].get(name, 'none')}"
            for name in dict.fromkeys((*facts[0], *facts[1]))
            if facts[0].get(name) != facts[1].get(name)
        ]
        if changes:
            yield f"measured in another environment: {', '.join(changes)}"
        yield from _changed_peaks(one.peaks, other.peaks)


def _facts(environment: Environment) -> dict[str, object]:
    """What should be equal for times to be comparable, by the name it is told by."""
    gpu = environment.gpu
    facts: dict[str, object] = {
        "processor": environment.processor,
        "cores": environment.cores,
        "architecture": environment.architecture,
        "system": environment.system,
        "GPU": gpu.name if gpu else "none",
        "driver": gpu.driver if gpu else "none",
        "threads": environment.threads,
        **environment.versions,
    }
    facts.pop("relukan-deploy", None)  # which is what may be compared
    return facts


def _changed_peaks(old: Iterable[Peaks], new: Iterable[Peaks]) -> Iterator[str]:
    """What the machine itself does faster or more slowly than before."""
    before = {(peaks.device, peaks.precision): peaks for peaks in old}
    for peaks in new:
        then = before.get((peaks.device, peaks.precision))
        if then is None:
            continue
        for what, change in (
            ("matrix product", peaks.flops_per_second / then.flops_per_second),
            ("copy", peaks.bytes_per_second / then.bytes_per_second),
        ):
            if abs(math.log(change)) > math.log1p(_MACHINE):
                yield (
                    f"the machine itself has changed: a large {what} ({peaks.device}, {peaks.precision}) "
                    f"runs at {change:.2f} times its speed in the old file"
                )


def _rows(batch: int) -> str:
    return f"{batch} {'row' if batch == 1 else 'rows'}"
