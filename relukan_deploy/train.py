"""Training: `fit` takes a data file, or arrays, to a ReLU-KAN and its checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .errors import InputError, TableError
from .model import Normalization, ReLUKAN
from .spec import KanSpec, Task
from .table import Table
from .training.course import Course, Rows
from .training.examples import Examples, input_range, make_examples, scaling, split
from .training.loop import Optimizer, one_thread
from .training.memory import is_out_of_memory, step_bytes
from .training.options import Options, find_device
from .training.processes import Processes, joined
from .training.record import Epoch, Record
from .training.saving import Saver

__all__ = ["Epoch", "FitResult", "fit"]

_LEAST_ROWS = 10
# A batch whose basis (batch, in, K) has fewer numbers than this is not worth more than one thread.
_ELEMENTS_FOR_THREADS = 1 << 18


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
        seconds: time spent; after resuming, that before the interruption included.
        step_bytes: the most memory that one step holds in a process: weights, gradients and the optimiser's
            moments, and all that is computed of the rows.
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
    step_bytes: int
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
    normalization: Normalization = "peak",
    power: int = 2,
    train_intervals: bool = True,
    batch_norm: bool = False,
    optimizer: Optimizer = "adam",
    epochs: int = 100,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    l1: float = 0.0,
    entropy: float = 0.0,
    amp: bool = False,
    compile: bool = False,  # noqa: A002  # the name of PyTorch's own function
    micro_batch: int | None = None,
    patience: int = 20,
    validation: float = 0.2,
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    resume: bool = False,
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
        grid, order, normalization, power, train_intervals: as for `ReLUKANLayer`, but that the papers' normalisation,
            "peak", is the default: with it bumps do not lose their height as they move. Several grids, each finer than
            the one before, are trained one after the other, see `refine`: each begins as the best copy of the
            one before, and has its share of the epochs, a learning rate from the start and patience of its own.
        batch_norm: as for `ReLUKAN`. It keeps a deep network alive at high learning rates; at the usual one a
            network that begins linear, as all with several hidden layers do here, stays alive without, and is the
            more accurate: small batches make the normalisation noisy.
        optimizer: "adam", AdamW on batches, or "lbfgs", LBFGS with a strong Wolfe line search on all rows at once: for
            small networks and smooth targets, where it reaches errors that Adam does not.
        epochs: the most passes over the training rows, over all grids; with LBFGS, an epoch is twenty iterations.
        batch_size: rows for one step; None is a 32nd of the training rows, within 16 and 1024. Over several
            processes it is the sum of theirs.
        learning_rate: at the start; it falls to 0 along a cosine over the epochs. None is 0.1 over the number
            of inputs of all layers together, within 0.002 and 0.02. With LBFGS it is the first length that a line
            search tries, always, and None is 1.
        weight_decay: of AdamW, on the coefficients; None is 0.001.
        l1, entropy: weights of KAN's penalties on the edges, in units of the loss: the L1 norm leaves edges small that
            are not needed, for `prune` to take out; the entropy prefers few large edges.
        amp: compute matrix products in bfloat16.
        compile: compile the network with `torch.compile`, which takes up to a minute at first.
        micro_batch: compute a step's gradient from so many rows at a time, in less memory. The result is the same up
            to rounding; but a normalisation, and the entropy, see only those rows at a time.
        patience: stop after this many epochs without a better held-out score.
        validation: the fraction of rows held out; for a classification, of each class.
        seed: of the split, the first weights and the order of rows.
        device: "auto" (a CUDA GPU if there is one), "cpu", "cuda", or another name torch knows.
        out: where to write the best network, as it is found and at the end. It is also written
            if training is interrupted (Ctrl-C), and KeyboardInterrupt is then raised again.
        resume: go on where the training that wrote `out` was interrupted, from ``<out>.resume`` beside it, which is
            written every second or so; everything else has to be as it was. The result is that of a training
            without interruption. Where there is no such file, training begins anew.
        progress: called after each epoch, by torchrun's first process.

    Raises:
        TableError: the data, or a column of it, cannot be used.
        InputError: an option is out of range, the memory does not suffice, or training diverges.
        CheckpointError: what to resume from cannot be read.
        MissingDeviceError: the device is not there.
        RelukanError: the network cannot be compiled.
    """
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise InputError(f"hidden must be the widths of the hidden layers, such as (64,), got {hidden!r}")
    options = Options(
        task=task,
        hidden=tuple(hidden),
        grids=tuple(grid) if isinstance(grid, Sequence) else (grid,),
        order=order,
        normalization=normalization,
        power=power,
        train_intervals=train_intervals,
        batch_norm=batch_norm,
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        l1=l1,
        entropy=entropy,
        amp=amp,
        compile=compile,
        micro_batch=micro_batch,
        patience=patience,
        validation=validation,
        seed=seed,
    )
    path = _checked_path(out, data, resume)
    place = find_device(device)
    examples = make_examples(data, target, columns, task)
    if examples.rows < _LEAST_ROWS:
        raise TableError(f"{examples.name}: training needs at least {_LEAST_ROWS} rows, got {examples.rows}")
    with joined(place) as processes:
        try:
            return _fit(examples, options, processes, path, resume, progress)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                "a step does not fit the memory: choose a smaller micro_batch, which gives the same network in "
                f"more time (now: {micro_batch or 'all rows of a batch at once'})"
            ) from error


