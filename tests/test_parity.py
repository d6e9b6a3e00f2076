"""The comparison finds what is planted, and reports the numbers that a hand calculates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import bump_layers, spline_network
from numpy.typing import NDArray

from relukan_deploy.errors import ParityError
from relukan_deploy.parity import STANDARD_BATCHES, TOLERANCES, ParityReport, compare, golden_inputs
from relukan_deploy.spec import KanSpec, LayerSpec, Precision, SplineSpec

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


# --- networks of splines, whose other branches go on beyond the domain


def branches(silu: list[float], polynomial: list[list[float]], low: float = -1.0, high: float = 1.0) -> KanSpec:
    """One layer of one sum, no spline left, whose inputs were trained from low to high."""
    inputs = len(silu)
    return KanSpec(
        (
            SplineSpec(
                1,
                np.tile(np.linspace(low, high, 5), (inputs, 1)),
                np.zeros((1, inputs, 3)),
                np.zeros(1),
                np.array([silu]),
                np.array([polynomial]).reshape(1, inputs, -1),
            ),
        )
    )


def outside(spec: KanSpec, rows: Rows) -> NDArray[np.bool_]:
    low, high = spec.domain.T
    beyond: NDArray[np.bool_] = np.any((rows < low) | (rows > high), axis=1)
    return beyond


@pytest.mark.parametrize("side", [-np.inf, None, np.inf], ids=["below", "on", "above"])
def test_every_knot_of_a_spline_is_compared(side: float | None) -> None:
    spec = spline_network(0, [3, 4, 2])
    rows = golden_inputs(spec)
    for index, knots in enumerate(spec.layers[0].breaks.astype(np.float32)):
        for knot in knots:
            wanted = knot if side is None else np.nextafter(knot, np.float32(side))
            assert wanted in rows[:, index], (index, knot)


def test_every_piece_of_a_spline_has_rows_inside() -> None:
    spec = spline_network(0, [3, 4, 2], grid=40)
    rows = golden_inputs(spec)
    for index, knots in enumerate(spec.layers[0].breaks):
        assert (np.histogram(rows[:, index], knots)[0] >= 3).all()


def test_an_input_that_has_lost_its_spline_is_compared_where_it_was_trained() -> None:
    rows = golden_inputs(branches([0.5, 0.5], [], low=100, high=104))
    assert ((rows > 100) & (rows < 104)).all(axis=1).sum() >= 100


@pytest.mark.parametrize(("precision", "farthest"), [("fp32", 1e30), ("bf16", 1e30), ("fp16", 1e3)])
def test_silu_is_compared_as_far_outside_as_the_precision_reaches(precision: Precision, farthest: float) -> None:
    rows = golden_inputs(branches([0.5], []), precision=precision)
    assert rows.max() == pytest.approx(farthest)
    assert rows.min() == pytest.approx(-farthest)


def test_a_spline_without_other_branches_is_compared_far_outside_in_every_precision() -> None:
    assert golden_inputs(spline_network(0, [2, 3, 1], silu=0), precision="fp16").max() > 1e30


@pytest.mark.parametrize("precision", TOLERANCES)
def test_answers_outside_are_within_what_the_precision_holds(precision: Precision) -> None:
    spec = spline_network(0, [2, 5, 1], powers=5)
    rows = golden_inputs(spec, precision=precision)
    answers = spec.evaluate(rows[outside(spec, rows)])
    assert np.abs(answers).max(initial=0) <= (1e4 if precision == "fp16" else 1e36)


def test_a_power_that_overflows_is_left_out_though_its_weight_is_small() -> None:
    rows = golden_inputs(branches([0.0], [[0.0, 0.0, 0.0, 0.0, 1e-30]])).astype(np.float64)
    assert 1e5 < rows.max() < 1e7  # 1e30 and 1e12 would be 1e150 and 1e60 on the way to their answers


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_rows_outside_whose_branches_cancel_are_left_out(precision: Precision) -> None:
    spec = branches([0.5, -0.5], [])
    rows = golden_inputs(spec, precision=precision)
    far = np.abs(rows).max(axis=1) > 100
    assert not (far & (rows > 0).all(axis=1)).any()  # 0.5·1e30 − 0.5·1e30, of which rounding leaves anything
    assert (far & ((rows > 0).sum(axis=1) == 1)).any()


@pytest.mark.parametrize("precision", TOLERANCES)
def test_rows_in_the_domain_are_compared_whatever_they_answer(precision: Precision) -> None:
    spec = branches([1e30, -1e30], [])
    rows = golden_inputs(spec, precision=precision)
    assert np.count_nonzero(np.logical_not(outside(spec, rows))) > 300


@pytest.mark.parametrize("precision", TOLERANCES)
def test_bumps_are_compared_on_the_same_rows_in_every_precision(spec: KanSpec, precision: Precision) -> None:
    np.testing.assert_array_equal(golden_inputs(spec, precision=precision), golden_inputs(spec))


def test_rows_outside_have_a_scale_of_their_own_if_it_is_larger() -> None:
    x = np.array([[0], [1], [2], [100]], np.float32)
    y = np.array([[2], [4], [3], [100]], np.float64)
    for row, expected in enumerate([0.25, 0.25, 0.25, 0.01]):  # of 4, 4, 4 and 100
        wrong = {float(x[row, 0]): 1.0}

        def run(rows: Rows, wrong: dict[float, float] = wrong) -> Rows:
            answers = np.interp(rows, x[:, 0], y[:, 0])
            return np.array(answers + [[wrong.get(value, 0)] for value in rows[:, 0].tolist()], np.float32)

        found = report(run, x, y, domain=[(0.0, 1.0)])
        assert found.error == pytest.approx(expected), row
        assert found.worst_input == (x[row, 0],)


def test_the_figures_of_a_row_outside_are_in_proportion() -> None:
    x = np.array([[0], [1], [1e6]], np.float32)
    found = report(lambda rows: rows * np.float32(1.5), x, x.astype(np.float64), domain=[(0.0, 1.0)])
    assert found.max_absolute == 0.5  # half a million of a million
    assert found.max_relative == 0.5  # inside, answers go from 0 to 1
    assert found.rmse == pytest.approx(np.sqrt(0.5 / 3))


def test_without_a_row_in_the_domain_each_has_its_own_scale() -> None:
    x = np.array([[10], [1000]], np.float32)
    found = report(lambda rows: rows + 1, x, x.astype(np.float64), domain=[(0.0, 1.0)])
    assert found.error == pytest.approx(0.1)


def test_an_input_without_an_interval_makes_no_row_an_outside_one() -> None:
    x = np.array([[0, 1e30], [1, 5]], np.float32)
    y = np.array([[3.0], [1.0]])
    found = report(lambda rows: 4 - rows[:, :1], x, y, domain=[(0.0, 1.0), None])
    assert found.error == pytest.approx(2 / 3)  # relative to both rows' largest answer


def planted_in_splines(wrong: Callable[[Rows, Rows], Rows]) -> ParityReport:
    """What is found if an artifact answers wrong(x, y) instead of y, in float32."""
    spec = spline_network(0, [3, 5, 1])
    x = golden_inputs(spec)
    y = spec.evaluate(x)
    assert np.abs(y).max() > 1e29

    def run(rows: Rows) -> Rows:
        with np.errstate(invalid="ignore"):
            return wrong(rows, spec.evaluate(rows).astype(np.float32))

    return report(run, x, y, domain=spec.intervals, tolerance=1e-5, batches=[len(x)])


def test_splines_rounded_to_float32_pass() -> None:
    assert planted_in_splines(lambda rows, y: y).error < 1e-7


def test_an_error_in_the_domain_is_found_though_answers_outside_are_huge() -> None:
    found = planted_in_splines(lambda rows, y: np.where(np.abs(rows[:, :1]) < 0.1, y + np.float32(1e-3), y))
    assert not found.passed
    assert abs(found.worst_input[0]) < 0.1
    assert found.max_absolute == pytest.approx(1e-3, rel=0.01)


def test_a_base_branch_that_is_missing_far_outside_is_found() -> None:
    spec = spline_network(0, [3, 5, 1])
    bias = spec.evaluate(np.zeros((1, 3))).astype(np.float32)
    found = planted_in_splines(lambda rows, y: np.where(np.abs(rows[:, :1]) > 1e3, bias, y))
    assert not found.passed


def test_a_base_branch_that_is_slightly_wrong_far_outside_is_found() -> None:
    found = planted_in_splines(lambda rows, y: np.where(np.abs(rows[:, :1]) > 1e3, y * np.float32(1.001), y))
    assert not found.passed
