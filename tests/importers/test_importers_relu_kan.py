"""State dicts of the reference implementation, against answers of its own code."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damaged import refusals_of_changed_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from relukan_deploy.checkpoint import load_checkpoint
from relukan_deploy.errors import CheckpointError
from relukan_deploy.importers import relu_kan

DATA = Path(__file__).parents[1] / "data"
FIXTURES = sorted(path.stem for path in DATA.glob("relu_kan_*.pt"))


def state_of(*widths: int, grid: int = 5, order: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """The state dict of a reference network that was not trained, as its own constructor fills it."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for n, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        low = np.arange(-order, grid) / grid
        state[f"rk_layers.{n}.phase_low"] = torch.Tensor(np.tile(low, (inputs, 1)))
        state[f"rk_layers.{n}.phase_height"] = torch.Tensor(np.tile(low + (order + 1) / grid, (inputs, 1)))
        shape = (outputs, 1, grid + order, inputs)
        state[f"rk_layers.{n}.equal_size_conv.weight"] = torch.rand(shape, generator=generator) - 0.5
        state[f"rk_layers.{n}.equal_size_conv.bias"] = torch.rand(outputs, generator=generator)
    return state


def by_convolution(state: dict[str, Tensor], x: Tensor, grid: int, order: int) -> Tensor:
    """The reference's forward, in float64: its basis is reshaped, not transposed, under a Conv2d."""
    r = 4 * grid * grid / ((order + 1) * (order + 1))
    for n in range(len(state) // 4):
        low, high, weight, bias = (
            state[f"rk_layers.{n}.{key}"].double()
            for key in ("phase_low", "phase_height", "equal_size_conv.weight", "equal_size_conv.bias")
        )
        x = x.unsqueeze(-1)
        basis = (torch.relu(x - low) * torch.relu(high - x) * r) ** 2
        image = basis.reshape(len(x), 1, grid + order, low.shape[0])
        x = torch.nn.functional.conv2d(image, weight, bias).reshape(len(x), -1)
    return x


def refusal(state: dict[Any, Any], **options: int) -> str:
    with pytest.raises(CheckpointError) as caught:
        relu_kan.load(state, **options)
    return str(caught.value)


def test_there_are_fixtures() -> None:
    assert len(FIXTURES) == 2


@pytest.mark.parametrize("name", FIXTURES)
def test_a_trained_network_computes_what_its_own_code_does(name: str) -> None:
    with np.load(DATA / f"{name}.npz") as expected:
        checkpoint = load_checkpoint(DATA / f"{name}.pt", grid=int(expected["grid"]), order=int(expected["order"]))
        y, expected_y = checkpoint.spec().evaluate(expected["x"]), expected["y"]
        assert list(checkpoint.spec().widths) == expected["width"].tolist()
    assert checkpoint.kind == "relu_kan"
    assert np.abs(y - expected_y).max() / np.abs(expected_y).max() < 1e-12


@pytest.mark.parametrize("name", FIXTURES)
def test_the_network_in_pytorch_does_too(name: str) -> None:
    with np.load(DATA / f"{name}.npz") as expected:
        options: dict[str, Any] = {"grid": int(expected["grid"]), "order": int(expected["order"])}
        model = load_checkpoint(DATA / f"{name}.pt", **options).model.double()
        y = model(torch.from_numpy(expected["x"])).detach().numpy()
        assert np.abs(y - expected["y"]).max() / np.abs(expected["y"]).max() < 1e-12


@pytest.mark.parametrize("name", FIXTURES)
def test_trained_intervals_ask_for_grid_and_order(name: str) -> None:
    with pytest.raises(CheckpointError, match="give both, --grid G --order K with G \\+ K = ") as caught:
        load_checkpoint(DATA / f"{name}.pt")
    assert str(DATA / f"{name}.pt") in str(caught.value)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 6), st.lists(st.integers(1, 4), min_size=2, max_size=4))
def test_grid_and_order_of_an_untrained_network_are_read_off_its_lattice(
    grid: int, order: int, widths: list[int]
) -> None:
    state = state_of(*widths, grid=grid, order=order)
    model = relu_kan.load(state)
    assert (model.config["grid"], model.config["order"]) == (grid, order)
    x = torch.rand(5, widths[0], dtype=torch.float64)
    torch.testing.assert_close(model.double()(x), by_convolution(state, x, grid, order), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"grid": 4}, {"order": 2}, {"grid": 4, "order": 2}])
def test_one_of_grid_and_order_tells_the_other(options: dict[str, int]) -> None:
    state = state_of(2, 3, grid=4, order=2)
    state["rk_layers.0.phase_low"][0, 0] -= 0.3
    assert relu_kan.load(state, **options).config["order"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_network_keeps_the_dtype_it_was_saved_in(dtype: torch.dtype) -> None:
    model = relu_kan.load({key: value.to(dtype) for key, value in state_of(2, 3).items()})
    assert {value.dtype for value in model.state_dict().values()} == {dtype}


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_the_file_may_be_of_either_kind(tmp_path: Path, suffix: str) -> None:
    import safetensors.torch

    path = tmp_path / f"model.{suffix}"
    state = state_of(2, 3, 1)
    safetensors.torch.save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    x = torch.rand(5, 2, dtype=torch.float64)
    y = load_checkpoint(path).spec().evaluate(x.numpy())
    np.testing.assert_allclose(y, by_convolution(state, x, 5, 3).numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["rk_layers.0.phase_low"], True),
        (["module.weight", "rk_layers.12.x"], True),
        (["rk_layers.a.phase_low", "x.rk_layers.0.phase_low", 3], False),
        ([], False),
    ],
)
def test_a_reference_network_is_recognised_by_its_keys(keys: list[Any], expected: bool) -> None:
    assert relu_kan.matches(dict.fromkeys(keys)) is expected


