"""`Trainer`: its steps, beside steps written down here with PyTorch's own parts."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from relukan_deploy.model import ReLUKAN, ReLUKANLayer
from relukan_deploy.training.loop import Method, Trainer

METHOD = Method(epochs=4, batch_size=16, learning_rate=1e-2)


def network(*, batch_norm: bool = False) -> ReLUKAN:
    torch.manual_seed(0)
    return ReLUKAN([2, 4, 3], batch_norm=batch_norm)


def rows(count: int = 40, *, classes: bool = False) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    x = torch.rand(count, 2, generator=random)
    return x, (x.sum(1) * 1.4).long() if classes else torch.rand(count, 3, generator=random)


def trained(model: nn.Module, x: Tensor, y: Tensor, method: Method, epochs: int = 2) -> tuple[nn.Module, list[float]]:
    trainer = Trainer(copy.deepcopy(model), x, y, method)
    losses = [trainer.epoch() for _ in range(epochs)]
    return trainer.network, losses


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("classes", [False, True])
def test_adam_is_pytorchs_on_batches_drawn_anew_each_epoch(classes: bool) -> None:
    x, y = rows(classes=classes)
    model = copy.deepcopy(network())
    decayed = [layer.weight for layer in model.layers]
    others = [value for name, value in model.named_parameters() if not name.endswith("weight")]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    random = torch.Generator().manual_seed(0)
    for _ in range(2):
        for part in torch.split(torch.randperm(40, generator=random), 16):
            loss = (functional.cross_entropy if classes else functional.mse_loss)(model(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
    assert largest_difference(trained(network(), x, y, METHOD)[0], model) < 1e-6


def test_lbfgs_finds_the_least_squares_of_a_single_layer() -> None:
    x, y = rows(200)
    model = ReLUKAN([2, 3], train_intervals=False)  # linear in its weights
    layer = cast(ReLUKANLayer, model.layers[0])
    design = torch.cat([layer.basis(x).flatten(1), torch.ones(200, 1)], dim=1).double()
    best = y - design @ torch.linalg.lstsq(design, y.double(), driver="gelsd").solution
    method = dataclasses.replace(METHOD, optimizer="lbfgs", learning_rate=1.0, batch_size=200)
    fitted, _ = trained(model, x, y, method, epochs=10)
    assert (fitted(x) - y).square().sum().item() < 1.001 * best.square().sum().item()


def test_the_average_of_lbfgs_is_its_network() -> None:
    trainer = Trainer(network(), *rows(), dataclasses.replace(METHOD, optimizer="lbfgs", learning_rate=1.0))
    trainer.epoch()
    assert largest_difference(trainer.average, trainer.network) == 0


@pytest.mark.parametrize("size", [1, 5, 16, 100])
@pytest.mark.parametrize("classes", [False, True])
def test_micro_batches_give_the_same_step(size: int, classes: bool) -> None:
    x, y = rows(classes=classes)
    whole, losses = trained(network(), x, y, METHOD)
    parts, same = trained(network(), x, y, dataclasses.replace(METHOD, micro_batch=size))
    assert largest_difference(whole, parts) < 1e-5
    assert losses == pytest.approx(same, rel=1e-5)


def test_matrix_products_in_bfloat16_train_as_well() -> None:
    x, y = rows()
    _, exact = trained(network(), x, y, METHOD, epochs=4)
    model, losses = trained(network(), x, y, dataclasses.replace(METHOD, amp=True), epochs=4)
    assert losses == pytest.approx(exact, rel=0.02)
    assert losses != exact
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


def test_a_single_row_left_over_joins_the_batch_before() -> None:
    x, y = rows(33)
    _, losses = trained(network(batch_norm=True), x, y, METHOD)  # which a batch of one row would stop
    assert losses[1] < losses[0]


def test_a_single_row_left_over_joins_the_micro_batch_before() -> None:
    x, y = rows(32)
    _, losses = trained(network(batch_norm=True), x, y, dataclasses.replace(METHOD, micro_batch=5))
    assert losses[1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", [METHOD, dataclasses.replace(METHOD, optimizer="lbfgs", learning_rate=1.0)])
def test_compiled_it_takes_the_same_steps(method: Method) -> None:
    x, y = rows(32)
    eager, losses = trained(network(), x, y, method, epochs=1)
    fast, same = trained(network(), x, y, dataclasses.replace(method, compile=True), epochs=1)
    assert largest_difference(eager, fast) < 1e-4
    assert losses == pytest.approx(same, rel=1e-5)
