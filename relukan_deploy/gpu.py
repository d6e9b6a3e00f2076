"""Which GPU is there, as NVIDIA's driver tells it."""

from __future__ import annotations

import dataclasses

__all__ = ["Gpu", "find_gpu"]


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


def find_gpu() -> Gpu | None:
    """The first GPU, or None when there is none, no driver, or no cuda-core to ask it with."""
    try:
        from cuda.bindings import driver
        from cuda.core import Device

        device = Device(0)
        device.set_current()
        major, minor = device.compute_capability
        # Not cuda.core.system: it asks NVML, which a container with CUDA alone does not have.
        error, version = driver.cuDriverGetVersion()
        if error != driver.CUresult.CUDA_SUCCESS:
            return None
    except Exception:  # missing package, missing driver, no device: each has errors of its own
        return None
    return Gpu(device.name, f"{major}.{minor}", f"{version // 1000}.{version % 1000 // 10}")
