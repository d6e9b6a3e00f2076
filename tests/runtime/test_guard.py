"""What is counted, warned of, refused or clipped outside the domain."""

from __future__ import annotations

import dataclasses
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from networks import bump_layers
from numpy.typing import NDArray

from relukan_deploy.api import export
from relukan_deploy.bundle import Manifest, open_bundle
from relukan_deploy.errors import InputError
from relukan_deploy.runtime import load
from relukan_deploy.runtime.guard import Guard, Stats, limits_of
from relukan_deploy.spec import KanSpec

DOMAIN = ((-0.5, 1.5), (0.1, 0.7), None)
INSIDE = [0.0, 0.5, 1e30]


def manifest_with(domain: Any = DOMAIN, columns: tuple[str, ...] | None = ("width", "height", "depth")) -> Manifest:
    return Manifest(
        widths=(len(domain), 1),
        task="regression",
        columns=columns,
        targets=None,
        labels=None,
        domain=domain,
        artifacts=(),
    )


class Watched(Guard):
    """A guard with the limits of its manifest's domain."""

    def __init__(self, manifest: Manifest, out_of_domain: Any, nonfinite: Any) -> None:
        super().__init__(manifest, out_of_domain, nonfinite)
        self.limits = limits_of(manifest.domain)

    def look(self, x: NDArray[np.float32]) -> bool:
        return self.inspect(x, self.limits)


def make_guard(out_of_domain: Any = "count", nonfinite: Any = "count", **manifest: Any) -> Watched:
    return Watched(manifest_with(**manifest), out_of_domain, nonfinite)