def _fit(
    examples: Examples,
    options: Options,
    processes: Processes,
    path: Path | None,
    resume: bool,
    progress: Callable[[Epoch], None] | None,
) -> FitResult:
    training, held_out = split(examples.codes, examples.rows, options.validation, options.seed)
    units = scaling(examples, training)
    y = examples.y if units is None else ((examples.y - units[0]) / units[1]).astype(np.float32)
    tensors = [torch.from_numpy(array[part]) for part in (training, held_out) for array in (examples.x, y)]
    rows = Rows(*(tensor.to(processes.device) for tensor in tensors))
    ranges = torch.from_numpy(input_range(examples, training))
    network = options.network(examples.x.shape[1], examples.outputs, ranges).to(processes.device)
    method = options.method(0, *rows.x.shape)
    share = slice(processes.share_of(method.batch_size, 2 if options.batch_norm else 1))
    record = Record(units, rows.held_out_x)
    saver = None if path is None else Saver(path, options, examples, processes)
    elements = max(network.config["widths"]) * (options.grids[-1] + options.order)  # of one row's basis
    small = method.batch_size * elements < _ELEMENTS_FOR_THREADS
    with one_thread() if small else contextlib.nullcontext():
        memory = step_bytes(network, rows.x[share], rows.y[share], method)
        course = Course(network, rows, options, processes)
        if saver and resume:
            saver.resume(course, record)
        _run(course, record, saver, progress if processes.rank == 0 else None)
    best = record.best
    if best.model is None:
        raise InputError(
            f"training diverged in its first epoch: try a learning rate below {method.learning_rate:g}, "
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
        history=tuple(record.history),
        best_epoch=best.epoch,
        validation_rows=held_out,
        rows=examples.rows,
        seconds=record.seconds,
        step_bytes=memory,
        path=path,
    )


def _run(course: Course, record: Record, saver: Saver | None, progress: Callable[[Epoch], None] | None) -> None:
    """Every epoch of the course that is left, until one diverges."""
    try:
        for measured in course:
            if not measured.is_finite:
                break
            epoch = record.add(measured, course.network)
            if progress is not None:
                progress(epoch)
            if saver:
                saver.write(course, record)
    finally:  # also when interrupted
        if saver:
            saver.write_best(record.best)
    if saver:
        saver.complete()


def _checked_path(out: str | Path | None, data: object, resume: bool) -> Path | None:
    if out is None:
        if resume:
            raise InputError("resume needs out, the checkpoint that the interrupted training wrote")
        return None
    source = data.name if isinstance(data, Table) else data
    if isinstance(source, (str, Path)) and Path(out).resolve() == Path(source).resolve():
        raise InputError(f"{out} is the data itself: choose another file for the checkpoint")
    if Path(out).is_dir():
        raise InputError(f"{out} is a folder: expected a file to write the checkpoint to, such as {out}/model.pt")
    return Path(out)
