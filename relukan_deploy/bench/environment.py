"""Where and how something is measured: the machine, its GPU, versions, clocks and temperatures.

Read from what Linux and NVIDIA's driver tell anyone: no package, no privilege. What cannot be read is None.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import RelukanError
from ..gpu import find_gpu, open_device
from .results import Conditions, Environment, Gpu

__all__ = ["available_bytes", "conditions", "describe"]

_PACKAGES = (
    *("relukan-deploy", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "torch", "pykan"),
    *("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx-cu13", "cuda-core", "cuda-bindings"),
)
_ROOT = Path(__file__).parents[2]  # of the repository, where this is a checkout
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu", "x86_pkg", "soc")
_NVML = "libnvidia-ml.so.1"
_GPU_CLOCK, _MEMORY_CLOCK, _GPU_TEMPERATURE = 0, 2, 0  # of nvml.h


def describe(command: str, threads: int) -> Environment:
    """This process and its machine, as they are now.

    Args:
        command: what was typed.
        threads: of the CPU, for each contender.
    """
    return Environment(
        command=command,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        commit=_commit(_ROOT),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        gpu=_gpu(),
        versions={"python": platform.python_version(), **_versions()},
        threads=threads,
        before=conditions(),
    )


def conditions(system: Path = Path("/")) -> Conditions:
    """Load, clocks and temperatures at this moment.

    Args:
        system: where /sys and /proc are.
    """
    gpu: dict[str, float | None] = {}
    with _nvml() as nvml:
        if nvml:
            gpu = {
                "gpu_mhz": nvml.number("nvmlDeviceGetClockInfo", _GPU_CLOCK),
                "gpu_memory_mhz": nvml.number("nvmlDeviceGetClockInfo", _MEMORY_CLOCK),
                "gpu_celsius": nvml.number("nvmlDeviceGetTemperature", _GPU_TEMPERATURE),
                "gpu_watts": nvml.number("nvmlDeviceGetPowerUsage", scale=1e-3),
            }
    return Conditions(load=os.getloadavg()[0], cpu_mhz=_cpu_mhz(system), cpu_celsius=_cpu_celsius(system), **gpu)


def available_bytes(system: Path = Path("/")) -> int:
    """Memory that can be taken without swapping, within the limit of the container, if there is one."""
    lines = _text(system / "proc/meminfo").splitlines()
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    group = system / "sys/fs/cgroup"
    limit, used = (_text(group / name).strip() for name in ("memory.max", "memory.current"))
    if limit.isdigit() and used.isdigit():
        free.append(int(limit) - int(used))
    return max(0, min(free)) if free else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _commit(folder: Path) -> str | None:
    """The commit of a checkout, with "+" where the package differs from it; None where this is none."""
    if not (folder / ".git").exists():  # installed; perhaps below a checkout of something else
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=clean)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", "relukan_deploy") else "")
    except (OSError, subprocess.SubprocessError):  # no git, no commit yet, or a checkout of somebody else's
        return None


def _processor() -> str:
    names = [line.partition(":")[2] for line in _text(Path("/proc/cpuinfo")).splitlines() if line[:10] == "model name"]
    return names[0].strip() if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _cpu_mhz(system: Path) -> float | None:
    clocks = [_number(path, 1e-3) for path in system.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")]
    if not clocks:  # a virtual machine
        lines = _text(system / "proc/cpuinfo").splitlines()
        clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return max((clock for clock in clocks if clock is not None), default=None)


def _cpu_celsius(system: Path) -> float | None:
    found = [
        _number(path, 1e-3)
        for folders, kind, values in (
            ("thermal/thermal_zone*", "type", "temp"),
            ("hwmon/hwmon*", "name", "temp*_input"),
        )
        for folder in system.glob(f"sys/class/{folders}")
        if _text(folder / kind).strip().lower().startswith(_CPU_SENSORS)
        for path in folder.glob(values)
    ]
    return max((value for value in found if value is not None), default=None)


def _gpu() -> Gpu | None:
    gpu = find_gpu()
    if gpu is None:
        return None
    driver, memory = None, None
    with _nvml() as nvml:
        if nvml:
            driver, memory = nvml.driver(), nvml.memory()
    return Gpu(gpu.name, gpu.compute_capability, gpu.cuda, driver, memory)


class _Nvml:
    """NVIDIA's management library, asked about one GPU. What it does not tell is None."""

    def __init__(self, library: Any, device: ctypes.c_void_p) -> None:
        self._library, self._device = library, device

    def number(self, function: str, *kind: int, scale: float = 1.0) -> float | None:
        value = ctypes.c_uint()
        status = getattr(self._library, function)(self._device, *kind, ctypes.byref(value))
        return None if status else value.value * scale

    def driver(self) -> str | None:
        text = ctypes.create_string_buffer(80)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
        return None if self._library.nvmlSystemGetDriverVersion(text, 80) else text.value.decode("ascii", "replace")

    def memory(self) -> int | None:
        sizes = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
        return None if self._library.nvmlDeviceGetMemoryInfo(self._device, sizes) else int(sizes[0])


@contextlib.contextmanager
def _nvml() -> Iterator[_Nvml | None]:
    """NVML for the GPU that CUDA calls the first, which need not be the first of NVML; or None.

    By ctypes, since its C interface never changes, and the packages that wrap it are seldom installed.
    """
    try:
        bus = open_device().pci_bus_id
        library = ctypes.CDLL(_NVML)
    except (RelukanError, OSError):
        yield None
        return
    if library.nvmlInit_v2():
        yield None
        return
    try:
        device = ctypes.c_void_p()
        failed = library.nvmlDeviceGetHandleByPciBusId_v2(str(bus).encode(), ctypes.byref(device))
        yield None if failed else _Nvml(library, device)
    finally:
        library.nvmlShutdown()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path, scale: float) -> float | None:
    try:
        return float(_text(path)) * scale
    except ValueError:
        return None