def rows(*values: list[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


# --- counting


@given(x=arrays.arrays(np.float32, st.tuples(st.integers(0, 9), st.just(3)), elements=st.floats(width=32)))
def test_each_value_is_counted_as_its_definition_says(x: NDArray[np.float32]) -> None:
    guard = make_guard()
    all_inside = guard.look(x)
    low, high = np.array([(-0.5, 1.5), (0.1, 0.7), (-np.inf, np.inf)]).T  # in float64
    wide = x.astype(np.float64)
    finite = np.isfinite(wide)
    stats = guard.stats()
    assert stats.outside == tuple((finite & ((wide < low) | (wide > high))).sum(axis=0))
    assert all_inside == (sum(stats.outside) + sum(stats.nonfinite) == 0)
    assert stats.nonfinite == tuple((~finite).sum(axis=0))


def test_the_edges_of_the_domain_are_inside_and_their_neighbours_beyond_are_not() -> None:
    guard = make_guard(domain=((0.1, 0.7),), columns=None)  # neither is a float32
    below, above = np.float32(0.1), np.float32(0.7)
    assert (float(below) > 0.1, float(above) < 0.7) == (True, True)
    guard.look(np.array([[below], [above]]))
    assert guard.stats().outside == (0,)
    guard.look(np.array([[np.nextafter(below, np.float32(0))], [np.nextafter(above, np.float32(1))]]))
    assert guard.stats().outside == (2,)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_input_that_never_matters_has_only_nonfinite_values(value: float) -> None:
    guard = make_guard()
    guard.look(rows([0, 0.5, 3e38], [0, 0.5, -3e38], [0, 0.5, value]))
    assert (guard.stats().outside, guard.stats().nonfinite) == ((0, 0, 0), (0, 0, 1))


def test_threads_lose_no_count() -> None:
    guard = make_guard()
    x = rows([9, 0.5, 0], [np.nan, 9, 0])

    def ask() -> None:
        for _ in range(500):
            guard.look(x)
            guard.answered(2)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert guard.stats() == Stats(rows=8000, outside=(4000, 4000, 0), nonfinite=(4000, 0, 0))


# --- policies


def test_warn_speaks_at_the_first_value_and_at_each_tenfold_count(caplog: pytest.LogCaptureFixture) -> None:
    guard = make_guard("warn")
    for _ in range(250):
        guard.look(rows(INSIDE, [9, 0.5, 0]))
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == 3  # at 1, 10 and 100
    assert set(messages) == {
        "row 1 has width = 9, outside the domain [-0.5, 1.5], beyond which nothing was learnt"
    }


def test_count_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    make_guard().look(rows([9, 9, np.nan]))
    assert not caplog.records


def test_raise_refuses_and_names_the_first_value() -> None:
    guard = make_guard("raise")
    assert guard.look(rows(INSIDE))
    with pytest.raises(InputError, match=r"^row 2 has height = -3, outside the domain \[0\.1, 0\.7\], beyond which"):
        guard.look(rows(INSIDE, INSIDE, [0, -3, 0], [9, 0.5, 0]))
    assert guard.stats().outside == (1, 1, 0)


def test_raise_lets_nonfinite_values_pass_unless_told_otherwise() -> None:
    assert not make_guard("raise").look(rows([np.nan, np.inf, 0]))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_nonfinite_raise_refuses_and_names_the_value(value: str) -> None:
    guard = make_guard(nonfinite="raise")
    with pytest.raises(InputError, match=rf"^row 1 has depth = {value}, expected a finite number$"):
        guard.look(rows([9, 9, 0], [0, 0.5, float(value)]))
    assert guard.stats().nonfinite == (0, 0, 1)


def test_inputs_without_names_are_numbered() -> None:
    with pytest.raises(InputError, match="row 0 has x1 = 9"):
        make_guard("raise", columns=None).look(rows([0, 9, 0]))


@pytest.mark.parametrize(("name", "value"), [("out_of_domain", "ignore"), ("nonfinite", "clip")])
def test_an_unknown_policy_is_refused(bundle_path: Path, name: str, value: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} must be count, .*, got '{value}'$"):
        load(bundle_path, **{name: value})  # type: ignore[arg-type]


# --- in a runner


def test_a_runner_counts_what_it_answers(bundle_path: Path) -> None:
    runner = load(bundle_path)
    assert (runner.stats().rows, sum(runner.stats().outside)) == (0, 0)  # its own golden inputs do not count
    runner(rows([0.5, 0.5, 0.5], [50, 0.5, np.nan]))
    stats = runner.stats()
    assert (stats.rows, stats.outside, stats.nonfinite) == (2, (1, 0, 0), (0, 0, 1))


def test_a_refused_call_is_not_answered_and_not_counted_as_rows(bundle_path: Path) -> None:
    runner = load(bundle_path, nonfinite="raise")
    with pytest.raises(InputError):
        runner(rows([0.5, np.nan, 0.5]))
    assert (runner.stats().rows, runner.stats().nonfinite) == (0, (0, 1, 0))


@pytest.mark.parametrize("policy", ["count", "raise"])
def test_a_call_inspects_its_rows_once(bundle_path: Path, policy: Any) -> None:
    runner = load(bundle_path, nonfinite=policy)
    runner.run(runner.admit(rows([50, 0.5, 0.5])))
    assert runner.stats().outside == (1, 0, 0)


class Recorder:
    """A backend that keeps what it was asked."""

    name = "recorder"
    asked: NDArray[np.float32]

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        self.asked = x
        return np.zeros((len(x), 2), np.float32)


@pytest.mark.parametrize("nonfinite", ["count", "raise"])
def test_clip_moves_values_to_the_edge_and_leaves_the_callers_alone(bundle_path: Path, nonfinite: Any) -> None:
    runner, recorder = load(bundle_path, out_of_domain="clip", nonfinite=nonfinite), Recorder()
    domain = open_bundle(bundle_path).manifest.domain
    runner._running = (recorder, limits_of(domain))  # type: ignore[assignment]
    low, high = np.array(domain).T
    x = rows([-9, 0.5, 9], [0.5, 9, -9])
    before = x.copy()
    runner(x)
    np.testing.assert_allclose(recorder.asked, [[low[0], 0.5, high[2]], [0.5, high[1], low[2]]], rtol=1e-7)
    np.testing.assert_array_equal(x, before)
    assert runner.stats().outside == (1, 1, 2)


def test_rows_admitted_before_a_refit_are_clipped_to_the_domain_of_who_answers_them(
    bundle_path: Path, spec: KanSpec
) -> None:
    runner = load(bundle_path, out_of_domain="clip", nonfinite="raise")
    admitted = runner.admit(rows([5.5, 5.5, 5.5]))
    layer = bump_layers(spec)[0]
    moved = dataclasses.replace(layer, starts=layer.starts + 5, ends=layer.ends + 5)
    retrained = dataclasses.replace(spec, layers=(moved, *spec.layers[1:]))
    runner.refit(retrained)
    np.testing.assert_allclose(runner.run(admitted), retrained.evaluate(admitted), rtol=0, atol=1e-5)


def test_clip_leaves_the_answers_of_a_relu_kan_as_they_are(bundle_path: Path, spec: KanSpec) -> None:
    x = np.random.default_rng(0).uniform(-3, 3, (200, 3)).astype(np.float32)
    np.testing.assert_allclose(load(bundle_path, out_of_domain="clip")(x), spec.evaluate(x), rtol=0, atol=1e-5)


def test_the_domain_of_a_bundle_is_where_its_network_matters(spec: KanSpec, tmp_path: Path) -> None:
    bundle = open_bundle(export(spec, tmp_path / "bundle").path)
    for index, interval in enumerate(bundle.manifest.domain):
        assert interval is not None
        x = np.tile([0.4, 0.4, 0.4], (3, 1))
        x[:, index] = (interval[0], interval[0] - 5, interval[1] + 5)
        y = spec.evaluate(x)
        np.testing.assert_allclose(y, y[:1].repeat(3, axis=0), rtol=0, atol=1e-12)
