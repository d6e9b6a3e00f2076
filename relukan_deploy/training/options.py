"""What `fit` may be asked for, checked."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from typing import get_args

import numpy as np
import torch

from ..errors import InputError, MissingDeviceError
from ..model import Normalization, ReLUKAN
from ..spec import Task
from .loop import Method, Optimizer, usual_batch_size

__all__ = ["Options", "find_device"]

_WEIGHT_DECAY = 1e-3
# What each option is, in the words of an error; those that may be None as well.
_KINDS: tuple[tuple[str, tuple[type, ...], tuple[str, ...]], ...] = (
    ("a whole number", (int,), ("epochs", "batch_size", "micro_batch", "patience", "seed")),
    ("a number", (int, float), ("learning_rate", "weight_decay", "l1", "entropy", "validation")),
    ("True or False", (bool,), ("train_intervals", "batch_norm", "amp", "compile")),
)
_OPTIONAL = ("batch_size", "micro_batch", "learning_rate", "weight_decay")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of `fit` that decide which network comes out, besides the data: see there.

    Raises:
        InputError: one is out of range.
    """

    task: Task | None
    hidden: tuple[int, ...]
    grids: tuple[int, ...]
    order: int
    normalization: Normalization
    power: int
    train_intervals: bool
    batch_norm: bool
    optimizer: Optimizer
    epochs: int
    batch_size: int | None
    learning_rate: float | None
    weight_decay: float | None
    l1: float
    entropy: float
    amp: bool
    compile: bool
    micro_batch: int | None
    patience: int
    validation: float
    seed: int

    def __post_init__(self) -> None:
        if self.task not in (None, *get_args(Task)):
            raise InputError(f"task must be one of {get_args(Task)} or None, got {self.task!r}")
        if self.optimizer not in get_args(Optimizer):
            raise InputError(f"optimizer must be one of {get_args(Optimizer)}, got {self.optimizer!r}")
        self._check_kinds()
        for name in ("epochs", "batch_size", "micro_batch", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        for name in ("weight_decay", "l1", "entropy"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise InputError(f"{name} must be at least 0, got {value}")
        if self.learning_rate is not None and not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise InputError(f"learning_rate must be greater than 0, got {self.learning_rate}")
        if not 0 < self.validation < 1:
            raise InputError(f"validation must be a fraction of the rows between 0 and 1, got {self.validation}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be from 0 to 2**63 - 1, got {self.seed}")
        if self.optimizer == "lbfgs" and (self.batch_size is not None or self.weight_decay):
            raise InputError(
                "batch_size and weight_decay are matters of adam: LBFGS takes all rows at once "
                "(micro_batch bounds its memory; l1 and entropy keep edges small)"
            )
        for name in ("batch_size", "micro_batch"):
            if self.batch_norm and getattr(self, name) == 1:
                raise InputError(f"batch_norm needs at least 2 rows at a time, got {name} 1: choose a larger one")
        self._check_grids()

    def _check_kinds(self) -> None:
        for words, kinds, names in _KINDS:
            for name in names:
                value = getattr(self, name)
                if isinstance(value, np.generic):  # the state of a training holds plain values
                    value = value.item()
                    object.__setattr__(self, name, value)
                if type(value) not in kinds and not (value is None and name in _OPTIONAL):
                    raise InputError(f"{name} must be {words}, got {value!r}")

    def _check_grids(self) -> None:
        grids = self.grids
        rising = all(type(each) is int for each in grids[1:]) and all(a < b for a, b in itertools.pairwise(grids))
        if not grids or not rising:
            raise InputError(f"grid must be a whole number, or several, each above the one before, got {list(grids)}")
        if len(grids) > self.epochs:
            raise InputError(f"{len(grids)} grids need as many epochs or more, got {self.epochs}")

    def network(self, inputs: int, outputs: int, input_range: torch.Tensor) -> ReLUKAN:
        """The network to begin with; the same one every time."""
        with torch.random.fork_rng(devices=[]):  # the caller's own random numbers go on undisturbed
            torch.manual_seed(self.seed)
            return ReLUKAN(
                [inputs, *self.hidden, outputs],
                self.grids[0],
                self.order,
                normalization=self.normalization,
                power=self.power,
                train_intervals=self.train_intervals,
                batch_norm=self.batch_norm,
                # What comes without is made for one hidden layer, and does well there.
                initialization="reference" if len(self.hidden) == 1 else "linear",
                input_range=input_range,
            )

    def method(self, stage: int, rows: int, inputs: int) -> Method:
        """How the network is trained on one of the grids, on so many rows of so many inputs."""
        share = self.epochs * (stage + 1) // len(self.grids) - self.epochs * stage // len(self.grids)
        adam = self.optimizer == "adam"
        # A step of Adam moves every weight alike, and so an answer the more, the more inputs there are on the way.
        rate = min(max(0.1 / (inputs + sum(self.hidden)), 0.002), 0.02) if adam else 1.0
        return Method(
            epochs=share,
            batch_size=min(self.batch_size or usual_batch_size(rows), rows) if adam else rows,
            learning_rate=rate if self.learning_rate is None else self.learning_rate,
            seed=self.seed,
            optimizer=self.optimizer,
            weight_decay=_WEIGHT_DECAY if self.weight_decay is None else self.weight_decay,
            l1=self.l1,
            entropy=self.entropy,
            amp=self.amp,
            compile=self.compile,
            micro_batch=None if self.micro_batch is None else min(self.micro_batch, rows),
        )


def find_device(name: str) -> torch.device:
    """The device of this name; of "auto", a GPU if there is one.

    Raises:
        InputError: it is no such name.
        MissingDeviceError: it is not there.
    """
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
