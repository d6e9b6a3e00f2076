"""The training-speed table of the ReLU-KAN paper: five functions, 500 steps, on this machine beside the published.

    python -m benchmarks.training_speed [--quick] [--json FILE]

A step is forward pass, mean squared error, backward pass and Adam on 1000 rows, as in the paper (arXiv:2406.02075,
table 1). All networks take turns, on one CPU thread or, where there is one, on the GPU, which every step waits for;
all have PyTorch's fused Adam. Ours is trained as it is and as `fit(compile=True)` does it; on a GPU as one CUDA graph.
pykan is as its own `fit` evaluates it without regularisation: its B-splines alone, after `speed()`.

Beside them forward and backward pass of [1000, 1000, 1] with 100 rows.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from relukan_deploy.bench.peers import build
from relukan_deploy.bench.subjects import Shape
from relukan_deploy.bench.subjects.torch_calls import find_device, set_up
from relukan_deploy.bench.sweep import Effort
from relukan_deploy.bench.timing import Rounds, Turn, summarise
from relukan_deploy.bench.training import turns_on
from relukan_deploy.errors import RelukanError
from relukan_deploy.model import ReLUKAN

from ._experiments import SPEED, Target, write
from ._ratios import run_ratios, spread, times
from ._readme_text import rows_of
from ._report import figures, header, new_console, print_header, saying

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from relukan_deploy.bench.subjects.torch_subjects import TorchEngine

ROWS, STEPS = 1000, 500
EFFORT = Effort(runs=3, rounds=15, burst=0.02, warm_up=0.2, most=10.0)
QUICK = Effort(runs=2, rounds=3, burst=0.002, warm_up=0.01, most=0.5)
FAST, EAGER = "ours, compiled", "ours"
PEERS = ("pykan", "efficient-kan", "relu-kan")
WIDE, WIDE_ROWS = (1000, 1000, 1), 100
WIDE_PEERS = ("fast-kan", "efficient-kan", "relu-kan", "mlp")
QUICK_FUNCTIONS, QUICK_WIDE = SPEED[:1], (20, 20, 1)
# Seconds of 500 steps in the paper: a KAN and its ReLU-KAN, each on a CPU and on a GPU.
PUBLISHED: Mapping[str, tuple[float, float, float, float]] = {
    "f1": (2.80, 6.01, 0.56, 0.72),
    "f2": (3.04, 7.23, 0.78, 0.75),
    "f3": (5.30, 12.70, 1.21, 1.13),
    "f4": (11.30, 23.12, 1.57, 1.08),
    "f5": (19.23, 34.38, 2.26, 1.15),
}
PUBLISHED_NAMES = ("KAN, CPU", "KAN, GPU", "ReLU-KAN, CPU", "ReLU-KAN, GPU")
# How many times as long as which of ours a peer is to take at least.
GOALS: Mapping[str, Sequence[tuple[str, str, float]]] = {
    "cpu": (("pykan", FAST, 5.0), ("relu-kan", EAGER, 1.0)),
    "cuda": (("pykan", FAST, 20.0),),
}
WIDE_GOALS: Mapping[str, Sequence[tuple[str, str, float]]] = {"cpu": (("fast-kan", EAGER, 1.0),), "cuda": ()}
NOTES = """\
"ours, compiled" is `fit(compile=True)` on a CPU, and a CUDA graph of the same on a GPU. The others run as they are.

Read ratios, not seconds, beside the published ones: those are of another machine, and

- their timer did not wait for the GPU, so that what it shows there is mostly what Python takes;
- pykan has changed since. It is measured without its symbolic branch and its record of activations, which its own
  `fit` leaves out too where nothing is regularised;
- f5 is not that of the paper's fitting table, which has π inside the sines and, in its code, [4, 2, 2, 1].
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_speed", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one function and a small network, with wide spreads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, and a table and a picture")
    options = parser.parse_args(arguments)
    effort, functions, wide = (QUICK, QUICK_FUNCTIONS, QUICK_WIDE) if options.quick else (EFFORT, SPEED, WIDE)
    console = new_console()
    values: dict[str, Any] = header("training_speed") | {"device": find_device(), "skipped": []}
    print_header(console, values)
    set_up(1)
    with saying() as say:
        values["functions"] = []
        for target in functions:
            say(f"measuring {target.name}")
            values["functions"].append(measure_function(target, effort, values["skipped"]))
        say(f"measuring {list(wide)}")
        values["wide"] = measure_wide(wide, effort, values["skipped"])
    values["goals"] = list(goals(values))
    show(console, values)
    if options.json:
        write(options.json, values, markdown(values), picture(values))


