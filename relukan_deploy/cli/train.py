"""relukan-train: a table to a trained ReLU-KAN."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .._files import state_path
from ._command import console, make_parser, run

if TYPE_CHECKING:
    from ..table import Table
    from ..train import Epoch, FitResult

__all__ = ["main"]

_DYING = 0.2  # a share of dead inputs worth a word


def main(argv: Sequence[str] | None = None) -> int:
    """Runs relukan-train and returns its exit code."""
    return run(_parser(), _train, argv)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("relukan-train", "Train a ReLU-KAN on a table, and write its checkpoint.")
    parser.add_argument("data", metavar="DATA", type=Path, help="a .csv, .parquet or .npz file")
    parser.add_argument(
        "-o",
        dest="out",
        metavar="MODEL",
        type=Path,
        help="the checkpoint, .pt or .safetensors (default: DATA's name .pt)",
    )
    parser.add_argument(
        "--target",
        metavar="COLUMN",
        action="append",
        help="what to predict; again for each further one of a regression (default: the last column, or y of an npz)",
    )
    parser.add_argument(
        "--columns", metavar="COLUMN", nargs="+", help="the inputs (default: every column that is not a target)"
    )
    parser.add_argument(
        "--task", choices=("regression", "classification"), help="(default: by the values of the target)"
    )

    network = parser.add_argument_group("the network")
    add = network.add_argument
    add("--hidden", metavar="WIDTH", type=int, nargs="*", default=[64], help="hidden layers (default: 64)")
    add(
        "--grid",
        metavar="N[,N...]",
        type=_grid,
        default=5,
        help="grid intervals; several, as in 5,10,20, to go on on finer and finer grids (default: %(default)s)",
    )
    add("--order", type=int, default=3, help="spline order (default: %(default)s)")
    add("--normalization", choices=("fixed", "peak"), default="peak", help="(default: %(default)s)")
    add("--power", type=int, default=2, help="of a bump, 1 to 8; higher is smoother (default: %(default)s)")
    add(
        "--fixed-intervals",
        dest="train_intervals",
        action="store_false",
        help="train the coefficients only, not where the bumps are",
    )
    add(
        "--batch-norm",
        action="store_true",
        help="keep the hidden layers on their grids: for deep networks at high learning rates; export folds it away",
    )

    add = parser.add_argument_group("training").add_argument
    add("--optimizer", choices=("adam", "lbfgs"), default="adam", help="lbfgs takes all rows at once (default: adam)")
    add("--epochs", type=int, default=100, help="at most; of lbfgs, twenty iterations each (default: %(default)s)")
    add("--batch-size", metavar="ROWS", type=int, help="(default: a 32nd of the rows, within 16 and 1024)")
    add(
        "--lr",
        dest="learning_rate",
        metavar="RATE",
        type=float,
        help="at the start (default: 0.1 over the inputs of all layers, within 0.002 and 0.02; of lbfgs 1)",
    )
    add("--weight-decay", metavar="DECAY", type=float, help="of adam, on the coefficients (default: 0.001)")
    add("--l1", metavar="WEIGHT", type=float, default=0.0, help="of the edges' L1 norm in the loss (default: 0)")
    add("--entropy", metavar="WEIGHT", type=float, default=0.0, help="of the edges' entropy in the loss (default: 0)")
    add(
        "--patience",
        metavar="EPOCHS",
        type=int,
        default=20,
        help="stop after this many without a better held-out score (default: %(default)s)",
    )
    add(
        "--validation", metavar="FRACTION", type=float, default=0.2, help="of the rows, held out (default: %(default)s)"
    )
    add("--seed", type=int, default=0, help="(default: %(default)s)")

    add = parser.add_argument_group("the machine").add_argument
    add("--device", default="auto", help="auto, cpu or cuda (default: %(default)s); torchrun gives each process a GPU")
    add("--amp", action="store_true", help="compute matrix products in bfloat16")
    add("--compile", action="store_true", help="compile the network, which takes up to a minute at first")
    add("--micro-batch", metavar="ROWS", type=int, help="rows at a time within a batch that does not fit the memory")
    add("--resume", action="store_true", help="go on where the training that wrote MODEL was interrupted, if it was")
    add(
        "--plot",
        metavar="PICTURE",
        type=Path,
        help="draw the edges to a .png, .svg or .pdf, and beside it how training went",
    )
    add("-q", "--quiet", action="store_true", help="print errors only")
    return parser


def _grid(text: str) -> int | list[int]:
    try:
        return [int(number) for number in text.split(",")] if "," in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers like 5 or 5,10,20, got {text!r}") from None


def _train(arguments: argparse.Namespace) -> None:
    from .. import fit  # by way of the package, which says what to install when torch is missing
    from ..table import read_table
    from ..training.processes import is_first

    options = vars(arguments)
    data, given, picture, quiet = (options.pop(name) for name in ("data", "target", "plot", "quiet"))
    out = options["out"] = options["out"] or Path(data.stem + ".pt")
    quiet = quiet or not is_first()
    say = _silent if quiet else _say
    if picture is not None:
        from ..plotting import check_picture

        check_picture(picture)
    table = read_table(data)
    targets = tuple(given or table.default_target)
    task = options["task"] or table.infer_task(targets)
    say(_description(table, given is None, targets, task, options["task"] is None))
    options["task"] = task
    if options["resume"] and not state_path(out).exists():
        say(f"{state_path(out)} is not there: training from the beginning")

    epochs: list[Epoch] = []
    try:
        with _progress(options["epochs"], quiet) as show:

            def after_epoch(epoch: Epoch) -> None:
                epochs.append(epoch)
                show(epoch)

            result = fit(table, targets, **options, progress=after_epoch)
    except KeyboardInterrupt:
        say(_stopped(epochs, out))
        raise
    say(
        f"{result.score_name} {result.score:.4f} on {len(result.validation_rows)} held-out rows "
        f"(epoch {result.best_epoch}, the best of {len(result.history)}), {result.seconds:.1f} s, "
        f"{_size(result.step_bytes)} of memory for a step"
    )
    say(f"Wrote {out}")
    if picture is not None and is_first():
        _draw(result, table, picture, say)
    say(f"Next: relukan-export {shlex.quote(str(out))} --trt")


def _stopped(epochs: Sequence[Epoch], out: Path) -> str:
    if not epochs:
        return "Stopped in the first epoch: nothing was written"
    last = epochs[-1]
    return (
        f"Stopped in epoch {last.number + 1}. The best network so far, {last.best:.4f}, is in {out}; "
        "the same command with --resume goes on"
    )


def _draw(result: FitResult, table: Table, path: Path, say: Callable[[str], None]) -> None:
    from ..plotting import history_path, plot, plot_history, write_figure

    write_figure(plot(result, table.features(result.columns or ())), path)
    write_figure(plot_history(result.history), history_path(path))
    say(f"Drew {path} and {history_path(path)}")


def _size(count: int) -> str:
    """Bytes, for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _description(table: Table, default_target: bool, targets: Sequence[str], task: str, inferred_task: bool) -> str:
    names = ", ".join(map(repr, targets))
    why_target = " (by default; see --target)" if default_target else ""
    why_task = " (by its values; see --task)" if inferred_task else ""
    return f"{table.name}: {table.rows} rows. Target: {names}{why_target}. Task: {task}{why_task}"


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)  # a path may hold brackets, and is not to be broken


def _silent(text: str) -> None:
    pass


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Callable[[Epoch], None]]:
    """What to call after each epoch: a bar on a terminal, at most ten lines anywhere else."""
    if quiet:
        yield lambda epoch: None
        return
    if not console.is_terminal:
        every = -(-total // 10)
        yield lambda epoch: _say(_line(epoch)) if epoch.number % every == 0 else None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        row = bar.add_task("starting", total=total)
        yield lambda epoch: bar.update(row, completed=epoch.number, description=_line(epoch))


def _line(epoch: Epoch) -> str:
    line = f"epoch {epoch.number}: loss {epoch.loss:.4g}, held-out score {epoch.score:.4f}, best {epoch.best:.4f}"
    worst = max(epoch.dead)
    return line if worst < _DYING else f"{line}, layer {epoch.dead.index(worst)}: {worst:.0%} dead"
