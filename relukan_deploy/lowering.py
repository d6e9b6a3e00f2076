"""A `KanSpec` as a graph of Relu, Mul, Add and Conv.

What is done, in this order:

1. Bumps that cannot contribute (s ≥ e, or every coefficient zero) are dropped, then hidden
   features none of whose bumps are left. Inputs keep as many bumps as the fullest one.
2. Each layer gets coordinates z = scale · (x − shift) in which its bumps have half-widths near 1
   and lie around 0, so that float16 neither overflows nor loses the small ones. Scales are powers
   of two, so they cost no precision. Between layers this is free: the Conv before produces z. At
   the network's input it costs an Add and a Mul, left out where the input is near such a scale.
3. Each layer is written in one of two forms. With p = (e − z)(z − s), a bump is ReLU(p)² times a
   constant that goes into the Conv, since s < e makes ReLU(e − z)·ReLU(z − s) = ReLU(p).

   direct, seven nodes: p is a product of two sums.

       n = Mul(z, −1);  a = Add(n, e);  c = Add(z, −s);  p = Mul(a, c)
       q = Relu(p);  b = Mul(q, q);  y = Conv(b)

   In fp16 and bf16 the rounding of s and e is the largest error by far, so each is added in two
   parts there, the rounded constant and what the rounding left: two more Adds.

   quadratic, six nodes: p = −z² + (s+e)z − se is a Conv over the two features z(z−w), z(z+w).

       u = Add(z, [−w, w]);  f = Mul(z, u);  p = Conv(f), one group an input
       q = Relu(p);  b = Mul(q, q);  y = Conv(b)

   The quadratic form makes two passes over the K-fold basis where the direct one makes five (a
   runtime fuses Relu into the Conv), but it subtracts squares, which costs digits when bumps are
   narrow. With w above every |s+e| all its weights are negative, so an input that overflows
   gives p = −∞ and the bump 0, never NaN.

Constants of inputs that share their s and e are stored once and broadcast.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, MissingDependencyError
from .spec import Form, KanSpec, LayerSpec, Layout, Precision

__all__ = ["ENGINE_FORM", "Graph", "Node", "choose_form", "constants_like", "lower", "storage_dtype"]

Float64Array = NDArray[np.float64]

# TensorRT fuses elementwise operators into one kernel, so the direct form leaves it two kernels a
# layer, and the other three. Not yet measured on a GPU.
ENGINE_FORM: Form = "direct"
# From this batch size on the quadratic form is the faster one on a CPU (benchmarks/forms.py).
_QUADRATIC_FROM_BATCH = 16
# The quadratic form's rounding error in a bump is near 2·ratio·2⁻²⁴, with ratio = (distance from
# the centre / half-width of the bump)². Up to this ratio most networks stay below 5e-6 in float32; `export`
# turns to the direct form for one that does not.
_QUADRATIC_UP_TO_RATIO = 17.0


@dataclasses.dataclass(frozen=True)
class Node:
    """One operator: its inputs and output by name, and its attributes (integers)."""

    op: Literal["Relu", "Mul", "Add", "Conv"]
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
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Float64Array]
    input_shape: tuple[int | str, ...]
    output_shape: tuple[int | str, ...]
    precision: Precision


def choose_form(spec: KanSpec, *, layout: Layout, precision: Precision, batch: int) -> Form:
    """The form that is faster in ONNX Runtime on a CPU, where it is accurate enough.

    Args:
        spec: the network.
        layout, precision: of the graph.
        batch: the batch size to be fastest at.
    """
    if layout != "batch-last" or precision != "fp32" or batch < _QUADRATIC_FROM_BATCH:
        return "direct"
    narrow = max(_worst_ratio(layer) for layer in _compact(spec)) > _QUADRATIC_UP_TO_RATIO
    return "direct" if narrow else "quadratic"


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


def lower(spec: KanSpec, *, layout: Layout, form: Form, precision: Precision) -> Graph:
    """Writes the network as a graph of Relu, Mul, Add and Conv; see the module's docstring."""
    emit = _Emitter(layout, precision)
    layers = _compact(spec)
    shift, scale = _input_coordinates(layers[0], form)
    return _write(spec, layers, form, emit, shift, scale)


