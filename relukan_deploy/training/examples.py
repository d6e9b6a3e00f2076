"""From a table, or arrays, to what a network trains on: inputs, targets, and what they mean."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, TableError
from ..spec import Task
from ..table import Table, read_table, table_of

__all__ = ["Examples", "Units", "input_range", "make_examples", "scaling", "split"]

# Mean and standard deviation of each target, (targets,) each.
Units = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """x ``(rows, in)`` and y, ``(rows,)`` classes or ``(rows, targets)`` numbers, and what they mean."""

    name: str
    x: NDArray[np.float32]
    y: NDArray[Any]
    task: Task
    columns: tuple[str, ...] | None
    targets: tuple[str, ...]
    labels: tuple[str, ...] | None

    @property
    def rows(self) -> int:
        return len(self.x)

    @property
    def outputs(self) -> int:
        return len(self.targets if self.labels is None else self.labels)

    @property
    def codes(self) -> NDArray[np.int64] | None:
        return None if self.labels is None else self.y


def make_examples(data: Any, target: Any, columns: Sequence[str] | None, task: Task | None) -> Examples:
    """Chooses the columns and the task, reads both, and raises what `fit` says it raises."""
    names: tuple[str, ...] | None
    if isinstance(data, (str, Path, Table)):
        table = data if isinstance(data, Table) else read_table(data)
        targets = table.default_target if target is None else (target,) if isinstance(target, str) else tuple(target)
        names = chosen = _inputs(table, targets, columns)
    else:
        if target is None:
            raise InputError("arrays need a target: fit(x, y)")
        table = table_of("the arrays", {"x": data, "y": target})
        targets = table.default_target
        chosen = tuple(name for name in table.columns if name not in targets)
        if np.ndim(data) != 2 or not chosen:
            raise InputError(f"x must be (rows, in), got {np.shape(data)}")
        names = None if columns is None else tuple(columns)
        if names is not None and len(names) != len(chosen):
            raise InputError(f"columns must name all {len(chosen)} inputs, got {len(names)} names")
    task = task or table.infer_task(targets)
    if task == "classification" and len(targets) != 1:
        raise InputError(f"a classification has one target, got {len(targets)}: {', '.join(targets)}")
    x = table.features(chosen)
    if task == "regression":
        return Examples(table.name, x, table.values(targets), task, names, targets, None)
    codes, labels = table.classes(targets[0])
    return Examples(table.name, x, codes, task, names, targets, labels)


def _inputs(table: Table, targets: Sequence[str], columns: Sequence[str] | None) -> tuple[str, ...]:
    inputs = tuple(table.columns) if columns is None else tuple(columns)
    if columns is None:
        inputs = tuple(name for name in inputs if name not in targets)
    both = [name for name in inputs if name in targets]
    if both:
        raise InputError(f"{both[0]!r} is both an input and a target: leave it out of one")
    repeated = [name for name, count in Counter((*inputs, *targets)).items() if count > 1]
    if repeated:
        raise InputError(f"{repeated[0]!r} is named more than once among the columns: name it once")
    if not inputs or not targets:
        raise TableError(f"{table.name}: there must be an input column and a target, got {', '.join(table.columns)}")
    return inputs


def split(
    codes: NDArray[np.int64] | None, rows: int, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and rows held out. A class of two rows or more has some in both."""
    random = np.random.default_rng(seed)
    groups = [np.arange(rows)] if codes is None else [np.flatnonzero(codes == code) for code in np.unique(codes)]
    held_out = []
    for group in groups:
        count = min(max(round(len(group) * fraction), 1), len(group) - 1)
        held_out.append(random.permutation(group)[:count])
    chosen = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(rows), chosen), chosen


def input_range(examples: Examples, training: NDArray[np.int64]) -> NDArray[np.float32]:
    """``(in, 2)``: the minimum and maximum of each input over the training rows."""
    x = examples.x[training].astype(np.float64)
    low, high = x.min(axis=0), x.max(axis=0)
    # A constant input gets an interval round its value, wide enough to exist in float32.
    margin = np.where(low < high, 0.0, np.maximum(0.5, 0.01 * np.abs(low)))
    result = np.stack([low - margin, high + margin], axis=1)
    wide = result[:, 1] - result[:, 0] > np.finfo(np.float32).max / 2
    if wide.any():
        index = int(wide.argmax())
        name = repr(examples.columns[index]) if examples.columns else f"number {index}"
        raise TableError(
            f"{examples.name}: input {name} runs from {low[index]:g} to {high[index]:g}, "
            "too wide for float32: rescale the column"
        )
    return result.astype(np.float32)


def scaling(examples: Examples, training: NDArray[np.int64]) -> Units | None:
    """Mean and standard deviation of each target over the training rows; None for classes."""
    if examples.labels is not None:
        return None
    y = examples.y[training]
    deviation = y.std(axis=0)
    return y.mean(axis=0), np.where(deviation > 0, deviation, 1.0)  # all the variance may be in held-out rows
