"""Does an artifact compute the function? Compare what it answers with the float64 reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ParityError
from .spec import KanSpec, Precision, Task

__all__ = ["STANDARD_BATCHES", "TOLERANCES", "Domain", "ParityReport", "Run", "compare", "golden_inputs"]

TOLERANCES: dict[Precision, float] = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 5e-3, "bf16": 4e-2}
"""The largest error allowed, relative to max(1, max|y|), for each precision."""

# Beyond the domain: the largest numbers, and the rounding of each, that a row may ask of a precision.
_LARGEST: dict[Precision, float] = {"fp32": 1e36, "tf32": 1e36, "fp16": 1e4, "bf16": 1e36}
_ROUNDING: dict[Precision, float] = {"fp32": 2**-24, "tf32": 2**-11, "fp16": 2**-11, "bf16": 2**-8}
_MOVES, _ROUNDINGS = 8, 2  # how often a row is tried, and how many times the rounding that may come to

_RANDOM_ROWS = 192
# Of up to so many candidates, fewer where one layer's (rows, in, K) basis would be large, the hardest are kept.
_HARDEST_ROWS, _MOST_CANDIDATES, _CANDIDATE_ELEMENTS, _CROSSINGS = 128, 4096, 1 << 22, 3
STANDARD_BATCHES = (1, 2, 7)
# Distances from the middle of the domain, in half-widths of it: just outside, then far away.
_OUTSIDE = (1.05, 1.5, 3.0, 10.0, 1e3, 1e6, 1e12, 1e30)

Float64Array = NDArray[np.float64]
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Domain = Sequence[tuple[float, float] | None]


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """How far an artifact is from the float64 reference.

    SiLU and polynomial branches grow beyond the domain. A row outside whose answers exceed all those
    inside would hide the differences of the others, so its own are taken in proportion: as if they
    belonged to an answer of the size of the largest inside.

    Attributes:
        rows: distinct inputs compared.
        batches: the batch sizes they were run in.
        error: max|y − reference| relative to max(1, max|reference|); what `tolerance` bounds.
        max_absolute: max|y − reference|.
        max_relative: max|y − reference| relative to the range of the reference.
        rmse: root of the mean squared difference.
        agreement: fraction of rows with the same class, for a classification.
        worst_input: the row with the largest difference, ``(in,)``.
        nonfinite: for NaN and both infinities in one input, what that row answers ("finite",
            "nan" or "infinite"), and whether other rows of the batch noticed.
        tolerance: the bound on `error`.
    """

    rows: int
    batches: tuple[int, ...]
    error: float
    max_absolute: float
    max_relative: float
    rmse: float
    agreement: float | None
    worst_input: tuple[float, ...]
    nonfinite: dict[str, str]
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance

    def require(self, name: str) -> None:
        """Raises `ParityError` if the artifact `name` is out of tolerance."""
        if not self.passed:
            worst = ", ".join(f"{value:.6g}" for value in self.worst_input[:8])
            more = ", …" if len(self.worst_input) > 8 else ""
            raise ParityError(
                f"{name} differs from the float64 reference by {self.error:.3g} (relative to max(1, max|y|)), "
                f"more than the tolerance {self.tolerance:.3g}; the worst input is [{worst}{more}]"
            )

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def golden_inputs(spec: KanSpec, *, precision: Precision = "fp32", seed: int = 0) -> NDArray[np.float32]:
    """Rows that show where an implementation goes wrong, ``(rows, in)``.

    - Random rows in the domain.
    - For each j, a row with the j-th knot (of bumps every s, every e) of all inputs, and one with its
      float32 neighbour on either side; and rows at the quarters of the j-th bump or piece.
    - The rows, of thousands tried, at which float32 is furthest from float64: where the function
      is steep, and where deeper layers are.
    - Rows with every input just outside the domain and far from it, on both sides; zeros and ones.
      Those at which a growing branch leaves nothing that `precision` could answer are left out.
    """
    domain = spec.domain
    domain = np.where(np.isfinite(domain).all(axis=1, keepdims=True), domain, [[0.0, 1.0]])
    low, high = domain[:, 0], domain[:, 1]
    middle, half = (low + high) / 2, (high - low) / 2
    generator = np.random.default_rng(seed)
    inside = generator.uniform(low, high, (_RANDOM_ROWS, spec.in_features))

    first = spec.layers[0]
    knots = first.breaks.T.astype(np.float32)  # (T, in)
    up, down = np.nextafter(knots, np.float32(np.inf)), np.nextafter(knots, np.float32(-np.inf))
    starts, ends = np.moveaxis(first.pieces, 2, 0)  # (in, K) each
    quarters = np.concatenate([(starts + part * (ends - starts)).T for part in (0.25, 0.5, 0.75)])  # (3K, in)

    steps = np.array(_OUTSIDE)[:, np.newaxis]
    mixed = middle + np.where(generator.random((len(_OUTSIDE), spec.in_features)) < 0.5, -1, 1) * steps * half
    rows = [inside, knots, up, down, quarters, _hardest(spec, low, high, quarters, generator)]
    rows += [middle + steps * half, middle - steps * half, mixed]
    rows += [np.zeros((1, spec.in_features)), np.ones((1, spec.in_features))]
    largest = float(np.finfo(np.float32).max)
    found = np.concatenate([np.clip(block, -largest, largest).astype(np.float32) for block in rows])
    return found[_answerable(spec, found, precision, generator)]


def _hardest(
    spec: KanSpec, low: Float64Array, high: Float64Array, quarters: Float64Array, generator: np.random.Generator
) -> NDArray[np.float32]:
    """The rows at which a plain float32 evaluation is furthest from the reference, ``(rows, in)``.

    Half of the rows tried first are random in the domain, half take each input from a random bump.
    Then the hardest are crossed with the others, a few times.
    """
    largest = max(layer.basis for layer in spec.layers)
    count = max(2 * _HARDEST_ROWS, min(_MOST_CANDIDATES, _CANDIDATE_ELEMENTS // largest))
    anywhere = generator.uniform(low, high, (count // 2, spec.in_features))
    bump = generator.integers(0, len(quarters), (count // 2, spec.in_features))
    tried = np.concatenate([anywhere, np.take_along_axis(quarters, bump, axis=0)]).astype(np.float32)
    hardest, pool = tried, tried
    for _ in range(_CROSSINGS):
        hardest = _furthest_in_float32(spec, hardest)
        parents = hardest[generator.integers(0, len(hardest), count // 4)]
        others = pool[generator.integers(0, len(pool), count // 4)]
        children = np.where(generator.random(parents.shape) < 0.25, others, parents)
        hardest = np.concatenate([hardest, children])
    return _furthest_in_float32(spec, hardest)


def _furthest_in_float32(spec: KanSpec, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    value = rows
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for layer in spec.layers:
            value = layer.evaluate(value)
        distance = np.abs(value - spec.evaluate(rows)).max(axis=1)
    order = np.argsort(np.where(np.isnan(distance), np.inf, distance))
    return rows[order[-_HARDEST_ROWS:]]


def _answerable(
    spec: KanSpec, rows: NDArray[np.float32], precision: Precision, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """``(rows,)``: whether a row is in the domain, or can be answered within the tolerance of the precision.

    Beyond the domain numbers grow until they overflow, or until two that cancel leave nothing but their
    rounding. How much that is shows where every input of every layer is moved by as much, up or down.
    """
    inside = _inside(rows, spec.intervals)
    if not any(layer.growth.any() for layer in spec.layers):
        return np.ones_like(inside)
    exact = rows[~inside].astype(np.float64)
    moved, fits = np.tile(exact, (_MOVES, 1)), np.ones(len(exact), np.bool_)
    with np.errstate(over="ignore", invalid="ignore"):
        for layer in spec.layers:
            fits &= (np.abs(exact) ** layer.growth <= _LARGEST[precision]).all(axis=1)
            rounding = _ROUNDING[precision] * generator.choice((-1, 1), moved.shape)
            exact, moved = layer.evaluate(exact), layer.evaluate(moved * (1 + rounding))
        fits &= (np.abs(exact) <= _LARGEST[precision]).all(axis=1)
        lost = _ROUNDINGS * np.abs(moved.reshape(_MOVES, *exact.shape) - exact).max(axis=(0, 2))
    shared = np.abs(spec.evaluate(rows[inside])).max(initial=1.0)
    answerable: NDArray[np.bool_] = inside.copy()
    answerable[~inside] = fits & (lost <= TOLERANCES[precision] * np.abs(exact).max(axis=1, initial=shared))
    return answerable


def _inside(x: NDArray[Any], domain: Domain) -> NDArray[np.bool_]:
    """``(rows,)``: which rows have every input in its interval. An input that has none does not matter."""
    limits = np.array([interval or (-np.inf, np.inf) for interval in domain])
    outside = (x < limits[:, 0]) | (x > limits[:, 1])  # (rows, in)
    return np.logical_not(outside.any(axis=1))


def _scales(reference: Float64Array, inside: NDArray[np.bool_]) -> Float64Array:
    """``(rows,)``: what the differences of each row are relative to.

    Rows in the domain share the largest answer of them all, or 1; another row has its own where that is larger.
    """
    own = np.abs(np.where(np.isfinite(reference), reference, 0)).max(axis=1)
    shared = own[inside].max(initial=1.0)
    scales: Float64Array = np.where(inside, shared, np.maximum(shared, own))
    return scales


def compare(
    run: Run,
    x: NDArray[np.float32],
    reference: NDArray[np.float64],
    *,
    domain: Domain,
    tolerance: float,
    task: Task,
    batches: Iterable[int],
) -> ParityReport:
    """Runs x in several batch sizes and reports the largest differences over all of them.

    Args:
        run: what is under test: x ``(batch, in)`` to y ``(batch, out)``.
        x: ``(rows, in)``.
        reference: ``(rows, out)``, from `KanSpec.evaluate`.
        domain: `KanSpec.intervals`. What is inside sets the scale of the error; see `ParityReport`.
        tolerance: bound on the error.
        task: "classification" adds the class agreement.
        batches: the batch sizes to run; `STANDARD_BATCHES` and the engine's limits, say.
    """
    sizes = tuple(sorted(set(batches)))
    difference = np.zeros_like(reference)
    agree = True
    for size in sizes:
        answers = _in_batches(run, x, size)
        with np.errstate(invalid="ignore"):
            wrong = np.abs(answers - reference)
        difference = np.maximum(difference, np.where(np.isfinite(wrong), wrong, np.inf))
        if task == "classification":
            agree = agree & (answers.argmax(axis=1) == reference.argmax(axis=1))
    scales = _scales(reference, _inside(x, domain))
    shared = float(scales.min())
    difference *= (shared / scales)[:, np.newaxis]
    worst = int(difference.max(axis=1).argmax())
    largest = float(difference.max())
    return ParityReport(
        rows=len(x),
        batches=sizes,
        error=largest / shared,
        max_absolute=largest,
        max_relative=largest / (float(np.ptp(np.clip(reference, -shared, shared))) or 1.0),
        rmse=float(np.sqrt(np.mean(difference**2))),
        agreement=float(np.mean(agree)) if task == "classification" else None,
        worst_input=tuple(float(value) for value in x[worst]),
        nonfinite=_nonfinite(run, x.take(range(3), axis=0, mode="wrap")),
        tolerance=tolerance,
    )


def _in_batches(run: Run, x: NDArray[np.float32], size: int) -> NDArray[np.float64]:
    """Answers for every row of x, asked for `size` rows at a time; the last batch is filled up."""
    collected = []
    for begin in range(0, len(x), size):
        rows = x.take(range(begin, begin + size), axis=0, mode="wrap")
        collected.append(run(rows)[: len(x) - begin])
    return np.concatenate(collected).astype(np.float64)


def _nonfinite(run: Run, rows: NDArray[np.float32]) -> dict[str, str]:
    """What one bad value in the middle of three rows does to its row, and to its neighbours."""
    expected = run(rows)
    found = {}
    for name, value in (("nan", np.nan), ("+inf", np.inf), ("-inf", -np.inf)):
        bad = rows.copy()
        bad[1, 0] = value
        answers = run(bad)
        own = answers[1]
        answer = "nan" if np.isnan(own).any() else "infinite" if np.isinf(own).any() else "finite"
        spread = not np.array_equal(answers[[0, 2]], expected[[0, 2]])
        found[name] = answer + (", and other rows of the batch change" if spread else "")
    return found
