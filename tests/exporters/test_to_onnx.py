"""The exported file: what it holds, and what ONNX Runtime and ONNX's own evaluator answer with it."""

from __future__ import annotations

import itertools
import re
import sys
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import BUMP_FORMS, LAYOUTS, Array, bump_layers, error_of, from_graph, networks, random_network, run_onnx, to_graph
from onnx import TensorProto, helper

from relukan_deploy.errors import BuildError, InputError, MissingDependencyError
from relukan_deploy.exporters.to_onnx import count_operators, to_onnx
from relukan_deploy.lowering import OPERATORS, candidate_forms
from relukan_deploy.spec import Form, KanSpec, LayerSpec, Layout, Precision

CHOICES = list(itertools.product(LAYOUTS, BUMP_FORMS))
ELEMENTS = {
    "fp32": TensorProto.FLOAT,
    "tf32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16")


def small_network() -> KanSpec:
    return random_network(0, [3, 4, 2], dead=0.1)


def unit_rows(rows: int, inputs: int = 3) -> Array:
    return np.random.default_rng(1).uniform(-0.5, 1.5, (rows, inputs)).astype(np.float16).astype(np.float64)


def chosen_forms(spec: KanSpec, layout: Layout) -> set[Form]:
    return {candidate_forms(spec, layout=layout, precision="fp32", batch=batch)[0] for batch in (1, 1024)}


# --- the answers


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(deadline=None, max_examples=60)
@given(networks(exponents=30, distances=4))
def test_fp32_answers_are_those_of_the_reference(layout: Layout, case: tuple[KanSpec, Array]) -> None:
    spec, x = case
    for form in chosen_forms(spec, layout):
        y = run_onnx(to_onnx(spec, layout=layout, form=form), x, layout)
        assert error_of(y, spec.evaluate(x)) < 1e-5


@settings(deadline=None, max_examples=40)
@given(networks(exponents=3, distances=1))
def test_the_quadratic_form_is_as_right_in_the_other_layout(case: tuple[KanSpec, Array]) -> None:
    spec, x = case
    if "quadratic" in chosen_forms(spec, "batch-last"):
        y = run_onnx(to_onnx(spec, layout="batch-major", form="quadratic"), x, "batch-major")
        assert error_of(y, spec.evaluate(x)) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(deadline=None, max_examples=60)
@given(networks(exponents=1))
def test_fp16_answers_are_within_5e_3_on_networks_scaled_for_it(layout: Layout, case: tuple[KanSpec, Array]) -> None:
    spec, x = case
    x = x.astype(np.float16).astype(np.float64)
    y = run_onnx(to_onnx(spec, layout=layout, precision="fp16"), x, layout, np.float16)
    assert error_of(y, spec.evaluate(x)) < 5e-3


@pytest.mark.parametrize(("layout", "form"), CHOICES)
def test_another_evaluator_gives_the_same_answers(layout: Layout, form: Form) -> None:
    spec, x = small_network(), unit_rows(7)
    evaluator = onnx.reference.ReferenceEvaluator(onnx.load_from_string(to_onnx(spec, layout=layout, form=form)))
    results: Any = evaluator.run(None, {"x": to_graph(x, layout).astype(np.float32)})
    assert error_of(from_graph(results[0], layout), spec.evaluate(x)) < 1e-5


@pytest.mark.parametrize(("layout", "form"), CHOICES)
@pytest.mark.parametrize("rows", [1, 2, 3, 64, 1001])
def test_any_batch_size_is_answered(layout: Layout, form: Form, rows: int) -> None:
    spec, x = small_network(), unit_rows(rows)
    y = run_onnx(to_onnx(spec, layout=layout, form=form), x, layout)
    assert y.shape == (rows, 2)
    assert error_of(y, spec.evaluate(x)) < 1e-5


@pytest.mark.parametrize(("layout", "form"), CHOICES)
@pytest.mark.parametrize("far", [np.inf, -np.inf, 3e38, -3e38, 1e20])
@pytest.mark.parametrize("where", [0, 2])
def test_an_infinite_input_is_zero_and_leaves_its_neighbours(
    layout: Layout, form: Form, far: float, where: int
) -> None:
    spec = random_network(0, [4, 4, 2], ranges=(np.full(4, 300.0), np.full(4, 40.0)))
    x = 300 + 40 * unit_rows(5, 4)
    x[2, where] = far
    nearer = np.where(np.abs(x) > 1e6, -1e6, x)  # just as zero
    y = run_onnx(to_onnx(spec, layout=layout, form=form), x, layout)
    assert error_of(y, spec.evaluate(nearer)) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("far", [np.inf, -np.inf, 6e4, -6e4])
