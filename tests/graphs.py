"""A lowered graph evaluated by numpy in float64, for the tests of lowering."""

from __future__ import annotations

import numpy as np
from networks import Array, from_graph, to_graph

from relukan_deploy.lowering import Graph, Node
from relukan_deploy.spec import Layout


def by_numpy(graph: Graph, x: Array, layout: Layout) -> Array:
    values: dict[str, Array] = {**graph.constants, "x": to_graph(x, layout)}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        if node.op == "Mul":
            result = inputs[0] * inputs[1]
        elif node.op == "Add":
            result = inputs[0] + inputs[1]
        elif node.op == "Relu":
            result = np.maximum(inputs[0], 0)
        elif node.op == "Sigmoid":
            result = (1 + np.tanh(inputs[0] / 2)) / 2
        else:
            result = convolution(node, layout, *inputs)
        values[node.output] = result
    return from_graph(values["y"], layout)


def convolution(node: Node, layout: Layout, x: Array, weight: Array, bias: Array | float = 0.0) -> Array:
    """A Conv whose kernel is as long as axis 2, which is all that lowering writes."""
    group, kernel = node.attributes["group"], node.attributes["kernel_shape"]
    assert isinstance(group, int)
    assert kernel == list(weight.shape[2:])
    if layout == "batch-last":
        x, weight = x[0].transpose(2, 0, 1), weight[..., 0]  # (batch, in, K), (out, in/group, K)
    assert x.shape[2] == weight.shape[2]
    parts = zip(np.split(x, group, axis=1), np.split(weight, group), strict=True)
    y = np.concatenate([np.einsum("nik,oik->no", *part) for part in parts], axis=1) + bias
    return y.T[np.newaxis, :, np.newaxis] if layout == "batch-last" else y[..., np.newaxis]
