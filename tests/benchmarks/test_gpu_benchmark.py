"""What of the GPU benchmark needs no GPU."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks import gpu
from relukan_deploy.gpu import Gpu, find_gpu


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_leaves_with_4(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        gpu.main([])
    assert left.value.code == 4
    assert "python -m benchmarks.gpu: error: an engine runs on an NVIDIA GPU" in capsys.readouterr().err


def test_a_sample_tells_the_middle_the_slowest_and_the_fastest_calls() -> None:
    durations = itertools.cycle([1.0] * 4 + [5.0])
    found = gpu.sample({"a": lambda: next(durations), "b": lambda: 2.0}, rounds=20, burst=0.001)
    assert (found["a"]["p50"], found["a"]["p99"], found["a"]["best"]) == (1, 5, 1)
    assert (found["b"]["p50"], found["b"]["p99"], found["b"]["best"]) == (2, 2, 2)
    assert found["b"]["calls"] >= 20


def test_the_empty_network_gives_back_what_it_is_given() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(gpu.relu(4), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).random((1, 4, 1, 7), np.float32)
    np.testing.assert_array_equal(session.run(["y"], {"x": x})[0], x)


def test_results_lie_in_a_folder_named_after_the_gpu() -> None:
    assert gpu.slug(Gpu("NVIDIA GeForce RTX 4090 (24 GB)", "8.9", "13.0")) == "nvidia-geforce-rtx-4090-24-gb"
