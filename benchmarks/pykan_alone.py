"""pykan against the four-operator graph in a process that runs nothing else, one for each batch.

    python -m benchmarks.pykan_alone [--quick] [--json FILE]

What a process did before decides how its allocator treats pykan's large temporaries: glibc hands
memory back to the system after every call until larger blocks have been freed once, and each call
then pays for it in page faults. `inference_cpu` runs everything in one process and so measures the
better case for pykan; this one measures a service that only ever sees one batch size.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from relukan_deploy.bench.timing import measure, ratio
from relukan_deploy.exporters.to_onnx import to_onnx
from relukan_deploy.lowering import choose_form

from ._networks import trained_like
from ._report import header, micro, new_console, print_header, write_json
from .inference_cpu import BATCHES, NETWORKS, PACKAGES, graph_call, pykan


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pykan_alone", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short run, with wider spreads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    parser.add_argument("--point", nargs=2, metavar=("WIDTHS", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.point:
        widths = tuple(map(int, options.point[0].split(",")))
        print(json.dumps(measure_point(widths, int(options.point[1]), 9 if options.quick else 41)))
        return
    console = new_console()
    values = header("pykan_alone", PACKAGES)
    print_header(console, values)
    results = [in_a_process(widths, batch, options.quick) for widths in NETWORKS for batch in BATCHES]
    table = Table(title="Median time of one call, µs, and their ratio (80% of the rounds); target 30, aim 60")
    for column in ("network", "batch", "four-op", "pykan", "ratio"):
        table.add_column(column, justify="right")
    for result in results:
        found = result["ratio"]
        table.add_row(
            str(result["network"]),
            str(result["batch"]),
            micro(result["seconds"]["four-op"]["median"]),
            micro(result["seconds"]["pykan"]["median"]),
            f"{found['median']:.0f} ({found['low']:.0f}–{found['high']:.0f})",
        )
    console.print(table)
    if options.json:
        write_json(options.json, {**values, "threads": 1, "results": results})


def in_a_process(widths: Sequence[int], batch: int, quick: bool) -> dict[str, Any]:
    point = ["--point", ",".join(map(str, widths)), str(batch), *(["--quick"] if quick else [])]
    command = [sys.executable, "-m", "benchmarks.pykan_alone", *point]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure_point(widths: tuple[int, ...], batch: int, rounds: int) -> dict[str, Any]:
    """Both on one batch of inputs in [0, 1], interleaved."""
    torch.set_num_threads(1)
    spec = trained_like(widths).spec()
    form = choose_form(spec, layout="batch-last", precision="fp32", batch=batch)
    x = np.random.default_rng(2).uniform(0, 1, (batch, widths[0])).astype(np.float32)
    module, tensor = pykan(widths), torch.from_numpy(x)
    calls = {"four-op": graph_call(to_onnx(spec, form=form), form, x, widths[-1]), "pykan": lambda: module(tensor)}
    with torch.no_grad():
        timings = measure(calls, rounds=rounds)
    return {
        "network": list(widths),
        "batch": batch,
        "form": form,
        "seconds": {name: timing.summary() for name, timing in timings.items()},
        "ratio": dataclasses.asdict(ratio(timings["pykan"], timings["four-op"])),
    }


if __name__ == "__main__":
    main()
