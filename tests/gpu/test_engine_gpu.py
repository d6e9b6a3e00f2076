"""Real engines on a real GPU: every precision, layout and TensorRT that is here.

    python -m pytest tests/gpu

What was measured is written to benchmarks/results/GPU-NAME/test_parity.json, or under the folder that the
environment variable RELUKAN_RESULTS names. Needs neither hypothesis nor polars.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from relukan_deploy._tensorrt import Flavour, import_tensorrt
from relukan_deploy.api import export, verify
from relukan_deploy.bundle import Artifact, open_bundle, write_manifest
from relukan_deploy.errors import BundleError, InputError, MissingDependencyError, ParityError, RelukanError
from relukan_deploy.exporters.to_tensorrt import EngineOptions
from relukan_deploy.gpu import Gpu, find_gpu, open_device
from relukan_deploy.runtime import Runner, load
from relukan_deploy.spec import KanSpec, Layout, Precision

MakeSpec = Callable[..., KanSpec]

# Which deprecations the TensorRT and cuda-core of a machine announce is not what is tested here.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")

DATA = Path(__file__).parents[1] / "data"
BATCH = (1, 8, 32)
BATCHES = (1, 2, 7, 32, 33, 3 * 32 + 5)


@pytest.fixture(autouse=True, scope="module")
def gpu() -> Gpu:
    try:
        open_device()
    except RelukanError as error:
        pytest.skip(f"no GPU: {error}")
    found = find_gpu()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def network(make_spec: MakeSpec) -> KanSpec:
    return make_spec((8, 16, 4), seed=4, task="classification", labels=("a", "b", "c", "d"))


@pytest.fixture(scope="module", params=get_args(Flavour))
def flavour(request: pytest.FixtureRequest, gpu: Gpu) -> Flavour:
    """A TensorRT that is installed and supports this GPU."""
    name: Flavour = request.param
    try:
        import_tensorrt(name, "This test")
    except MissingDependencyError:
        pytest.skip(f"{name} is not installed")
    return name


def require_support(artifact: Artifact, gpu: Gpu) -> None:
    """Skips where TensorRT-RTX says itself that it does not run on this GPU: it names 8.0 to 8.9, and 12.0 on."""
    supported = gpu.compute_capability in ("8.0", "8.6", "8.9") or float(gpu.compute_capability) >= 12
    if artifact.kind == "tensorrt-rtx" and not artifact.verified and not supported:
        pytest.skip(f"tensorrt-rtx does not run on compute capability {gpu.compute_capability}: {artifact.reason}")


def export_engine(network: KanSpec, out: Path, flavour: Flavour, gpu: Gpu, **options: Any) -> Path:
    """A bundle with an engine that runs here; skips, with the reason, what this TensorRT cannot build."""
    try:
        bundle = export(network, out, trt=True, flavour=flavour, **options)
    except InputError as error:
        if "cannot honour" not in str(error):
            raise
        pytest.skip(str(error))
    require_support(bundle.manifest.artifacts[1], gpu)
    return bundle.path


class Built(NamedTuple):
    path: Path
    artifact: Artifact


@pytest.fixture(scope="module", params=get_args(Layout))
def layout(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module", params=get_args(Precision))
def precision(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def built(
    network: KanSpec,
    flavour: Flavour,
    precision: Precision,
    layout: Layout,
    gpu: Gpu,
    tmp_path_factory: pytest.TempPathFactory,
) -> Built:
    """An engine of one flavour, precision and layout, with the batches of `BATCH`."""
    folder = tmp_path_factory.mktemp("built") / "bundle"
    options = EngineOptions(batch=BATCH)
    path = export_engine(network, folder, flavour, gpu, precision=precision, layout=layout, engine=options)
    return Built(path, open_bundle(path).manifest.artifacts[1])


@pytest.fixture(scope="module")
def plain(network: KanSpec, flavour: Flavour, gpu: Gpu, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32, batch-last engine of a flavour. Not to be written to."""
    folder = tmp_path_factory.mktemp("plain") / "bundle"
    return export_engine(network, folder, flavour, gpu, engine=EngineOptions(batch=BATCH))


def rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-0.5, 1.5, (count, 8)).astype(np.float32)


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float64], tolerance: float) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max(initial=0)))
    )


# --- the record