def constants_like(
    spec: KanSpec, shapes: Mapping[str, tuple[int, ...]], *, layout: Layout, form: Form, precision: Precision
) -> dict[str, Float64Array]:
    """The constants that make a graph which was lowered from another network compute this one.

    Args:
        spec: the network.
        shapes: the names and shapes of that graph's constants.
        layout, form, precision: of that graph.

    Raises:
        InputError: the graph has no place for this network's constants.
    """
    for drop_dead in (True, False):  # whether a bump is dead may have changed with the weights
        layers = _compact(spec, drop_dead=drop_dead)
        emit = _Emitter(layout, precision)
        shift, scale = _input_coordinates(layers[0], form)
        if "input/shift" not in shapes:
            shift = np.zeros_like(shift)
        if "input/scale" not in shapes:
            scale = np.ones_like(scale)
        made = {
            "input/shift": emit.as_elementwise(np.zeros((1, 1))),
            "input/scale": emit.as_elementwise(np.ones((1, 1))),
            **_write(spec, layers, form, emit, shift, scale).constants,
        }
        try:
            return {name: _spread(name, made[name], shape) for name, shape in shapes.items()}
        except (KeyError, ValueError):
            continue
    raise InputError(
        "the graph has no place for this network's constants: it was exported from one with other inputs, hidden "
        "features or bumps. Export the network anew with relukan-export"
    )


def _spread(name: str, array: Float64Array, shape: tuple[int, ...]) -> Float64Array:
    """A constant in the shape it has in another graph. Raises ValueError where that changes what it means."""
    if name.endswith(("weight", "bias")) and array.shape != shape:  # each number of a sum stands there once
        raise ValueError(f"{name} is {array.shape}, not {shape}")
    return np.broadcast_to(array, shape)


def _write(
    spec: KanSpec, layers: list[LayerSpec], form: Form, emit: _Emitter, shift: Float64Array, scale: Float64Array
) -> Graph:
    """The graph of layers whose input gets the coordinates scale · (x − shift), ``(in,)`` each."""
    shift = emit.as_stored(shift)  # what rounding it leaves goes into s and e
    value = emit.normalised_input("x", shift, scale)
    for index, layer in enumerate(layers):
        layer = _rescaled(layer, shift, scale)
        if index + 1 < len(layers):
            shift, scale = _coordinates(layers[index + 1])
        else:
            shift, scale = np.zeros(layer.out_features), np.ones(layer.out_features)
        bumps = emit.direct if form == "direct" else emit.quadratic
        value = bumps(f"layer{index}", value, layer, shift, scale)
    last = dataclasses.replace(emit.nodes[-1], output="y")
    return Graph(
        nodes=(*emit.nodes[:-1], last),
        constants=emit.constants,
        input_shape=emit.shape(spec.in_features),
        output_shape=emit.shape(spec.out_features),
        precision=emit.precision,
    )


# --- 1. dropping what cannot contribute


def _compact(spec: KanSpec, *, drop_dead: bool = True) -> list[LayerSpec]:
    """The layers without dead bumps and dead hidden features; padded bumps are [0, 0], weight 0.

    With drop_dead=False they keep their places, as [0, 0], weight 0.
    """
    compacted: list[LayerSpec] = []
    kept_outputs = np.arange(spec.out_features)
    for index in reversed(range(len(spec.layers))):
        layer = spec.layers[index]
        layer = dataclasses.replace(layer, coefficients=layer.coefficients[kept_outputs], bias=layer.bias[kept_outputs])
        live = layer.live
        kept_inputs = np.flatnonzero(live.any(axis=1)) if index and drop_dead else np.arange(layer.in_features)
        if not kept_inputs.size:
            kept_inputs = np.arange(1)  # a constant layer still needs an input to take the batch size from
        most = max(1, int(live.sum(axis=1).max())) if drop_dead else live.shape[1]
        order = np.argsort(~live, axis=1, kind="stable")[kept_inputs, :most]
        rows = kept_inputs[:, np.newaxis]
        used = live[rows, order]
        compacted.append(
            LayerSpec(
                starts=np.where(used, layer.starts[rows, order], 0.0),
                ends=np.where(used, layer.ends[rows, order], 0.0),
                coefficients=np.where(used, layer.coefficients[:, rows, order], 0.0),
                bias=layer.bias,
            )
        )
        kept_outputs = kept_inputs
    return compacted[::-1]


