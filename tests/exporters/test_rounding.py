"""A bf16 graph emulated in float32, against the same graph evaluated with ml_dtypes."""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from networks import LAYOUTS, Array, error_of, from_graph, random_network, run_onnx, to_graph
from onnx import numpy_helper

from relukan_deploy.errors import MissingDependencyError
from relukan_deploy.exporters.rounding import emulate_in_float32
from relukan_deploy.exporters.to_onnx import to_onnx
from relukan_deploy.spec import Form, Layout


def rounded(values: Any) -> Any:
    return np.asarray(values, dtype=np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def by_numpy(model: bytes, x: Array, layout: Layout) -> Array:
    """Every operator in float32 on bf16 numbers, its result rounded to bf16; Conv sums in float32."""
    graph = onnx.load_from_string(model).graph
    values = {tensor.name: np.asarray(numpy_helper.to_array(tensor), dtype=np.float32) for tensor in graph.initializer}
    values["x"] = rounded(to_graph(x, layout))
    for node in graph.node:
        inputs = [values[name] for name in node.input]
        if node.op_type == "Relu":
            result = np.maximum(inputs[0], 0)
        elif node.op_type in ("Mul", "Add"):
            result = inputs[0] * inputs[1] if node.op_type == "Mul" else inputs[0] + inputs[1]
        else:
            data, weight, bias = inputs
            group = next(each.i for each in node.attribute if each.name == "group")
            if layout == "batch-last":
                data, weight = data[0].transpose(2, 0, 1), weight[..., 0]
            parts = zip(np.split(data, group, axis=1), np.split(weight, group), strict=True)
            total = np.concatenate([np.einsum("nik,oik->no", *part) for part in parts], axis=1) + bias
            result = total.T[np.newaxis, :, np.newaxis] if layout == "batch-last" else total[..., np.newaxis]
        values[node.output[0]] = rounded(result)
    return from_graph(values["y"], layout)


def rows_of(inputs: int) -> Array:
    return np.random.default_rng(1).uniform(-0.5, 1.5, (65, inputs))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["direct", "quadratic"])
def test_a_layer_is_the_same_to_the_last_bits(layout: Layout, form: Form) -> None:
    spec, x = random_network(0, [3, 2]), rows_of(3)
    model = to_onnx(spec, layout=layout, form=form, precision="bf16")
    emulated = run_onnx(emulate_in_float32(model), x, layout)
    # Sums in another order round to the neighbouring bf16 number now and then.
    assert error_of(emulated, by_numpy(model, x, layout)) <= 2**-7
    assert np.median(np.abs(emulated - by_numpy(model, x, layout))) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_deep_network_is_the_same_to_a_few_roundings(layout: Layout) -> None:
    spec, x = random_network(0, [3, 5, 4, 2]), rows_of(3)
    model = to_onnx(spec, layout=layout, precision="bf16")
    assert error_of(run_onnx(emulate_in_float32(model), x, layout), by_numpy(model, x, layout)) < 0.02


def test_the_emulation_is_near_the_reference_but_not_float32() -> None:
    spec, x = random_network(0, [3, 5, 2]), rows_of(3)
    y = run_onnx(emulate_in_float32(to_onnx(spec, precision="bf16")), x, "batch-last")
    assert 1e-4 < error_of(y, spec.evaluate(x)) < 4e-2


def test_the_input_is_rounded_too() -> None:
    spec, x = random_network(0, [3, 2]), rows_of(3)
    model = emulate_in_float32(to_onnx(spec, precision="bf16"))
    assert (run_onnx(model, x, "batch-last") == run_onnx(model, rounded(x).astype(np.float64), "batch-last")).all()


def test_every_answer_is_a_bf16_number() -> None:
    y = run_onnx(emulate_in_float32(to_onnx(random_network(0, [3, 2]), precision="bf16")), rows_of(3), "batch-last")
    assert (y == rounded(y)).all()


def test_the_emulation_takes_and_gives_float32_and_passes_the_checker() -> None:
    model = onnx.load_from_string(emulate_in_float32(to_onnx(random_network(0, [3, 2]), precision="bf16")))
    onnx.checker.check_model(model, full_check=True)
    types = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert types == {onnx.TensorProto.FLOAT}


def test_constants_keep_their_bf16_values() -> None:
    data = to_onnx(random_network(0, [3, 2]), precision="bf16")
    before, after = (
        {tensor.name: np.asarray(numpy_helper.to_array(tensor), dtype=np.float64) for tensor in graph.initializer}
        for graph in (onnx.load_from_string(data).graph, onnx.load_from_string(emulate_in_float32(data)).graph)
    )
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def test_a_missing_onnx_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = to_onnx(random_network(0, [3, 2]), precision="bf16")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'relukan-deploy\[export\]'"):
        emulate_in_float32(data)