@pytest.fixture(scope="module")
def record(gpu: Gpu) -> Iterator[Callable[[Artifact], None]]:
    """Adds an artifact's figures to test_parity.json; what other TensorRTs left there stays."""
    entries: dict[tuple[str, ...], dict[str, Any]] = {}

    def key(entry: dict[str, Any]) -> tuple[str, ...]:
        return entry["tensorrt"], entry["version"], entry["precision"], entry["layout"]

    def add(artifact: Artifact) -> None:
        parity = dict(artifact.parity or {})
        del parity["worst_input"], parity["backend"]
        names = {"tensorrt": artifact.kind, "version": artifact.details["version"]}
        entry = {**names, "precision": artifact.precision, "layout": artifact.layout, "form": artifact.form, **parity}
        entries[key(entry)] = entry

    yield add
    if not entries:
        return
    home = Path(os.environ.get("RELUKAN_RESULTS") or Path(__file__).parents[2] / "benchmarks" / "results")
    file = home / re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-") / "test_parity.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(file.read_text())["parity"] if file.is_file() else []
    merged = {**{key(entry): entry for entry in before}, **entries}
    machine = {"gpu": gpu.name, "compute_capability": gpu.compute_capability, "cuda": gpu.cuda, "driver": driver()}
    content = {**machine, "network": [8, 16, 4], "parity": [merged[name] for name in sorted(merged)]}
    file.write_text(json.dumps(content, indent=2) + "\n")


def driver() -> str | None:
    """The version of NVIDIA's driver, or None where nothing tells it."""
    version = Path("/proc/driver/nvidia/version")
    if version.is_file():
        found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", version.read_text())
        if found:
            return found[0]
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        return lines[0] if lines else None
    return None


# --- every flavour, precision and layout


def test_export_verifies_the_engine_on_this_gpu(built: Built, record: Callable[[Artifact], None]) -> None:
    artifact = built.artifact
    assert artifact.verified, artifact.reason
    assert artifact.parity is not None
    record(artifact)
    assert artifact.parity["error"] <= artifact.tolerance
    assert artifact.parity["backend"] == artifact.kind
    assert {1, 2, 7, *BATCH} <= set(artifact.parity["batches"])


def test_verify_passes(built: Built) -> None:
    checks = {check.backend: check for check in verify(built.path)}
    engine = checks[built.artifact.kind]
    assert engine.reason is None
    assert engine.report is not None
    assert engine.report.passed


def test_the_engine_is_what_load_takes_first(built: Built) -> None:
    runner = load(built.path)
    assert runner.backend == built.artifact.kind
    runner.close()


def test_every_batch_is_answered_as_the_reference_does(built: Built, network: KanSpec) -> None:
    runner = load(built.path, backend=built.artifact.kind)
    for count in BATCHES:
        x = rows(count, seed=count)
        y = runner(x)
        assert y.shape == (count, 4)
        assert_close(y, network.evaluate(x), built.artifact.tolerance)
    assert runner(rows(0)).shape == (0, 4)
    runner.close()


def test_arrays_of_any_order_are_answered_alike(built: Built) -> None:
    runner = load(built.path, backend=built.artifact.kind)
    x = rows(10)
    expected = runner(x)
    wide = np.zeros((20, 16), np.float32)
    wide[::2, ::2] = x
    for other in (np.asfortranarray(x), wide[::2, ::2], x[::-1].copy()[::-1], x.astype(np.float64), x.tolist()):
        np.testing.assert_array_equal(runner(other), expected)
    runner.close()


def test_an_answer_is_not_overwritten_by_the_next(built: Built) -> None:
    runner = load(built.path, backend=built.artifact.kind)
    first = runner(rows(32))
    kept = first.copy()
    runner(rows(32, seed=1))
    np.testing.assert_array_equal(first, kept)
    runner.close()


# --- every flavour


@pytest.mark.parametrize("strict_ops", [False, True], ids=["sigmoid", "strict"])
@pytest.mark.parametrize("name", ["pykan_2_5_1_g5k3_fit", "efficient_kan_digits_64_16_10_g5k3"])
def test_an_imported_network_answers_as_its_own_library_does(
    name: str, strict_ops: bool, flavour: Flavour, gpu: Gpu, tmp_path: Path
) -> None:
    bundle = export(DATA / f"{name}.pt", tmp_path / "bundle", trt=True, flavour=flavour, strict_ops=strict_ops)
    require_support(bundle.manifest.artifacts[1], gpu)
    peer = np.load(DATA / f"{name}.npz")
    runner = load(bundle.path, backend=flavour)
    assert_close(runner(peer["x"].astype(np.float32)), peer["y"], 1e-5)


