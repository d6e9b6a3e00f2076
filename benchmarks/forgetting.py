"""Catastrophic forgetting: five peaks are learnt one after the other, by ReLU-KANs and by MLPs.

    python -m benchmarks.forgetting [--quick] [--json FILE]

The signal is that of the ReLU-KAN paper (arXiv:2406.02075; its code: catastrophic_forgetting.py), five Gaussian peaks
side by side on [0, 1]. In each of five phases only rows of one fifth are shown. After each phase the mean squared error
on every fifth is taken. The MLPs have as many parameters as the ReLU-KAN, the same rows and iterations, and, of several
learning rates, the one that leaves the lowest error on the first four peaks at the end (the median of the seeds).

Nothing is done against forgetting: a bump that no row reaches gets no gradient, and that is all. So what all rows share
has to stay out of training, as in the KAN paper's experiment (arXiv:2404.19756, section 3.4), and the table tells what
each such thing costs. Plain Adam, as weight decay draws the unreached bumps to zero as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from relukan_deploy.model import ReLUKAN, ReLUKANLayer

from ._experiments import write
from ._readme_text import rows_of
from ._report import header, new_console, print_header, saying

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PEAKS, DEVIATION = 5, 0.02
SEEDS, ITERATIONS = range(5), 500
QUICK_SEEDS, QUICK_ITERATIONS = range(1), 30
ROWS, POINTS = 250, 2000  # shown in a phase, and compared on all of [0, 1]
GOAL = 10.0  # how many times the MLP's error is that of the ReLU-KAN, at least
# Intervals that are trained cross each other at the usual rate, and the network dies.
KAN_RATE, INTERVALS_RATE, MLP_RATES = (1e-2,), (1e-3,), (1e-3, 1e-2, 3e-2)
DECAY = 0.1


@dataclasses.dataclass(frozen=True)
class Contender:
    """A network and how it is trained.

    Attributes:
        name: as it is printed; "MLP" begins those that the others are compared with.
        build: a new one, drawn from torch's random numbers.
        rates: learning rates to try.
        decay: AdamW's, on all weights; 0 is plain Adam.
        restart: whether every phase has a new Adam, without the momentum of the one before.
    """

    name: str
    build: Callable[[], nn.Module]
    rates: tuple[float, ...] = KAN_RATE
    decay: float = 0.0
    restart: bool = False

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(each.numel() for each in self.build().parameters() if each.requires_grad)


def relu_kan(grid: int = 100, order: int = 3, *, bias: bool = False, intervals: bool = False) -> ReLUKAN:
    """A [1, 1]; of bias and intervals, what is not trained stays as it began, the bias at zero."""
    model = ReLUKAN([1, 1], grid, order, train_intervals=intervals)
    if not bias:
        (layer,) = model.layers
        assert isinstance(layer, ReLUKANLayer)
        nn.init.zeros_(layer.bias.requires_grad_(False))
    return model


class MLP(nn.Sequential):
    """x ``(rows, 1)`` uniform in [0, 1], which it standardises, to y ``(rows, 1)``."""

    def __init__(self, hidden: Sequence[int], activation: type[nn.Module]) -> None:
        pairs = itertools.pairwise([1, *hidden])
        layers = [layer for sizes in pairs for layer in (nn.Linear(*sizes), activation())]
        super().__init__(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 0.5) * 12**0.5
        for layer in self:
            x = layer(x)
        return x


OURS = "ReLU-KAN"
CONTENDERS = (
    Contender(OURS, relu_kan),
    Contender("… new Adam in each phase", relu_kan, restart=True),
    Contender("… bias trained too", lambda: relu_kan(bias=True)),
    Contender("… intervals trained too", lambda: relu_kan(intervals=True), INTERVALS_RATE),
    Contender("… both, as is usual", lambda: relu_kan(bias=True, intervals=True), INTERVALS_RATE),
    Contender(f"… weight decay {DECAY:g}", relu_kan, decay=DECAY),
    Contender("… both, G=25, order 1: the paper's", lambda: relu_kan(25, 1, bias=True, intervals=True), INTERVALS_RATE),
    Contender("MLP [1, 34, 1], ReLU", lambda: MLP([34], nn.ReLU), MLP_RATES),
    Contender("MLP [1, 34, 1], SiLU", lambda: MLP([34], nn.SiLU), MLP_RATES),
    Contender("MLP [1, 9, 9, 1], ReLU", lambda: MLP([9, 9], nn.ReLU), MLP_RATES),
    Contender("MLP [1, 9, 9, 1], tanh", lambda: MLP([9, 9], nn.Tanh), MLP_RATES),
)


def signal(x: Tensor) -> Tensor:
    """y for x in [0, 1], of any shape: the peaks, each in the middle of its fifth."""
    centers = (torch.arange(PEAKS) + 0.5) / PEAKS
    return torch.exp(-(((x.unsqueeze(-1) - centers) / DEVIATION).square()) / 2).sum(dim=-1)


def points() -> Tensor:
    """What answers are compared on, ``(POINTS, 1)``, ascending."""
    return ((torch.arange(POINTS) + 0.5) / POINTS).unsqueeze(1)


def learn(contender: Contender, rate: float, seed: int, iterations: int) -> Tensor:
    """The answers at `points` after each phase, ``(phases, POINTS)``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = contender.build()
    random = torch.Generator().manual_seed(seed)
    trained = [each for each in model.parameters() if each.requires_grad]
    answers = []
    for phase in range(PEAKS):
        if phase == 0 or contender.restart:
            # With a decay of 0 this is torch.optim.Adam.
            optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=contender.decay)
        x = (torch.rand(ROWS, 1, generator=random) + phase) / PEAKS
        y = signal(x)
        for _ in range(iterations):
            optimizer.zero_grad()
            functional.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            answers.append(model(points()).squeeze(1))
    return torch.stack(answers)


