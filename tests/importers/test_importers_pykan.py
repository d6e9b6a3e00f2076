"""pykan's networks, against its own package in float64."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pykan_networks import Array, answers, config_of, error, needs_pykan, new_network, quiet, rows, scatter, state_of

from relukan_deploy.importers import pykan
from relukan_deploy.spec import KanSpec, SplineSpec
from relukan_deploy.splines import FUNCTIONS

DATA = Path(__file__).parents[1] / "data"
FIXTURES = sorted(path.stem for path in DATA.glob("pykan_*.pt"))


def saved(model: Any, folder: Path) -> KanSpec:
    """What model.saveckpt writes, read."""
    with quiet():
        model.saveckpt(str(folder / "mark"))
    found = pykan.read_saved(folder / "mark")
    assert found is not None
    state, config = found
    return pykan.load(torch.load(state, weights_only=True), config=config)


def spline(spec: KanSpec, index: int) -> SplineSpec:
    layer = spec.layers[index]
    assert isinstance(layer, SplineSpec)
    return layer


def test_there_are_fixtures() -> None:
    assert len(FIXTURES) == 2


@pytest.mark.parametrize("name", FIXTURES)
def test_a_trained_network_computes_what_its_own_code_does(name: str) -> None:
    spec = pykan.load(torch.load(DATA / f"{name}.pt", weights_only=True))
    with np.load(DATA / f"{name}.npz") as expected:
        y, expected_y = spec.evaluate(expected["x"]), expected["y"]
        assert list(spec.widths) == expected["width"].tolist()
    assert np.abs(y - expected_y).max() / np.abs(expected_y).max() < 1e-12


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """What KAN takes: widths with multiplications or without, a grid and an order for each layer."""
    depth = draw(st.integers(1, 3))
    sums = draw(st.lists(st.integers(1, 3), min_size=depth + 1, max_size=depth + 1))
    products = [0, *draw(st.lists(st.integers(0, 2), min_size=depth, max_size=depth))]
    uneven = st.lists(st.lists(st.integers(2, 4), min_size=2, max_size=2), min_size=depth + 1, max_size=depth + 1)
    arity = draw(st.one_of(st.integers(2, 3), uneven))
    if isinstance(arity, list):
        arity = [each[:count] for each, count in zip(arity, products, strict=True)]
    per_layer = st.lists(st.integers(1, 7), min_size=depth, max_size=depth)
    width = [list(pair) for pair in zip(sums, products, strict=True)]
    return {"width": width, "mult_arity": arity, "grid": draw(per_layer), "k": draw(per_layer)}


@needs_pykan
@settings(max_examples=40)
@given(shapes(), st.integers(0, 10**6))
def test_any_shape_computes_what_its_own_code_does(
    tmp_path_factory: pytest.TempPathFactory, shape: dict[str, Any], seed: int
) -> None:
    model = scatter(new_network(**shape), seed)
    x = rows(sum(shape["width"][0]), count=60)
    spec = saved(model, tmp_path_factory.mktemp("saved"))
    assert [layer.degree for layer in spec.layers if isinstance(layer, SplineSpec)] == shape["k"]
    assert error(spec.evaluate(x), answers(model, x)) < 1e-10


@needs_pykan
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_weights_are_taken_as_they_were_stored(dtype: torch.dtype) -> None:
    model = scatter(new_network([2, 3, 1], grid=4, k=2))
    state = {key: value.to(dtype) for key, value in model.state_dict().items()}
    model.load_state_dict({key: value.double() for key, value in state.items()})
    x = rows(2)
    assert error(pykan.load(state).evaluate(x), answers(model, x)) < 1e-12


@needs_pykan
def test_a_grid_updated_from_samples() -> None:
    model = scatter(new_network([3, 4, 2], grid=6, k=3)).double()
    with quiet():
        model.update_grid_from_samples(torch.from_numpy(np.random.default_rng(0).normal(0, 2, (300, 3))))
    x = rows(3)
    assert error(pykan.load(model.state_dict()).evaluate(x), answers(model, x)) < 1e-12


@needs_pykan
def test_an_input_that_was_constant_has_no_spline_but_its_base() -> None:
    model = new_network([2, 3, 1], grid=4, k=3).double()
    x = rows(2)
    with quiet():
        model.update_grid_from_samples(torch.from_numpy(np.where([True, False], x, 0.7)))
    model.act_fun[0].coef.data += 0.5  # which nothing multiplies, for the second input
    spec = pykan.load(model.state_dict())
    x[:5, 1] = 0.7
    assert error(spec.evaluate(x), answers(model, x)) < 1e-12
    assert not spline(spec, 0).coefficients[:, 1].any()


@needs_pykan
def test_a_network_that_was_trained_and_pruned(tmp_path: Path) -> None:
    inputs = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.sin(torch.pi * inputs[:, :1]) + inputs[:, 1:2] ** 2
    data = {"train_input": inputs, "train_label": labels, "test_input": inputs, "test_label": labels}
    model = new_network([3, 4, 1], tmp_path, grid=4, k=3)
    with quiet():
        model.fit(data, opt="LBFGS", steps=6, lamb=0.001, grid_update_num=2, log=100)
        pruned = model.prune(node_th=3e-2, edge_th=5e-2)
    assert not all(bool(layer.mask.all()) for layer in pruned.act_fun)
    x = rows(3)
    spec = pykan.load(pruned.state_dict())
    assert error(spec.evaluate(x), answers(pruned, x)) < 1e-12


@needs_pykan
def test_pruned_inputs_are_left_out(tmp_path: Path) -> None:
    model = scatter(new_network([3, 2, 1], tmp_path))
    with quiet():
        pruned = model.prune_input(active_inputs=[0, 2], log_history=False)
    x = rows(3)
    spec = pykan.load(pruned.state_dict())
    assert spec.widths == (2, 2, 1)
    assert error(spec.evaluate(x[:, [0, 2]]), answers(pruned, x)) < 1e-12


@needs_pykan
@pytest.mark.parametrize("arity", [2, 3, [[], [2, 4], []]])
def test_a_multiplication_that_was_pruned_takes_its_sums_with_it(tmp_path: Path, arity: Any) -> None:
    model = new_network([2, [2, 2], 1], tmp_path, mult_arity=arity)
    with quiet():
        model(torch.rand(20, 2))
        pruned = scatter(model.prune_node(active_neurons_id=[[1, 3]], log_history=False))
    pruned.auto_save = False
    x = rows(2)
    spec = saved(pruned, tmp_path)
    assert spec.widths == (2, 2, 1)
    assert error(spec.evaluate(x), answers(pruned, x)) < 1e-12


@needs_pykan
@pytest.mark.parametrize(
    ("width", "arity"),
    [([2, [3, 1], 1], 2), ([2, [2, 1], [4, 1], 1], 2), ([2, [0, 1], [1, 0]], 5), ([2, [0, 1], [0, 1]], [[], [3], [4]])],
)
def test_a_state_dict_tells_how_many_are_multiplied_where_that_is_certain(width: list[Any], arity: Any) -> None:
    model = scatter(new_network(width, mult_arity=arity))
    x = rows(2)
    spec = pykan.load(model.state_dict())
    assert error(spec.evaluate(x), answers(model, x)) < 1e-11


@needs_pykan
@pytest.mark.parametrize("arity", [2, 3])
def test_the_option_tells_it_elsewhere(arity: int) -> None:
    model = scatter(new_network([2, [1, 2], [2, 4], 1], mult_arity=arity))
    x = rows(2)
    assert error(pykan.load(model.state_dict(), mult_arity=arity).evaluate(x), answers(model, x)) < 1e-11


def test_the_option_does_no_harm_where_nothing_is_multiplied() -> None:
    x, state = rows(2), state_of(2, 3, 1)
    np.testing.assert_array_equal(pykan.load(state, mult_arity=3).evaluate(x), pykan.load(state).evaluate(x))


@needs_pykan
@pytest.mark.parametrize("base", ["silu", "identity", "zero"])
def test_the_base_function_is_what_the_configuration_says(tmp_path: Path, base: str) -> None:
    model = scatter(new_network([2, [2, 1], 1], base_fun=base))
    x = rows(2)
    assert error(saved(model, tmp_path).evaluate(x), answers(model, x)) < 1e-12


@needs_pykan
def test_symbolic_polynomials_are_exact_everywhere(tmp_path: Path) -> None:
    model = scatter(new_network([6, [2, 1], 2]))
    rng = np.random.default_rng(0)
    with quiet():
        for output, (source, name) in itertools.product((0, 3), enumerate(("0", "x", "x^2", "x^3", "x^4", "x^5"))):
            model.fix_symbolic(0, source, output, name, fit_params_bool=False, log_history=False)
            model.symbolic_fun[0].affine.data[output, source] = torch.from_numpy(rng.normal(0, 1, 4))
        model.fix_symbolic(1, 2, 1, "x^3", fit_params_bool=False, log_history=False)
        model.set_mode(0, 3, 3, mode="sn")  # a spline and a symbolic function on one edge
    spec = saved(model, tmp_path)
    x = rows(6)
    assert error(spec.evaluate(x), answers(model, x)) < 1e-12
    assert not any(spline(spec, index).functions for index in (0, 1))


@needs_pykan
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_symbolic_function_is_exact_on_the_grid_of_its_input(tmp_path: Path, name: str) -> None:
    model = new_network([2, [1, 1], 1], grid=4, affine_trainable=True)
    with quiet():
        model.fix_symbolic(0, 1, 2, name, fit_params_bool=False, log_history=False)
    scatter(model)
    model.act_fun[0].grid.data[1] = torch.linspace(-3, 5, 11)
    model.symbolic_fun[0].affine.data[2, 1] = torch.tensor([-0.1, 0.5, 1.7, -0.4])
    spec = saved(model, tmp_path)
    (function,) = spline(spec, 0).functions
    assert (function.name, function.input, function.output) == (name, 1, 2)
    assert (function.low, function.high) == pytest.approx((-0.6, 2.6))  # the inner knots of order 3
    x = np.random.default_rng(2).uniform(-0.6, 2.6, (300, 2))
    assert error(spec.evaluate(x), answers(model, x)) < 1e-12


def hidden_values(spec: KanSpec, x: Array) -> Array:
    return KanSpec(spec.layers[:1]).evaluate(x)


@needs_pykan
@pytest.mark.parametrize("seed", range(3))
def test_a_hidden_symbolic_function_reaches_over_all_that_the_grids_let_through(tmp_path: Path, seed: int) -> None:
    model = scatter(new_network([2, [1, 1], 1], grid=4), seed)
    inner = model.act_fun[0].grid.data[:, [3, -4]].numpy()
    with quiet():
        model.fix_symbolic(0, 0, 1, "cos", fit_params_bool=False, log_history=False)
        model.fix_symbolic(0, 1, 1, "x^2", fit_params_bool=False, log_history=False)
        model.fix_symbolic(1, 0, 0, "sin", fit_params_bool=False, log_history=False)
        model.fix_symbolic(1, 1, 0, "arctan", fit_params_bool=False, log_history=False)
    spec = saved(model, tmp_path)
    x = np.random.default_rng(2).uniform(inner[:, 0], inner[:, 1], (500, 2))
    hidden = hidden_values(spec, x)
    for function in spline(spec, 1).functions:
        values = hidden[:, function.input]
        assert function.low <= values.min() < values.max() <= function.high
        assert function.high - function.low < 20 * (values.max() - values.min())
    assert error(spec.evaluate(x), answers(model, x)) < 1e-12


@needs_pykan
def test_a_hidden_range_is_tight_where_the_layer_before_is_symbolic(tmp_path: Path) -> None:
    model = new_network([2, 1, 1])
    with quiet():
        for source in range(2):
            model.fix_symbolic(0, source, 0, "x^2", fit_params_bool=False, log_history=False)
        model.fix_symbolic(1, 0, 0, "sqrt", fit_params_bool=False, log_history=False)
    spec = saved(model, tmp_path)
    (function,) = spline(spec, 1).functions
    inner = model.act_fun[0].grid.data[0, -4].item()
    assert (function.low, function.high) == (0, 2 * inner**2)
    x = np.random.default_rng(2).uniform(-1, 1, (50, 2))
    np.testing.assert_allclose(spec.evaluate(x)[:, 0], np.hypot(x[:, 0], x[:, 1]), rtol=1e-12)


@needs_pykan
def test_a_hidden_value_that_is_constant_has_an_interval_around_it(tmp_path: Path) -> None:
    model = new_network([1, 1, 1])
    model.act_fun[0].mask.data[:] = 0
    model.subnode_bias[0].data[:] = 2.0
    with quiet():
        model.fix_symbolic(1, 0, 0, "log", fit_params_bool=False, log_history=False)
    spec = saved(model, tmp_path)
    (function,) = spline(spec, 1).functions
    assert function.low < 2 < function.high
    np.testing.assert_allclose(spec.evaluate([[0.3]]), [[np.log(2)]], rtol=1e-12)


@needs_pykan
def test_a_symbolic_branch_that_is_turned_off_is_ignored(tmp_path: Path) -> None:
    model = scatter(new_network([2, 2, 1]))
    with quiet():
        model.fix_symbolic(0, 0, 1, "log", fit_params_bool=False, log_history=False)
        model.set_mode(0, 0, 1, mode="sn")
    model.speed()
    x = rows(2)
    assert error(saved(model, tmp_path).evaluate(x), answers(model, x)) < 1e-12


def test_a_symbolic_edge_that_nothing_weighs_needs_no_interval() -> None:
    state = state_of(2, 1)
    state["symbolic_fun.0.mask"][0, 0] = 1
    state["symbolic_fun.0.affine"][0, 0] = torch.tensor([1.0, 0.0, 0.0, 0.5])
    config = config_of(2, 1, changed={"symbolic.funs_name.0": [["log", "0"]]})
    x = rows(2)
    y = pykan.load({**state, "symbolic_fun.0.mask": torch.zeros(1, 2)}).evaluate(x)
    np.testing.assert_allclose(pykan.load(state, config=config).evaluate(x), y + 0.5, rtol=1e-12)


@needs_pykan
def test_what_saveckpt_wrote_is_found_by_its_name_its_files_and_its_folder(tmp_path: Path) -> None:
    model = scatter(new_network([2, 3, 1]))
    x = rows(2)
    y = saved(model, tmp_path).evaluate(x)
    for path in (tmp_path / "mark", tmp_path / "mark_state", tmp_path / "mark_config.yml", tmp_path):
        found = pykan.read_saved(path)
        assert found is not None
        assert found[0] == tmp_path / "mark_state"
        np.testing.assert_array_equal(pykan.load(torch.load(found[0]), config=found[1]).evaluate(x), y)


def test_other_files_and_folders_are_none_of_saveckpts(tmp_path: Path) -> None:
    (tmp_path / "lone_state").write_bytes(b"")
    (tmp_path / "model.pt").write_bytes(b"")
    for path in (tmp_path, tmp_path / "lone_state", tmp_path / "model.pt", tmp_path / "absent", Path(), Path("/")):
        assert pykan.read_saved(path) is None


@needs_pykan
def test_a_network_saved_by_itself_is_found_in_its_folder(tmp_path: Path) -> None:
    with quiet():
        from kan import KAN

        KAN(width=[2, 1], ckpt_path=str(tmp_path / "model"))
    found = pykan.read_saved(tmp_path / "model")
    assert found is not None
    assert found[0] == tmp_path / "model" / "0.0_state"
    assert pykan.load(torch.load(found[0]), config=found[1]).widths == (2, 1)


def test_keys_tell_a_network_of_pykan() -> None:
    assert pykan.matches(state_of(2, 1))
    assert not pykan.matches({"layers.0.grid": 1})
