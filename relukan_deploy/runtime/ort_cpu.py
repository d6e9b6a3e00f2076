"""ONNX Runtime on the CPU."""

from __future__ import annotations

from ..bundle import Artifact
from ..errors import InputError
from ._session import SessionRunner, make_session
from .runner import Runner

__all__ = ["open_runner"]


def open_runner(model: bytes, artifact: Artifact, in_features: int, out_features: int, *, threads: int = 1) -> Runner:
    """A runner for model.onnx on the CPU.

    Raises:
        InputError: the graph is bfloat16, for which ONNX Runtime has no Conv on a CPU.
        BundleError: ONNX Runtime cannot load the graph.
    """
    if artifact.precision == "bf16":
        raise InputError("ONNX Runtime has no bfloat16 Conv on a CPU: export with --precision fp32 to answer on one")
    session = make_session(model, ["CPUExecutionProvider"], threads)
    return SessionRunner("onnxruntime-cpu", session, artifact, in_features, out_features)
