"""What has come of a training so far: every epoch, and the best network."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ..importers.own import network_of
from ..model import ReLUKAN, ReLUKANLayer
from .course import Measured
from .examples import Units

__all__ = ["Best", "Epoch", "Record"]

# Of the held-out rows, so many at most are looked at for dead inputs.
_WATCHED_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One pass over the training rows.

    Attributes:
        number: from 1.
        loss: mean training loss over the epoch: cross entropy, or squared error in units of the targets' variance;
            with LBFGS, that before it, and penalties included.
        held_out_loss: the same on the held-out rows, after the epoch, without penalties.
        score: on the held-out rows, see `FitResult.score`.
        best: the best score so far.
        dead: for each layer, the fraction of its inputs, on a thousand held-out rows or so, that no bump reaches,
            see `ReLUKAN.dead_inputs`. Where it nears 1, everything behind has stopped learning.
    """

    number: int
    loss: float
    held_out_loss: float
    score: float
    best: float
    dead: tuple[float, ...]


class Best:
    """The best network so far, in the units of the data and on the CPU.

    Attributes:
        model: None before there is one.
        epoch: its number, from 1.
        score: its score.
    """

    def __init__(self, units: Units | None) -> None:
        self.model: ReLUKAN | None = None
        self.epoch = 0
        self.score = -math.inf
        self._rank = (-math.inf, -math.inf)
        self._units = units

    def offer(self, epoch: int, measured: Measured, network: ReLUKAN) -> None:
        """Keeps a copy of the network if it is better than the best so far."""
        if measured.rank > self._rank:
            self.model = _in_own_units(copy.deepcopy(network).cpu(), self._units)
            self.epoch, self.score, self._rank = epoch, measured.score, measured.rank

    def state(self) -> dict[str, Any] | None:
        if self.model is None:
            return None
        values = {"epoch": self.epoch, "score": self.score, "rank": list(self._rank)}
        return {**values, "config": self.model.config, "network": self.model.state_dict()}

    def load(self, state: Mapping[str, Any] | None) -> None:
        if state is not None:
            self.model = network_of(state["config"], state["network"]).requires_grad_(True)
            self.epoch, self.score, self._rank = state["epoch"], state["score"], tuple(state["rank"])


class Record:
    """Every epoch, the best network, and the time they took.

    Args:
        units: of the targets, that the best network is to answer in.
        held_out_x: ``(held out, in)``, of which some are looked at for dead inputs.
    """

    def __init__(self, units: Units | None, held_out_x: Tensor) -> None:
        self.best = Best(units)
        self.history: list[Epoch] = []
        self._watched = held_out_x[:: -(-len(held_out_x) // _WATCHED_ROWS)]
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the beginning; the time between an interruption and going on does not count."""
        return time.monotonic() - self._began

    def add(self, measured: Measured, network: ReLUKAN) -> Epoch:
        """Takes down an epoch that left this network."""
        number = len(self.history) + 1
        self.best.offer(number, measured, network)
        self.history.append(Epoch(number, *measured, self.best.score, network.dead_inputs(self._watched)))
        return self.history[-1]

    def state(self) -> dict[str, Any]:
        """All of it, in plain values and tensors."""
        epochs = [dataclasses.astuple(epoch) for epoch in self.history]
        return {"best": self.best.state(), "history": epochs, "seconds": self.seconds}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave."""
        self.best.load(state["best"])
        self.history = [Epoch(*epoch) for epoch in state["history"]]
        self._began = time.monotonic() - state["seconds"]


def _in_own_units(model: ReLUKAN, units: Units | None) -> ReLUKAN:
    """Folds the targets' mean and deviation into the last layer, in which the network is linear."""
    if units is not None:
        mean, deviation = (torch.from_numpy(values) for values in units)
        last = cast(ReLUKANLayer, model.layers[-1])  # nn.ModuleList forgets what it holds
        with torch.no_grad():
            last.weight.copy_(last.weight.double() * deviation[:, None, None])
            last.bias.copy_(last.bias.double() * deviation + mean)
    return model.requires_grad_(True)