# --- measuring


def measure_function(target: Target, effort: Effort, skipped: list[dict[str, str]]) -> dict[str, Any]:
    """Steps of every network that learns it; those that cannot be had are `skipped`, with the reason."""
    shape = shape_of(target.widths, target.grid, target.order)
    found = measure(shape, [target.rows(ROWS, seed=0)], (FAST, EAGER, *PEERS), effort, skipped)
    row = {"name": target.name, "formula": target.formula, "network": list(target.widths), "grid": target.grid}
    return {**row, **found, "published": dict(zip(PUBLISHED_NAMES, PUBLISHED[target.name], strict=True))}


def measure_wide(widths: tuple[int, ...], effort: Effort, skipped: list[dict[str, str]]) -> dict[str, Any]:
    """Forward and backward pass of a wide network and its peers."""
    # Compiling takes longer than a quick run has.
    names = (EAGER, *WIDE_PEERS) if effort is QUICK else (FAST, EAGER, *WIDE_PEERS)
    x = torch.rand(WIDE_ROWS, widths[0], generator=torch.Generator().manual_seed(0))
    examples = [(x, x.mean(dim=1, keepdim=True))]
    found = measure(shape_of(widths, 5, 3), examples, names, effort, skipped, adam=False)
    return {"network": list(widths), "rows": WIDE_ROWS, **found}


def measure(
    shape: Shape,
    examples: Sequence[tuple[Tensor, Tensor]],
    names: Sequence[str],
    effort: Effort,
    skipped: list[dict[str, str]],
    *,
    adam: bool = True,
) -> dict[str, Any]:
    """Each network's seconds a step, and how many times as long as each of ours it takes."""
    fast: TorchEngine = "torch CUDA graph" if find_device() == "cuda" else "torch.compile"
    turns: dict[str, Turn] = {}
    for name in names:
        try:
            for network, module in networks(name, shape).items():
                turns[network] = turns_on(module, examples, engine=fast if name == FAST else "torch", adam=adam)
        except RelukanError as error:
            skipped.append({"what": f"{list(shape.widths)}: {name}", "why": str(error)})
    taken: dict[str, list[Rounds]] = {name: [] for name in turns}
    for run in range(effort.runs):
        for name, rounds in effort.sample(turns, run).items():
            taken[name].append(rounds)
    timings = {name: summarise(runs) for name, runs in taken.items()}
    return {
        "seconds": {name: figures(timing) for name, timing in timings.items()},
        "over": {
            ours: {name: run_ratios(timing, timings[ours]) for name, timing in timings.items() if name != ours}
            for ours in (FAST, EAGER)
            if ours in timings
        },
    }


def networks(name: str, shape: Shape) -> dict[str, nn.Module]:
    """What a name stands for, with new weights."""
    if name in (FAST, EAGER):
        return {name: ReLUKAN(shape.widths, shape.grid, shape.order)}
    return build(name, shape)


def shape_of(widths: tuple[int, ...], grid: int, order: int) -> Shape:
    return Shape(widths, grid, order, np.tile((0.0, 1.0), (widths[0], 1)))


