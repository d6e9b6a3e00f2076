"""What the two ONNX Runtime backends share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..bundle import Artifact
from ..errors import BundleError, MissingDependencyError, RelukanError
from ..lowering import storage_dtype
from .runner import Backend, Rows, from_graph, parts, to_graph

__all__ = ["Level", "SessionBackend", "make_session"]

Level = Literal["ORT_DISABLE_ALL", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]
_MOST_BOUND_ROWS = 32  # up to here, binding buffers once saves a notable part of the call


class SessionBackend:
    """A `Backend` around an `onnxruntime.InferenceSession`.

    Args:
        name: of the backend.
        make: opens a session for a serialised model.
        model: the model.
        artifact: what is known of it.
        out_features: the network's outputs.
        chunk: rows that are run at once; larger batches are cut up. None runs all at once.

    Attributes:
        chunk: as given.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[bytes], Any],
        model: bytes,
        artifact: Artifact,
        out_features: int,
        *,
        chunk: int | None = None,
    ) -> None:
        self.name = name
        self._make = make
        self._model = model
        self._artifact = artifact
        self._out_features = out_features
        self.chunk = chunk
        self._session = make(model)
        self._idle: dict[int, list[_Bound]] = {}

    def run(self, rows: Rows) -> Rows:
        try:
            return self._run(rows)
        except Exception as error:  # onnxruntime has a dozen exceptions without a common base
            raise RelukanError(f"ONNX Runtime could not run {self._artifact.file}: {error}") from error

    def _run(self, rows: Rows) -> Rows:
        count = len(rows)
        if 0 < count <= _MOST_BOUND_ROWS and self._artifact.precision == "fp32":
            return self._run_bound(rows)
        if self.chunk is None or count <= self.chunk:
            return self._run_whole(rows)
        result = np.empty((count, self._out_features), np.float32)
        for part in parts(count, self.chunk):
            result[part] = self._run_whole(rows[part])
        return result

    def with_constants(self, constants: Mapping[str, NDArray[np.float64]]) -> Backend:
        # Not SessionOptions.add_initializer: at its highest level, optimisation still reads the model's own.
        model = _replace_constants(self._model, constants, storage_dtype(self._artifact.precision))
        return SessionBackend(self.name, self._make, model, self._artifact, self._out_features, chunk=self.chunk)

    def close(self) -> None:
        self._idle.clear()

    def _run_whole(self, rows: Rows) -> Rows:
        if not len(rows):
            return np.empty((0, self._out_features), np.float32)
        layout, precision = self._artifact.layout, self._artifact.precision
        (y,) = self._session.run(["y"], {"x": to_graph(rows, layout, precision)})
        return from_graph(y, layout, precision)

    def _run_bound(self, rows: Rows) -> Rows:
        idle = self._idle.get(len(rows))
        if idle is None:
            idle = self._idle.setdefault(len(rows), [])
        try:
            bound = idle.pop()  # lists are thread-safe: no two threads get the same
        except IndexError:
            bound = _Bound(self._session, self._artifact, rows.shape, self._out_features)
        y = bound.run(rows)
        idle.append(bound)
        return y


class _Bound:
    """Buffers for one batch size, bound to a session once instead of on every call. Float32 only."""

    def __init__(self, session: Any, artifact: Artifact, shape: tuple[int, ...], out_features: int) -> None:
        batch, in_features = shape
        last = artifact.layout == "batch-last"
        x = np.empty((1, in_features, 1, batch) if last else (batch, in_features, 1), np.float32)
        y = np.empty((1, out_features, 1, batch) if last else (batch, out_features, 1), np.float32)
        self._x = x[0, :, 0, :].T if last else x[:, :, 0]  # (batch, in), and it keeps the buffer alive
        self._y = y[0, :, 0, :].T if last else y[:, :, 0]  # (batch, out)
        self._run = session.run_with_iobinding
        self._binding = session.io_binding()
        self._binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
        self._binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)

    def run(self, rows: Rows) -> Rows:
        self._x[...] = rows
        self._run(self._binding)
        y: Rows = self._y.copy("C")
        return y


def make_session(
    model: bytes,
    providers: list[Any],
    threads: int,
    *,
    level: Level = "ORT_ENABLE_ALL",
) -> Any:
    """An ONNX Runtime session for `model`, with its graph rewritten as far as `level` says.

    Args:
        model: a serialised ONNX model.
        providers: of ONNX Runtime, best first.
        threads: in one operator.
        level: of ONNX Runtime's optimisation.

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


def _replace_constants(model: bytes, constants: Mapping[str, NDArray[np.float64]], dtype: np.dtype[Any]) -> bytes:
    """The model with other constants, of the shapes it has now."""
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError("Replacing the weights of a graph", "onnx", "export") from error
    proto = onnx.load_from_string(model)
    for initializer in proto.graph.initializer:
        with np.errstate(over="ignore"):  # shows in the answers to the golden inputs
            initializer.raw_data = np.ascontiguousarray(constants[initializer.name]).astype(dtype).tobytes()
    data: bytes = proto.SerializeToString()
    return data
