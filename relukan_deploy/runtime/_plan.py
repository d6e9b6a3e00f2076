"""A TensorRT engine: its execution contexts, and other weights for it.

TensorRT 8.6 to 11 and TensorRT-RTX name the same things differently; each object is asked what it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._tensorrt import Flavour, import_tensorrt, make_logger
from ..bundle import Artifact
from ..errors import BundleError, InputError, RelukanError
from ..lowering import storage_dtype
from ._cuda import Cuda
from ._graphs import preparing

__all__ = ["Plan"]

_WEIGHT_TYPES = {"fp32": "FLOAT", "tf32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}


class Plan:
    """A deserialised engine. Thread-safe; the contexts it gives are for one thread at a time.

    Args:
        flavour: the TensorRT that runs it.
        plan: the serialised engine.
        artifact: what the bundle says of it.
        in_features, out_features: sizes of a row in and out.
        cuda: the GPU; current whenever a method is called.

    Raises:
        MissingDependencyError: the TensorRT is not installed.
        BundleError: the engine is for another TensorRT or GPU.

    Attributes:
        scratch_bytes: memory on the GPU that a context needs while it runs.
    """

    def __init__(
        self, flavour: Flavour, plan: bytes, artifact: Artifact, in_features: int, out_features: int, cuda: Cuda
    ) -> None:
        self._trt: Any = import_tensorrt(flavour, "Running an engine")
        self._flavour = flavour
        self._artifact = artifact
        self._in_features = in_features
        self._out_features = out_features
        self._logger = make_logger(self._trt)
        self._runtime = self._trt.Runtime(self._logger)
        if artifact.details.get("version_compatible"):
            self._runtime.engine_host_code_allowed = True  # such a plan brings its own runtime
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._unusable(cuda.device.name)
        self._configs = self._make_configs()
        if hasattr(self._engine, "device_memory_size_v2"):
            self.scratch_bytes = int(self._engine.device_memory_size_v2)
        else:  # before 10.1
            self.scratch_bytes = int(self._engine.device_memory_size)

    def context(self, scratch: int, *, fixed: bool) -> Any:
        """A new execution context.

        Args:
            scratch: address of `scratch_bytes` that it runs in. Contexts that never run at the same
                time may share them.
            fixed: it will run one batch size only.
        """
        with preparing:
            context = self._new_context(fixed)
        if context is None:
            raise BundleError(f"{self._flavour} could not prepare {self._artifact.file} to run: {self._said()}")
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(scratch, self.scratch_bytes)
        else:  # before 10.1
            context.device_memory = scratch
        return context

    def aim(self, context: Any, rows: int, x: int, y: int) -> None:
        """Sets the batch size, and the addresses of the input and the output."""
        last = self._artifact.layout == "batch-last"
        shape = (1, self._in_features, 1, rows) if last else (rows, self._in_features, 1)
        fits = context.set_input_shape("x", shape)
        if not (fits and context.set_tensor_address("x", x) and context.set_tensor_address("y", y)):
            raise RelukanError(f"{self._flavour} does not take a batch of {rows}: {self._said()}")

    def enqueue(self, context: Any, stream: int) -> None:
        if not context.execute_async_v3(stream):
            raise RelukanError(f"{self._flavour} could not run {self._artifact.file}: {self._said()}")

    def obstacle(self, context: Any, stream: int) -> str | None:
        """Why what the context enqueues cannot be captured into a graph, as far as is known before."""
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(stream):
            return f"{self._flavour} says of {self._artifact.file} that it cannot be captured"
        return None

    def refit(self, constants: Mapping[str, NDArray[np.float64]]) -> None:
        """Replaces the weights, before any context has run.

        A constant that the engine does not know is passed over: it may have been folded away because it
        is the same in every network. Whether the answers are right is for the caller to check.

        Raises:
            InputError: the engine was not built for that, or wants other constants.
        """
        if not self._engine.refittable:
            raise InputError(
                f"the weights of {self._artifact.file} cannot be replaced: "
                "export it again with relukan-export --trt --refittable"
            )
        trt = self._trt
        refitter = trt.Refitter(self._engine, self._logger)
        dtype, type_ = storage_dtype(self._artifact.precision), _WEIGHT_TYPES[self._artifact.precision]
        known = set(refitter.get_all_weights())
        with np.errstate(over="ignore"):  # shows in the answers
            typed = {name: np.ascontiguousarray(constants[name], dtype) for name in known & set(constants)}
        refused = known - set(constants)
        for name, array in typed.items():
            weights = trt.Weights(getattr(trt.DataType, type_), array.ctypes.data, array.size)  # keeps no reference
            if not refitter.set_named_weights(name, weights):
                refused.add(name)
        if refused or not refitter.refit_cuda_engine():
            raise InputError(
                f"{self._artifact.file} does not take the new weights"
                f"{' for ' if refused else ''}{', '.join(sorted(refused))}: export the network with relukan-export "
                f"instead. {self._flavour} said: {self._said()}"
            )

    def close(self) -> None:
        """Frees the engine, after its contexts."""
        self._configs.clear()
        self._engine = self._runtime = None

    def _new_context(self, fixed: bool) -> Any:
        if self._configs[fixed] is not None:
            return self._engine.create_execution_context(self._configs[fixed])
        strategies = getattr(self._trt, "ExecutionContextAllocationStrategy", None)
        if strategies is None:  # before 10
            return self._engine.create_execution_context_without_device_memory()
        return self._engine.create_execution_context(strategies.USER_MANAGED)

    def _make_configs(self) -> dict[bool, Any]:
        """For contexts that are fixed and others, how TensorRT-RTX is to compile kernels, which it does where it runs.

        Those for a fixed batch size are ready before it first runs, and so before a graph is captured.
        Those for a size that may never come again are made in the background. Both are kept.
        """
        kinds = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        if kinds is None:  # the other TensorRTs have compiled theirs
            return {True: None, False: None}
        configs = {True: self._engine.create_runtime_config(), False: self._engine.create_runtime_config()}
        cache = configs[True].create_runtime_cache()
        for fixed, config in configs.items():
            config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER if fixed else kinds.LAZY
            config.set_runtime_cache(cache)
        return configs

    def _unusable(self, gpu: str) -> BundleError:
        artifact, built = self._artifact, self._artifact.details
        return BundleError(
            f"{artifact.file} was built by {artifact.kind} {built.get('version')} for "
            f"{built.get('gpu') or 'any GPU it supports'}, and {self._flavour} {self._trt.__version__} on {gpu} "
            f"cannot load it: build it here with relukan-export --trt. TensorRT said: {self._said()}"
        )

    def _said(self) -> str:
        """What TensorRT reported since it was last asked; in several threads, to any of them."""
        said = " ".join(self._logger.errors) or "nothing"
        self._logger.errors.clear()
        return said
