"""The training loop itself, on tensors.

AdamW on mini-batches with a cosine learning rate. What is scored is the exponential moving
average of the weights over the last hundred steps or so (Polyak and Juditsky 1992): on small
tables worth half a percent of accuracy, and steadier from epoch to epoch.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["answers_of", "score_of", "train_epochs", "usual_batch_size"]

_AVERAGE_DECAY = 0.99
_WEIGHT_DECAY = 0.1

Network = TypeVar("Network", bound=nn.Module)


def train_epochs(
    model: Network,
    x: Tensor,
    y: Tensor,
    held_out_x: Tensor,
    held_out_y: Tensor,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    block: int,
) -> Iterator[tuple[float, float, float, Network]]:
    """After each epoch: training loss, held-out score, minus the held-out loss, and the network.

    The network is the average of recent weights, in eval(), and goes on changing with the next epoch.
    Held-out rows are scored `block` at a time.
    """
    loss_of = functional.mse_loss if y.is_floating_point() else functional.cross_entropy
    average = copy.deepcopy(model).requires_grad_(False).eval()
    model.train()
    # Only the coefficients are pulled to zero: a bias, an interval or a normalisation has no reason to be there.
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (_WEIGHT_DECAY, 0.0)]
    for name, parameter in model.named_parameters():
        groups[0 if name.endswith("weight") and parameter.ndim > 1 else 1]["params"].append(parameter)
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    random = torch.Generator().manual_seed(seed)
    steps = 0
    for _ in range(epochs):
        total = torch.zeros((), device=x.device)  # read once an epoch, so that a GPU is not waited for
        for rows in _batches(torch.randperm(len(x), generator=random).to(x.device), batch_size):
            loss = loss_of(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach() * len(rows)
            steps += 1
            _move(average, model, 1 - min(_AVERAGE_DECAY, steps / (steps + 10)))  # soon forget the first weights
        schedule.step()
        answers = answers_of(average, held_out_x, block)
        yield float(total) / len(x), score_of(answers, held_out_y), -float(loss_of(answers, held_out_y)), average


def usual_batch_size(rows: int) -> int:
    """Rows for one step of so many training rows: a 32nd of them, within 16 and 1024."""
    return min(max(rows // 32, 16), 1024)


def _batches(rows: Tensor, size: int) -> list[Tensor]:
    """The rows, `size` at a time; one left over joins those before it, as batch normalisation needs two."""
    batches = list(torch.split(rows, size))
    if size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@torch.no_grad()
def _move(average: nn.Module, model: nn.Module, share: float) -> None:
    """Moves the weights, and a normalisation's statistics, by this share of the way."""
    pairs = (zip(of(average), of(model), strict=True) for of in (nn.Module.parameters, nn.Module.buffers))
    for slow, fast in itertools.chain.from_iterable(pairs):
        if slow.is_floating_point():
            slow.lerp_(fast, share)


@torch.no_grad()
def answers_of(model: nn.Module, x: Tensor, block: int) -> Tensor:
    """The network's answers ``(rows, out)``, `block` rows at a time."""
    return torch.cat([model(rows) for rows in torch.split(x, block)])


def score_of(answers: Tensor, y: Tensor) -> float:
    """R² of answers to numbers y ``(rows, targets)``, or the share of right classes y ``(rows,)``."""
    return _r2(answers, y) if y.is_floating_point() else float((answers.argmax(dim=1) == y).double().mean())


def _r2(answers: Tensor, y: Tensor) -> float:
    """R², the mean over the targets; for a target that is constant here, 0, or 1 if it is met exactly."""
    residual = (y - answers).double().square().sum(dim=0)
    spread = (y - y.mean(dim=0)).double().square().sum(dim=0)
    constant = (residual == 0).double()
    return float(torch.where(spread > 0, 1 - residual / spread.clamp_min(1e-300), constant).mean())
