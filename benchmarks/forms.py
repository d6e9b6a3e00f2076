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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from relukan_deploy.bench.subjects import make_inputs
from relukan_deploy.bench.subjects.bound import bound_calls
from relukan_deploy.bench.timing import Turn, measure, ratio, timed
from relukan_deploy.exporters.to_onnx import to_onnx
from relukan_deploy.importers import efficient_kan
from relukan_deploy.lowering import candidate_forms
from relukan_deploy.runtime._session import Level, make_session
from relukan_deploy.runtime.ort_cpu import level_for
from relukan_deploy.runtime.runner import from_graph, to_graph
from relukan_deploy.spec import Form, KanSpec, Layout, Precision

from ._networks import trained_like
from ._report import figures, header, micro, new_console, print_header, write_json
from ._spline_networks import trained

NETWORKS = ((2, 5, 1), (4, 64, 64, 1), (64, 32, 10), (784, 64, 10))
SPLINES = ((2, 5, 1), (4, 64, 64, 1), (64, 32, 10))
BATCHES = (1, 2, 16, 64, 256, 1024)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
LEVELS: tuple[Level, ...] = ("ORT_ENABLE_ALL", "ORT_ENABLE_EXTENDED")

Variant = tuple[Layout, Form, Level]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forms", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short run, with wider spreads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    options = parser.parse_args(arguments)
    console = new_console()
    values = header("forms")
    print_header(console, values)
    networks = [("bumps", trained_like(widths).spec()) for widths in NETWORKS]
    networks += [
        ("splines", efficient_kan.load(trained("efficient-kan", widths, "random").state)) for widths in SPLINES
    ]
    errors, results = [], []
    for kind, spec in networks:
        network = {"network": list(spec.widths), "of": kind}
        errors.append({**network, "errors": measure_errors(spec)})
        found = [{**network, **time_batch(spec, batch, quick=options.quick)} for batch in BATCHES]
        print_network(console, errors[-1], found)
        results += found
    if options.json:
        write_json(options.json, {**values, "errors": errors, "results": results})


def variants(spec: KanSpec) -> dict[str, Variant]:
    """By name, every way to write and to run the network."""
    splines = "-" in candidate_forms(spec, layout="batch-last", precision="fp32", batch=1)[0]
    forms: list[Form] = [form for form in get_args(Form) if ("-" in form) == splines]
    found: dict[str, Variant] = {}
    for form, level in itertools.product(forms, LEVELS):
        found[f"batch-last {form}{', extended' * (level != LEVELS[0])}"] = ("batch-last", form, level)
    for form in forms:
        if not form.startswith("grouped"):  # it is there for the other layout
            found[f"batch-major {form}"] = ("batch-major", form, LEVELS[0])
    return found


def measure_errors(spec: KanSpec) -> dict[str, dict[str, float]]:
    """By precision and variant: the largest difference from the reference over the largest answer.

    Inputs are rounded to the precision first, so that it is the graph's error and not the input's.
    """
    low, high = spec.domain.T
    margin = 0.1 * (high - low)
    rows = np.random.default_rng(1).uniform(low - margin, high + margin, (512, spec.in_features))
    found: dict[str, dict[str, float]] = {}
    for precision in PRECISIONS:
        x = rows.astype(np.float16 if precision == "fp16" else np.float32).astype(np.float32)
        expected = spec.evaluate(x)
        found[precision] = {}
        for name, (layout, form, level) in variants(spec).items():
            model = to_onnx(spec, layout=layout, form=form, precision=precision)
            session = make_session(model, ["CPUExecutionProvider"], 1, level=level)
            y = from_graph(session.run(None, {"x": to_graph(x, layout, precision)})[0], layout, precision)
            found[precision][name] = float(np.abs(y - expected).max() / np.abs(expected).max())
    return found


def time_batch(spec: KanSpec, batch: int, *, quick: bool) -> dict[str, Any]:
    (x,) = make_inputs(spec.domain, batch, most=1)
    ways = variants(spec)
    turns = {name: graph_turn(spec, x, *variant) for name, variant in ways.items()}
    timings = measure(turns, rounds=9 if quick else 41)
    form = candidate_forms(spec, layout="batch-last", precision="fp32", batch=batch)[0]
    chosen, *others = sorted(
        (name for name, variant in ways.items() if variant[0] == "batch-last"),
        key=lambda name: ways[name][1:] != (form, level_for(form)),
    )
    return {
        "batch": batch,
        "chosen": chosen,
        "others over chosen": {name: dataclasses.asdict(ratio(timings[name], timings[chosen])) for name in others},
        "seconds": {name: figures(timing) for name, timing in timings.items()},
    }


def graph_turn(spec: KanSpec, x: NDArray[np.float32], layout: Layout, form: Form, level: Level) -> Turn:
    model = to_onnx(spec, layout=layout, form=form)
    outputs = (1, spec.out_features, 1, len(x)) if layout == "batch-last" else (len(x), spec.out_features, 1)
    session = make_session(model, ["CPUExecutionProvider"], 1, level=level)
    return timed(*bound_calls(session, [to_graph(x, layout, "fp32")], outputs))


def print_network(console: Console, errors: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    table = Table(
        title=f"{errors['network']} of {errors['of']}: median time in float32, µs (spread), * what is tried first; "
        "largest error over the largest answer"
    )
    table.add_column("")
    for result in results:
        table.add_column(f"batch {result['batch']}", justify="right")
    for precision in PRECISIONS:
        table.add_column(precision, justify="right")
    for name in errors["errors"]["fp32"]:
        timings = [result["seconds"][name] for result in results]
        marks = ["*" if result["chosen"] == name else "" for result in results]
        cells = [
            f"{micro(timing['p50'])}{mark} ({timing['spread']:.0%})"
            for timing, mark in zip(timings, marks, strict=True)
        ]
        table.add_row(name, *cells, *(f"{errors['errors'][precision][name]:.1e}" for precision in PRECISIONS))
    console.print(table)


if __name__ == "__main__":
    main()
