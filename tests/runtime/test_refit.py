"""New weights in a runner that goes on answering."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from networks import BUMP_FORMS, bump_layers
from numpy.typing import NDArray

from relukan_deploy.api import export
from relukan_deploy.bundle import open_bundle, write_manifest
from relukan_deploy.checkpoint import save
from relukan_deploy.errors import CheckpointError, InputError, ParityError
from relukan_deploy.exporters.to_tensorrt import EngineOptions
from relukan_deploy.model import ReLUKAN
from relukan_deploy.runtime import Runner, load
from relukan_deploy.spec import Form, KanSpec, Layout

MakeSpec = Callable[..., KanSpec]

CPU = "onnxruntime-cpu"
BATCH_OF: dict[Form, int] = {"direct": 1, "quadratic": 64}


@pytest.fixture(scope="module")
def x() -> NDArray[np.float32]:
    return np.random.default_rng(5).uniform(-1, 2, (100, 3)).astype(np.float32)


@pytest.fixture
def retrained(make_spec: MakeSpec, spec: KanSpec) -> KanSpec:
    return make_spec(spec.widths, seed=8, columns=spec.columns, targets=spec.targets)


@pytest.fixture
def runner(bundle_path: Path) -> Runner:
    return load(bundle_path, backend=CPU)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("form", BUMP_FORMS)
@pytest.mark.parametrize("layout", get_args(Layout))
def test_afterwards_it_answers_as_the_retrained_network(
    spec: KanSpec, retrained: KanSpec, tmp_path: Path, x: NDArray[Any], layout: Layout, form: Form, precision: Any
) -> None:
    engine = EngineOptions(batch=(1, BATCH_OF[form], 64))
    runner = load(export(spec, tmp_path / "bundle", layout=layout, engine=engine, precision=precision), backend=CPU)
    runner.refit(retrained)
    tolerance = {"fp32": 1e-5, "fp16": 5e-3}[precision]
    np.testing.assert_allclose(runner(x), retrained.evaluate(x), rtol=0, atol=tolerance)
    assert np.abs(spec.evaluate(x) - retrained.evaluate(x)).max() > 0.1


def test_it_answers_bit_for_bit_as_a_new_export_would(
    runner: Runner, retrained: KanSpec, tmp_path: Path, x: NDArray[Any]
) -> None:
    runner.refit(retrained)
    np.testing.assert_array_equal(runner(x), load(export(retrained, tmp_path / "new"), backend=CPU)(x))


def test_it_takes_a_checkpoint_file(tmp_path: Path, x: NDArray[Any]) -> None:
    models = [ReLUKAN([3, 4, 2]), ReLUKAN([3, 4, 2])]
    save(models[1], tmp_path / "retrained.pt")
    runner = load(export(models[0], tmp_path / "bundle"))
    runner.refit(tmp_path / "retrained.pt")
    np.testing.assert_allclose(runner(x), models[1].spec().evaluate(x), rtol=0, atol=1e-5)


def with_layer(spec: KanSpec, index: int, **changes: Any) -> KanSpec:
    layers = list(bump_layers(spec))
    layers[index] = dataclasses.replace(layers[index], **changes)
    return dataclasses.replace(spec, layers=tuple(layers))


def without_a_bump_everywhere(spec: KanSpec) -> KanSpec:
    coefficients = spec.layers[0].coefficients.copy()
    coefficients[:, :, 5] = 0
    return with_layer(spec, 0, coefficients=coefficients)


def without_a_hidden_feature(spec: KanSpec) -> KanSpec:
    coefficients = spec.layers[1].coefficients.copy()
    coefficients[:, 2] = 0
    return with_layer(spec, 1, coefficients=coefficients)


def with_shared_intervals(spec: KanSpec) -> KanSpec:
    layer = bump_layers(spec)[0]
    starts, ends = np.repeat(layer.starts[1:2], 3, axis=0), np.repeat(layer.ends[1:2], 3, axis=0)
    return with_layer(spec, 0, starts=starts, ends=ends)


@pytest.mark.parametrize("form", BUMP_FORMS)
@pytest.mark.parametrize("change", [without_a_bump_everywhere, without_a_hidden_feature, with_shared_intervals])
def test_a_network_that_needs_less_fits_too(
    spec: KanSpec, tmp_path: Path, x: NDArray[Any], change: Callable[[KanSpec], KanSpec], form: Form
) -> None:
    runner = load(export(spec, tmp_path / "bundle", engine=EngineOptions(batch=(1, BATCH_OF[form], 64))), backend=CPU)
    less = change(spec)
    runner.refit(less)
    np.testing.assert_allclose(runner(x), less.evaluate(x), rtol=0, atol=1e-5)


def with_one_hidden_feature(spec: KanSpec) -> KanSpec:
    alive = np.arange(5) == 2
    return with_layer(spec, 1, coefficients=spec.layers[1].coefficients * alive[:, np.newaxis])


def with_one_bump(spec: KanSpec) -> KanSpec:
    alive = np.arange(8) == 4
    return with_layer(spec, 0, coefficients=spec.layers[0].coefficients * alive)


@pytest.mark.parametrize("form", BUMP_FORMS)
@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("change", [with_one_hidden_feature, with_one_bump])
def test_what_is_left_of_a_network_is_not_repeated_over_the_places_of_the_old(
    spec: KanSpec, tmp_path: Path, x: NDArray[Any], change: Callable[[KanSpec], KanSpec], layout: Layout, form: Form
) -> None:
    engine = EngineOptions(batch=(1, BATCH_OF[form], 64))
    runner = load(export(spec, tmp_path / "bundle", layout=layout, engine=engine), backend=CPU)
    runner.refit(change(spec))
    np.testing.assert_allclose(runner(x), change(spec).evaluate(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", [without_a_bump_everywhere, without_a_hidden_feature, with_shared_intervals])
def test_a_network_that_needs_more_has_no_place(
    spec: KanSpec, tmp_path: Path, change: Callable[[KanSpec], KanSpec]
) -> None:
    runner = load(export(change(spec), tmp_path / "bundle"), backend=CPU)
    with pytest.raises(InputError, match=r"has no place for this network's constants.* Export the network anew"):
        runner.refit(spec)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_intervals_of_another_size_fit(spec: KanSpec, runner: Runner, x: NDArray[Any], factor: float) -> None:
    layer = bump_layers(spec)[0]
    moved = with_layer(spec, 0, starts=layer.starts * factor, ends=layer.ends * factor)
    runner.refit(moved)
    np.testing.assert_allclose(runner(x * factor), moved.evaluate(x * factor), rtol=0, atol=1e-5)


def test_the_domain_is_that_of_the_new_network(spec: KanSpec, runner: Runner) -> None:
    layer = bump_layers(spec)[0]
    runner.refit(with_layer(spec, 0, starts=layer.starts + 10, ends=layer.ends + 10))
    runner(np.full((4, 3), 0.5, np.float32))
    assert runner.stats().outside == (4, 4, 4)
    runner(np.full((4, 3), 10.5, np.float32))
    assert runner.stats().outside == (4, 4, 4)


# --- what is refused leaves the old network answering


@pytest.fixture
def as_before(runner: Runner, spec: KanSpec, x: NDArray[Any]) -> Any:
    """Checks afterwards that the runner answers as it always did."""
    yield runner
    np.testing.assert_allclose(runner(x), spec.evaluate(x), rtol=0, atol=1e-5)


def test_other_widths_are_refused(as_before: Runner, make_spec: MakeSpec) -> None:
    with pytest.raises(InputError, match=r"new network has widths \(3, 6, 2\), and .* has \(3, 5, 2\): export it with"):
        as_before.refit(make_spec((3, 6, 2)))


def test_other_columns_are_refused(as_before: Runner, retrained: KanSpec) -> None:
    with pytest.raises(InputError, match="new network has columns"):
        as_before.refit(dataclasses.replace(retrained, columns=("depth", "width", "height")))


def test_a_file_that_is_no_checkpoint_is_refused(as_before: Runner, tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("notes")
    with pytest.raises(CheckpointError):
        as_before.refit(tmp_path / "notes.pt")


def test_weights_that_answer_wrongly_are_refused(as_before: Runner, retrained: KanSpec) -> None:
    layer = bump_layers(retrained)[0]
    narrow = with_layer(retrained, 0, ends=layer.starts + 1e-6, coefficients=layer.coefficients * 1e6)
    with pytest.raises(ParityError, match=r"model\.onnx with new weights differs from the float64 reference"):
        as_before.refit(narrow)


def test_a_bundle_without_names_of_constants_is_refused(copied: Path, retrained: KanSpec, x: NDArray[Any]) -> None:
    manifest = open_bundle(copied).manifest
    artifacts = tuple(dataclasses.replace(artifact, constants={}) for artifact in manifest.artifacts)
    write_manifest(copied, dataclasses.replace(manifest, artifacts=artifacts))
    with pytest.raises(InputError, match="does not name its constants: export the network anew"):
        load(copied, backend=CPU).refit(retrained)


def test_a_closed_runner_says_so(runner: Runner, retrained: KanSpec) -> None:
    runner.close()
    with pytest.raises(InputError, match=r"model\.onnx is closed"):
        runner.refit(retrained)


# --- while others call


def test_every_call_gets_one_network_or_the_other(
    runner: Runner, spec: KanSpec, retrained: KanSpec, x: NDArray[Any]
) -> None:
    expected = [network.evaluate(x) for network in (spec, retrained)]
    over, wrong, answered = threading.Event(), [], [0, 0]

    def ask(rows: int) -> None:
        while not over.is_set():
            y = runner(x[:rows])
            near = [np.abs(y - each[:rows]).max() < 1e-5 for each in expected]
            if sum(near) != 1:
                wrong.append(y)
            answered[near.index(True)] += 1

    threads = [threading.Thread(target=ask, args=(rows,)) for rows in (1, 20, 100)]
    for thread in threads:
        thread.start()
    for index in range(20):
        runner.refit((retrained, spec)[index % 2])
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert min(answered) > 0


def test_a_runner_that_is_closed_during_a_refit_stays_closed(
    runner: Runner, retrained: KanSpec, x: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def golden_inputs_and_close(spec: KanSpec, **options: Any) -> NDArray[Any]:
        runner.close()
        return x

    monkeypatch.setattr("relukan_deploy.runtime.runner.golden_inputs", golden_inputs_and_close)
    with pytest.raises(InputError, match=r"model\.onnx is closed"):
        runner.refit(retrained)
    with pytest.raises(InputError, match=r"model\.onnx is closed"):
        runner(x)
