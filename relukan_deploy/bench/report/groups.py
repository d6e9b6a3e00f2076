"""What may be compared with what, and by how much it differs.

Only series of one machine, one number of threads and networks of one shape are compared: a group. In it,
every time is divided by the baseline's at the same batch and with the rows in the same place.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

from ..results import B_SPLINES, OURS, Data, Environment, Point, Results, Series
from ..timing import Ratio, Timing, ratio
from . import words

__all__ = ["EAGER", "PLACES", "Group", "Line", "groups", "machines"]

EAGER = "torch"

PLACES: dict[Data, str] = {
    "host": "rows in host memory",
    "bound": "rows in the graph's own buffers",
    "device": "rows on the GPU",
}
"""Where rows and answers lie, in the order in which it is shown."""

_MOST_LINES = 10  # in one chart, unless somebody asks for more


@dataclasses.dataclass(frozen=True)
class Line:
    """A series, with its name in the group and how it compares.

    Attributes:
        number: of the series in the results.
        way: how it is run; with `series.contender.network` no other line of the group is called so.
        ratios: by batch, times as long as the baseline. Taken round by round where both were measured in
            turns; else p50 by p50, and `low` and `high` are that too.
        baseline: the batches where this line is the baseline.
    """

    number: int
    series: Series
    way: str
    ratios: dict[int, Ratio]
    baseline: frozenset[int]

    @property
    def network(self) -> str:
        return self.series.contender.network

    @property
    def data(self) -> Data:
        return self.series.contender.data

    @property
    def name(self) -> str:
        return f"{self.network}: {self.way}"

    @property
    def brief(self) -> str:
        """Its way where it is clear where the rows lie."""
        return self.way.replace(", graph alone", "").replace(", data on the device", "")

    @functools.cached_property
    def points(self) -> dict[int, Point]:
        """By batch, those that were measured."""
        return {point.batch: point for point in self.series.points if point.timing}

    @property
    def timings(self) -> list[Timing]:
        return [point.timing for point in self.points.values() if point.timing]

    def timing(self, batch: int) -> Timing | None:
        point = self.points.get(batch)
        return point.timing if point else None

    def p50(self, batch: int) -> float:
        """In seconds, of a batch that was measured."""
        timing = self.points[batch].timing
        assert timing is not None
        return timing.p50


@dataclasses.dataclass(frozen=True)
class Group:
    """Series that may be compared.

    Attributes:
        title: the shape, and the machine where the results are of several.
        widths: of our own network; the peers have about its size.
        environments: indices of those that it was measured in, on one machine.
        lines: our own first, each network's together.
    """

    title: str
    widths: tuple[int, ...]
    environments: tuple[int, ...]
    lines: tuple[Line, ...]

    @property
    def batches(self) -> list[int]:
        """Every batch size that something was measured at."""
        return sorted({batch for line in self.lines for batch in line.points})

    @property
    def networks(self) -> list[str]:
        return list(dict.fromkeys(line.network for line in self.lines))

    @property
    def places(self) -> list[Data]:
        """Where rows lie in one of its lines or another."""
        return [place for place in PLACES if any(line.data == place for line in self.lines)]

    def of(self, network: str, data: Data) -> list[Line]:
        return [line for line in self.lines if (line.network, line.data) == (network, data)]

    def fastest(self, network: str, data: Data, batch: int) -> Line | None:
        """The network's fastest way at this batch."""
        return _fastest(self.of(network, data), batch)

    def baseline(self, data: Data, batch: int) -> Line | None:
        """What the others are divided by."""
        return next((line for line in self.lines if line.data == data and batch in line.baseline), None)

    def chosen(self) -> list[Line]:
        """What a chart shows first: all lines, or where they are many, of each network what is usually fastest.

        Then also what the others are divided by, on the GPU too, and PyTorch as it is for the B-spline KANs.
        """
        if len(self.lines) <= _MOST_LINES:
            return list(self.lines)
        first = self.places[0]
        kept = {_most(self.fastest(network, first, batch) for batch in self.batches) for network in self.networks}
        kept |= {_most(self.baseline(data, batch) for batch in self.batches) for data in (first, "device")}
        kept |= {line.number for name in B_SPLINES for line in self.of(name, first) if line.way == EAGER}
        return [line for line in self.lines if line.number in kept]


def _most(lines: Iterable[Line | None]) -> int | None:
    """The number of the line that comes most often."""
    numbers = [line.number for line in lines if line]
    return max(numbers, key=numbers.count, default=None)


