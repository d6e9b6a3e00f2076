"""Finer grids, against numpy's least squares on the printed formula and against `KanSpec.evaluate`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import bump_layers
from numpy.typing import NDArray

from relukan_deploy.api import export, verify
from relukan_deploy.errors import InputError
from relukan_deploy.model import Normalization, ReLUKAN
from relukan_deploy.refinement import inputs_of_layers, refine
from relukan_deploy.spec import LayerSpec

Array = NDArray[np.float64]


def network_of(*widths: int, move: float = 0.03, seed: int = 0, **options: Any) -> ReLUKAN:
    """A network whose bumps were moved a little, as training moves them; hidden values spread over the grid."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ReLUKAN(widths, **options)
        for name, value in model.state_dict().items():
            if name.endswith(("starts", "ends")):
                value += move * (2 * torch.rand_like(value) - 1)
        return model


def rows_of(model: ReLUKAN, count: int = 500) -> torch.Tensor:
    """Rows spread over the first layer's range, [-3, 5] where it has one and [0, 1] where not."""
    unit = torch.rand(count, model.config["widths"][0], generator=torch.Generator().manual_seed(1))
    return unit if "layers.0.input_range" not in model.state_dict() else 8 * unit - 3


def bumps_of(layer: LayerSpec, index: int, x: Array) -> Array:
    """An input's bumps by equation 9 of the paper, with the power."""
    s, e = layer.starts[index], layer.ends[index]
    x = x[:, np.newaxis]
    return np.asarray((4 * np.clip(x - s, 0, None) * np.clip(e - x, 0, None) / (e - s) ** 2) ** layer.power)


# --- the copy


@pytest.mark.parametrize("power", [1, 2, 5])
def test_every_edge_is_the_best_that_the_finer_grid_can_give(power: int) -> None:
    model = network_of(2, 3, power=power)
    before, after = (bump_layers(each.spec())[0] for each in (model, refine(model, 12).model))
    x = np.linspace(0, 1, 4001)
    for index in range(2):
        design = bumps_of(after, index, x)
        wanted = bumps_of(before, index, x) @ before.coefficients[:, index].T
        best = design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
        copied = design @ after.coefficients[:, index].T
        assert np.linalg.norm(copied - wanted) <= 1.01 * np.linalg.norm(best - wanted) + 1e-5


@pytest.mark.parametrize("normalization", ["fixed", "peak"])
@pytest.mark.parametrize("power", range(1, 9))
def test_each_power_and_normalization_is_copied_closely(normalization: Normalization, power: int) -> None:
    model = network_of(3, 4, 2, power=power, normalization=normalization, input_range=[[-3.0, 5.0]] * 3)
    refined = refine(model, 20, rows_of(model))
    assert refined.network_rms < (0.03 if power == 1 else 0.01)
    assert refined.model.config == {**model.config, "grid": 20}


