"""The float64 reference, against the formula written out as loops."""

from __future__ import annotations

import dataclasses
import itertools
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import bump_layers
from numpy.typing import NDArray

from relukan_deploy.errors import InputError
from relukan_deploy.spec import KanSpec, LayerSpec

Array = NDArray[np.float64]


def layer_of(in_features: int = 2, out_features: int = 3, bumps: int = 4, seed: int = 0) -> LayerSpec:
    rng = np.random.default_rng(seed)
    ends = rng.normal(0, 1, (2, in_features, bumps))  # s and e in any order
    return LayerSpec(
        ends[0], ends[1], rng.normal(0, 1, (out_features, in_features, bumps)), rng.normal(0, 1, out_features)
    )


def one_bump(start: float, end: float, coefficient: float = 3.0, bias: float = 0.25) -> KanSpec:
    return KanSpec((LayerSpec(np.array([[start]]), np.array([[end]]), np.array([[[coefficient]]]), np.array([bias])),))


def by_loops(spec: KanSpec, row: list[float]) -> list[float]:
    """One row, by the paper's equation 9 as it is printed: (ReLU(e−x) · ReLU(x−s))² · 16/(e−s)⁴."""
    for layer in bump_layers(spec):
        out = [float(b) for b in layer.bias]
        for o in range(layer.out_features):
            for i, x in enumerate(row):
                for s, e, c in zip(layer.starts[i], layer.ends[i], layer.coefficients[o, i], strict=True):
                    if s < e:
                        out[o] += c * 16 / (e - s) ** 4 * (max(e - x, 0.0) * max(x - s, 0.0)) ** 2
        row = out
    return row


@given(
    seed=st.integers(0, 10_000),
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    bumps=st.integers(1, 9),
    rows=st.integers(0, 5),
)
def test_evaluate_is_the_printed_formula(seed: int, widths: list[int], bumps: int, rows: int) -> None:
    layers = [layer_of(i, o, bumps, seed + n) for n, (i, o) in enumerate(itertools.pairwise(widths))]
    spec = KanSpec(tuple(layers))
    x = np.random.default_rng(seed).normal(0, 1.5, (rows, widths[0]))
    expected = np.array([by_loops(spec, list(map(float, row))) for row in x]).reshape(rows, widths[-1])
    np.testing.assert_allclose(spec.evaluate(x), expected, rtol=1e-11, atol=1e-11)


# --- one bump at a time


@given(st.floats(-5, 5), st.floats(0.01, 5))
def test_a_bump_peaks_at_its_coefficient_in_the_middle(start: float, width: float) -> None:
    spec = one_bump(start, start + width)
    middle = (start + (start + width)) / 2
    assert spec.evaluate([[middle]])[0, 0] == pytest.approx(3.25, rel=1e-12)


@given(st.floats(-3, 3), st.floats(0, 3), st.floats(-9, 9))
def test_a_crossed_bump_is_zero_everywhere(end: float, excess: float, x: float) -> None:
    assert one_bump(end + excess, end).evaluate([[x]])[0, 0] == 0.25


@pytest.mark.parametrize("x", [0.5, math.nextafter(0.5, 0), math.nextafter(0.5, 1)])
def test_an_empty_bump_is_zero_at_and_around_its_point(x: float) -> None:
    assert one_bump(0.5, 0.5).evaluate([[x]])[0, 0] == 0.25


@pytest.mark.parametrize("x", [0.3, 0.9])
def test_a_bump_is_zero_exactly_on_its_start_and_end(x: float) -> None:
    assert one_bump(0.3, 0.9).evaluate([[x]])[0, 0] == 0.25


@pytest.mark.parametrize(("edge", "inward"), [(0.3, 1.0), (0.9, 0.0)])
def test_a_bump_is_positive_one_ulp_inside_its_edges(edge: float, inward: float) -> None:
    inside = math.nextafter(edge, inward)
    layer = one_bump(0.3, 0.9, coefficient=1.0, bias=0.0)
    assert layer.evaluate([[inside]])[0, 0] > 0


