"""Lowering, with its graph evaluated by numpy in float64: there it is exact, in every form."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from graphs import by_numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import BUMP_FORMS, LAYOUTS, Array, bump_layers, error_of, networks, random_network, run_onnx

from relukan_deploy.errors import InputError
from relukan_deploy.exporters.to_onnx import to_onnx
from relukan_deploy.lowering import Graph, candidate_forms, lower, storage_dtype
from relukan_deploy.spec import Form, KanSpec, LayerSpec, Layout, Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16")
CHOICES = list(itertools.product(LAYOUTS, BUMP_FORMS))


def bumps(*intervals: tuple[float, float], coefficients: list[float] | None = None) -> LayerSpec:
    """One input, one output."""
    starts, ends = np.array(intervals).T
    return LayerSpec(
        starts[np.newaxis], ends[np.newaxis], np.array([[coefficients or [1.0] * len(starts)]]), np.zeros(1)
    )


def with_knots_rounded(graph: Graph) -> Graph:
    """The graph with shift, s and e rounded as a file stores them, and nothing else."""
    constants = dict(graph.constants)
    for name, array in graph.constants.items():
        if name == "input/shift" or (graph.precision in ("fp16", "bf16") and name.endswith(("/starts", "/ends"))):
            constants[name] = array.astype(storage_dtype(graph.precision)).astype(np.float64)
    return dataclasses.replace(graph, constants=constants)


def size(graph: Graph) -> int:
    return sum(array.size for array in graph.constants.values())


# --- the function is the same


@settings(deadline=None)
@given(networks(exponents=6, distances=2), st.sampled_from(CHOICES), st.sampled_from(PRECISIONS[:2]))
def test_the_graph_is_the_network_exactly(
    case: tuple[KanSpec, Array], choice: tuple[Layout, Form], precision: Precision
) -> None:
    spec, x = case
    layout, form = choice
    graph = lower(spec, layout=layout, form=form, precision=precision)
    assert error_of(by_numpy(graph, x, layout), spec.evaluate(x)) < 1e-10


@settings(deadline=None)
@given(networks(), st.sampled_from(LAYOUTS), st.sampled_from(PRECISIONS[2:]))
def test_what_rounding_s_and_e_to_half_precision_leaves_is_in_the_graph(
    case: tuple[KanSpec, Array], layout: Layout, precision: Precision
) -> None:
    spec, x = case
    graph = lower(spec, layout=layout, form="direct", precision=precision)
    assert error_of(by_numpy(with_knots_rounded(graph), x, layout), spec.evaluate(x)) < 1e-10


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("distance", [1e3 + 0.3, -1e3 - 0.3])
def test_the_stored_shift_of_a_far_input_is_the_one_its_intervals_are_relative_to(
    precision: Precision, distance: float
) -> None:
    spec = KanSpec((bumps((distance, distance + 1), (distance + 0.3, distance + 1.3)),))
    graph = lower(spec, layout="batch-last", form="direct", precision=precision)
    assert "input/shift" in graph.constants
    graph = with_knots_rounded(graph)
    x = distance + np.linspace(-0.2, 1.5, 50)[:, np.newaxis]
    assert error_of(by_numpy(graph, x, "batch-last"), spec.evaluate(x)) < 1e-9


@pytest.mark.parametrize(("layout", "form"), CHOICES)
@pytest.mark.parametrize("widths", [[1, 1], [3, 2], [2, 4, 1]])
def test_a_network_of_crossed_bumps_alone_gives_its_constant(layout: Layout, form: Form, widths: list[int]) -> None:
    spec = random_network(0, widths)
    layers = [LayerSpec(layer.ends, layer.starts, layer.coefficients, layer.bias) for layer in bump_layers(spec)]
    graph = lower(KanSpec(tuple(layers)), layout=layout, form=form, precision="fp32")
    y = by_numpy(graph, np.zeros((5, widths[0])), layout)
    np.testing.assert_allclose(y, np.tile(layers[-1].bias, (5, 1)), rtol=1e-14)


# --- what it looks like


@pytest.mark.parametrize(("form", "each"), [("direct", 7), ("quadratic", 6)])
def test_a_layer_is_as_many_nodes_as_the_form_says(form: Form, each: int) -> None:
    spec = random_network(0, [3, 4, 2], ranges=(np.zeros(3) - 0.5, np.ones(3)))
    graph = lower(spec, layout="batch-last", form=form, precision="fp32")
    assert len([node for node in graph.nodes if not node.output.startswith("input/")]) == 2 * each


@pytest.mark.parametrize(("layout", "form"), CHOICES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_four_operators_occur(layout: Layout, form: Form, precision: Precision) -> None:
    spec = random_network(0, [3, 4, 2], ranges=(np.full(3, 1e3), np.full(3, 64.0)))
    graph = lower(spec, layout=layout, form=form, precision=precision)
    assert {node.op for node in graph.nodes} == {"Relu", "Mul", "Add", "Conv"}


@pytest.mark.parametrize(("layout", "form"), CHOICES)
def test_nodes_come_in_an_order_in_which_they_can_run(layout: Layout, form: Form) -> None:
    graph = lower(random_network(0, [3, 4, 2]), layout=layout, form=form, precision="fp32")
    known = {"x", *graph.constants}
    for node in graph.nodes:
        assert known.issuperset(node.inputs)
        assert node.output not in known
        known.add(node.output)
    assert graph.nodes[-1].output == "y"


def test_shapes_put_the_batch_where_the_layout_says() -> None:
    spec = random_network(0, [3, 2])
    shapes = [
        (graph.input_shape, graph.output_shape)
        for layout in LAYOUTS
        for graph in [lower(spec, layout=layout, form="direct", precision="fp32")]
    ]
    assert shapes == [((1, 3, 1, "batch"), (1, 2, 1, "batch")), (("batch", 3, 1), ("batch", 2, 1))]


@pytest.mark.parametrize("form", BUMP_FORMS)
def test_every_constant_is_used(form: Form) -> None:
    graph = lower(random_network(0, [3, 4, 2]), layout="batch-last", form=form, precision="fp16")
    assert set(graph.constants) <= {name for node in graph.nodes for name in node.inputs}


# --- what is dropped and shared


@pytest.mark.parametrize("form", BUMP_FORMS)
def test_dead_bumps_take_no_room(form: Form) -> None:
    live = bumps((0, 1), (0.5, 1.5), coefficients=[1.0, 2.0])
    crowded = bumps((0, 1), (9, 3), (0.5, 1.5), (0, 4), (2, 2), coefficients=[1.0, 5.0, 2.0, 0.0, 6.0])
    small, large = (
        lower(KanSpec((layer,)), layout="batch-last", form=form, precision="fp32") for layer in (live, crowded)
    )
    assert {name: array.tolist() for name, array in large.constants.items()} == {
        name: array.tolist() for name, array in small.constants.items()
    }


@pytest.mark.parametrize("form", BUMP_FORMS)
def test_a_hidden_feature_that_nothing_reads_is_dropped(form: Form) -> None:
    first, second = bump_layers(random_network(0, [3, 4, 2]))
    unread = second.coefficients.copy()
    unread[:, 1] = 0
    graph = lower(
        KanSpec((first, LayerSpec(second.starts, second.ends, unread, second.bias))),
        layout="batch-last",
        form=form,
        precision="fp32",
    )
    kept = [0, 2, 3]
    narrower = KanSpec(
        (
            LayerSpec(first.starts, first.ends, first.coefficients[kept], first.bias[kept]),
            LayerSpec(second.starts[kept], second.ends[kept], second.coefficients[:, kept], second.bias),
        )
    )
    assert size(graph) == size(lower(narrower, layout="batch-last", form=form, precision="fp32"))
    assert graph.constants["layer0/bias"].shape == (3,)


def test_a_chain_of_features_that_nothing_reads_is_dropped_to_its_start() -> None:
    layers = list(bump_layers(random_network(0, [2, 5, 5, 1])))
    last = layers[2].coefficients.copy()
    last[:, 1:] = 0  # one feature of the last hidden layer is read …
    layers[2] = LayerSpec(layers[2].starts, layers[2].ends, last, layers[2].bias)
    middle = layers[1].coefficients.copy()
    middle[0, 2:] = 0  # … and it reads two of the first
    layers[1] = LayerSpec(layers[1].starts, layers[1].ends, middle, layers[1].bias)
    graph = lower(KanSpec(tuple(layers)), layout="batch-last", form="direct", precision="fp32")
    assert (graph.constants["layer0/bias"].size, graph.constants["layer1/bias"].size) == (2, 1)


def test_every_network_input_is_kept_even_where_it_does_not_matter() -> None:
    layer = LayerSpec(np.zeros((3, 2)), np.ones((3, 2)), np.array([[[1.0, 2], [0, 0], [0, 0]]]), np.zeros(1))
    graph = lower(KanSpec((layer,)), layout="batch-last", form="direct", precision="fp32")
    assert graph.input_shape == (1, 3, 1, "batch")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_that_share_s_and_e_store_them_once(layout: Layout) -> None:
    starts = np.tile(np.arange(-3, 5) / 5, (7, 1))
    shared = LayerSpec(starts, starts + 0.8, np.ones((2, 7, 8)), np.zeros(2))
    graph = lower(KanSpec((shared,)), layout=layout, form="direct", precision="fp32")
    assert graph.constants["layer0/starts"].size == graph.constants["layer0/ends"].size == 8


def test_inputs_that_do_not_share_them_store_their_own() -> None:
    graph = lower(random_network(0, [7, 2]), layout="batch-last", form="direct", precision="fp32")
    assert graph.constants["layer0/starts"].size == 7 * 8


def test_an_input_near_the_unit_interval_costs_no_node() -> None:
    graph = lower(random_network(0, [3, 2], grid=1), layout="batch-last", form="direct", precision="fp32")
    assert not [node for node in graph.nodes if node.output.startswith("input/")]


@pytest.mark.parametrize("span", [1e-12, 1e12])
def test_scales_are_powers_of_two(span: float) -> None:
    spec = random_network(0, [2, 1], ranges=(np.zeros(2), np.full(2, span)))
    scale = lower(spec, layout="batch-last", form="direct", precision="fp32").constants["input/scale"]
    assert (np.frexp(scale)[0] == 0.5).all()


@pytest.mark.parametrize("power", range(1, 9))
@pytest.mark.parametrize(("layout", "form"), CHOICES)
def test_every_power_is_exact_in_float64(power: int, layout: Layout, form: Form) -> None:
    spec = random_network(0, [3, 4, 2], power=power, dead=0.1, ranges=(np.full(3, -50.0), np.full(3, 130.0)))
    x = np.random.default_rng(1).uniform(-80, 110, (60, 3))
    graph = lower(spec, layout=layout, form=form, precision="fp32")
    assert error_of(by_numpy(graph, x, layout), spec.evaluate(x)) < 1e-11


@pytest.mark.parametrize("power", range(1, 9))
def test_narrow_and_wide_bumps_of_every_power_fit_into_float32(power: int) -> None:
    layer = LayerSpec(
        np.array([[0.0, 0.49]]), np.array([[1.0, 0.51]]), np.array([[[1.0, 1.0]]]), np.zeros(1), power
    )  # half-widths 1 : 50, to the 16th power 1 : 6e-28
    spec, x = KanSpec((layer,)), np.linspace(-0.5, 1.5, 2001).astype(np.float32).astype(np.float64)[:, np.newaxis]
    assert error_of(run_onnx(to_onnx(spec), x, "batch-last"), spec.evaluate(x)) < 1e-5


# --- the choice of a form


@pytest.mark.parametrize(
    ("layout", "precision", "batch", "form"),
    [
        ("batch-last", "fp32", 1024, "quadratic"),
        ("batch-last", "fp32", 16, "quadratic"),
        ("batch-last", "fp32", 15, "direct"),
        ("batch-last", "fp16", 1024, "direct"),
        ("batch-last", "bf16", 1024, "direct"),
        ("batch-major", "fp32", 1024, "direct"),
    ],
)
def test_the_form_follows_layout_precision_and_batch(
    layout: Layout, precision: Precision, batch: int, form: Form
) -> None:
    spec = random_network(0, [3, 4, 2])
    assert candidate_forms(spec, layout=layout, precision=precision, batch=batch)[0] == form


def test_narrow_bumps_far_from_the_centre_take_the_direct_form() -> None:
    spec = KanSpec((bumps((0, 0.1), (0.9, 1.0)),))
    assert candidate_forms(spec, layout="batch-last", precision="fp32", batch=1024) == ["direct"]


@pytest.mark.parametrize(
    ("precision", "name"), [("fp32", "float32"), ("tf32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")]
)
def test_each_precision_has_its_dtype(precision: Precision, name: str) -> None:
    assert storage_dtype(precision).name == name


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match="precision must be fp32, tf32, fp16 or bf16, got 'int8'"):
        storage_dtype("int8")  # type: ignore[arg-type]
