"""TensorRT-RTX."""

from __future__ import annotations

from typing import Literal

from ..bundle import Artifact
from ._engine import EngineBackend

__all__ = ["open_backend"]


def open_backend(
    plan: bytes, artifact: Artifact, in_features: int, out_features: int, *, threads: int | Literal["auto"] = 1
) -> EngineBackend:
    """An engine that `tensorrt_rtx` built; it finishes compiling here, on this GPU.

    Raises:
        MissingDependencyError: tensorrt_rtx or cuda-core is not installed.
        MissingDeviceError: there is no GPU or no driver.
        BundleError: the engine is for another TensorRT-RTX, or the GPU is not one it supports.
    """
    return EngineBackend("tensorrt-rtx", plan, artifact, in_features, out_features)