def test_an_infinite_fp16_input_is_zero_and_leaves_its_neighbours(layout: Layout, far: float) -> None:
    spec, x = small_network(), unit_rows(5)
    x[2, 0] = far
    y = run_onnx(to_onnx(spec, layout=layout, precision="fp16"), x, layout, np.float16)
    assert error_of(y, spec.evaluate(np.where(np.abs(x) > 1e3, -1e3, x))) < 5e-3


@pytest.mark.parametrize(("layout", "form"), CHOICES)
def test_inputs_on_every_start_and_end_are_answered(layout: Layout, form: Form) -> None:
    spec = random_network(0, [1, 2])
    knots = bump_layers(spec)[0].breaks[0].astype(np.float32)
    x = np.concatenate([knots, np.nextafter(knots, np.float32(9)), np.nextafter(knots, np.float32(-9))])
    rows = x[:, np.newaxis].astype(np.float64)
    y = run_onnx(to_onnx(spec, layout=layout, form=form), rows, layout)
    assert error_of(y, spec.evaluate(rows)) < 1e-5


# --- the file


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("layout", "form"), CHOICES)
def test_the_file_holds_four_operators_and_nothing_else(layout: Layout, form: Form, precision: Precision) -> None:
    data = to_onnx(small_network(), layout=layout, form=form, precision=precision)
    graph = onnx.load_from_string(data).graph
    assert {node.op_type for node in graph.node} == {"Relu", "Mul", "Add", "Conv"}
    assert not graph.sparse_initializer
    assert sum(count_operators(data).values()) == len(graph.node)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("layout", "form"), CHOICES)
def test_onnx_accepts_the_file(layout: Layout, form: Form, precision: Precision) -> None:
    onnx.checker.check_model(to_onnx(small_network(), layout=layout, form=form, precision=precision), full_check=True)


