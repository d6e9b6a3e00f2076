"""TensorRT, 8.6 to 11."""

from __future__ import annotations

from typing import Literal

from ..bundle import Artifact
from ._engine import EngineBackend

__all__ = ["open_backend"]


def open_backend(
    plan: bytes, artifact: Artifact, in_features: int, out_features: int, *, threads: int | Literal["auto"] = 1
) -> EngineBackend:
    """An engine that `tensorrt` built.

    Raises:
        MissingDependencyError: tensorrt or cuda-core is not installed.
        MissingDeviceError: there is no GPU or no driver.
        BundleError: the engine is for another TensorRT or GPU.
    """
    return EngineBackend("tensorrt", plan, artifact, in_features, out_features)
