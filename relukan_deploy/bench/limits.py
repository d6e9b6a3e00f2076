"""How fast a network could be here: the work of the ideal fused network, against what the machine does at most.

The ideal network is one kernel that keeps everything between rows and answers in registers. For each row, a
layer with B bumps in all (in·K) and `out` answers costs it

    5·B            two differences, a product, a maximum and a square for each bump
    2·B·out        a product and a sum for each bump and answer
    out            the bias

floating-point operations. In a layer of splines of degree d, B are the splines, and making them takes
2·d·(d + 2) for each input: de Boor's triangle, which makes the d + 1 that are not zero there. Each SiLU or
power of an input takes one, and a product and a sum for each answer; the answers are the sums of edges.

Memory moves the rows and the answers once, and all weights once a call: coefficients, biases, and s and e of
each bump, or the knots of each input, all in the precision's size. It takes at least as
long as the slowest of these operations at the rate of a large matrix product, these bytes at the rate of a
large copy, and one launch. The basis cannot run at a matrix product's rate: the limit is out of reach, and
how far off is what it is for.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..bundle import Artifact, Bundle
from ..errors import InputError, MissingDependencyError, MissingDeviceError
from ..runtime._cuda import Cuda
from ..runtime._session import make_session
from ..spec import Precision
from .results import OURS, Ideal, Peaks, Series
from .subjects.bound import bound_calls
from .subjects.gpu_clock import gpu_seconds
from .timing import timed

__all__ = ["LayerWork", "ideal", "layers_of", "measure_peaks", "with_ideals"]

Device = Literal["cpu", "gpu"]

_BUMP_OPERATIONS = 5
_BYTES: dict[Precision, int] = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}

# Large enough for the peak, small enough for a second: rows and columns of the matrices, bytes of a copy.
_CPU_MATRIX, _GPU_MATRIX = 1536, 8192
_CPU_COPY, _GPU_COPY = 256 << 20, 1 << 30  # more than the caches
_SECONDS = 0.5  # of repeating each, about
_LAUNCHES = 500


@dataclasses.dataclass(frozen=True)
class LayerWork:
    """One layer of a network; of bumps, as a graph has it: without what never contributes.

    Attributes:
        inputs, outputs: features; of splines, the outputs are the sums of edges.
        basis: bumps or splines on all inputs together, in·K.
        degree: of the splines; None for bumps.
        branches: other functions of all inputs together: SiLU, and powers.
    """

    inputs: int
    basis: int
    outputs: int
    degree: int | None = None
    branches: int = 0

    @property
    def flops(self) -> int:
        """Floating-point operations for a row."""
        if self.degree is None:
            making = _BUMP_OPERATIONS * self.basis
        else:
            making = 2 * self.degree * (self.degree + 2) * self.inputs + self.branches
        return making + 2 * (self.basis + self.branches) * self.outputs + self.outputs

    @property
    def parameters(self) -> int:
        """Coefficients, weights of branches, biases, and s and e of each bump or the knots of each input."""
        knots = 2 * self.basis if self.degree is None else self.basis + (self.degree + 1) * self.inputs
        return (self.basis + self.branches) * self.outputs + self.outputs + knots


def layers_of(bundle: Bundle) -> list[LayerWork]:
    """The layers of a bundle: of bumps, from the shapes of its graph's constants.

    Raises:
        InputError: the manifest does not name them.
    """
    manifest = bundle.manifest
    if manifest.splines:
        return [
            LayerWork(inputs, inputs * each.basis, each.sums, each.degree, inputs * each.branches)
            for inputs, each in zip(manifest.widths[:-1], manifest.splines, strict=True)
        ]
    artifact = next(artifact for artifact in manifest.artifacts if artifact.kind == "onnx")
    layers, inputs = [], manifest.in_features
    for index in range(len(manifest.widths) - 1):
        outputs, *rest = _weight_shape(bundle, artifact, index)
        layers.append(LayerWork(inputs, math.prod(rest), outputs))
        inputs = outputs
    return layers


def ideal(bundle: Bundle, batch: int, precision: Precision, peaks: Peaks) -> Ideal:
    """What a call of the ideal fused network takes at least; see the module's docstring.

    Raises:
        InputError: the manifest does not name the graph's constants.
    """
    layers = layers_of(bundle)
    rows = batch * (bundle.manifest.in_features + bundle.manifest.out_features)
    flops = float(batch * sum(layer.flops for layer in layers))
    size = float(_BYTES[precision] * (rows + sum(layer.parameters for layer in layers)))
    bounds: dict[Literal["arithmetic", "memory", "launch"], float] = {
        "arithmetic": flops / peaks.flops_per_second,
        "memory": size / peaks.bytes_per_second,
        "launch": peaks.launch_seconds,
    }
    slowest = max(bounds, key=lambda name: bounds[name])
    return Ideal(flops, size, bounds[slowest], slowest)


def with_ideals(series: Sequence[Series], bundle: Bundle, peaks: Sequence[Peaks]) -> list[Series]:
    """The series, those of the bundle's own network with the limit at each batch, where its peaks are known."""
    device_of_torch: Device = "gpu" if any(peak.device == "gpu" for peak in peaks) else "cpu"
    known = {(peak.device, peak.precision): peak for peak in peaks}

    def with_ideal(one: Series) -> Series:
        contender = one.contender
        on_cpu = contender.engine == "onnxruntime-cpu"
        device: Device = "cpu" if on_cpu else device_of_torch if contender.engine.startswith("torch") else "gpu"
        peak = known.get((device, contender.precision))
        if contender.network != OURS or peak is None:
            return one
        points = [
            dataclasses.replace(point, ideal=ideal(bundle, point.batch, contender.precision, peak))
            for point in one.points
        ]
        return dataclasses.replace(one, points=tuple(points))

    return [with_ideal(one) for one in series]


