"""ONNX Runtime on an NVIDIA GPU."""

from __future__ import annotations

from ..bundle import Artifact
from ..errors import MissingDeviceError
from ._session import SessionRunner, make_session
from .runner import Runner

__all__ = ["open_runner"]


def open_runner(model: bytes, artifact: Artifact, in_features: int, out_features: int, *, threads: int = 1) -> Runner:
    """A runner for model.onnx on the first GPU, with TF32 off.

    Raises:
        MissingDeviceError: this ONNX Runtime has no CUDA, or CUDA did not start.
        BundleError: ONNX Runtime cannot load the graph.
    """
    import onnxruntime

    provider = "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise MissingDeviceError(
            "this ONNX Runtime was built without CUDA: replace it by "
            "pip uninstall onnxruntime && pip install 'relukan-deploy[gpu]'"
        )
    session = make_session(model, [(provider, {"use_tf32": "0"}), "CPUExecutionProvider"], threads)
    if provider not in session.get_providers():
        raise MissingDeviceError("ONNX Runtime could not start CUDA: there is no GPU, or no CUDA or cuDNN library")
    return SessionRunner("onnxruntime-cuda", session, artifact, in_features, out_features)