@pytest.mark.parametrize("x", [-1e30, 1e30, -1.0, 1.5, 1e300, -1e300])
def test_outside_the_domain_the_bias_is_returned(x: float) -> None:
    spec = KanSpec((layer_of(1, 3),))
    low, high = spec.domain[0]
    outside = x if abs(x) > 2 else (low - 1 if x < 0 else high + 1)
    assert (spec.evaluate([[outside]])[0] == spec.layers[0].bias).all()


def test_one_input_far_away_leaves_the_others_as_they_are() -> None:
    layer = layer_of(2, 2)
    alone = LayerSpec(layer.starts[:1], layer.ends[:1], layer.coefficients[:, :1], layer.bias)
    both = KanSpec((layer,)).evaluate([[0.2, 1e30]])
    np.testing.assert_allclose(both, KanSpec((alone,)).evaluate([[0.2]]), rtol=1e-14)


# --- many rows


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_rows_on_either_side_of_a_block_boundary_are_each_evaluated(
    extra: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = KanSpec((layer_of(2, 3, 4),))
    x = np.random.default_rng(1).normal(0, 1, (30 + extra, 2))
    whole = spec.evaluate(x)
    monkeypatch.setattr("relukan_deploy.spec._BLOCK_ELEMENTS", 10 * 2 * 4)  # ten rows at a time
    np.testing.assert_allclose(spec.evaluate(x), whole, rtol=1e-14, atol=1e-15)


def test_many_rows_take_memory_for_a_block_of_basis_not_for_all() -> None:
    spec = KanSpec((layer_of(16, 1, 64),))
    x = np.zeros((40_000, 16))
    tracemalloc.start()
    spec.evaluate(x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < x.size * 64 * 8 / 2  # the whole basis would be 330 MB, and is needed several times


def test_no_rows_give_no_rows() -> None:
    assert KanSpec((layer_of(2, 3),)).evaluate(np.empty((0, 2))).shape == (0, 3)


# --- the domain


def test_the_domain_reaches_from_the_first_start_to_the_last_end() -> None:
    layer = LayerSpec(np.array([[-1.0, 0.5]]), np.array([[0.75, 2.0]]), np.ones((1, 1, 2)), np.zeros(1))
    assert KanSpec((layer,)).domain.tolist() == [[-1.0, 2.0]]


def test_crossed_bumps_do_not_widen_the_domain() -> None:
    layer = LayerSpec(np.array([[-1.0, 9.0]]), np.array([[0.75, -9.0]]), np.ones((1, 1, 2)), np.zeros(1))
    assert KanSpec((layer,)).domain.tolist() == [[-1.0, 0.75]]


def test_bumps_with_no_weight_do_not_widen_the_domain() -> None:
    layer = LayerSpec(np.array([[-1.0, -9.0]]), np.array([[0.75, 9.0]]), np.array([[[1.0, 0.0]]]), np.zeros(1))
    assert KanSpec((layer,)).domain.tolist() == [[-1.0, 0.75]]


def test_an_input_that_never_matters_has_the_empty_domain() -> None:
    coefficients = np.array([[[1.0], [0.0]]])
    layer = LayerSpec(np.zeros((2, 1)), np.ones((2, 1)), coefficients, np.zeros(1))
    assert KanSpec((layer,)).domain.tolist() == [[0.0, 1.0], [math.inf, -math.inf]]


@given(st.integers(0, 1000), st.floats(0, 10))
def test_inputs_beyond_the_domain_do_not_matter(seed: int, beyond: float) -> None:
    spec = KanSpec((layer_of(1, 2, 3, seed), layer_of(2, 1, 3, seed + 1)))
    low, high = spec.domain[0]
    if math.isinf(low):
        low, high = 0.0, 0.0
    assert spec.evaluate([[low - beyond]]) == spec.evaluate([[high + beyond]])


# --- frozen


@pytest.mark.parametrize("field", ["starts", "ends", "coefficients", "bias"])
def test_arrays_are_read_only_copies(field: str) -> None:
    arrays: dict[str, Any] = {
        "starts": np.zeros((2, 3)),
        "ends": np.ones((2, 3)),
        "coefficients": np.ones((1, 2, 3)),
        "bias": np.ones(1),
    }
    layer = LayerSpec(**arrays)
    arrays[field][...] = 7
    stored: Array = getattr(layer, field)
    assert (stored != 7).all()
    with pytest.raises(ValueError, match="read-only"):
        stored[...] = 7


def test_fields_cannot_be_replaced() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        one_bump(0, 1).task = "classification"  # type: ignore[misc]


def test_widths_are_the_features_between_layers() -> None:
    spec = KanSpec((layer_of(2, 3), layer_of(3, 5)))
    assert (spec.widths, spec.in_features, spec.out_features) == ((2, 3, 5), 2, 5)


# --- what is refused, and how it is said


@pytest.mark.parametrize("field", ["starts", "ends", "coefficients", "bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_by_name(field: str, value: float) -> None:
    arrays: dict[str, Any] = {
        "starts": np.zeros((2, 3)),
        "ends": np.ones((2, 3)),
        "coefficients": np.ones((1, 2, 3)),
        "bias": np.ones(1),
    }
    arrays[field].flat[-1] = value
    with pytest.raises(InputError, match=f"{field} must be finite, got NaN or infinity in an array of"):
        LayerSpec(**arrays)


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3), (2, 3), (1, 3, 2), (1,)),
        ((2, 3), (2, 4), (1, 2, 3), (1,)),
        ((2, 3), (2, 3), (1, 2, 3), (2,)),
        ((2, 3), (2, 3), (2, 3), (2,)),
        ((2, 3), (2, 3), (1, 2, 3), ()),
    ],
)
def test_shapes_that_do_not_fit_are_all_told(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(InputError, match=r"coefficients \(out, in, K\) and bias \(out,\), got") as caught:
        LayerSpec(*(np.ones(shape) for shape in shapes))  # type: ignore[arg-type]  # four arrays
    assert all(str(shape) in str(caught.value) for shape in shapes)


def test_layers_that_do_not_follow_are_refused_with_both_sizes() -> None:
    with pytest.raises(InputError, match="layer 0 has 3 outputs but layer 1 expects 2 inputs"):
        KanSpec((layer_of(2, 3), layer_of(2, 1)))


def test_no_layers_are_refused() -> None:
    with pytest.raises(InputError, match="at least one layer, got none"):
        KanSpec(())


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(InputError, match="task must be 'regression' or 'classification', got 'ranking'"):
        KanSpec((layer_of(),), task="ranking")  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "count", "what"), [("columns", 2, "inputs"), ("labels", 3, "outputs")])
