"""A half-precision graph as a float32 graph that rounds after every operator.

On a CPU, ONNX Runtime has no bfloat16 Conv, and computes a float16 graph in float32 from end to end.
What a graph's types and rounded constants do to its answers can still be measured there: the same
operators on the same constants in float32, each result rounded. An engine keeps its sums in float32
inside a Conv too, so this is close to it.
"""

from __future__ import annotations

from typing import Any

from ..errors import MissingDependencyError

__all__ = ["emulate_in_float32"]


def emulate_in_float32(model: bytes) -> bytes:
    """Rewrites a serialised float16 or bfloat16 model; the result takes and gives float32.

    Raises:
        MissingDependencyError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError("Checking a half-precision graph without a GPU", "onnx", "export") from error
    proto: Any = onnx.load_from_string(model)
    graph = proto.graph
    element = graph.input[0].type.tensor_type.elem_type
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).astype("float32")
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT

    nodes = _rounded("x", "x/rounded", element)
    for node in graph.node:
        inputs = ["x/rounded" if name == "x" else name for name in node.input]
        output, exact = node.output[0], f"{node.output[0]}/exact"
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.append(exact)
        nodes += [node, *_rounded(exact, output, element)]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    data: bytes = proto.SerializeToString()
    return data


def _rounded(source: str, result: str, element: int) -> list[Any]:
    import onnx

    make, half = onnx.helper.make_node, f"{source}/half"
    return [
        make("Cast", [source], [half], to=element),
        make("Cast", [half], [result], to=onnx.TensorProto.FLOAT),
    ]
