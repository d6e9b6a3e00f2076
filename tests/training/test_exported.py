"""What `fit` makes survives its export: graph and engine are written, and compute what the network in PyTorch does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import relukan_deploy
from relukan_deploy.train import fit


@pytest.mark.parametrize(
    "options",
    [
        *({"power": power} for power in (1, 3, 5, 8)),
        {"normalization": "fixed"},
        {"train_intervals": False},
        {"hidden": (5, 4), "batch_norm": True},
        {"grid": (3, 6), "batch_norm": True},
        {"optimizer": "lbfgs", "epochs": 3},
        {"learning_rate": 0.1},  # at which some intervals cross
    ],
    ids=str,
)
@pytest.mark.parametrize("pruned", [False, True])
def test_it_computes_what_the_network_does(options: dict[str, Any], pruned: bool, tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(-2, 3, (200, 2))
    y = np.stack([np.sin(2 * x[:, 0]) + x[:, 1], 100 * x[:, 0] ** 2], axis=1)
    model = fit(x, y, device="cpu", **{"hidden": (8,), "epochs": 8, **options}).model
    if pruned:
        model = relukan_deploy.prune(model, 0.05, torch.from_numpy(x)).model
    bundle = relukan_deploy.export(model, tmp_path / "bundle", trt=True)
    assert {artifact.kind for artifact in bundle.manifest.artifacts} == {"onnx", "tensorrt-rtx"}
    rows = np.random.default_rng(1).uniform(-3, 4, (300, 2)).astype(np.float32)
    with torch.no_grad():
        expected = model.eval().double()(torch.from_numpy(rows).double()).numpy()
    answers = relukan_deploy.load(bundle.path)(rows)
    assert np.abs(answers - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
