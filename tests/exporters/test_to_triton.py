"""Entries of a model repository, read by the schema that Triton's own clients carry.

What the real server makes of them is in tests/serving/.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from relukan_deploy.api import export
from relukan_deploy.bundle import ArtifactKind, Bundle, open_bundle, write_manifest
from relukan_deploy.errors import InputError
from relukan_deploy.exporters import to_triton as module
from relukan_deploy.exporters.to_triton import TritonOptions, check_entry, to_triton
from relukan_deploy.runtime import load
from relukan_deploy.spec import KanSpec, Precision


@pytest.fixture(scope="module")
def bundle(classifier: KanSpec, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A classification of four inputs into three kinds, as Triton can serve it."""
    return export(classifier, tmp_path_factory.mktemp("triton") / "plants", layout="batch-major")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"


def config_of(version: Path) -> Any:
    return text_format.Parse((version.parent / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def with_engine(
    bundle: Bundle, folder: Path, kind: ArtifactKind = "tensorrt", batch: tuple[int, int, int] = (1, 8, 32)
) -> Bundle:
    """The same bundle and an engine, which nothing here reads: real ones need the GPU they are for."""
    shutil.copytree(bundle.path, folder)
    (folder / "model.engine").write_bytes(b"plan")
    graph = bundle.manifest.artifacts[0]
    engine = dataclasses.replace(graph, file="model.engine", kind=kind, batch=batch)
    write_manifest(folder, dataclasses.replace(bundle.manifest, artifacts=(graph, engine)))
    return open_bundle(folder)


# --- what is in an entry


def test_the_graph_is_the_bundles(bundle: Bundle, repository: Path) -> None:
    version = to_triton(bundle, TritonOptions(repository))
    assert version == repository / "plants" / "1"
    assert {file.name: file.read_bytes() for file in version.iterdir()} == {"model.onnx": bundle.contents["model.onnx"]}
    assert config_of(version).backend == "onnxruntime"


def test_clients_see_one_row_behind_the_batch(bundle: Bundle, repository: Path) -> None:
    config = config_of(to_triton(bundle, TritonOptions(repository)))
    (x,), (y,) = config.input, config.output
    assert (x.name, list(x.dims), list(x.reshape.shape)) == ("x", [4], [4, 1])
    assert (y.name, list(y.dims), list(y.reshape.shape)) == ("y", [3], [3, 1])
    assert x.data_type == y.data_type == model_config_pb2.TYPE_FP32


def test_batches_are_those_of_the_export(bundle: Bundle, repository: Path) -> None:
    config = config_of(to_triton(bundle, TritonOptions(repository, max_delay=0.0005), batch=(1, 16, 256)))
    assert config.max_batch_size == 256
    assert list(config.dynamic_batching.preferred_batch_size) == [16, 256]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert [each.batch_size for each in config.model_warmup] == [1, 16, 256]


def test_nothing_waits_unless_it_is_asked_for(bundle: Bundle, repository: Path) -> None:
    config = config_of(to_triton(bundle, TritonOptions(repository)))
    assert config.dynamic_batching.max_queue_delay_microseconds == 0


def test_a_largest_batch_of_one_row_is_warmed_up_once(bundle: Bundle, repository: Path) -> None:
    config = config_of(to_triton(bundle, TritonOptions(repository), batch=(1, 1, 1)))
    assert [each.batch_size for each in config.model_warmup] == [1]


def test_the_warm_up_is_a_golden_row(bundle: Bundle, repository: Path) -> None:
    version = to_triton(bundle, TritonOptions(repository))
    (row,) = {each.inputs["x"].input_data_file for each in config_of(version).model_warmup}
    written = np.frombuffer((version.parent / "warmup" / row).read_bytes(), np.float32)
    assert np.array_equal(written, bundle.golden()[0][0])


def test_labels_stand_in_the_order_of_the_outputs(bundle: Bundle, repository: Path) -> None:
    version = to_triton(bundle, TritonOptions(repository))
    (y,) = config_of(version).output
    assert (version.parent / y.label_filename).read_text().splitlines() == ["fern", "moss", "oak"]


def test_a_label_of_two_lines_takes_one(make_spec: Callable[..., KanSpec], tmp_path: Path) -> None:
    spec = make_spec((2, 2), task="classification", labels=("a\nb", 'c "d" é'))
    version = to_triton(export(spec, tmp_path / "b", layout="batch-major"), TritonOptions(tmp_path / "models"))
    assert (version.parent / "labels.txt").read_text(encoding="utf-8").splitlines() == ["a b", 'c "d" é']


def test_a_regression_has_no_labels(spec: KanSpec, tmp_path: Path) -> None:
    version = to_triton(export(spec, tmp_path / "b", layout="batch-major"), TritonOptions(tmp_path / "models"))
    assert not (version.parent / "labels.txt").exists()
    assert config_of(version).output[0].label_filename == ""


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("fp16", 2)])
def test_a_tensor_has_the_graphs_type(spec: KanSpec, tmp_path: Path, precision: Precision, size: int) -> None:
    bundle = export(spec, tmp_path / "b", layout="batch-major", precision=precision, tolerance=1.0)
    version = to_triton(bundle, TritonOptions(tmp_path / "models"))
    element = getattr(model_config_pb2, f"TYPE_{precision.upper()}")
    config = config_of(version)
    assert (config.input[0].data_type, config.output[0].data_type) == (element, element)
    assert config.model_warmup[0].inputs["x"].data_type == element
    assert (version.parent / "warmup" / "x").stat().st_size == 3 * size