def test_the_wrong_number_of_names_is_refused(kind: str, count: int, what: str) -> None:
    names = {"columns": None, "labels": None} | {kind: ("a",)}
    with pytest.raises(InputError, match=f"{kind} must name all {count} {what}, got 1 names"):
        KanSpec((layer_of(2, 3),), columns=names["columns"], labels=names["labels"])


def test_a_regression_names_all_its_outputs() -> None:
    with pytest.raises(InputError, match="targets must name all 3 outputs, got 1 names"):
        KanSpec((layer_of(2, 3),), targets=("a",))


def test_a_classification_has_one_label_column() -> None:
    with pytest.raises(InputError, match="the one label column of a classification, got"):
        KanSpec((layer_of(2, 3),), task="classification", targets=("a", "b", "c"))


def test_repeated_names_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="columns must be different from each other, but 'a' repeat"):
        KanSpec((layer_of(2, 3),), columns=("a", "a"))


@pytest.mark.parametrize("shape", [(2,), (1, 3), (1, 2, 1), ()])
def test_inputs_of_another_shape_are_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"x must be \(batch, 2\), got \(") as caught:
        KanSpec((layer_of(2, 3),)).evaluate(np.zeros(shape))
    assert str(caught.value).endswith(str(shape))


@pytest.mark.parametrize("power", [0, 9])
def test_a_power_out_of_range_is_refused(power: int) -> None:
    with pytest.raises(InputError, match=f"power must be from 1 to 8, got {power}"):
        dataclasses.replace(layer_of(2, 3), power=power)
