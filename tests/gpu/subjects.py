"""What the tests here open: engines of every TensorRT that is installed, and one that needs none.

The stand-in has real kernels, streams, captures and memory, and only computes something simpler: so
all of this project's own code is tested on GPUs, too, that no TensorRT here supports.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from relukan_deploy._tensorrt import Flavour, import_tensorrt
from relukan_deploy.api import export
from relukan_deploy.bundle import Artifact, Bundle, open_bundle
from relukan_deploy.errors import InputError, MissingDependencyError, RelukanError
from relukan_deploy.exporters.to_tensorrt import EngineOptions
from relukan_deploy.gpu import find_gpu, open_device
from relukan_deploy.runtime._engine import EngineBackend
from relukan_deploy.spec import KanSpec, Layout, Precision

IN, OUT = 8, 4
Kind = Flavour | Literal["stand-in"]
KINDS: tuple[Kind, ...] = ("stand-in", "tensorrt", "tensorrt-rtx")
TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}


class Subject(NamedTuple):
    """An engine to open, and what it has to answer.

    Attributes:
        open: gives a backend; ``graphs=False`` for one without graphs.
        evaluate: y ``(batch, 4)`` for x ``(batch, 8)``, in float64.
        tolerance: of the answers, relative to max(1, max|y|).
        bundle: it comes from; None for the stand-in.
    """

    open: Callable[..., EngineBackend]
    evaluate: Callable[[NDArray[Any]], NDArray[np.float64]]
    tolerance: float
    artifact: Artifact
    bundle: Bundle | None = None

    def check(self, y: Any, x: Any) -> None:
        expected = self.evaluate(np.asarray(x, np.float64))
        assert y.shape == expected.shape
        atol = self.tolerance * max(1.0, float(np.abs(expected).max(initial=0)))
        np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=0, atol=atol)


def require_gpu() -> None:
    """Skips, with the reason, where there is none."""
    try:
        open_device()
    except RelukanError as error:
        pytest.skip(f"no GPU: {error}")


def rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-0.5, 1.5, (count, IN)).astype(np.float32)


def make_subject(
    kind: Kind,
    network: KanSpec,
    folder: Path,
    *,
    layout: Layout = "batch-last",
    precision: Precision = "fp32",
    batch: tuple[int, int, int] = (1, 8, 32),
    refittable: bool = False,
) -> Subject:
    """A subject; skips, with the reason, where its TensorRT is missing or does not support this GPU."""
    require_gpu()
    if kind == "stand-in":
        if precision != "fp32":
            pytest.skip("the stand-in computes in float32")
        return stand_in(layout, batch)
    try:
        import_tensorrt(kind, "This test")
    except MissingDependencyError:
        pytest.skip(f"{kind} is not installed")
    options = EngineOptions(batch=batch, refittable=refittable)
    try:
        bundle = export(
            network, folder / "bundle", trt=True, flavour=kind, layout=layout, precision=precision, engine=options
        )
    except InputError as error:
        if "cannot honour" not in str(error):
            raise
        pytest.skip(str(error))
    artifact = bundle.manifest.artifacts[1]
    require_support(artifact)
    opened = functools.partial(EngineBackend, kind, bundle.contents[artifact.file], artifact, IN, OUT)
    return Subject(opened, network.evaluate, artifact.tolerance, artifact, open_bundle(bundle.path))


def require_support(artifact: Artifact) -> None:
    """Skips where TensorRT-RTX says itself that it does not run on this GPU: it names 8.0 to 8.9, and 12.0 on."""
    gpu = find_gpu()
    assert gpu is not None
    supported = gpu.compute_capability in ("8.0", "8.6", "8.9") or float(gpu.compute_capability) >= 12
    if artifact.kind == "tensorrt-rtx" and not artifact.verified and not supported:
        pytest.skip(f"tensorrt-rtx does not run on compute capability {gpu.compute_capability}: {artifact.reason}")


# --- the stand-in

_SOURCE = """
// Both wait for `spin` cycles first, so that whoever does not wait for them comes too early.
__device__ void wait(long long spin) {
    long long begin = clock64();
    while (clock64() - begin < spin) {}
}

