"""`export` and `verify`, as one call each."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import relukan_deploy
from relukan_deploy.api import export, verify
from relukan_deploy.bundle import Bundle, open_bundle, write_manifest
from relukan_deploy.checkpoint import save
from relukan_deploy.errors import (
    BundleError,
    CheckpointError,
    InputError,
    MissingDependencyError,
    MissingDeviceError,
    ParityError,
    TableError,
)
from relukan_deploy.exporters.to_tensorrt import Engine, EngineOptions, build_engine
from relukan_deploy.gpu import find_gpu
from relukan_deploy.model import ReLUKAN
from relukan_deploy.parity import golden_inputs
from relukan_deploy.spec import KanSpec, LayerSpec, Layout

MakeSpec = Callable[..., KanSpec]
DATA = Path(__file__).parent / "data"

without_gpu = pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    save(ReLUKAN([2, 4, 1]), path, columns=("a", "b"), targets=("c",))
    return path


@pytest.fixture(scope="module")
def from_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint, tmp_path_factory.mktemp("from") / "bundle").path


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_they_are_at_the_top_of_the_package() -> None:
    assert relukan_deploy.export is export
    assert relukan_deploy.verify is verify


# --- where from, where to


def test_a_checkpoints_bundle_is_beside_it_and_named_after_it(checkpoint: Path, tmp_path: Path) -> None:
    model = Path(shutil.copy(checkpoint, tmp_path / "flower.pt"))
    assert export(model).path == tmp_path / "flower"
    assert open_bundle(tmp_path / "flower").manifest.columns == ("a", "b")


def test_a_path_may_be_text(checkpoint: Path, tmp_path: Path) -> None:
    assert export(str(checkpoint), str(tmp_path / "bundle")).path == tmp_path / "bundle"


def test_a_checkpoint_without_a_suffix_needs_a_place_for_its_bundle(checkpoint: Path, tmp_path: Path) -> None:
    model = Path(shutil.copy(checkpoint, tmp_path / "flower"))
    with pytest.raises(InputError, match="has no suffix to take off, so the bundle needs a place of its own"):
        export(model)


def test_a_network_in_memory_needs_a_place_for_its_bundle(spec: KanSpec) -> None:
    with pytest.raises(InputError, match="out must name the bundle's folder"):
        export(spec)


def test_a_torch_network_is_exported_as_its_own_forward_computes(tmp_path: Path) -> None:
    import torch

    model = ReLUKAN([2, 3, 2])
    runner = relukan_deploy.load(export(model, tmp_path / "bundle").path)
    x = np.random.default_rng(0).uniform(-0.2, 1.2, (50, 2)).astype(np.float32)
    with torch.no_grad():
        expected = model.double()(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(runner(x), expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("layout", get_args(Layout))
def test_batch_normalisation_is_gone_from_what_is_exported(layout: Layout, tmp_path: Path) -> None:
    import onnx
    import torch

    torch.manual_seed(0)
    model = ReLUKAN([2, 5, 5, 2], batch_norm=True, initialization="linear")
    for _ in range(20):
        model(torch.rand(50, 2))  # learns its statistics
    bundle = export(model, tmp_path / "bundle", layout=layout)
    assert {node.op_type for node in onnx.load(bundle.path / "model.onnx").graph.node} <= {"Relu", "Mul", "Add", "Conv"}
    x = np.random.default_rng(0).uniform(-0.2, 1.2, (50, 2)).astype(np.float32)
    with torch.no_grad():
        expected = model.eval().double()(torch.from_numpy(x).double()).numpy()
    answers = relukan_deploy.load(bundle.path)(x)
    np.testing.assert_allclose(answers, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


def test_the_source_is_recorded(from_checkpoint: Path, checkpoint: Path) -> None:
    assert open_bundle(from_checkpoint).manifest.source == {
        "file": "model.pt",
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "kind": "relukan-deploy",
    }


@pytest.mark.parametrize(("name", "grid"), [("relu_kan_2_5_1_g5k3", 5), ("relu_kan_4_4_2_1_g10k3", 10)])
def test_a_checkpoint_of_the_reference_answers_as_the_reference(name: str, grid: int, tmp_path: Path) -> None:
    bundle = export(DATA / f"{name}.pt", tmp_path / "bundle", grid=grid, order=3)
    assert bundle.manifest.source["kind"] == "relu_kan"
    with np.load(DATA / f"{name}.npz") as recorded:
        x, y = recorded["x"], recorded["y64"] if "y64" in recorded else recorded["y"]
    answers = relukan_deploy.load(bundle.path)(x)
    assert np.abs(answers - y).max() <= 1e-5 * max(1, np.abs(y).max())


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"text")
    with pytest.raises(CheckpointError, match=r"model\.pt cannot be read"):
        export(tmp_path / "model.pt")
    assert [item.name for item in tmp_path.iterdir()] == ["model.pt"]


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision must be fp32, tf32, fp16, bf16, got 'int8'"),
        ({"layout": "nchw"}, "layout must be batch-last, batch-major, got 'nchw'"),
        ({"precision": "tf32"}, r"tf32 is a matter of the engine: add trt=True \(--trt\)"),
        ({"flavour": "tensorrt-rtx"}, r"tensorrt-rtx is a matter of the engine: add trt=True \(--trt\)"),
        ({"tolerance": 0}, "tolerance must be greater than 0, got 0"),
        ({"tolerance": -1e-3}, "tolerance must be greater than 0, got -0.001"),
        ({"tolerance": float("nan")}, "tolerance must be greater than 0, got nan"),
        ({"tolerance": float("inf")}, "tolerance must be greater than 0, got inf"),
    ],
)
def test_a_wrong_option_is_refused(spec: KanSpec, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export(spec, tmp_path / "bundle", **options)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("batch", [(0, 1, 2), (2, 1, 3), (1, 4, 2), (1, 2)])
def test_a_wrong_profile_is_refused(batch: Any) -> None:
    with pytest.raises(InputError, match="batch needs 1 <= MIN <= OPT <= MAX, got"):
        EngineOptions(batch=batch)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("layout", get_args(Layout))
def test_every_graph_is_compared_with_the_reference(
    spec: KanSpec, tmp_path: Path, precision: Any, layout: Layout
) -> None:
    (artifact,) = export(spec, tmp_path / "bundle", precision=precision, layout=layout).manifest.artifacts
    assert artifact.verified
    assert artifact.reason is None
    assert (artifact.precision, artifact.layout) == (precision, layout)
    assert artifact.parity is not None
    assert 0 < artifact.parity["error"] <= artifact.tolerance
    assert artifact.parity["rows"] == len(golden_inputs(spec))


def test_bf16_on_a_cpu_says_how_it_was_compared(spec: KanSpec, tmp_path: Path) -> None:
    if find_gpu():
        pytest.skip("there is a GPU")
    (artifact,) = export(spec, tmp_path / "bundle", precision="bf16").manifest.artifacts
    assert artifact.parity is not None
    assert artifact.parity["backend"] == "onnxruntime-cpu, rounding to bf16"


def test_the_recorded_error_is_that_of_the_graph_on_the_golden_inputs(bundle_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    x, y = open_bundle(bundle_path).golden()
    session = onnxruntime.InferenceSession(bundle_path / "model.onnx", providers=["CPUExecutionProvider"])
    answers = session.run(None, {"x": x.T[np.newaxis, :, np.newaxis, :].copy()})[0][0, :, 0].T
    (artifact,) = open_bundle(bundle_path).manifest.artifacts
    assert artifact.parity is not None
    least = np.abs(answers - y).max() / max(1, np.abs(y).max())  # the whole at once, one batch size of several
    assert least <= artifact.parity["error"] <= 4 * least


def test_say_is_told_what_is_being_done(spec: KanSpec, tmp_path: Path) -> None:
    said: list[str] = []
    export(spec, tmp_path / "bundle", say=said.append)
    assert said[:2] == ["reading the network", "writing the graph"]
    assert "comparing model.onnx on onnxruntime-cpu with the float64 reference" in said


# --- out of tolerance


def test_out_of_tolerance_leaves_the_bundle_that_was_there(classifier: KanSpec, copied: Path) -> None:
    before = files(copied)
    with pytest.raises(ParityError, match=r"model\.onnx on onnxruntime-cpu differs .* more than the tolerance 1e-09"):
        export(classifier, copied, tolerance=1e-9)
    assert files(copied) == before
    assert [item.name for item in copied.parent.iterdir()] == ["bundle"]


def test_out_of_tolerance_writes_no_new_bundle(spec: KanSpec, tmp_path: Path) -> None:
    with pytest.raises(ParityError):
        export(spec, tmp_path / "bundle", tolerance=1e-9)
    assert list(tmp_path.iterdir()) == []


def test_a_wider_tolerance_is_recorded(spec: KanSpec, tmp_path: Path) -> None:
    bundle = export(spec, tmp_path / "bundle", tolerance=0.5)
    assert bundle.manifest.artifacts[0].tolerance == 0.5


# --- engines


@needs_rtx
@without_gpu
def test_without_a_gpu_an_engine_is_marked_unverified_with_the_reason(engine_bundle_path: Path) -> None:
    graph, engine = open_bundle(engine_bundle_path).manifest.artifacts
    assert graph.verified
    assert (engine.verified, engine.reason, engine.parity) == (False, "no GPU here to run it", None)


@needs_rtx
def test_what_is_known_of_an_engine_is_recorded(engine_bundle_path: Path) -> None:
    import tensorrt_rtx

    engine = open_bundle(engine_bundle_path).manifest.artifacts[1]
    assert (engine.file, engine.kind, engine.batch) == ("model.engine", "tensorrt-rtx", (1, 64, 1024))
    assert engine.details["version"] == tensorrt_rtx.__version__
    assert engine.details["gpu"] is None
    assert engine.details["build_seconds"] > 0


@needs_rtx
@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_every_engine_is_built_beside_its_graph(spec: KanSpec, tmp_path: Path, precision: Any, layout: Layout) -> None:
    options = EngineOptions(batch=(2, 8, 32))
    bundle = export(
        spec, tmp_path / "b", trt=True, flavour="tensorrt-rtx", precision=precision, layout=layout, engine=options
    )
    graph, engine = bundle.manifest.artifacts
    assert graph.precision == ("fp32" if precision == "tf32" else precision)
    assert graph.verified
    assert (engine.precision, engine.layout, engine.batch) == (precision, layout, (2, 8, 32))
    assert graph.parity is not None
    assert {2, 8, 32} <= set(graph.parity["batches"])  # the graph is asked for the engine's limits too


@needs_rtx
def test_the_plan_is_written_as_tensorrt_gave_it(
    spec: KanSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = []

    def build(*arguments: Any, **options: Any) -> Engine:
        engine = build_engine(*arguments, **options)
        plans.append(engine.plan)
        return engine

    monkeypatch.setattr("relukan_deploy._recipe.build_engine", build)
    export(spec, tmp_path / "bundle", trt=True, flavour="tensorrt-rtx")
    assert (tmp_path / "bundle" / "model.engine").read_bytes() == plans[0]


@without_gpu
def test_tensorrt_without_a_gpu_is_missing_something(spec: KanSpec, tmp_path: Path) -> None:
    with pytest.raises((MissingDependencyError, MissingDeviceError)):
        export(spec, tmp_path / "bundle", trt=True, flavour="tensorrt")
    assert list(tmp_path.iterdir()) == []


@without_gpu
def test_no_tensorrt_at_all_says_what_to_install(
    spec: KanSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'relukan-deploy\[rtx\]'"):
        export(spec, tmp_path / "bundle", trt=True)


def test_no_onnx_says_what_to_install(spec: KanSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'relukan-deploy\[export\]'"):
        export(spec, tmp_path / "bundle")


@needs_rtx
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version_compatible": True}, "--version-compatible"),
        ({"hardware_compatible": True}, "--hardware-compatible"),
        ({"timing_cache": Path("cache")}, "--timing-cache"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused(
    spec: KanSpec, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"tensorrt-rtx .* cannot honour {message}"):
        export(spec, tmp_path / "bundle", trt=True, flavour="tensorrt-rtx", engine=EngineOptions(**options))
    assert list(tmp_path.iterdir()) == []


# --- verify


@without_gpu
def test_verify_compares_what_it_can_and_says_what_it_cannot(engine_bundle_path: Path) -> None:
    graph, engine = verify(engine_bundle_path)
    assert (graph.artifact.file, graph.backend, graph.reason) == ("model.onnx", "onnxruntime-cpu", None)
    assert graph.report is not None
    assert graph.report.passed
    assert (engine.artifact.file, engine.backend) == ("model.engine", "tensorrt-rtx")
    assert (engine.report, engine.reason) == (None, "no GPU here to run it")


def test_verify_changes_nothing(copied: Path) -> None:
    before = files(copied)
    verify(copied)
    assert files(copied) == before


def test_verify_refuses_a_damaged_bundle(copied: Path) -> None:
    (copied / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="has changed"):
        verify(copied)


def test_verify_finds_wrong_answers(copied: Path) -> None:
    bundle = open_bundle(copied)
    x, y = bundle.golden()
    np.savez(copied / "golden.npz", x=x, y=y + 1e-3)
    write_manifest(copied, bundle.manifest)
    with pytest.raises(ParityError, match=r"model\.onnx on onnxruntime-cpu"):
        verify(copied)


def test_verify_with_a_tolerance_of_its_own(bundle_path: Path) -> None:
    with pytest.raises(ParityError, match="more than the tolerance 1e-09"):
        verify(bundle_path, tolerance=1e-9)


@pytest.mark.parametrize("tolerance", [0, -1, float("nan"), float("inf")])
def test_verify_refuses_a_tolerance_that_is_none(bundle_path: Path, tolerance: float) -> None:
    with pytest.raises(InputError, match="tolerance must be greater than 0"):
        verify(bundle_path, tolerance=tolerance)


def test_verify_with_the_checkpoint(from_checkpoint: Path, checkpoint: Path) -> None:
    (check,) = verify(from_checkpoint, checkpoint=checkpoint)
    assert check.report is not None
    assert check.report.passed


def test_verify_with_the_checkpoint_does_not_trust_the_golden_answers(
    from_checkpoint: Path, checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(from_checkpoint, tmp_path / "bundle"))
    bundle = open_bundle(folder)
    x, y = bundle.golden()
    np.savez(folder / "golden.npz", x=x, y=y + 1e-3)
    write_manifest(folder, bundle.manifest)
    (check,) = verify(folder, checkpoint=checkpoint)
    assert check.report is not None
    assert check.report.passed


def test_verify_refuses_another_checkpoint(from_checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    save(ReLUKAN([2, 4, 1]), other, columns=("a", "b"))
    with pytest.raises(InputError, match=r"other\.pt is not the checkpoint that .* was exported from"):
        verify(from_checkpoint, checkpoint=other)


# --- with data


@pytest.fixture
def table(tmp_path: Path) -> Path:
    generator = np.random.default_rng(5)
    path = tmp_path / "data.npz"
    np.savez(path, c=generator.uniform(size=40), b=generator.uniform(-2, 3, 40), a=generator.uniform(size=40))
    return path


def test_verify_on_data_needs_the_checkpoint(bundle_path: Path, table: Path) -> None:
    with pytest.raises(InputError, match="comparing on data needs the checkpoint too"):
        verify(bundle_path, data=table)


def test_verify_compares_on_data_besides(from_checkpoint: Path, checkpoint: Path, table: Path) -> None:
    (check,) = verify(from_checkpoint, data=table, checkpoint=checkpoint)
    assert check.report is not None
    assert check.report.rows == len(open_bundle(from_checkpoint).golden()[0]) + 40


def test_export_compares_on_data_and_does_not_keep_it(checkpoint: Path, table: Path, tmp_path: Path) -> None:
    bundle = export(checkpoint, tmp_path / "bundle", data=table)
    x, _ = bundle.golden()
    (artifact,) = bundle.manifest.artifacts
    assert artifact.parity is not None
    assert artifact.parity["rows"] == len(x) + 40
    with np.load(table) as columns:
        assert not np.isin(columns["a"].astype(np.float32), x[:, 0]).any()


def test_an_error_on_the_data_alone_is_found(
    checkpoint: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def compare(run: Any, x: Any, reference: Any, **options: Any) -> Any:
        seen.append((x, reference))
        raise ParityError

    monkeypatch.setattr("relukan_deploy.api.compare", compare)
    with pytest.raises(ParityError):
        export(checkpoint, tmp_path / "bundle", data=table)
    rows, reference = seen[0][0][-40:], seen[0][1][-40:]
    with np.load(table) as columns:
        np.testing.assert_array_equal(rows, np.stack([columns["a"], columns["b"]], axis=1).astype(np.float32))
    assert reference.shape == (40, 1)


def test_a_column_that_the_data_lacks_is_named(checkpoint: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", a=np.ones(3))
    with pytest.raises(TableError, match="there is no column 'b'"):
        export(checkpoint, tmp_path / "bundle", data=tmp_path / "data.npz")
    assert not (tmp_path / "bundle").exists()


# --- classification


def test_a_classification_reports_its_class_agreement(classifier: KanSpec, tmp_path: Path) -> None:
    bundle: Bundle = export(classifier, tmp_path / "bundle")
    (artifact,) = bundle.manifest.artifacts
    assert bundle.manifest.labels == ("fern", "moss", "oak")
    assert artifact.parity is not None
    assert artifact.parity["agreement"] == 1.0


def test_fp16_is_also_estimated_with_every_operator_rounded(spec: KanSpec, tmp_path: Path) -> None:
    if find_gpu():
        pytest.skip("there is a GPU")
    (artifact,) = export(spec, tmp_path / "bundle", precision="fp16").manifest.artifacts
    assert artifact.parity is not None
    assert artifact.parity["backend"] == "onnxruntime-cpu"
    assert 1e-4 < artifact.details["rounded_error"] < 1e-2
    checks = verify(tmp_path / "bundle")
    assert [(check.backend, check.binding) for check in checks] == [
        ("onnxruntime-cpu", True),
        ("onnxruntime-cpu, rounding to fp16", False),
    ]


def test_a_network_too_narrow_for_the_quadratic_form_gets_the_direct_one(
    spec: KanSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_width, bumps = 0.02, 50  # bumps so narrow that squares of distances lose three digits
    centres = np.linspace(0, 1, bumps)
    rng = np.random.default_rng(0)
    layer = LayerSpec(
        starts=np.tile(centres - half_width, (4, 1)),
        ends=np.tile(centres + half_width, (4, 1)),
        coefficients=rng.normal(size=(1, 4, bumps)),
        bias=np.zeros(1),
    )
    monkeypatch.setattr("relukan_deploy._recipe.candidate_forms", lambda *_, **options: ["quadratic", "direct"])
    (artifact,) = export(KanSpec((layer,)), tmp_path / "bundle").manifest.artifacts
    assert artifact.form == "direct"
    assert artifact.verified


def test_a_graph_that_onnx_runtime_cannot_open_is_not_exported(
    spec: KanSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise BundleError("ONNX Runtime cannot load the graph")

    monkeypatch.setattr("relukan_deploy.api.open_backend", broken)
    with pytest.raises(BundleError, match="cannot load the graph"):
        export(spec, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_each_artifact_is_in_the_form_of_its_target(spec: KanSpec, tmp_path: Path) -> None:
    graph, engine = export(spec, tmp_path / "bundle", trt=True).manifest.artifacts
    assert (graph.form, engine.form) == ("quadratic", "direct")


def test_a_bundle_with_somebody_elses_file_in_it_is_left_alone(spec: KanSpec, tmp_path: Path) -> None:
    export(spec, tmp_path / "bundle")
    (tmp_path / "bundle" / "NOTES.md").write_text("mine")
    with pytest.raises(BundleError, match=r"also holds NOTES\.md, which would be lost"):
        export(spec, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "NOTES.md").read_text() == "mine"


def test_the_current_folder_is_not_replaced(spec: KanSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="holds the current folder"):
        export(spec, ".")


def test_the_checkpoint_is_not_overwritten_by_its_bundle(tmp_path: Path) -> None:
    save(ReLUKAN([2, 1]), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"is the checkpoint itself: choose another place"):
        export(tmp_path / "model.pt", tmp_path / "model.pt")


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model must be a checkpoint file or a network, got int"):
        export(3, tmp_path / "bundle")  # type: ignore[arg-type]
