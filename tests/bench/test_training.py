"""Steps of training: they train."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from relukan_deploy.bench.peers import PEERS, build
from relukan_deploy.bench.peers.ours import trained_like
from relukan_deploy.bench.subjects import Shape
from relukan_deploy.bench.subjects.torch_subjects import TorchEngine
from relukan_deploy.bench.training import training_turns
from relukan_deploy.errors import InputError, MissingDeviceError

SHAPE = Shape((2, 3, 1), grid=5, order=3, domain=np.array([[0.0, 1.0], [-1.0, 2.0]]))


def _module(name: str) -> nn.Module:
    return trained_like(SHAPE) if name == "ours" else next(iter(build(name, SHAPE).values()))


def _loss(module: nn.Module) -> float:
    """Of the function that is learnt: a sine of the mean of the inputs, each mapped to [0, 1]."""
    u = np.random.default_rng(0).random((500, 2))
    low, high = SHAPE.domain.T
    device = next(module.parameters()).device
    with torch.no_grad():
        y = module(torch.from_numpy(low + (high - low) * u).float().to(device)).cpu().numpy()
    return float(((y[:, 0] - np.sin(2 * np.pi * u.mean(1))) ** 2).mean())


def _train(module: nn.Module, engine: TorchEngine, steps: int) -> tuple[float, float]:
    before = _loss(module)
    turn = training_turns(module, SHAPE, 64, engine=engine)
    seconds = turn(steps)
    assert len(seconds) == steps
    assert min(seconds) > 0
    return before, _loss(module)


@pytest.mark.parametrize("name", ["ours", *PEERS])
def test_every_network_learns(name: str) -> None:
    if name == "pykan" and importlib.util.find_spec("kan") is None:
        pytest.skip("pykan is not installed: pip install '.[bench]'")
    module = _module(name)
    before, after = _train(module, "torch", 60)
    assert after < 0.97 * before
    assert module.training


@pytest.mark.slow
def test_a_compiled_step_learns_too() -> None:
    before, after = _train(_module("mlp"), "torch.compile", 60)
    assert after < 0.97 * before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_graphs_need_a_gpu() -> None:
    with pytest.raises(MissingDeviceError, match="CUDA graphs need an NVIDIA GPU"):
        training_turns(_module("mlp"), SHAPE, 4, engine="torch CUDA graph")


def test_other_engines_are_refused() -> None:
    with pytest.raises(InputError, match=r"a network is trained in one of torch, .* got 'tensorrt'"):
        training_turns(_module("mlp"), SHAPE, 4, engine="tensorrt")  # type: ignore[arg-type]
