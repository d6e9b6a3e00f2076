"""What a call of our runner costs beside the bare `InferenceSession.run` of the same graph.

    python -m benchmarks.runner [--quick] [--json FILE]

ONNX Runtime on one CPU thread. `runner(x)` takes rows and gives rows: checks, domain guard, counters and
layout included. The bare run gets its input in the graph's layout, and gives an output in it. "in one
piece" is the runner without cutting large batches into parts that fit the cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from relukan_deploy.api import export
from relukan_deploy.bench.timing import measure, ratio, timed
from relukan_deploy.exporters.to_tensorrt import EngineOptions
from relukan_deploy.runtime import load
from relukan_deploy.runtime._session import SessionBackend, make_session
from relukan_deploy.runtime.ort_cpu import level_for
from relukan_deploy.runtime.runner import to_graph

from ._networks import trained_like
from ._report import figures, header, micro, new_console, print_header, write_json

NETWORKS = ((2, 5, 1), (4, 64, 64, 1), (64, 32, 10), (784, 64, 10))
BATCHES = (1, 8, 64, 1024, 8192)
RUNNER, BARE, WHOLE = "runner(x)", "InferenceSession.run", "in one piece"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runner", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short run, with wider spreads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    options = parser.parse_args(arguments)
    console = new_console()
    values = header("runner")
    print_header(console, values)
    table = Table("network", "batch", RUNNER, BARE, WHOLE, "runner / bare (80%)", title="Median of one call, µs")
    results = []
    for widths in NETWORKS:
        for batch in BATCHES:
            result = time_batch(widths, batch, rounds=9 if options.quick else 41)
            results.append(result)
            times = [micro(result["seconds"][name]["p50"]) for name in (RUNNER, BARE, WHOLE)]
            share = result["runner over bare"]
            share = f"{share['median']:.2f} ({share['low']:.2f}–{share['high']:.2f})"
            table.add_row(str(list(widths)), str(batch), *times, share)
    console.print(table)
    if options.json:
        write_json(options.json, {**values, "results": results})


def time_batch(widths: Sequence[int], batch: int, *, rounds: int) -> dict[str, Any]:
    x = np.random.default_rng(2).uniform(0, 1, (batch, widths[0])).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        options = EngineOptions(batch=(1, batch, batch))
        bundle = export(trained_like(tuple(widths)).spec(), Path(folder) / "bundle", engine=options)
    (artifact,) = bundle.manifest.artifacts
    model = bundle.contents[artifact.file]
    runner = load(bundle, backend="onnxruntime-cpu")

    def make(model: bytes) -> Any:
        return make_session(model, ["CPUExecutionProvider"], 1, level=level_for(artifact.form))

    session, whole = make(model), SessionBackend("onnxruntime-cpu", make, model, artifact, widths[-1])
    feed = {"x": to_graph(x, artifact.layout, artifact.precision)}
    turns = {
        RUNNER: timed(lambda: runner(x)),
        BARE: timed(lambda: session.run(None, feed)),
        WHOLE: timed(lambda: whole.run(x)),
    }
    timings = measure(turns, rounds=rounds)
    return {
        "network": list(widths),
        "batch": batch,
        "form": artifact.form,
        "runner over bare": dataclasses.asdict(ratio(timings[RUNNER], timings[BARE])),
        "seconds": {name: figures(timing) for name, timing in timings.items()},
    }


if __name__ == "__main__":
    main()
