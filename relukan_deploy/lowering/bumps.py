"""A network of bumps, ReLU-KAN's, as a graph of Relu, Mul, Add and Conv.

What is done, in this order:

1. Bumps that cannot contribute (s ≥ e, or every coefficient zero) are dropped, then hidden
   features none of whose bumps are left. Inputs keep as many bumps as the fullest one.
2. Each layer gets coordinates z = scale · (x − shift) in which its bumps have half-widths near 1
   and lie around 0, so that float16 neither overflows nor loses the small ones. Scales are powers
   of two, so they cost no precision. Between layers this is free: the Conv before produces z. At
   the network's input it costs an Add and a Mul, left out where the input is near such a scale.
3. Each layer is written in one of two forms. With p = (e − z)(z − s), a bump is ReLU(p)^m times a
   constant that goes into the Conv (for m > 2 it is taken into account before the power, which would
   under- or overflow), since s < e makes ReLU(e − z)·ReLU(z − s) = ReLU(p).

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

import numpy as np

from ..spec import Form, KanSpec, LayerSpec, Layout, Precision
from .graph import Emitter, Float64Array, Graph

__all__ = ["bump_constants", "is_narrow", "lower_bumps"]

# The quadratic form's rounding error in a bump is near 2·ratio·2⁻²⁴, with ratio = (distance from
# the centre / half-width of the bump)². Up to this ratio most networks stay below 5e-6 in float32; `export`
# turns to the direct form for one that does not.
_QUADRATIC_UP_TO_RATIO = 17.0


def is_narrow(spec: KanSpec) -> bool:
    """Whether some bump is too narrow, for its distance from the others, for the quadratic form in float32."""
    return max(_worst_ratio(layer) for layer in _compact(spec)) > _QUADRATIC_UP_TO_RATIO


def lower_bumps(spec: KanSpec, *, layout: Layout, form: Form, precision: Precision) -> Graph:
    """Writes the network as a graph of Relu, Mul, Add and Conv; see the module's docstring."""
    emit = Emitter(layout, precision)
    layers = _compact(spec)
    shift, scale = _input_coordinates(layers[0], form)
    _write(layers, form, emit, shift, scale)
    return emit.graph(spec.in_features, spec.out_features)


def bump_constants(
    spec: KanSpec,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    drop_dead: bool,
    layout: Layout,
    form: Form,
    precision: Precision,
) -> dict[str, Float64Array]:
    """The network's constants, for a graph that holds constants of these shapes; see `constants_like`."""
    layers = _compact(spec, drop_dead=drop_dead)
    emit = Emitter(layout, precision)
    shift, scale = _input_coordinates(layers[0], form)
    if "input/shift" not in shapes:
        shift = np.zeros_like(shift)
    if "input/scale" not in shapes:
        scale = np.ones_like(scale)
    _write(layers, form, emit, shift, scale)
    return {
        "input/shift": emit.as_elementwise(np.zeros((1, 1))),
        "input/scale": emit.as_elementwise(np.ones((1, 1))),
        **emit.constants,
    }


def _write(layers: list[LayerSpec], form: Form, emit: Emitter, shift: Float64Array, scale: Float64Array) -> None:
    """The nodes of layers whose input gets the coordinates scale · (x − shift), ``(in,)`` each."""
    shift = emit.as_stored(shift)  # what rounding it leaves goes into s and e
    value = _normalised_input(emit, shift, scale)
    for index, layer in enumerate(layers):
        layer = _rescaled(layer, shift, scale)
        if index + 1 < len(layers):
            shift, scale = _coordinates(layers[index + 1])
        else:
            shift, scale = np.zeros(layer.out_features), np.ones(layer.out_features)
        bumps = _direct if form == "direct" else _quadratic
        value = bumps(emit, f"layer{index}", value, layer, shift, scale)


# --- 1. dropping what cannot contribute