def test_instances_are_counted(bundle: Bundle, repository: Path) -> None:
    (group,) = config_of(to_triton(bundle, TritonOptions(repository, instances=3))).instance_group
    assert (group.count, group.kind) == (3, model_config_pb2.ModelInstanceGroup.KIND_CPU)


def test_only_the_newest_version_is_served(bundle: Bundle, repository: Path) -> None:
    assert config_of(to_triton(bundle, TritonOptions(repository))).version_policy.latest.num_versions == 1


# --- the backends


def test_the_python_backend_gets_a_copy_of_the_bundle(bundle_path: Path, repository: Path) -> None:
    version = to_triton(open_bundle(bundle_path), TritonOptions(repository, name="own", backend="python"))
    assert sorted(file.name for file in version.iterdir()) == ["bundle", "model.py"]
    x, _ = open_bundle(bundle_path).golden()
    assert np.array_equal(load(version / "bundle")(x), load(bundle_path)(x))
    config = config_of(version)
    assert (config.backend, list(config.input[0].dims), list(config.output[0].dims)) == ("python", [3], [2])
    assert not config.input[0].HasField("reshape")
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_MODEL


def test_the_python_backend_gets_the_bundle_that_was_opened(spec: KanSpec, classifier: KanSpec, tmp_path: Path) -> None:
    bundle = export(spec, tmp_path / "b")
    export(classifier, tmp_path / "b")  # meanwhile
    version = to_triton(bundle, TritonOptions(tmp_path / "models", backend="python"))
    assert open_bundle(version / "bundle").manifest == bundle.manifest


def test_the_python_backend_takes_float32_whatever_the_graph_has(spec: KanSpec, tmp_path: Path) -> None:
    bundle = export(spec, tmp_path / "b", precision="fp16", tolerance=1.0)
    version = to_triton(bundle, TritonOptions(tmp_path / "models", backend="python"))
    assert config_of(version).input[0].data_type == model_config_pb2.TYPE_FP32
    assert (version.parent / "warmup" / "x").stat().st_size == 3 * 4


def test_an_engine_is_served_if_there_is_one(bundle: Bundle, tmp_path: Path) -> None:
    version = to_triton(with_engine(bundle, tmp_path / "b"), TritonOptions(tmp_path / "models"), batch=(1, 64, 1024))
    assert {file.name: file.read_bytes() for file in version.iterdir()} == {"model.plan": b"plan"}
    config = config_of(version)
    assert (config.backend, config.max_batch_size) == ("tensorrt", 32)
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU


def test_the_graph_can_be_asked_for_beside_an_engine(bundle: Bundle, tmp_path: Path) -> None:
    options = TritonOptions(tmp_path / "models", backend="onnxruntime")
    assert (to_triton(with_engine(bundle, tmp_path / "b"), options) / "model.onnx").is_file()