@pytest.mark.parametrize(
    ("precision", "opset", "ir"), [("fp32", 13, 8), ("tf32", 13, 8), ("fp16", 13, 8), ("bf16", 22, 10)]
)
def test_the_versions_are_the_oldest_that_hold_the_precision(precision: Precision, opset: int, ir: int) -> None:
    model = onnx.load_from_string(to_onnx(small_network(), precision=precision))
    assert [(each.domain, each.version) for each in model.opset_import] == [("", opset)]
    assert model.ir_version == ir


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("form", BUMP_FORMS)
def test_every_tensor_has_the_type_of_the_precision(form: Form, precision: Precision) -> None:
    graph = onnx.load_from_string(to_onnx(small_network(), form=form, precision=precision)).graph
    types = {tensor.data_type for tensor in graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert types == {ELEMENTS[precision]}


@pytest.mark.parametrize(
    ("layout", "shapes"),
    [
        ("batch-last", [(1, 3, 1, "batch"), (1, 2, 1, "batch")]),
        ("batch-major", [("batch", 3, 1), ("batch", 2, 1)]),
    ],
)
def test_the_batch_is_free_and_every_other_size_is_fixed(layout: Layout, shapes: list[Any]) -> None:
    graph = onnx.load_from_string(to_onnx(small_network(), layout=layout)).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["x", "y"]
    assert [
        tuple(size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.output)
    ] == shapes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_constants_are_not_inputs(layout: Layout) -> None:
    session = onnxruntime.InferenceSession(to_onnx(small_network(), layout=layout))
    assert [value.name for value in session.get_inputs()] == ["x"]


def test_nodes_are_named_for_messages_of_other_tools() -> None:
    names = [node.name for node in onnx.load_from_string(to_onnx(small_network())).graph.node]
    assert "layer1/bumps2" in names
    assert len(set(names)) == len(names)


def test_the_same_network_gives_the_same_bytes() -> None:
    assert to_onnx(small_network()) == to_onnx(small_network())


@pytest.mark.parametrize("form", BUMP_FORMS)
def test_dead_bumps_make_the_file_smaller(form: Form) -> None:
    whole = random_network(0, [8, 8, 2])
    layer, last = bump_layers(whole)
    crossed = layer.ends.copy()
    crossed[:, 2:] = -9
    fewer = KanSpec((LayerSpec(layer.starts, crossed, layer.coefficients, layer.bias), last))
    saved = 8 * 8 * 6 * 4  # bytes of weights alone
    assert len(to_onnx(fewer, form=form)) < len(to_onnx(whole, form=form)) - saved


# --- what is refused, and how it is said


def with_coefficient(value: float) -> KanSpec:
    (layer,) = bump_layers(random_network(0, [2, 1]))
    coefficients = layer.coefficients.copy()
    coefficients[0, 1, 2] = value
    return KanSpec((LayerSpec(layer.starts, layer.ends, coefficients, layer.bias),))


@pytest.mark.parametrize(
    ("precision", "value", "instead"), [("fp16", 1e9, "bf16"), ("bf16", 1e39, "fp32"), ("fp32", 1e42, "fp32")]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_weight_that_a_precision_cannot_hold_is_named(
    layout: Layout, precision: Precision, value: float, instead: str
) -> None:
    pattern = rf"layer0/weight holds \d\S+, which {precision} cannot represent"
    if precision != "fp32":
        pattern += f": export with --precision {instead}"
    with pytest.raises(InputError, match=pattern):
        to_onnx(with_coefficient(value), layout=layout, precision=precision)


def test_an_input_too_far_away_for_fp16_is_named() -> None:
    spec = random_network(0, [2, 1], ranges=(np.array([0, 1e6]), np.array([1.0, 1.0])))
    message = "input/shift holds 1e+06, which fp16 cannot represent: export with --precision bf16"
    with pytest.raises(InputError, match=re.escape(message)):
        to_onnx(spec, precision="fp16")


def test_no_other_precision_is_advised_where_there_is_none() -> None:
    with pytest.raises(InputError) as caught:
        to_onnx(with_coefficient(1e42))
    assert "--precision" not in str(caught.value)


def foreign(operator: str, domain: str = "") -> bytes:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 1, "batch"])
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    data: bytes = helper.make_model(graph).SerializeToString()
    return data


@pytest.mark.parametrize(("operator", "domain"), [("Sigmoid", ""), ("Reshape", ""), ("Relu", "com.example")])
def test_a_foreign_operator_is_refused_by_name(operator: str, domain: str) -> None:
    with pytest.raises(BuildError, match=f"may hold only Add, Conv, Mul, Relu, it also holds .*{operator}"):
        count_operators(foreign(operator, domain))


def test_a_function_is_refused_by_name() -> None:
    model = onnx.load_from_string(foreign("Relu"))
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(helper.make_function("local", "Silu", ["a"], ["b"], body, model.opset_import))
    with pytest.raises(BuildError, match="it also holds Silu"):
        count_operators(model.SerializeToString())


def test_operators_are_counted() -> None:
    spec = KanSpec((LayerSpec(np.zeros((1, 1)), np.ones((1, 1)), np.ones((1, 1, 1)), np.zeros(1)),))
    assert count_operators(to_onnx(spec)) == {"Add": 2, "Conv": 1, "Mul": 3, "Relu": 1}
    assert tuple(count_operators(to_onnx(spec))) == OPERATORS


@pytest.mark.parametrize(("module", "precision"), [("onnx", "fp32"), ("ml_dtypes", "bf16")])
def test_a_missing_package_is_named_with_what_installs_it(
    module: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingDependencyError, match=rf"needs the package '{module}'.* pip install 'relukan-deploy\[export\]'"
    ):
        to_onnx(small_network(), precision=precision)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match="precision must be fp32, tf32, fp16 or bf16, got 'int8'"):
        to_onnx(small_network(), precision="int8")  # type: ignore[arg-type]


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(CHOICES), networks())
def test_export_does_not_change_the_network(choice: tuple[Layout, Form], case: tuple[KanSpec, Array]) -> None:
    spec, x = case
    before = spec.evaluate(x)
    to_onnx(spec, layout=choice[0], form=choice[1])
    assert (spec.evaluate(x) == before).all()
