"""`SplineSpec` against scipy's splines, and against what the peers' own code answered."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import Array, spline_network
from numpy.typing import NDArray
from scipy.interpolate import BSpline

from relukan_deploy.errors import InputError
from relukan_deploy.spec import KanSpec, LayerSpec
from relukan_deploy.splines import FUNCTIONS, MOST_DEGREE, Function, SplineSpec

DATA = Path(__file__).parent / "data"


def layer_of(inputs: int = 2, sums: int = 3, *, degree: int = 3, **changes: Any) -> SplineSpec:
    """A layer of zeros on uneven knots from -1 to 1, but for what is given."""
    rng = np.random.default_rng(0)
    inner = np.sort(rng.uniform(-0.9, 0.9, (inputs, degree + 4)), axis=1)
    parts = {
        "degree": degree,
        "knots": np.pad(inner, ((0, 0), (1, 1)), constant_values=((0, 0), (-1.0, 1.0))),
        "coefficients": np.zeros((sums, inputs, 5)),
        "bias": np.zeros(sums),
        "silu": np.zeros((sums, inputs)),
        "polynomial": np.zeros((sums, inputs, 0)),
    }
    return SplineSpec(**{**parts, **changes})


def one_edge(**changes: Any) -> Callable[[Any], Array]:
    """One input, one sum: its answers to some x."""
    layer = layer_of(1, 1, **changes)

    def answers(x: Any) -> Array:
        return np.asarray(layer.evaluate(np.asarray(x, dtype=np.float64)[:, np.newaxis])[:, 0])

    return answers


# --- splines


@given(
    seed=st.integers(0, 2**32 - 1),
    degree=st.integers(1, MOST_DEGREE),
    grid=st.integers(1, 12),
    exponent=st.floats(-6, 6),
)
def test_splines_are_those_of_scipy_on_any_knots(seed: int, degree: int, grid: int, exponent: float) -> None:
    rng = np.random.default_rng(seed)
    steps = rng.uniform(0.05, 1, (2, grid + 2 * degree)) * 10**exponent
    knots = np.cumsum(np.concatenate([rng.uniform(-9, 9, (2, 1)), steps], axis=1), axis=1)
    coefficients = rng.normal(size=(3, 2, grid + degree))
    layer = layer_of(degree=degree, knots=knots, coefficients=coefficients)
    x = rng.uniform(knots[:, 0], knots[:, -1], (50, 2))
    expected = np.zeros((50, 3))
    for index in range(2):
        # scipy's spline is extrapolated from the first and last interval that all its degree's splines cover:
        # with coefficients of zero around them, those are beyond the knots.
        around = np.pad(coefficients[:, index], ((0, 0), (degree, degree)))
        before = knots[index, 0] - np.arange(degree, 0, -1)
        after = knots[index, -1] + np.arange(1, degree + 1)
        spline = BSpline(np.concatenate([before, knots[index], after]), around.T, degree)
        expected += spline(x[:, index])
    np.testing.assert_allclose(layer.evaluate(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("degree", range(1, MOST_DEGREE + 1))
def test_splines_sum_to_one_where_all_of_them_reach(degree: int) -> None:
    knots = np.cumsum(np.random.default_rng(0).uniform(0.1, 1, 2 * degree + 2))
    answers = one_edge(degree=degree, knots=knots[np.newaxis], coefficients=np.ones((1, 1, degree + 1)))
    middle = np.linspace(knots[degree], knots[degree + 1], 20)
    np.testing.assert_allclose(answers(middle), 1, rtol=1e-13)


@pytest.mark.parametrize("x", [-1.0, 1.0, -1.0001, 1.0001, 1e30, -1e30, 1e300, -1e300])
def test_splines_are_zero_from_the_first_knot_and_the_last_outwards(x: float) -> None:
    answers = one_edge(coefficients=np.ones((1, 1, 5)), bias=np.array([0.25]))
    assert answers([x]) == [0.25]


def test_a_spline_is_positive_one_ulp_inside() -> None:
    answers = one_edge(degree=1, coefficients=np.ones((1, 1, 5)))
    assert (answers([math.nextafter(-1, 0), math.nextafter(1, 0)]) > 0).all()


# --- the other branches


def test_silu_is_the_formula() -> None:
    x = [-700.0, -3.0, -1e-9, 0.0, 0.5, 20.0]
    expected = [2 * value / (1 + math.exp(-value)) for value in x]
    np.testing.assert_allclose(one_edge(silu=np.array([[2.0]]))(x), expected, rtol=1e-15)


def test_silu_is_its_limits_far_outside() -> None:
    assert one_edge(silu=np.array([[2.0]]))([-1e30, 1e30]).tolist() == [0, 2e30]


def test_polynomials_are_those_of_numpy() -> None:
    x = np.linspace(-30, 30, 50)
    answers = one_edge(polynomial=np.array([[[0.5, -2.0, 0.0, 0.25]]]), bias=np.array([3.0]))
    np.testing.assert_allclose(answers(x), np.polynomial.Polynomial([3, 0.5, -2, 0, 0.25])(x), rtol=1e-12)


def test_a_power_of_one_input_does_not_overflow_at_another() -> None:
    layer = layer_of(2, 1, polynomial=np.array([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]))
    assert layer.evaluate(np.array([[1e200, 2.0]])) == 1e200


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sin", math.sin),
        ("exp", math.exp),
        ("1/x^2", lambda u: u**-2),
        ("x^1.5", lambda u: u**1.5),
        ("tanh", math.tanh),
    ],
)
def test_a_function_is_scaled_and_keeps_its_value_beyond_its_interval(
    name: str, expected: Callable[[float], float]
) -> None:
    function = Function(name, 0, 0, slope=0.5, shift=1.0, scale=3.0, low=-1.0, high=2.0)
    answers = one_edge(functions=(function,))([-1e30, -1.0, 0.7, 2.0, 1e30])
    inside = [3 * expected(0.5 * x + 1) for x in (-1.0, -1.0, 0.7, 2.0, 2.0)]
    np.testing.assert_allclose(answers, inside, rtol=1e-14)


def test_functions_are_added_to_the_edges_they_lie_on() -> None:
    functions = tuple(Function(name, 1, 2, 1.0, 0.0, 1.0, 0.1, 9.0) for name in ("sqrt", "log"))
    layer = layer_of(2, 3, functions=functions, bias=np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(layer.evaluate(np.array([[7.0, 4.0]])), [[1, 2, 3 + 2 + math.log(4)]])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_evaluated(name: str) -> None:
    answers = one_edge(functions=(Function(name, 0, 0, 1.0, 0.0, 1.0, 0.25, 0.75),))([0.25, 0.5, 0.75])
    assert np.isfinite(answers).all()
    assert (answers != 0).all()


def test_outputs_are_products_of_sums_and_an_offset() -> None:
    layer = layer_of(
        1, 3, bias=np.array([2.0, 3.0, 5.0]), products=((0,), (1, 2), (2, 2, 0)), offset=np.array([0.0, 1.0, -1.0])
    )
    assert layer.evaluate(np.zeros((1, 1))).tolist() == [[2, 16, 49]]
    assert layer.out_features == 3


def test_branches_are_added() -> None:
    rng = np.random.default_rng(1)
    parts: dict[str, Any] = {
        "coefficients": rng.normal(size=(3, 2, 5)),
        "silu": rng.normal(size=(3, 2)),
        "polynomial": rng.normal(size=(3, 2, 2)),
        "bias": rng.normal(size=3),
    }
    x = rng.uniform(-2, 2, (9, 2))
    alone = [layer_of(**{name: part}).evaluate(x) for name, part in parts.items()]
    np.testing.assert_allclose(layer_of(**parts).evaluate(x), sum(alone), rtol=1e-12, atol=1e-12)


def test_float32_rows_are_answered_in_float32() -> None:
    layer = spline_network(0, [2, 3], powers=2).layers[0]
    x = np.random.default_rng(0).uniform(-1, 1, (9, 2)).astype(np.float32)
    answers = layer.evaluate(x)
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, layer.evaluate(x.astype(np.float64)), rtol=0, atol=1e-5)


# --- the peers' own answers


def state_of(name: str) -> dict[str, NDArray[np.float64]]:
    torch = pytest.importorskip("torch")
    state = torch.load(DATA / f"{name}.pt", weights_only=True)
    return {key: value.double().numpy() for key, value in state.items()}


def like_efficient_kan(state: dict[str, NDArray[np.float64]], index: int) -> SplineSpec:
    """KANLinear of efficient-kan: src/efficient_kan/kan.py, forward."""
    name = f"layers.{index}."
    base = state[name + "base_weight"]
    scaled = state[name + "spline_weight"] * state[name + "spline_scaler"][:, :, np.newaxis]
    return SplineSpec(3, state[name + "grid"], scaled, np.zeros(len(base)), base, np.zeros((*base.shape, 0)))


def like_pykan(state: dict[str, NDArray[np.float64]], index: int) -> SplineSpec:
    """KANLayer and MultKAN of pykan 0.2.8, forward, with no symbolic edge and no multiplication node."""
    name = f"act_fun.{index}."
    base, spline = (state[name + part] * state[name + "mask"] for part in ("scale_base", "scale_sp"))  # (in, out)
    scale = state[f"node_scale_{index}"] * state[f"subnode_scale_{index}"]
    bias = state[f"node_scale_{index}"] * state[f"subnode_bias_{index}"] + state[f"node_bias_{index}"]
    coefficients = (state[name + "coef"] * spline[:, :, np.newaxis]).swapaxes(0, 1) * scale[:, np.newaxis, np.newaxis]
    silu = base.T * scale[:, np.newaxis]
    return SplineSpec(3, state[name + "grid"], coefficients, bias, silu, np.zeros((*silu.shape, 0)))


@pytest.mark.parametrize(
    ("name", "layer", "count"),
    [
        ("efficient_kan_2_5_1_g5k3_updated", like_efficient_kan, 2),
        ("efficient_kan_digits_64_16_10_g5k3", like_efficient_kan, 2),
        ("pykan_2_5_1_g5k3_fit", like_pykan, 2),
        ("pykan_4_2_1_1_g3k3_fit", like_pykan, 3),
    ],
)
def test_the_answers_are_those_of_the_peers_own_code(name: str, layer: Callable[..., SplineSpec], count: int) -> None:
    state, peer = state_of(name), np.load(DATA / f"{name}.npz")
    spec = KanSpec(tuple(layer(state, index) for index in range(count)))
    error = np.abs(spec.evaluate(peer["x"]) - peer["y"]).max()
    assert error <= 1e-12 * max(1, np.abs(peer["y"]).max())


# --- what it is said to be


def test_the_domain_is_where_an_input_has_a_spline_or_a_function_left() -> None:
    coefficients = np.zeros((1, 4, 5))
    coefficients[0, 0, 2] = 1
    functions = (Function("sin", 2, 0, 1.0, 0.0, 1.0, -7.0, 7.0),)
    layer = layer_of(4, 1, coefficients=coefficients, functions=functions, silu=np.array([[0, 0, 0, 0.5]]))
    assert layer.domain.tolist() == [[-1, 1], [math.inf, -math.inf], [-7, 7], [-1, 1]]
    assert KanSpec((layer,)).intervals == ((-1, 1), None, (-7, 7), (-1, 1))


def test_growth_is_the_highest_power_that_is_left_beyond_the_domain() -> None:
    silu, polynomial = np.zeros((2, 4)), np.zeros((2, 4, 5))
    silu[1, 1] = polynomial[0, 2, 0] = 0.5
    polynomial[1, 3, [0, 2]] = 0.5
    assert layer_of(4, 2, silu=silu, polynomial=polynomial).growth.tolist() == [0, 1, 1, 3]


def test_pieces_lie_between_neighbouring_knots() -> None:
    layer = layer_of()
    np.testing.assert_array_equal(layer.pieces[1], [*zip(layer.knots[1, :-1], layer.knots[1, 1:], strict=True)])


def test_arrays_are_read_only_copies() -> None:
    bias = np.zeros(3)
    layer = layer_of(bias=bias)
    bias[:] = 7
    assert not layer.bias.any()
    with pytest.raises(ValueError, match="read-only"):
        layer.knots[:] = 0


# --- what is refused, and how it is said


@pytest.mark.parametrize("degree", [0, -1, MOST_DEGREE + 1])
def test_a_degree_that_is_not_supported_is_refused(degree: int) -> None:
    with pytest.raises(InputError, match=f"a spline's degree must be 1 to 7, got {degree}"):
        dataclasses.replace(layer_of(), degree=degree)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["knots", "coefficients", "bias", "silu", "polynomial", "offset"])
def test_a_number_that_is_not_finite_is_refused_by_name(field: str, value: float) -> None:
    layer = layer_of(polynomial=np.zeros((3, 2, 1)), products=((0, 1),), offset=np.zeros(1))
    array = np.array(getattr(layer, field))
    array.flat[-1] = value
    with pytest.raises(InputError, match=f"{field} must be finite, got NaN or infinity in an array of"):
        layer_of(**{**vars(layer), field: array})


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        ("knots", (2, 10)),
        ("knots", (3, 9)),
        ("knots", (9,)),
        ("knots", ()),
        ("coefficients", (3, 2, 6)),
        ("coefficients", (3, 2)),
        ("bias", (3, 1)),
        ("silu", (2, 3)),
        ("polynomial", (3, 2)),
        ("polynomial", (2, 3, 1)),
    ],
)
def test_shapes_that_do_not_fit_are_all_told(field: str, shape: tuple[int, ...]) -> None:
    given: dict[str, Any] = {field: np.zeros(shape)}
    with pytest.raises(InputError, match=r"a spline layer needs knots \(in, T\), .* for degree 3") as caught:
        layer_of(**given)
    assert str(shape) in str(caught.value)


def test_knots_too_few_for_one_spline_are_refused() -> None:
    with pytest.raises(InputError, match="a spline layer needs knots"):
        layer_of(knots=np.arange(8.0).reshape(2, 4), coefficients=np.zeros((3, 2, 0)))


@pytest.mark.parametrize("step", [0.0, -0.5])
def test_knots_that_do_not_increase_are_refused_with_their_input(step: float) -> None:
    knots = np.array(layer_of().knots)
    knots[1, 4] = knots[1, 3] + step
    with pytest.raises(InputError, match="knots must increase strictly, those of input 1 do not"):
        layer_of(knots=knots)


@pytest.mark.parametrize("edge", [(2, 0), (0, 3), (-1, 0), (0, -1)])
def test_a_function_on_no_edge_is_refused(edge: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="on an edge that a layer of 2 inputs and 3 sums has not"):
        layer_of(functions=(Function("sin", *edge, 1.0, 0.0, 1.0, 0.0, 1.0),))


def test_an_unknown_function_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(InputError, match=r"'sinh' is not a known function: expected one of 1/x, .*, gaussian"):
        Function("sinh", 0, 0, 1.0, 0.0, 1.0, 0.0, 1.0)


def test_a_function_with_a_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match="sin needs finite numbers, got"):
        Function("sin", 0, 0, math.nan, 0.0, 1.0, 0.0, 1.0)


def test_a_function_without_an_interval_is_refused() -> None:
    with pytest.raises(InputError, match=r"sin needs an interval with low < high, got 1\.0 to 1\.0"):
        Function("sin", 0, 0, 1.0, 0.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("products", [((0, 3),), ((-1,),), ((),), ()])
def test_products_of_sums_that_are_not_there_are_refused(products: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(InputError, match="products must name sums from 0 to 2, got"):
        layer_of(products=products, offset=np.zeros(len(products)))


@pytest.mark.parametrize("given", [{"products": ((0,),)}, {"offset": np.zeros(3)}])
def test_products_and_offset_come_together(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="products and offset belong together"):
        layer_of(**given)


def test_an_offset_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"offset must be \(1,\), one for each product, got \(3,\)"):
        layer_of(products=((0, 1),), offset=np.zeros(3))


def test_layers_of_two_kinds_are_refused() -> None:
    bumps = LayerSpec(np.zeros((3, 1)), np.ones((3, 1)), np.ones((1, 3, 1)), np.zeros(1))
    with pytest.raises(InputError, match="the layers of a network must be of one kind, bumps or splines, got both"):
        KanSpec((layer_of(), bumps))  # type: ignore[arg-type]


def test_the_domain_ends_where_a_function_of_a_deeper_layer_may() -> None:
    """Its interval follows from inputs between the inner knots."""
    rng = np.random.default_rng(0)
    knots = np.linspace(-2, 2, 9)[np.newaxis]  # degree 2: the inner ones are -1 to 1
    layer = SplineSpec(2, knots, rng.normal(size=(1, 1, 6)), np.zeros(1), np.ones((1, 1)), np.zeros((1, 1, 0)))
    deeper = dataclasses.replace(layer, functions=(Function("sin", 0, 0, 1.0, 0.0, 1.0, -3.0, 3.0),))
    assert KanSpec((layer, layer)).intervals == ((-2.0, 2.0),)
    assert KanSpec((layer, deeper)).intervals == ((-1.0, 1.0),)
    assert KanSpec((deeper, layer)).intervals == ((-2.0, 2.0),)