def _compact(spec: KanSpec, *, drop_dead: bool = True) -> list[LayerSpec]:
    """The layers without dead bumps and dead hidden features; padded bumps are [0, 0], weight 0.

    With drop_dead=False they keep their places, as [0, 0], weight 0.
    """
    compacted: list[LayerSpec] = []
    kept_outputs = np.arange(spec.out_features)
    layers = [layer for layer in spec.layers if isinstance(layer, LayerSpec)]
    for index in reversed(range(len(layers))):
        layer = layers[index]
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
            dataclasses.replace(
                layer,
                starts=np.where(used, layer.starts[rows, order], 0.0),
                ends=np.where(used, layer.ends[rows, order], 0.0),
                coefficients=np.where(used, layer.coefficients[:, rows, order], 0.0),
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


def _normalised_input(emit: Emitter, shift: Float64Array, scale: Float64Array) -> str:
    value = "x"
    if shift.any():
        value = emit.node("Add", "input/shifted", value, emit.elementwise("input/shift", -shift[:, np.newaxis]))
    if (scale != 1).any():
        value = emit.node("Mul", "input/scaled", value, emit.elementwise("input/scale", scale[:, np.newaxis]))
    return value


def _direct(emit: Emitter, name: str, z: str, layer: LayerSpec, shift: Float64Array, scale: Float64Array) -> str:
    negated = emit.negated(f"{name}/negated", z)
    falling = emit.add(f"{name}/falling", negated, f"{name}/ends", layer.ends)
    rising = emit.add(f"{name}/rising", z, f"{name}/starts", -layer.starts)
    product = emit.node("Mul", f"{name}/product", falling, rising)
    value = emit.node("Relu", f"{name}/clipped", product)
    peak = np.where(layer.live, (layer.ends - layer.starts) / 2, 1.0) ** 2  # of `clipped`
    if layer.power > 2:
        value, peak = emit.node("Mul", f"{name}/unit", value, emit.elementwise(f"{name}/peaks", 1 / peak)), peak**0
    bumps = emit.powers(f"{name}/bumps", value)(layer.power)  # (in, K)
    return _sum(emit, name, bumps, layer.coefficients / peak**layer.power, layer.bias, shift, scale)


def _quadratic(emit: Emitter, name: str, z: str, layer: LayerSpec, shift: Float64Array, scale: Float64Array) -> str:
    total, product = layer.starts + layer.ends, layer.starts * layer.ends
    w = 1.001 * float(np.abs(total).max()) or 1.0
    roots = emit.elementwise(f"{name}/roots", np.array([[-w, w]]))
    factor = emit.node("Add", f"{name}/factor", z, roots)
    features = emit.node("Mul", f"{name}/features", z, factor)  # (in, 2): z(z − w), z(z + w)

    half = np.where(layer.live, (layer.ends - layer.starts) / 2, 1.0)
    weight = np.stack([-(1 + total / w) / 2, -(1 - total / w) / 2], axis=-1)  # (in, K, 2)
    weight, bias = weight / half[..., np.newaxis] ** 2, -product / half**2  # every bump peaks at 1
    parabola = emit.conv(
        f"{name}/parabola",
        features,
        f"{name}/parabola_",
        weight.reshape(-1, 1, 2),
        bias.reshape(-1),
        group=layer.in_features,
    )
    clipped = emit.node("Relu", f"{name}/clipped", parabola)
    bumps = emit.powers(f"{name}/bumps", clipped)(layer.power)  # (in·K, 1)
    flat = layer.coefficients.reshape(layer.out_features, -1, 1)
    return _sum(emit, name, bumps, flat, layer.bias, shift, scale)


def _sum(
    emit: Emitter,
    name: str,
    bumps: str,
    weight: Float64Array,
    bias: Float64Array,
    shift: Float64Array,
    scale: Float64Array,
) -> str:
    """The layer's sum, as scale · (y − shift): the next layer's coordinates."""
    weight, bias = weight * scale[:, np.newaxis, np.newaxis], (bias - shift) * scale
    return emit.conv(f"{name}/output", bumps, f"{name}/", weight, bias)
