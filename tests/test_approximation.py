"""Pieces stay within their bound of what they stand for, on grids of the tests' own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from relukan_deploy.approximation import Approximation, Pieces, approximate, approximations, silu_pieces
from relukan_deploy.errors import InputError
from relukan_deploy.spec import KanSpec, SplineSpec
from relukan_deploy.splines import FUNCTIONS, Function

Array = NDArray[np.float64]

ROUNDING = 4e-16  # of the float64 answers below, which are near 1

INTERVALS = {
    **dict.fromkeys(("abs", "arctan", "cos", "exp", "gaussian", "sin", "tanh"), (-3.0, 2.5)),
    **{name: (0.25, 3.0) for name in FUNCTIONS if name.startswith("1/")},
    **dict.fromkeys(("sqrt", "x^0.5", "x^1.5"), (0.0, 3.0)),
    "arccos": (-1.0, 1.0),
    "arcsin": (-1.0, 1.0),
    "arctanh": (-0.99, 0.99),
    "log": (0.02, 5.0),
    "sgn": (0.5, 2.0),
    "tan": (-1.5, 1.25),
}


def edge(name: str, low: float, high: float, *, slope: float = 1.0, shift: float = 0.0, scale: float = 1.0) -> Function:
    return Function(name, 0, 0, slope, shift, scale, low, high)


def points(low: float, high: float) -> Array:
    """Dense everywhere, and denser towards both ends."""
    near = np.geomspace(1e-14, 1, 4001)
    return np.concatenate([np.linspace(low, high, 50021), low + (high - low) * near, high - (high - low) * near])


def silu(x: Array) -> Array:
    values: Array = x / 2 * (1 + np.tanh(x / 2))
    return values


def silu_from(pieces: Pieces, x: NDArray[Any]) -> NDArray[Any]:
    values: NDArray[Any] = np.maximum(x, 0) + pieces(np.abs(x))
    return values


def spline_layer(silu: Array, functions: tuple[Function, ...] = ()) -> SplineSpec:
    sums, inputs = silu.shape
    return SplineSpec(
        degree=1,
        knots=np.tile([-1.0, 0.0, 1.0], (inputs, 1)),
        coefficients=np.ones((sums, inputs, 1)),
        bias=np.zeros(sums),
        silu=silu,
        polynomial=np.zeros((sums, inputs, 0)),
        functions=functions,
    )


# --- SiLU


@settings(max_examples=25)
@given(exponent=st.floats(-10, 0))
def test_silu_is_within_any_bound_on_a_dense_grid(exponent: float) -> None:
    bound = 10**exponent
    x = points(-40, 40)
    assert np.abs(silu_from(silu_pieces(bound), x) - silu(x)).max() <= bound + 40 * ROUNDING


@pytest.mark.parametrize("bound", [1e-2, 1e-4, 1e-6, 1e-9, 1e-12])
def test_silu_is_within_the_bound_near_zero_near_its_end_and_far_away(bound: float) -> None:
    pieces = silu_pieces(bound)
    magnitudes = np.concatenate([np.geomspace(1e-300, 1e30, 30001), pieces.breaks[-1] + np.linspace(-2, 2, 4001)])
    x = np.concatenate([-magnitudes, [0.0], magnitudes])
    assert np.abs(silu_from(pieces, x) - silu(x)).max() <= bound + 40 * ROUNDING


@pytest.mark.parametrize("bound", [1e-2, 1e-6, 1e-12])
def test_beyond_the_end_of_silu_what_is_left_is_within_the_bound_and_falls(bound: float) -> None:
    end = silu_pieces(bound).breaks[-1]
    assert end * math.exp(-end) <= bound
    assert end > 1.2785  # where t / (1 + exp(t)) peaks


@pytest.mark.parametrize("bound", [1e-2, 1e-6, 1e-9])
def test_silu_is_relu_beyond_its_end(bound: float) -> None:
    pieces = silu_pieces(bound)
    assert pieces(np.array([pieces.breaks[-1], 1e3, 1e30])) == pytest.approx(0, abs=1e-16)


def test_silu_is_exactly_zero_at_zero() -> None:
    assert silu_from(silu_pieces(1e-6), np.zeros(1)) == 0


def test_silu_evaluated_in_float32_loses_no_more_than_float32_does() -> None:
    x = points(-30, 30).astype(np.float32)
    values = silu_from(silu_pieces(1e-6), x)
    assert values.dtype == np.float32
    exact = silu(x.astype(np.float64))
    assert (np.abs(values - exact) <= 1e-6 + 2**-23 * np.maximum(np.abs(exact), 4)).all()


@pytest.mark.parametrize(("bound", "powers"), [(1e-2, 6), (1e-4, 16), (1e-6, 28), (1e-9, 70)])
def test_silu_needs_no_more_powers_than_this(bound: float, powers: int) -> None:
    pieces = silu_pieces(bound)
    assert len(pieces) * pieces.degree <= powers


def test_a_bound_that_float64_cannot_tell_is_refused() -> None:
    with pytest.raises(InputError, match=r"SiLU cannot be approximated within 1e-17 .* smaller than float64 can tell"):
        silu_pieces(1e-17)


@pytest.mark.parametrize("bound", [0.0, -1e-6, math.inf, math.nan])
def test_a_bound_must_be_greater_than_zero(bound: float) -> None:
    with pytest.raises(InputError, match="bound must be greater than 0, got"):
        silu_pieces(bound)
    with pytest.raises(InputError, match="bound must be greater than 0, got"):
        approximate(edge("sin", -1, 1), -1, 1, bound)


# --- functions


def test_every_function_has_an_interval_here() -> None:
    assert INTERVALS.keys() == FUNCTIONS.keys()


@pytest.mark.parametrize("bound", [1e-2, 1e-6])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_within_its_bound(name: str, bound: float) -> None:
    function = edge(name, *INTERVALS[name])
    x = points(*INTERVALS[name])
    pieces = approximate(function, *INTERVALS[name], bound)
    assert np.abs(pieces(x) - function(x)).max() <= bound


@given(
    name=st.sampled_from(["sin", "tanh", "gaussian", "abs", "arctan"]),
    slope=st.floats(-40, 40),
    shift=st.floats(-20, 20),
    scale=st.floats(-5, 5),
    low=st.floats(-2, 1),
    exponent=st.floats(-7, -1),
)
def test_functions_of_any_slope_are_within_any_bound(
    name: str, slope: float, shift: float, scale: float, low: float, exponent: float
) -> None:
    function = edge(name, low, low + 1.5, slope=slope, shift=shift, scale=scale)
    x = points(low, low + 1.5)
    pieces = approximate(function, low, low + 1.5, 10**exponent)
    assert np.abs(pieces(x) - function(x)).max() <= 10**exponent + 40 * ROUNDING


@pytest.mark.parametrize("name", ["sin", "exp", "sqrt", "tan"])
def test_pieces_meet(name: str) -> None:
    pieces = approximate(edge(name, *INTERVALS[name]), *INTERVALS[name], 1e-6)
    assert len(pieces) > 1
    assert pieces.coefficients[:-1].sum(axis=1) == pytest.approx(pieces.coefficients[1:, 0], rel=1e-14, abs=1e-15)


def test_pieces_end_where_the_interval_does_and_are_constant_beyond() -> None:
    pieces = approximate(edge("sin", -3, 2.5), -3, 2.5, 1e-6)
    assert (pieces.breaks[0], pieces.breaks[-1]) == (-3, 2.5)
    assert pieces(np.array([-1e30, -4, 3, 1e30])) == pytest.approx(np.sin([-3, -3, 2.5, 2.5]), abs=1e-15)


def test_the_error_that_is_told_is_the_error() -> None:
    pieces = approximate(edge("sin", -3, 2.5), -3, 2.5, 1e-4)
    x = points(-3, 2.5)
    assert pieces.error == pytest.approx(np.abs(pieces(x) - np.sin(x)).max(), rel=1e-3)


def test_pieces_are_as_good_as_so_many_can_be() -> None:
    pieces = approximate(edge("sin", -3, 2.5), -3, 2.5, 1e-5)
    assert len(pieces) == 2
    assert pieces.error < 0.3e-5


def test_abs_is_exact_with_two_powers() -> None:
    function = edge("abs", -1, 3, slope=2.0, shift=-1.0)
    pieces = approximate(function, -1, 3, 1e-3)
    assert (len(pieces), pieces.degree) == (2, 1)
    x = points(-1, 3)
    assert pieces(x) == pytest.approx(function(x), abs=1e-14)


def test_a_constant_is_one_piece() -> None:
    assert len(approximate(edge("sin", -1, 1, slope=0.0, shift=1.0), -1, 1, 1e-9)) == 1


def test_a_narrow_peak_far_from_the_ends_is_not_missed() -> None:
    function = edge("gaussian", 0, 1, slope=2000.0, shift=-777.7)
    pieces = approximate(function, 0, 1, 1e-4)
    x = np.linspace(0.38, 0.4, 20001)
    assert np.abs(pieces(x) - function(x)).max() <= 1e-4


def test_in_float32_the_powers_cancel_little() -> None:
    for name, (low, high) in INTERVALS.items():
        pieces = approximate(edge(name, low, high), low, high, 1e-3)
        values = FUNCTIONS[name](points(low, high))
        assert np.abs(pieces.coefficients[:, 1:]).sum(axis=1).max() <= 16 * np.ptp(values) + 1e-3, name


@pytest.mark.parametrize(
    ("name", "low", "high", "message"),
    [
        ("sgn", -1, 1, "sgn from -1 to 1 cannot be approximated: it jumps or is infinite at 0"),
        ("sgn", 0, 1, "sgn from 0 to 1 cannot be approximated: it jumps or is infinite at 0"),
        ("1/x", -1, 3, "1/x from -1 to 3 cannot be approximated: it jumps or is infinite at 0"),
        ("1/x^2", 0, 3, r"1/x\^2 from 0 to 3 cannot be approximated: it jumps or is infinite at 0"),
        ("tan", 1, 2, "tan from 1 to 2 cannot be approximated: it jumps or is infinite at 1.5708"),
        ("tan", -2, -1, "tan from -2 to -1 cannot be approximated: it jumps or is infinite at -1.5708"),
        ("log", 0, 1, "log from 0 to 1 cannot be approximated: it is not finite at 0"),
        ("sqrt", -1, 1, "sqrt from -1 to 1 cannot be approximated: it is not finite at -1"),
        ("arctanh", -0.5, 1, "arctanh from -0.5 to 1 cannot be approximated: it is not finite at 1"),
        ("sqrt", 0, 1, "sqrt from 0 to 1 cannot be approximated within 1e-10 by 256 .* Give a larger one"),
        ("exp", 0, 30, "exp from 0 to 30 cannot be approximated within 1e-10 by 256 .* Give a larger one"),
    ],
)
def test_what_cannot_be_approximated_is_refused(name: str, low: float, high: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        approximate(edge(name, low, high), low, high, 1e-10)


def test_a_function_that_changes_too_often_is_refused() -> None:
    with pytest.raises(InputError, match=r"sin from 0 to 1 cannot be approximated within 0\.01 .* it is too steep"):
        approximate(edge("sin", 0, 1, slope=1e12), 0, 1, 0.01)


# --- what a manifest tells


def test_a_network_without_functions_has_no_approximations() -> None:
    spec = KanSpec((spline_layer(np.ones((2, 3))),))
    assert approximations(spec, strict=False, bound=1e-6) == ()


def test_silu_is_listed_if_strict_with_the_edges_that_have_it() -> None:
    spec = KanSpec((spline_layer(np.array([[1.0, 0.0], [2.0, 3.0]])), spline_layer(np.ones((1, 2)))))
    (found,) = approximations(spec, strict=True, bound=1e-6)
    assert (found.function, found.edges, found.bound, found.interval) == ("SiLU", 5, 1e-6, None)
    assert 0 < found.error <= 1e-6


def test_functions_are_listed_once_each_with_the_worst_edge() -> None:
    functions = (edge("sin", -1, 1), edge("exp", -1, 1), edge("sin", -2, 9))
    found = approximations(KanSpec((spline_layer(np.ones((1, 1)), functions),)), strict=False, bound=1e-4)
    assert [each.function for each in found] == ["exp", "sin"]
    hardest = approximate(functions[2], -2, 9, 1e-4)
    easier = approximate(functions[0], -1, 1, 1e-4)
    assert found[1] == Approximation(
        function="sin",
        edges=2,
        bound=1e-4,
        error=max(hardest.error, easier.error),
        pieces=len(hardest),
        degree=max(hardest.degree, easier.degree),
        interval=(-2, 9),
    )
