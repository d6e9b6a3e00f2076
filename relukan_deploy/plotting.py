"""Pictures: `plot` draws a network's edge functions, `plot_history` how its training went.

Both give a Matplotlib figure that belongs to no window: `write_figure` writes it, and a notebook shows it. What is
drawn is computed in float64 from the `KanSpec`, so that networks of bumps and of splines have one way here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from ._drawing import BLUE, DIM, INK, ORANGE, TEXT, draw_edges, quieten
from ._edges import edge_layers, some_rows
from ._files import replacing_file
from .errors import InputError, MissingDependencyError
from .spec import KanSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .checkpoint import Checkpoint
    from .model import ReLUKAN
    from .train import Epoch, FitResult

__all__ = ["check_picture", "history_path", "plot", "plot_history", "write_figure"]

_SUFFIXES = (".png", ".svg", ".pdf")


def plot(
    model: ReLUKAN | KanSpec | Checkpoint | FitResult | str | Path, data: ArrayLike | None = None, *, most: int = 48
) -> Figure:
    """Draws edge functions as small multiples, layer by layer, each over the interval where it can vary.

    The heavier a line, the stronger its edge: strength is the standard deviation of what an edge gives, over the data,
    relative to the strongest edge of its layer. Bars beneath are the histogram of what reaches the edge's input, and
    a line is grey where no row comes. Every panel has a scale of its own.

    Args:
        model: a network, or the path of its checkpoint. A ReLUKAN knows no names; the others may.
        data: x ``(rows, in)``, such as the rows the network was trained on, of which 4096 are taken if there are
            more. None measures strength over the intervals themselves, evenly.
        most: about how many edges to draw, 48 unless told. Layers share them equally, in whole rows of six; a layer
            that has more edges shows its strongest, strongest first, and how many are not shown.

    Raises:
        InputError: the data does not fit the network, or most is below 1.
        CheckpointError: the file is not a checkpoint.
        MissingDependencyError: Matplotlib is not installed.
    """
    new_figure = _matplotlib()
    if most < 1:
        raise InputError(f"most must be at least 1, got {most}")
    if isinstance(model, (str, Path)):
        from .checkpoint import load_checkpoint

        model = load_checkpoint(model)
    spec = model if isinstance(model, KanSpec) else model.spec()
    figure = new_figure(dpi=150, facecolor="white")
    draw_edges(figure, edge_layers(spec, None if data is None else some_rows(spec, data), most))
    return figure


def plot_history(history: Sequence[Epoch]) -> Figure:
    """Draws the loss on the training rows and on those held out, over the epochs, and marks the best epoch.

    Losses are as in `Epoch`, on a logarithmic axis if they are all above zero.

    Args:
        history: that of a `FitResult`, or what `fit` gave its `progress`.

    Raises:
        InputError: the history is empty.
        MissingDependencyError: Matplotlib is not installed.
    """
    new_figure = _matplotlib()
    from matplotlib.ticker import MaxNLocator

    if not history:
        raise InputError("the history is empty: there is nothing to draw before the first epoch")
    figure = new_figure(figsize=(5.6, 3.5), dpi=150, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    numbers = [epoch.number for epoch in history]
    marker = "o" if len(history) == 1 else ""
    losses = [epoch.loss for epoch in history], [epoch.held_out_loss for epoch in history]
    for values, colour, style, label in zip(losses, (BLUE, ORANGE), ("-", "--"), ("training", "held out"), strict=True):
        axes.plot(numbers, values, style, color=colour, linewidth=1.4, marker=marker, label=label)
    best = max(history, key=lambda epoch: (epoch.score, -epoch.held_out_loss))
    axes.axvline(best.number, color=DIM, linewidth=0.8, linestyle=":", zorder=1)
    label = f"best epoch: {best.number}, score {best.score:.4f}"
    axes.plot([best.number], [best.held_out_loss], "D", color=INK, markersize=5, zorder=4, label=label)
    if min(map(min, losses)) > 0:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", color=DIM, fontsize=TEXT)
    axes.set_ylabel("loss", color=DIM, fontsize=TEXT)
    quieten(axes, TEXT)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=TEXT, labelcolor=INK)
    return figure


def write_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure, replacing what was there only when it is complete; the same figure gives the same bytes.

    Raises:
        InputError, MissingDependencyError: see `check_picture`.
    """
    check_picture(path)
    import matplotlib

    path = Path(path)
    undated: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with replacing_file(path) as written, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # a sign that the font lacks is drawn as a box
        with matplotlib.rc_context({"svg.hashsalt": "relukan-deploy"}):
            suffix = path.suffix.lower()
            figure.savefig(written, format=suffix[1:], metadata=undated.get(suffix))


def check_picture(path: str | Path) -> None:
    """Sees to it that a picture could be written, before there is one.

    Raises:
        InputError: the name does not end in .png, .svg or .pdf, or is that of a folder.
        MissingDependencyError: Matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{path} is no picture that can be written: expected a name ending in .png, .svg or .pdf")
    if path.is_dir():
        raise InputError(f"{path} is a folder: expected a file to write the picture to")
    _matplotlib()


def history_path(path: str | Path) -> Path:
    """Where the training curve goes, beside a picture of edges: edges.png has edges-training.png."""
    path = Path(path)
    return path.with_name(f"{path.stem}-training{path.suffix}")


def _matplotlib() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("A picture", "matplotlib", "plot") from error
    return Figure
