"""TensorRT, 8.6 to 11."""

from __future__ import annotations

from ..bundle import Artifact
from ._engine import EngineRunner
from .runner import Backend

__all__ = ["open_backend"]


def open_backend(plan: bytes, artifact: Artifact, in_features: int, out_features: int, *, threads: int = 1) -> Backend:
    """An engine that `tensorrt` built.

    Raises:
        MissingDependencyError: tensorrt or cuda-core is not installed.
        MissingDeviceError: there is no GPU or no driver.
        BundleError: the engine is for another TensorRT or GPU.
    """
    return EngineRunner("tensorrt", plan, artifact, in_features, out_features)
