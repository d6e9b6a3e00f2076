"""The table for a README: its cells, and that names stay text."""

from __future__ import annotations

import statistics

import example_results as examples
import pytest
from markdown_it import MarkdownIt

from relukan_deploy.bench.report.markdown import to_markdown
from relukan_deploy.bench.results import Point, Results, Series

UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


def cells(text: str) -> list[list[str]]:
    """The text of every table's cells, as GitHub's parser has them."""
    rows: list[list[str]] = []
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and token.level == 4:
            rows[-1].append("".join(child.content for child in token.children or ()))
    return rows


def read(cell: str) -> float:
    number, unit = cell.removeprefix("≈").split(" (")[0].split(" ")
    return float(number) * UNITS[unit]


def points(series: Series) -> dict[int, Point]:
    return {point.batch: point for point in series.points}


def test_every_time_is_the_one_that_was_measured() -> None:
    results = examples.cpu_results()
    head, *rows = cells(to_markdown(results))
    batches = [int(title.removeprefix("batch ")) for title in head[2:]]
    assert batches == list(examples.BATCHES)
    by_name = {(row[0], row[1]): row[2:] for row in rows}
    assert len(by_name) == len(results.series)
    for series in results.series:
        row = by_name[series.contender.network, series.contender.way]
        for batch, cell in zip(batches, row, strict=True):
            timing = points(series)[batch].timing
            assert (cell == "–") == (timing is None)
            if timing:
                assert read(cell) == pytest.approx(timing.p50, rel=0.006)
                assert cell.startswith("≈") == (timing.spread > 0.25)


def test_every_ratio_is_the_median_over_the_rounds_to_the_fastest_of_ours() -> None:
    results = examples.cpu_results()
    _, *rows = cells(to_markdown(results))
    by_name = {(row[0], row[1]): row[2:] for row in rows}
    checked = 0
    for series in results.series:
        ours = [
            points(each)
            for each in results.series
            if each.contender.network == "this network" and each.contender.data == series.contender.data
        ]
        for index, point in enumerate(series.points):
            if point.timing is None:
                continue
            timings = [each[point.batch].timing for each in ours]
            best = min((timing for timing in timings if timing), key=lambda timing: timing.p50)
            cell = by_name[series.contender.network, series.contender.way][index]
            if best == point.timing:
                assert "(" not in cell
                continue
            above, below = ([seconds for run in timing.rounds for seconds in run] for timing in (point.timing, best))
            expected = statistics.median(a / b for a, b in zip(above, below, strict=True))
            ratio = float(cell.partition(" (")[2].removesuffix(" ×)"))
            assert ratio == pytest.approx(expected, rel=0.06)
            checked += 1
    assert checked > 150


def test_the_caption_says_where_and_how() -> None:
    text = to_markdown(examples.cpu_results())
    assert "Measured on Example 9000 48-Core Processor, 2 cores" in text
    assert "; 1 thread; python 3.11.9," in text
    assert text.endswith(
        "with `relukan-bench model --against pykan,efficient-kan,fast-kan,relu-kan,mlp --html report.html`.\n"
    )


@pytest.mark.parametrize(("make", "tables"), [(examples.small_results, 1), (examples.several_results, 4)])
def test_there_is_a_table_for_each_shape_and_machine(make: object, tables: int) -> None:
    text = to_markdown(make())  # type: ignore[operator]
    assert text.count("| --- |") == tables
    assert text.count("**2 → 5 → 1, Other 7 Processor**") == (tables == 4)


def test_names_stay_text() -> None:
    results: Results = examples.hostile_results()
    text = to_markdown(results)
    assert {row[0] for row in cells(text)[1:]} == {series.contender.network for series in results.series}
    tokens = [
        child.type for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text) for child in token.children or ()
    ]
    assert "html_inline" not in tokens
    assert f"`relukan-bench '{examples.HOSTILE}' [/]`" in text


def test_a_command_with_backticks_is_still_one_piece_of_code() -> None:
    results = examples.hostile_results()
    odd = "relukan-bench `x` ``y``"
    environment = examples.environment(command=odd)
    text = to_markdown(Results(results.bundle, (environment,), results.series))
    found = [
        child.content
        for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text)
        for child in token.children or ()
        if child.type == "code_inline"
    ]
    assert found == [odd]
