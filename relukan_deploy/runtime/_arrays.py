"""Arrays that are on a GPU already: torch's and cupy's, and through them other libraries'.

What has to be converted is converted by the array's own library, on its current stream. That stream
then waits for the engine, and so does whatever the library gives the memory to next on that stream:
an array may be dropped while the engine still reads it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..bundle import Artifact
from ..errors import InputError
from ..spec import Layout

__all__ = ["Arrays", "is_on_gpu"]

Enqueue = Callable[[int, int, int, int], None]
"""Called with the number of rows, and the addresses of x, of y and of the current stream."""

_TYPES = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_ALIGNMENT = 256  # bytes; every allocation on a GPU has it, a view into one may not
_GPU_MEMORY = (2, 13)  # DLPack's kDLCUDA and kDLCUDAManaged


def is_on_gpu(x: Any) -> bool:
    """Whether x is an array in the memory of an NVIDIA GPU."""
    if isinstance(x, (np.ndarray, list, tuple)):
        return False
    if _is_of("torch", "Tensor", x):  # one with a gradient raises when asked for the interface below
        return bool(x.is_cuda)
    if hasattr(x, "__cuda_array_interface__"):
        return True
    return hasattr(x, "__dlpack_device__") and x.__dlpack_device__()[0] in _GPU_MEMORY


class Arrays:
    """Brings device arrays to an engine, and its answers back.

    Args:
        artifact: the engine in its bundle.
        in_features, out_features: sizes of a row in and out.
        gpu: the number of the GPU that it runs on.
    """

    def __init__(self, artifact: Artifact, in_features: int, out_features: int, gpu: int) -> None:
        assert artifact.batch is not None  # engines always have a profile
        self._least, _, self._most = artifact.batch
        self._layout = artifact.layout
        self._dtype = _TYPES[artifact.precision]
        self._in_features = in_features
        self._out_features = out_features
        self._gpu = gpu

    def answer(self, x: Any, out: Any, enqueue: Enqueue) -> Any:
        """The answers to x, in `out` where it is given. See `EngineBackend.run_on_device`."""
        library, taken, foreign = _take(x, "x")
        self._check(library, taken, "x", self._in_features)
        if out is None:
            target = result = self._empty(library, len(taken), self._out_features)
        else:
            result = out
            other, target, _ = _take(out, "out")
            if other is not library:
                raise InputError(f"out must be an array of {library.name}, as x is, got one of {other.name}")
            self._check(library, target, "out", self._out_features)
            if len(target) != len(taken):
                raise InputError(f"out must be {(len(taken), self._out_features)}, got {tuple(target.shape)}")
        self._fill(library, taken, target, enqueue)
        if foreign:  # nobody knows which stream its library works on
            library.wait(self._gpu)
        return result

    def _fill(self, library: _Library, x: Any, out: Any, enqueue: Enqueue) -> None:
        """Writes the answers to x into out, in as many batches as the engine needs."""
        rows = len(x)
        if rows > self._most:
            for begin in range(0, rows, self._most):
                part = slice(begin, begin + self._most)
                self._fill(library, x[part], out[part], enqueue)
        elif 0 < rows < self._least:
            filled = self._empty(library, self._least, self._in_features)
            answers = self._empty(library, self._least, self._out_features)
            library.assign(filled[:rows], x)
            self._fill(library, filled, answers, enqueue)  # of the other rows, nobody looks at the answers
            library.assign(out, answers[:rows])
        elif rows:
            source = library.ordered(x, self._dtype, self._layout)
            fits = library.is_ordered(out, self._dtype, self._layout)
            y = out if fits else self._empty(library, rows, self._out_features)
            enqueue(rows, library.address(source), library.address(y), library.stream(self._gpu))
            if not fits:
                library.assign(out, y)

    def _empty(self, library: _Library, rows: int, features: int) -> Any:
        return library.empty(rows, features, self._dtype, self._layout, self._gpu)

    def _check(self, library: _Library, array: Any, what: str, features: int) -> None:
        """Raises InputError where the array cannot be what it is given as."""
        gpu, shape = library.gpu(array), tuple(array.shape)
        if gpu != self._gpu:
            where = "in host memory" if gpu is None else f"on GPU {gpu}"
            raise InputError(f"{what} is {where}, and the engine runs on GPU {self._gpu}: move it there first")
        if not library.is_float(array):
            raise InputError(f"{what} must hold floating-point numbers, got dtype {array.dtype}")
        if self._dtype not in library.types:
            raise InputError(
                f"the engine computes in {self._dtype}, which {library.name} has not: "
                "give arrays of torch, or in host memory"
            )
        if len(shape) != 2 or shape[1] != features:
            raise InputError(f"{what} must be (batch, {features}), got {shape}")


class _Library(Protocol):
    """What is asked of a library of arrays. Arrays are ``(rows, features)`` everywhere."""

    name: str
    types: tuple[str, ...]

    def gpu(self, array: Any) -> int | None:
        """The number of the GPU that it is on; None for host memory."""

    def is_float(self, array: Any) -> bool: ...

    def address(self, array: Any) -> int: ...

    def ordered(self, array: Any, dtype: str, layout: Layout) -> Any:
        """The array as an engine reads it: itself, or a copy of that type and memory order."""

    def is_ordered(self, array: Any, dtype: str, layout: Layout) -> bool:
        """Whether an engine could read or write it as it is."""

    def empty(self, rows: int, features: int, dtype: str, layout: Layout, gpu: int) -> Any:
        """A new array that `is_ordered`."""

    def assign(self, target: Any, source: Any) -> None: ...

    def stream(self, gpu: int) -> int:
        """The address of the current stream."""

    def wait(self, gpu: int) -> None:
        """Waits for the current stream."""


class _Torch:
    name = "torch"
    types: tuple[str, ...] = ("float32", "float16", "bfloat16")

    def __init__(self) -> None:
        self._torch: Any = importlib.import_module("torch")

    def gpu(self, array: Any) -> int | None:
        return array.device.index if array.is_cuda else None

    def is_float(self, array: Any) -> bool:
        return bool(array.is_floating_point())

    def address(self, array: Any) -> int:
        return int(array.data_ptr())

    def ordered(self, array: Any, dtype: str, layout: Layout) -> Any:
        typed = array.to(getattr(self._torch, dtype))
        if not _is_aligned(self.address(typed)):
            typed = typed.clone()
        return typed.t().contiguous().t() if layout == "batch-last" else typed.contiguous()

    def is_ordered(self, array: Any, dtype: str, layout: Layout) -> bool:
        contiguous = (array.t() if layout == "batch-last" else array).is_contiguous()
        return contiguous and array.dtype == getattr(self._torch, dtype) and _is_aligned(self.address(array))

    def empty(self, rows: int, features: int, dtype: str, layout: Layout, gpu: int) -> Any:
        shape = (features, rows) if layout == "batch-last" else (rows, features)
        made = self._torch.empty(shape, dtype=getattr(self._torch, dtype), device=f"cuda:{gpu}")
        return made.t() if layout == "batch-last" else made

    def assign(self, target: Any, source: Any) -> None:
        target.copy_(source)

    def stream(self, gpu: int) -> int:
        return int(self._torch.cuda.current_stream(gpu).cuda_stream)

    def wait(self, gpu: int) -> None:
        self._torch.cuda.current_stream(gpu).synchronize()


class _Cupy:
    name = "cupy"
    types: tuple[str, ...] = ("float32", "float16")

    def __init__(self) -> None:
        self._cupy: Any = importlib.import_module("cupy")

    def gpu(self, array: Any) -> int | None:
        return int(array.device.id)

    def is_float(self, array: Any) -> bool:
        return bool(array.dtype.kind == "f")

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def ordered(self, array: Any, dtype: str, layout: Layout) -> Any:
        with array.device:  # cupy computes and allocates on its current one
            typed = array.astype(dtype, copy=not _is_aligned(self.address(array)))
            return self._cupy.asfortranarray(typed) if layout == "batch-last" else self._cupy.ascontiguousarray(typed)

    def is_ordered(self, array: Any, dtype: str, layout: Layout) -> bool:
        contiguous = array.flags.f_contiguous if layout == "batch-last" else array.flags.c_contiguous
        return bool(contiguous) and array.dtype == dtype and _is_aligned(self.address(array))

    def empty(self, rows: int, features: int, dtype: str, layout: Layout, gpu: int) -> Any:
        with self._cupy.cuda.Device(gpu):
            return self._cupy.empty((rows, features), dtype, order="F" if layout == "batch-last" else "C")

    def assign(self, target: Any, source: Any) -> None:
        with target.device:
            target[...] = source

    def stream(self, gpu: int) -> int:
        with self._cupy.cuda.Device(gpu):
            return int(self._cupy.cuda.get_current_stream().ptr)

    def wait(self, gpu: int) -> None:
        with self._cupy.cuda.Device(gpu):
            self._cupy.cuda.get_current_stream().synchronize()


_torch = functools.cache(_Torch)
_cupy = functools.cache(_Cupy)


def _take(array: Any, what: str) -> tuple[_Library, Any, bool]:
    """The library for an array, the array as that library has it, and whether it came from another one."""
    if _is_of("torch", "Tensor", array):
        return _torch(), array.detach(), False
    if _is_of("cupy", "ndarray", array):
        return _cupy(), array, False
    if not is_on_gpu(array):
        raise InputError(f"{what} is in host memory ({type(array).__name__}), expected an array on the GPU, as x is")
    dlpack = hasattr(array, "__dlpack__")
    try:
        if importlib.util.find_spec("cupy"):
            cupy = importlib.import_module("cupy")
            return _cupy(), cupy.from_dlpack(array) if dlpack else cupy.asarray(array), True
        if dlpack and importlib.util.find_spec("torch"):
            return _torch(), importlib.import_module("torch").from_dlpack(array), True
    except Exception as error:  # each library has its own for types and devices that it does not take
        raise InputError(f"{what}, a {type(array).__name__}, cannot be taken over: {error}") from error
    raise InputError(f"{what} is a {type(array).__name__}, which takes cupy: pip install it, or use torch")


def _is_of(package: str, name: str, x: Any) -> bool:
    """Whether x is an instance of that class. A package that is not imported has none."""
    module = sys.modules.get(package)
    return module is not None and isinstance(x, getattr(module, name, ()))


def _is_aligned(address: int) -> bool:
    return address % _ALIGNMENT == 0