def measure_peaks(device: Device, precision: Precision, threads: int = 1) -> Peaks:
    """What this machine does at most: the fastest of several runs; of launches, and of copies on a GPU, the median.

    Args:
        device: "cpu" runs a MatMul and a Relu in ONNX Runtime, and copies with numpy; "gpu" multiplies
            with PyTorch, which calls NVIDIA's own library, and copies and launches through the driver.
        precision: of the matrix product; "fp32" on a GPU is without TF32.
        threads: of the CPU.

    Raises:
        InputError: bf16 on a CPU, where ONNX Runtime has no product of it.
        MissingDependencyError, MissingDeviceError: onnx, PyTorch with CUDA, or a GPU is missing.
    """
    if device == "cpu":
        if precision == "bf16":
            raise InputError("ONNX Runtime has no bfloat16 product on a CPU: measure its peak on a GPU")
        return Peaks("cpu", precision, _cpu_flops(precision, threads), _cpu_bytes(threads), _cpu_launch())
    flops = _gpu_flops(precision)
    cuda = Cuda()
    with cuda:
        return Peaks("gpu", precision, flops, _gpu_bytes(cuda), _gpu_launch(cuda))


# --- CPU


def _cpu_flops(precision: Precision, threads: int) -> float:
    dtype = np.dtype(np.float16 if precision == "fp16" else np.float32)
    size = _CPU_MATRIX
    right = np.full((size, size), 0.5, dtype)
    call = _bound(_graph("MatMul", (size, size), dtype, right), np.full((size, size), 0.5, dtype), threads)
    return 2.0 * size**3 / _best(call)


