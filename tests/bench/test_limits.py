"""The work of the ideal fused network, and what a machine does at most."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import BUMP_FORMS, spline_network

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from cuda_of_numpy import Gpu

from relukan_deploy.api import export
from relukan_deploy.bench import limits
from relukan_deploy.bench.limits import ideal, layers_of, measure_peaks, with_ideals
from relukan_deploy.bench.results import Contender, Peaks, Point, Series
from relukan_deploy.bundle import Bundle
from relukan_deploy.errors import InputError, MissingDeviceError
from relukan_deploy.gpu import find_gpu
from relukan_deploy.lowering import lower
from relukan_deploy.runtime._cuda import Cuda
from relukan_deploy.spec import Form, KanSpec, LayerSpec, Precision

FAST = Peaks("cpu", "fp32", flops_per_second=1e30, bytes_per_second=1e30, launch_seconds=0.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """[2, 5, 1] with G=5 and order 3, so 8 bumps on each input, none of which is dead."""
    generator = np.random.default_rng(0)

    def layer(inputs: int, outputs: int) -> LayerSpec:
        starts = np.arange(-3, 5) / 5 + generator.uniform(-0.02, 0.02, (inputs, 8))
        coefficients = generator.normal(0, 0.2, (outputs, inputs, 8))
        return LayerSpec(starts, starts + 0.8, coefficients, np.full(outputs, 0.3))

    return export(KanSpec((layer(2, 5), layer(5, 1))), tmp_path_factory.mktemp("limits") / "bundle")


# --- the work


def test_the_work_of_2_5_1_is_what_is_counted_by_hand(bundle: Bundle) -> None:
    # first layer: 16 bumps of 5 operations, 16 · 5 products and as many sums, 5 biases; then 40 bumps into one
    assert ideal(bundle, 1, "fp32", FAST).flops == (16 * 5 + 16 * 5 * 2 + 5) + (40 * 5 + 40 * 2 + 1) == 526
    # coefficients, biases, starts and ends; and 2 numbers in, 1 out
    weights = (16 * 5 + 5 + 16 + 16) + (40 + 1 + 40 + 40)
    assert ideal(bundle, 1, "fp32", FAST).bytes == 4 * (weights + 3)


def test_the_work_of_splines_is_what_is_counted_by_hand(tmp_path: Path) -> None:
    # degree 3 on 5 intervals: 8 splines on each input, 30 operations for the 4 that are not zero, and SiLU
    splines = export(spline_network(0, [2, 5, 1]), tmp_path / "bundle")
    assert ideal(splines, 1, "fp32", FAST).flops == (2 * 31 + 2 * 9 * 5 * 2 + 5) + (5 * 31 + 5 * 9 * 2 + 1) == 493
    # 9 weights for each edge, biases, and 12 knots for each input; and 2 numbers in, 1 out
    weights = (2 * 9 * 5 + 5 + 2 * 12) + (5 * 9 + 1 + 5 * 12)
    assert ideal(splines, 1, "fp32", FAST).bytes == 4 * (weights + 3)


@pytest.mark.parametrize(("silu", "powers", "branches"), [(0.0, 0, 0), (1.0, 0, 1), (0.0, 2, 2), (1.0, 3, 4)])
def test_every_other_branch_of_an_input_is_as_much_work_as_a_spline(
    tmp_path: Path, silu: float, powers: int, branches: int
) -> None:
    splines = export(spline_network(0, [3, 4], grid=3, degree=2, silu=silu, powers=powers), tmp_path / "bundle")
    (layer,) = layers_of(splines)
    assert (layer.basis, layer.branches, layer.outputs) == (3 * 5, 3 * branches, 4)
    assert layer.flops == 3 * 16 + 3 * branches + 2 * 3 * (5 + branches) * 4 + 4
    assert layer.parameters == 3 * (5 + branches) * 4 + 4 + 3 * 8


@pytest.mark.parametrize("batch", [1, 64, 65536])
def test_operations_grow_with_the_batch_and_weights_do_not(bundle: Bundle, batch: int) -> None:
    one, many = (ideal(bundle, count, "fp32", FAST) for count in (1, batch))
    assert many.flops == batch * one.flops
    assert many.bytes == one.bytes + (batch - 1) * 4 * 3


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("tf32", 4), ("fp16", 2), ("bf16", 2)])
def test_bytes_are_in_the_precisions_size(bundle: Bundle, precision: Precision, size: int) -> None:
    assert ideal(bundle, 10, precision, FAST).bytes * 4 == ideal(bundle, 10, "fp32", FAST).bytes * size


@pytest.mark.parametrize("form", BUMP_FORMS)
def test_the_contraction_is_that_of_the_lowered_graphs_convs(bundle: Bundle, make_spec: Any, form: Form) -> None:
    spec = make_spec((4, 7, 3), seed=2)
    graph = lower(spec, layout="batch-last", form=form, precision="fp32")
    shapes = {name: array.shape for name, array in graph.constants.items()}
    artifact = dataclasses.replace(bundle.manifest.artifacts[0], constants=shapes, form=form)
    manifest = dataclasses.replace(bundle.manifest, widths=spec.widths, artifacts=(artifact,))
    layers = layers_of(dataclasses.replace(bundle, manifest=manifest))
    weights = [graph.constants[node.inputs[1]] for node in graph.nodes if node.op == "Conv"]
    ending = [weight for weight in weights if weight.shape[0] in (7, 3)]  # not those that make bumps
    assert sum(2 * layer.basis * layer.outputs for layer in layers) == sum(2 * weight.size for weight in ending)
    assert [layer.inputs for layer in layers] == [4, 7]


def test_a_manifest_without_constants_says_so(bundle: Bundle) -> None:
    artifact = dataclasses.replace(bundle.manifest.artifacts[0], constants={})
    manifest = dataclasses.replace(bundle.manifest, artifacts=(artifact,))
    with pytest.raises(InputError, match="does not name its constants: export the network anew"):
        layers_of(dataclasses.replace(bundle, manifest=manifest))


# --- the limit


@pytest.mark.parametrize(
    ("peaks", "bound_by", "seconds"),
    [
        ({"flops_per_second": 526.0}, "arithmetic", 100.0),
        ({"bytes_per_second": 4.0}, "memory", 100 * 3 + 117 + 121.0),
        ({"launch_seconds": 7.0}, "launch", 7.0),
        ({"flops_per_second": 526.0, "launch_seconds": 101.0}, "launch", 101.0),
    ],
)
def test_the_slowest_of_the_three_is_the_limit(
    bundle: Bundle, peaks: dict[str, float], bound_by: str, seconds: float
) -> None:
    found = ideal(bundle, 100, "fp32", dataclasses.replace(FAST, **peaks))  # type: ignore[arg-type]
    assert (found.bound_by, found.seconds) == (bound_by, seconds)


def series(engine: str, network: str = "this network", precision: Precision = "fp32") -> Series:
    contender = Contender(network, (2, 5, 1), engine, precision)
    return Series(contender, 0, 238, None, (Point(1), Point(64, skipped="too large")))


def test_every_point_of_our_own_network_gets_the_limit_of_its_device_and_precision(bundle: Bundle) -> None:
    peaks = [
        dataclasses.replace(FAST, launch_seconds=1.0),
        Peaks("gpu", "fp32", 1e30, 1e30, launch_seconds=2.0),
        Peaks("gpu", "fp16", 1e30, 1e30, launch_seconds=3.0),
    ]
    given = [
        series("onnxruntime-cpu"),
        series("tensorrt"),
        series("tensorrt-rtx", precision="fp16"),
        series("onnxruntime-cuda", precision="bf16"),
        series("torch CUDA graph"),
        series("torch"),
        series("torch", network="pykan"),
    ]
    found = with_ideals(given, bundle, peaks)
    assert [[point.ideal.seconds if point.ideal else None for point in each.points] for each in found] == [
        *([seconds, seconds] for seconds in (1, 2, 3, None, 2, 2, None))
    ]
    (on_cpu,) = with_ideals([series("torch.compile")], bundle, peaks[:1])
    assert on_cpu.points[0].ideal == ideal(bundle, 1, "fp32", peaks[0])


# --- the peaks


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "_CPU_MATRIX": 64,
        "_CPU_COPY": 4096,
        "_GPU_COPY": 4096,
        "_SECONDS": 0.0,
        "_LAUNCHES": 20,
    }.items():
        monkeypatch.setattr(limits, name, value)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_cpu_has_peaks(short: None, precision: Precision, threads: int) -> None:
    found = measure_peaks("cpu", precision, threads)
    assert (found.device, found.precision) == ("cpu", precision)
    assert min(found.flops_per_second, found.bytes_per_second, found.launch_seconds) > 0


def test_rates_are_of_the_operations_and_bytes_that_were_timed(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_best", lambda call: 2.0)
    found = measure_peaks("cpu", "fp32", 1)
    assert (found.flops_per_second, found.bytes_per_second) == (64**3, 4096)


def test_bf16_on_a_cpu_is_refused() -> None:
    with pytest.raises(InputError, match="no bfloat16 product on a CPU"):
        measure_peaks("cpu", "bf16")


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
def test_without_a_gpu_its_peaks_are_a_missing_device() -> None:
    pytest.importorskip("torch")
    with pytest.raises(MissingDeviceError, match="this one has no CUDA"):
        measure_peaks("gpu", "fp32")


def test_copies_and_launches_of_a_gpu_leave_nothing_there(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    gpu.install(monkeypatch)
    monkeypatch.setattr("relukan_deploy.bench.subjects.gpu_clock._BUSY_BYTES", 1024)
    with Cuda() as cuda:
        assert limits._gpu_bytes(cuda) == pytest.approx(2 * 4096 / 1e-3)  # an operation takes a millisecond there
        assert limits._gpu_launch(cuda) > 0
    assert gpu.calls["cuGraphLaunch"] == 22
    assert (gpu.live, gpu.faults) == (set(), [])
