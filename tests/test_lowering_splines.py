"""Lowering splines, with the graph evaluated by numpy in float64: there it is exact, in every form."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from graphs import by_numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import LAYOUTS, Array, error_of, run_onnx, spline_layers

from relukan_deploy.errors import InputError
from relukan_deploy.exporters.to_onnx import to_onnx
from relukan_deploy.lowering import OPERATORS, candidate_forms, constants_like, lower
from relukan_deploy.spec import Form, KanSpec, Layout
from relukan_deploy.splines import Function, SplineSpec


def spline_layer(
    rng: np.random.Generator, inputs: int, outputs: int, *, grid: int = 5, degree: int = 3, **parts: Any
) -> SplineSpec:
    """Knots from half to one and a half of a uniform grid's distance apart, on each input others."""
    steps = rng.uniform(0.5, 1.5, (inputs, grid + 2 * degree)) * 2 / grid
    knots = np.concatenate([np.zeros((inputs, 1)), np.cumsum(steps, axis=1)], axis=1)
    knots += rng.uniform(-0.2, 0.2, (inputs, 1)) - knots[:, [-1]] / 2
    knots = knots.astype(np.float32)  # as a checkpoint holds them
    return SplineSpec(
        **{
            "degree": degree,
            "knots": knots,
            "coefficients": rng.normal(size=(outputs, inputs, grid + degree)) / inputs**0.5,
            "bias": rng.normal(size=outputs),
            "silu": rng.uniform(-1, 1, (outputs, inputs)) / inputs**0.5,
            "polynomial": np.zeros((outputs, inputs, 0)),
            **parts,
        }
    )


def spline_network(seed: int, widths: list[int], **parts: Any) -> KanSpec:
    rng = np.random.default_rng(seed)
    return KanSpec(tuple(spline_layer(rng, i, o, **parts) for i, o in itertools.pairwise(widths)))


def rows(spec: KanSpec, *, count: int = 50) -> Array:
    """Inside the domain, on every knot, beside the domain and far from it."""
    knots = spec.layers[0].breaks
    rng = np.random.default_rng(9)
    inside = rng.uniform(knots[:, 0], knots[:, -1], (count, len(knots)))
    far = rng.choice([-1.0, 1.0], (4, len(knots))) * np.array([[4.0], [9.0], [40.0], [1000.0]])
    return np.concatenate([inside, knots.T, far]).astype(np.float32).astype(np.float64)


def forms_of(spec: KanSpec, layout: Layout) -> list[Form]:
    found = [candidate_forms(spec, layout=layout, precision="fp32", batch=batch) for batch in (1, 64)]
    return list(dict.fromkeys(form for forms in found for form in forms))


def mixed_network() -> KanSpec:
    """Every kind of branch, and multiplication nodes."""
    rng = np.random.default_rng(3)
    first = spline_layer(
        rng,
        2,
        5,
        polynomial=rng.normal(size=(5, 2, 3)) * 0.1,
        products=((0,), (1, 2), (3, 4, 0)),
        offset=np.array([0.0, 0.5, 0.0]),
        functions=(Function("sin", 0, 3, 2.0, 0.1, 1.5, -2.0, 2.0), Function("abs", 0, 1, 1.0, 0.3, 0.5, -2.0, 2.0)),
    )
    return KanSpec((first, spline_layer(rng, 3, 2)))


@given(
    seed=st.integers(0, 2**32 - 1),
    widths=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    grid=st.integers(1, 12),
    degree=st.integers(1, 7),
    layout=st.sampled_from(LAYOUTS),
)
@settings(max_examples=40, deadline=None)
def test_every_form_is_exact_in_float64(seed: int, widths: list[int], grid: int, degree: int, layout: Layout) -> None:
    spec = spline_network(seed, widths, grid=grid, degree=degree)
    x = rows(spec)
    for form in forms_of(spec, layout):
        graph = lower(spec, layout=layout, form=form, precision="fp32")
        tolerance = 5e-7 if form.endswith("-1") else 1e-9  # the first rounds constants to what float32 has
        assert error_of(by_numpy(graph, x, layout), spec.evaluate(x)) < tolerance, form


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_branches_together_are_within_the_bound_of_their_functions(layout: Layout) -> None:
    spec = mixed_network()
    x = rows(spec)[:60]
    for form in forms_of(spec, layout):
        for strict in (False, True):
            graph = lower(spec, layout=layout, form=form, precision="fp32", strict=strict, bound=1e-8)
            assert error_of(by_numpy(graph, x, layout), spec.evaluate(x)) < 1e-6, (form, strict)


