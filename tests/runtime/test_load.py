"""Which backend answers, and what is said of those that do not."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relukan_deploy
from relukan_deploy.api import export
from relukan_deploy.bundle import open_bundle, write_manifest
from relukan_deploy.errors import BundleError, InputError, MissingDependencyError, MissingDeviceError, ParityError
from relukan_deploy.gpu import find_gpu
from relukan_deploy.runtime import BACKENDS, load
from relukan_deploy.spec import KanSpec

MakeSpec = Callable[..., KanSpec]

without_gpu = pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")


def test_backends_are_tried_fastest_first() -> None:
    assert list(BACKENDS) == ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu"]


def test_load_is_at_the_top_of_the_package() -> None:
    assert relukan_deploy.load is load


@without_gpu
def test_without_a_gpu_the_cpu_answers(engine_bundle_path: Path, spec: KanSpec) -> None:
    runner = load(engine_bundle_path)
    assert runner.backend == "onnxruntime-cpu"
    x = np.array([[0.1, 0.2, 0.3]], np.float32)
    np.testing.assert_allclose(runner(x), spec.evaluate(x), atol=1e-5)


@without_gpu
def test_an_engine_that_is_passed_over_is_a_warning_with_the_reason(
    engine_bundle_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(engine_bundle_path)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(f"{engine_bundle_path}: tensorrt-rtx is not used: ")
    assert "an engine runs on an NVIDIA GPU" in warning


@without_gpu
def test_what_was_chosen_and_passed_over_is_logged(bundle_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "relukan_deploy.runtime")
    load(bundle_path)
    cuda, chosen = [record.getMessage() for record in caplog.records]
    assert "onnxruntime-cuda is not used: this ONNX Runtime was built without CUDA" in cuda
    assert chosen == f"{bundle_path}: running on onnxruntime-cpu"


def test_a_graph_alone_on_a_cpu_is_no_reason_to_warn(bundle_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(bundle_path)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@without_gpu
@pytest.mark.parametrize("backend", ["tensorrt-rtx", "onnxruntime-cuda"])
def test_an_explicit_backend_fails_instead_of_falling_back(engine_bundle_path: Path, backend: str) -> None:
    with pytest.raises(MissingDeviceError):
        load(engine_bundle_path, backend=backend)


def test_an_explicit_backend_without_its_package_says_what_to_install(
    engine_bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relukan_deploy.runtime._engine.Cuda", contextlib.nullcontext)  # as if there were a GPU
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'relukan-deploy\[rtx\]'"):
        load(engine_bundle_path, backend="tensorrt-rtx")


def test_a_missing_package_is_passed_over_with_the_same_advice(
    engine_bundle_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("relukan_deploy.runtime._engine.Cuda", contextlib.nullcontext)  # as if there were a GPU
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert load(engine_bundle_path).backend.startswith("onnxruntime")
    assert "pip install 'relukan-deploy[rtx]'" in caplog.text


def test_a_backend_that_the_bundle_has_nothing_for_is_an_error(bundle_path: Path) -> None:
    with pytest.raises(InputError, match="has no tensorrt artifact for the backend tensorrt, only onnx"):
        load(bundle_path, backend="tensorrt")


def test_an_unknown_backend_is_an_error(bundle_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"backend must be auto, tensorrt, tensorrt-rtx, onnxruntime-cuda, .* got 'cpu'"
    ):
        load(bundle_path, backend="cpu")


def test_a_bundle_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        load(tmp_path)


@pytest.fixture(scope="module")
def bf16_path(spec: KanSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(spec, tmp_path_factory.mktemp("bf16") / "bundle", precision="bf16").path


def test_bf16_is_refused_on_a_cpu_with_advice(bf16_path: Path) -> None:
    with pytest.raises(InputError, match=r"no bfloat16 Conv on a CPU: export with --precision fp32"):
        load(bf16_path, backend="onnxruntime-cpu")


@without_gpu
def test_with_no_backend_left_every_reason_is_given(bf16_path: Path) -> None:
    with pytest.raises(BundleError, match=r"(?s)no backend can run .*onnxruntime-cuda: .*onnxruntime-cpu: .*bfloat16"):
        load(bf16_path)


# --- wrong answers


def test_wrong_golden_answers_are_refused(copied: Path) -> None:
    x, y = open_bundle(copied).golden()
    manifest = open_bundle(copied).manifest
    y = y.copy()
    y[5, 1] += 1e-3
    np.savez(copied / "golden.npz", x=x, y=y)
    write_manifest(copied, manifest)
    with pytest.raises(
        ParityError, match=r"model\.onnx on onnxruntime-cpu differs from the float64 reference by 0\.00"
    ):
        load(copied)


def test_another_graph_under_a_right_hash_is_refused(copied: Path, make_spec: MakeSpec, tmp_path: Path) -> None:
    manifest = open_bundle(copied).manifest
    other = export(make_spec((3, 5, 2), seed=9), tmp_path / "other").path
    (copied / "model.onnx").write_bytes((other / "model.onnx").read_bytes())
    write_manifest(copied, manifest)
    with pytest.raises(ParityError):
        load(copied)


def test_a_graph_that_is_none_is_refused(copied: Path) -> None:
    manifest = open_bundle(copied).manifest
    (copied / "model.onnx").write_bytes(b"not a graph")
    write_manifest(copied, manifest)
    with pytest.raises(BundleError, match=r"ONNX Runtime .* cannot load the graph"):
        load(copied, backend="onnxruntime-cpu")


class Wrong:
    """A backend that is off by one."""

    name = "wrong"
    closed = False

    def run(self, rows: Any) -> Any:
        return np.ones((len(rows), 2), np.float32)

    def close(self) -> None:
        self.closed = True


def test_a_wrong_answer_is_not_worked_around_by_the_next_backend(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Wrong()
    module = types.ModuleType("wrong")
    module.open_backend = lambda *_, threads: wrong  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "relukan_deploy.runtime.wrong", module)
    right = BACKENDS["onnxruntime-cpu"]
    module_of_load = sys.modules["relukan_deploy.runtime.load"]  # by that name the package has the function
    monkeypatch.setattr(module_of_load, "BACKENDS", {"wrong": ("onnx", "wrong"), "onnxruntime-cpu": right})
    with pytest.raises(ParityError, match=r"model\.onnx on wrong differs"):
        load(bundle_path)
    assert wrong.closed


NEVER_UNPICKLES = """
import sys
def refuse(event, arguments):
    if event == "pickle.find_class":
        raise AssertionError(f"unpickled {arguments}")
sys.addaudithook(refuse)
import pickle
import relukan_deploy
assert relukan_deploy.load(sys.argv[1])([[0.1, 0.2, 0.3]]).shape == (1, 2)
try:
    pickle.loads(pickle.dumps(pickle.Pickler))
except AssertionError:
    print("the hook works")
"""


@pytest.mark.slow
def test_loading_never_unpickles(bundle_path: Path) -> None:
    command = [sys.executable, "-c", NEVER_UNPICKLES, str(bundle_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "the hook works\n"
