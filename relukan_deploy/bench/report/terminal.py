"""Results on a terminal: everyone's times first, then our own in detail, then the rest."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, JustifyMethod
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..results import OURS, Data, Results
from . import words
from .finding import accuracy_finding, finding, left_out
from .groups import PLACES, Group, Line, groups

__all__ = ["print_results"]

_NAME_COLUMNS = 28  # of a table of times by batch; longer names are folded
_TIME_COLUMNS = 8


def print_results(console: Console, results: Results) -> None:
    """Prints everything that was found, but of other networks only p50 and ratios. Needs 76 columns, better 100."""
    found = groups(results)
    for group in found:
        _print_title(console, f"{results.bundle}: {group.title}" if len(found) == 1 else group.title)
        for sentences in finding(group):
            for sentence in sentences:
                console.print(Text(sentence))
        for data in group.places:
            if sum(line.data == data for line in group.lines) > 1:
                _print_times(console, group, data)
        for line in group.lines:
            if line.network == OURS:
                _print_line(console, line)
    if any(timing.is_unsteady for group in found for line in group.lines for timing in line.timings):
        console.print()
        console.print(Text(words.UNSTEADY_NOTE, "dim"))
    if results.startups:
        _print_startups(console, results)
    if results.accuracies:
        _print_accuracies(console, results)
    if skipped := left_out(results, found):
        _print_title(console, "Not measured")
        for each in skipped:
            console.print(Text.assemble(each.what, (f": {each.why}", "dim")))
    for index, environment in enumerate(results.environments):
        _print_title(console, words.numbered("Environment", index, results))
        for label, fact in words.environment(environment):
            console.print(Text.assemble((f"{label}: ", "dim"), fact))


def _print_title(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, "bold"))


def _print_times(console: Console, group: Group, data: Data) -> None:
    """The p50 of every line by batch, with the ratios below; in parts where the console is narrow."""
    lines = [line for line in group.lines if line.data == data]
    batches = [batch for batch in group.batches if any(batch in line.points for line in lines)]
    parts = -(-len(batches) // max(1, (console.width - _NAME_COLUMNS) // _TIME_COLUMNS))
    title = f"p50 in µs, {PLACES[data]}"
    if any(line.baseline for line in lines):
        title += "; below it, how many times as long as the bold one that is"
    for part in range(parts):
        shown = batches[part * len(batches) // parts : (part + 1) * len(batches) // parts]
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("batch", max_width=_NAME_COLUMNS - 1, overflow="fold")
        for batch in shown:
            table.add_column(f"{batch}", justify="right", no_wrap=True, min_width=_TIME_COLUMNS - 1)
        for network in dict.fromkeys(line.network for line in lines):
            table.add_row(Text(network, "bold" if network == OURS else ""))
            for line in lines:
                if line.network == network:
                    table.add_row(Padding(Text(line.brief), (0, 0, 0, 2)), *(_time(line, batch) for batch in shown))
        console.print()
        console.print(Text(title, "dim"))
        console.print(table)


def _time(line: Line, batch: int) -> Text:
    timing = line.timing(batch)
    if timing is None:
        return Text("–", "dim")
    if batch in line.baseline:
        return Text(words.microseconds(timing), "bold")
    below = f"\n{words.times(line.ratios[batch])}" if batch in line.ratios else ""
    return Text.assemble(words.microseconds(timing), (below, "dim"))


def _print_line(console: Console, line: Line) -> None:
    """Every batch of a line, with what its time is made of."""
    console.print()
    console.print(Text(line.name))
    titles = ("batch", "p50", "p99", "mean (95 % interval)", "rows/s", "times the limit", "to GPU + there + back")
    rows = [
        (
            str(point.batch),
            words.duration(point.timing),
            words.duration(point.timing.p99),
            words.mean(point.timing),
            words.count(point.batch / point.timing.p50),
            words.limit(point),
            words.split(point),
        )
        for point in line.points.values()
        if point.timing
    ]
    _print_table(console, titles, rows, least=(6, 9, 9, 21, 7))


def _print_startups(console: Console, results: Results) -> None:
    _print_title(console, "Cold start: a fresh process, to its first answer")
    titles = ("backend", "file", "import", "load", "first answer", "build", "memory", "on the GPU")
    rows = [
        (
            each.engine,
            words.size(each.file_bytes),
            words.duration(each.import_seconds),
            words.duration(each.load_seconds),
            words.duration(each.first_seconds),
            "" if each.build_seconds is None else words.duration(each.build_seconds),
            words.size(each.host_bytes),
            "" if each.device_bytes is None else words.size(each.device_bytes),
        )
        for each in results.startups
    ]
    _print_table(console, titles, rows, names=1, least=(15,))


def _print_accuracies(console: Console, results: Results) -> None:
    _print_title(console, "Trained on the same data")
    batches = sorted({batch for each in results.accuracies for batch in each.seconds})
    titles = (
        "network",
        "layers",
        "parameters",
        "error",
        "training",
        *(f"p50 at {batch}" for batch in batches),
    )
    rows: list[Sequence[str | Text]] = [
        (
            Text.assemble(each.network, (f"\n{each.engine}", "dim")),
            words.widths(each.widths),
            str(each.parameters),
            Text(words.error(each.error), "bold" if each.error <= each.compared_at else ""),
            "" if each.train_seconds is None else words.duration(each.train_seconds),
            *(words.duration(each.seconds[batch]) if batch in each.seconds else "" for batch in batches),
        )
        for each in results.accuracies
    ]
    _print_table(console, titles, rows, names=2)
    levels = dict.fromkeys(words.error(each.compared_at) for each in results.accuracies)
    console.print(Text(f"bold: at most {words.join(list(levels))}, the error at which they are compared", "dim"))
    for sentence in accuracy_finding(results):
        console.print(Text(sentence))


def _print_table(
    console: Console,
    titles: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    *,
    names: int = 0,
    least: Sequence[int] = (),
) -> None:
    """Prints the columns that hold something.

    Args:
        names: so many of the first columns hold words, and the others figures.
        least: the least widths of the first columns, which are never wrapped, so that tables align.
    """
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    kept = [index for index in range(len(titles)) if any(row[index] for row in rows)]
    for index in kept:
        justify: JustifyMethod = "left" if index < names else "right"
        if index < len(least):
            table.add_column(titles[index], justify=justify, no_wrap=True, min_width=least[index])
        else:
            table.add_column(titles[index], justify=justify, overflow="fold")
    for row in rows:
        cells = (row[index] or "–" for index in kept)
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    console.print(table)
