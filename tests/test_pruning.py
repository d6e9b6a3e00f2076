"""Pruning, against deviations that numpy takes of the printed formula and scores that scikit-learn gives."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import bump_layers
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, r2_score

from relukan_deploy.api import export, verify
from relukan_deploy.errors import InputError
from relukan_deploy.lowering import lower
from relukan_deploy.model import ReLUKAN
from relukan_deploy.pruning import prune

Array = NDArray[np.float64]


def network_of(*widths: int, seed: int = 0, **options: Any) -> ReLUKAN:
    """A float64 network in eval(), whose normalisations have seen rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ReLUKAN(widths, **options).double()
        for _ in range(30):
            model(torch.rand(64, widths[0], dtype=torch.float64))
        for name, value in model.state_dict().items():
            if name.endswith(("starts", "ends")):
                value += 0.03 * (2 * torch.rand_like(value) - 1)
        return model.eval()


def rows_of(model: ReLUKAN, count: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, model.config["widths"][0], dtype=torch.float64, generator=generator)


def state_of(model: ReLUKAN) -> dict[str, torch.Tensor]:
    """The tensors of the network itself: what is written to them changes it."""
    return dict(model.state_dict())


def answers_of(model: ReLUKAN, x: torch.Tensor) -> Array:
    return model.spec().evaluate(x.double().numpy())


def bumps_of(model: ReLUKAN, x: Array) -> Array:
    """Of a single layer, ``(rows, in, K)``, by equation 9 of the paper."""
    (layer,) = bump_layers(model.spec())
    x = x[:, :, np.newaxis]
    inside = np.clip(x - layer.starts, 0, None) * np.clip(layer.ends - x, 0, None)
    return np.asarray(16 * inside**2 / (layer.ends - layer.starts) ** 4)


# --- what goes


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.5])
def test_bumps_go_whose_deviation_is_small_beside_the_largest_edge_into_each_output(threshold: float) -> None:
    model = network_of(3, 2)
    with torch.no_grad():  # contributions of all sizes
        state_of(model)["layers.0.weight"].mul_(torch.logspace(-2, 0, 24, dtype=torch.float64).view(3, 8))
    x = rows_of(model)
    bumps, heights = bumps_of(model, x.numpy()), bump_layers(model.spec())[0].coefficients
    edges = np.einsum("nik,oik->noi", bumps, heights).std(axis=0)  # (out, in)
    least = threshold * edges.max(axis=1)[:, np.newaxis]
    single = np.einsum("nik,oik->noik", bumps, heights).std(axis=0)  # (out, in, K)
    expected = (edges > least).any(axis=0)[:, np.newaxis] & (single > least[:, :, np.newaxis]).any(axis=0)
    assert not expected.all()
    pruned = prune(model, threshold, x)
    assert (bump_layers(pruned.model.spec())[0].live == expected).all()
    assert pruned.bumps == ((24, int(expected.sum())),)


def test_what_goes_leaves_its_mean_behind() -> None:
    model = network_of(3, 2)
    x = rows_of(model)
    pruned = prune(model, 0.3, x)
    assert pruned.bumps[0][1] < pruned.bumps[0][0]
    before, after = answers_of(model, x), answers_of(pruned.model, x)
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("dead", ["what comes in", "what goes out"])
def test_a_node_that_changes_nothing_goes_and_the_answers_stay(dead: str, given: bool, batch_norm: bool) -> None:
    model = network_of(2, 5, 4, 3, batch_norm=batch_norm)
    with torch.no_grad():
        if dead == "what comes in":
            state_of(model)["layers.0.weight"][3] = 0
        else:
            state_of(model)["layers.1.weight"][:, 3] = 0
    x = rows_of(model)
    pruned = prune(model, 0, x if given else None)
    assert pruned.nodes == ((3,), ())
    assert pruned.model.config["widths"] == [2, 4, 4, 3]
    np.testing.assert_allclose(answers_of(pruned.model, x), answers_of(model, x), atol=1e-9)
    torch.testing.assert_close(pruned.model(x), model(x), rtol=0, atol=1e-9)


def test_nodes_that_only_fed_nodes_that_went_go_too() -> None:
    model = network_of(2, 5, 4, 3)
    with torch.no_grad():
        state_of(model)["layers.2.weight"][:, 1] = 0
        state_of(model)["layers.1.weight"][[0, 2, 3], 4] = 0  # node 4 feeds node 1 alone
    assert prune(model, 0).nodes == ((4,), (1,))


def test_an_input_that_does_not_matter_stays_as_a_column() -> None:
    model = network_of(3, 4, 2)
    x = rows_of(model)
    with torch.no_grad():
        state_of(model)["layers.0.weight"][:, 1] *= 1e-4
    pruned = prune(model, 0.01, x)
    assert pruned.inputs == (1,)
    spec = pruned.model.spec()
    assert spec.in_features == 3
    assert spec.intervals[1] is None


def test_outputs_in_small_units_count_as_much_as_those_in_large_ones() -> None:
    model = network_of(3, 5, 2)
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        state_of(scaled)["layers.1.weight"][0] *= 1e-6
    x = rows_of(model)
    one, other = (prune(each, 0.3, x) for each in (model, scaled))
    assert (one.inputs, one.nodes, one.bumps) == (other.inputs, other.nodes, other.bumps)
    assert one.change == pytest.approx(other.change)


def test_a_network_that_is_constant_keeps_one_node() -> None:
    model = network_of(2, 5, 1)
    with torch.no_grad():
        state_of(model)["layers.1.weight"].zero_()
    pruned = prune(model, 0)
    assert pruned.model.config["widths"] == [2, 1, 1]
    assert pruned.change == 0
    x = rows_of(model)
    assert (answers_of(pruned.model, x) == answers_of(model, x)).all()


