"""The tables on a terminal: what they hold, and that they fit."""

from __future__ import annotations

import dataclasses
import io
import re

import example_results as examples
import pytest
from rich.console import Console

from relukan_deploy.bench.report import words
from relukan_deploy.bench.report.terminal import print_results
from relukan_deploy.bench.results import Results

EVERY = {
    "cpu": examples.cpu_results(),
    "gpu": examples.gpu_results(),
    "small": examples.small_results(),
    "several": examples.several_results(),
    "hostile": examples.hostile_results(),
    "nothing": dataclasses.replace(examples.cpu_results(), series=(), startups=(), accuracies=()),
}


def printed(results: Results, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, color_system=None)
    print_results(console, results)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("width", [76, 100])
@pytest.mark.parametrize("name", EVERY)
def test_it_fits(name: str, width: int) -> None:
    lines = printed(EVERY[name], width).splitlines()
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if "…" in line]  # what rich cuts ends so


@pytest.mark.parametrize("width", [76, 100, 200])
def test_every_time_of_every_network_is_there(width: int) -> None:
    text = printed(EVERY["cpu"], width)
    for series in EVERY["cpu"].series:
        for point in series.points:
            if point.timing:
                assert re.search(rf"(?<!\d){re.escape(words.microseconds(point.timing))}(?!\d)", text), point


def test_ours_are_in_full() -> None:
    text = printed(EVERY["gpu"])
    for series in EVERY["gpu"].series:
        if series.contender.network != "this network":
            continue
        head = text.index(f"\n{series.contender.name}\n")
        rows = text[head:].split("\n\n")[0].splitlines()[3:]
        for row, point in zip(rows, series.points, strict=True):
            assert point.timing is not None
            figures = (
                words.duration(point.timing),
                words.duration(point.timing.p99),
                words.mean(point.timing),
                words.count(point.batch / point.timing.p50),
                words.limit(point),
                words.split(point),
            )
            for figure in figures:
                assert figure in row
            assert row.split()[0] == str(point.batch)


def test_ratios_stand_below_the_times() -> None:
    lines = printed(EVERY["cpu"]).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("pykan"))
    times, ratios = lines[at + 1 : at + 3]
    assert times.split()[0] == "torch"
    assert re.fullmatch(r" +(\d+ × +){6}\d+ × *", ratios)


def test_columns_without_figures_are_left_out() -> None:
    assert "to GPU" not in printed(EVERY["cpu"])
    assert "to GPU" in printed(EVERY["gpu"])
    assert "times the limit" in printed(EVERY["cpu"])


def test_unsteady_times_have_their_footnote_and_steady_ones_none() -> None:
    assert words.UNSTEADY_NOTE in " ".join(printed(EVERY["cpu"]).split())
    assert words.UNSTEADY not in printed(EVERY["small"])


def test_it_says_what_was_not_measured_and_why() -> None:
    text = " ".join(printed(EVERY["cpu"]).split())
    assert "relu-kan: onnxruntime-cpu: its export has a fixed batch size" in text
    assert "pykan: torch, batch 16384 and 65536: a call with 16384 rows takes 1.4 s, more than 1" in text


def test_it_says_where_and_how_it_was_measured() -> None:
    text = printed(EVERY["gpu"])
    assert "Environment 1" in text
    assert "Environment 2" in text
    assert "GPU 1980 → 1755 MHz" in text
    assert "Command: relukan-bench model --python /opt/rtx/bin/python" in text


def test_names_are_not_markup() -> None:
    text = " ".join(printed(EVERY["hostile"], 200).split())
    assert "[bold]pykan[/bold] | `x` *y* _z_" in text
    assert "[red]because[/red] <i>so</i> \\[x]" in text
    assert f"relukan-bench '{examples.HOSTILE}' [/]" in text
