"""The fitting table of the ReLU-KAN paper: six functions, test errors on this machine beside the published ones.

    python -m benchmarks.fitting [--quick] [--json FILE]

As in the paper (arXiv:2406.02075, table 2): 1000 rows in [0, 1]ⁿ, at most 5000 steps of Adam, mean squared error on
other rows. Every figure is the median of five seeds, each with rows, first weights and order of its own.

- "reference": its own training. Plain Adam at PyTorch's usual rate, all rows in every step.
- "trained", "fixed": `fit` as it is, its intervals trained or not. It is told the network, the number of passes and not
  to stop early; of the 1000 rows it holds out a fifth.
- "refined": `fit` by LBFGS, on a grid and then on a finer one, in no more time than "trained" takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from relukan_deploy.model import ReLUKAN
from relukan_deploy.refinement import layers_of
from relukan_deploy.train import fit
from relukan_deploy.training.loop import usual_batch_size

from ._experiments import FITTING, Target, write
from ._readme_text import rows_of
from ._report import header, new_console, print_header, saying

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS, TEST_ROWS = 1000, 1000
VALIDATION = 0.2
FIRST_SEED = 100  # those below are the ones on which the defaults of `fit` were chosen
FIRST_TEST_SEED = 1000  # the rows that are tested on are no one's to train on


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is trained: seeds, steps of Adam, and twentyfold iterations of LBFGS."""

    seeds: int
    steps: int
    lbfgs_epochs: int


