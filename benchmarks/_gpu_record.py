"""What the GPU benchmark has found so far, and its files, which are whole after every part."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from relukan_deploy._files import replacing_file
from relukan_deploy.bench import stored
from relukan_deploy.bench.environment import conditions
from relukan_deploy.bench.report.html import write_page
from relukan_deploy.bench.results import (
    B_SPLINES,
    OURS,
    Contender,
    Environment,
    Peaks,
    Results,
    Series,
    Skipped,
    Startup,
)
from relukan_deploy.errors import RelukanError

__all__ = ["Goal", "Record", "goals_of"]

FILES = ("parity", "training", "profile", "threads")

# What is to be reached.
SMALL, USUAL = (2, 5, 1), (4, 64, 64, 1)
LARGEST = 65536


@dataclasses.dataclass(frozen=True)
class Goal:
    """A number to reach. `found` is None where it was not measured."""

    name: str
    limit: float
    found: float | None
    at_least: bool = False
    unit: str = ""

    @property
    def is_reached(self) -> bool | None:
        if self.found is None:
            return None
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    def __str__(self) -> str:
        wanted = f"{'at least' if self.at_least else 'at most'} {self.limit:g}{self.unit}"
        if self.found is None:
            return f"{self.name}: {wanted}: not measured"
        return f"{self.name}: {self.found:.3g}{self.unit}, {wanted}: {'reached' if self.is_reached else 'NOT reached'}"


class Record:
    """Everything that is found. Parts add to it, one thread at a time; any thread may write it.

    Args:
        folder: where the files go.
        environment: of this process.
        others: folders in which another Python has left what it found.

    Attributes:
        series, startups, skipped, peaks: as in `Results`.
        rows: of the other files, by name.
        others: what was found in other Pythons.
    """

    def __init__(self, folder: Path, environment: Environment, others: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.series: list[Series] = []
        self.startups: list[Startup] = []
        self.skipped: list[Skipped] = []
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in FILES}
        self.peaks: list[Peaks] = []
        self._environment = environment
        self.others: list[Results] = []
        self._writing = threading.Lock()
        for other in others:
            self._take(other)

    def add(self, found: Series) -> None:
        """A series, or more batches of one that is there already."""
        for index, known in enumerate(self.series):
            if known.contender == found.contender:
                points = {point.batch: point for point in (*found.points, *known.points)}
                merged = tuple(points[batch] for batch in sorted(points))
                self.series[index] = dataclasses.replace(known, points=merged)
                return
        self.series.append(found)

    def has(self, contender: Contender, batches: Sequence[int]) -> bool:
        known = {point.batch for each in self.series if each.contender == contender for point in each.points}
        return set(batches) <= known

    def skip(self, what: str, why: str) -> None:
        found = Skipped(what, why.strip().splitlines()[0] if why.strip() else "no reason was given")
        if found not in self.skipped:
            self.skipped.append(found)

    @property
    def is_empty(self) -> bool:
        return not (self.series or self.others)

    def results(self) -> Results:
        environment = dataclasses.replace(self._environment, after=conditions(), peaks=tuple(self.peaks))
        own = Results(
            bundle="networks of the GPU benchmark",
            environments=(environment,),
            series=tuple(self.series),
            startups=tuple(self.startups),
            skipped=tuple(self.skipped),
        )
        return stored.merge([own, *self.others])

    def write(self) -> None:
        """Each file aside, and then in its place."""
        with self._writing:
            _write(self.folder / "results.json", stored.to_json(self.results()))
            gpu = msgspec.to_builtins(self._environment.gpu)
            for name, rows in self.rows.items():
                content = {"command": self._environment.command, "gpu": gpu, name: list(rows)}
                _write(self.folder / f"{name}.json", json.dumps(content, indent=1))

    def finish(self, console: Console) -> None:
        """The page, and what was reached."""
        self.write()
        results = self.results()
        try:
            write_page(results, self.folder / "report.html")
        except RelukanError as error:
            console.print(f"report.html is left out: {error}", markup=False)
        for skipped in results.skipped:
            console.print(f"left out: {skipped.what}: {skipped.why}", markup=False)
        for goal in goals_of(results):
            colour = {True: "green", False: "red", None: "yellow"}[goal.is_reached]
            console.print(str(goal), style=colour, markup=False)
        console.print(f"→ {self.folder}")

    def _take(self, folder: Path) -> None:
        with contextlib.suppress(RelukanError):  # it has not come so far
            self.others.append(stored.read(folder / "results.json"))
        for name, rows in self.rows.items():
            with contextlib.suppress(OSError, ValueError):
                rows += json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))[name]


def goals_of(results: Results) -> list[Goal]:
    """The numbers to reach on a GPU, and what they are. p50 in all cases, with the data on the device."""

    def p50(batch: int, widths: tuple[int, ...], keep: Callable[[Series], bool]) -> float | None:
        found = [
            point.timing.p50
            for series in results.series
            if series.contender.widths == widths and series.contender.data == "device" and keep(series)
            for point in series.points
            if point.batch == batch and point.timing
        ]
        return min(found, default=None)

    def ours(series: Series) -> bool:
        contender = series.contender
        known = contender.network == OURS and contender.engine.startswith("tensorrt")
        return known and contender.precision == "fp32" and contender.cuda_graph

    def peer(networks: Sequence[str], engine: str) -> Callable[[Series], bool]:
        return lambda series: series.contender.network in networks and series.contender.engine == engine

    goals = []
    for widths, limit in ((SMALL, 12.0), (USUAL, 20.0)):
        found = p50(1, widths, ours)
        name = f"{list(widths)}, batch 1, graph replay"
        goals.append(Goal(name, limit, found and found * 1e6, unit=" µs"))
    for widths in (SMALL, USUAL):
        for title, networks, engine, limit in (
            ("pykan eager", ("pykan",), "torch", 50.0),
            ("the best compiled B-spline KAN", B_SPLINES, "torch.compile", 5.0),
        ):
            above, below = p50(1, widths, peer(networks, engine)), p50(1, widths, ours)
            name = f"{list(widths)}, batch 1, {title} ÷ ours"
            goals.append(Goal(name, limit, above / below if above and below else None, at_least=True))
    ideals = [
        point.timing.p50 / point.ideal.seconds
        for series in results.series
        if series.contender.widths == USUAL and series.contender.data == "device" and ours(series)
        for point in series.points
        if point.batch == LARGEST and point.timing and point.ideal
    ]
    goals.append(Goal(f"{list(USUAL)}, batch {LARGEST}, ours ÷ ideal", 10.0, min(ideals, default=None)))
    return goals


def _write(path: Path, text: str) -> None:
    with replacing_file(path) as written:
        written.write_text(text + "\n", encoding="utf-8")