def errors_of(answers: Tensor) -> Tensor:
    """The mean squared error after each phase on each peak, ``(..., phases, peaks)``."""
    wrong = (answers - signal(points()).squeeze(1)).square()
    return wrong.reshape(*answers.shape[:-1], PEAKS, -1).mean(dim=-1)


def measure(contender: Contender, seeds: Sequence[int], iterations: int) -> list[dict[str, Any]]:
    """For each learning rate: the errors, over the seeds, and the answers with the first of them."""
    found = []
    for rate in contender.rates:
        answers = torch.stack([learn(contender, rate, seed, iterations) for seed in seeds])  # (seeds, phases, POINTS)
        errors = errors_of(answers)  # (seeds, phases, peaks)
        ends = errors[:, -1, :-1].mean(dim=1).tolist()
        earlier = [errors[:, phase, :phase].mean(dim=1).median() for phase in range(1, PEAKS)]
        found.append(
            {
                "contender": contender.name,
                "parameters": contender.parameters,
                "learning rate": rate,
                "just learnt": float(errors.diagonal(dim1=1, dim2=2).mean(dim=1).median()),
                "earlier peaks, after phases 2 to 5": [float(each) for each in earlier],
                "first four at the end": {"median": statistics.median(ends), "low": min(ends), "high": max(ends)},
                "answers": answers[0],
            }
        )
    return found


def kept(result: dict[str, Any]) -> float:
    """The error on the first four peaks at the end."""
    error: float = result["first four at the end"]["median"]
    return error


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forgetting", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed and few iterations: nothing is learnt well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, and a table and a picture")
    options = parser.parse_args(arguments)
    seeds, iterations = (QUICK_SEEDS, QUICK_ITERATIONS) if options.quick else (SEEDS, ITERATIONS)
    console = new_console()
    values = header("forgetting") | {"seeds": len(seeds), "iterations": iterations, "rows": ROWS}
    print_header(console, values)
    torch.set_num_threads(1)
    tried: list[dict[str, Any]] = []
    with saying() as say:
        for contender in CONTENDERS:
            say(f"training {contender.name}")
            tried += measure(contender, seeds, iterations)
    best = [min((each for each in tried if each["contender"] == one.name), key=kept) for one in CONTENDERS]
    mlps = [each for each in tried if each["contender"].startswith("MLP")]
    # The one that remembers best may have learnt nothing, so that the one that learnt best is shown too.
    remembers, learns = min(mlps, key=kept), min(mlps, key=lambda each: each["just learnt"])
    written = [{name: value for name, value in each.items() if name != "answers"} for each in (*best, learns)]
    values |= {
        "MLP over ReLU-KAN": kept(remembers) / kept(best[0]),
        "best": written[:-1],
        "MLP that learns best": written[-1],
    }
    show(console, values["MLP over ReLU-KAN"], lines(best, learns))
    if options.json:
        write(options.json, values, markdown(values, best, learns), picture(best[0], learns))


