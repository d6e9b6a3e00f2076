"""Everything that is to be known of one GPU, in eight minutes and without a network.

    python -m benchmarks.gpu [--minutes 8] [--quick] [--part KIND ...] [--python PATH] [--out DIR]

In the order of their worth: what the GPU does at most; our network in every TensorRT, in ONNX Runtime and
PyTorch beside every peer; peers compiled; which node costs what; both forms; every precision and layout,
each compared with the float64 reference; training; fresh processes; the peers' own exports in our engines.

The folder, benchmarks/results/GPU-NAME unless given, has after every part

results.json    times, as `relukan-bench merge` and `compare` read them; what was left out, and why
parity.json     errors of every engine, precision and layout
training.json, profile.json, threads.json
training_speed.json, .md, .svg: the paper's table, see benchmarks/training_speed.py

and at the end report.html. --python names another Python that measures the engines first, for half of the
time: a TensorRT and a PyTorch that do not fit into one.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from relukan_deploy.bench.environment import describe
from relukan_deploy.bench.sweep import Effort
from relukan_deploy.cli._command import run
from relukan_deploy.errors import InputError, MissingDependencyError, RelukanError
from relukan_deploy.gpu import Gpu, find_gpu, open_device

from ._gpu_machine import Machine
from ._gpu_parts import KINDS, Part, parts
from ._gpu_record import Record
from ._report import new_console

EFFORT = Effort(runs=3, rounds=7, burst=0.004, warm_up=0.03, most=2.0, longest=0.5)
QUICK = Effort(runs=1, rounds=3, burst=0.002, warm_up=0.01, most=0.3, longest=0.2)
OF_ENGINES = ("calls", "forms", "profile", "precisions", "startup", "empty", "threads")
LAST_SECONDS = 20.0  # kept for the report
LEAST_SECONDS = 5.0  # no part is begun with less


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, metavar="M", help="how long it may take (default 8)")
    parser.add_argument("--quick", action="store_true", help="fewer calls, for trying it out")
    parser.add_argument("--part", nargs="+", choices=KINDS, metavar="KIND", help=f"only these: {', '.join(KINDS)}")
    parser.add_argument("--python", metavar="PATH", help="another Python, which measures the engines first")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the results")
    raise SystemExit(run(parser, measure_all, arguments))


def measure_all(options: argparse.Namespace) -> None:
    if not options.minutes > LAST_SECONDS / 60:
        raise InputError(f"--minutes must be more than {LAST_SECONDS / 60:.1f}, got {options.minutes:g}")
    begin = time.monotonic()
    open_device()
    gpu = find_gpu()
    assert gpu is not None
    console = new_console()
    folder = options.out or Path(__file__).parent / "results" / slug(gpu)
    command = shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]])
    console.print(f"{command}\n{gpu.name}, compute capability {gpu.compute_capability}, CUDA {gpu.cuda}")
    end = begin + 60 * options.minutes - LAST_SECONDS
    with tempfile.TemporaryDirectory() as scratch:
        other = Path(scratch, "other")
        if options.python:
            elsewhere(console, options.python, other, minutes=options.minutes / 2, quick=options.quick)
        record = Record(folder, describe(command, threads=1), [other])
        machine = Machine(record, Path(scratch), QUICK if options.quick else EFFORT, say=lambda doing: None)
        wanted = [part for part in parts() if not options.part or part.kind in options.part]
        measure(console, machine, wanted, end)
    if record.is_empty:
        raise MissingDependencyError("Measuring on a GPU", "tensorrt", "trt")


def measure(console: Console, machine: Machine, wanted: Sequence[Part], end: float) -> None:
    """Measures one part after the other. When the time is up it ends the process, with whatever is found by then."""
    record, left = machine.record, list(wanted)

    def finish() -> None:
        for part in left:
            record.skip(part.name, "the time was up")
        record.finish(console)

    def stop() -> None:
        try:
            finish()
            sys.stdout.flush()
        finally:
            os._exit(0)  # whatever the main thread is waiting for: a compiler, say, or the GPU

    watchdog = threading.Timer(max(0.0, end - time.monotonic()), stop)
    watchdog.daemon = True
    watchdog.start()
    while left and end - time.monotonic() > LEAST_SECONDS:
        begin = time.monotonic()
        console.print(left[0].name, end=" … ")
        try:
            left[0].run(machine)
        except RelukanError as error:
            record.skip(left[0].name, str(error))
        except Exception as error:  # of PyTorch, TensorRT or the driver: the other parts may go on
            traceback.print_exc()
            record.skip(left[0].name, f"{type(error).__name__}: {error}")
        console.print(f"{time.monotonic() - begin:.1f} s")
        left.pop(0)
        record.write()
    watchdog.cancel()
    finish()


def elsewhere(console: Console, python: str, folder: Path, *, minutes: float, quick: bool) -> None:
    """Runs the parts about engines in another Python, into another folder."""
    command = [python, "-m", "benchmarks.gpu", "--out", str(folder), "--minutes", f"{minutes:g}", "--part", *OF_ENGINES]
    done = subprocess.run([*command, *(["--quick"] if quick else [])], check=False)
    if done.returncode:
        console.print(f"{python} left with exit code {done.returncode}")


def slug(gpu: Gpu) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")


if __name__ == "__main__":
    main()
