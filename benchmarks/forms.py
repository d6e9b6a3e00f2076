"""Every form and layout of the four-operator graph, timed and checked: what the exporter and the runtime chose by.

    python -m benchmarks.forms [--quick] [--json FILE]

ONNX Runtime on one CPU thread. Times are those of float32; errors are given in float32 and float16,
as the largest difference from the float64 reference over the largest answer. "extended" is ONNX
Runtime's rewriting one step short of all, without its blocked layout.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from relukan_deploy.bench.subjects.bound import bound_calls
from relukan_deploy.bench.timing import Turn, measure, ratio, timed
from relukan_deploy.exporters.to_onnx import to_onnx
from relukan_deploy.lowering import candidate_forms
from relukan_deploy.runtime._session import Level, make_session
from relukan_deploy.runtime.ort_cpu import level_for
from relukan_deploy.spec import Form, KanSpec, Layout, Precision

from ._networks import trained_like
from ._report import figures, header, micro, new_console, print_header, write_json

NETWORKS = ((2, 5, 1), (4, 64, 64, 1), (64, 32, 10), (784, 64, 10))
BATCHES = (1, 16, 64, 256, 1024)
LAYOUTS: tuple[Layout, ...] = ("batch-last", "batch-major")
FORMS: tuple[Form, ...] = ("direct", "quadratic")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
VARIANTS: dict[str, tuple[Layout, Form, Level]] = {
    **{f"{layout} {form}": (layout, form, "ORT_ENABLE_ALL") for layout, form in itertools.product(LAYOUTS, FORMS)},
    **{f"batch-last {form}, extended": ("batch-last", form, "ORT_ENABLE_EXTENDED") for form in FORMS},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forms", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short run, with wider spreads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    options = parser.parse_args(arguments)
    console = new_console()
    values = header("forms")
    print_header(console, values)
    errors, results = [], []
    for widths in NETWORKS:
        spec = trained_like(widths).spec()
        errors.append({"network": list(widths), "errors": measure_errors(spec)})
        results += [time_batch(spec, batch, quick=options.quick) for batch in BATCHES]
    print_errors(console, errors)
    print_times(console, results)
    if options.json:
        write_json(options.json, {**values, "errors": errors, "results": results})


def prepared(x: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """x ``(batch, in)`` as the graph takes it."""
    if layout == "batch-last":
        return np.ascontiguousarray(x.T)[np.newaxis, :, np.newaxis, :]  # (1, in, 1, batch)
    return np.ascontiguousarray(x)[:, :, np.newaxis]  # (batch, in, 1)


def measure_errors(spec: KanSpec) -> dict[str, dict[str, float]]:
    """By precision and variant: the largest difference from the reference over the largest answer.

    Inputs are rounded to the precision first, so that it is the graph's error and not the input's.
    """
    found: dict[str, dict[str, float]] = {}
    for precision in PRECISIONS:
        dtype = np.float16 if precision == "fp16" else np.float32
        x = np.random.default_rng(1).uniform(-0.2, 1.2, (512, spec.in_features)).astype(dtype)
        expected = spec.evaluate(x)
        found[precision] = {}
        for name, (layout, form, level) in VARIANTS.items():
            model = to_onnx(spec, layout=layout, form=form, precision=precision)
            y = (
                make_session(model, ["CPUExecutionProvider"], 1, level=level)
                .run(None, {"x": prepared(x, layout)})[0]
                .astype(np.float64)
            )
            y = y[0, :, 0].T if layout == "batch-last" else y[:, :, 0]  # (batch, out)
            found[precision][name] = float(np.abs(y - expected).max() / np.abs(expected).max())
    return found


def time_batch(spec: KanSpec, batch: int, *, quick: bool) -> dict[str, Any]:
    x = np.random.default_rng(2).uniform(0, 1, (batch, spec.in_features)).astype(np.float32)
    turns = {name: graph_turn(spec, x, *variant) for name, variant in VARIANTS.items()}
    timings = measure(turns, rounds=9 if quick else 41)
    form = candidate_forms(spec, layout="batch-last", precision="fp32", batch=batch)[0]
    chosen, *others = sorted(
        (name for name, variant in VARIANTS.items() if variant[0] == "batch-last"),
        key=lambda name: VARIANTS[name][1:] != (form, level_for(form)),
    )
    return {
        "network": list(spec.widths),
        "batch": batch,
        "chosen": chosen,
        "others over chosen": {name: dataclasses.asdict(ratio(timings[name], timings[chosen])) for name in others},
        "seconds": {name: figures(timing) for name, timing in timings.items()},
    }


def graph_turn(spec: KanSpec, x: NDArray[np.float32], layout: Layout, form: Form, level: Level) -> Turn:
    model = to_onnx(spec, layout=layout, form=form)
    outputs = (1, spec.out_features, 1, len(x)) if layout == "batch-last" else (len(x), spec.out_features, 1)
    session = make_session(model, ["CPUExecutionProvider"], 1, level=level)
    return timed(*bound_calls(session, [prepared(x, layout)], outputs))


def print_errors(console: Console, errors: Sequence[dict[str, Any]]) -> None:
    table = Table(title="Largest difference from the float64 reference / largest answer")
    for column in ("network", "precision", *VARIANTS):
        table.add_column(column, justify="right")
    for entry in errors:
        for precision, by_variant in entry["errors"].items():
            table.add_row(str(entry["network"]), precision, *(f"{by_variant[name]:.1e}" for name in VARIANTS))
    console.print(table)


def print_times(console: Console, results: Sequence[dict[str, Any]]) -> None:
    table = Table(title="Median time of one run in float32, µs (spread); * what is chosen for batch-last")
    for column in ("network", "batch", *VARIANTS):
        table.add_column(column, justify="right")
    for result in results:
        cells = []
        for name in VARIANTS:
            timing = result["seconds"][name]
            mark = "*" if name == result["chosen"] else ""
            cells.append(f"{micro(timing['p50'])}{mark} ({timing['spread']:.0%})")
        table.add_row(str(result["network"]), str(result["batch"]), *cells)
    console.print(table)


if __name__ == "__main__":
    main()
