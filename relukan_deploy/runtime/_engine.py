"""What the two TensorRT backends share: one execution context, its stream and its buffers.

Device memory and streams come from cuda-core, NVIDIA's own, so neither torch nor pycuda is needed.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._tensorrt import Flavour, import_tensorrt, make_logger
from ..bundle import Artifact
from ..errors import BundleError, InputError
from ..gpu import open_device
from .runner import as_rows, element_dtype, from_graph, parts, to_graph

__all__ = ["EngineRunner"]


class EngineRunner:
    """A `Runner` around a TensorRT engine.

    Larger batches than the engine's largest are cut into several, smaller ones than its smallest
    are filled up.
    """

    def __init__(self, backend: Flavour, plan: bytes, artifact: Artifact, in_features: int, out_features: int) -> None:
        assert artifact.batch is not None  # engines always have a profile
        self.name: str = backend
        self.artifact = artifact
        self.in_features = in_features
        self.out_features = out_features
        self._least, _, self._most = artifact.batch
        self._device = open_device()
        trt = import_tensorrt(backend, "Running an engine")
        self._stream = self._device.create_stream()
        self._logger = make_logger(trt)
        runtime = trt.Runtime(self._logger)
        if artifact.details.get("version_compatible"):
            runtime.engine_host_code_allowed = True  # such a plan brings its own runtime
        self._engine: Any = runtime.deserialize_cuda_engine(plan)
        self._context: Any = self._engine.create_execution_context() if self._engine else None
        if self._context is None:
            built = artifact.details
            raise BundleError(
                f"{artifact.file} was built by {artifact.kind} {built.get('version')} for "
                f"{built.get('gpu') or 'any GPU it supports'}, and {backend} {trt.__version__} on {self._device.name} "
                "cannot load it: build it here with relukan-export --trt. "
                f"TensorRT said: {' '.join(self._logger.errors) or 'nothing'}"
            )
        itemsize = element_dtype(artifact.precision).itemsize
        self._input = _Staging(self._device, self._stream, self._most * in_features * itemsize)
        self._output = _Staging(self._device, self._stream, self._most * out_features * itemsize)

    def run(self, x: ArrayLike) -> NDArray[np.float32]:
        if self._context is None:
            raise InputError(f"this runner of {self.artifact.file} is closed: load the bundle again")
        rows = as_rows(x, self.in_features)
        result = np.empty((len(rows), self.out_features), np.float32)
        self._device.set_current()  # CUDA's current device belongs to the calling thread
        for part in parts(len(rows), self._most):
            result[part] = self._run(rows[part])
        return result

    def _run(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        count = len(rows)
        if count < self._least:
            rows = np.concatenate([rows, np.repeat(rows[-1:], self._least - count, axis=0)])
        layout, precision = self.artifact.layout, self.artifact.precision
        value = to_graph(rows, layout, precision)
        shape = (1, self.out_features, 1, len(rows)) if layout == "batch-last" else (len(rows), self.out_features, 1)

        self._input.host(value.shape, value.dtype)[...] = value
        self._input.to_device(value.nbytes)
        self._logger.errors.clear()
        fits = self._context.set_input_shape("x", value.shape)
        self._context.set_tensor_address("x", self._input.address)
        self._context.set_tensor_address("y", self._output.address)
        if not (fits and self._context.execute_async_v3(int(self._stream.handle))):
            raise BundleError(f"{self.name} could not run a batch of {len(rows)}: " + " ".join(self._logger.errors))
        self._output.to_host(int(np.prod(shape)) * value.itemsize)
        self._stream.sync()
        return from_graph(self._output.host(shape, value.dtype), layout, precision)[:count]

    def with_constants(self, constants: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        if self._context is None:
            return
        self._device.set_current()
        self._context = self._engine = None
        self._input.close()
        self._output.close()
        self._stream.close()


class _Staging:
    """A pinned host buffer and a device buffer of the same size, and copies between them."""

    def __init__(self, device: Any, stream: Any, size: int) -> None:
        from cuda.core import LegacyPinnedMemoryResource

        self._stream = stream
        self._host = LegacyPinnedMemoryResource().allocate(size)
        self._device = device.allocate(size, stream=stream)
        # By its address and not by DLPack, whose arrays numpy makes read-only in some versions.
        memory = (ctypes.c_uint8 * size).from_address(int(self._host.handle))
        self._bytes: NDArray[np.uint8] = np.ctypeslib.as_array(memory)
        self.address = int(self._device.handle)

    def host(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The first bytes of the host buffer, as an array."""
        return self._bytes[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)

    def to_device(self, size: int) -> None:
        self._part(self._device, size).copy_from(self._part(self._host, size), stream=self._stream)

    def to_host(self, size: int) -> None:
        self._part(self._host, size).copy_from(self._part(self._device, size), stream=self._stream)

    def _part(self, buffer: Any, size: int) -> Any:
        from cuda.core import Buffer

        return buffer if size == buffer.size else Buffer.from_handle(buffer.handle, size, owner=buffer)

    def close(self) -> None:
        del self._bytes
        self._device.close()
        self._host.close()