EFFORT = Effort(seeds=5, steps=5000, lbfgs_epochs=60)
QUICK = Effort(seeds=1, steps=100, lbfgs_epochs=2)
COARSE = 2  # intervals less than the paper's, where refinement begins
REFERENCE, TRAINED, FIXED, REFINED = "reference", "trained", "fixed", "refined"
TITLES = {
    REFERENCE: "its own training, here",
    TRAINED: "fit",
    FIXED: "fit, intervals fixed",
    REFINED: "fit, refined, by LBFGS",
}
# Test errors in the paper: of a KAN, and of a ReLU-KAN with its intervals trained and fixed.
PUBLISHED: Mapping[str, tuple[float, float, float]] = {
    "sine": (5.33e-3, 5.79e-6, 7.12e-5),
    "fast sine": (3.35e-1, 8.69e-3, 1.07e-1),
    "parabola": (4.75e-3, 3.77e-5, 1.58e-4),
    "sine of a sum": (4.12e-1, 2.45e-5, 1.42e-4),
    "exponential": (9.73e-2, 1.66e-4, 8.14e-4),
    "four inputs": (4.80e-1, 1.70e-2, 2.52e-1),
}
PUBLISHED_NAMES = ("KAN", TRAINED, FIXED)
# How many times the published error, with trained intervals, is that of ours, at least, and of how many functions.
GOALS: Mapping[str, tuple[float, int]] = {TRAINED: (1.0, 6), REFINED: (10.0, 4)}
NOTES = """\
"×" is how many times ours the published error is, with intervals trained or fixed as in ours.

Where the published table and its code disagree, or say less than one would like:

- The paper lists the last network as [4, 4, 2, 1] with 10 intervals; its code trains [4, 2, 2, 1] with 5, as here.
- The published KAN was fitted to eˣ where the table says x² + x + 1.
- Its code trains every network once, without a seed, and tests it on 100 rows. The seeds of that training spread by
  half an order of magnitude here, more on the last function, and the published figure is mostly one of the lower ones.
- On the last function some seeds stick, in whatever way it is trained, at errors of 0.5 to 1.6 where the variance
  of the function is 3.6. A median does not show them; the range does.
- `fit` trains on 800 of the 1000 rows, as it needs the others to choose the best epoch; the reference's on all.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fitting", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed and few steps: errors are far from the goals")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, and a table and a picture")
    options = parser.parse_args(arguments)
    effort = QUICK if options.quick else EFFORT
    console = new_console()
    values = header("fitting") | {"effort": dataclasses.asdict(effort), "results": []}
    print_header(console, values)
    torch.set_num_threads(1)
    with saying() as say:
        for target in FITTING:
            say(f"fitting {target.formula}")
            values["results"].append(measure(target, effort))
    values["goals"] = list(goals(values["results"]))
    show(console, values)
    if options.json:
        write(options.json, values, markdown(values), picture(values["results"]))


# --- measuring


def measure(target: Target, effort: Effort) -> dict[str, Any]:
    """One function: its published errors, and those found here with the seconds they took."""
    grids = (target.grid - COARSE, target.grid)
    training = round(ROWS * (1 - VALIDATION))
    passes = effort.steps // math.ceil(training / usual_batch_size(training))
    ways: dict[str, Callable[[Tensor, Tensor, int], nn.Module]] = {
        REFERENCE: lambda x, y, seed: reference(target, x, y, seed, effort.steps),
        TRAINED: lambda x, y, seed: ours(target, x, y, seed, epochs=passes),
        FIXED: lambda x, y, seed: ours(target, x, y, seed, epochs=passes, train_intervals=False),
        REFINED: lambda x, y, seed: ours(target, x, y, seed, optimizer="lbfgs", grid=grids, epochs=effort.lbfgs_epochs),
    }
    return {
        "name": target.name,
        "formula": target.formula,
        "widths": list(target.widths),
        "grid": target.grid,
        "published": dict(zip(PUBLISHED_NAMES, PUBLISHED[target.name], strict=True)),
        **{name: errors(target, train, effort.seeds) for name, train in ways.items()},
    }


def errors(target: Target, train: Callable[[Tensor, Tensor, int], nn.Module], seeds: int) -> dict[str, Any]:
    """Of each seed the mean squared error on rows never seen, and the mean of the seconds."""
    found, seconds = [], []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        x, y = target.rows(ROWS, seed)
        began = time.perf_counter()
        network = train(x, y, seed)
        seconds.append(time.perf_counter() - began)
        test_x, test_y = target.rows(TEST_ROWS, FIRST_TEST_SEED + seed)
        with torch.no_grad():
            found.append(float(functional.mse_loss(network(test_x), test_y)))
    middle = statistics.median(found)
    return {
        "median": middle,
        "low": min(found),
        "high": max(found),
        "errors": found,
        "seconds": statistics.fmean(seconds),
    }


def ours(target: Target, x: Tensor, y: Tensor, seed: int, **options: Any) -> ReLUKAN:
    """What `fit` makes of the rows: every option that is not named here is as it usually is."""
    options = {"grid": target.grid, **options}
    return fit(
        x.numpy(),
        y.numpy(),
        hidden=target.widths[1:-1],
        order=target.order,
        validation=VALIDATION,
        patience=options["epochs"],
        seed=seed,
        device="cpu",
        **options,
    ).model


def reference_network(target: Target) -> ReLUKAN:
    """A network that computes what the reference's does, with first weights drawn as there."""
    model = ReLUKAN(target.widths, target.grid, target.order)
    for layer in layers_of(model):
        layer.reset_parameters()
    return model