def _cpu_bytes(threads: int) -> float:
    source = np.ones((threads, _CPU_COPY // threads), np.uint8)
    target = np.ones_like(source)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            list(pool.map(np.copyto, target, source))

        return 2.0 * source.nbytes / _best(copy if threads > 1 else lambda: np.copyto(target, source))


def _cpu_launch() -> float:
    one = np.ones((1,), np.float32)
    turn = timed(_bound(_graph("Relu", one.shape, one.dtype), one, 1))
    turn(_LAUNCHES // 10)
    return statistics.median(turn(_LAUNCHES))


def _graph(operator: str, shape: tuple[int, ...], dtype: np.dtype[Any], *constants: Any) -> bytes:
    """A graph of one operator on "x" and constants."""
    try:
        from onnx import helper, numpy_helper
    except ImportError as error:
        raise MissingDependencyError("Measuring what this machine does at most", "onnx", "bench") from error
    names = [f"constant{index}" for index in range(len(constants))]
    element = helper.np_dtype_to_tensor_dtype(dtype)
    x, y = (helper.make_tensor_value_info(name, element, shape) for name in "xy")
    initializers = [numpy_helper.from_array(array, name) for array, name in zip(constants, names, strict=True)]
    graph = helper.make_graph([helper.make_node(operator, ["x", *names], ["y"])], "peak", [x], [y], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    serialised: bytes = model.SerializeToString()
    return serialised


def _bound(model: bytes, x: NDArray[Any], threads: int) -> Callable[[], object]:
    """Runs a graph whose answer is shaped as x."""
    (call,) = bound_calls(make_session(model, ["CPUExecutionProvider"], threads), [x], x.shape)
    return call


# --- GPU


def _gpu_flops(precision: Precision) -> float:
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("Measuring a GPU's matrix product", "torch", "train") from error
    if not torch.cuda.is_available():
        raise MissingDeviceError("a GPU's matrix product is measured with PyTorch, and this one has no CUDA")
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    left, right = torch.randn(2, _GPU_MATRIX, _GPU_MATRIX, device="cuda", dtype=dtype)
    out, before = torch.empty_like(left), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")

    def multiply() -> None:
        torch.mm(left, right, out=out)
        torch.cuda.synchronize()

    try:
        return 2.0 * _GPU_MATRIX**3 / _best(multiply)
    finally:
        torch.set_float32_matmul_precision(before)


def _gpu_bytes(cuda: Cuda) -> float:
    stream = cuda.device.create_stream()
    source, target = (cuda.device.allocate(_GPU_COPY, stream=stream) for _ in range(2))
    try:

        def copy() -> None:
            cuda.copy(int(target.handle), int(source.handle), _GPU_COPY, int(stream.handle))

        return 2.0 * _GPU_COPY / gpu_seconds(cuda, stream, [[copy]] * 20)[0]
    finally:
        for held in (source, target, stream):
            held.close()


def _gpu_launch(cuda: Cuda) -> float:
    """A CUDA graph that copies one number within the GPU: launched, and waited for."""
    stream = cuda.device.create_stream()
    memory = cuda.device.allocate(512, stream=stream)
    handle, address = int(stream.handle), int(memory.handle)
    graph = cuda.capture(lambda: cuda.copy(address + 256, address, 4, handle), handle)

    def launch() -> None:
        cuda.launch(graph, handle)
        stream.sync()

    try:
        turn = timed(launch)
        turn(_LAUNCHES // 10)
        return statistics.median(turn(_LAUNCHES))
    finally:
        cuda.forget(graph)
        for held in (memory, stream):
            held.close()


def _best(call: Callable[[], object]) -> float:
    """Seconds of the fastest of the calls that fit into the time, three at least."""
    turn, end = timed(call), time.perf_counter() + _SECONDS
    taken = list(turn(3))
    while time.perf_counter() < end:
        taken += turn(1)
    return min(taken)


def _weight_shape(bundle: Bundle, artifact: Artifact, index: int) -> tuple[int, ...]:
    shape = artifact.constants.get(f"layer{index}/weight")
    if shape is None:
        raise InputError(f"the manifest of {bundle.path} does not name its constants: export the network anew")
    return shape
