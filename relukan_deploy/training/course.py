"""The epochs of `fit`: one grid after the other, each for its share of the epochs or until patience ends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ..importers.own import network_of
from ..model import ReLUKAN
from ..refinement import layers_of, refine
from .loop import Method, Trainer, measure
from .options import Options
from .processes import Processes

__all__ = ["Course", "Measured", "Rows"]

# Held-out rows are scored in blocks whose basis stays near this many numbers.
_BLOCK_ELEMENTS = 1 << 24


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """What is trained on and what is held out: x ``(rows, in)`` and y, ``(rows,)`` classes or ``(rows, targets)``."""

    x: Tensor
    y: Tensor
    held_out_x: Tensor
    held_out_y: Tensor


class Measured(NamedTuple):
    """What came of an epoch."""

    loss: float
    held_out_loss: float
    score: float

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better: the score, and of the same scores the lower loss."""
        return self.score, -self.held_out_loss

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, self))


class Course:
    """An iterator over epochs, which can be left at any of them and taken up there.

    Attributes:
        network: what the last epoch left, to be used and scored; it changes with the next one.
    """

    _stage: int
    _best: tuple[float, float]
    _stale: int
    _method: Method
    _trainer: Trainer[ReLUKAN]

    def __init__(self, network: ReLUKAN, rows: Rows, options: Options, processes: Processes) -> None:
        self._rows = rows
        self._options = options
        self._processes = processes
        self._begin(network, 0)

    @property
    def network(self) -> ReLUKAN:
        return self._trainer.average

    def __iter__(self) -> Iterator[Measured]:
        while True:
            while self._trainer.epochs < self._method.epochs and self._stale < self._options.patience:
                measured = self._epoch()
                self._stale = 0 if measured.rank > self._best else self._stale + 1
                self._best = max(self._best, measured.rank)
                yield measured
            if self._stage + 1 == len(self._options.grids):
                return
            finer = refine(self.network, self._options.grids[self._stage + 1], self._rows.x).model
            self._begin(finer.requires_grad_(True), self._stage + 1)

    def state(self) -> dict[str, Any]:
        """All that the epochs to come depend on, besides the arguments: plain values and the tensors themselves."""
        return {
            "stage": self._stage,
            "best": list(self._best),
            "stale": self._stale,
            "config": self._trainer.network.config,
            "trainer": self._trainer.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up the state of a course with the same arguments."""
        network = network_of(state["config"], state["trainer"]["network"]).to(self._processes.device)
        self._begin(network.requires_grad_(True), state["stage"])
        self._trainer.load(state["trainer"])
        self._best, self._stale = (state["best"][0], state["best"][1]), state["stale"]

    def _begin(self, network: ReLUKAN, stage: int) -> None:
        """Takes up a network with the grid of this stage."""
        self._stage = stage
        self._best = (-math.inf, -math.inf)
        self._stale = 0
        self._method = self._options.method(stage, *self._rows.x.shape)
        self._trainer = Trainer(network, self._rows.x, self._rows.y, self._method, self._processes)

    def _epoch(self) -> Measured:
        loss = self._trainer.epoch()
        scored = [loss, math.nan, math.nan]
        if self._processes.rank == 0:
            network, rows = self.network, self._rows
            elements = max(layer.starts.numel() for layer in layers_of(network))  # of one row's basis
            scored[1:] = measure(network, rows.held_out_x, rows.held_out_y, max(1, _BLOCK_ELEMENTS // elements))
        return Measured(*self._processes.agreed(scored))
