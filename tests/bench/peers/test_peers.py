"""The peers' stand-ins against answers that the peers' own code gave in float64, or against their formula."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from relukan_deploy.bench.peers import PEERS, build
from relukan_deploy.bench.peers.efficient_kan import EfficientKAN, EfficientKANLayer
from relukan_deploy.bench.peers.fast_kan import FastKAN
from relukan_deploy.bench.peers.mlp import MLP, widths_for
from relukan_deploy.bench.peers.ours import trained_like
from relukan_deploy.bench.peers.relu_kan import ReferenceReLUKAN, RowsReLUKAN
from relukan_deploy.bench.subjects import Shape
from relukan_deploy.errors import InputError, MissingDependencyError

INSTALLED = [name for name in PEERS if name != "pykan" or importlib.util.find_spec("kan")]
needs_pykan = pytest.mark.skipif("pykan" not in INSTALLED, reason="pykan is not installed: pip install '.[bench]'")

Array = NDArray[np.float64]

DATA = Path(__file__).parents[2] / "data"
SHAPE = Shape((2, 5, 1), grid=5, order=3, domain=np.array([[0.0, 1.0], [-2.0, 6.0]]))


def _random(shape: Shape, rows: int = 50) -> torch.Tensor:
    x = np.random.default_rng(0).uniform(shape.domain[:, 0], shape.domain[:, 1], (rows, len(shape.domain)))
    return torch.from_numpy(x.astype(np.float32))


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
    model = MLP([3, 4, 2], activation=activation).double()  # type: ignore[arg-type]
    x = np.random.default_rng(0).normal(size=(7, 3))
    first_weight, first_bias, last_weight, last_bias = (p.detach().numpy() for p in model.parameters())
    expected = function(x @ first_weight.T + first_bias) @ last_weight.T + last_bias
    np.testing.assert_allclose(model(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(("widths", "parameters", "expected"), [((2, 5, 1), 125, (2, 31, 1)), ((2, 1), 41, (2, 10, 1))])
def test_hidden_widths_are_scaled_to_the_nearest_number_of_parameters(
    widths: tuple[int, ...], parameters: int, expected: tuple[int, ...]
) -> None:
    assert widths_for(widths, parameters) == expected
    counts = {hidden: sum(p.numel() for p in MLP([2, hidden, 1]).parameters()) for hidden in range(1, 100)}
    assert min(counts, key=lambda hidden: abs(counts[hidden] - parameters)) == expected[1]


def test_several_hidden_widths_keep_their_proportion() -> None:
    first, wide, narrow, last = widths_for((4, 64, 16, 1), 30000)
    assert (first, last) == (4, 1)
    assert wide == pytest.approx(4 * narrow, abs=4)
    assert sum(p.numel() for p in MLP([4, wide, narrow, 1]).parameters()) == pytest.approx(30000, rel=0.02)


def _layernorm(x: Array, weight: Array, bias: Array) -> Array:
    mean, variance = x.mean(1, keepdims=True), x.var(1, keepdims=True)
    y: Array = (x - mean) / np.sqrt(variance + 1e-5) * weight + bias
    return y


@pytest.mark.parametrize(("widths", "bumps"), [((2, 5, 1), 8), ((3, 1, 4), 13)])
def test_fast_kan_is_its_formula(widths: tuple[int, ...], bumps: int) -> None:
    torch.manual_seed(0)
    model = FastKAN(widths, bumps=bumps).double()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    x = np.random.default_rng(0).normal(0, 2, (40, widths[0]))
    y = x
    for layer, inputs in enumerate(widths[:-1]):
        own = {name.removeprefix(f"layers.{layer}."): value for name, value in state.items()}
        z = y if inputs == 1 else _layernorm(y, own["layernorm.weight"], own["layernorm.bias"])
        basis = np.exp(-(((z[:, :, None] - own["rbf.grid"]) / (4 / (bumps - 1))) ** 2))  # (batch, in, K)
        spline = own["spline_linear.weight"].reshape(-1, inputs, bumps)
        silu = y / (1 + np.exp(-y))
        y = np.einsum("bik,oik->bo", basis, spline) + silu @ own["base_linear.weight"].T + own["base_linear.bias"]
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.from_numpy(x)).numpy(), y, rtol=1e-10, atol=1e-12)


def test_fast_kan_has_the_parameters_of_the_original() -> None:
    state = FastKAN([2, 5], bumps=8).state_dict()
    assert {name.removeprefix("layers.0."): tuple(value.shape) for name, value in state.items()} == {
        "layernorm.weight": (2,),
        "layernorm.bias": (2,),
        "rbf.grid": (8,),
        "spline_linear.weight": (5, 16),
        "base_linear.weight": (5, 2),
        "base_linear.bias": (5,),
    }
    torch.testing.assert_close(state["layers.0.rbf.grid"], torch.linspace(-2, 2, 8))


def test_relu_kan_with_our_weights_is_our_network() -> None:
    ours = trained_like(Shape((3, 4, 2), 5, 3, np.tile((0.0, 1.0), (3, 1))))
    copied = {}
    for index, layer in enumerate(ours.layers):
        state = layer.state_dict()
        outputs, inputs, bumps = state["weight"].shape
        copied[f"rk_layers.{index}.phase_low"] = state["starts"]
        copied[f"rk_layers.{index}.phase_height"] = state["ends"]
        copied[f"rk_layers.{index}.equal_size_conv.weight"] = state["weight"].reshape(outputs, 1, bumps, inputs)
        copied[f"rk_layers.{index}.equal_size_conv.bias"] = state["bias"]
    reference = RowsReLUKAN((3, 4, 2), grid=5, order=3)
    reference.load_state_dict(copied)
    x = np.random.default_rng(0).uniform(-0.2, 1.2, (60, 3))
    with torch.no_grad():
        y = reference.double()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y, ours.spec().evaluate(x), atol=1e-6)  # its factor is rounded to float32 in ours


def _plain_pykan() -> torch.nn.Module:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from kan import KAN

        model: torch.nn.Module = KAN(width=[2, 5, 1], grid=5, k=3, auto_save=False)
    return model


@needs_pykan
def test_pykan_answers_as_one_that_nothing_was_done_to() -> None:
    fast, plain = build("pykan", SHAPE)["pykan"], _plain_pykan()
    theirs = plain.state_dict()
    assert fast.state_dict().keys() <= theirs.keys()
    plain.load_state_dict({**theirs, **fast.state_dict()})
    x = _random(SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain(x), rtol=0, atol=1e-6)
        assert fast(x).std() > 1e-3


@needs_pykan
def test_pykan_is_quiet_writes_nothing_and_leaves_random_numbers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    build("pykan", SHAPE)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


@needs_pykan
def test_pykan_moves_everything_that_it_computes_with() -> None:
    model = build("pykan", SHAPE)["pykan"]
    assert "input_id" in dict(model.named_buffers())


@pytest.mark.parametrize("name", INSTALLED)
def test_every_peer_takes_rows_in_float32_and_is_the_same_every_time(name: str) -> None:
    x = _random(SHAPE, rows=7)
    for (network, module), again in zip(build(name, SHAPE).items(), build(name, SHAPE).values(), strict=True):
        with torch.no_grad():
            y = module(x)
        assert (y.shape, y.dtype) == ((7, 1), torch.float32), network
        torch.testing.assert_close(module.state_dict(), again.state_dict(), rtol=0, atol=1e-6)  # pykan's least squares
        assert not module.training


@pytest.mark.parametrize("name", [pytest.param("pykan", marks=needs_pykan), "efficient-kan"])
def test_the_first_layers_splines_cover_the_domain(name: str) -> None:
    model = build(name, SHAPE)[name]
    layer = model.act_fun[0] if name == "pykan" else model.layers[0]  # type: ignore[index]
    knots = layer.grid.detach().numpy()  # type: ignore[union-attr]
    for own, (low, high) in zip(knots, SHAPE.domain, strict=True):
        step = (high - low) / 5
        np.testing.assert_allclose(own, [low + step * index for index in range(-3, 9)], atol=1e-6)


def test_the_plain_network_comes_in_two_sizes() -> None:
    same_widths, same_parameters = build("mlp", SHAPE).values()
    kan = sum(o + i * 8 * o for i, o in itertools.pairwise(SHAPE.widths))
    assert same_widths.widths == SHAPE.widths
    assert sum(p.numel() for p in same_parameters.parameters()) == pytest.approx(kan, abs=2)


def test_ours_maps_its_domain_first_where_it_is_not_the_unit_interval() -> None:
    unit = Shape((2, 3, 1), 5, 3, np.tile((0.0, 1.0), (2, 1)))
    assert trained_like(unit).layers[0].input_range is None
    assert trained_like(SHAPE).layers[0].input_range.tolist() == SHAPE.domain.tolist()  # type: ignore[operator]


def test_an_unknown_peer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="no peer is called 'nokan': choose from pykan, efficient-kan, fast-kan, rel"):
        build("nokan", SHAPE)


@pytest.mark.parametrize(("name", "grid", "order"), [("pykan", 5, 0), ("fast-kan", 1, 0)])
def test_a_shape_that_a_peer_does_not_have_is_refused(name: str, grid: int, order: int) -> None:
    with pytest.raises(InputError, match=f"order {order}"):
        build(name, Shape((2, 5, 1), grid, order, SHAPE.domain))


def test_a_missing_pykan_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kan", None)
    with pytest.raises(
        MissingDependencyError, match=r"Timing pykan needs the package 'pykan'.*relukan-deploy\[bench\]"
    ):
        build("pykan", SHAPE)
