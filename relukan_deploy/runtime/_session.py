"""What the two ONNX Runtime backends share."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..bundle import Artifact
from ..errors import BundleError, InputError
from .runner import as_rows, from_graph, to_graph

__all__ = ["Level", "SessionRunner", "make_session"]

Level = Literal["ORT_DISABLE_ALL", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]


class SessionRunner:
    """A `Runner` around an `onnxruntime.InferenceSession`."""

    def __init__(self, backend: str, session: Any, artifact: Artifact, in_features: int, out_features: int) -> None:
        self.backend = backend
        self.artifact = artifact
        self.in_features = in_features
        self.out_features = out_features
        self._session = session

    def __call__(self, x: ArrayLike) -> NDArray[np.float32]:
        if self._session is None:
            raise InputError(f"this runner of {self.artifact.file} is closed: load the bundle again")
        rows = as_rows(x, self.in_features)
        if not len(rows):
            return np.empty((0, self.out_features), np.float32)
        layout, precision = self.artifact.layout, self.artifact.precision
        (y,) = self._session.run(None, {"x": to_graph(rows, layout, precision)})
        return from_graph(y, layout, precision)

    def close(self) -> None:
        self._session = None


def make_session(model: bytes, providers: list[Any], threads: int, *, level: Level = "ORT_ENABLE_ALL") -> Any:
    """An ONNX Runtime session for `model`, with its graph rewritten as far as `level` says.

    Raises:
        BundleError: ONNX Runtime cannot load the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 3  # errors; they also arrive as exceptions
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime has a dozen exceptions without a common base
        raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot load the graph: {error}") from error
