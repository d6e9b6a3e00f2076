"""ONNX Runtime's backend: parts that fit the cache, bound buffers, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from relukan_deploy.api import export
from relukan_deploy.bundle import open_bundle
from relukan_deploy.errors import InputError
from relukan_deploy.runtime import Runner, load, ort_cpu
from relukan_deploy.runtime._session import SessionBackend
from relukan_deploy.runtime.runner import to_graph
from relukan_deploy.spec import KanSpec, Layout

MakeSpec = Callable[..., KanSpec]

CPU = "onnxruntime-cpu"


def backend_of(runner: Runner) -> SessionBackend:
    assert runner._running is not None
    backend, _ = runner._running
    assert isinstance(backend, SessionBackend)
    return backend


@pytest.fixture(scope="module", params=get_args(Layout))
def runner(request: pytest.FixtureRequest, spec: KanSpec, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    folder = tmp_path_factory.mktemp("session") / "bundle"
    return load(export(spec, folder, layout=request.param), backend=CPU)


@pytest.fixture(scope="module")
def x() -> NDArray[np.float32]:
    return np.random.default_rng(3).uniform(-1, 2, (5000, 3)).astype(np.float32)


# --- parts


def test_a_batch_in_parts_is_answered_as_one(runner: Runner, spec: KanSpec, x: NDArray[Any]) -> None:
    backend = backend_of(runner)
    for chunk in (64, 333, 4999, 5000):
        backend.chunk = chunk
        np.testing.assert_allclose(backend.run(x), spec.evaluate(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("widths", "rows"),
    [((4, 64, 64, 1), 512), ((300, 2), 2**18 // 2400), ((3, 5, 2), 2**18 // 40), ((5000, 1), 64)],
    ids=str,
)
def test_a_part_fills_a_mebibyte_with_the_widest_basis(
    make_spec: MakeSpec, tmp_path: Path, widths: tuple[int, ...], rows: int
) -> None:
    bundle = export(make_spec(widths), tmp_path / "bundle", tolerance=1e-3)
    (artifact,) = bundle.manifest.artifacts
    assert ort_cpu._chunk_rows(artifact) == rows


# --- bound buffers


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33])
def test_answers_do_not_depend_on_buffers_being_bound(runner: Runner, x: NDArray[Any], rows: int) -> None:
    backend = backend_of(runner)
    np.testing.assert_array_equal(backend.run(x[:rows]), backend._run_whole(x[:rows]))


def test_bound_buffers_are_used_again(runner: Runner, x: NDArray[Any]) -> None:
    backend = backend_of(runner)
    for _ in range(50):
        runner(x[:4])
    assert len(backend._idle[4]) == 1


def test_an_answer_does_not_share_the_bound_buffer(runner: Runner, x: NDArray[Any]) -> None:
    first = runner(x[:4])
    kept = first.copy()
    first += 1
    np.testing.assert_array_equal(runner(x[:4]), kept)


@pytest.mark.parametrize("rows", [1, 7, 200])
def test_threads_get_their_own_answers(runner: Runner, spec: KanSpec, x: NDArray[Any], rows: int) -> None:
    wrong: list[float] = []

    def ask(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(60):
            begin = generator.integers(0, len(x) - rows)
            part = x[begin : begin + rows]
            error = np.abs(runner(part) - spec.evaluate(part)).max()
            if error > 1e-5:
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- memory order


def test_feature_major_rows_reach_a_batch_last_graph_without_a_copy(x: NDArray[Any]) -> None:
    feature_major = np.asfortranarray(x)
    assert np.shares_memory(to_graph(feature_major, "batch-last", "fp32"), feature_major)
    assert np.shares_memory(to_graph(x, "batch-major", "fp32"), x)


# --- threads


@pytest.mark.parametrize("threads", ["auto", 2])
def test_the_number_of_threads_does_not_change_the_answers(
    bundle_path: Path, spec: KanSpec, x: NDArray[Any], threads: Any
) -> None:
    runner = load(bundle_path, backend=CPU, threads=threads)
    np.testing.assert_allclose(runner(x), spec.evaluate(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 1.0, 2: 0.5, 4: 0.25, 8: 0.125}, 8),
        ({1: 1.0, 2: 0.6, 4: 0.58, 8: 0.1}, 2),
        ({1: 1.0, 2: 0.95, 4: 0.1, 8: 0.1}, 1),
    ],
)
def test_auto_doubles_the_threads_while_that_pays(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], chosen: int
) -> None:
    opened: dict[Any, int] = {}
    whole = ort_cpu._open

    def remember(model: bytes, artifact: Any, out_features: int, threads: int) -> SessionBackend:
        backend = whole(model, artifact, out_features, threads)
        opened[backend] = threads
        return backend

    monkeypatch.setattr(ort_cpu, "_open", remember)
    monkeypatch.setattr(ort_cpu, "_trial", lambda backend, in_features: seconds[opened[backend]])
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(8))
    bundle = open_bundle(bundle_path)
    (artifact,) = bundle.manifest.artifacts
    best = ort_cpu.open_backend(bundle.contents["model.onnx"], artifact, 3, 2, threads="auto")
    assert opened[best] == chosen


@pytest.mark.parametrize("threads", [0, -1, 1.5, "many", None])
def test_no_number_of_threads_is_refused(bundle_path: Path, threads: Any) -> None:
    with pytest.raises(InputError, match="threads must be 'auto' or at least 1, got"):
        load(bundle_path, threads=threads)