# --- with rows and without


def test_bumps_that_no_row_reaches_go_only_where_there_are_rows() -> None:
    model = network_of(1, 1)
    x = rows_of(model) / 2  # the lower half of the grid
    assert prune(model, 0).bumps == ((8, 8),)
    starts = bump_layers(model.spec())[0].starts
    assert prune(model, 0, x).bumps == ((8, int((starts < float(x.max())).sum())),)


def test_without_rows_a_hidden_value_is_anywhere_it_could_be() -> None:
    model = network_of(2, 3, 1)
    state = state_of(model)
    with torch.no_grad():  # node 1 is between 0.5 and 0.5 plus the peak of one bump
        state["layers.0.weight"][1] = 0
        state["layers.0.weight"][1, 0, 3] = 0.15
        state["layers.0.bias"][1] = 0.5
    kept = bump_layers(prune(model, 0).model.spec())[1].live[1]
    starts, ends = state["layers.1.starts"][1].numpy(), state["layers.1.ends"][1].numpy()
    assert (kept == ((ends > 0.5) & (starts < 0.65))).all()


# --- the report


def test_the_score_is_that_of_the_answers_before_and_after() -> None:
    model = network_of(3, 4, 2)
    x = rows_of(model)
    y = model(x).detach() + 0.01 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    pruned = prune(model, 0.3, x, y)
    assert pruned.score == pytest.approx([r2_score(y, answers_of(each, x)) for each in (model, pruned.model)])
    classes = model(x).argmax(dim=1)
    pruned = prune(model, 0.3, x, classes)
    assert pruned.score == (1.0, accuracy_score(classes, answers_of(pruned.model, x).argmax(axis=1)))
    assert prune(model, 0.3, x).score is None


def test_one_target_may_be_a_row_of_numbers() -> None:
    model = network_of(3, 1)
    x = rows_of(model)
    assert prune(model, 0, x, model(x).detach()[:, 0]).score == pytest.approx((1.0, 1.0))


def test_the_change_is_in_units_of_each_outputs_deviation() -> None:
    model = network_of(3, 4, 2)
    x = rows_of(model)
    pruned = prune(model, 0.3, x)
    before, after = answers_of(model, x), answers_of(pruned.model, x)
    expected = np.sqrt((((after - before) / before.std(axis=0)) ** 2).mean())
    assert pruned.change == pytest.approx(expected)
    assert pruned.change > 0.01


# --- the network it gives


@pytest.mark.parametrize("batch_norm", [False, True])
def test_it_fits_a_network_built_to_its_own_configuration(batch_norm: bool) -> None:
    model = network_of(3, 9, 6, 2, batch_norm=batch_norm).float().train()
    with torch.no_grad():
        state_of(model)["layers.1.weight"][:, [2, 5]] = 0
    smaller = prune(model, 0.01, rows_of(model).float()).model
    twin = ReLUKAN(**smaller.config)
    twin.load_state_dict(smaller.state_dict())
    x = rows_of(model).float()
    torch.testing.assert_close(twin.eval()(x), copy.deepcopy(smaller).eval()(x))
    assert all(module.training for module in smaller.modules())
    assert all(each.requires_grad and each.dtype == torch.float32 for each in smaller.parameters())
    smaller(x).sum().backward()
    assert [repr(layer) for layer in smaller.modules()][2:] == [repr(layer) for layer in twin.modules()][2:]


def test_the_old_network_is_left_alone() -> None:
    model = network_of(3, 4, 2)
    before = copy.deepcopy(model.state_dict())
    prune(model, 0.5, rows_of(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config["widths"] == [3, 4, 2]


def test_it_is_the_same_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network_of(3, 4, 2)
    whole = prune(model, 0.2, rows_of(model))
    monkeypatch.setattr("relukan_deploy.refinement._BLOCK_ELEMENTS", 32 * 7)
    parts = prune(model, 0.2, rows_of(model))
    assert (whole.nodes, whole.bumps) == (parts.nodes, parts.bumps)
    one, other = (answers_of(each.model, rows_of(model)) for each in (whole, parts))
    np.testing.assert_allclose(one, other, atol=1e-12)


# --- downstream


def constants(model: ReLUKAN) -> int:
    graph = lower(model.spec(), layout="batch-last", form="direct", precision="fp32")
    return sum(array.size for array in graph.constants.values())


def test_the_graph_of_a_pruned_network_is_that_of_one_without_the_nodes() -> None:
    model = network_of(3, 6, 2)
    with torch.no_grad():
        state_of(model)["layers.0.weight"][[1, 4]] *= 1e-5
    assert constants(prune(model, 0.001, rows_of(model)).model) == constants(network_of(3, 4, 2)) < constants(model)


def test_a_network_refined_and_pruned_passes_parity(tmp_path: Path) -> None:
    model = network_of(3, 6, 2).float()
    x = rows_of(model).float()
    smaller = prune(model.refine(9, x), 0.2, x)
    assert any(smaller.nodes) or smaller.bumps[0][1] < smaller.bumps[0][0]
    export(smaller.model.spec(), tmp_path / "bundle")
    assert all(check.report is not None and check.report.passed for check in verify(tmp_path / "bundle"))


# --- what is refused


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(InputError, match="threshold must be at least 0 and below 1, got"):
        prune(network_of(2, 1), threshold)


def test_answers_without_rows_are_refused() -> None:
    with pytest.raises(InputError, match="y must have a row for each row of x, got 4 and no x"):
        prune(network_of(2, 1), 0.1, None, torch.zeros(4, 1))
    with pytest.raises(InputError, match="y must have a row for each row of x, got 4 and 3"):
        prune(network_of(2, 1), 0.1, torch.zeros(3, 2), torch.zeros(4, 1))