@pytest.mark.parametrize("train_intervals", [True, False])
def test_intervals_go_on_training_only_where_they_did(train_intervals: bool) -> None:
    finer = refine(network_of(2, 3, 1, train_intervals=train_intervals), 9).model
    assert ("layers.1.starts" in dict(finer.named_parameters())) == train_intervals
    assert all(each.requires_grad for each in finer.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_normalisation_between_layers_is_kept_as_it_is(training: bool) -> None:
    model = network_of(2, 4, 3, 1, batch_norm=True)
    x = rows_of(model)
    for _ in range(30):
        model(x)
    before = copy.deepcopy(model.train(training).state_dict())
    refined = refine(model, 20, x)
    norms = {name: value for name, value in refined.model.state_dict().items() if name.startswith("norms")}
    assert norms
    assert all(torch.equal(value, before[name]) for name, value in norms.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    old, new = (each.spec().evaluate(x.numpy()) for each in (model, refined.model))
    assert np.sqrt(np.mean((new - old) ** 2)) < 0.01 * np.ptp(old)
    assert refined.network_largest == pytest.approx(np.abs(new - old).max() / np.ptp(old), rel=1e-4)


def test_a_network_that_is_refined_twice_is_still_near() -> None:
    model = network_of(2, 4, 1)
    twice = refine(refine(model, 10, rows_of(model)).model, 20, rows_of(model)).model
    x = rows_of(model).numpy()
    before, after = model.spec().evaluate(x), twice.spec().evaluate(x)
    assert np.sqrt(np.mean((after - before) ** 2)) < 0.01 * np.ptp(before)


def test_the_old_network_and_the_random_numbers_are_left_alone() -> None:
    model = network_of(2, 3, 1).double().eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    finer = model.refine(11)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {value.dtype for value in finer.state_dict().values()} == {torch.float64}
    assert not any(module.training for module in finer.modules())


def test_training_goes_on_to_a_lower_error() -> None:
    """Of the paper's sin 5πx + x, which five intervals are too few for."""
    x = torch.linspace(0, 1, 200).unsqueeze(1)
    y = torch.sin(5 * np.pi * x) + x

    def train(model: ReLUKAN) -> float:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(300):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    coarse = network_of(1, 1, move=0)
    train(coarse)
    finer = coarse.refine(20)
    assert train(finer) < 0.1 * train(coarse)


# --- where the finer grid lies


def test_the_first_grid_stays_and_a_hidden_one_lies_over_what_reaches_it() -> None:
    model = network_of(2, 5, 1, input_range=[[-3.0, 5.0]] * 2)
    x = rows_of(model)
    state = refine(model, 20, x).model.state_dict()
    assert state["layers.0.input_range"].tolist() == [[-3.0, 5.0]] * 2
    hidden = bump_layers(model.spec())[0].evaluate(x.double().numpy())
    expected = np.stack([hidden.min(axis=0), hidden.max(axis=0)], axis=1)
    np.testing.assert_allclose(state["layers.1.input_range"].numpy(), expected, atol=1e-6)


def test_without_rows_a_hidden_grid_lies_over_all_bumps() -> None:
    model = network_of(2, 5, 1)
    state = refine(model, 20).model.state_dict()
    assert "layers.0.input_range" not in state
    np.testing.assert_allclose(state["layers.1.input_range"].numpy(), bump_layers(model.spec())[1].domain, atol=1e-6)


def test_a_hidden_input_without_bumps_stays_without() -> None:
    model = network_of(2, 3, 1)
    with torch.no_grad():
        model.state_dict()["layers.1.weight"][:, 1] = 0
    for x in (None, rows_of(model)):
        state = refine(model, 20, x).model.state_dict()
        assert not state["layers.1.weight"][:, 1].any()
        low, high = state["layers.1.input_range"][1].tolist()
        assert 0 <= low < high <= 1


def test_a_hidden_value_that_never_changes_keeps_a_range() -> None:
    model = network_of(2, 3, 1)
    with torch.no_grad():
        model.state_dict()["layers.0.weight"][1] = 0
    refined = refine(model, 20, rows_of(model))
    low, high = refined.model.state_dict()["layers.1.input_range"][1].tolist()
    assert high - low > 1
    assert refined.network_rms < 0.01


# --- the residual


def test_the_residual_is_the_difference_that_the_reference_sees() -> None:
    model = network_of(2, 4, 3)
    x = rows_of(model)
    refined = refine(model, 20, x)
    value, errors = x.double().numpy(), []
    for before, after in zip(*(bump_layers(each.spec()) for each in (model, refined.model)), strict=True):
        difference, value = after.evaluate(value) - before.evaluate(value), before.evaluate(value)
        errors.append((np.abs(difference).max() / np.ptp(value), np.sqrt(np.mean(difference**2)) / np.ptp(value)))
    difference = refined.model.spec().evaluate(x.numpy()) - value
    np.testing.assert_allclose(list(zip(refined.largest, refined.rms, strict=True)), errors, rtol=1e-4)
    assert refined.network_largest == pytest.approx(np.abs(difference).max() / np.ptp(value), rel=1e-4)
    assert refined.network_rms == pytest.approx(np.sqrt(np.mean(difference**2)) / np.ptp(value), rel=1e-4)


def test_what_reaches_each_layer_is_found_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network_of(2, 4, 3)
    x = rows_of(model)
    whole = inputs_of_layers(model, x)
    monkeypatch.setattr("relukan_deploy.refinement._BLOCK_ELEMENTS", 32 * 7)
    assert all(torch.equal(*pair) for pair in zip(whole, inputs_of_layers(model, x), strict=True))
    first = bump_layers(model.spec())[0].evaluate(x.double().numpy())
    np.testing.assert_allclose(whole[1].numpy(), first, atol=1e-9)


# --- downstream


def test_a_refined_network_passes_parity(tmp_path: Path) -> None:
    model = network_of(3, 4, 2, input_range=[[-3.0, 5.0]] * 3)
    export(model.refine(12).spec(), tmp_path / "bundle")
    assert all(check.report is not None and check.report.passed for check in verify(tmp_path / "bundle"))


# --- what is refused


@pytest.mark.parametrize("grid", [5, 4, 0, 7.0, True])
def test_a_grid_that_is_not_finer_is_refused(grid: Any) -> None:
    with pytest.raises(InputError, match=f"grid must be a whole number above the network's own, 5, got {grid!r}"):
        refine(network_of(2, 1), grid)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (0, 2)])
def test_rows_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"x must be \(rows, 2\) with at least one row, got"):
        refine(network_of(2, 1), 9, torch.zeros(shape))


def test_rows_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="x must be finite"):
        refine(network_of(2, 1), 9, torch.tensor([[0.0, float("nan")]]))