# --- what is refused, and how it is said


def test_keys_that_are_missing_are_named() -> None:
    state = state_of(2, 3, 1)
    del state["rk_layers.0.phase_low"]
    assert refusal(state) == (
        "for a checkpoint of the reference ReLU-KAN this lacks rk_layers.0.phase_low. "
        "Save it with torch.save(model.state_dict(), path)."
    )


@pytest.mark.parametrize("key", ["epoch", "rk_layers.0.extra", 3])
def test_keys_that_are_unknown_are_named(key: object) -> None:
    assert f"this also holds {key}. " in refusal({**state_of(2, 3, 1), key: torch.zeros(1)})


def test_many_missing_keys_are_cut_short() -> None:
    message = refusal({**state_of(2, 3), "rk_layers.4.phase_low": torch.zeros(2, 8)})
    assert "this lacks rk_layers.1.equal_size_conv.bias, rk_layers.1" in message
    assert " … and also holds" in message or " …. Save" in message


def test_an_enormous_layer_number_is_refused_at_once() -> None:
    assert "also holds rk_layers.99999999999.phase_low" in refusal(
        {**state_of(2, 3), "rk_layers.99999999999.phase_low": torch.zeros(2, 8)}
    )


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("phase_low", (2, 7)),
        ("phase_low", (16,)),
        ("phase_height", (3, 8)),
        ("equal_size_conv.weight", (3, 2, 8)),
        ("equal_size_conv.weight", (3, 1, 2, 8)),
        ("equal_size_conv.bias", (4,)),
        ("equal_size_conv.bias", (1, 3)),
        ("equal_size_conv.bias", ()),
    ],
)
def test_shapes_that_do_not_fit_are_all_told(key: str, shape: tuple[int, ...]) -> None:
    state = {**state_of(2, 3), f"rk_layers.0.{key}": torch.zeros(shape)}
    message = refusal(state)
    assert "layer 0 of the reference ReLU-KAN does not fit together: phase_low (" in message
    assert str(shape) in message
    assert message.endswith("expected (in, K), (in, K), (out, 1, K, in) and (out,)")


def test_layers_that_do_not_follow_are_refused_with_the_size() -> None:
    state = {**state_of(2, 3, 4), **{k.replace(".0.", ".1."): v for k, v in state_of(5, 4).items()}}
    message = refusal(state)
    assert "layer 1 of the reference ReLU-KAN does not fit together" in message
    assert message.endswith("with in = 3, the layer before's outputs")


def test_a_network_of_no_numbers_is_refused() -> None:
    state = {key: value[..., :0, :] if value.ndim == 4 else value for key, value in state_of(2, 3).items()}
    state |= {key: value[:, :0] for key, value in state.items() if value.ndim == 2}
    assert "does not fit together" in refusal(state)


@pytest.mark.parametrize("value", [3, None, [0.0], torch.zeros(3, dtype=torch.int64), torch.zeros(3).to_sparse()])
def test_a_value_that_is_no_plain_tensor_is_named(value: object) -> None:
    message = refusal({**state_of(2, 3), "rk_layers.0.equal_size_conv.bias": value})
    assert message.startswith("rk_layers.0.equal_size_conv.bias of this checkpoint of the reference ReLU-KAN is ")
    assert message.endswith(": expected a tensor of floating-point numbers")


def test_a_layer_number_of_thousands_of_digits_is_an_unknown_key() -> None:
    state = {**state_of(2, 3), f"rk_layers.{'9' * 5000}.phase_low": torch.zeros(2, 8)}
    assert "also holds rk_layers.999" in refusal(state)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_number_that_is_not_finite_is_refused_by_name(value: float) -> None:
    state = state_of(2, 3)
    state["rk_layers.0.phase_low"][1, 2] = value
    assert refusal(state) == (
        "rk_layers.0.phase_low of this checkpoint of the reference ReLU-KAN must be finite, got NaN or infinity"
    )


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"grid": 5, "order": 4}, "--grid 5 --order 4"),
        ({"grid": 9}, "--grid 9 --order None"),
        ({"order": 8}, "--grid None --order 8"),
        ({"grid": 0, "order": 8}, "--grid 0 --order 8"),
        ({"grid": 9, "order": -1}, "--grid 9 --order -1"),
    ],
)
def test_grid_and_order_that_do_not_add_up_are_refused(options: dict[str, int], given: str) -> None:
    assert refusal(state_of(2, 3), **options) == (f"grid + order must be 8, the bumps on each input, got {given}")


@pytest.mark.parametrize(
    "change", [pytest.param(lambda t: t.add_(1e-4), id="moved"), pytest.param(Tensor.neg_, id="negated")]
)
def test_one_interval_off_the_lattice_is_enough_to_ask(change: Callable[[Tensor], Tensor]) -> None:
    state = state_of(2, 3, 1)
    change(state["rk_layers.1.phase_height"][2, 4])
    assert "the intervals of this reference ReLU-KAN were trained" in refusal(state)


def test_a_changed_byte_of_a_file_gives_a_network_or_a_checkpoint_error(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(state_of(2, 3, 1), path)
    assert refusals_of_changed_bits(path, lambda path: load_checkpoint(path, grid=5, order=3).spec()) > 50