extern "C" __global__ void weigh(const float* x, float* scratch, long long rows, long long last, long long spin) {
    wait(spin);
    long long row = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (row >= rows) return;
    for (int o = 0; o < 4; ++o) {
        float sum = 0;
        for (int i = 0; i < 8; ++i) sum += (i + 1 + o) * x[last ? i * rows + row : row * 8 + i];
        scratch[row * 4 + o] = sum;
    }
}

extern "C" __global__ void move(const float* scratch, float* y, long long rows, long long last, long long spin) {
    wait(spin);
    long long row = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (row >= rows) return;
    for (int o = 0; o < 4; ++o) y[last ? o * rows + row : row * 4 + o] = scratch[row * 4 + o];
}
"""


def weigh(x: NDArray[Any]) -> NDArray[np.float64]:
    """What the stand-in computes."""
    weights = np.arange(1, IN + 1)[:, np.newaxis] + np.arange(OUT)
    return x.astype(np.float64) @ weights


def stand_in(
    layout: Layout = "batch-last",
    batch: tuple[int, int, int] = (1, 8, 32),
    *,
    spin: int = 0,
    during_capture: Callable[[], object] = lambda: None,
) -> Subject:
    """An engine that needs no TensorRT.

    Args:
        layout, batch: of the engine.
        spin: cycles that each of its kernels waits.
        during_capture: called when it enqueues while it is captured.
    """
    require_gpu()
    kernels = _kernels()
    artifact = Artifact("model.engine", "tensorrt", "fp32", layout, "direct", 1e-5, batch=batch)

    def opened(**options: Any) -> EngineBackend:
        with pytest.MonkeyPatch.context() as patched:
            module = _module(functools.partial(_Context, kernels, layout, spin, during_capture), batch[2])
            patched.setattr("relukan_deploy.runtime._plan.import_tensorrt", lambda *_: module)
            return EngineBackend("tensorrt", b"none", artifact, IN, OUT, **options)

    return Subject(opened, weigh, 1e-5, artifact)


@functools.cache
def _kernels() -> tuple[Any, Any]:
    from cuda.core import Program, ProgramOptions

    device = open_device()
    try:
        code = Program(_SOURCE, "c++", ProgramOptions(arch=f"sm_{device.arch}")).compile("cubin")
    except Exception as error:  # of the loader of NVRTC, or of NVRTC
        pytest.skip(f"NVRTC is needed and cannot be used: {error}")
    return code.get_kernel("weigh"), code.get_kernel("move")


def _module(make_context: Callable[[], Any], most: int) -> Any:
    """The part of TensorRT's module that is used."""
    engine = types.SimpleNamespace(
        create_execution_context=lambda strategy: make_context(), device_memory_size_v2=4 * OUT * most, refittable=False
    )
    return types.SimpleNamespace(
        ILogger=type("ILogger", (), {"Severity": types.SimpleNamespace(ERROR=1)}),
        Runtime=lambda logger: types.SimpleNamespace(deserialize_cuda_engine=lambda plan: engine),
        ExecutionContextAllocationStrategy=types.SimpleNamespace(USER_MANAGED=2),
        __version__="0",
    )


class _Context:
    def __init__(
        self, kernels: tuple[Any, Any], layout: Layout, spin: int, during_capture: Callable[[], object]
    ) -> None:
        self.kernels, self.last, self.spin, self.during_capture = (
            kernels,
            int(layout == "batch-last"),
            spin,
            during_capture,
        )
        self.addresses: dict[str, int] = {}

    def set_device_memory(self, memory: int, size: int) -> None:
        self.scratch = memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.rows = math.prod(shape) // IN
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def execute_async_v3(self, handle: int) -> bool:
        from cuda.bindings import driver
        from cuda.core import LaunchConfig, Stream, launch

        _, state = driver.cuStreamIsCapturing(handle)
        if state == driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE:
            self.during_capture()
        stream, config = Stream.from_handle(handle), LaunchConfig(grid=-(-self.rows // 128), block=128)
        first, second = self.kernels
        common = self.rows, self.last, self.spin
        launch(stream, config, first, self.addresses["x"], self.scratch, *common)
        launch(stream, config, second, self.scratch, self.addresses["y"], *common)
        return True
