"""Fresh processes up to their first answer. What they take is measured here, and never asserted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from relukan_deploy.bench.startup import cold_starts, first_answer
from relukan_deploy.bundle import open_bundle
from relukan_deploy.errors import BundleError, InputError, RelukanError
from relukan_deploy.gpu import find_gpu

pytestmark = pytest.mark.slow


def test_a_cold_start_is_the_median_of_fresh_processes(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [
        (9.0, 9.0, 9.0, 9.0, 9, None),
        (1.0, 4.0, 7.0, 0.0, 10, 6),
        (3.0, 6.0, 9.0, 0.0, 30, 2),
        (2, 5, 8, 0, 20, 4),
    ]
    numbers = iter(taken)
    from relukan_deploy.bench import startup

    monkeypatch.setattr(startup, "first_answer", lambda *_, **__: startup.FirstAnswer(*next(numbers)))
    (found,) = cold_starts(bundle_path, ["onnxruntime-cpu"], runs=3)
    assert (found.import_seconds, found.load_seconds, found.first_seconds) == (2, 5, 8)
    assert (found.host_bytes, found.device_bytes) == (20, 4)


def test_a_process_tells_what_it_took(bundle_path: Path) -> None:
    (found,) = cold_starts(bundle_path, ["onnxruntime-cpu"], runs=1)
    assert (found.engine, found.environment, found.file) == ("onnxruntime-cpu", 0, "model.onnx")
    assert found.file_bytes == (bundle_path / "model.onnx").stat().st_size
    assert found.build_seconds is None
    assert found.device_bytes is None
    assert min(found.import_seconds, found.load_seconds, found.first_seconds) > 0
    assert 10e6 < found.host_bytes < 1e9  # bytes, not KiB


def test_what_this_process_holds_is_not_counted(bundle_path: Path) -> None:
    held = np.ones(400 << 17)  # 400 MiB
    assert first_answer(bundle_path, "onnxruntime-cpu").host_bytes < held.nbytes


def test_parts_add_up_to_less_than_the_process(bundle_path: Path) -> None:
    found = first_answer(bundle_path, "auto")
    assert found.import_seconds + found.load_seconds + found.first_seconds < found.process_seconds


def test_an_engine_tells_how_long_it_was_built(engine_bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from relukan_deploy.bench import startup

    monkeypatch.setattr(startup, "first_answer", lambda *_, **__: startup.FirstAnswer(1, 1, 1, 1, 1, 5))
    (found,) = cold_starts(engine_bundle_path, ["tensorrt-rtx"], runs=1)
    details = open_bundle(engine_bundle_path).manifest.artifacts[1].details
    assert (found.file, found.build_seconds, found.device_bytes) == ("model.engine", details["build_seconds"], 5)


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
def test_an_error_of_the_process_is_passed_on(engine_bundle_path: Path) -> None:
    with pytest.raises(RelukanError, match=r"left with exit code 1: an engine runs on an NVIDIA GPU, and its driver"):
        first_answer(engine_bundle_path, "tensorrt-rtx")


def test_a_python_without_the_package_is_an_error_of_ours(bundle_path: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # no site-packages
    python.chmod(0o755)
    with pytest.raises(RelukanError, match=f"a fresh process of {python} left with exit code 1: .*No module named"):
        first_answer(bundle_path, "onnxruntime-cpu", python=str(python))


def test_what_a_python_prints_as_it_starts_is_no_answer(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('[1, 2, 3, 4]', flush=True)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert first_answer(bundle_path, "onnxruntime-cpu").host_bytes > 10e6


def test_what_is_no_bundle_or_has_nothing_for_a_backend_says_so(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        cold_starts(tmp_path, ["onnxruntime-cpu"])
    with pytest.raises(InputError, match="has no tensorrt artifact for the backend tensorrt"):
        cold_starts(bundle_path, ["tensorrt"])