def reference(target: Target, x: Tensor, y: Tensor, seed: int, steps: int) -> nn.Module:
    """The reference's training, as in its exp_fitting.py; its Conv2d is a matrix product here, which gives the same."""
    torch.manual_seed(seed)
    model = reference_network(target)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        functional.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def goals(results: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """On how many functions ours is so many times below the published error, and for LBFGS in no more time."""
    for name, (least, functions) in GOALS.items():
        reached = [
            each["name"]
            for each in results
            if each[name]["median"] * least <= each["published"][TRAINED]
            and (name != REFINED or each[name]["seconds"] <= each[TRAINED]["seconds"])
        ]
        yield {"what": name, "times": least, "functions": functions, "reached": reached}


# --- telling


def lines(values: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table: names of its columns, and its lines."""
    names = ("KAN", "ReLU-KAN", "its intervals fixed")
    head = ["test MSE", *(f"{name}, published" for name in names), *TITLES.values(), "seconds of the ways here"]
    return head, [_line(each) for each in values["results"]]


def _line(result: Mapping[str, Any]) -> list[str]:
    published = result["published"]
    return [
        f"{result['formula']} {result['widths']}",
        *(f"{published[name]:.2e}" for name in PUBLISHED_NAMES),
        error(result[REFERENCE]),
        *(f"{error(result[name])}, {over(result, name)}" for name in (TRAINED, FIXED, REFINED)),
        ", ".join(f"{result[name]['seconds']:.1f}" for name in TITLES),
    ]


def error(found: Mapping[str, Any]) -> str:
    """The median and the range of the seeds."""
    return f"{found['median']:.1e} ({found['low']:.0e}–{found['high']:.0e})"


def over(result: Mapping[str, Any], name: str) -> str:
    """How many times ours the published error is."""
    ratio = result["published"].get(name, result["published"][TRAINED]) / result[name]["median"]
    return f"{ratio:.0f} ×" if ratio >= 10 else f"{ratio:.2g} ×"


def said(goal: Mapping[str, Any]) -> tuple[str, bool]:
    """A goal in words, and whether it is reached."""
    reached = len(goal["reached"]) >= goal["functions"]
    what = f"{TITLES[goal['what']]}: at most the published error" + (
        f" ÷ {goal['times']:g}, in no more time than {TITLES[TRAINED]}," if goal["times"] > 1 else ""
    )
    how = f"on {len(goal['reached'])} functions, wanted {goal['functions']}"
    return f"{what} {how}: {'reached' if reached else 'NOT reached'}", reached


def show(console: Console, values: Mapping[str, Any]) -> None:
    head, body = lines(values)
    table = Table(title=_title(values), show_lines=True)
    for name in head:
        table.add_column(name, justify="left" if name == head[0] else "right", overflow="fold")
    for line in body:
        table.add_row(*(cell.replace("–", "– ") for cell in line))  # where it may be broken
    console.print(table)
    for goal in values["goals"]:
        words, reached = said(goal)
        console.print(words, style="green" if reached else "red", markup=False)


def _title(values: Mapping[str, Any]) -> str:
    effort = values["effort"]
    seeds = f"median of {effort['seeds']} seeds (range)" if effort["seeds"] > 1 else "one seed"
    return (
        f"Mean squared error on {TEST_ROWS} other rows, {seeds}; {ROWS} rows, {effort['steps']} steps of Adam "
        f"or {20 * effort['lbfgs_epochs']} iterations of LBFGS"
    )


def markdown(values: Mapping[str, Any]) -> str:
    head, body = lines(values)
    machine = values["environment"]
    reached = "\n".join(f"- {said(goal)[0]}." for goal in values["goals"])
    return (
        f"{_title(values)}. On {machine['processor']}, one thread; `{machine['command']}`.\n\n"
        f"{rows_of([head, ['---', *['---:'] * (len(head) - 1)], *body])}\n\n{reached}\n\n{NOTES}"
    )


def picture(results: Sequence[Mapping[str, Any]]) -> Figure:
    """By function: the seeds of each way of training, their median, and the published error as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(TITLES)
    for (index, (name, title)), colour in zip(
        enumerate(TITLES.items()), ("0.55", "tab:blue", "tab:cyan", "tab:green"), strict=True
    ):
        places = [place + (index - (len(TITLES) - 1) / 2) * width for place in range(len(results))]
        lows, middles, highs = ([each[name][of] for each in results] for of in ("low", "median", "high"))
        axes.vlines(places, lows, highs, color=colour, linewidth=4, alpha=0.35)
        for place, each in zip(places, results, strict=True):
            found = each[name]["errors"]
            axes.scatter([place] * len(found), found, s=7, color=colour, alpha=0.7, linewidths=0)
        axes.scatter(places, middles, s=46, marker="_", linewidths=2, color=colour, label=title)
    published = [each["published"][TRAINED] for each in results]
    starts, ends = ([place + side for place in range(len(results))] for side in (-0.45, 0.45))
    axes.hlines(published, starts, ends, color="tab:red", linewidth=1.2, label="published ReLU-KAN")
    axes.set_yscale("log")
    formulas = [each["formula"].replace(" + sin", "\n+ sin") for each in results]
    labels = [f"{formula}\n{each['widths']}" for formula, each in zip(formulas, results, strict=True)]
    axes.set_xticks(range(len(results)), labels)
    axes.tick_params(axis="x", labelsize=6.5)
    axes.set_ylabel("test MSE, each seed and their median")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


if __name__ == "__main__":
    main()
