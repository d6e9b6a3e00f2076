"""How many times as long as the four-operator graph something took, run by run, in results of `inference_cpu`."""

from __future__ import annotations

import statistics

from relukan_deploy.bench.report import words
from relukan_deploy.bench.report.groups import Group, Line
from relukan_deploy.bench.results import OURS, Contender
from relukan_deploy.bench.timing import Timing

__all__ = ["graph_of", "is_graph", "run_ratios", "spread", "target", "times"]


def is_graph(contender: Contender) -> bool:
    """Whether it is the four-operator graph alone."""
    return contender.network == OURS and contender.data == "bound"


def graph_of(group: Group) -> Line:
    """The one that all others are divided by."""
    (graph,) = (line for line in group.lines if is_graph(line.series.contender))
    return graph


def run_ratios(numerator: Timing, denominator: Timing) -> list[float]:
    """How many times as long one takes as the other: for each run the median over its rounds."""
    return [
        statistics.median(above / below for above, below in zip(*rounds, strict=True))
        for rounds in zip(numerator.rounds, denominator.rounds, strict=True)
    ]


def times(ratios: list[float]) -> str:
    """The median of the runs, as "67 ×"."""
    return words.times(statistics.median(ratios))


def spread(ratios: list[float]) -> str:
    """The range of the runs, as "64–71"."""
    return "–".join(words.times(end).removesuffix(" ×") for end in (min(ratios), max(ratios)))


def target(contender: Contender, batch: int) -> float | None:
    """How many times as long a peer should take at least; None where nothing was set."""
    if (contender.network, contender.engine) == ("pykan", "torch"):
        return 30.0
    if (contender.network, contender.engine, contender.widths) == ("relu-kan", "torch", (4, 64, 64, 1)):
        return 3.0
    if (contender.network, contender.data) == ("efficient-kan", "bound"):
        return {1: 4.0, 1024: 15.0}.get(batch)
    return None
