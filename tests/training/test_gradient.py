"""The compiled gradient, against autograd's."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from relukan_deploy.errors import RelukanError
from relukan_deploy.model import ReLUKAN
from relukan_deploy.training.gradient import CompiledGradient

pytestmark = pytest.mark.slow
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")


class Squares(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.mse_loss(self.network(x), y)


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x, x.prod(dim=1, keepdim=True)


def objective(*, batch_norm: bool = False, train_intervals: bool = True) -> Squares:
    torch.manual_seed(0)
    return Squares(ReLUKAN([2, 3, 1], batch_norm=batch_norm, train_intervals=train_intervals).double())


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if each.grad is None else each.grad.clone() for name, each in module.named_parameters()}


@needs_compiler
@pytest.mark.parametrize("batch_norm", [False, True])
def test_gradients_losses_and_statistics_are_those_of_autograd_in_every_step(batch_norm: bool) -> None:
    ours, theirs = objective(batch_norm=batch_norm), objective(batch_norm=batch_norm)
    gradient = CompiledGradient(ours, *rows(40))
    steps = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (ours, theirs)]
    for count in (40, 40, 7, 40):  # the third batch is another size, as the last of an epoch
        x, y = rows(count, count)
        for each in steps:
            each.zero_grad()
        loss = theirs(x, y)
        loss.backward()
        torch.testing.assert_close(gradient(x, y), loss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(gradients(ours), gradients(theirs), rtol=1e-9, atol=1e-12)
        for each in steps:
            each.step()
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()), rtol=1e-9, atol=1e-12)


@needs_compiler
def test_shares_of_gradients_add_up() -> None:
    x, y = rows(40)
    parts, whole = objective(), objective()
    gradient = CompiledGradient(parts, x[:10], y[:10])
    for part in range(4):
        chosen = slice(10 * part, 10 * (part + 1))
        gradient(x[chosen], y[chosen], 0.25)
    whole(x, y).backward()
    torch.testing.assert_close(gradients(parts), gradients(whole), rtol=1e-9, atol=1e-12)


@needs_compiler
def test_compiling_changes_nothing() -> None:
    module = objective(batch_norm=True)
    before = copy.deepcopy(module.state_dict())
    CompiledGradient(module, *rows(9))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert not any(gradient is not None for gradient in gradients(module).values())


@needs_compiler
def test_intervals_that_do_not_train_have_no_gradient_and_stay() -> None:
    module = objective(train_intervals=False)
    before = copy.deepcopy(dict(module.named_buffers()))
    module.network.get_parameter("layers.0.bias").requires_grad_(False)
    CompiledGradient(module, *rows(9))(*rows(9))
    assert {name for name, each in gradients(module).items() if each is not None} == {
        f"network.layers.{name}" for name in ("0.weight", "1.weight", "1.bias")
    }
    assert all(torch.equal(before[name], each) for name, each in module.named_buffers())


def test_without_a_compiler_the_error_says_so_in_one_line() -> None:
    import torch._inductor.config as config

    wanted = {"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}
    with config.patch(wanted), pytest.raises(RelukanError, match=r"^torch\.compile failed: .*no-such-compiler[^\n]*$"):
        CompiledGradient(objective(), *rows(9))
