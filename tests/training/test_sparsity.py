"""The penalties on edges, and what training with them leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy as entropy_of

from relukan_deploy import prune
from relukan_deploy.model import ReLUKANLayer
from relukan_deploy.train import fit
from relukan_deploy.training.sparsity import penalty


def test_they_are_the_l1_norm_of_the_edges_and_the_entropy_of_their_shares() -> None:
    torch.manual_seed(0)
    layer = ReLUKANLayer(3, 4).double()
    x = torch.rand(50, 3, dtype=torch.float64)
    spec = layer.spec()
    height = 4 / (spec.ends - spec.starts) ** 2
    edges = np.zeros((4, 3))
    for i in range(3):
        column = x.numpy()[:, i, None]
        bumps = (height[i] * np.maximum(spec.ends[i] - column, 0) * np.maximum(column - spec.starts[i], 0)) ** 2
        edges[:, i] = np.abs(bumps @ spec.coefficients[:, i].T).mean(0)
    found = [penalty([layer], [x], *weights).item() for weights in ((1.0, 0.0), (0.0, 1.0), (2.0, 3.0))]
    norm, spread = edges.sum(), float(entropy_of(edges.ravel()))
    assert found == pytest.approx([norm, spread, 2 * norm + 3 * spread])


def test_a_layer_without_edges_has_no_penalty_and_a_gradient() -> None:
    layer = ReLUKANLayer(2, 2)
    torch.nn.init.zeros_(layer.weight)
    value = penalty([layer], [torch.rand(5, 2)], 1.0, 1.0)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == 0
    assert all(each.grad is None or bool(each.grad.isfinite().all()) for each in layer.parameters())


def test_with_them_pruning_finds_the_inputs_that_do_not_matter() -> None:
    x = np.random.default_rng(0).uniform(0, 1, (300, 5))
    y = np.sin(3 * x[:, 1])
    options: dict[str, Any] = {"hidden": (4,), "epochs": 40, "learning_rate": 1e-2, "device": "cpu"}
    plain, sparse = (fit(x, y, **options, l1=weight, entropy=weight) for weight in (0.0, 1e-2))
    gone = [prune(result.model, 0.01, torch.from_numpy(x)).inputs for result in (plain, sparse)]
    assert gone == [(), (0, 2, 3, 4)]
    assert sparse.score > 0.98
