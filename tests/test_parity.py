"""The comparison finds what is planted, and reports the numbers that a hand calculates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import bump_layers
from numpy.typing import NDArray

from relukan_deploy.errors import ParityError
from relukan_deploy.parity import STANDARD_BATCHES, TOLERANCES, ParityReport, compare, golden_inputs
from relukan_deploy.spec import KanSpec, LayerSpec

MakeSpec = Callable[..., KanSpec]
Rows = NDArray[np.float32]


def report(run: Callable[[Rows], Rows], x: Rows, reference: NDArray[np.float64], **options: Any) -> ParityReport:
    settings: dict[str, Any] = {"tolerance": 1e-3, "task": "regression", "batches": STANDARD_BATCHES, **options}
    settings.setdefault("domain", [None] * x.shape[1])
    return compare(run, x, reference, **settings)


def first_column(x: Rows) -> Rows:
    column: Rows = x[:, :1].copy()
    return column


def as_bits(values: NDArray[Any]) -> set[int]:
    return set(values.astype(np.float32).view(np.int32).ravel().tolist())


# --- the inputs


@pytest.mark.parametrize("side", [-np.inf, None, np.inf], ids=["below", "on", "above"])
def test_every_knot_of_every_input_is_compared(spec: KanSpec, side: float | None) -> None:
    rows = golden_inputs(spec)
    for index in range(spec.in_features):
        for knots in (bump_layers(spec)[0].starts[index], bump_layers(spec)[0].ends[index]):
            for knot in knots.astype(np.float32):
                wanted = knot if side is None else np.nextafter(knot, np.float32(side))
                assert wanted in rows[:, index], (index, knot)


def test_neighbours_are_neighbours_in_float32(spec: KanSpec) -> None:
    knots = as_bits(bump_layers(spec)[0].ends)
    found = as_bits(golden_inputs(spec))
    positive = {bits for bits in knots if bits > 0}
    assert {bits + 1 for bits in positive} | {bits - 1 for bits in positive} <= found


@pytest.mark.parametrize("sign", [-1, 1])
def test_each_input_is_taken_just_outside_and_far_outside_its_domain(spec: KanSpec, sign: int) -> None:
    rows = golden_inputs(spec).astype(np.float64)
    low, high = bump_layers(spec)[0].starts.min(axis=1), bump_layers(spec)[0].ends.max(axis=1)
    beyond = rows - high if sign > 0 else low - rows
    assert ((beyond > 0) & (beyond < 0.1 * (high - low))).any(axis=0).all()
    assert (beyond > 1e29).any(axis=0).all()


def test_some_rows_are_inside_the_domain(spec: KanSpec) -> None:
    low, high = spec.domain.T
    rows = golden_inputs(spec)
    assert ((rows > low) & (rows < high)).all(axis=1).sum() >= 100


def test_the_same_inputs_come_every_time(spec: KanSpec) -> None:
    np.testing.assert_array_equal(golden_inputs(spec), golden_inputs(spec))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e20, 3e38])
def test_inputs_are_finite_float32_whatever_the_domain(scale: float) -> None:
    bumps = LayerSpec(np.array([[0.0]]) * scale, np.array([[1.0]]) * scale, np.ones((1, 1, 1)), np.zeros(1))
    rows = golden_inputs(KanSpec((bumps,)))
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()


def test_a_network_that_ignores_its_input_has_inputs_too() -> None:
    crossed = LayerSpec(np.array([[1.0]]), np.array([[0.0]]), np.ones((1, 1, 1)), np.zeros(1))
    assert np.isfinite(golden_inputs(KanSpec((crossed,)))).all()


# --- the numbers


def test_the_figures_are_those_a_hand_calculates() -> None:
    x = np.array([[0, 9], [1, 8], [2, 7], [-4, 6]], np.float32)

    def run(rows: Rows) -> Rows:
        answers = first_column(rows)
        answers[rows[:, 0] == 2] += 0.5  # wrong in the third row
        return answers

    found = report(run, x, x[:, :1].astype(np.float64))
    assert found.max_absolute == 0.5
    assert found.error == 0.5 / 4  # the largest answer is −4
    assert found.max_relative == 0.5 / 6  # answers go from −4 to 2
    assert found.rmse == pytest.approx(0.25)  # √(0.5² / 4)
    assert found.worst_input == (2.0, 7.0)
    assert found.rows == 4
    assert found.agreement is None
    assert not found.passed


def test_small_answers_are_compared_absolutely() -> None:
    x = np.array([[0.01], [0.02], [0.03]], np.float32)
    found = report(lambda rows: rows + np.float32(0.25), x, x.astype(np.float64))
    assert found.error == pytest.approx(0.25, rel=1e-6)  # relative to 1, not to 0.03


def test_an_exact_runner_has_no_error(spec: KanSpec) -> None:
    x = golden_inputs(spec)
    y = spec.evaluate(x).astype(np.float32)
    table = {row.tobytes(): answer for row, answer in zip(x, y, strict=True)}
    found = report(lambda rows: np.array([table.get(row.tobytes(), y[0]) for row in rows]), x, y.astype(np.float64))
    assert (found.error, found.rmse, found.passed) == (0.0, 0.0, True)


@given(error=st.floats(1e-6, 10), bound=st.floats(1e-6, 10))
def test_it_passes_up_to_the_tolerance(error: float, bound: float) -> None:
    x = np.zeros((3, 1), np.float32)
    found = report(lambda rows: rows + np.float32(error), x, np.zeros((3, 1)), tolerance=bound)
    assert found.passed == (float(np.float32(error)) <= bound)


def test_default_tolerances() -> None:
    assert TOLERANCES == {"fp32": 1e-5, "tf32": 2e-3, "fp16": 5e-3, "bf16": 4e-2}


def test_class_agreement_counts_rows_whose_class_is_right_at_every_batch_size() -> None:
    x = np.array([[0, 1], [1, 0], [2, 0], [0, 2]], np.float32)

    def run(rows: Rows) -> Rows:
        answers: Rows = rows.copy()
        if len(rows) == 1:
            answers[rows[:, 0] == 2] = (0, 3)  # another class, in single rows only
        return answers

    found = report(run, x, x.astype(np.float64), task="classification")
    assert found.agreement == 0.75


def test_a_regression_has_no_class_agreement() -> None:
    x = np.zeros((3, 2), np.float32)
    assert report(lambda rows: rows, x, x.astype(np.float64)).agreement is None


# --- what is found


@pytest.mark.parametrize("size", STANDARD_BATCHES)
def test_an_error_at_one_batch_size_is_found(size: int) -> None:
    x = np.linspace(0, 1, 20, dtype=np.float32)[:, np.newaxis]
    found = report(lambda rows: rows + np.float32(len(rows) == size), x, x.astype(np.float64))
    assert found.error == pytest.approx(1.0)


def test_an_error_in_the_last_place_of_a_batch_is_found() -> None:
    x = np.linspace(0, 1, 20, dtype=np.float32)[:, np.newaxis]

    def run(rows: Rows) -> Rows:
        answers: Rows = rows.copy()
        answers[6:7] += 1
        return answers

    assert report(run, x, x.astype(np.float64)).error == pytest.approx(1.0)


def _planted(spec: KanSpec, wrong: Callable[[Rows], NDArray[np.bool_]]) -> ParityReport:
    x = golden_inputs(spec)

    def run(rows: Rows) -> Rows:
        with np.errstate(invalid="ignore"):  # bad values are asked for too
            answers = spec.evaluate(rows).astype(np.float32)
        answers[wrong(rows)] += 1
        return answers

    return report(run, x, spec.evaluate(x), batches=[len(x)])


def test_the_reference_rounded_to_float32_passes(spec: KanSpec) -> None:
    assert _planted(spec, lambda rows: np.zeros(len(rows), bool)).error < 1e-6


@pytest.mark.parametrize("kind", ["starts", "ends"])
def test_an_error_on_one_knot_is_found(spec: KanSpec, kind: str) -> None:
    knot = np.float32(getattr(spec.layers[0], kind)[1, 2])
    found = _planted(spec, lambda rows: rows[:, 1] == knot)
    assert not found.passed
    assert np.float32(found.worst_input[1]) == knot


def test_an_error_one_ulp_beside_a_knot_is_found(spec: KanSpec) -> None:
    beside = np.nextafter(np.float32(bump_layers(spec)[0].ends[0, 0]), np.float32(np.inf))
    assert not _planted(spec, lambda rows: rows[:, 0] == beside).passed


def test_an_error_outside_the_domain_is_found(spec: KanSpec) -> None:
    high = spec.domain[2, 1]
    assert not _planted(spec, lambda rows: (rows[:, 2] > high) & (rows[:, 2] < high + 0.1)).passed


def test_an_error_far_outside_is_found(spec: KanSpec) -> None:
    assert not _planted(spec, lambda rows: rows[:, 0] < -1e20).passed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_fails(bad: float) -> None:
    x = np.linspace(0, 1, 5, dtype=np.float32)[:, np.newaxis]

    def run(rows: Rows) -> Rows:
        answers: Rows = rows.copy()
        answers[rows == 1] = bad
        return answers

    found = report(run, x, x.astype(np.float64))
    assert found.error == np.inf
    assert not found.passed
    assert found.worst_input == (1.0,)


def test_a_reference_that_is_not_finite_fails() -> None:
    x = np.zeros((3, 1), np.float32)
    assert not report(first_column, x, np.array([[0.0], [np.nan], [0.0]])).passed


def test_each_batch_is_full() -> None:
    seen = []

    def run(rows: Rows) -> Rows:
        seen.append(len(rows))
        return rows

    x = np.arange(10, dtype=np.float32)[:, np.newaxis]
    found = report(run, x, x.astype(np.float64), batches=[7, 4, 4])
    assert found.batches == (4, 7)
    assert seen[:5] == [4, 4, 4, 7, 7]  # 10 rows in fours, then in sevens
    assert found.error == 0


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows_are_enough(rows: int) -> None:
    x = np.ones((rows, 1), np.float32)
    assert report(first_column, x, x.astype(np.float64)).passed


# --- bad values


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda rows: rows, {"nan": "nan", "+inf": "infinite", "-inf": "infinite"}),
        (lambda rows: np.nan_to_num(rows), {"nan": "finite", "+inf": "finite", "-inf": "finite"}),
        (lambda rows: np.maximum(rows, 0), {"nan": "nan", "+inf": "infinite", "-inf": "finite"}),
        (
            lambda rows: np.nan_to_num(np.full_like(rows, rows.sum()), posinf=1, neginf=1),
            dict.fromkeys(("nan", "+inf", "-inf"), "finite, and other rows of the batch change"),
        ),
    ],
)
def test_what_bad_values_do_is_told(run: Callable[[Rows], Rows], expected: dict[str, str]) -> None:
    x = np.array([[1.0], [2.0], [3.0]], np.float32)
    assert report(run, x, x.astype(np.float64)).nonfinite == expected


# --- the message


def test_a_failure_names_the_artifact_the_figures_and_the_input() -> None:
    x = np.array([[1.0, 0.125], [2.0, 0.25]], np.float32)
    found = report(lambda rows: rows[:, :1] + 4 * (rows[:, :1] == 2), x, x[:, :1].astype(np.float64))
    with pytest.raises(ParityError) as raised:
        found.require("model.engine on tensorrt")
    assert str(raised.value) == (
        "model.engine on tensorrt differs from the float64 reference by 2 (relative to max(1, max|y|)), "
        "more than the tolerance 0.001; the worst input is [2, 0.25]"
    )
    assert raised.value.exit_code == 3


def test_a_long_input_is_cut_in_the_message() -> None:
    x = np.ones((3, 100), np.float32)
    found = report(lambda rows: first_column(rows) + 1, x, np.zeros((3, 1)))
    with pytest.raises(ParityError, match=r"\[1, 1, 1, 1, 1, 1, 1, 1, …\]$"):
        found.require("model.onnx")


def test_a_report_in_tolerance_requires_nothing() -> None:
    x = np.zeros((3, 1), np.float32)
    report(first_column, x, x.astype(np.float64)).require("model.onnx")


def test_as_dict_holds_every_figure() -> None:
    x = np.zeros((3, 1), np.float32)
    found = report(first_column, x, x.astype(np.float64))
    assert set(found.as_dict()) == {field.name for field in dataclasses.fields(ParityReport)}


def test_golden_inputs_look_where_deeper_layers_are_steep() -> None:
    # The second layer sees anything but zero only where the first answers near 20, on a hundredth of the domain.
    first = LayerSpec(np.array([[0.0]]), np.array([[1.0]]), np.array([[[20.0]]]), np.array([0.0]))
    second = LayerSpec(np.array([[19.99]]), np.array([[20.01]]), np.array([[[1.0]]]), np.array([0.0]))
    spec = KanSpec((first, second))
    answers = spec.evaluate(golden_inputs(spec))
    assert np.count_nonzero(answers > 0.1) > 20


def test_golden_inputs_meet_a_narrow_bump_beside_wide_ones() -> None:
    starts, ends = np.array([[0.0, 0.49999]]), np.array([[1.0, 0.50001]])
    spec = KanSpec((LayerSpec(starts, ends, np.array([[[1.0, 1.0]]]), np.array([0.0])),))
    x = golden_inputs(spec)[:, 0]
    assert np.count_nonzero(np.abs(x - 0.5) < 0.9e-5) > 10