def groups(results: Results) -> list[Group]:
    """Everything that was measured, as what may be compared.

    A peer whose hidden layers are wider or narrower belongs to our network with the same ends, of its own
    environment if it has one.
    """
    found = machines(results)
    titles = _titles(found)
    places = [
        next(number for number, machine in enumerate(found) if _is_same(environment, machine))
        for environment in results.environments
    ]
    keys: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for number, series in enumerate(results.series):
        keys.setdefault((_shape(series, results, places), places[series.environment]), []).append(number)
    return [
        _group(results, numbers, shape, ", ".join(filter(None, [words.widths(shape), titles[place]])))
        for (shape, place), numbers in keys.items()
    ]


def machines(results: Results) -> list[Environment]:
    """For each machine and number of threads one environment, which knows its GPU if any of them does."""
    found: list[Environment] = []
    for environment in sorted(results.environments, key=lambda each: each.gpu is None):
        if not any(_is_same(environment, each) for each in found):
            found.append(environment)
    return found


def _is_same(one: Environment, other: Environment) -> bool:
    """Whether both are of one machine. A Python without CUDA's packages does not see the GPU that is there."""
    fields = ("processor", "cores", "memory_bytes", "threads")
    alike = all(getattr(one, field) == getattr(other, field) for field in fields)
    return alike and (one.gpu is None or other.gpu is None or one.gpu.name == other.gpu.name)


def _titles(machines: Sequence[Environment]) -> list[str]:
    """What tells each machine from the others; nothing where there is one."""
    if len(machines) < 2:
        return [""] * len(machines)
    names = [each.gpu.name if each.gpu else each.processor for each in machines]
    if len(set(names)) < len(names):
        names = [f"{name}, {words.threads(each.threads)}" for name, each in zip(names, machines, strict=True)]
    return [f"{name} ({index + 1})" if names.count(name) > 1 else name for index, name in enumerate(names)]


def _shape(series: Series, results: Results, places: Sequence[int]) -> tuple[int, ...]:
    """The widths of our own network that a series is compared with; its own where there is none.

    Args:
        places: for each environment the number of its machine.
    """
    widths = series.contender.widths

    def ours(environments: Iterable[int]) -> list[tuple[int, ...]]:
        among = set(environments)
        return [
            each.contender.widths
            for each in results.series
            if each.contender.network == OURS and each.environment in among
        ]

    here = [index for index, place in enumerate(places) if place == places[series.environment]]
    if widths in ours(here):
        return widths
    ends = (widths[0], widths[-1])
    alike = [each for each in (*ours([series.environment]), *ours(here)) if (each[0], each[-1]) == ends]
    return alike[0] if alike else widths


def _group(results: Results, numbers: Sequence[int], shape: tuple[int, ...], title: str) -> Group:
    series = {number: results.series[number] for number in numbers}
    contenders = [each.contender for each in series.values()]
    networks = [OURS, *dict.fromkeys(contender.network for contender in contenders)]
    lines = []
    for number, each in series.items():
        again = contenders.count(each.contender) > 1
        way = each.contender.way + (f" (environment {each.environment + 1})" if again else "")
        lines.append(Line(number, each, way, {}, frozenset()))
    places = list(PLACES)
    lines.sort(key=lambda line: (networks.index(line.network), places.index(line.data)))
    return Group(
        title=title,
        widths=shape,
        environments=tuple(dict.fromkeys(each.environment for each in series.values())),
        lines=tuple(_compared(line, lines) for line in lines),
    )


def _compared(line: Line, lines: Sequence[Line]) -> Line:
    """The line with its ratios.

    The baseline is our own network at its fastest in float32, which is what the peers compute in; at its
    fastest of all where it was not measured in float32.
    """
    ours = [each for each in lines if (each.network, each.data) == (OURS, line.data)]
    single = [each for each in ours if each.series.contender.precision == "fp32"]
    ratios, baseline = {}, set()
    for batch, point in line.points.items():
        below = _fastest(single, batch) or _fastest(ours, batch)
        if below is None:
            continue
        if below.number == line.number:
            baseline.add(batch)
        paired = below.series.environment == line.series.environment
        assert point.timing is not None
        ratios[batch] = _ratio(point.timing, below.points[batch].timing, paired=paired)
    return dataclasses.replace(line, ratios=ratios, baseline=frozenset(baseline))


def _fastest(lines: Iterable[Line], batch: int) -> Line | None:
    measured = [(timing.p50, line.number, line) for line in lines if (timing := line.timing(batch))]
    return min(measured)[2] if measured else None


def _ratio(above: Timing, below: Timing | None, *, paired: bool) -> Ratio:
    assert below is not None
    if paired and [len(run) for run in above.rounds] == [len(run) for run in below.rounds]:
        return ratio(above, below)
    value = above.p50 / below.p50
    return Ratio(value, value, value)
