"""Networks of pykan and efficient-kan, imported, beside the same networks exported by PyTorch.

    python -m benchmarks.imported [--quick] [--json FILE]

Both graphs run in ONNX Runtime, in this process, on one CPU thread, with their buffers bound. Ours is of the
checkpoint that the library would save, in the form that `relukan-export` chooses for that batch; theirs is
`torch.onnx.export(dynamo=True)` of the module. Beside them: ours with --strict-ops, and a ReLU-KAN of the same
shape. Errors are differences from the float64 reference, relative to max(1, max|y|): inside the domain, and up
to ten times as far out.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from relukan_deploy.api import export
from relukan_deploy.bench.subjects import exports, make_inputs
from relukan_deploy.bench.subjects.bound import bound_calls
from relukan_deploy.bench.sweep import Effort
from relukan_deploy.bench.timing import Rounds, Timing, Turn, rotated, summarise
from relukan_deploy.checkpoint import load_checkpoint
from relukan_deploy.exporters.to_tensorrt import EngineOptions
from relukan_deploy.runtime._session import make_session
from relukan_deploy.runtime.ort_cpu import level_for
from relukan_deploy.runtime.runner import from_graph, to_graph
from relukan_deploy.spec import Form, KanSpec

from ._networks import trained_like
from ._ratios import run_ratios, spread, times
from ._report import figures, header, micro, new_console, print_header, saying, write_json
from ._spline_networks import Library, Peer, Weights, trained

NETWORKS: tuple[tuple[Library, tuple[int, ...]], ...] = (
    ("pykan", (2, 5, 1)),
    ("pykan", (4, 64, 64, 1)),
    ("efficient-kan", (2, 5, 1)),
    ("efficient-kan", (4, 64, 64, 1)),
)
WEIGHTS: tuple[Weights, ...] = ("fitted", "random")
BATCHES = (1, 64, 1024)
EFFORT = Effort(runs=5, rounds=11)
QUICK = Effort(runs=2, rounds=3, burst=0.002, warm_up=0.01, most=1.0)
STEPS, QUICK_STEPS = 60, 2
# How many times as long the library's graph is to take at least, by its batch size.
GOALS: Mapping[tuple[Library, tuple[int, ...]], Mapping[int, float]] = {
    ("pykan", (2, 5, 1)): {1: 4, 1024: 10},
    ("pykan", (4, 64, 64, 1)): {1: 4, 1024: 10},
    ("efficient-kan", (4, 64, 64, 1)): {1: 2, 1024: 5},
}
OURS, THEIRS, STRICT, RELU_KAN = "this graph", "its own export", "this graph, --strict-ops", "ReLU-KAN"
_CHECKED_ROWS = 512
_ROTATED = 8  # inputs


@dataclasses.dataclass(frozen=True)
class Graph:
    """What is timed. `form` is None for a graph that PyTorch wrote, which takes and gives rows."""

    model: bytes
    form: Form | None

    @property
    def nodes(self) -> int:
        return len(onnx.load_from_string(self.model).graph.node)

    @functools.cached_property
    def session(self) -> Any:
        level = level_for(self.form) if self.form else "ORT_ENABLE_ALL"
        return make_session(self.model, ["CPUExecutionProvider"], 1, level=level)

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """y ``(batch, out)`` for x ``(batch, in)``."""
        y: NDArray[np.float32] = self.session.run(None, {"x": to_graph(x, "batch-last", "fp32") if self.form else x})[0]
        return from_graph(y, "batch-last", "fp32") if self.form else y

    def turn(self, inputs: Sequence[NDArray[np.float32]], outputs: int) -> Turn:
        """Turns on inputs ``(batch, in)``."""
        shape = (1, outputs, 1, len(inputs[0])) if self.form else (len(inputs[0]), outputs)
        fed = [to_graph(x, "batch-last", "fp32") if self.form else x for x in inputs]
        return rotated(bound_calls(self.session, fed, shape))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.imported", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short run, with wider spreads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    options = parser.parse_args(arguments)
    effort, steps = (QUICK, QUICK_STEPS) if options.quick else (EFFORT, STEPS)
    console = new_console()
    values = header("imported")
    print_header(console, values)
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for library, widths in NETWORKS:
        for weights in WEIGHTS:
            with saying() as say:
                say(f"training {library} {list(widths)}")
                peer = trained(library, widths, weights, steps=steps)
                say(f"measuring {library} {list(widths)}, {weights}")
                found = measure(peer, effort)
            print_network(console, found)
            results += found
    print_goals(console, results)
    if options.json:
        write_json(options.json, {**values, "results": results})


def measure(peer: Peer, effort: Effort) -> list[dict[str, Any]]:
    """One network: for each batch size what is timed, its errors and its times."""
    with tempfile.TemporaryDirectory() as folder:
        spec, graphs = write_graphs(peer, Path(folder))
    errors = {batch: errors_of(found, spec) for batch, found in graphs.items()}
    turns: dict[int, dict[str, Turn]] = {}
    for batch, found in graphs.items():
        inputs = make_inputs(spec.domain, batch, most=_ROTATED)
        turns[batch] = {name: graph.turn(inputs, spec.out_features) for name, graph in found.items()}
    taken: dict[int, list[Mapping[str, Rounds]]] = {batch: [] for batch in graphs}
    for run in range(effort.runs):
        for batch, contenders in turns.items():
            taken[batch].append(effort.sample(contenders, run))
    return [
        {
            "library": peer.library,
            "network": list(peer.widths),
            "weights": peer.weights,
            "batch": batch,
            "form": found[OURS].form,
            "nodes": {name: graph.nodes for name, graph in found.items()},
            "error": errors[batch],
            **summary({name: summarise([run[name] for run in taken[batch]]) for name in found}),
        }
        for batch, found in graphs.items()
    ]


def write_graphs(peer: Peer, folder: Path) -> tuple[KanSpec, dict[int, dict[str, Graph]]]:
    """The network in float64 and, by batch size, every graph that is timed."""
    saved = folder / "peer.pt"
    torch.save(peer.state, saved)
    theirs = Graph(exports.export(peer.module, peer.widths[0]), None)
    relu_kan = trained_like(peer.widths).spec()

    def ours(model: KanSpec | Path, batch: int, *, strict: bool = False) -> Graph:
        engine = EngineOptions(batch=(1, batch, max(BATCHES)))
        bundle = export(model, folder / "bundle", engine=engine, strict_ops=strict)
        (artifact,) = bundle.manifest.artifacts
        return Graph(bundle.contents[artifact.file], artifact.form)

    graphs = {
        batch: {
            OURS: ours(saved, batch),
            THEIRS: theirs,
            STRICT: ours(saved, batch, strict=True),
            RELU_KAN: ours(relu_kan, batch),
        }
        for batch in BATCHES
    }
    return load_checkpoint(saved).spec(), graphs


def errors_of(graphs: Mapping[str, Graph], spec: KanSpec) -> dict[str, dict[str, float]]:
    """Of every graph of this network: its largest error inside the domain, and outside."""
    (x,) = make_inputs(spec.domain, _CHECKED_ROWS, most=1)
    low, high = spec.domain.T
    middle = (low + high) / 2
    places = {"inside": x, "outside": (middle + 10 * (x - middle)).astype(np.float32)}
    scale = max(1.0, float(np.abs(spec.evaluate(x)).max()))
    found: dict[str, dict[str, float]] = {}
    for name, graph in graphs.items():
        if name != RELU_KAN:
            found[name] = {}
            for place, rows in places.items():
                expected = spec.evaluate(rows)
                scales = np.maximum(scale, np.abs(expected).max(axis=1, keepdims=True))  # far out, SiLU grows
                found[name][place] = float((np.abs(graph.run(rows) - expected) / scales).max())
    return found


def summary(timings: Mapping[str, Timing]) -> dict[str, Any]:
    """The times, and how many times as long as our graph each took: the median of the runs, and their range."""
    ratios = {name: run_ratios(timing, timings[OURS]) for name, timing in timings.items() if name != OURS}
    return {
        "seconds": {name: figures(timing) for name, timing in timings.items()},
        "over this graph": {
            name: {"median": statistics.median(runs), "low": min(runs), "high": max(runs)}
            for name, runs in ratios.items()
        },
    }


def print_network(console: Console, results: Sequence[Mapping[str, Any]]) -> None:
    first = results[0]
    table = Table(title=f"{first['library']} {first['network']}, {first['weights']} coefficients")
    table.add_column("")
    for each in results:
        table.add_column(f"batch {each['batch']}", justify="right")
    seconds = [each["seconds"][OURS] for each in results]
    table.add_row(f"{OURS}, µs (spread)", *(f"{micro(each['p50'])} ({each['spread']:.0%})" for each in seconds))
    for name in (THEIRS, STRICT, RELU_KAN):
        table.add_row(f"{name}, over it", *(said(each, name) for each in results))
    table.add_row("form", *(each["form"] for each in results))
    for name in (OURS, THEIRS, STRICT):
        errors = [each["error"][name] for each in results]
        nodes = ", ".join(map(str, dict.fromkeys(each["nodes"][name] for each in results)))
        table.add_row(
            f"error of {name}, {nodes} nodes", *(f"{each['inside']:.1e}, {each['outside']:.1e}" for each in errors)
        )
    console.print(table)


def said(result: Mapping[str, Any], name: str) -> str:
    ratio = result["over this graph"][name]
    runs = [ratio["low"], ratio["median"], ratio["high"]]
    return f"{times(runs)} ({spread(runs)})"


def print_goals(console: Console, results: Sequence[Mapping[str, Any]]) -> None:
    for each in results:
        least = GOALS.get((each["library"], tuple(each["network"])), {}).get(each["batch"])
        if least is not None:
            reached = each["over this graph"][THEIRS]["median"] >= least
            console.print(
                f"{each['library']} {each['network']}, {each['weights']}, batch {each['batch']}: {said(each, THEIRS)}, "
                f"at least {least:g} ×: {'reached' if reached else 'NOT reached'}",
                style="green" if reached else "red",
                markup=False,
            )


if __name__ == "__main__":
    main()