def test_an_engine_of_tensorrt_rtx_is_left_to_others(bundle: Bundle, tmp_path: Path) -> None:
    engine = with_engine(bundle, tmp_path / "b", kind="tensorrt-rtx")
    assert (to_triton(engine, TritonOptions(tmp_path / "models")) / "model.onnx").is_file()
    with pytest.raises(InputError, match=r"of TensorRT-RTX, which Triton has no backend for.*--flavour tensorrt"):
        to_triton(engine, TritonOptions(tmp_path / "models", backend="tensorrt_plan"))


def test_an_engine_that_is_not_there_is_asked_for(bundle: Bundle, repository: Path) -> None:
    with pytest.raises(InputError, match=r"holds no engine\. Export on the target GPU with --trt --flavour tensorrt"):
        to_triton(bundle, TritonOptions(repository, backend="tensorrt_plan"))
    assert not repository.exists()


def test_an_engine_without_single_rows_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    engine = with_engine(bundle, tmp_path / "b", batch=(4, 8, 32))
    with pytest.raises(InputError, match=r"takes 4 rows or more.*--batch 1 8 32"):
        to_triton(engine, TritonOptions(tmp_path / "models"))


def test_a_batch_last_graph_is_refused(bundle_path: Path, repository: Path) -> None:
    with pytest.raises(InputError, match=r"joins requests along axis 0, and batch-last.*--triton-backend python"):
        to_triton(open_bundle(bundle_path), TritonOptions(repository))


def test_a_bf16_graph_is_refused_where_nothing_runs_it(spec: KanSpec, tmp_path: Path) -> None:
    bundle = export(spec, tmp_path / "b", layout="batch-major", precision="bf16", tolerance=1.0)
    with pytest.raises(InputError, match="ONNX Runtime has no bf16 Conv on a CPU"):
        to_triton(bundle, TritonOptions(tmp_path / "models"))


# --- versions


def test_each_export_is_the_next_version(bundle: Bundle, repository: Path) -> None:
    versions = [to_triton(bundle, TritonOptions(repository)).name for _ in range(3)]
    assert versions == ["1", "2", "3"]
    assert {file.read_bytes() for file in repository.glob("plants/*/model.onnx")} == {bundle.contents["model.onnx"]}


def test_a_version_comes_after_the_largest(bundle: Bundle, repository: Path) -> None:
    to_triton(bundle, TritonOptions(repository))
    (repository / "plants" / "9").mkdir()
    (repository / "plants" / "notes").mkdir()
    assert to_triton(bundle, TritonOptions(repository)).name == "10"


def test_nothing_else_is_left_in_the_repository_or_beside_it(bundle: Bundle, repository: Path) -> None:
    for _ in range(2):
        to_triton(bundle, TritonOptions(repository))
    assert [entry.name for entry in repository.parent.iterdir()] == ["models"]
    assert [entry.name for entry in repository.iterdir()] == ["plants"]
    assert {entry.name for entry in (repository / "plants").iterdir()} == {
        "1",
        "2",
        "config.pbtxt",
        "labels.txt",
        "warmup",
    }


def test_shared_files_that_stay_the_same_are_not_touched(bundle: Bundle, repository: Path) -> None:
    place = to_triton(bundle, TritonOptions(repository)).parent
    before = {name: (place / name).stat().st_ino for name in ("config.pbtxt", "labels.txt", "warmup/x")}
    to_triton(bundle, TritonOptions(repository))
    assert {name: (place / name).stat().st_ino for name in before} == before


def test_a_version_can_have_another_backend_and_other_batches(bundle: Bundle, repository: Path) -> None:
    to_triton(bundle, TritonOptions(repository))
    config = config_of(to_triton(bundle, TritonOptions(repository, backend="python"), batch=(1, 4, 8)))
    assert (config.backend, config.max_batch_size) == ("python", 8)


def test_a_version_whose_clients_would_break_is_refused(
    bundle: Bundle, spec: KanSpec, tmp_path: Path, repository: Path
) -> None:
    to_triton(bundle, TritonOptions(repository))
    other = export(spec, tmp_path / "other", layout="batch-major")
    rely = r"rely on x TYPE_FP32 \[4\], y TYPE_FP32 \[3\], and this network has x TYPE_FP32 \[3\], y TYPE_FP32 \[2\]"
    with pytest.raises(InputError, match=rely):
        to_triton(other, TritonOptions(repository, name="plants"))
    assert not (repository / "plants" / "2").exists()


