"""ONNX Runtime on an NVIDIA GPU."""

from __future__ import annotations

from typing import Any, Literal

from ..bundle import Artifact
from ..errors import MissingDeviceError
from ._session import SessionBackend, make_session
from .runner import Backend

__all__ = ["open_backend", "open_session", "require_cuda"]

_PROVIDER = "CUDAExecutionProvider"


def open_backend(
    model: bytes, artifact: Artifact, in_features: int, out_features: int, *, threads: int | Literal["auto"] = 1
) -> Backend:
    """model.onnx on the first GPU, with TF32 off.

    Raises:
        MissingDeviceError: this ONNX Runtime has no CUDA, or CUDA did not start.
        BundleError: ONNX Runtime cannot load the graph.
    """
    require_cuda()
    return SessionBackend("onnxruntime-cuda", open_session, model, artifact, out_features)


def open_session(model: bytes) -> Any:
    """A session of ONNX Runtime for a serialised model, on the first GPU, with TF32 off.

    Raises:
        MissingDeviceError: CUDA did not start.
        BundleError: ONNX Runtime cannot load the graph.
    """
    session = make_session(model, [(_PROVIDER, {"use_tf32": "0"}), "CPUExecutionProvider"], 1)
    if _PROVIDER not in session.get_providers():
        raise MissingDeviceError("ONNX Runtime could not start CUDA: there is no GPU, or no CUDA or cuDNN library")
    return session


def require_cuda() -> None:
    """Raises MissingDeviceError: this ONNX Runtime has no CUDA."""
    import onnxruntime

    if _PROVIDER not in onnxruntime.get_available_providers():
        raise MissingDeviceError(
            "this ONNX Runtime was built without CUDA: replace it by "
            "pip uninstall onnxruntime && pip install 'relukan-deploy[gpu]'"
        )
