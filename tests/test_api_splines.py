"""`export` of networks with SiLU branches and functions: exact, approximated, or refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import error_of

from relukan_deploy.api import export, verify
from relukan_deploy.bundle import Bundle, open_bundle
from relukan_deploy.errors import InputError, ParityError
from relukan_deploy.runtime.load import load
from relukan_deploy.spec import KanSpec, SplineSpec
from relukan_deploy.splines import Function

FOUR = {"Add", "Conv", "Mul", "Relu"}


def layer(seed: int, inputs: int, outputs: int, *, silu: bool, functions: tuple[Function, ...] = ()) -> SplineSpec:
    """Cubic splines on five uneven intervals, 3 more on either side."""
    rng = np.random.default_rng(seed)
    knots = np.cumsum(rng.uniform(0.25, 0.55, (inputs, 12)), axis=1)
    return SplineSpec(
        degree=3,
        knots=knots - knots.mean(axis=1, keepdims=True),
        coefficients=rng.normal(0, 0.3, (outputs, inputs, 8)),
        bias=rng.normal(0, 0.1, outputs),
        silu=rng.normal(0, 0.5, (outputs, inputs)) if silu else np.zeros((outputs, inputs)),
        polynomial=np.zeros((outputs, inputs, 0)),
        functions=functions,
    )


def network(*, silu: bool = False, functions: tuple[Function, ...] = (), seed: int = 0) -> KanSpec:
    return KanSpec((layer(seed, 2, 3, silu=silu), layer(seed + 1, 3, 1, silu=silu, functions=functions)))


def sine(**changes: Any) -> Function:
    given = Function("sin", input=1, output=0, slope=1.5, shift=0.25, scale=0.5, low=-2.0, high=3.0)
    return dataclasses.replace(given, **changes)


def operators(bundle: Bundle) -> set[str]:
    return set(bundle.manifest.artifacts[0].details["operators"])


def error(bundle: Bundle, spec: KanSpec) -> float:
    """On rows in the domain and around it, relative to the answers' range or 1."""
    x = np.random.default_rng(5).uniform(-4, 4, (2000, 2)).astype(np.float32)
    return error_of(load(bundle)(x).astype(np.float64), spec.evaluate(x))


# --- SiLU


def test_silu_is_exact_with_sigmoid_as_a_fifth_operator(tmp_path: Path) -> None:
    spec = network(silu=True)
    bundle = export(spec, tmp_path / "bundle")
    assert operators(bundle) == FOUR | {"Sigmoid"}
    assert bundle.manifest.approximations == ()
    assert error(bundle, spec) < 5e-6


def test_strict_ops_are_four_operators_and_stay_within_the_bound(tmp_path: Path) -> None:
    spec = network(silu=True)
    bundle = export(spec, tmp_path / "bundle", strict_ops=True)
    assert operators(bundle) == FOUR
    (found,) = bundle.manifest.approximations
    assert (found.function, found.edges, found.bound) == ("SiLU", 9, 1e-6)
    assert error(bundle, spec) < 1e-5


def test_a_wider_bound_is_a_smaller_graph_with_larger_errors(tmp_path: Path) -> None:
    spec = network(silu=True)
    fine = export(spec, tmp_path / "fine", strict_ops=True)
    coarse = export(spec, tmp_path / "coarse", strict_ops=True, bound=1e-3, tolerance=1e-2)
    assert len(coarse.contents["model.onnx"]) < len(fine.contents["model.onnx"])
    assert error(fine, spec) < 1e-5 < error(coarse, spec) < 1e-2


def test_without_silu_there_are_four_operators_and_strict_ops_change_nothing(tmp_path: Path) -> None:
    plain = export(network(), tmp_path / "plain")
    strict = export(network(), tmp_path / "strict", strict_ops=True)
    assert operators(plain) == FOUR
    assert plain.contents["model.onnx"] == strict.contents["model.onnx"]
    assert strict.manifest.approximations == ()


@pytest.mark.parametrize("strict", [False, True])
def test_weights_are_replaced_in_the_form_they_were_exported_in(tmp_path: Path, strict: bool) -> None:
    bundle = export(network(silu=True), tmp_path / "bundle", strict_ops=strict, bound=1e-5, tolerance=1e-4)
    retrained = network(silu=True)
    first = retrained.layers[0]
    assert isinstance(first, SplineSpec)
    retrained = KanSpec((dataclasses.replace(first, silu=first.silu * 1.25), *retrained.layers[1:]))
    x = np.random.default_rng(6).uniform(-3, 3, (500, 2)).astype(np.float32)
    runner = load(bundle)
    runner.refit(retrained)
    assert np.abs(runner(x) - retrained.evaluate(x)).max() < 1e-4


