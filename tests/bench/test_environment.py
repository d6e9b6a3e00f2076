"""What is said of the machine, against trees of files and a driver's library made for the test."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest

from relukan_deploy.bench import environment
from relukan_deploy.bench.environment import _commit, available_bytes, conditions, describe
from relukan_deploy.errors import MissingDeviceError
from relukan_deploy.gpu import Gpu, find_gpu

NVML = """
#include <stdint.h>
#include <string.h>
typedef struct { int tag; } device;
static device it = { 77 };
static int open;
int nvmlInit_v2(void) { return open++; }
int nvmlShutdown(void) { open--; return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, device **found) {
    *found = &it;
    return !open || strcmp(bus, "0000:3b:00.0");
}
int nvmlDeviceGetClockInfo(device *d, int kind, unsigned *mhz) { *mhz = kind == 0 ? 1980 : 2619; return d->tag != 77; }
int nvmlDeviceGetTemperature(device *d, int sensor, unsigned *celsius) { *celsius = 41; return d->tag != 77 || sensor; }
int nvmlDeviceGetPowerUsage(device *d, unsigned *milliwatts) { (void)d; (void)milliwatts; return 3; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { strncpy(text, "580.95.05", length); return 0; }
int nvmlDeviceGetMemoryInfo(device *d, unsigned long long *sizes) {
    sizes[0] = 150754820096ULL; sizes[1] = sizes[2] = 1;
    return d->tag != 77;
}
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


# --- the machine


def test_this_machine_is_described() -> None:
    found = describe("relukan-bench bundle", 3)
    assert (found.command, found.threads) == ("relukan-bench bundle", 3)
    assert datetime.datetime.fromisoformat(found.date).utcoffset() == datetime.timedelta(0)
    assert (found.cores, found.architecture) == (os.cpu_count(), platform.machine())
    assert found.memory_bytes > 1 << 28
    assert found.processor
    assert found.versions["python"] == platform.python_version()
    assert found.versions["numpy"] == numpy.__version__
    assert "hypothesis" not in found.versions
    assert found.before.load is not None


def test_the_fastest_core_and_the_hottest_sensor_of_the_processor_count(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    write(tmp_path, {
        f"{cpu}/cpu0/cpufreq/scaling_cur_freq": "1800000\n",
        f"{cpu}/cpu11/cpufreq/scaling_cur_freq": "4350000\n",
        f"{cpu}/cpufreq/policy0/scaling_cur_freq": "9000000\n",
        "sys/class/hwmon/hwmon0/name": "nvme\n",
        "sys/class/hwmon/hwmon0/temp1_input": "81000\n",
        "sys/class/hwmon/hwmon1/name": "k10temp\n",
        "sys/class/hwmon/hwmon1/temp1_input": "48125\n",
        "sys/class/hwmon/hwmon1/temp3_input": "55500\n",
        "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
        "sys/class/thermal/thermal_zone0/temp": "51000\n",
        "sys/class/thermal/thermal_zone1/type": "iwlwifi_1\n",
        "sys/class/thermal/thermal_zone1/temp": "99000\n",
    })  # fmt: skip
    found = conditions(tmp_path)
    assert (found.cpu_mhz, found.cpu_celsius) == (4350.0, 55.5)


def test_a_virtual_machine_tells_its_clock_in_cpuinfo(tmp_path: Path) -> None:
    write(tmp_path, {"proc/cpuinfo": "processor\t: 0\ncpu MHz\t\t: 2596.1\n\nprocessor\t: 1\ncpu MHz\t\t: 2600.5\n"})
    assert conditions(tmp_path).cpu_mhz == 2600.5


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    write(tmp_path, {
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": "",
    })  # fmt: skip
    found = conditions(tmp_path)
    assert (found.cpu_mhz, found.cpu_celsius) == (None, None)


def test_available_memory_is_what_the_machine_and_the_container_have_left(tmp_path: Path) -> None:
    write(tmp_path, {"proc/meminfo": "MemTotal: 16000 kB\nMemFree: 1 kB\nMemAvailable: 8000 kB\n"})
    assert available_bytes(tmp_path) == 8000 * 1024
    write(tmp_path, {"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "1000\n"})
    assert available_bytes(tmp_path) == 8000 * 1024
    write(tmp_path, {"sys/fs/cgroup/memory.max": "5000\n"})
    assert available_bytes(tmp_path) == 4000


def test_available_memory_is_known_where_nothing_is_told(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) > 1 << 20


# --- the commit


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if not shutil.which("git"):
        pytest.skip("no git here")
    write(tmp_path, {"relukan_deploy/a.py": "1\n", "README.md": "text\n"})
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_the_commit_of_a_checkout(checkout: Path) -> None:
    assert _commit(checkout) == git(checkout, "rev-parse", "HEAD")


@pytest.mark.parametrize("name", ["a.py", "new.py"])
def test_a_changed_or_new_file_of_the_package_adds_a_plus(checkout: Path, name: str) -> None:
    (checkout / "relukan_deploy" / name).write_text("2\n")
    assert _commit(checkout) == git(checkout, "rev-parse", "HEAD") + "+"


def test_a_changed_file_beside_the_package_does_not(checkout: Path) -> None:
    (checkout / "README.md").write_text("results\n")
    assert _commit(checkout) == git(checkout, "rev-parse", "HEAD")


def test_the_environment_of_a_git_hook_does_not_mislead(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    found = _commit(checkout)
    monkeypatch.delenv("GIT_DIR")
    assert found == git(checkout, "rev-parse", "HEAD")


def test_an_installed_package_has_no_commit_even_below_a_checkout(checkout: Path) -> None:
    folder = checkout / "venv" / "lib" / "site-packages"
    folder.mkdir(parents=True)
    assert _commit(folder) is None


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert _commit(checkout) is None


def test_a_repository_without_a_commit_has_none(tmp_path: Path) -> None:
    if not shutil.which("git"):
        pytest.skip("no git here")
    git(tmp_path, "init", "-q")
    assert _commit(tmp_path) is None


# --- the GPU


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
def test_without_a_gpu_nothing_is_said_of_one() -> None:
    assert describe("", 1).gpu is None
    found = conditions()
    assert (found.gpu_mhz, found.gpu_memory_mhz, found.gpu_celsius, found.gpu_watts) == (None,) * 4


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A library with NVML's C interface, and a GPU on the bus 0000:3b:00.0 whose power is not told."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "nvml.c")], check=True)
    device = SimpleNamespace(pci_bus_id="0000:3b:00.0")
    monkeypatch.setattr(environment, "_NVML", str(library))
    monkeypatch.setattr(environment, "open_device", lambda: device)
    monkeypatch.setattr(environment, "find_gpu", lambda: Gpu("NVIDIA H200", "9.0", "13.0"))
    return device


def test_clocks_and_temperature_of_the_gpu_are_asked_of_nvml(driver: SimpleNamespace) -> None:
    found = conditions()
    assert (found.gpu_mhz, found.gpu_memory_mhz, found.gpu_celsius) == (1980.0, 2619.0, 41.0)
    assert conditions().gpu_mhz == 1980.0  # it was closed, and opens again


def test_what_nvml_refuses_to_tell_is_none(driver: SimpleNamespace) -> None:
    assert conditions().gpu_watts is None


def test_driver_and_memory_of_the_gpu_are_asked_of_nvml(driver: SimpleNamespace) -> None:
    gpu = describe("", 1).gpu
    assert gpu is not None
    assert dataclasses.astuple(gpu) == ("NVIDIA H200", "9.0", "13.0", "580.95.05", 150754820096)


def test_a_gpu_that_nvml_does_not_know_has_no_clock(driver: SimpleNamespace) -> None:
    driver.pci_bus_id = "0000:00:00.0"
    assert conditions().gpu_mhz is None
    gpu = describe("", 1).gpu
    assert gpu is not None
    assert (gpu.driver, gpu.memory_bytes) == (None, None)


def test_a_driver_without_nvml_is_no_error(monkeypatch: pytest.MonkeyPatch, driver: SimpleNamespace) -> None:
    monkeypatch.setattr(environment, "_NVML", "libnvidia-ml-of-nobody.so.1")
    assert conditions().gpu_mhz is None


def test_a_gpu_that_cannot_be_opened_is_no_error(monkeypatch: pytest.MonkeyPatch, driver: SimpleNamespace) -> None:
    def broken() -> None:
        raise MissingDeviceError("no driver")

    monkeypatch.setattr(environment, "open_device", broken)
    assert conditions().gpu_mhz is None
