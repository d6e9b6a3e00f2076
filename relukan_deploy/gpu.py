"""Which GPU is there, as NVIDIA's driver tells it."""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from typing import Any

from .errors import MissingDependencyError, MissingDeviceError, RelukanError

__all__ = ["Gpu", "find_gpu", "open_device"]

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The first GPU.

    Attributes:
        name: as the driver gives it, "NVIDIA H200".
        compute_capability: "9.0".
        cuda: the newest CUDA version the driver supports, "13.0".
    """

    name: str
    compute_capability: str
    cuda: str


def open_device() -> Any:
    """The first GPU as a `cuda.core.Device`. What was current in this thread is so again afterwards.

    Raises:
        MissingDeviceError: there is no driver or no GPU.
        MissingDependencyError: cuda-core is not installed.
    """
    try:
        ctypes.CDLL(_DRIVER)  # cheap to ask, where importing cuda-core takes 0.15 s to find it out
    except OSError as error:
        raise MissingDeviceError(
            f"an engine runs on an NVIDIA GPU, and its driver is not here: no {_DRIVER}"
        ) from error
    try:
        from cuda.core import Device
    except ImportError as error:
        raise MissingDependencyError("Running an engine", "cuda-core", "rtx") from error
    from cuda.bindings import driver

    try:
        device = Device(0)
        _, before = driver.cuCtxGetCurrent()
        device.set_current()  # until then cuda-core makes nothing on it
        driver.cuCtxSetCurrent(before)
    except Exception as error:  # no device, or a broken driver: each has an error of its own
        raise MissingDeviceError(f"an engine runs on an NVIDIA GPU, and none could be opened: {error}") from error
    return device


def find_gpu() -> Gpu | None:
    """The first GPU, or None when there is none, no driver, or no cuda-core to ask it with."""
    try:
        device = open_device()
    except RelukanError:
        return None
    from cuda.bindings import driver

    # Not cuda.core.system: it asks NVML, which a container with CUDA alone does not have.
    _, version = driver.cuDriverGetVersion()
    major, minor = device.compute_capability
    return Gpu(device.name, f"{major}.{minor}", f"{version // 1000}.{version % 1000 // 10}")