@pytest.mark.parametrize("layout", get_args(Layout), ids=lambda layout: f"{layout}-filled")
def test_fewer_rows_than_the_smallest_batch_are_filled_up(
    network: KanSpec, flavour: Flavour, gpu: Gpu, tmp_path: Path, layout: Layout
) -> None:
    options = EngineOptions(batch=(8, 16, 32))
    path = export_engine(network, tmp_path / "bundle", flavour, gpu, layout=layout, engine=options)
    runner = load(path, backend=flavour)
    for count in (1, 2, 7, 8, 9, 33, 40):
        assert_close(runner(rows(count)), network.evaluate(rows(count)), 1e-5)
    runner.close()


@pytest.mark.parametrize(
    "option", ["refittable", "version_compatible", "hardware_compatible"], ids=lambda option: f"--{option}"
)
def test_an_engine_with_an_option_answers_alike(
    network: KanSpec, flavour: Flavour, gpu: Gpu, tmp_path: Path, option: str
) -> None:
    options = EngineOptions(batch=BATCH, **{option: True})  # type: ignore[arg-type]
    path = export_engine(network, tmp_path / "bundle", flavour, gpu, engine=options)
    assert open_bundle(path).manifest.artifacts[1].verified
    runner = load(path, backend=flavour)
    assert_close(runner(rows(9)), network.evaluate(rows(9)), 1e-5)
    runner.close()


def test_a_workspace_limit_is_kept_to(network: KanSpec, flavour: Flavour, gpu: Gpu, tmp_path: Path) -> None:
    path = export_engine(network, tmp_path / "b", flavour, gpu, engine=EngineOptions(batch=BATCH, workspace=1 << 28))
    assert open_bundle(path).manifest.artifacts[1].verified


def test_a_timing_cache_is_written_and_read(network: KanSpec, flavour: Flavour, gpu: Gpu, tmp_path: Path) -> None:
    options = EngineOptions(batch=BATCH, timing_cache=tmp_path / "cache")
    for turn in range(2):
        export_engine(network, tmp_path / f"bundle{turn}", flavour, gpu, engine=options)
        assert (tmp_path / "cache").stat().st_size > 0


def test_what_the_engine_was_built_for_is_recorded(plain: Path, flavour: Flavour, gpu: Gpu) -> None:
    details = open_bundle(plain).manifest.artifacts[1].details
    assert details["gpu"] == (gpu.name if flavour == "tensorrt" else None)
    assert details["version"] == import_tensorrt(flavour, "This test").__version__


def test_two_runners_do_not_disturb_each_other(plain: Path, network: KanSpec, flavour: Flavour) -> None:
    one, other = load(plain, backend=flavour), load(plain, backend=flavour)
    for count in (3, 32):
        assert_close(one(rows(count)), network.evaluate(rows(count)), 1e-5)
        assert_close(other(rows(count, seed=1)), network.evaluate(rows(count, seed=1)), 1e-5)
    one.close()
    assert_close(other(rows(5)), network.evaluate(rows(5)), 1e-5)
    other.close()


def test_another_thread_may_ask(plain: Path, network: KanSpec, flavour: Flavour) -> None:
    runner = load(plain, backend=flavour)
    answers: list[NDArray[np.float32]] = []
    thread = threading.Thread(target=lambda: answers.append(runner(rows(9))))
    thread.start()
    thread.join()
    assert_close(answers[0], network.evaluate(rows(9)), 1e-5)
    runner.close()


def test_many_runners_can_be_opened_and_closed(plain: Path, network: KanSpec, flavour: Flavour) -> None:
    for _ in range(20):
        runner = load(plain, backend=flavour)
        assert_close(runner(rows(2)), network.evaluate(rows(2)), 1e-5)
        runner.close()


def test_wrong_input_is_refused(plain: Path, flavour: Flavour) -> None:
    runner = load(plain, backend=flavour)
    for x in (np.zeros((2, 7), np.float32), np.zeros(8, np.float32), np.zeros((2, 8), complex)):
        with pytest.raises(InputError):
            runner(x)
    runner.close()


