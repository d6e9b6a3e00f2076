"""The steps of training, on tensors: `Trainer` takes a network through epochs.

AdamW on mini-batches with a cosine learning rate, or LBFGS on all rows. After AdamW what counts is the exponential
moving average of the weights over the last hundred steps or so (Polyak and Juditsky 1992): on small
tables worth half a percent of accuracy, and steadier from epoch to epoch.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .gradient import CompiledGradient
from .processes import ALONE, Processes
from .sparsity import penalty

__all__ = [
    "Method",
    "Objective",
    "Optimizer",
    "Trainer",
    "answers_of",
    "measure",
    "one_thread",
    "score_of",
    "usual_batch_size",
]

Optimizer = Literal["adam", "lbfgs"]

LBFGS_HISTORY = 100  # pairs of vectors as long as the weights
_AVERAGE_DECAY = 0.99
_SEARCHES = 20  # of LBFGS in an epoch

Network = TypeVar("Network", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class Method:
    """How a network is trained: what `fit` takes under the same names, for one grid."""

    epochs: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    optimizer: Optimizer = "adam"
    weight_decay: float = 0.1
    l1: float = 0.0
    entropy: float = 0.0
    amp: bool = False
    compile: bool = False
    micro_batch: int | None = None


class Objective(nn.Module):
    """What a step makes smaller: the mean loss over rows, and the penalty on edges."""

    def __init__(self, network: nn.Module, method: Method) -> None:
        super().__init__()
        self.network = network
        self._method = method

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        method = self._method
        with torch.autocast(x.device.type, torch.bfloat16) if method.amp else contextlib.nullcontext():
            if not (method.l1 or method.entropy):
                return loss_of(self.network(x), y)
            *reached, answers = self.network.activations(x)  # type: ignore[operator]  # a ReLUKAN
            return loss_of(answers, y) + penalty(
                cast(nn.ModuleList, self.network.layers), reached, method.l1, method.entropy
            )


class Trainer(Generic[Network]):
    """Trains a network on rows x ``(rows, in)`` and y, ``(rows, out)`` numbers or ``(rows,)`` classes.

    Attributes:
        network: it changes with every step.
        average: what to use, and to score: the average of recent weights, or with LBFGS the last ones; in eval().
        epochs: done so far.
    """

    def __init__(self, network: Network, x: Tensor, y: Tensor, method: Method, processes: Processes = ALONE) -> None:
        self.average = copy.deepcopy(network).requires_grad_(False).eval()
        self.network = processes.prepared(network).train()
        self.epochs = 0
        self._steps = 0
        self._x, self._y = x, y
        self._method = method
        self._processes = processes
        self._random = torch.Generator().manual_seed(method.seed)
        objective = Objective(self.network, method)
        part = slice(method.micro_batch or -(-method.batch_size // processes.size))
        self._compiled = CompiledGradient(objective, x[part], y[part]) if method.compile else None
        self._objective = objective if method.compile else processes.wrapped(objective)
        self._optimizer = _lbfgs(self.network, method) if method.optimizer == "lbfgs" else _adam(self.network, method)
        self._slow, self._fast = _moving(self.average), _moving(self.network)

    def epoch(self) -> float:
        """One pass over the rows, in an order drawn anew, or twenty searches of LBFGS; the mean loss on the way."""
        loss = self._searches() if self._method.optimizer == "lbfgs" else self._pass()
        self.epochs += 1
        return loss

    def state(self) -> dict[str, Any]:
        """All that the epochs to come depend on, besides the arguments: plain values and the tensors themselves."""
        return {
            "epochs": self.epochs,
            "steps": self._steps,
            "random": self._random.get_state(),
            "optimizer": self._optimizer.state_dict(),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up the state of a trainer with the same arguments."""
        self.epochs, self._steps = state["epochs"], state["steps"]
        self._random.set_state(state["random"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])

    def _pass(self) -> float:
        method = self._method
        for group in self._optimizer.param_groups:
            group["lr"] = method.learning_rate * (1 + math.cos(math.pi * self.epochs / method.epochs)) / 2
        total = self._x.new_zeros(())  # read once an epoch, so that a GPU is not waited for
        order = torch.randperm(len(self._x), generator=self._random).to(self._x.device)
        for rows in _batches(order, method.batch_size, 2 * self._processes.size):
            self._optimizer.zero_grad()
            total += self._backward(rows) * len(rows)
            self._optimizer.step()
            self._steps += 1
            # At first, soon forget the first weights.
            self._average(1 - min(_AVERAGE_DECAY, self._steps / (self._steps + 10)))
        return float(self._processes.total(total)) / len(self._x)

    def _searches(self) -> float:
        rows = torch.arange(len(self._x), device=self._x.device)

        def loss() -> Tensor:
            self._optimizer.zero_grad()
            return self._processes.total(self._backward(rows))

        before = float(self._optimizer.step(loss))  # type: ignore[arg-type]  # LBFGS wants a tensor
        self._average(1.0)
        return before

    def _backward(self, rows: Tensor) -> Tensor:
        """Adds the gradient of the mean loss over the rows; returns this process's share of that loss."""
        own = self._processes.own(rows)
        parts = _batches(own, self._method.micro_batch or len(own), 2)
        loss = self._x.new_zeros(())
        for number, part in enumerate(parts, 1):
            share = len(part) / len(rows)
            loss += share * self._add_gradient(part, share, is_last=number == len(parts))
        if self._compiled:
            for parameter in self.network.parameters():
                self._processes.total(cast(Tensor, parameter.grad))
        return loss

    def _add_gradient(self, rows: Tensor, share: float, *, is_last: bool) -> Tensor:
        """Adds so much of the gradient of the mean loss over the rows; returns that loss."""
        x, y = self._x[rows], self._y[rows]
        if self._compiled:
            return self._compiled(x, y, share)
        with self._processes.joining(self._objective, is_last):
            loss: Tensor = self._objective(x, y)
            # DistributedDataParallel takes the mean over the processes, and this is about the sum.
            scale = loss.new_full((), share * self._processes.size)
            loss.backward(scale)  # type: ignore[no-untyped-call]
        return loss.detach()

    @torch.no_grad()
    def _average(self, share: float) -> None:
        """Moves the average towards the network by this share of the way."""
        torch._foreach_lerp_(self._slow, self._fast, share)


