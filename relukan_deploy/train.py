"""Training: `fit` takes a data file, or arrays, to a ReLU-KAN and its checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ._examples import Examples, Units, input_range, make_examples, scaling, split
from ._loop import train_epochs, usual_batch_size
from .checkpoint import save
from .errors import InputError, MissingDeviceError, TableError
from .model import Normalization, ReLUKAN, ReLUKANLayer
from .refinement import refine
from .spec import KanSpec, Task
from .table import Table

__all__ = ["Epoch", "FitResult", "fit"]

_LEAST_ROWS = 10
_SECONDS_BETWEEN_SAVES = 1.0
# A batch whose basis (batch, in, K) has fewer numbers than this is not worth more than one thread.
_ELEMENTS_FOR_THREADS = 1 << 18
# Held-out rows are scored in blocks whose basis stays near this many numbers.
_BLOCK_ELEMENTS = 1 << 24
# Of the held-out rows, so many at most are looked at for dead inputs.
_WATCHED_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One pass over the training rows.

    Attributes:
        number: from 1.
        loss: mean training loss: cross entropy, or squared error in units of the targets' variance.
        score: on the held-out rows, see `FitResult.score`.
        best: the best score so far.
        dead: for each layer, the fraction of its inputs, on a thousand held-out rows or so, that no bump reaches,
            see `ReLUKAN.dead_inputs`. Where it nears 1, everything behind has stopped learning.
    """

    number: int
    loss: float
    score: float
    best: float
    dead: tuple[float, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class FitResult:
    """A trained network and how it came about.

    Attributes:
        model: the network of the best epoch, on the CPU. A regression answers in the units of
            its targets, a classification with logits in the order of `labels`.
        task, columns, targets, labels: as in `KanSpec`.
        score: on the held-out rows: accuracy, or R² (the mean over the targets). The best epoch
            was chosen by it, so on rows never used the network may do slightly worse.
        score_name: "accuracy" or "R²".
        history: every epoch.
        best_epoch: the number of the epoch `model` is from.
        validation_rows: indices of the held-out rows, ``(held out,)``, ascending.
        rows: in the table, held out ones included.
        seconds: time spent.
        path: the checkpoint, or None if none was asked for.
    """

    model: ReLUKAN
    task: Task
    columns: tuple[str, ...] | None
    targets: tuple[str, ...]
    labels: tuple[str, ...] | None
    score: float
    score_name: str
    history: tuple[Epoch, ...]
    best_epoch: int
    validation_rows: NDArray[np.int64]
    rows: int
    seconds: float
    path: Path | None

    def spec(self) -> KanSpec:
        """The network and what its inputs and outputs mean, for `export`."""
        return self.model.spec(task=self.task, columns=self.columns, targets=self.targets, labels=self.labels)


def fit(
    data: str | Path | Table | ArrayLike,
    target: str | Sequence[str] | ArrayLike | None = None,
    *,
    columns: Sequence[str] | None = None,
    task: Task | None = None,
    hidden: Sequence[int] = (64,),
    grid: int | Sequence[int] = 5,
    order: int = 3,
    normalization: Normalization = "fixed",
    power: int = 2,
    train_intervals: bool = True,
    batch_norm: bool = False,
    epochs: int = 100,
    batch_size: int | None = None,
    learning_rate: float = 2e-3,
    patience: int = 20,
    validation: float = 0.2,
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    progress: Callable[[Epoch], None] | None = None,
) -> FitResult:
    """Trains a ReLU-KAN: what relukan-train does.

    The same seed gives the same network again on the same CPU; a GPU may differ in the last
    digits. Small networks are trained on one thread, whatever `torch.set_num_threads` says: steps
    of a fraction of a millisecond cannot be shared out, and waiting for a busy core makes them
    many times slower.

    Args:
        data: a .csv, .parquet or .npz file (see `read_table`), such a table already read, or the
            inputs ``(rows, in)``.
        target: for a file, the column to predict, or several for a regression; None is the last
            column, or the array y of an npz file. For arrays, y ``(rows,)`` or ``(rows, targets)``.
        columns: for a file, the input columns; None is all but the targets. For arrays, names
            for the inputs, which None leaves unnamed.
        task: None infers it from the target, see `Table.infer_task`.
        hidden: widths of the hidden layers; () for a single layer.
        grid, order, normalization, power, train_intervals: as for `ReLUKANLayer`. Several grids, each finer than
            the one before, are trained one after the other, see `refine`: each begins as the best copy of the
            one before, and has its share of the epochs, a learning rate from the start and patience of its own.
        batch_norm: as for `ReLUKAN`. It keeps a deep network alive at high learning rates; at the usual one a
            network that begins linear, as all with several hidden layers do here, stays alive without, and is the
            more accurate: small batches make the normalisation noisy.
        epochs: the most passes over the training rows, over all grids.
        batch_size: rows for one step; None is a 32nd of the training rows, within 16 and 1024.
        learning_rate: at the start; it falls to 0 along a cosine over the epochs.
        patience: stop after this many epochs without a better held-out score.
        validation: the fraction of rows held out; for a classification, of each class.
        seed: of the split, the first weights and the order of rows.
        device: "auto" (a CUDA GPU if there is one), "cpu", "cuda", or another name torch knows.
        out: where to write the best network, as it is found and at the end. It is also written
            if training is interrupted (Ctrl-C), and KeyboardInterrupt is then raised again.
        progress: called after each epoch.

    Raises:
        TableError: the data, or a column of it, cannot be used.
        InputError: an option is out of range, or training diverges.
        MissingDeviceError: the device is not there.
    """
    began = time.monotonic()
    _check_options(task, epochs, batch_size, learning_rate, patience, validation, seed, data, out)
    grids = _grids(grid, epochs)
    place = _device(device)

    examples = make_examples(data, target, columns, task)
    if examples.rows < _LEAST_ROWS:
        raise TableError(f"{examples.name}: training needs at least {_LEAST_ROWS} rows, got {examples.rows}")
    training, held_out = split(examples.codes, examples.rows, validation, seed)
    if batch_norm and batch_size == 1:
        raise InputError("batch_norm needs batches of at least 2 rows, got batch_size 1: choose a larger one")
    with torch.random.fork_rng(devices=[]):  # the caller's own random numbers go on undisturbed
        torch.manual_seed(seed)
        model = ReLUKAN(
            [examples.x.shape[1], *hidden, examples.outputs],
            grids[0],
            order,
            normalization=normalization,
            power=power,
            train_intervals=train_intervals,
            batch_norm=batch_norm,
            initialization="linear" if len(hidden) > 1 else "reference",  # which does well where nothing is deep
            input_range=torch.from_numpy(input_range(examples, training)),
        )
    units = scaling(examples, training)
    y = examples.y if units is None else ((examples.y - units[0]) / units[1]).astype(np.float32)
    watched = torch.from_numpy(examples.x[held_out[:: -(-len(held_out) // _WATCHED_ROWS)]]).to(place)
    best = _Best(examples, units, None if out is None else Path(out))
    history: list[Epoch] = []
    batch_size = batch_size or usual_batch_size(len(training))
    row_elements = max(model.config["widths"]) * (grids[-1] + order)  # of one row's basis
    threads = torch.get_num_threads()
    try:
        if batch_size * row_elements < _ELEMENTS_FOR_THREADS:
            torch.set_num_threads(1)
        for loss, score, tie_break, network in _train(
            model.to(place),
            grids,
            *(torch.from_numpy(array[rows]).to(place) for rows in (training, held_out) for array in (examples.x, y)),
            epochs=epochs,
            patience=patience,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            block=max(1, _BLOCK_ELEMENTS // row_elements),
        ):
            if not (math.isfinite(loss) and math.isfinite(score)):
                break
            best.offer(len(history) + 1, score, tie_break, network)
            history.append(Epoch(len(history) + 1, loss, score, best.score, network.dead_inputs(watched)))
            if progress is not None:
                progress(history[-1])
    finally:  # also when interrupted
        torch.set_num_threads(threads)
        best.write()
    if best.model is None:
        raise InputError(
            f"training diverged in its first epoch: try a learning rate below {learning_rate:g}, "
            "or inputs and targets of a smaller spread"
        )
    return FitResult(
        model=best.model,
        task=examples.task,
        columns=examples.columns,
        targets=examples.targets,
        labels=examples.labels,
        score=best.score,
        score_name="R²" if examples.labels is None else "accuracy",
        history=tuple(history),
        best_epoch=best.epoch,
        validation_rows=held_out,
        rows=examples.rows,
        seconds=time.monotonic() - began,
        path=best.path,
    )


def _train(
    model: ReLUKAN, grids: Sequence[int], x: Tensor, *rows: Tensor, epochs: int, patience: int, **options: Any
) -> Iterator[tuple[float, float, float, ReLUKAN]]:
    """`train_epochs` on one grid after the other, each for its share of the epochs or until patience ends."""
    for index, grid in enumerate(grids):
        if index:
            model = refine(model, grid, x).model.requires_grad_(True)
        best, stale = (-math.inf, -math.inf), 0
        share = epochs * (index + 1) // len(grids) - epochs * index // len(grids)
        for loss, score, tie_break, average in train_epochs(model, x, *rows, epochs=share, **options):
            yield loss, score, tie_break, average
            stale = 0 if (score, tie_break) > best else stale + 1
            best = max(best, (score, tie_break))
            if stale >= patience:
                break
        model = average


def _grids(grid: int | Sequence[int], epochs: int) -> tuple[int, ...]:
    grids = tuple(grid) if isinstance(grid, Sequence) else (grid,)
    rising = all(type(each) is int for each in grids[1:]) and all(a < b for a, b in itertools.pairwise(grids))
    if not grids or not rising:
        raise InputError(f"grid must be a whole number, or several, each above the one before, got {grid!r}")
    if len(grids) > epochs:
        raise InputError(f"{len(grids)} grids need as many epochs or more, got {epochs}")
    return grids


def _check_options(
    task: str | None,
    epochs: int,
    batch_size: int | None,
    learning_rate: float,
    patience: int,
    validation: float,
    seed: int,
    data: object,
    out: str | Path | None,
) -> None:
    if task not in (None, *get_args(Task)):
        raise InputError(f"task must be one of {get_args(Task)} or None, got {task!r}")
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if not 0 < validation < 1:
        raise InputError(f"validation must be a fraction of the rows between 0 and 1, got {validation}")
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise InputError(f"learning_rate must be greater than 0, got {learning_rate}")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must be from 0 to 2**63 - 1, got {seed}")
    source = data.name if isinstance(data, Table) else data
    if out is not None and isinstance(source, (str, Path)) and Path(out).resolve() == Path(source).resolve():
        raise InputError(f"{out} is the data itself: choose another file for the checkpoint")
    if out is not None and Path(out).is_dir():
        raise InputError(f"{out} is a folder: expected a file to write the checkpoint to, such as {out}/model.pt")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"device must be 'auto', 'cpu' or 'cuda', got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MissingDeviceError(
            "training on 'cuda' needs an NVIDIA GPU, its driver and a CUDA build of torch, and torch finds none: "
            "choose the device 'cpu' or 'auto'"
        )
    return device


class _Best:
    """The best network so far, in memory and, at most once a second, on disk."""

    def __init__(self, examples: Examples, units: Units | None, path: Path | None) -> None:
        self.path = path
        self.score = -math.inf
        self.epoch = 0
        self.model: ReLUKAN | None = None
        self._examples = examples
        self._units = units
        self._rank = (-math.inf, -math.inf)
        self._written: ReLUKAN | None = None
        self._next_write = 0.0

    def offer(self, epoch: int, score: float, tie_break: float, network: ReLUKAN) -> None:
        """Keeps a copy of the network if it is better than the best so far."""
        if (score, tie_break) <= self._rank:
            return
        model = _in_own_units(copy.deepcopy(network).cpu(), self._units)
        self.model, self.epoch, self.score, self._rank = model, epoch, score, (score, tie_break)
        if time.monotonic() >= self._next_write:
            self.write()
            self._next_write = time.monotonic() + _SECONDS_BETWEEN_SAVES

    def write(self) -> None:
        """Writes the checkpoint, unless the file already holds this network."""
        model, examples = self.model, self._examples
        if model is None or self.path is None or model is self._written:
            return
        try:
            save(
                model,
                self.path,
                task=examples.task,
                columns=examples.columns,
                targets=examples.targets,
                labels=examples.labels,
            )
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}") from error
        self._written = model


def _in_own_units(model: ReLUKAN, units: Units | None) -> ReLUKAN:
    """Folds the targets' mean and deviation into the last layer, in which the network is linear."""
    if units is not None:
        mean, deviation = (torch.from_numpy(values) for values in units)
        last = cast(ReLUKANLayer, model.layers[-1])  # nn.ModuleList forgets what it holds
        with torch.no_grad():
            last.weight.copy_(last.weight.double() * deviation[:, None, None])
            last.bias.copy_(last.bias.double() * deviation + mean)
    return model.requires_grad_(True)
