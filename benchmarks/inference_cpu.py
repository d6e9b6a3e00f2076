"""Inference on one CPU thread: the four-operator graph against other KANs of the same size, and MLPs.

    python -m benchmarks.inference_cpu [--quick] [--json FILE]
    python -m benchmarks.inference_cpu --isolate    the graph and pykan, each in a process of its own

Nothing is timed before it is shown to compute what it should: the graphs are compared with the float64
reference, and every exported peer with itself in PyTorch.

What a process did before decides how its allocator treats pykan's large temporaries: glibc hands memory back
to the system after every call until larger blocks have been freed once, and each call then pays for it in page
faults. Among all the others, in one process, pykan has the better case; --isolate measures a service that only
ever sees one batch size.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from relukan_deploy._files import replacing_file
from relukan_deploy.api import export
from relukan_deploy.bench.environment import available_bytes, conditions, describe
from relukan_deploy.bench.peers import PEERS
from relukan_deploy.bench.remote import Worker
from relukan_deploy.bench.report import words
from relukan_deploy.bench.report.groups import groups
from relukan_deploy.bench.request import Request
from relukan_deploy.bench.results import Contender, Results, Series, Skipped, Split
from relukan_deploy.bench.stored import to_json
from relukan_deploy.bench.subjects import Subject
from relukan_deploy.bench.subjects.bundles import bundle_subjects, shape_of
from relukan_deploy.bench.subjects.torch_engines import peer_subjects
from relukan_deploy.bench.sweep import Effort, sweep
from relukan_deploy.bench.timing import Timing, Turn
from relukan_deploy.bundle import Bundle
from relukan_deploy.exporters.to_tensorrt import EngineOptions

from ._networks import trained_like
from ._ratios import graph_of, run_ratios, spread, target, times
from ._report import command, new_console, saying

NETWORKS = ((2, 5, 1), (4, 64, 64, 1))
BATCHES = (1, 64, 1024)
GRID, ORDER = 5, 3
BACKEND = "onnxruntime-cpu"
ENGINES = ("torch", "torch.compile", BACKEND)
EFFORT = Effort(runs=5, rounds=11)
QUICK = Effort(runs=2, rounds=3, burst=0.002, warm_up=0.01, most=1.0)

Found = tuple[list[Series], list[Skipped]]
Say = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference_cpu", description=__doc__.split("\n")[0])
    parser.add_argument("--isolate", action="store_true", help="the graph and pykan alone, in processes of their own")
    parser.add_argument("--quick", action="store_true", help="a short run, with wider spreads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    options = parser.parse_args(arguments)
    console = new_console()
    results = measure(isolate=options.isolate, effort=QUICK if options.quick else EFFORT)
    print_results(console, results)
    if options.json:
        with replacing_file(options.json) as written:
            written.write_text(to_json(results) + "\n", encoding="utf-8")


def measure(*, isolate: bool, effort: Effort) -> Results:
    environment = describe(command("inference_cpu"), threads=1)
    series: list[Series] = []
    skipped: list[Skipped] = []
    for widths in NETWORKS:
        with tempfile.TemporaryDirectory() as folder, saying() as say:
            say(f"exporting {list(widths)}")
            bundles = export_all(widths, Path(folder))
            found, left_out = (isolated if isolate else together)(bundles, effort, say)
            series += found
            skipped += left_out
    return Results(
        bundle=", ".join(str(list(widths)) for widths in NETWORKS),
        environments=(dataclasses.replace(environment, after=conditions()),),
        series=tuple(series),
        skipped=tuple(skipped),
    )


def export_all(widths: tuple[int, ...], folder: Path) -> dict[int, Bundle]:
    """For each batch size a bundle of the same network, in the form that the exporter chooses for it."""
    spec = trained_like(widths, GRID, ORDER).spec()
    return {
        batch: export(spec, folder / f"{batch}", engine=EngineOptions(batch=(1, batch, max(BATCHES))))
        for batch in BATCHES
    }


def together(bundles: Mapping[int, Bundle], effort: Effort, say: Say) -> Found:
    """Everything in this process."""
    say("opening every network in every way")
    forms = [bundle_subjects(bundle, BACKEND, threads=1) for bundle in bundles.values()]
    ours: list[Subject] = [ForEachBatch(dict(zip(bundles, way, strict=True))) for way in zip(*forms, strict=True)]
    shape = shape_of(next(iter(bundles.values())), GRID, ORDER)
    others, skipped = peer_subjects(shape, tuple(PEERS), threads=1, engines=ENGINES)
    subjects = [*ours, *others]
    try:
        return timed(subjects, BATCHES, effort, say), skipped
    finally:
        for subject in subjects:
            subject.close()


def isolated(bundles: Mapping[int, Bundle], effort: Effort, say: Say) -> Found:
    """The graph and pykan, in two processes that are new for each batch size."""
    series: dict[Contender, Series] = {}
    skipped: list[Skipped] = []
    for batch, bundle in bundles.items():
        graph = Request(str(bundle.path), backends=(BACKEND,))
        pykan = Request(str(bundle.path), peers=("pykan",), engines=("torch",), grid=GRID, order=ORDER)
        with (
            contextlib.closing(Worker(graph, "the graph")) as one,
            contextlib.closing(Worker(pykan, "pykan")) as other,
        ):
            subjects = [subject for subject in one.subjects if subject.contender.data == "bound"]
            subjects += [subject for subject in other.subjects if subject.contender.network == "pykan"]
            for found in timed(subjects, [batch], effort, say):
                known = series.setdefault(found.contender, dataclasses.replace(found, points=()))
                series[found.contender] = dataclasses.replace(known, points=(*known.points, *found.points))
            skipped += (*one.skipped, *other.skipped)
    return list(series.values()), skipped


def timed(subjects: Sequence[Subject], batches: Sequence[int], effort: Effort, say: Say) -> list[Series]:
    points = sweep(subjects, batches, effort, memory=available_bytes() // 2, say=say)
    return [
        Series(subject.contender, 0, subject.parameters, subject.difference, found)
        for subject, found in zip(subjects, points, strict=True)
    ]


class ForEachBatch:
    """A `Subject` that has another one for each batch size."""

    def __init__(self, subjects: Mapping[int, Subject]) -> None:
        self._subjects = subjects
        self._current = first = next(iter(subjects.values()))
        self.contender, self.parameters = first.contender, first.parameters
        self.difference: float | None = max(subject.difference or 0.0 for subject in subjects.values())

    def bytes_for(self, batch: int) -> int:
        return self._subjects[batch].bytes_for(batch)

    def prepare(self, batch: int) -> Turn:
        self._current = self._subjects[batch]
        return self._current.prepare(batch)

    def split(self) -> Split | None:
        return self._current.split()

    def release(self) -> None:
        self._current.release()

    def close(self) -> None:
        for subject in self._subjects.values():
            subject.close()


def print_results(console: Console, results: Results) -> None:
    """For each network the graph's times, and how many times as long every other took, with its target."""
    (environment,) = results.environments
    console.print(f"[bold]{environment.command}[/bold]")
    console.print(f"{words.machine(environment)}; {words.versions(environment)}")
    for group in groups(results):
        graph = graph_of(group)
        table = Table(
            "", title=f"{list(group.widths)}: the graph's time (spread), and others over it (range of the runs)"
        )
        for batch in group.batches:
            table.add_column(f"batch {batch}", justify="right")
        table.add_row("the graph", *(time_cell(graph.timing(batch)) for batch in group.batches))
        for line in group.lines:
            if line is not graph:
                table.add_row(
                    line.series.contender.name,
                    *(
                        ratio_cell(line.series.contender, batch, line.timing(batch), graph.timing(batch))
                        for batch in group.batches
                    ),
                )
        console.print(table)
    for skipped in results.skipped:
        console.print(f"not measured: {skipped.what}: {skipped.why}", markup=False)


def time_cell(timing: Timing | None) -> str:
    return f"{words.duration(timing)} ({timing.spread:.0%})" if timing else "–"


def ratio_cell(contender: Contender, batch: int, timing: Timing | None, graph: Timing | None) -> str:
    if not timing or not graph:
        return "–"
    ratios = run_ratios(timing, graph)
    least = target(contender, batch)
    if least is None:
        return f"{times(ratios)} ({spread(ratios)})"
    colour = "green" if statistics.median(ratios) >= least else "red"
    return f"[{colour}]{times(ratios)}[/] ({spread(ratios)}), target {least:g}"


if __name__ == "__main__":
    main()
