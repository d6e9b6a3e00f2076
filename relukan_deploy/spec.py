"""KanSpec: the one description of a network that every later step reads.

A checkpoint becomes a `KanSpec`; exporters lower it, and `KanSpec.evaluate` is the float64
reference that every artifact is compared with. Frozen, and numpy only.

Its layers are `LayerSpec`, ReLU-KAN's, or `SplineSpec`, those of B-spline KANs (splines.py). A
`LayerSpec` maps x ``(batch, in)`` to y ``(batch, out)`` by

    y_o = b_o + Σ_i Σ_j C_oij B_ij(x_i)
    B_ij(x) = [ 4 · ReLU(e_ij − x) · ReLU(x − s_ij) / (e_ij − s_ij)² ]^m

With m = 2, B is ReLU-KAN's bump (Qiu et al. 2024, arXiv:2406.02075, eq. 9) in the normalisation 16/(e−s)⁴,
whose peak is 1; other m are HRKAN's (So and Yung 2024, arXiv:2409.14248, section 3). Any other normalisation
is a factor on the coefficients, so C is in every case the height of the bump, whatever the scale of the input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .splines import SplineSpec

__all__ = ["MOST_POWER", "Form", "KanSpec", "LayerSpec", "Layout", "Precision", "SplineSpec", "Task"]

Task = Literal["regression", "classification"]
# What an artifact is written in; the docstring of lowering explains them.
Layout = Literal["batch-last", "batch-major"]
Form = Literal[
    "direct", "quadratic",
    "direct-6", "direct-4", "direct-3", "direct-2", "direct-1",
    "grouped-6", "grouped-4", "grouped-3", "grouped-2", "grouped-1",
]  # fmt: skip
Precision = Literal["fp32", "tf32", "fp16", "bf16"]
Float64Array = NDArray[np.float64]

MOST_POWER = 8  # of a bump

# Rows are evaluated in blocks, so that the (rows, in, K) basis stays near this many numbers.
_BLOCK_ELEMENTS = 1 << 22


@dataclasses.dataclass(frozen=True, eq=False)
class LayerSpec:
    """One ReLU-KAN layer: K bumps on each input, a coefficient for each output and bump.

    Args:
        starts: s, ``(in, K)``, in the units of the layer's input.
        ends: e, ``(in, K)``. A bump with s ≥ e (training can cross them) is identically zero.
        coefficients: C, ``(out, in, K)``: the bump's contribution at its peak.
        bias: b, ``(out,)``.
        power: m, 1 to 8.

    Arrays are stored as read-only float64 arrays.

    Raises:
        InputError: the shapes do not fit together, the power is out of range, or a number is not finite.
    """

    starts: Float64Array
    ends: Float64Array
    coefficients: Float64Array
    bias: Float64Array
    power: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.power <= MOST_POWER:
            raise InputError(f"power must be from 1 to {MOST_POWER}, got {self.power}")
        for name in ("starts", "ends", "coefficients", "bias"):
            array = np.array(getattr(self, name), dtype=np.float64)  # a copy of our own
            if not np.isfinite(array).all():
                raise InputError(f"{name} must be finite, got NaN or infinity in an array of {array.shape}")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        fits = (
            self.coefficients.ndim == 3
            and self.starts.shape == self.ends.shape == self.coefficients.shape[1:]
            and self.bias.shape == self.coefficients.shape[:1]
        )
        if not fits:
            raise InputError(
                "a layer needs starts (in, K), ends (in, K), coefficients (out, in, K) and bias (out,), got "
                f"{self.starts.shape}, {self.ends.shape}, {self.coefficients.shape} and {self.bias.shape}"
            )

    @property
    def in_features(self) -> int:
        return int(self.coefficients.shape[1])

    @property
    def out_features(self) -> int:
        return int(self.coefficients.shape[0])

    @property
    def live(self) -> NDArray[np.bool_]:
        """``(in, K)``: the bumps that can contribute: s < e, and some coefficient is not zero."""
        return (self.starts < self.ends) & self.coefficients.any(axis=0)

    @property
    def domain(self) -> Float64Array:
        """``(in, 2)``: the interval outside which every bump of an input is zero; empty, (inf, -inf), if all are."""
        low = np.where(self.live, self.starts, np.inf).min(axis=1, initial=np.inf)
        high = np.where(self.live, self.ends, -np.inf).max(axis=1, initial=-np.inf)
        return np.stack([low, high], axis=1)

    @property
    def breaks(self) -> Float64Array:
        """``(in, 2K)``: where the bumps of an input begin and end."""
        return np.concatenate([self.starts, self.ends], axis=1)

    @property
    def pieces(self) -> Float64Array:
        """``(in, K, 2)``: from where to where each bump goes."""
        return np.stack([self.starts, self.ends], axis=2)

    @property
    def growth(self) -> NDArray[np.int64]:
        """``(in,)``: like which power of an input the layer grows beyond its domain. Bumps end: 0."""
        return np.zeros(self.in_features, np.int64)

    @property
    def basis(self) -> int:
        """How many basis functions are evaluated for one row, over all inputs."""
        return self.starts.size

    def evaluate(self, x: NDArray[Any]) -> NDArray[Any]:
        """y ``(batch, out)`` for x ``(batch, in)``, in the arithmetic of x: float64 or float32."""
        starts, ends = self.starts.astype(x.dtype), self.ends.astype(x.dtype)
        width = ends - starts
        crossed = width <= 0
        scale = 4 / np.where(crossed, np.ones_like(width), width) ** 2  # (in, K)
        scale[crossed] = 0
        x = x[:, :, np.newaxis]  # (batch, in, 1)
        rising = np.maximum(x - starts, 0)  # (batch, in, K)
        falling = np.maximum(ends - x, 0)  # (batch, in, K)
        bumps = (scale * falling * rising) ** self.power  # (batch, in, K)
        flat = bumps.reshape(len(bumps), -1)  # (batch, in·K)
        weight = self.coefficients.reshape(self.out_features, -1).T.astype(x.dtype)  # (in·K, out)
        result: NDArray[Any] = flat @ weight + self.bias.astype(x.dtype)
        return result


@dataclasses.dataclass(frozen=True, eq=False)
class KanSpec:
    """A network and what its inputs and outputs mean.

    Args:
        layers: at least one, of one kind; each layer's inputs are the outputs of the one before.
        task: for "classification" the outputs are logits, one for each label.
        columns: names of the inputs in order, or None if they were never named.
        targets: names of the outputs (regression), or the one label column (classification).
        labels: class names in the order of the outputs; None for a regression.

    Raises:
        InputError: layers, columns or labels do not fit together.
    """

    layers: tuple[LayerSpec, ...] | tuple[SplineSpec, ...]
    task: Task = "regression"
    columns: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.layers:
            raise InputError("a network needs at least one layer, got none")
        if len({type(layer) for layer in self.layers}) > 1:
            raise InputError("the layers of a network must be of one kind, bumps or splines, got both")
        following = [layer.in_features for layer in self.layers[1:]]
        for index, (outputs, inputs) in enumerate(zip(self.widths[1:-1], following, strict=True)):
            if outputs != inputs:
                raise InputError(f"layer {index} has {outputs} outputs but layer {index + 1} expects {inputs} inputs")
        if self.task not in ("regression", "classification"):
            raise InputError(f"task must be 'regression' or 'classification', got {self.task!r}")
        for kind in ("columns", "targets", "labels"):
            object.__setattr__(self, kind, _as_names(kind, getattr(self, kind)))
        _check_names("columns", self.columns, self.in_features, "inputs")
        _check_names("labels", self.labels, self.out_features, "outputs")
        if self.task == "regression":
            _check_names("targets", self.targets, self.out_features, "outputs")
        elif self.targets is not None and len(self.targets) != 1:
            raise InputError(f"targets must be the one label column of a classification, got {list(self.targets)}")

    @property
    def in_features(self) -> int:
        return self.layers[0].in_features

    @property
    def out_features(self) -> int:
        return self.layers[-1].out_features

    @property
    def widths(self) -> tuple[int, ...]:
        """Features before, between and after the layers: ``(in, hidden…, out)``."""
        return (self.in_features, *(layer.out_features for layer in self.layers))

    @property
    def domain(self) -> Float64Array:
        """``(in, 2)``: for each input, the interval outside which it has left what was learnt.

        Beyond it every bump and every spline of that input is zero, silently; SiLU and polynomial
        branches go on. An input without any has the empty interval (inf, -inf). Functions of deeper layers
        hold on what reaches them from the first layer's grid, and then the domain goes no further than that.
        """
        first, *deeper = self.layers
        domain = first.domain
        if isinstance(first, SplineSpec) and any(isinstance(each, SplineSpec) and each.functions for each in deeper):
            low, high = (
                np.maximum(domain[:, 0], first.grid_range[:, 0]),
                np.minimum(domain[:, 1], first.grid_range[:, 1]),
            )
            return np.stack([low, high], axis=1)
        return domain

    @property
    def intervals(self) -> tuple[tuple[float, float] | None, ...]:
        """The domain as a manifest holds it: for each input (low, high), or None if it has none."""
        return tuple((low, high) if low < high else None for low, high in self.domain.tolist())

    def evaluate(self, x: ArrayLike) -> Float64Array:
        """The float64 reference: y ``(batch, out)`` for x ``(batch, in)``.

        Raises:
            InputError: x is not ``(batch, in)``.
        """
        rows = np.asarray(x, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.in_features:
            raise InputError(f"x must be (batch, {self.in_features}), got {rows.shape}")
        largest = max(layer.basis for layer in self.layers)
        step = max(1, _BLOCK_ELEMENTS // max(1, largest))
        blocks = []
        for begin in range(0, len(rows), step):
            block = rows[begin : begin + step]
            for layer in self.layers:
                block = layer.evaluate(block)
            blocks.append(block)
        return np.concatenate(blocks) if blocks else np.empty((0, self.out_features))


def _as_names(kind: str, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """As a tuple of plain strings; numpy's own strings, say, cannot be written to a file."""
    if names is None:
        return None
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{kind} must be a sequence of strings, got {names!r}")
    return tuple(str(name) for name in names)


def _check_names(kind: str, names: Sequence[str] | None, count: int, what: str) -> None:
    if names is None:
        return
    if len(names) != count:
        raise InputError(f"{kind} must name all {count} {what}, got {len(names)} names")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"{kind} must be different from each other, but {', '.join(map(repr, repeated))} repeat")
