"""Bounds of a layer's outputs, against values sampled densely."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from relukan_deploy.importers._ranges import layer_range, value_range
from relukan_deploy.splines import FUNCTIONS, Function, SplineSpec

Array = NDArray[np.float64]


def layer_of(rng: np.random.Generator, degree: int = 2, products: bool = True) -> SplineSpec:
    """Two inputs and four sums with every kind of branch; the last two sums are one product."""
    knots = np.cumsum(rng.uniform(0.1, 1, (2, 2 * degree + 4)), axis=1) - 3
    functions = (Function("sin", 0, 1, 3, 0.3, -2, -2, 2), Function("abs", 1, 2, -1, 0.5, 1, -1, 3))
    return SplineSpec(
        degree=degree,
        knots=knots,
        coefficients=rng.normal(0, 1, (4, 2, degree + 3)),
        bias=rng.normal(0, 1, 4),
        silu=rng.normal(0, 1, (4, 2)),
        polynomial=rng.normal(0, 0.5, (4, 2, 3)),
        functions=functions,
        products=((0,), (1,), (2, 3)) if products else None,
        offset=rng.normal(0, 1, 3) if products else None,
    )


def one_edge(low: float, high: float, polynomial: tuple[float, ...] = (), **parts: Array) -> list[float]:
    """The range of a layer of one edge."""
    layer = SplineSpec(
        degree=1,
        knots=parts.get("knots", np.array([[-2.0, -1, 0, 1, 2]])),
        coefficients=parts.get("coefficients", np.zeros((1, 1, 3))),
        bias=np.zeros(1),
        silu=parts.get("silu", np.zeros((1, 1))),
        polynomial=np.array(polynomial).reshape(1, 1, -1),
    )
    return list(layer_range(layer, np.array([[low, high]]))[0].tolist())


@given(st.integers(0, 10**6), st.integers(1, 5), st.booleans(), st.floats(-4, 4), st.floats(0, 6))
def test_no_output_leaves_its_range(seed: int, degree: int, products: bool, low: float, width: float) -> None:
    rng = np.random.default_rng(seed)
    layer = layer_of(rng, degree, products)
    box = np.array([[low, low + width], [-1, 2]])
    y = layer.evaluate(np.concatenate([rng.uniform(box[:, 0], box[:, 1], (300, 2)), box.T]))
    between = layer_range(layer, box)
    assert between.shape == (layer.out_features, 2)
    assert (between[:, 0] <= y.min(axis=0) + 1e-9).all()
    assert (y.max(axis=0) <= between[:, 1] + 1e-9).all()


@pytest.mark.parametrize(
    ("polynomial", "low", "high", "expected"),
    [
        ((0, 1), -1, 2, [0, 4]),
        ((2,), -1, 2, [-2, 4]),
        ((-3, 0, 1), -2, 2, [-2, 2]),  # x³ − 3x turns at ±1
        ((0, 0, 0, 1), 1, 2, [1, 16]),
        ((0, 0, 0, 0, 1e-300), 0, 1, [0, 1e-300]),
        ((0, 1), 3, 3, [9, 9]),
    ],
)
def test_a_polynomial_has_its_exact_range(
    polynomial: tuple[float, ...], low: float, high: float, expected: list[float]
) -> None:
    assert one_edge(low, high, polynomial) == pytest.approx(expected, abs=1e-9)


def test_silu_is_bounded_by_its_minimum() -> None:
    x = np.linspace(-3, 1, 100001)
    silu = x / (1 + np.exp(-x))
    assert one_edge(-3, 1, silu=np.array([[2.0]])) == pytest.approx([2 * silu.min(), 2 * silu.max()], rel=1e-9)


def test_a_spline_is_bounded_by_the_coefficients_that_reach_into_the_interval() -> None:
    coefficients = np.array([[[5.0, 3.0, 9.0]]])  # hats at −1, 0 and 1
    assert one_edge(-1, 0, coefficients=coefficients) == [3, 5]
    assert one_edge(-1.5, 0, coefficients=coefficients) == [0, 5]
    assert one_edge(3, 4, coefficients=coefficients) == [0, 0]


@pytest.mark.parametrize("low", [-np.inf, -1e200])
def test_what_has_no_bound_is_not_finite(low: float) -> None:
    assert not np.isfinite(one_edge(low, 1, (0, 0, 1))).all()


def _interval(name: str) -> tuple[float, float]:
    """An interval on which the function is finite."""
    return (-0.9, 0.8) if name in ("arcsin", "arccos", "arctanh", "tan", "abs", "gaussian") else (0.2, 9.0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_its_exact_range(name: str) -> None:
    low, high = _interval(name)
    y = FUNCTIONS[name](np.linspace(low, high, 200001))
    assert value_range(name, low, high) == pytest.approx((y.min(), y.max()), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "low", "high", "expected"),
    [
        ("sin", 0, 100, (-1, 1)),
        ("sin", -2, -1, (-1, np.sin(-1))),
        ("cos", -1e6, 1e6, (-1, 1)),
        ("cos", 3, 6, (-1, np.cos(6))),
        ("tan", 2, 4, (np.tan(2), np.tan(4))),
        ("sgn", 0.5, 2, (1, 1)),
        ("1/x", -2, -1, (-1, -0.5)),
        ("sqrt", 0, 4, (0, 2)),
        ("arcsin", -1, 1, (-np.pi / 2, np.pi / 2)),
    ],
)
def test_ranges_of_functions(name: str, low: float, high: float, expected: tuple[float, float]) -> None:
    assert value_range(name, low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("log", 0, 1),
        ("sqrt", -1, 1),
        ("tan", 1, 2),
        ("sgn", 0, 1),
        ("1/x^2", -1, 1),
        ("arccos", 0, 1.1),
        ("exp", 0, 1e3),
    ],
)
def test_a_function_that_has_no_value_somewhere_has_no_range(name: str, low: float, high: float) -> None:
    assert value_range(name, low, high) is None
