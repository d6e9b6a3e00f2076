"""The GPU that engines run on.

Streams, events and memory are cuda-core's. What it does not offer is asked of the driver: putting
back the context that was current, ordering other libraries' streams, ending a capture that failed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RelukanError
from ..gpu import open_device

__all__ = ["Cuda", "Staging"]


class Cuda:
    """The first GPU. ``with cuda:`` makes it current in this thread, and then again what was before.

    CUDA's current device belongs to the calling thread, and so to the caller. Every other method is
    called within such a block. Streams are given by their addresses.

    Raises:
        MissingDeviceError, MissingDependencyError: as `open_device` does.

    Attributes:
        device: the `cuda.core.Device`, for its streams, events and memory.
    """

    def __init__(self) -> None:
        self.device: Any = open_device()
        from cuda.bindings import driver

        self._driver = driver
        self._context = _check(driver.cuDevicePrimaryCtxRetain(self.device.device_id))

    def __enter__(self) -> Cuda:
        _check(self._driver.cuCtxPushCurrent(self._context))
        return self

    def __exit__(self, *_: object) -> None:
        _check(self._driver.cuCtxPopCurrent())

    def free_bytes(self) -> int:
        """Memory of the GPU that nobody has taken."""
        return int(_check(self._driver.cuMemGetInfo()))

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Enqueues a copy of `size` bytes between the GPU and pinned memory."""
        _check(self._driver.cuMemcpyAsync(target, source, size, stream))

    def order(self, first: int, then: int, event: int) -> None:
        """What stream `then` is given from now on waits for what stream `first` holds now.

        The event's address is free for other uses after the call.
        """
        _check(self._driver.cuEventRecord(event, first))
        _check(self._driver.cuStreamWaitEvent(then, event, 0))

    def is_capturing(self, stream: int) -> bool:
        """Whether what the stream is given goes into somebody's graph instead of being run."""
        state = _check(self._driver.cuStreamIsCapturing(stream))
        return bool(state != self._driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)

    def capture(self, enqueue: Callable[[], None], stream: int) -> Any:
        """What `enqueue` gives the stream, as a graph that can be launched. Nothing is run.

        Raises:
            RelukanError: something in it cannot be captured. The stream can be used as before.
        """
        driver = self._driver
        # Only this thread is held to what a capture allows; others go on allocating meanwhile.
        _check(driver.cuStreamBeginCapture(stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
        try:
            enqueue()
        except BaseException:
            status, graph = driver.cuStreamEndCapture(stream)
            if not status:
                driver.cuGraphDestroy(graph)
            raise
        graph = _check(driver.cuStreamEndCapture(stream))
        try:
            return _check(driver.cuGraphInstantiate(graph, 0))
        finally:
            _check(driver.cuGraphDestroy(graph))

    def launch(self, graph: Any, stream: int) -> None:
        _check(self._driver.cuGraphLaunch(graph, stream))

    def forget(self, graph: Any) -> None:
        """Frees a graph; one that is running is finished first."""
        _check(self._driver.cuGraphExecDestroy(graph))


class Staging:
    """As much pinned memory as memory on the GPU. Made and closed within ``with cuda:``.

    Attributes:
        bytes: the pinned memory, as an array.
        host, device: addresses.
    """

    def __init__(self, cuda: Cuda, stream: Any, size: int) -> None:
        from cuda.core import LegacyPinnedMemoryResource

        self._pinned = LegacyPinnedMemoryResource().allocate(size)
        self._memory = cuda.device.allocate(size, stream=stream)
        self.host, self.device = int(self._pinned.handle), int(self._memory.handle)
        # By its address and not by DLPack, whose arrays numpy makes read-only in some versions.
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.host))

    def close(self) -> None:
        del self.bytes
        self._memory.close()
        self._pinned.close()


def _check(result: tuple[Any, ...]) -> Any:
    """What a function of the driver returns besides its status."""
    status, *values = result
    if status:
        raise RelukanError(f"the GPU's driver says {status.name}")
    return values[0] if values else None