def test_a_plan_that_is_none_is_refused(plain: Path, flavour: Flavour, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "bundle"))
    manifest = open_bundle(folder).manifest
    (folder / "model.engine").write_bytes(b"not a plan" * 100)
    write_manifest(folder, manifest)
    with pytest.raises(BundleError, match="cannot load it: build it here with relukan-export --trt"):
        load(folder, backend=flavour)
    assert load(folder).backend.startswith("onnxruntime")


def test_wrong_golden_answers_are_refused(plain: Path, flavour: Flavour, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "bundle"))
    bundle = open_bundle(folder)
    x, y = bundle.golden()
    np.savez(folder / "golden.npz", x=x, y=y + 1e-2)
    write_manifest(folder, bundle.manifest)
    with pytest.raises(ParityError, match=f"model.engine on {flavour} differs"):
        load(folder)


# --- other weights


@pytest.fixture(scope="module")
def retrained(make_spec: MakeSpec) -> KanSpec:
    """A network of the same shape with other weights."""
    return make_spec((8, 16, 4), seed=5, task="classification", labels=("a", "b", "c", "d"))


def refit_while_asked(runner: Runner, network: KanSpec, retrained: KanSpec, tolerance: float) -> None:
    """Swaps the weights to and fro under callers, each of whom must get one network's answers or the other's."""
    x = rows(9)
    answers = [spec.evaluate(x) for spec in (network, retrained)]
    done = threading.Event()
    faults: list[BaseException] = []

    def ask() -> None:
        try:
            while not done.is_set():
                y = runner(x)
                assert min(np.abs(y - expected).max() for expected in answers) <= tolerance
        except BaseException as error:
            faults.append(error)

    asking = [threading.Thread(target=ask) for _ in range(6)]
    for thread in asking:
        thread.start()
    for spec in [retrained, network] * 5:
        runner.refit(spec)
        assert_close(runner(x), spec.evaluate(x), tolerance)
    done.set()
    for thread in asking:
        thread.join()
    assert faults == []


@pytest.mark.parametrize(
    "form", [pytest.param("batch-last", id="refit-last"), pytest.param("batch-major", id="refit-major")]
)
@pytest.mark.parametrize("halves", [False, True], ids=["fp32", "fp16"])
def test_weights_are_replaced_under_callers(
    network: KanSpec, retrained: KanSpec, flavour: Flavour, gpu: Gpu, tmp_path: Path, form: Layout, halves: bool
) -> None:
    options = EngineOptions(batch=BATCH, refittable=True)
    precision: Precision = "fp16" if halves else "fp32"
    path = export_engine(network, tmp_path / "bundle", flavour, gpu, engine=options, layout=form, precision=precision)
    runner = load(path, backend=flavour)
    refit_while_asked(runner, network, retrained, runner.artifact.tolerance)
    runner.close()


def test_weights_of_an_engine_that_is_not_refittable_stay(
    plain: Path, network: KanSpec, retrained: KanSpec, flavour: Flavour
) -> None:
    runner = load(plain, backend=flavour)
    with pytest.raises(InputError, match="export it again with relukan-export --trt --refittable"):
        runner.refit(retrained)
    assert_close(runner(rows(9)), network.evaluate(rows(9)), 1e-5)
    runner.close()


# --- ONNX Runtime on the GPU


@pytest.mark.parametrize("precision", ["fp32", "fp16"], ids=lambda precision: f"cuda-{precision}")
def test_onnx_runtime_on_the_gpu_answers_as_the_reference(
    network: KanSpec, tmp_path: Path, precision: Precision
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime was built without CUDA")
    bundle = export(network, tmp_path / "bundle", precision=precision)
    try:
        runner = load(bundle.path, backend="onnxruntime-cuda")
    except RelukanError as error:
        pytest.skip(f"ONNX Runtime could not start CUDA: {error}")
    for count in BATCHES:
        assert_close(runner(rows(count)), network.evaluate(rows(count)), bundle.manifest.artifacts[0].tolerance)
    runner.close()


def test_weights_of_onnx_runtime_on_the_gpu_are_replaced_under_callers(
    network: KanSpec, retrained: KanSpec, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime was built without CUDA")
    bundle = export(network, tmp_path / "bundle")
    try:
        runner = load(bundle.path, backend="onnxruntime-cuda")
    except RelukanError as error:
        pytest.skip(f"ONNX Runtime could not start CUDA: {error}")
    refit_while_asked(runner, network, retrained, 1e-5)
    runner.close()