def test_without_other_functions_all_branches_are_exact() -> None:
    first, second = spline_layers(mixed_network())
    spec = KanSpec((dataclasses.replace(first, functions=()), second))
    x = rows(spec)[:60]
    for form in forms_of(spec, "batch-last"):
        graph = lower(spec, layout="batch-last", form=form, precision="fp32")
        assert error_of(by_numpy(graph, x, "batch-last"), spec.evaluate(x)) < (5e-7 if form.endswith("-1") else 1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_power_of_one_input_does_not_overflow_for_another(layout: Layout) -> None:
    """0 times infinity is NaN."""
    polynomial = np.zeros((1, 2, 3))
    polynomial[0, 0], polynomial[0, 1, 0] = (0.5, 0.25, -1.0), 2.0
    spec = spline_network(0, [2, 1], polynomial=polynomial)
    x = np.array([[0.5, 1e25], [-2.0, -1e30]])
    for form in forms_of(spec, layout):
        found = run_onnx(to_onnx(spec, layout=layout, form=form, precision="fp32"), x, layout)
        assert error_of(found, spec.evaluate(x)) < 1e-6, form


def test_strict_graphs_hold_four_operators_and_others_sigmoid_too() -> None:
    spec = spline_network(0, [2, 3, 1])
    for form in forms_of(spec, "batch-last"):
        exact, strict = (lower(spec, layout="batch-last", form=form, precision="fp32", strict=s) for s in (False, True))
        assert {node.op for node in exact.nodes} == set(exact.operators) == {*OPERATORS, "Sigmoid"}
        assert {node.op for node in strict.nodes} == set(strict.operators) == set(OPERATORS)


def test_without_silu_no_sigmoid_is_announced() -> None:
    spec = spline_network(0, [2, 1], silu=np.zeros((1, 2)))
    assert lower(spec, layout="batch-last", form="direct-1", precision="fp32").operators == OPERATORS


def test_a_strict_silu_is_within_its_bound_everywhere() -> None:
    layer = SplineSpec(
        1, np.array([[0.0, 1.0, 2.0]]), np.zeros((1, 1, 1)), np.zeros(1), np.ones((1, 1)), np.zeros((1, 1, 0))
    )
    spec = KanSpec((layer,))
    x = np.concatenate([np.linspace(-60, 60, 20001), [-1e30, 1e30, -1e4, 1e4, 0]])[:, np.newaxis]
    graph = lower(spec, layout="batch-last", form="direct-1", precision="fp32", strict=True, bound=1e-4)
    difference = np.abs(by_numpy(graph, x, "batch-last") - spec.evaluate(x))
    assert (difference <= 1e-4 + 1e-15 * np.abs(x)).all()


def test_features_are_as_few_as_the_blocks_allow() -> None:
    spec = spline_network(0, [3, 2])  # 11 intervals of degree 3
    shapes = {
        form: lower(spec, layout="batch-last", form=form, precision="fp32").constants
        for form in forms_of(spec, "batch-last")
    }
    features = {
        form: found["layer0/weight"].shape[2]
        for form, found in shapes.items()
        if form.startswith("direct-") and form != "direct-1"
    }
    assert features == {"direct-6": 11, "direct-4": 13, "direct-3": 15, "direct-2": 19}
    assert shapes["direct-1"]["layer0/weight"].shape[1] == 3 * 8


def test_blocks_that_make_no_difference_are_not_tried_twice() -> None:
    spec = spline_network(0, [2, 1], grid=1, degree=1)  # 3 intervals
    assert candidate_forms(spec, layout="batch-last", precision="fp32", batch=1) == ["direct-6", "direct-1"]


@pytest.mark.parametrize(
    ("layout", "precision", "batch", "first"),
    [
        ("batch-last", "fp32", 2, "grouped-6"),
        ("batch-last", "fp32", 1, "direct-6"),
        ("batch-major", "fp32", 1024, "direct-6"),
        ("batch-last", "fp16", 1024, "direct-1"),
        ("batch-last", "tf32", 1024, "direct-1"),
    ],
)
def test_the_form_follows_layout_precision_and_batch(layout: Layout, precision: Any, batch: int, first: Form) -> None:
    spec = spline_network(0, [3, 4, 2])
    forms = candidate_forms(spec, layout=layout, precision=precision, batch=batch)
    assert (forms[0], forms[-1][-2:]) == (first, "-1")


def test_a_form_of_bumps_is_refused_for_splines() -> None:
    with pytest.raises(InputError, match="form 'quadratic' is for networks of bumps: ask candidate_forms"):
        lower(spline_network(0, [2, 1]), layout="batch-last", form="quadratic", precision="fp32")


def test_hidden_features_that_nothing_depends_on_are_left_out() -> None:
    spec = spline_network(0, [3, 4, 2])
    first, second = spline_layers(spec)
    coefficients, silu = np.array(second.coefficients), np.array(second.silu)
    coefficients[:, [0, 2]], silu[:, [0, 2]] = 0, 0
    spec = KanSpec((first, dataclasses.replace(second, coefficients=coefficients, silu=silu)))
    graph = lower(spec, layout="batch-last", form="direct-4", precision="fp32")
    assert graph.constants["layer1/weight"].shape[:2] == (2, 2)
    assert graph.constants["layer0/weight"].shape[:2] == (2, 3)
    assert error_of(by_numpy(graph, rows(spec), "batch-last"), spec.evaluate(rows(spec))) < 1e-10


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_constant_network_lowers(layout: Layout) -> None:
    spec = spline_network(0, [2, 3], coefficients=np.zeros((3, 2, 8)), silu=np.zeros((3, 2)))
    for form in forms_of(spec, layout):
        graph = lower(spec, layout=layout, form=form, precision="fp32")
        assert error_of(by_numpy(graph, rows(spec), layout), spec.evaluate(rows(spec))) == 0


def test_constants_of_a_retrained_network_fit_into_the_graph() -> None:
    old, new = spline_network(0, [3, 4, 2]), spline_network(1, [3, 4, 2])
    for form in forms_of(old, "batch-last"):
        graph = lower(old, layout="batch-last", form=form, precision="fp32", strict=True)
        shapes = {name: array.shape for name, array in graph.constants.items()}
        made = constants_like(new, shapes, layout="batch-last", form=form, precision="fp32", strict=True)
        refitted = by_numpy(dataclasses.replace(graph, constants=made), rows(new), "batch-last")
        assert error_of(refitted, new.evaluate(rows(new))) < 1e-5


def test_another_grid_has_no_place_in_the_graph() -> None:
    old, new = spline_network(0, [3, 2]), spline_network(0, [3, 2], grid=6)
    graph = lower(old, layout="batch-last", form="direct-4", precision="fp32")
    shapes = {name: array.shape for name, array in graph.constants.items()}
    with pytest.raises(InputError, match="the graph has no place for this network's constants"):
        constants_like(new, shapes, layout="batch-last", form="direct-4", precision="fp32")


@given(seed=st.integers(0, 2**32 - 1), degree=st.integers(1, 7), layout=st.sampled_from(LAYOUTS))
@settings(max_examples=20, deadline=None)
def test_the_last_form_keeps_float32(seed: int, degree: int, layout: Layout) -> None:
    spec = spline_network(seed, [3, 2], degree=degree)
    x = rows(spec)
    for strict in (False, True):
        model = to_onnx(spec, layout=layout, strict=strict, bound=1e-7)
        assert error_of(run_onnx(model, x, layout), spec.evaluate(x)) < 5e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grid", [5, 50])
def test_single_intervals_give_exact_zeros_beyond_each_spline(layout: Layout, grid: int) -> None:
    count = grid + 3
    spec = spline_network(
        0,
        [1, count],
        grid=grid,
        bias=np.zeros(count),
        silu=np.zeros((count, 1)),
        coefficients=np.eye(count)[:, np.newaxis],
    )  # each output is one B-spline
    knots = spec.layers[0].breaks[0]
    x = np.linspace(knots[0] - 1, knots[-1] + 1, 5000).astype(np.float32).astype(np.float64)[:, np.newaxis]
    found = run_onnx(to_onnx(spec, layout=layout), x, layout)
    assert np.abs(found - spec.evaluate(x)).max() < 5e-7
    beside = 1e-6  # a ramp may end one rounding error past the knot
    outside = (x < knots[:count] - beside) | (x > knots[4:] + beside)
    assert not found[outside].any()