def goals(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each ratio that is to be reached, and whether it is; without a compiler, ours as it is counts."""
    wanted = [(each, GOALS) for each in values["functions"]] + [(values["wide"], WIDE_GOALS)]
    for result, of in wanted:
        for peer, ours, least in of[values["device"]]:
            over = result["over"].get(ours, result["over"][EAGER])
            if peer in over:
                found = statistics.median(over[peer])
                what = (
                    f"{result.get('name', result['network'])}: {peer} over {ours if ours in result['over'] else EAGER}"
                )
                yield {"what": what, "least": least, "found": found, "reached": found >= least}


# --- telling


def fastest(result: Mapping[str, Any]) -> str:
    """That of ours which the others are divided by."""
    return FAST if FAST in result["over"] else EAGER


def lines(values: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table: names of its columns, and its lines."""
    results = values["functions"]
    head = ["", *(f"{each['name']} {each['network']}" for each in results)]
    body = [[name, *(seconds_of(each, name) for each in results)] for name in results[0]["seconds"]]
    for name in PUBLISHED_NAMES:
        body.append([f"published: {name}", *(f"{each['published'][name]:.2f} s" for each in results)])
    body.append(["a step of the first", *(step_of(each, fastest(each)) for each in results)])
    return head, body


def seconds_of(result: Mapping[str, Any], name: str) -> str:
    """Seconds of 500 steps, and how many times those of ours, with the range of the runs."""
    if name not in result["seconds"]:
        return "–"
    return f"{STEPS * result['seconds'][name]['p50']:.2g} s{over_ours(result, name)}"


def step_of(result: Mapping[str, Any], name: str) -> str:
    """Milliseconds of a step, and how many times those of ours."""
    return f"{result['seconds'][name]['p50'] * 1e3:.3g} ms{over_ours(result, name)}"


def over_ours(result: Mapping[str, Any], name: str) -> str:
    ratios = result["over"][fastest(result)].get(name)
    return f", {times(ratios)} ({spread(ratios)})" if ratios else ""


def wide_line(values: Mapping[str, Any]) -> str:
    wide = values["wide"]
    steps = ", ".join(f"{name} {step_of(wide, name)}" for name in wide["seconds"])
    return f"A step of {wide['network']}, {wide['rows']} rows, forward and backward pass: {steps}."


def show(console: Console, values: Mapping[str, Any]) -> None:
    head, body = lines(values)
    table = Table(title=f"{STEPS} steps on {ROWS} rows, {values['device']}")
    for name in head:
        table.add_column(name, justify="right" if name else "left")
    for line in body:
        table.add_row(*line)
    console.print(table)
    console.print(wide_line(values), markup=False)
    for each in values["skipped"]:
        console.print(f"left out: {each['what']}: {each['why']}", markup=False)
    for each in values["goals"]:
        said = f"{each['what']}: {each['found']:.2f} ×, at least {each['least']:g} ×"
        reached = "reached" if each["reached"] else "NOT reached"
        console.print(f"{said}: {reached}", style="green" if each["reached"] else "red", markup=False)


def markdown(values: Mapping[str, Any]) -> str:
    head, body = lines(values)
    machine = values["environment"]
    where = machine["processor"] if values["device"] == "cpu" else torch.cuda.get_device_name()
    left_out = "".join(f"Left out: {each['what']}: {each['why']}\n" for each in values["skipped"])
    formulas = "; ".join(
        f"{each['name']} = {each['formula']}, {each['grid']} intervals" for each in values["functions"]
    )
    return (
        f"Training: seconds of {STEPS} steps on {ROWS} rows, on {where}; `{machine['command']}`. In brackets, how many "
        f"times those of the first line, with the range of the runs. {formulas}.\n\n"
        f"{rows_of([head, ['---'] * len(head), *body])}\n\n{wide_line(values)}\n\n{NOTES}\n{left_out}"
    )


def picture(values: Mapping[str, Any]) -> Figure:
    """Bars, by function: how many times as long as ours each takes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    results = values["functions"]
    names = [name for name in results[0]["seconds"] if name != fastest(results[0])]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(results))]
        ratios = [each["over"][fastest(each)].get(name, [float("nan")]) for each in results]
        middle = [statistics.median(each) for each in ratios]
        bars = axes.bar(places, middle, width * 0.92, label=name)
        axes.bar_label(bars, [f"{each:.2g}" if each < 10 else f"{each:.0f}" for each in middle], fontsize=7, padding=2)
    axes.set_xticks(range(len(results)), [f"{each['name']}\n{each['formula']}\n{each['network']}" for each in results])
    axes.tick_params(axis="x", labelsize=7)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axhline(1, color="0.3", linewidth=1)
    axes.set_ylabel(f"time of a training step, over {fastest(results[0])}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=len(names), loc="upper left", bbox_to_anchor=(0, 1.1))
    return figure


if __name__ == "__main__":
    main()
