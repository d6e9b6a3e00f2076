"""The benchmark of imported networks: what its networks are, and a small run of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks import imported
from benchmarks._spline_networks import Library, Weights, trained, update_grid
from relukan_deploy.bench.peers.efficient_kan import EfficientKAN, EfficientKANLayer
from relukan_deploy.importers import efficient_kan, pykan
from relukan_deploy.spec import KanSpec
from relukan_deploy.splines import SplineSpec

needs_pykan = pytest.mark.skipif(
    importlib.util.find_spec("kan") is None, reason="pykan is not installed: pip install '.[bench]'"
)
LIBRARIES: list[object] = [pytest.param("pykan", marks=needs_pykan), "efficient-kan"]


def spec_of(library: Library, state: dict[str, torch.Tensor]) -> KanSpec:
    return pykan.load(state) if library == "pykan" else efficient_kan.load(state)


@pytest.mark.parametrize("weights", ["fitted", "random"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_state_and_the_module_are_one_network(library: Library, weights: Weights) -> None:
    peer = trained(library, (2, 3, 1), weights, steps=2)
    x = np.random.default_rng(1).uniform(-1, 1, (50, 2)).astype(np.float32)
    with torch.no_grad():
        y = peer.module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y, spec_of(library, dict(peer.state)).evaluate(x), atol=3e-6)


@pytest.mark.parametrize("library", LIBRARIES)
def test_its_knots_follow_the_data(library: Library) -> None:
    """Normal draws crowd in the middle, and so do their quantiles: 0.25 and 1.4 standard deviations lie between."""
    (first, _) = spec_of(library, dict(trained(library, (2, 3, 1), "fitted", steps=2).state)).layers
    assert isinstance(first, SplineSpec)
    steps = np.diff(first.knots)[:, 3:-3]
    assert (steps[:, [0, -1]].min(axis=1) > 2 * steps[:, 2]).all()


def test_knots_that_move_to_the_data_leave_the_function_alone() -> None:
    """What a cubic computes, a spline on any knots can compute."""
    torch.manual_seed(0)
    model = EfficientKAN((2, 3)).double()
    x = torch.randn(400, 2, dtype=torch.float64) / 8
    (layer,) = model.layers
    assert isinstance(layer, EfficientKANLayer)
    curve = torch.stack([(x + shift) ** 3 - x for shift in (0.1, 0.5, -0.3)])  # (out, batch, in)
    weight = torch.linalg.lstsq(layer.basis(x).transpose(0, 1), curve.permute(2, 1, 0), driver="gelsd").solution
    layer.spline_weight.data = weight.permute(2, 0, 1).contiguous()
    layer.spline_scaler.data.uniform_(0.5, 2)
    with torch.no_grad():
        before, knots = model(x), layer.grid.clone()
        update_grid(model, x)
        assert (layer.grid - knots).abs().min() > 0.01
        torch.testing.assert_close(model(x), before, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_both_graphs_are_timed_and_compared_with_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(imported, "NETWORKS", (("efficient-kan", (2, 3, 1)),))
    monkeypatch.setattr(imported, "BATCHES", (1, 64))
    monkeypatch.setattr(imported, "GOALS", {("efficient-kan", (2, 3, 1)): {1: 1e-9, 64: 1e9}})
    imported.main(["--quick", "--json", str(tmp_path / "found.json")])
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    assert [(each["weights"], each["batch"]) for each in results] == [
        (weights, batch) for weights in ("fitted", "random") for batch in (1, 64)
    ]
    for each in results:
        assert set(each["seconds"]) == {imported.OURS, imported.THEIRS, imported.STRICT, imported.RELU_KAN}
        ratio = each["over this graph"][imported.THEIRS]
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
        assert all(error <= 1e-5 for errors in each["error"].values() for error in errors.values())
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("at least 1e-09 ×: reached") == 2
    assert printed.count("at least 1e+09 ×: NOT reached") == 2


def test_a_wrong_graph_would_be_seen() -> None:
    spec = spec_of("efficient-kan", dict(trained("efficient-kan", (2, 3, 1), "random").state))

    class Wrong(imported.Graph):
        def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
            y: NDArray[np.float32] = (spec.evaluate(x) + 0.1 * (np.abs(x).max(axis=1, keepdims=True) > 5)).astype("f4")
            return y

    errors = imported.errors_of({imported.OURS: Wrong(b"", "direct-1")}, spec)[imported.OURS]
    assert errors["inside"] < 1e-6
    assert errors["outside"] > 1e-3
