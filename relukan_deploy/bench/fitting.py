"""Families of networks trained on the same rows, with as many steps of the same optimiser, to compare them.

    test          a fifth of the rows, those that relukan-train holds out unless told otherwise; nothing is
                  trained on them, and nothing chosen by them
    validation    a fifth of the others; the learning rate of a family, and the epoch that is kept of a
                  network, are those that do best here
    training      the rest, which also say how inputs and targets are scaled

The learning rate is one of three, tried at the middle size with a quarter of the steps.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..bundle import Manifest
from ..errors import InputError, TableError
from ..model import ReLUKAN
from ..table import Table, read_table
from ..training.examples import Examples, input_range, make_examples, scaling, split
from ..training.loop import Method, Trainer, answers_of, measure, one_thread, score_of, usual_batch_size
from .peers import build
from .results import OURS
from .subjects import Shape

__all__ = ["MLP", "Rows", "Trained", "read_rows", "train_family"]

MLP = "mlp"

_HIDDEN = (2, 4, 8, 16, 32)  # one layer of a KAN
_MLP_HIDDEN = (8, 16, 32, 64, 128)  # both layers of a multilayer perceptron
_RATES = (2e-3, 1e-2, 5e-2)
_HELD_OUT, _SEED = 0.2, 0
_LEAST_ROWS = 50
_BLOCK = 1024  # rows that are scored at once


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The data, and what each row is for.

    Attributes:
        examples: as they were read.
        training, validation, test: indices of rows, ascending.
        x: ``(rows, in)`` float32, from 0 to 1 over the training rows.
        y: classes ``(rows,)``, or float32 targets ``(rows, targets)`` of mean 0 and deviation 1 over the
            training rows.
    """

    examples: Examples
    training: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    x: Tensor
    y: Tensor

    def error(self, answers: NDArray[np.floating[Any]]) -> float:
        """Of answers to the test rows in the units of the data: 1 − R², or the share of wrong classes."""
        return 1 - score_of(torch.from_numpy(answers), torch.from_numpy(self.examples.y[self.test]))


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A network after its training: what it is, its error on the test rows, and the seconds it took."""

    family: str
    shape: Shape
    module: nn.Module
    error: float
    seconds: float


def read_rows(data: str | Path | Table, target: str | Sequence[str] | None, manifest: Manifest) -> Rows:
    """The rows of a table, with the bundle's columns and task where it is for the same targets.

    Raises:
        TableError: the data, or a column of it, cannot be used.
    """
    table = data if isinstance(data, Table) else read_table(data)
    targets = (target,) if isinstance(target, str) else tuple(target or ())
    if not targets:
        known = manifest.targets is not None and set(manifest.targets) <= table.columns.keys()
        targets = manifest.targets if known and manifest.targets else table.default_target
    same = targets == manifest.targets and set(manifest.columns or ()) <= table.columns.keys()
    examples = make_examples(table, targets, manifest.columns if same else None, manifest.task if same else None)
    if examples.rows < _LEAST_ROWS:
        raise TableError(f"{examples.name}: comparing needs at least {_LEAST_ROWS} rows, got {examples.rows}")
    codes = examples.codes
    others, test = split(codes, examples.rows, _HELD_OUT, _SEED)
    training, validation = (
        others[part] for part in split(None if codes is None else codes[others], len(others), _HELD_OUT, _SEED)
    )
    low, high = input_range(examples, training).astype(np.float64).T
    x = ((examples.x - low) / (high - low)).astype(np.float32)
    units = scaling(examples, training)
    y = examples.y if units is None else ((examples.y - units[0]) / units[1]).astype(np.float32)
    return Rows(examples, training, validation, test, torch.from_numpy(x), torch.from_numpy(y))


def train_family(
    family: str, rows: Rows, *, grid: int, order: int, steps: int, say: Callable[[str], None]
) -> list[Trained]:
    """Every size of a family.

    Args:
        family: `OURS`, or a name of `PEERS`.
        grid, order: of the KANs.
        steps: of the optimiser, for each network.
        say: told what is being done.

    Raises:
        InputError: training diverges, or the family does not come in this shape.
        MissingDependencyError: the package of a peer is not installed.
    """
    sizes = _MLP_HIDDEN if family == MLP else _HIDDEN
    shapes = [_shape(family, rows, hidden, grid, order) for hidden in sizes]
    trained = []
    with one_thread():
        say(f"training {family}: choosing the learning rate")
        middle = shapes[len(shapes) // 2]
        tried = {rate: _train(family, middle, rows, rate, -(-steps // 4))[1] for rate in _RATES}
        rate = max(tried, key=tried.__getitem__)
        for shape in shapes:
            say(f"training {family}, widths {list(shape.widths)}")
            began = time.monotonic()
            module, score = _train(family, shape, rows, rate, steps)
            seconds = time.monotonic() - began
            if math.isfinite(score):
                x, y = _scaled(family, rows)[rows.test], rows.y[rows.test]
                trained.append(Trained(family, shape, module, 1 - score_of(answers_of(module, x, _BLOCK), y), seconds))
    if not trained:
        raise InputError(f"training diverged in every size, at the learning rates {', '.join(map(str, _RATES))}")
    return trained


def _shape(family: str, rows: Rows, hidden: int, grid: int, order: int) -> Shape:
    inputs, outputs = rows.x.shape[1], rows.examples.outputs
    middle = (hidden, hidden) if family == MLP else (hidden,)
    return Shape((inputs, *middle, outputs), grid, order, np.tile(_interval(family), (inputs, 1)))


def _interval(family: str) -> tuple[float, float]:
    """Where a family has its inputs. The reference ReLU-KAN has its bumps from 0 to 1 whatever the inputs are."""
    return (0.0, 1.0) if family == "relu-kan" else (-1.0, 1.0)


def _scaled(family: str, rows: Rows) -> Tensor:
    low, high = _interval(family)
    return low + (high - low) * rows.x


def _new(family: str, shape: Shape) -> nn.Module:
    """A network that has not been trained."""
    if family != OURS:
        return next(iter(build(family, shape).values())).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        return ReLUKAN(shape.widths, shape.grid, shape.order, input_range=torch.from_numpy(shape.domain))


def _train(family: str, shape: Shape, rows: Rows, rate: float, steps: int) -> tuple[nn.Module, float]:
    """The best epoch's network, in eval(), and its score on the validation rows: -inf if it never had one."""
    model, x = _new(family, shape), _scaled(family, rows)
    batch = usual_batch_size(len(rows.training))
    training_x, training_y, x, y = (values[part] for part in (rows.training, rows.validation) for values in (x, rows.y))
    method = Method(max(1, round(steps * batch / len(training_x))), batch, rate, _SEED)
    trainer = Trainer(model, training_x, training_y, method)
    best, state = (-math.inf, -math.inf), model.state_dict()
    for _ in range(method.epochs):
        trainer.epoch()
        loss, score = measure(trainer.average, x, y, _BLOCK)
        if not math.isfinite(loss):
            break
        if (score, -loss) > best:
            best, state = (score, -loss), copy.deepcopy(trainer.average.state_dict())
    model.load_state_dict(state)
    return model.eval(), best[0]
