"""Inference on one CPU thread: the four-operator graph against other KANs of the same size, and an MLP.

    python -m benchmarks.inference_cpu [--quick] [--json FILE]

Nothing is timed before it is shown to compute what it should: the graphs are compared with the
float64 reference, and every exported peer with itself in PyTorch.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from relukan_deploy.api import export
from relukan_deploy.bench.peers.efficient_kan import EfficientKAN
from relukan_deploy.bench.peers.mlp import mlp
from relukan_deploy.bench.peers.relu_kan import ReferenceReLUKAN
from relukan_deploy.bench.timing import Ratio, Timing, measure, ratio
from relukan_deploy.exporters.to_onnx import count_operators, to_onnx
from relukan_deploy.exporters.to_tensorrt import EngineOptions
from relukan_deploy.lowering import choose_form
from relukan_deploy.runtime import load
from relukan_deploy.runtime._session import make_session
from relukan_deploy.runtime.ort_cpu import level_for
from relukan_deploy.spec import Form, KanSpec

from ._networks import trained_like
from ._report import bound_call, header, micro, new_console, print_header, write_json

FloatArray = NDArray[np.floating[Any]]

NETWORKS = ((2, 5, 1), (4, 64, 64, 1))
BATCHES = (1, 64, 1024)
GRID, ORDER = 5, 3
FORMS: tuple[Form, ...] = ("direct", "quadratic")
# Largest difference, as a part of the largest answer, at which a contender still computes its function.
TOLERANCE = 1e-4
PACKAGES = ("torch", "onnxruntime", "onnx", "onnxscript", "pykan", "numpy")
PYKAN, REFERENCE = "pykan", "relu_kan"
EFFICIENT, EFFICIENT_ONNX = "efficient-kan", "efficient-kan ONNX"
MLP, MLP_ONNX = "MLP", "MLP ONNX"
RUNNER = "runner(x)"
PEERS = (PYKAN, REFERENCE, EFFICIENT, EFFICIENT_ONNX, MLP, MLP_ONNX)


@dataclasses.dataclass(frozen=True)
class Network:
    """One shape of network: ours and every peer, ready to run on any batch."""

    widths: tuple[int, ...]
    spec: KanSpec
    graphs: dict[Form, bytes]
    modules: dict[str, torch.nn.Module]
    exported: dict[str, bytes]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference_cpu", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short run, with wider spreads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = new_console()
    values = header("inference_cpu", PACKAGES)
    print_header(console, values)
    results = []
    for widths in NETWORKS:
        network = build(widths)
        values.setdefault("nodes", {})[str(list(widths))] = node_counts(network)
        differences = check(network)
        for name, difference in differences.items():
            console.print(f"{list(widths)} {name}: largest difference / largest answer {difference:.1e}")
        values.setdefault("differences", {})[str(list(widths))] = differences
        for batch in BATCHES:
            timings = time_batch(network, batch, quick=options.quick)
            results.append(row(network, batch, timings))
    print_results(console, results)
    if options.json:
        write_json(options.json, {**values, "grid": GRID, "order": ORDER, "threads": 1, "results": results})


def build(widths: tuple[int, ...]) -> Network:
    """Every contender of one shape; the reference ReLU-KAN has the same weights as ours."""
    model = trained_like(widths, GRID, ORDER)
    reference = ReferenceReLUKAN(widths, grid=GRID, order=ORDER)
    copied = {}
    for index, layer in enumerate(model.layers):
        state = layer.state_dict()
        out_features, in_features, bumps = state["weight"].shape
        prefix = f"rk_layers.{index}"
        copied[f"{prefix}.phase_low"] = state["starts"]
        copied[f"{prefix}.phase_height"] = state["ends"]
        copied[f"{prefix}.equal_size_conv.weight"] = state["weight"].reshape(out_features, 1, bumps, in_features)
        copied[f"{prefix}.equal_size_conv.bias"] = state["bias"]
    reference.load_state_dict(copied)
    spec = model.spec()
    modules = {
        PYKAN: pykan(widths),
        REFERENCE: reference.eval(),
        EFFICIENT: EfficientKAN(widths, grid=GRID, order=ORDER).eval(),
        MLP: mlp(widths).eval(),
    }
    return Network(
        widths=widths,
        spec=spec,
        graphs={form: to_onnx(spec, layout="batch-last", form=form) for form in FORMS},
        modules=modules,
        exported={
            EFFICIENT_ONNX: torch_export(modules[EFFICIENT], widths),
            MLP_ONNX: torch_export(modules[MLP], widths),
        },
    )


def pykan(widths: Sequence[int]) -> torch.nn.Module:
    """pykan at its fastest: without the symbolic branch, without keeping activations."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from kan import KAN

        # It changes the list it is given, and writes to its ckpt_path even where nothing is saved.
        with tempfile.TemporaryDirectory() as folder:
            model = KAN(width=list(widths), grid=GRID, k=ORDER, seed=0, auto_save=False, ckpt_path=folder)
    fast: torch.nn.Module = model.speed().eval()
    return fast


