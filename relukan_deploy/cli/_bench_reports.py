"""What relukan-bench prints and writes, and whether it can be written: known before anything is measured."""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import InputError, MissingDependencyError
from ._command import console, result_console

if TYPE_CHECKING:
    from ..bench.compare import Comparison
    from ..bench.results import Results

__all__ = ["check_reports", "print_comparison", "print_out", "print_reports"]


def check_reports(arguments: argparse.Namespace) -> None:
    """Refuses files that could not be written in the end.

    Raises:
        InputError: a file has another suffix, is a folder, or is in one that is not there or cannot be written.
        MissingDependencyError: what draws it is not installed.
    """
    for option, suffixes, purpose, package in (
        ("html", (".html", ".htm"), "A page", "plotly"),
        ("plot", (".png",), "A plot", "matplotlib"),
    ):
        path: Path | None = getattr(arguments, option)
        if path is None:
            continue
        if path.suffix.lower() not in suffixes:
            raise InputError(f"--{option} {path} must end in {suffixes[0]}")
        if path.is_dir():
            raise InputError(f"--{option} {path} is a folder, expected the name of a file")
        if not path.parent.is_dir():
            raise InputError(f"--{option} {path}: there is no folder {path.parent}, make it first")
        if not os.access(path.resolve().parent, os.W_OK):
            raise InputError(f"--{option} {path}: the folder {path.parent} cannot be written")
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(purpose, package, "bench")


def print_reports(arguments: argparse.Namespace, results: Results) -> None:
    """Everything that was asked for; standard output first, since a file may still fail."""
    from ..bench.report.terminal import print_results
    from ..bench.stored import to_json

    if arguments.markdown:
        from ..bench.report.markdown import to_markdown

        print_out(to_markdown(results))
    else:
        print_results(result_console(json=arguments.json), results)
    if arguments.json:
        print_out(to_json(results))
    if arguments.html:
        from ..bench.report.html import write_page

        write_page(results, arguments.html)
        console.print(f"→ {arguments.html}", markup=False, soft_wrap=True)
    if arguments.plot:
        from ..bench.report.plot import write_plot

        write_plot(results, arguments.plot)
        console.print(f"→ {arguments.plot}", markup=False, soft_wrap=True)


def print_comparison(screen: Console, found: Comparison) -> None:
    """What differs by more than noise, and what may be to blame beside the program."""
    from ..bench.report.words import duration

    for warning in found.warnings:
        screen.print(Text(f"Careful: {warning}", "yellow"))
    for name, several in (("old", found.only_old), ("new", found.only_new)):
        for what in several:
            screen.print(Text(f"In the {name} file alone: {what}", "dim"))
    beyond = sorted((each for each in found.differences if each.is_beyond_noise), key=lambda each: -each.ratio)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
    for title in ("old", "new", "new / old", "95 %"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in beyond:
        interval = f"{each.low:.2f}–{each.high:.2f}"
        colour = "red" if each.is_regression else "green" if each.ratio < 1 else "yellow"
        table.add_row(
            Text(each.name), duration(each.old), duration(each.new), Text(f"{each.ratio:.2f}", colour), interval
        )
    if beyond:
        screen.print(table)
    count = len(found.differences)
    usual = sorted(each.high / each.ratio - 1 for each in found.differences)[count // 2]
    said = f"{len(beyond) or 'None'} of {count} times {'differ' if len(beyond) > 1 else 'differs'}"
    screen.print(f"{said} by more than noise, which here is about {usual:.0%}.")


def print_out(text: str) -> None:
    """On standard output as UTF-8, all of it; what cannot be written is an error now, not at the end."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    print(text, flush=True)