def test_two_exports_at_once_are_two_versions(bundle: Bundle, repository: Path) -> None:
    threads = [threading.Thread(target=to_triton, args=(bundle, TritonOptions(repository))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.name for entry in repository.glob("plants/*/")) == [*map(str, range(1, 9)), "warmup"]
    assert len(list(repository.glob("plants/*/model.onnx"))) == 8


def test_a_server_that_looks_at_any_moment_sees_whole_versions(bundle: Bundle, repository: Path) -> None:
    stop = threading.Event()
    partial: list[str] = []

    def look() -> None:
        while not stop.is_set():
            for place in repository.glob("*"):
                config = (place / "config.pbtxt").exists()
                versions = [
                    each for each in place.iterdir() if each.name not in ("config.pbtxt", "labels.txt", "warmup")
                ]
                whole = [each for each in versions if (each / "model.onnx").exists() or each.name.startswith(".")]
                if not config or len(whole) < len(versions) or not versions or place.name != "plants":
                    partial.append(f"{place}: {versions}")

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(10):
        to_triton(bundle, TritonOptions(repository))
    stop.set()
    thread.join()
    assert partial == []


# --- what is refused


def foreign(repository: Path) -> Path:
    place = repository / "plants"
    (place / "1").mkdir(parents=True)
    (place / "config.pbtxt").write_text('backend: "onnxruntime"\n')
    return place


def test_somebody_elses_model_is_left_alone(bundle: Bundle, repository: Path) -> None:
    place = foreign(repository)
    with pytest.raises(InputError, match=r"plants is a model that relukan-export did not write.*Give another --name"):
        to_triton(bundle, TritonOptions(repository))
    assert (place / "config.pbtxt").read_text() == 'backend: "onnxruntime"\n'
    assert list((place / "1").iterdir()) == []


def test_a_model_without_a_config_is_somebody_elses(bundle: Bundle, repository: Path) -> None:
    (repository / "plants").mkdir(parents=True)
    with pytest.raises(InputError, match="did not write"):
        check_entry(TritonOptions(repository), bundle.path, "batch-major")


@pytest.mark.parametrize("name", ["", "a b", "../up", ".hidden", "a/b", "é", "[x]"])
def test_a_name_that_does_not_fit_into_a_url_is_refused(repository: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"a model's name in Triton has letters, digits.*give --name"):
        check_entry(TritonOptions(repository, name=name), Path("bundle"), "batch-major")


def test_the_name_is_the_bundles_unless_another_is_given(repository: Path) -> None:
    assert check_entry(TritonOptions(repository), Path("some/kan.v2"), "batch-major") == repository / "kan.v2"
    with pytest.raises(InputError, match="got 'my model': give --name"):
        check_entry(TritonOptions(repository), Path("some/my model"), "batch-major")


@pytest.mark.parametrize(
    ("repository", "bundle"),
    [("models", "models"), ("models", "models/kan"), ("kan/models", "kan"), ("models", "models/a/b")],
)
def test_bundle_and_repository_do_not_lie_in_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: str, bundle: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="lie in one another"):
        check_entry(TritonOptions(Path(repository)), Path(bundle), "batch-major")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"instances": 0}, "instances must be at least 1, got 0"),
        ({"max_delay": -1.0}, r"max_delay must be a time in seconds from 0 on, got -1\.0"),
        ({"max_delay": float("nan")}, "got nan"),
        ({"max_delay": float("inf")}, "got inf"),
    ],
)
def test_options_are_checked(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        TritonOptions(Path("models"), **wrong)


def test_a_repository_on_a_file_system_of_its_own_is_told_of(
    bundle: Bundle, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(target))

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(InputError, match=r"cannot be written .*cross-device.*has to be writable and on the same file"):
        to_triton(bundle, TritonOptions(repository))
    assert list(repository.iterdir()) == []


# --- protobuf's text format


def test_text_is_escaped() -> None:
    text = module._as_text({"parameters": {"key": 'a "b" \\ é', "value": {"string_value": "x"}}})
    (parsed,) = text_format.Parse(text, model_config_pb2.ModelConfig()).parameters
    assert parsed == 'a "b" \\ é'