def torch_export(module: torch.nn.Module, widths: Sequence[int]) -> bytes:
    """The module as PyTorch's own exporter writes it, with a free batch size."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (torch.zeros(2, widths[0]),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["x"],
            output_names=["y"],
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export(dynamo=True) gave no program; this needs PyTorch 2.5 or later")
        path = Path(folder) / "peer.onnx"
        program.save(path, external_data=False)
        return path.read_bytes()


def node_counts(network: Network) -> dict[str, int]:
    """Nodes of each graph."""
    import onnx

    counts = {f"four-op {form}": sum(count_operators(graph).values()) for form, graph in network.graphs.items()}
    for name, data in network.exported.items():
        counts[name] = len(onnx.load_from_string(data).graph.node)
    return counts


def check(network: Network) -> dict[str, float]:
    """Largest difference of each contender from what it should compute, as a part of the largest answer.

    Raises:
        SystemExit: one of them is above `TOLERANCE`; its time would mean nothing.
    """
    x = np.random.default_rng(1).uniform(-0.2, 1.2, (257, network.widths[0])).astype(np.float32)
    y = network.spec.evaluate(x)
    found = {
        f"four-op {form} and the float64 reference": difference(
            graph_call(graph, form, x, y.shape[1])().reshape(y.T.shape).T, y
        )
        for form, graph in network.graphs.items()
    }
    with torch.no_grad():
        found["relu_kan and the float64 reference"] = difference(
            eager_call(network, REFERENCE, x)().reshape(y.shape), y
        )
        for name, eager in ((EFFICIENT_ONNX, EFFICIENT), (MLP_ONNX, MLP)):
            own = eager_call(network, eager, x)().numpy()
            found[f"{name} and its PyTorch module"] = difference(
                exported_call(network.exported[name], x, y.shape[1])(), own
            )
    wrong = {name: value for name, value in found.items() if not value <= TOLERANCE}
    if wrong:
        raise SystemExit(f"{list(network.widths)}: more than {TOLERANCE} apart, nothing is timed: {wrong}")
    return found


def difference(y: Any, expected: FloatArray) -> float:
    return float(np.abs(np.asarray(y, dtype=np.float64) - expected).max() / np.abs(expected).max())


def graph_call(graph: bytes, form: Form, x: FloatArray, out_features: int) -> Callable[[], FloatArray]:
    """Runs our graph on x ``(batch, in)``, turned into the graph's layout beforehand."""
    session = make_session(graph, ["CPUExecutionProvider"], 1, level=level_for(form))
    prepared = np.ascontiguousarray(x.T, np.float32)[np.newaxis, :, np.newaxis, :]  # (1, in, 1, batch)
    return bound_call(session, prepared, (1, out_features, 1, len(x)))


def exported_call(graph: bytes, x: FloatArray, out_features: int) -> Callable[[], FloatArray]:
    return bound_call(make_session(graph, ["CPUExecutionProvider"], 1), x.astype(np.float32), (len(x), out_features))


