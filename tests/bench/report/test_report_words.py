"""How figures are written."""

from __future__ import annotations

import dataclasses

import example_results as examples
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relukan_deploy.bench.report import words
from relukan_deploy.bench.results import Conditions, Point, Split
from relukan_deploy.bench.timing import Ratio, Timing, summarise

UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (7.412e-6, "7.41 µs"),
        (7.4e-6, "7.40 µs"),
        (74e-6, "74.0 µs"),
        (740e-6, "740 µs"),
        (9.996e-6, "10.0 µs"),
        (99.96e-6, "100 µs"),
        (999.6e-6, "1.00 ms"),
        (1.27e-3, "1.27 ms"),
        (61.0, "61.0 s"),
        (12e-9, "12.0 ns"),
        (0.0, "0 µs"),
    ],
)
def test_times_have_three_digits_and_a_unit(seconds: float, written: str) -> None:
    assert words.duration(seconds) == written


@given(st.floats(1e-9, 900.0))
def test_a_time_as_it_is_written_is_the_time_that_was_measured(seconds: float) -> None:
    number, unit = words.duration(seconds).split(" ")
    assert float(number) * UNITS[unit] == pytest.approx(seconds, rel=0.006)
    assert len(number.replace(".", "")) == 3


@given(st.floats(1e-7, 0.9))
def test_a_time_in_microseconds_is_the_time_that_was_measured(seconds: float) -> None:
    written = words.microseconds(steady(seconds))
    assert float(written.replace(" ", "")) * 1e-6 == pytest.approx(seconds, rel=0.006, abs=0.006e-6)
    assert len(written) <= 7


@given(st.floats(1.0, 1e17))
def test_a_count_as_it_is_written_is_the_count(value: float) -> None:
    written = words.count(value)
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}.get(written[-1], 1.0)
    assert float(written.rstrip("kMGTP")) * scale == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize(
    ("ratio", "written"),
    [
        (1234.4, "1 234 ×"),
        (67.4, "67 ×"),
        (9.96, "10 ×"),
        (4.13, "4.1 ×"),
        (1.0, "1.0 ×"),
        (0.996, "1.0 ×"),
        (0.45, "0.45 ×"),
        (0.1, "0.10 ×"),
        (0.067, "0.067 ×"),
    ],
)
def test_ratios(ratio: float, written: str) -> None:
    assert words.times(ratio) == written
    assert words.times(Ratio(ratio, ratio, ratio)) == written


def test_a_ratio_has_the_middle_of_its_rounds_beside_it() -> None:
    assert words.interval(Ratio(67.0, 65.0, 69.0)) == "67 × (65–69)"
    assert words.interval(Ratio(0.45, 0.45, 0.45)) == "0.45 ×"
    assert words.interval(None) == ""


def steady(seconds: float) -> Timing:
    return summarise([[[seconds]]])


def test_an_unsteady_time_is_marked() -> None:
    assert words.duration(dataclasses.replace(steady(1e-3), spread=0.26)) == "≈1.00 ms"
    assert words.duration(dataclasses.replace(steady(1e-3), spread=0.25)) == "1.00 ms"
    assert words.microseconds(dataclasses.replace(steady(1e-3), spread=0.26)) == "≈1 000"


def test_a_mean_has_its_interval_in_the_same_unit() -> None:
    timing = dataclasses.replace(steady(1e-3), mean=1.004e-3, mean_low=0.991e-3, mean_high=1.02e-3)
    assert words.mean(timing) == "1.00 (0.99–1.02) ms"


def test_a_split_is_in_one_unit() -> None:
    assert words.split(Point(1, steady(1e-3), split=Split(1.2e-6, 3.4e-6, 0.0))) == "1.20 + 3.40 + 0 µs"
    assert words.split(Point(1, steady(1e-3), split=Split(0.0, 3.4e-6, 0.0))) == "3.40 µs there"
    assert words.split(Point(1, steady(1e-3))) == ""


def test_conditions_say_what_is_known_and_no_more() -> None:
    before, after = Conditions(load=0.31, gpu_celsius=41.0), Conditions(load=1.24, cpu_mhz=2600.0)
    assert words.conditions(before, after) == "load 0.3 → 1.2, processor 2600 MHz, GPU 41 °C"
    assert words.conditions(Conditions(), Conditions()) == ""


def test_an_environment_says_where_and_how() -> None:
    said = dict(words.environment(examples.environment(gpu=True, threads=4)))
    assert "Example 9000 48-Core Processor, 16 cores" in said["Machine"]
    assert "Example GPU 80GB (compute capability 9.0, 85.9 GB, driver 580.65.06, CUDA 13.0)" in said["Machine"]
    assert said["Measured"] == "2026-03-14 15:09:26 UTC, 4 threads, commit 0123456789+"
    assert said["Peak"] == "GPU, fp32: 48.0 TFLOP/s, 3.1 TB/s, 2.40 µs for a launch"
    assert said["Command"] == "relukan-bench model"