def cells(result: dict[str, Any]) -> list[str]:
    """A line of the table."""
    end = result["first four at the end"]
    return [
        result["contender"],
        str(result["parameters"]),
        f"{result['learning rate']:g}",
        f"{result['just learnt']:.1e}",
        *(f"{each:.1e}" for each in result["earlier peaks, after phases 2 to 5"]),
        f"{end['low']:.0e}–{end['high']:.0e}",
    ]


TITLES = ["", "size", "rate", "learnt", *(f"after {n}" for n in range(2, 6)), "of all seeds"]


def lines(best: Sequence[dict[str, Any]], learns: dict[str, Any]) -> list[list[str]]:
    found = [cells(each) for each in best]
    return [*found, [f"{learns['contender']}: learns best", *cells(learns)[1:]]]


def show(console: Console, ratio: float, found: Sequence[Sequence[str]]) -> None:
    table = Table(title="Mean squared error on the peak just learnt, and on all earlier ones after phases 2 to 5")
    for title in TITLES:
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for line in found:
        table.add_row(*line)
    console.print(table)
    console.print(
        f"The best MLP's error on the first four peaks is {ratio:.3g} times the {OURS}'s, at least {GOAL:g} times: "
        f"{'reached' if ratio >= GOAL else 'NOT reached'}",
        style="green" if ratio >= GOAL else "red",
    )


def markdown(values: dict[str, Any], best: Sequence[dict[str, Any]], learns: dict[str, Any]) -> str:
    """The table, and what it says."""
    nothing = float(signal(points()).var(correction=0))
    return f"""\
# Forgetting

Five Gaussian peaks on [0, 1] in five phases, {values["iterations"]} Adam iterations each, on {values["rows"]} rows of
one fifth. Mean squared errors, medians of {values["seeds"]} seeds: on the peak just learnt, over the phases, and on all
earlier peaks after phases 2 to 5, with its range over the seeds at the end. A constant, the mean of the signal, has
{nothing:.2g}. `{values["environment"]["command"]}`

{rows_of([TITLES, ["---", *["---:"] * (len(TITLES) - 1)], *lines(best, learns)])}

At the end the MLP's error on the first four peaks is {values["MLP over ReLU-KAN"]:.3g} times the {OURS}'s: that of the
MLP and the learning rate with the lowest, which know little more of the peaks than a constant does. The MLP and rate
with the lowest error on the peaks just learnt are in the last line and, with the first seed, in the picture.

The {OURS} is a [1, 1] with 100 grid intervals and order 3, of which only the coefficients are trained: a bump that no
row reaches has no gradient. The momentum that Adam keeps from the phase before does it no harm. What all rows share
does: the bias moves the answer everywhere, and weight decay draws every bump to zero, reached or not. Intervals may be
trained, at a tenth of the learning rate.
"""


def picture(ours: dict[str, Any], theirs: dict[str, Any]) -> Figure:
    """A column for each phase, a row for each network: the signal, what was shown so far, the answer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    axes = figure.subplots(2, PEAKS, sharex=True, sharey=True)
    x = points().squeeze(1)
    y = signal(x)
    for row, (result, color) in enumerate(((ours, "tab:blue"), (theirs, "tab:red"))):
        errors = errors_of(result["answers"])
        for phase in range(PEAKS):
            axis = axes[row, phase]
            axis.axvspan(phase / PEAKS, (phase + 1) / PEAKS, color="0.93", label="shown now")
            axis.plot(x, y, color="0.6", linewidth=0.8, linestyle=":", label="the signal")
            shown = x < (phase + 1) / PEAKS
            axis.plot(x[shown], y[shown], color="0.35", linewidth=2.6, alpha=0.5, label="shown so far")
            axis.plot(x, result["answers"][phase], color=color, linewidth=1.3, label="the answer")
            axis.set_title(f"MSE on what was shown: {float(errors[phase, : phase + 1].mean()):.1e}", fontsize=8)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set(xlim=(0, 1), ylim=(-0.7, 1.4), xticks=(0, 0.5, 1))
            if row == 1:
                axis.set_xlabel(f"after phase {phase + 1}")
        axes[row, 0].set_ylabel(f"{result['contender']}\n{result['parameters']} parameters")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


if __name__ == "__main__":
    main()