def _adam(network: nn.Module, method: Method) -> torch.optim.Optimizer:
    # Only the coefficients are pulled to zero: a bias, an interval or a normalisation has no reason to be there.
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (method.weight_decay, 0.0)]
    for name, parameter in network.named_parameters():
        groups[0 if name.endswith("weight") and parameter.ndim > 1 else 1]["params"].append(parameter)
    return torch.optim.AdamW(groups, lr=method.learning_rate, fused=True)


def _lbfgs(network: nn.Module, method: Method) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(
        network.parameters(),
        lr=method.learning_rate,
        max_iter=_SEARCHES,
        history_size=LBFGS_HISTORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=0.0,
        tolerance_change=0.0,
    )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Steps of a fraction of a millisecond cannot be shared out; see `fit`."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usual_batch_size(rows: int) -> int:
    """Rows for one step of so many training rows: a 32nd of them, within 16 and 1024."""
    return min(max(rows // 32, 16), 1024)


def _batches(rows: Tensor, size: int, least: int) -> list[Tensor]:
    """The rows, `size` at a time; fewer than `least` left over join those before, as batch normalisation needs two."""
    batches = list(torch.split(rows, size))
    if len(batches) > 1 and len(batches[-1]) < min(size, least):
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _moving(network: nn.Module) -> list[Tensor]:
    """What is averaged: the weights, and a normalisation's statistics."""
    both = itertools.chain(network.parameters(), network.buffers())
    return [tensor.detach() for tensor in both if tensor.is_floating_point()]


def loss_of(answers: Tensor, y: Tensor) -> Tensor:
    """The mean squared error of answers to numbers y, or the cross entropy of logits for classes y."""
    of: Callable[..., Tensor] = functional.mse_loss if y.is_floating_point() else functional.cross_entropy
    return of(answers.float() if answers.dtype == torch.bfloat16 else answers, y)


@torch.no_grad()
def answers_of(model: nn.Module, x: Tensor, block: int) -> Tensor:
    """The network's answers ``(rows, out)``, `block` rows at a time."""
    return torch.cat([model(rows) for rows in torch.split(x, block)])


def measure(network: nn.Module, x: Tensor, y: Tensor, block: int) -> tuple[float, float]:
    """The loss and the score of a network on rows, `block` at a time."""
    answers = answers_of(network, x, block)
    return float(loss_of(answers, y)), score_of(answers, y)


def score_of(answers: Tensor, y: Tensor) -> float:
    """R² of answers to numbers y ``(rows, targets)``, or the share of right classes y ``(rows,)``."""
    return _r2(answers, y) if y.is_floating_point() else float((answers.argmax(dim=1) == y).double().mean())


def _r2(answers: Tensor, y: Tensor) -> float:
    """R², the mean over the targets; for a target that is constant here, 0, or 1 if it is met exactly."""
    residual = (y - answers).double().square().sum(dim=0)
    spread = (y - y.mean(dim=0)).double().square().sum(dim=0)
    constant = (residual == 0).double()
    return float(torch.where(spread > 0, 1 - residual / spread.clamp_min(1e-300), constant).mean())