def test_a_bound_that_takes_the_answers_out_of_tolerance_is_named(tmp_path: Path) -> None:
    message = r"which computes SiLU within 0\.005 \(--bound\), differs from the float64 reference by 0\.0"
    with pytest.raises(ParityError, match=message):
        export(network(silu=True), tmp_path / "bundle", strict_ops=True, bound=0.5)
    assert not (tmp_path / "bundle").exists()


def test_answers_between_the_inner_knots_are_close_for_themselves(tmp_path: Path) -> None:
    """Where a network is trained; towards the outer knots this one's are several times as large."""
    first = layer(2, 8, 1, silu=False)
    coefficients = np.array(first.coefficients)
    coefficients[:, :, [0, -1]] = 2.0
    spec = KanSpec((dataclasses.replace(first, coefficients=coefficients),))
    x = np.random.default_rng(5).uniform(first.knots[:, 3], first.knots[:, -4], (2000, 8)).astype(np.float32)
    y = spec.evaluate(x)
    answers = load(export(spec, tmp_path / "bundle"))(x)
    assert np.abs(answers - y).max() < 1e-5 * np.abs(y).max()


# --- functions


def test_a_function_is_refused_with_its_edge(tmp_path: Path) -> None:
    message = "edge 1 → 0 of layer 1 computes sin, which is no polynomial: add approximate=True (--approximate) "
    with pytest.raises(InputError, match=re.escape(message)):
        export(network(functions=(sine(),)), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["sin", "exp", "tanh", "gaussian", "abs"])
def test_a_function_is_approximated_within_the_bound(tmp_path: Path, name: str) -> None:
    spec = network(functions=(sine(name=name),))
    bundle = export(spec, tmp_path / "bundle", approximate=True)
    assert operators(bundle) == FOUR
    (found,) = bundle.manifest.approximations
    assert (found.function, found.edges, found.interval) == (name, 1, (-2, 3))
    assert found.error <= found.bound <= 1e-6
    assert error(bundle, spec) < 1e-5


def test_functions_do_not_make_silu_an_approximation(tmp_path: Path) -> None:
    bundle = export(network(silu=True, functions=(sine(),)), tmp_path / "bundle", approximate=True)
    assert [each.function for each in bundle.manifest.approximations] == ["sin"]
    assert "Sigmoid" in operators(bundle)


def test_a_function_that_cannot_be_approximated_is_refused_with_its_edge(tmp_path: Path) -> None:
    message = "edge 1 → 0 of layer 1: sgn from -2 to 3 cannot be approximated: it jumps or is infinite at -0.166667"
    with pytest.raises(InputError, match=re.escape(message)):
        export(network(functions=(sine(name="sgn"),)), tmp_path / "bundle", approximate=True)


# --- options and what is written down


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf")])
def test_the_bound_must_be_greater_than_zero(tmp_path: Path, bound: float) -> None:
    with pytest.raises(InputError, match="bound must be greater than 0, got"):
        export(network(silu=True), tmp_path / "bundle", strict_ops=True, bound=bound)


def test_approximations_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    spec = network(silu=True, functions=(sine(), sine(input=0, name="exp")))
    written = export(spec, tmp_path / "bundle", strict_ops=True, approximate=True, bound=1e-7).manifest
    assert open_bundle(tmp_path / "bundle").manifest == written
    assert [each.function for each in written.approximations] == ["SiLU", "exp", "sin"]
    assert all(0 < each.error <= each.bound <= 1e-7 for each in written.approximations)


def test_an_approximated_bundle_is_verified_against_the_exact_reference(tmp_path: Path) -> None:
    spec = network(silu=True, functions=(sine(),))
    bundle = export(spec, tmp_path / "bundle", strict_ops=True, approximate=True)
    x, y = bundle.golden()
    assert (y == spec.evaluate(x)).all()
    assert all(check.report and check.report.passed for check in verify(bundle))


def test_a_bound_too_coarse_for_the_tolerance_is_drawn_closer(tmp_path: Path) -> None:
    """A steep second layer multiplies what the approximations of the first are off."""
    rng = np.random.default_rng(0)
    knots = np.linspace(-2, 2, 12)
    first, second = (
        SplineSpec(
            degree=3,
            knots=np.tile(knots, (inputs, 1)),
            coefficients=steepness * rng.normal(size=(outputs, inputs, 8)) / 8,
            bias=np.zeros(outputs),
            silu=np.full((outputs, inputs), weight),
            polynomial=np.zeros((outputs, inputs, 0)),
        )
        for inputs, outputs, steepness, weight in ((4, 2, 0.1, 0.5), (2, 1, 20.0, 0.0))
    )
    bundle = export(KanSpec((first, second)), tmp_path / "bundle", strict_ops=True, bound=1e-5)
    (silu,) = bundle.manifest.approximations
    assert silu.bound < 1e-5
    assert bundle.manifest.artifacts[0].verified
