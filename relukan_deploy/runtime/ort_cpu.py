"""ONNX Runtime on the CPU."""

from __future__ import annotations

from ..bundle import Artifact
from ..errors import InputError
from ..spec import Form
from ._session import Level, SessionRunner, make_session
from .runner import Runner

__all__ = ["level_for", "open_runner"]


def open_runner(model: bytes, artifact: Artifact, in_features: int, out_features: int, *, threads: int = 1) -> Runner:
    """A runner for model.onnx on the CPU.

    Raises:
        InputError: the graph is bfloat16, for which ONNX Runtime has no Conv on a CPU.
        BundleError: ONNX Runtime cannot load the graph.
    """
    if artifact.precision == "bf16":
        raise InputError("ONNX Runtime has no bfloat16 Conv on a CPU: export with --precision fp32 to answer on one")
    session = make_session(model, ["CPUExecutionProvider"], threads, level=level_for(artifact.form))
    return SessionRunner("onnxruntime-cpu", session, artifact, in_features, out_features)


def level_for(form: Form) -> Level:
    """How far ONNX Runtime should rewrite a graph of this form.

    All the way adds a blocked layout that pads features to 16. It speeds the direct form up at
    batch 1, and costs the quadratic form up to a third (benchmarks/forms.py).
    """
    return "ORT_ENABLE_EXTENDED" if form == "quadratic" else "ORT_ENABLE_ALL"
