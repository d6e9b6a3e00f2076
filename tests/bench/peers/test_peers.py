"""The peers' stand-ins against answers that the peers' own code gave in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from relukan_deploy.bench.peers.efficient_kan import EfficientKAN, EfficientKANLayer
from relukan_deploy.bench.peers.mlp import mlp
from relukan_deploy.bench.peers.relu_kan import ReferenceReLUKAN

DATA = Path(__file__).parents[2] / "data"


def _assert_same(name: str, peer: type[EfficientKAN] | type[ReferenceReLUKAN], trailing: tuple[int, ...]) -> None:
    with np.load(DATA / f"{name}.npz") as recorded:
        x, expected = recorded["x"], recorded["y"]
        model = peer(recorded["width"].tolist(), grid=int(recorded["grid"]), order=int(recorded["order"]))
    model.load_state_dict(torch.load(DATA / f"{name}.pt", weights_only=True))
    with torch.no_grad():
        y = model.double()(torch.from_numpy(x).reshape(*x.shape, *trailing))
    assert y.shape == (*expected.shape, *trailing)
    np.testing.assert_allclose(y.numpy().reshape(expected.shape), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["relu_kan_2_5_1_g5k3", "relu_kan_4_4_2_1_g10k3"])
def test_relu_kan_answers_as_the_reference_does(name: str) -> None:
    _assert_same(name, ReferenceReLUKAN, (1,))


@pytest.mark.parametrize("name", ["efficient_kan_2_5_1_g5k3_updated", "efficient_kan_digits_64_16_10_g5k3"])
def test_efficient_kan_answers_as_the_original_does(name: str) -> None:
    _assert_same(name, EfficientKAN, ())


def test_fresh_b_splines_sum_to_one_within_their_domain_and_vanish_outside() -> None:
    layer = EfficientKANLayer(3, 1, grid=5, order=3).double()
    inside = torch.linspace(-1, 0.999, 100, dtype=torch.float64).repeat(3, 1).T
    outside = torch.tensor([[-2.3, 2.3, 9.0]], dtype=torch.float64)
    assert torch.allclose(layer.basis(inside).sum(-1), torch.ones(100, 3, dtype=torch.float64), atol=1e-6)
    assert not layer.basis(outside).any()


@pytest.mark.parametrize(
    ("activation", "function"), [("silu", lambda z: z / (1 + np.exp(-z))), ("relu", lambda z: np.maximum(z, 0))]
)
def test_mlp_is_linear_layers_with_the_activation_between(activation: str, function) -> None:  # type: ignore[no-untyped-def]
    model = mlp([3, 4, 2], activation=activation).double()  # type: ignore[arg-type]
    x = np.random.default_rng(0).normal(size=(7, 3))
    first_weight, first_bias, last_weight, last_bias = (p.detach().numpy() for p in model.parameters())
    expected = function(x @ first_weight.T + first_bias) @ last_weight.T + last_bias
    np.testing.assert_allclose(model(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-12)