# --- 2. coordinates


def _extent(layer: LayerSpec) -> tuple[Float64Array, Float64Array]:
    """For each input ``(in,)``: the middle one of its live bumps' centres, and the widest half-width.

    The middle one, and not the middle of the domain, which one bump far off would move. An input
    with no live bump has centre 0 and half-width 1.
    """
    live = layer.live
    none = ~live.any(axis=1)
    centres = np.sort(np.where(live, (layer.starts + layer.ends) / 2, np.inf), axis=1)
    middle = np.take_along_axis(centres, np.maximum(live.sum(axis=1, keepdims=True) - 1, 0) // 2, axis=1)[:, 0]
    widest: Float64Array = np.where(live, (layer.ends - layer.starts) / 2, -np.inf).max(axis=1)
    return np.where(none, 0.0, middle), np.where(none, 1.0, widest)


def _coordinates(layer: LayerSpec) -> tuple[Float64Array, Float64Array]:
    """shift and scale, ``(in,)`` each, that bring bumps to half-widths near 1 around 0."""
    centre, widest = _extent(layer)
    return centre, np.exp2(-np.round(np.log2(widest)))


def _input_coordinates(layer: LayerSpec, form: Form) -> tuple[Float64Array, Float64Array]:
    """As `_coordinates`, but zero shift and unit scale where they would gain nothing."""
    shift, scale = _coordinates(layer)
    widest = _extent(layer)[1]
    if form == "direct" and (np.abs(shift) <= 4 * widest).all():
        shift = np.zeros_like(shift)
    if ((scale >= 0.25) & (scale <= 4)).all():
        scale = np.ones_like(scale)
    return shift, scale


def _rescaled(layer: LayerSpec, shift: Float64Array, scale: Float64Array) -> LayerSpec:
    """The layer as a function of z = scale · (x − shift)."""
    live = layer.live
    column = scale[:, np.newaxis]
    return dataclasses.replace(
        layer,
        starts=np.where(live, (layer.starts - shift[:, np.newaxis]) * column, 0.0),
        ends=np.where(live, (layer.ends - shift[:, np.newaxis]) * column, 0.0),
    )


def _worst_ratio(layer: LayerSpec) -> float:
    """The largest (distance from the centre / half-width)², low bumps counted by their height."""
    live = layer.live
    centre = _extent(layer)[0][:, np.newaxis]
    ends = np.maximum(np.abs(layer.starts - centre), np.abs(layer.ends - centre))
    reach = np.where(live, ends, 0.0).max(axis=1, keepdims=True)
    half = np.where(live, (layer.ends - layer.starts) / 2, 1.0)
    height = np.abs(layer.coefficients).max(axis=0)
    return float(((reach / half) ** 2 * height / (height.max() or 1.0)).max())


# --- 3. nodes


class _Emitter:
    """Collects nodes and constants, and knows where a layout puts features, bumps and the batch."""

    def __init__(self, layout: Layout, precision: Precision) -> None:
        self.layout = layout
        self.precision = precision
        self.dtype = storage_dtype(precision)
        self.nodes: list[Node] = []
        self.constants: dict[str, Float64Array] = {}

    def shape(self, features: int) -> tuple[int | str, ...]:
        return (1, features, 1, "batch") if self.layout == "batch-last" else ("batch", features, 1)

    def as_stored(self, array: Float64Array) -> Float64Array:
        """As the precision rounds it; what overflows is left as it is, for the error that names it."""
        with np.errstate(over="ignore"):
            rounded = array.astype(self.dtype).astype(np.float64)
        return np.where(np.isfinite(rounded), rounded, array)

    def normalised_input(self, value: str, shift: Float64Array, scale: Float64Array) -> str:
        if shift.any():
            value = self._node("Add", "input/shifted", value, self._elementwise("input/shift", -shift[:, np.newaxis]))
        if (scale != 1).any():
            value = self._node("Mul", "input/scaled", value, self._elementwise("input/scale", scale[:, np.newaxis]))
        return value

    def direct(self, name: str, z: str, layer: LayerSpec, shift: Float64Array, scale: Float64Array) -> str:
        minus_one = self._elementwise("minus_one", np.array([[-1.0]]))
        negated = self._node("Mul", f"{name}/negated", z, minus_one)
        falling = self._add(f"{name}/falling", negated, f"{name}/ends", layer.ends)
        rising = self._add(f"{name}/rising", z, f"{name}/starts", -layer.starts)
        product = self._node("Mul", f"{name}/product", falling, rising)
        clipped = self._node("Relu", f"{name}/clipped", product)
        bumps = self._node("Mul", f"{name}/bumps", clipped, clipped)  # (in, K)
        peak = np.where(layer.live, (layer.ends - layer.starts) / 2, 1.0) ** 4  # of what `bumps` holds
        return self._conv(name, bumps, layer.coefficients / peak, layer.bias, shift, scale)

    def quadratic(self, name: str, z: str, layer: LayerSpec, shift: Float64Array, scale: Float64Array) -> str:
        total, product = layer.starts + layer.ends, layer.starts * layer.ends
        w = 1.001 * float(np.abs(total).max()) or 1.0
        roots = self._elementwise(f"{name}/roots", np.array([[-w, w]]))
        factor = self._node("Add", f"{name}/factor", z, roots)
        features = self._node("Mul", f"{name}/features", z, factor)  # (in, 2): z(z − w), z(z + w)

        half = np.where(layer.live, (layer.ends - layer.starts) / 2, 1.0)
        weight = np.stack([-(1 + total / w) / 2, -(1 - total / w) / 2], axis=-1)  # (in, K, 2)
        weight, bias = weight / half[..., np.newaxis] ** 2, -product / half**2  # every bump peaks at 1
        parabola = self._node(
            "Conv",
            f"{name}/parabola",
            features,
            self._constant(f"{name}/parabola_weight", self._kernel(weight.reshape(-1, 1, 2))),
            self._constant(f"{name}/parabola_bias", bias.reshape(-1)),
            group=layer.in_features,
        )
        clipped = self._node("Relu", f"{name}/clipped", parabola)
        bumps = self._node("Mul", f"{name}/bumps", clipped, clipped)  # (in·K, 1)
        flat = layer.coefficients.reshape(layer.out_features, -1, 1)
        return self._conv(name, bumps, flat, layer.bias, shift, scale)

    def _conv(
        self, name: str, bumps: str, weight: Float64Array, bias: Float64Array, shift: Float64Array, scale: Float64Array
    ) -> str:
        """The layer's sum, as scale · (y − shift): the next layer's coordinates."""
        return self._node(
            "Conv",
            f"{name}/output",
            bumps,
            self._constant(f"{name}/weight", self._kernel(weight * scale[:, np.newaxis, np.newaxis])),
            self._constant(f"{name}/bias", (bias - shift) * scale),
        )

    def _node(self, op: Literal["Relu", "Mul", "Add", "Conv"], output: str, *inputs: str, group: int = 1) -> str:
        attributes: dict[str, int | list[int]] = {}
        if op == "Conv":
            kernel = list(self.constants[inputs[1]].shape[2:])
            attributes = {"kernel_shape": kernel, "group": group}
        self.nodes.append(Node(op, inputs, output, attributes))
        return output

    def _add(self, output: str, value: str, name: str, knots: Float64Array) -> str:
        """value + knots ``(in, K)``; in half precision also + what rounding the knots left."""
        value = self._node("Add", output, value, self._elementwise(name, knots))
        if self.dtype.itemsize < 4:
            rest = knots - self.as_stored(knots)
            value = self._node("Add", f"{output}_exact", value, self._elementwise(f"{name}_rest", rest))
        return value

    def _elementwise(self, name: str, array: Float64Array) -> str:
        """A constant ``(in, K)``, stored once where all inputs share it."""
        if (array == array[:1]).all():
            array = array[:1]
        return self._constant(name, self.as_elementwise(array))

    def as_elementwise(self, array: Float64Array) -> Float64Array:
        """``(in, K)`` with the axes of the layout."""
        return array[np.newaxis, :, :, np.newaxis] if self._batch_last else array[np.newaxis]

    def _kernel(self, weight: Float64Array) -> Float64Array:
        """A Conv weight ``(out, in, K)`` with the axes of the layout."""
        return weight[..., np.newaxis] if self._batch_last else weight

    def _constant(self, name: str, array: Float64Array) -> str:
        self.constants[name] = array
        return name

    @property
    def _batch_last(self) -> bool:
        return self.layout == "batch-last"
