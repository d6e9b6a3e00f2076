"""`compare`: silent where nothing has changed, and not where something has, under several kinds of noise."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from measured import HOST, PEAKS, environment, results, series, steady
from numpy.typing import NDArray

from relukan_deploy.bench.compare import _student, compare
from relukan_deploy.bench.results import Conditions, Contender, Gpu, Results
from relukan_deploy.errors import InputError

Array = NDArray[np.float64]
Noise = Callable[[np.random.Generator, tuple[int, int, int]], Array]

CONTENDERS = [Contender(name, (2, 5, 1), "torch") for name in ("this network", "pykan", "relu-kan", "mlp")]
BATCHES = (1, 8, 64, 512, 4096)
PAIRS = 200
THRESHOLD = 0.05


# Logarithms of times, (points, runs, rounds).


def gaussian(generator: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    return generator.normal(0, 0.05, shape)


def heavy_tails(generator: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    return 0.03 * np.abs(generator.standard_t(2, shape))


def drift(generator: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Every point at its own pace from run to run."""
    return generator.normal(0, 0.02, shape) + generator.normal(0, 0.05, (*shape[:2], 1))


def common_drift(generator: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Some runs of the whole machine are slower."""
    return generator.normal(0, 0.02, shape) + generator.normal(0, 0.05, (1, shape[1], 1))


def wandering(generator: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Rounds of a run that follow each other are alike: more rounds tell little more."""
    return np.cumsum(generator.normal(0, 0.02, shape), axis=2)


def outliers(generator: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """One round in ten takes three times as long."""
    return generator.normal(0, 0.03, shape) + math.log(3) * (generator.random(shape) < 0.1)


def uneven(generator: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Some points are twenty times as noisy as others."""
    widths = generator.uniform(0.005, 0.1, (shape[0], 1, 1))
    return generator.normal(0, 0.02, shape) + widths * generator.normal(0, 1, (*shape[:2], 1))


NOISES = (gaussian, heavy_tails, drift, common_drift, wandering, outliers, uneven)


def drawn(generator: np.random.Generator, noise: Noise, *, slower: float = 1.0, runs: int = 5) -> Results:
    """Four series of five points; the last takes `slower` times as long as it should."""
    shape = len(CONTENDERS), len(BATCHES), runs, 9
    logarithms = noise(generator, (shape[0] * shape[1], runs, 9)).reshape(shape)
    logarithms[-1] += math.log(slower)
    times = (1e-5 * np.exp(logarithms)).tolist()
    return results(
        *(
            series(contender, dict(zip(BATCHES, points, strict=True)))
            for contender, points in zip(CONTENDERS, times, strict=True)
        )
    )


@pytest.mark.parametrize("noise", NOISES)
def test_it_is_silent_where_nothing_has_changed_and_finds_what_has(noise: Noise) -> None:
    generator = np.random.default_rng(1)
    loud = found = 0
    for _ in range(PAIRS):
        old, new = drawn(generator, noise), drawn(generator, noise)
        loud += any(each.is_regression for each in compare(old, new, threshold=THRESHOLD).differences)
        slow = drawn(generator, noise, slower=1.3)
        slower = [each for each in compare(old, slow, threshold=THRESHOLD).differences if each.is_regression]
        found += any(each.contender == CONTENDERS[-1] for each in slower)
    assert loud <= 0.05 * PAIRS
    assert found >= 0.99 * PAIRS


def test_an_improvement_is_found_and_is_no_regression() -> None:
    old, new = (results(series(HOST, {1: steady(seconds)})) for seconds in (2e-5, 1e-5))
    (found,) = compare(old, new, threshold=THRESHOLD).differences
    assert found.is_beyond_noise
    assert not found.is_regression
    assert found.ratio == pytest.approx(0.5, rel=1e-3)
    assert found.low < found.ratio < found.high < 1
    assert (found.old, found.new) == pytest.approx((2e-5, 1e-5), rel=1e-3)


def test_a_slowdown_below_the_threshold_is_a_difference_and_no_regression() -> None:
    old, new = (results(series(HOST, {1: steady(seconds)})) for seconds in (1e-5, 1.3e-5))
    assert compare(old, new, threshold=0.2).differences[0].is_regression
    (found,) = compare(old, new, threshold=0.4).differences
    assert found.is_beyond_noise
    assert not found.is_regression


def test_what_two_processes_differ_by_anyhow_is_no_difference() -> None:
    old, new = (results(series(HOST, {1: steady(seconds)})) for seconds in (1e-5, 1.01e-5))
    assert not compare(old, new, threshold=0.0).differences[0].is_beyond_noise


def test_intervals_widen_with_the_number_of_points() -> None:
    few, many = ({batch: steady(1e-5) for batch in range(1, count + 1)} for count in (1, 100))
    one, hundred = (
        compare(*([results(series(HOST, points))] * 2), threshold=THRESHOLD).differences[0] for points in (few, many)
    )
    assert hundred.high > one.high > 1


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [(0.975, 6, 2.447), (0.995, 8, 3.355), (0.9995, 8, 5.041), (0.975, 14, 2.145), (0.999, 30, 3.385)],
)
def test_students_quantiles_are_those_of_tables(probability: float, freedom: int, expected: float) -> None:
    assert _student(probability, freedom) == pytest.approx(expected, rel=0.01)


# --- a single run


def test_a_single_run_is_said_to_be_one() -> None:
    old, new = results(series(HOST, {1: steady(1e-5)})), results(series(HOST, {1: steady(1e-5, runs=1)}))
    (warning,) = compare(old, new, threshold=THRESHOLD).warnings
    assert warning.startswith("the new file holds a single run")
    assert warning.endswith("measure with --runs 5")


def test_of_a_single_run_less_is_known() -> None:
    five, one = (results(series(HOST, {1: steady(1e-5, runs=runs)})) for runs in (5, 1))
    (sure,), (unsure,) = (compare(each, each, threshold=THRESHOLD).differences for each in (five, one))
    assert unsure.high - 1 > 1.5 * (sure.high - 1)


def test_noise_within_a_single_run_counts() -> None:
    generator = np.random.default_rng(0)
    noisy = np.exp(generator.normal(0, 0.3, (1, 9))).tolist()
    calm, loud = (results(series(HOST, {1: rounds})) for rounds in (steady(1.0, runs=1), noisy))
    (one,), (other,) = (compare(calm, each, threshold=THRESHOLD).differences for each in (calm, loud))
    assert other.high / other.low > one.high / one.low


# --- what is matched


def test_points_of_one_file_alone_are_listed() -> None:
    other = dataclasses.replace(HOST, data="bound")
    old = results(series(HOST, {1: steady(1e-5), 8: steady(1e-5)}))
    new = results(series(HOST, {8: steady(1e-5), 64: steady(1e-5)}), series(other, {8: steady(1e-5)}))
    found = compare(old, new, threshold=THRESHOLD)
    assert [each.batch for each in found.differences] == [8]
    assert found.only_old == ("this network: onnxruntime-cpu, 1 row",)
    assert found.only_new == (
        "this network: onnxruntime-cpu, 64 rows",
        "this network: onnxruntime-cpu, graph alone, 8 rows",
    )


def test_nothing_in_common_is_an_error() -> None:
    old, new = (results(series(HOST, {batch: steady(1e-5)})) for batch in (1, 8))
    with pytest.raises(InputError, match="no point in common: expected the same networks"):
        compare(old, new, threshold=THRESHOLD)


@pytest.mark.parametrize("threshold", [-0.1, math.inf, math.nan])
def test_a_threshold_that_is_none_is_an_error(threshold: float) -> None:
    same = results(series(HOST, {1: steady(1e-5)}))
    with pytest.raises(InputError, match="the threshold must be 0 or more"):
        compare(same, same, threshold=threshold)


def test_of_several_machines_in_a_file_the_same_ones_are_compared() -> None:
    machines = (environment(processor="slow"), environment(processor="fast"))

    def both(order: int) -> Results:
        several = [series(HOST, {1: steady(seconds)}, place) for place, seconds in enumerate((3e-5, 1e-5))]
        return results(*several[::order], environments=machines)

    found = compare(both(1), both(-1), threshold=THRESHOLD)
    assert len(found.differences) == 2
    assert not any(each.is_beyond_noise for each in found.differences)


# --- other reasons


def test_the_same_machine_leads_to_no_warning() -> None:
    same = results(series(HOST, {1: steady(1e-5)}))
    later = dataclasses.replace(same, environments=(environment(date="2026-03-02T12:00:00+00:00", commit="beef+"),))
    assert compare(same, later, threshold=THRESHOLD).warnings == ()


def test_another_network_of_the_same_widths_is_said_to_be_one() -> None:
    old = results(series(HOST, {1: steady(1e-5)}))
    new = results(dataclasses.replace(old.series[0], parameters=61))
    assert compare(old, new, threshold=THRESHOLD).warnings == (
        "another network of the same widths: this network: onnxruntime-cpu has 61 parameters, and had 100",
    )


def test_what_differs_between_the_environments_is_said() -> None:
    gpu = Gpu("NVIDIA H200", "9.0", "13.0", "580.1", 1 << 37)
    versions = {"python": "3.12.1", "onnxruntime": "1.21.0", "torch": "2.9.0"}
    other = environment(processor="Another CPU", gpu=gpu, threads=2, versions=versions)
    old = results(series(HOST, {1: steady(1e-5)}))
    (warning,) = compare(old, dataclasses.replace(old, environments=(other,)), threshold=THRESHOLD).warnings
    assert warning == (
        "measured in another environment: processor Some CPU → Another CPU, GPU none → NVIDIA H200, "
        "driver none → 580.1, threads 1 → 2, onnxruntime 1.20.0 → 1.21.0, torch none → 2.9.0"
    )


@pytest.mark.parametrize(
    ("load", "threads", "busy"), [(7.4, 1, True), (6.9, 1, False), (0.6, 8, True), (0.4, 8, False)]
)
def test_a_machine_that_had_no_core_to_spare_is_said_to_have_been_busy(load: float, threads: int, busy: bool) -> None:
    calm = results(series(HOST, {1: steady(1e-5)}), environments=(environment(threads=threads, before=Conditions()),))
    place = environment(threads=threads, before=Conditions(load=load))
    found = compare(calm, dataclasses.replace(calm, environments=(place,)), threshold=THRESHOLD)
    expected = f"the machine was busy when the new file was measured: a load of {load} before it began, on 8 cores"
    assert found.warnings == ((expected,) if busy else ())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"flops_per_second": 0.7e11}, ["a large matrix product (cpu, fp32) runs at 0.70 times its speed"]),
        ({"bytes_per_second": 1.5e10}, ["a large copy (cpu, fp32) runs at 1.50 times its speed"]),
        ({"flops_per_second": 0.95e11, "bytes_per_second": 1.05e10}, []),
        ({"precision": "fp16", "flops_per_second": 9e11}, []),
    ],
)
def test_a_machine_that_has_changed_is_said_to_have(changes: dict[str, Any], expected: list[str]) -> None:
    old = results(series(HOST, {1: steady(1e-5)}))
    new = dataclasses.replace(old, environments=(environment(peaks=(dataclasses.replace(PEAKS, **changes),)),))
    warnings = compare(old, new, threshold=THRESHOLD).warnings
    assert [text in warning for warning, text in itertools.zip_longest(warnings, expected)] == [True] * len(expected)