def runner_call(network: Network, x: FloatArray) -> Callable[[], FloatArray]:
    """Our runner as a caller uses it: from rows to rows, checks, counts and layout included."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(network.spec, Path(folder) / "bundle", engine=EngineOptions(batch=(1, len(x), len(x))))
    runner = load(bundle)
    return lambda: runner(x)


def eager_call(network: Network, name: str, x: FloatArray) -> Callable[[], torch.Tensor]:
    module, tensor = network.modules[name], torch.from_numpy(x)
    if name == REFERENCE:
        tensor = tensor.unsqueeze(-1)  # (batch, in, 1)
    return lambda: module(tensor)


def time_batch(network: Network, batch: int, *, quick: bool) -> dict[str, Timing]:
    """Everything on one batch. Inputs lie in [0, 1], which is inside every contender's domain."""
    x = np.random.default_rng(2).uniform(0, 1, (batch, network.widths[0])).astype(np.float32)
    calls: dict[str, Callable[[], object]] = {name: eager_call(network, name, x) for name in network.modules}
    outputs = network.widths[-1]
    calls |= {name: exported_call(graph, x, outputs) for name, graph in network.exported.items()}
    calls |= {form: graph_call(graph, form, x, outputs) for form, graph in network.graphs.items()}
    calls[RUNNER] = runner_call(network, x)
    with torch.no_grad():
        return measure(calls, rounds=9 if quick else 61)


def row(network: Network, batch: int, timings: dict[str, Timing]) -> dict[str, Any]:
    """One network at one batch, as it is printed and written; ratios are against the exporter's choice of form."""
    chosen = chosen_form(network, batch)
    return {
        "network": list(network.widths),
        "batch": batch,
        "form": chosen,
        "seconds": {name: timing.summary() for name, timing in timings.items()},
        "ratios": {name: dataclasses.asdict(ratio(timings[name], timings[chosen])) for name in PEERS},
    }


def chosen_form(network: Network, batch: int) -> Form:
    return choose_form(network.spec, layout="batch-last", precision="fp32", batch=batch)


def target(name: str, network: Sequence[int], batch: int) -> float | None:
    """How many times as long the peer should take at least; None where nothing was set."""
    if name == PYKAN:
        return 30.0
    if name == REFERENCE and tuple(network) == (4, 64, 64, 1):
        return 3.0
    if name == EFFICIENT_ONNX:
        return {1: 4.0, 1024: 15.0}.get(batch)
    return None


def print_results(console: Console, results: Sequence[dict[str, Any]]) -> None:
    times = results_table("Median time of one call, µs (spread); * the exporter's choice of form", results)
    for name in (*FORMS, RUNNER, *PEERS):
        cells = []
        for result in results:
            timing = result["seconds"][name]
            cells.append(f"{micro(timing['median'])}{'*' * (name == result['form'])}\n({timing['spread']:.0%})")
        times.add_row(f"four-op {name}" if name in FORMS else name, *cells)
    console.print(times)

    ratios = results_table("Time of the peer / time of the four-op graph (80% of the rounds), and the target", results)
    for name in PEERS:
        ratios.add_row(name, *(ratio_cell(name, result) for result in results))
    console.print(ratios)
    console.print(f"For pykan the target is {target(PYKAN, (), 1):g}, and the aim 60.")


def results_table(title: str, results: Sequence[dict[str, Any]]) -> Table:
    table = Table("", title=title)
    for result in results:
        table.add_column(f"{result['network']}\nbatch {result['batch']}", justify="right")
    return table


def ratio_cell(name: str, result: dict[str, Any]) -> str:
    found = Ratio(**result["ratios"][name])
    least = target(name, result["network"], result["batch"])
    median, low, high = (f"{value:.0f}" if value >= 100 else f"{value:.2g}" for value in dataclasses.astuple(found))
    if least is not None:
        colour = "green" if found.median >= least else "red"
        median = f"[{colour}]{median}[/], target {least:g}"
    return f"{median}\n({low}–{high})"


if __name__ == "__main__":
    main()
