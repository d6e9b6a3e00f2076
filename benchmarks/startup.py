"""What a user waits for before the first answer: importing, loading a bundle, exporting one.

    python -m benchmarks.startup [--runs N] [--json FILE]

Every run is a process of its own, on the CPU; files are in the disk cache after the first, which
is not counted. The exported network is [64, 32, 10] with G=5 and order 3.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from relukan_deploy.bench.startup import first_answer

from ._report import header, new_console, print_header, write_json

WIDTHS = (64, 32, 10)
PACKAGES = ("relukan-deploy", "onnxruntime", "torch", "numpy")

# Prints the seconds of the import alone.
_IMPORT = """
from time import perf_counter
begin = perf_counter()
import relukan_deploy
print(perf_counter() - begin)
"""


@dataclasses.dataclass(frozen=True)
class Wait:
    """Seconds of every run, and the limit on their median (None: only for information)."""

    name: str
    seconds: tuple[float, ...]
    limit: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="processes of each kind (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error(f"--runs must be at least 1, got {options.runs}")
    console = new_console()
    values = header("startup", PACKAGES)
    print_header(console, values)
    waits = importing(options.runs)
    try:
        with tempfile.TemporaryDirectory() as folder:
            waits += deploying(Path(folder), options.runs)
    finally:
        print_waits(console, waits)  # also when a command failed: what was measured stays measured
    if options.json:
        results = [{**dataclasses.asdict(wait), "median": wait.median} for wait in waits]
        write_json(options.json, {**values, "network": list(WIDTHS), "runs": options.runs, "results": results})


def importing(runs: int) -> list[Wait]:
    """`import relukan_deploy`, and how much longer that process lives than one that imports nothing."""
    bare, whole, inside = [], [], []
    for _ in range(runs + 1):  # taking turns, so that both see the same machine
        bare.append(run(["-c", "pass"])[0])
        wall, printed = run(["-c", _IMPORT])
        whole.append(wall)
        inside.append(float(printed))
    beyond = tuple(a - b for a, b in zip(whole[1:], bare[1:], strict=True))
    return [
        Wait("bare interpreter, start to exit", tuple(bare[1:])),
        Wait("import relukan_deploy, within the process", tuple(inside[1:])),
        Wait("import relukan_deploy, beyond a bare interpreter", beyond, 0.050),
    ]


def deploying(folder: Path, runs: int) -> list[Wait]:
    """`relukan-export --trt`, then loading what it wrote and a first answer."""
    from relukan_deploy import save

    from ._networks import trained_like

    model, bundle = folder / "model.pt", folder / "bundle"
    save(trained_like(WIDTHS), model)
    command = [str(Path(sys.executable).with_name("relukan-export")), str(model), "--trt", "-o", str(bundle)]

    def export() -> float:
        shutil.rmtree(bundle, ignore_errors=True)
        return wall_clock(command)[0]

    exporting = repeated(export, runs)
    answers = [first_answer(bundle, "onnxruntime-cpu") for _ in range(runs + 1)][1:]
    within = tuple(each.import_seconds + each.load_seconds + each.first_seconds for each in answers)
    return [
        Wait("relukan-export --trt, verification included", exporting, 5.0),
        Wait("load and first answer, within the process", within, 0.300),
        Wait("load and first answer, process included", tuple(each.process_seconds for each in answers)),
    ]


def repeated(call: Callable[[], float], runs: int) -> tuple[float, ...]:
    return tuple(call() for _ in range(runs + 1))[1:]


def run(arguments: Sequence[str]) -> tuple[float, str]:
    """A fresh interpreter: its wall clock in seconds, and what it printed."""
    return wall_clock([sys.executable, *arguments])


def wall_clock(command: Sequence[str]) -> tuple[float, str]:
    """Runs a command on the CPU: seconds from start to exit, and its standard output.

    Raises:
        SystemExit: it failed; its own message is passed on.
    """
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    taken = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{Path(command[0]).name} left with exit code {done.returncode}:\n{done.stderr.strip()}")
    return taken, done.stdout


def print_waits(console: Console, waits: Sequence[Wait]) -> None:
    table = Table("", title="Milliseconds; every run a fresh process")
    for column in ("median", "fastest", "slowest", "limit"):
        table.add_column(column, justify="right")
    for wait in waits:
        median = f"{wait.median * 1e3:.1f}"
        if wait.limit is not None:
            median = f"[{'green' if wait.median <= wait.limit else 'red'}]{median}[/]"
        limit = "" if wait.limit is None else f"{wait.limit * 1e3:.0f}"
        table.add_row(wait.name, median, f"{min(wait.seconds) * 1e3:.1f}", f"{max(wait.seconds) * 1e3:.1f}", limit)
    console.print(table)


if __name__ == "__main__":
    main()
