"""`Graph`, a lowered network, and `Emitter`, which collects its nodes and constants."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, MissingDependencyError
from ..spec import Layout, Precision

__all__ = ["OPERATORS", "Emitter", "Float64Array", "Graph", "Node", "Operator", "storage_dtype"]

Float64Array = NDArray[np.float64]
Operator = Literal["Add", "Conv", "Mul", "Relu", "Sigmoid"]

OPERATORS: tuple[Operator, ...] = ("Add", "Conv", "Mul", "Relu")
"""What every graph may hold."""


@dataclasses.dataclass(frozen=True)
class Node:
    """One operator: its inputs and output by name, and its attributes (integers)."""

    op: Operator
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, int | list[int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Graph:
    """A lowered network. Its input is named "x", its output "y", and the free dimension "batch".

    Attributes:
        nodes: in an order in which they can run.
        constants: float64, by name.
        input_shape, output_shape: ``(1, in, 1, "batch")`` and ``(1, out, 1, "batch")`` for
            batch-last, ``("batch", in, 1)`` and ``("batch", out, 1)`` for batch-major.
        precision: that it was written for.
        operators: what it may hold: Sigmoid as the fifth where an exact SiLU is wanted.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Float64Array]
    input_shape: tuple[int | str, ...]
    output_shape: tuple[int | str, ...]
    precision: Precision
    operators: tuple[Operator, ...] = OPERATORS


def storage_dtype(precision: Precision) -> np.dtype[Any]:
    """The dtype of a graph's tensors; "tf32" stores float32.

    Raises:
        InputError: there is no such precision.
        MissingDependencyError: bf16 without ml_dtypes.
    """
    if precision in ("fp32", "tf32"):
        return np.dtype(np.float32)
    if precision == "fp16":
        return np.dtype(np.float16)
    if precision == "bf16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise MissingDependencyError("A bf16 graph", "ml_dtypes", "export") from error
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    raise InputError(f"precision must be fp32, tf32, fp16 or bf16, got {precision!r}")


class Emitter:
    """Collects nodes and constants, and knows where a layout puts features, bumps and the batch."""

    def __init__(self, layout: Layout, precision: Precision) -> None:
        self.layout = layout
        self.precision = precision
        self.dtype = storage_dtype(precision)
        self.nodes: list[Node] = []
        self.constants: dict[str, Float64Array] = {}

    def graph(self, in_features: int, out_features: int, operators: tuple[Operator, ...] = OPERATORS) -> Graph:
        """What was collected; the last node gives "y"."""
        last = dataclasses.replace(self.nodes[-1], output="y")
        return Graph(
            nodes=(*self.nodes[:-1], last),
            constants=self.constants,
            input_shape=self._shape(in_features),
            output_shape=self._shape(out_features),
            precision=self.precision,
            operators=operators,
        )

    def _shape(self, features: int) -> tuple[int | str, ...]:
        return (1, features, 1, "batch") if self.layout == "batch-last" else ("batch", features, 1)

    def as_stored(self, array: Float64Array) -> Float64Array:
        """As the precision rounds it; what overflows is left as it is, for the error that names it."""
        with np.errstate(over="ignore"):
            rounded = array.astype(self.dtype).astype(np.float64)
        return np.where(np.isfinite(rounded), rounded, array)

    def node(self, op: Operator, output: str, *inputs: str, group: int = 1) -> str:
        attributes: dict[str, int | list[int]] = {}
        if op == "Conv":
            kernel = list(self.constants[inputs[1]].shape[2:])
            attributes = {"kernel_shape": kernel, "group": group}
        self.nodes.append(Node(op, inputs, output, attributes))
        return output

    def conv(
        self, output: str, value: str, name: str, weight: Float64Array, bias: Float64Array | None = None, group: int = 1
    ) -> str:
        """A Conv with weight ``(out, in / group, K)``, and bias ``(out,)``: constants NAMEweight and NAMEbias."""
        constants = [self.constant(f"{name}weight", self._kernel(weight))]
        if bias is not None:
            constants.append(self.constant(f"{name}bias", bias))
        return self.node("Conv", output, value, *constants, group=group)

    def add(self, output: str, value: str, name: str, array: Float64Array) -> str:
        """value + array ``(in, K)``; in half precision also + what rounding the array left."""
        value = self.node("Add", output, value, self.elementwise(name, array))
        if self.dtype.itemsize < 4:
            rest = array - self.as_stored(array)
            value = self.node("Add", f"{output}_exact", value, self.elementwise(f"{name}_rest", rest))
        return value

    def negated(self, output: str, value: str) -> str:
        return self.node("Mul", output, value, self.elementwise("minus_one", np.array([[-1.0]])))

    def powers(self, name: str, value: str) -> Callable[[int], str]:
        """What gives the tensor of a power of a value; one that was asked for before is not made again."""

        @functools.cache
        def power(exponent: int) -> str:
            if exponent == 1:
                return value
            half = power(exponent // 2)
            return self.node("Mul", f"{name}{exponent}", half, power(exponent - exponent // 2))

        return power

    def elementwise(self, name: str, array: Float64Array) -> str:
        """A constant ``(in, K)``, stored once where all inputs share it."""
        if (array == array[:1]).all():
            array = array[:1]
        return self.constant(name, self.as_elementwise(array))

    def as_elementwise(self, array: Float64Array) -> Float64Array:
        """``(in, K)`` with the axes of the layout."""
        return array[np.newaxis, :, :, np.newaxis] if self._batch_last else array[np.newaxis]

    def _kernel(self, weight: Float64Array) -> Float64Array:
        """A Conv weight ``(out, in, K)`` with the axes of the layout."""
        return weight[..., np.newaxis] if self._batch_last else weight

    def constant(self, name: str, array: Float64Array) -> str:
        self.constants[name] = array
        return name

    @property
    def _batch_last(self) -> bool:
        return self.layout == "batch-last"
