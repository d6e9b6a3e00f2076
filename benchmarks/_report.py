"""What the scripts share around their measurements: the header, the JSON file, how figures are written."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from relukan_deploy._files import replacing_file
from relukan_deploy.bench.environment import describe
from relukan_deploy.bench.timing import Timing

__all__ = ["command", "figures", "header", "micro", "new_console", "print_header", "saying", "write_json"]


def header(script: str, packages: Sequence[str] = ()) -> dict[str, Any]:
    """The machine, the versions and the command of this run.

    Args:
        script: its name.
        packages: of which versions are told, besides those that `relukan-bench` tells.
    """
    environment = dataclasses.asdict(describe(command(script), threads=1))
    environment["versions"] |= {name: importlib.metadata.version(name) for name in packages}
    return {"environment": environment}


def command(script: str) -> str:
    """What was typed."""
    return shlex.join(["python", "-m", f"benchmarks.{script}", *sys.argv[1:]])


def new_console() -> Console:
    """A terminal, or 120 columns of text where the output is a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


@contextlib.contextmanager
def saying() -> Iterator[Callable[[str], None]]:
    """What to call with what is being done. No spinner: its thread would be measured too."""
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        yield lambda doing: live.update(Text(doing, "dim"), refresh=True)


def print_header(console: Console, values: dict[str, Any]) -> None:
    found = values["environment"]
    console.print(f"[bold]{found['command']}[/bold]")
    console.print(f"{found['processor']}, {found['cores']} cores, {found['architecture']}, {found['system']}")
    console.print(", ".join(f"{name} {version}" for name, version in found["versions"].items()))


def write_json(path: Path, values: dict[str, Any]) -> None:
    with replacing_file(path) as written:
        written.write_text(json.dumps(_rounded(values), indent=1) + "\n", encoding="utf-8")


def figures(timing: Timing) -> dict[str, Any]:
    """A contender's times, as they are written: without those of each round."""
    return {name: value for name, value in dataclasses.asdict(timing).items() if name != "rounds"}


def micro(seconds: float) -> str:
    """Seconds as µs, with three digits."""
    value = seconds * 1e6
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _rounded(value: Any) -> Any:
    """The same value with floats cut to four digits: more would be noise, and long."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
