"""A lowered graph as an ONNX file of Relu, Mul, Add and Conv, typed in one precision.

An exact SiLU takes Sigmoid as a fifth operator, which the graph has to announce.

Opset 13 and IR version 8, which TensorRT 8.6 to 11 and old ONNX Runtimes load; bfloat16 needs
opset 22 (the first whose Conv takes it) and IR version 10.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import BuildError, InputError, MissingDependencyError
from ..spec import Form, KanSpec, Layout, Precision
from ..lowering import OPERATORS, Float64Array, Graph, Operator, candidate_forms, lower, storage_dtype

__all__ = ["count_operators", "serialise", "to_onnx"]


def to_onnx(
    spec: KanSpec,
    *,
    layout: Layout = "batch-last",
    form: Form | None = None,
    precision: Precision = "fp32",
    strict: bool = False,
    bound: float = 1e-6,
) -> bytes:
    """The network as a serialised ONNX model.

    Args:
        spec: the network.
        layout: "batch-last" has input "x" ``(1, in, 1, batch)`` and output "y"
            ``(1, out, 1, batch)``; "batch-major" has ``(batch, in, 1)`` and ``(batch, out, 1)``.
        form: see `lowering`; None for the one that keeps most digits.
        precision: of every tensor, input and output included. "tf32" is "fp32" here: it is a
            choice of the engine.
        strict, bound: as for `lower`.

    Raises:
        InputError: a constant does not fit into the precision's range.
        BuildError: the serialised file holds another operator, or ONNX's checker refuses it.
        MissingDependencyError: onnx is not installed.
    """
    form = form or candidate_forms(spec, layout=layout, precision=precision, batch=1)[-1]
    return serialise(lower(spec, layout=layout, form=form, precision=precision, strict=strict, bound=bound))


def serialise(graph: Graph) -> bytes:
    """A lowered network as a serialised ONNX model. Raises as `to_onnx`."""
    onnx = _onnx()
    make = onnx.helper
    bf16 = graph.precision == "bf16"
    element = {
        "fp32": onnx.TensorProto.FLOAT,
        "tf32": onnx.TensorProto.FLOAT,
        "fp16": onnx.TensorProto.FLOAT16,
        "bf16": onnx.TensorProto.BFLOAT16,
    }[graph.precision]
    model = make.make_model(
        make.make_graph(
            [make.make_node(n.op, n.inputs, [n.output], name=n.output, **n.attributes) for n in graph.nodes],
            "relukan",
            [make.make_tensor_value_info("x", element, graph.input_shape)],
            [make.make_tensor_value_info("y", element, graph.output_shape)],
            [
                make.make_tensor(name, element, array.shape, _typed(name, array, graph.precision), raw=True)
                for name, array in graph.constants.items()
            ],
        ),
        opset_imports=[make.make_opsetid("", 22 if bf16 else 13)],
        ir_version=10 if bf16 else 8,
        producer_name="relukan-deploy",
    )
    data: bytes = model.SerializeToString()
    count_operators(data, graph.operators)
    try:
        onnx.checker.check_model(data, full_check=True)
    except onnx.checker.ValidationError as error:
        raise BuildError(f"ONNX's checker refuses the exported graph: {error}") from error
    return data


def count_operators(data: bytes, allowed: Sequence[Operator] = OPERATORS) -> dict[str, int]:
    """How often each operator occurs in a serialised model.

    Raises:
        BuildError: an operator is not allowed.
    """
    model = _onnx().load_from_string(data)
    counts = collections.Counter(node.op_type for node in model.graph.node)
    foreign = sorted(set(counts) - set(allowed))
    foreign += sorted({f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain})
    foreign += [function.name for function in model.functions]
    if foreign:
        raise BuildError(f"the exported graph may hold only {', '.join(allowed)}, it also holds {', '.join(foreign)}")
    return dict(sorted(counts.items()))


def _typed(name: str, array: Float64Array, precision: Precision) -> bytes:
    with np.errstate(over="ignore", under="ignore"):
        typed = np.ascontiguousarray(array).astype(storage_dtype(precision))
    if not np.isfinite(typed.astype(np.float64)).all():
        larger = {"fp16": ": export with --precision bf16", "bf16": ": export with --precision fp32"}
        raise InputError(
            f"{name} holds {np.abs(array).max():.3g}, which {precision} cannot represent{larger.get(precision, '')}"
        )
    return typed.tobytes()


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError("Exporting to ONNX", "onnx", "export") from error
    return onnx
