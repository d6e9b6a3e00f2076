"""State dicts of efficient-kan, against answers of its own code and of a network of ours in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from relukan_deploy.bench.peers.efficient_kan import EfficientKAN
from relukan_deploy.checkpoint import load_checkpoint
from relukan_deploy.errors import CheckpointError
from relukan_deploy.importers import efficient_kan
from relukan_deploy.splines import SplineSpec

DATA = Path(__file__).parents[1] / "data"
FIXTURES = ("efficient_kan_2_5_1_g5k3_updated", "efficient_kan_digits_64_16_10_g5k3")


def network(*widths: int, grid: int = 5, order: int = 3, seed: int = 0) -> EfficientKAN:
    """Its knots are uneven and differ from input to input, as its grid updates leave them."""
    torch.manual_seed(seed)
    model = EfficientKAN(widths, grid=grid, order=order)
    for name, buffer in model.named_buffers():
        assert name.endswith(".grid")
        buffer += torch.rand_like(buffer) * 0.9 * (2 / grid)
    return model


def state_of(*widths: int, **options: int) -> dict[str, Tensor]:
    return network(*widths, **options).state_dict()


def rows(count: int) -> NDArray[np.float64]:
    """Within the knots, and as far again outside them."""
    return np.random.default_rng(0).uniform(-6, 6, (200, count))


def answers(model: EfficientKAN, x: NDArray[np.float64]) -> NDArray[np.float64]:
    with torch.no_grad():
        y: NDArray[np.float64] = model.double()(torch.from_numpy(x)).numpy()
    return y


def refusal(state: dict[Any, Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        efficient_kan.load(state)
    return str(caught.value)


@pytest.mark.parametrize("name", FIXTURES)
def test_a_trained_network_computes_what_its_own_code_does(name: str) -> None:
    checkpoint = load_checkpoint(DATA / f"{name}.pt")
    with np.load(DATA / f"{name}.npz") as expected:
        y, expected_y = checkpoint.spec().evaluate(expected["x"]), expected["y"]
        assert list(checkpoint.spec().widths) == expected["width"].tolist()
    assert checkpoint.kind == "efficient-kan"
    assert np.abs(y - expected_y).max() / np.abs(expected_y).max() < 1e-12


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(1, 5), st.lists(st.integers(1, 4), min_size=2, max_size=4))
def test_a_network_of_any_grid_and_order_does_too(grid: int, order: int, widths: list[int]) -> None:
    model = network(*widths, grid=grid, order=order)
    spec = efficient_kan.load(model.state_dict())
    x = rows(widths[0])
    expected = answers(model, x)
    assert np.abs(spec.evaluate(x) - expected).max() <= 1e-12 * max(1, np.abs(expected).max())


def test_grid_and_order_are_read_off_the_shapes() -> None:
    (layer,) = efficient_kan.load(state_of(2, 3, grid=7, order=2)).layers
    assert isinstance(layer, SplineSpec)
    assert (layer.degree, layer.knots.shape, layer.coefficients.shape) == (2, (2, 12), (3, 2, 9))


def test_without_a_scaler_the_splines_count_as_they_are() -> None:
    model = network(2, 3, 1)
    for name, parameter in model.named_parameters():
        if name.endswith("spline_scaler"):
            torch.nn.init.ones_(parameter)
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("spline_scaler")}
    np.testing.assert_allclose(efficient_kan.load(state).evaluate(rows(2)), answers(model, rows(2)), atol=1e-12)


def test_an_identity_base_passes_each_input_on() -> None:
    model = network(2, 3)
    x = rows(2)
    with torch.no_grad():
        weight = model.double().get_parameter("layers.0.base_weight")
        silu = torch.nn.functional.silu(torch.from_numpy(x))
        expected = answers(model, x) + ((torch.from_numpy(x) - silu) @ weight.T).numpy()
    np.testing.assert_allclose(
        efficient_kan.load(model.state_dict(), base="identity").evaluate(x), expected, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_numbers_are_those_of_the_file_whatever_their_dtype(dtype: torch.dtype) -> None:
    model = network(2, 3, 1).to(dtype)
    expected = answers(model, rows(2))
    spec = efficient_kan.load({key: value.to(dtype) for key, value in model.state_dict().items()})
    np.testing.assert_allclose(spec.evaluate(rows(2)), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_parameters_that_want_a_gradient_are_read_too() -> None:
    model = network(2, 1)
    state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert efficient_kan.load(state).widths == (2, 1)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["layers.0.base_weight"], True),
        (["epoch", "layers.12.spline_weight"], True),
        (["layers.0.spline_scaler"], True),
        (["layers.0.weight", "layers.0.grid"], False),
        (["layers.0.spline_linear.weight", "layers.0.base_linear.weight"], False),  # fast-kan
        (["layers.0.spline_weight.x", "x.layers.0.spline_weight", "layers.a.base_weight", 3], False),
        ([], False),
    ],
)
def test_a_network_is_recognised_by_its_keys(keys: list[Any], expected: bool) -> None:
    assert efficient_kan.matches(dict.fromkeys(keys)) is expected


# --- what is refused, and how it is said


def test_keys_that_are_missing_are_named() -> None:
    state = state_of(2, 3, 1)
    del state["layers.1.grid"]
    assert refusal(state) == (
        "for a checkpoint of efficient-kan this lacks layers.1.grid. Save it with torch.save(model.state_dict(), path)."
    )


@pytest.mark.parametrize("key", ["epoch", "layers.0.bias", "layers.2.spline_scalers", 3])
def test_keys_that_are_unknown_are_named(key: object) -> None:
    assert f"this also holds {key}. " in refusal({**state_of(2, 3, 1), key: torch.zeros(1)})


def test_a_state_dict_of_something_else_lacks_all_of_a_layer() -> None:
    message = refusal({"weight": torch.zeros(1)})
    assert "this lacks layers.0.base_weight, layers.0.grid, layers.0.spline_weight and also holds weight" in message


def test_an_enormous_layer_number_is_refused_at_once() -> None:
    state = {**state_of(2, 3), "layers.99999999999.base_weight": torch.zeros(3, 2)}
    assert "also holds layers.99999999999.base_weight" in refusal(state)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("base_weight", (2, 3)),
        ("base_weight", (6,)),
        ("spline_weight", (3, 2)),
        ("spline_weight", (2, 3, 8)),
        ("spline_scaler", (3, 2, 1)),
        ("spline_scaler", ()),
        ("grid", (12,)),
        ("grid", (3, 12)),
    ],
)
def test_shapes_that_do_not_fit_are_all_told(key: str, shape: tuple[int, ...]) -> None:
    message = refusal({**state_of(2, 3), f"layers.0.{key}": torch.zeros(shape)})
    assert message.startswith("layer 0 of this checkpoint of efficient-kan does not fit together: base_weight (")
    assert f"{key} {shape}" in message
    assert message.endswith(
        "expected base_weight (out, in), spline_weight (out, in, G + k), spline_scaler (out, in) "
        "and grid (in, G + 2k + 1)"
    )


def test_layers_that_do_not_follow_are_refused_with_the_size() -> None:
    state = {**state_of(2, 3, 4), **{key.replace(".0.", ".1."): value for key, value in state_of(5, 4).items()}}
    message = refusal(state)
    assert message.startswith("layer 1 of this checkpoint of efficient-kan does not fit together")
    assert message.endswith("with in = 3, the layer before's outputs")


def test_a_network_of_no_numbers_is_refused() -> None:
    assert "does not fit together" in refusal({key: value[:0] for key, value in state_of(2, 3).items()})


@pytest.mark.parametrize(("splines", "order"), [(11, 0), (12, -1), (3, 8)])
def test_an_order_that_no_spline_here_has_is_refused(splines: int, order: int) -> None:
    state = {**state_of(2, 3), "layers.0.spline_weight": torch.zeros(3, 2, splines)}
    message = refusal(state)
    assert f"has 12 knots for {splines} splines, so order {order} and " in message
    assert message.endswith("expected order 1 to 7 and at least 1 interval")


def test_splines_without_an_interval_are_refused() -> None:
    state = {**state_of(2, 3), "layers.0.spline_weight": torch.zeros(3, 2, 5)}
    assert "has 12 knots for 5 splines, so order 6 and -1 intervals" in refusal(state)


@pytest.mark.parametrize("step", [0.0, -0.1])
def test_knots_that_do_not_increase_are_refused_by_the_input(step: float) -> None:
    state = state_of(2, 3, 1)
    state["layers.1.grid"][2, 5] = state["layers.1.grid"][2, 4] + step
    assert refusal(state) == (
        "layers.1.grid of this checkpoint of efficient-kan does not increase along input 2: its own code answers NaN "
        "there. Update the grid with data whose values differ, or a larger grid_eps"
    )


@pytest.mark.parametrize("value", [3, None, [0.0], torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2).to_sparse()])
def test_a_value_that_is_no_plain_tensor_is_named(value: object) -> None:
    message = refusal({**state_of(2, 3), "layers.0.base_weight": value})
    assert message.startswith("layers.0.base_weight of this checkpoint of efficient-kan is ")
    assert message.endswith(": expected a tensor of floating-point numbers")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (torch.zeros(3, 2).to_sparse(), "torch.float32, sparse_coo"),
        (torch.zeros(3, 2, device="meta"), "torch.float32, on device meta"),
        (torch.zeros(1).expand(10**6, 10**6), "torch.float32, of shape (1000000, 1000000)"),
    ],
    ids=["sparse", "meta", "expanded"],
)
def test_what_makes_a_tensor_of_floats_unusable_is_said(value: torch.Tensor, what: str) -> None:
    message = refusal({**state_of(2, 3), "layers.0.base_weight": value})
    assert f"is {what}: expected a tensor" in message


def test_a_tensor_that_torch_expanded_is_as_good_as_another() -> None:
    state = state_of(2, 3)
    state["layers.0.grid"] = state["layers.0.grid"][:1].expand(2, -1)
    copied = {**state, "layers.0.grid": state["layers.0.grid"].clone()}
    x = np.random.default_rng(0).uniform(-1, 1, (20, 2))
    np.testing.assert_array_equal(efficient_kan.load(state).evaluate(x), efficient_kan.load(copied).evaluate(x))


def test_a_layer_number_of_thousands_of_digits_is_an_unknown_key() -> None:
    state = {**state_of(2, 3), f"layers.{'9' * 5000}.base_weight": torch.zeros(3, 2)}
    assert "also holds layers.999" in refusal(state)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_number_that_is_not_finite_is_refused_by_name(value: float) -> None:
    state = state_of(2, 3)
    state["layers.0.spline_scaler"][1, 1] = value
    assert refusal(state) == (
        "layers.0.spline_scaler of this checkpoint of efficient-kan must be finite, got NaN or infinity"
    )
