"""ONNX Runtime on the CPU."""

from __future__ import annotations

import math
import os
import time
from typing import Any, Literal

import numpy as np

from ..bundle import Artifact
from ..errors import InputError
from ..spec import Form
from ._session import Level, SessionBackend, make_session
from .runner import Backend

__all__ = ["level_for", "open_backend"]

# Numbers in a layer's basis that fill a core's cache: 1 MiB of float32, the size of an L2. Measured with
# benchmarks/runner.py: large batches run up to 1.7 times as fast in parts of this size.
_CHUNK_ELEMENTS = 1 << 18
_LEAST_CHUNK_ROWS = 64
_TRIAL_ROWS = 1024
_TRIAL_SECONDS = 0.05
_WORTH_A_THREAD = 0.9  # twice the threads have to take less than this part of the time


def open_backend(
    model: bytes, artifact: Artifact, in_features: int, out_features: int, *, threads: int | Literal["auto"] = 1
) -> Backend:
    """model.onnx on the CPU.

    Raises:
        InputError: the graph is bfloat16, for which ONNX Runtime has no Conv on a CPU.
        BundleError: ONNX Runtime cannot load the graph.
    """
    if artifact.precision == "bf16":
        raise InputError("ONNX Runtime has no bfloat16 Conv on a CPU: export with --precision fp32 to answer on one")
    if threads != "auto":
        return _open(model, artifact, out_features, threads)
    best = _open(model, artifact, out_features, 1)
    seconds = _trial(best, in_features)
    for count in _powers_of_two(len(os.sched_getaffinity(0))):
        candidate = _open(model, artifact, out_features, count)
        taken = _trial(candidate, in_features)
        if taken > _WORTH_A_THREAD * seconds:
            break
        best, seconds = candidate, taken
    return best


def level_for(form: Form) -> Level:
    """How far ONNX Runtime should rewrite a graph of this form.

    All the way adds a blocked layout that pads features to 16. It speeds the direct form up at
    batch 1, and costs the quadratic form up to a third (benchmarks/forms.py), the grouped ones a tenth.
    """
    return "ORT_ENABLE_ALL" if form.startswith("direct") else "ORT_ENABLE_EXTENDED"


def _open(model: bytes, artifact: Artifact, out_features: int, threads: int) -> SessionBackend:
    def make(model: bytes) -> Any:
        return make_session(model, ["CPUExecutionProvider"], threads, level=level_for(artifact.form))

    chunk = _chunk_rows(artifact) * threads
    return SessionBackend("onnxruntime-cpu", make, model, artifact, out_features, chunk=chunk)


def _chunk_rows(artifact: Artifact) -> int:
    """How many rows fill the cache: the widest layer's in · K decides."""
    return max(_LEAST_CHUNK_ROWS, _CHUNK_ELEMENTS // widest_layer(artifact))


def widest_layer(artifact: Artifact) -> int:
    """How many numbers the widest layer makes of a row: its in · K, the inputs of its last Conv."""
    weights = (shape for name, shape in artifact.constants.items() if name.endswith("/weight"))
    return max((math.prod(shape[1:]) for shape in weights), default=1)


def _powers_of_two(most: int) -> list[int]:
    """2, 4, … up to `most`."""
    return [1 << exponent for exponent in range(1, most.bit_length())]


def _trial(backend: SessionBackend, in_features: int) -> float:
    """Seconds for a batch, the best of those that fit into the time for a trial."""
    rows = np.random.default_rng(0).random((_TRIAL_ROWS, in_features), np.float32)
    backend.run(rows)
    best, end = math.inf, time.perf_counter() + _TRIAL_SECONDS
    while time.perf_counter() < end:
        begin = time.perf_counter()
        backend.run(rows)
        best = min(best, time.perf_counter() - begin)
    return best
