"""A bundle is what was exported, or it is refused."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import bump_layers, spline_layers, spline_network

import relukan_deploy.bundle
from relukan_deploy.api import export
from relukan_deploy.approximation import Approximation
from relukan_deploy.bundle import Bundle, SplineShape, open_bundle, replacing_bundle, write_manifest
from relukan_deploy.errors import BundleError
from relukan_deploy.spec import KanSpec

Sign = Callable[[Path, dict[str, Any]], None]
APPROXIMATION = Approximation("sin", edges=2, bound=1e-6, error=5e-7, pieces=3, degree=7, interval=None)


def read_json(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return content


# --- what is in it


def test_the_manifest_says_what_the_network_is(bundle_path: Path) -> None:
    content = read_json(bundle_path)
    assert content["schema_version"] == 1
    assert content["widths"] == [3, 5, 2]
    assert content["task"] == "regression"
    assert content["columns"] == ["width", "height", "depth"]
    assert content["targets"] == ["mass", "cost"]
    assert content["labels"] is None


def test_the_manifest_gives_the_domain_of_each_input(bundle_path: Path, spec: KanSpec) -> None:
    first = bump_layers(spec)[0]
    live = first.starts < first.ends
    expected = [
        [row_s[row].min(), row_e[row].max()] for row_s, row_e, row in zip(first.starts, first.ends, live, strict=True)
    ]
    assert read_json(bundle_path)["domain"] == expected


def test_the_manifest_lists_the_operators_of_the_graph(bundle_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    nodes = [node.op_type for node in onnx.load(bundle_path / "model.onnx").graph.node]
    listed = read_json(bundle_path)["artifacts"][0]["details"]["operators"]
    assert listed == {name: nodes.count(name) for name in nodes}


def test_the_manifest_names_the_tools(bundle_path: Path) -> None:
    versions = read_json(bundle_path)["versions"]
    assert versions["numpy"] == np.__version__
    assert {"python", "relukan-deploy", "onnx", "onnxruntime"} <= set(versions)


def test_the_hashes_are_those_of_the_files(engine_bundle_path: Path) -> None:
    content = read_json(engine_bundle_path)
    assert set(content["files"]) == {"model.onnx", "model.engine", "golden.npz"}
    for name, entry in content["files"].items():
        data = (engine_bundle_path / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def test_nothing_but_the_bundle_is_left_where_it_was_written(bundle_path: Path) -> None:
    assert [item.name for item in bundle_path.parent.iterdir()] == ["bundle"]
    assert sorted(item.name for item in bundle_path.iterdir()) == ["golden.npz", "manifest.json", "model.onnx"]


def test_other_users_may_read_a_bundle_as_the_umask_says(bundle_path: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    assert bundle_path.stat().st_mode == plain.stat().st_mode


def test_what_is_written_is_what_is_read(copied: Path) -> None:
    manifest = open_bundle(copied).manifest
    write_manifest(copied, manifest)
    assert open_bundle(copied).manifest == manifest


def test_contents_are_the_bytes_of_the_files(engine_bundle_path: Path) -> None:
    contents = open_bundle(engine_bundle_path).contents
    assert contents == {name: (engine_bundle_path / name).read_bytes() for name in contents}
    assert set(contents) == {"model.onnx", "model.engine", "golden.npz"}


def test_an_opened_bundle_keeps_its_manifest_as_it_was(copied: Path) -> None:
    raw = (copied / "manifest.json").read_bytes()
    bundle = open_bundle(copied)
    write_manifest(copied, dataclasses.replace(bundle.manifest, version=2))
    assert bundle.raw_manifest == raw


def test_golden_answers_are_those_of_the_float64_reference(bundle_path: Path, spec: KanSpec) -> None:
    x, y = open_bundle(bundle_path).golden()
    np.testing.assert_array_equal(y, spec.evaluate(x))
    assert [x.dtype.name, y.dtype.name] == ["float32", "float64"]


# --- what is refused: changes


@pytest.mark.parametrize("name", ["model.onnx", "model.engine", "golden.npz"])
def test_a_changed_byte_anywhere_is_refused(engine_bundle_path: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(engine_bundle_path, tmp_path / "bundle"))
    good = (folder / name).read_bytes()
    positions = {*range(16), *range(len(good) - 16, len(good)), *range(0, len(good), max(1, len(good) // 150))}
    for position in positions:
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        (folder / name).write_bytes(bad)
        with pytest.raises(BundleError, match=f"{name} has changed since it was written"):
            open_bundle(folder)
    (folder / name).write_bytes(good)
    open_bundle(folder)


def test_every_single_byte_of_the_manifest_is_guarded(copied: Path) -> None:
    file = copied / "manifest.json"
    good = file.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        file.write_bytes(bad)
        with pytest.raises(BundleError):
            open_bundle(copied)
    file.write_bytes(good)
    open_bundle(copied)


def test_a_manifest_with_other_white_space_is_refused(copied: Path) -> None:
    file = copied / "manifest.json"
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(BundleError, match="has changed since it was written"):
        open_bundle(copied)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        open_bundle(copied)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
@pytest.mark.parametrize("size", [0, 1, -1])
def test_a_truncated_file_is_refused(copied: Path, name: str, size: int) -> None:
    data = (copied / name).read_bytes()
    (copied / name).write_bytes(data[:size])
    with pytest.raises(BundleError, match=f"{name} has changed"):
        open_bundle(copied)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_extra_bytes_are_refused(copied: Path, name: str) -> None:
    with (copied / name).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match=f"{name} has changed"):
        open_bundle(copied)


def test_a_folder_in_the_place_of_a_file_is_refused(copied: Path) -> None:
    (copied / "model.onnx").unlink()
    (copied / "model.onnx").mkdir()
    with pytest.raises(BundleError, match=r"model\.onnx"):
        open_bundle(copied)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx"])
def test_a_pipe_in_the_place_of_a_file_is_refused(copied: Path, name: str) -> None:
    (copied / name).unlink()
    os.mkfifo(copied / name)
    with pytest.raises(BundleError, match=rf"{name}.*\(not a regular file\)"):
        open_bundle(copied)


def test_a_manifest_without_an_end_is_refused(copied: Path) -> None:
    (copied / "manifest.json").unlink()
    (copied / "manifest.json").symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=r"manifest\.json \(not a regular file\)"):
        open_bundle(copied)


def test_a_pipe_in_the_place_of_the_manifest_is_not_replaced(spec: KanSpec, copied: Path) -> None:
    (copied / "manifest.json").unlink()
    os.mkfifo(copied / "manifest.json")
    with pytest.raises(BundleError, match=r"cannot be written \(.*not a regular file"):
        export(spec, copied)


def test_a_manifest_that_is_too_large_is_refused(copied: Path) -> None:
    os.truncate(copied / "manifest.json", 1 << 40)  # takes no room on the disk
    with pytest.raises(BundleError, match=r"manifest\.json is too large, expected at most 67108864 bytes"):
        open_bundle(copied)


@pytest.mark.parametrize("digest", ["", '"', "0" * 63, "A" * 64])
def test_a_hash_that_is_none_is_refused_before_it_is_looked_for(
    copied: Path, monkeypatch: pytest.MonkeyPatch, digest: str
) -> None:
    content = {**read_json(copied), "manifest_sha256": digest}
    (copied / "manifest.json").write_text(json.dumps(content))
    monkeypatch.delattr(relukan_deploy.bundle, "sha256")  # of what would be 64 times as large
    with pytest.raises(BundleError, match="has changed since it was written"):
        open_bundle(copied)


def test_a_truncated_manifest_is_refused_wherever_it_ends(copied: Path) -> None:
    good = (copied / "manifest.json").read_bytes()
    for size in range(0, len(good), 7):
        (copied / "manifest.json").write_bytes(good[:size])
        with pytest.raises(BundleError, match=r"manifest\.json"):
            open_bundle(copied)


# --- what is refused: things that are no bundle


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no readable manifest\.json"):
        open_bundle(tmp_path)


def test_a_path_with_nothing_there_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle: expected the folder that relukan-export wrote"):
        open_bundle(tmp_path / "nothing")


def test_a_file_is_no_bundle(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"x")
    with pytest.raises(BundleError, match="is not a bundle"):
        open_bundle(file)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"3",
        b'"text"',
        b"{}",
        b"\xff\xfe",
        b'{"format": 3}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 10_000,
        b'{"format": "relukan-deploy bundle", "schema_version": 1, "manifest_sha256": "\\ud800"}',
        b'{"format": "relukan-deploy bundle", "schema_version": 1, "manifest_sha256": null}',
        b'{"format": "relukan-deploy bundle", "schema_version": 1}',
    ],
    ids=lambda text: repr(text[:12]) + str(len(text)),
)
def test_other_json_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_another_schema_version_is_named(copied: Path, sign: Sign, version: object) -> None:
    sign(copied, {**read_json(copied), "schema_version": version})
    with pytest.raises(BundleError, match="this release reads 1: upgrade relukan-deploy"):
        open_bundle(copied)


# --- what is refused: manifests that are whole, but wrong

SPLINES = {"degree": 3, "basis": 8, "sums": 5, "branches": 1}
NOT_TEXT: tuple[Any, ...] = (3, None, [], {}, True)
BAD_FIELDS: dict[str, tuple[Any, ...]] = {
    "widths": ("35", 5, None, {}, [], [3], [3, "2"], [3, 0], [3, -2], [3, 2.0], [True, 2], [[3], 2]),
    "task": (*NOT_TEXT, "ranking"),
    "columns": ("abc", 5, {}, ["a", "b"], ["a", "b", 3], ["a", "b", None]),
    "targets": ("mass", 5, {}, [3]),
    "labels": ("ab", 5, ["a"], ["a", 2]),
    "domain": ("abc", None, 5, [], [None], [[0, 1]] * 2, [[0, 1]] * 4, [[0, 1], [0], [0, 1]], [["0", "1"]] * 3),
    "artifacts": ("abc", None, 5, {}, [], [5], [None], [[]], [{}], ["model.onnx"]),
    "source": ("abc", None, 5, [], {"file": 5}),
    "versions": ("abc", None, 5, [], {"numpy": 2}),
    "created": NOT_TEXT,
    "files": ("abc", None, 5, [], ["model.onnx"], {"model.onnx": None}, {"model.onnx": {}}, {"model.onnx": []}),
}
BAD_ARTIFACT_FIELDS: dict[str, tuple[Any, ...]] = {
    "file": NOT_TEXT,
    "kind": (*NOT_TEXT, "pytorch", "tensorrt"),  # an engine has batch sizes, a graph has none
    "precision": (*NOT_TEXT, "int8"),
    "layout": (*NOT_TEXT, "batch-first"),
    "form": (*NOT_TEXT, "cubic"),
    "tolerance": ("1e-5", None, True, [], {}),
    "batch": ("abc", 5, [], [1, 2], [1, 2, "3"], [1, 2, 3.0], {}),
    "verified": ("yes", 1, None),
    "reason": (3, [], True),
    "parity": ([], "x", 5),
    "details": (None, [], "x"),
    "constants": ([], {"w": 3}, {"w": [2.0]}, {"w": [4, 0]}, {"w": [-1]}),
}
BAD_APPROXIMATION_FIELDS: dict[str, tuple[Any, ...]] = {
    "function": NOT_TEXT,
    "edges": ("5", None, 5.5),
    "bound": ("1e-6", None, 0.0, -1e-6),
    "error": ("1e-6", None, []),
    "pieces": ("5", None, 5.5),
    "degree": ("5", None, 5.5),
    "interval": ("abc", 5, [], [1.0], ["0", "1"]),
}
BAD_SPLINES: tuple[Any, ...] = (
    *("abc", None, 5, [5], [{}], [SPLINES]),
    *([{**SPLINES, name: value}] * 2 for name in SPLINES for value in ("3", None, 2.5, -1)),
    *([{**SPLINES, name: 0}] * 2 for name in ("degree", "basis", "sums")),
)
BAD_ENTRY_FIELDS: dict[str, tuple[Any, ...]] = {
    "sha256": (*NOT_TEXT, "", "0" * 64),
    "bytes": ("5", None, 5.5, -1, -3, [], 0),
}


def cases(fields: dict[str, tuple[Any, ...]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}={value!r}") for name, values in fields.items() for value in values]


@pytest.mark.parametrize(("name", "value"), cases(BAD_FIELDS))
def test_a_wrong_field_is_refused(copied: Path, sign: Sign, name: str, value: Any) -> None:
    sign(copied, {**read_json(copied), name: value})
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(copied)


@pytest.mark.parametrize(("name", "value"), cases(BAD_ARTIFACT_FIELDS))
def test_a_wrong_field_of_an_artifact_is_refused(copied: Path, sign: Sign, name: str, value: Any) -> None:
    content = read_json(copied)
    content["artifacts"][0][name] = value
    sign(copied, content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(copied)


@pytest.mark.parametrize(("name", "value"), cases(BAD_APPROXIMATION_FIELDS))
def test_a_wrong_field_of_an_approximation_is_refused(copied: Path, sign: Sign, name: str, value: Any) -> None:
    fields = {**dataclasses.asdict(APPROXIMATION), name: value}
    sign(copied, {**read_json(copied), "approximations": [fields]})
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(copied)


@pytest.mark.parametrize("splines", BAD_SPLINES, ids=repr)
def test_wrong_splines_are_refused(copied: Path, sign: Sign, splines: Any) -> None:
    sign(copied, {**read_json(copied), "splines": splines})
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(copied)


def test_splines_are_what_the_network_has(tmp_path: Path) -> None:
    (first,), (second,) = (
        spline_layers(spline_network(0, [3, 4], powers=2)),
        spline_layers(spline_network(0, [2, 2], grid=4, degree=2, silu=0)),
    )
    multiplied = dataclasses.replace(first, products=((0, 1), (2,)), offset=np.zeros(2))
    found = export(KanSpec((multiplied, second)), tmp_path / "bundle").manifest.splines
    assert found == (SplineShape(3, 8, sums=4, branches=3), SplineShape(2, 6, sums=2, branches=0))


def test_a_bundle_of_bumps_has_no_splines_and_may_be_from_before_there_were_any(copied: Path, sign: Sign) -> None:
    content = read_json(copied)
    assert content.pop("splines") == []
    sign(copied, content)
    assert open_bundle(copied).manifest.splines == ()


@pytest.mark.parametrize("interval", [None, (-1.5, 2.0)])
def test_approximations_are_read_back(copied: Path, sign: Sign, interval: tuple[float, float] | None) -> None:
    written = dataclasses.replace(APPROXIMATION, interval=interval)
    sign(copied, {**read_json(copied), "approximations": [dataclasses.asdict(written)]})
    assert open_bundle(copied).manifest.approximations == (written,)


def test_a_bundle_from_before_there_were_approximations_has_none(copied: Path, sign: Sign) -> None:
    content = read_json(copied)
    del content["approximations"]
    sign(copied, content)
    assert open_bundle(copied).manifest.approximations == ()


@pytest.mark.parametrize(("name", "value"), cases(BAD_ENTRY_FIELDS))
def test_a_wrong_hash_or_size_is_refused(copied: Path, sign: Sign, name: str, value: Any) -> None:
    content = read_json(copied)
    content["files"]["model.onnx"][name] = value
    sign(copied, content)
    with pytest.raises(BundleError, match=r"damaged|has changed"):
        open_bundle(copied)


@pytest.mark.parametrize("name", ["format", "widths", "task", "columns", "targets", "labels", "domain", "artifacts"])
def test_a_missing_field_is_refused(copied: Path, sign: Sign, name: str) -> None:
    content = read_json(copied)
    del content[name]
    sign(copied, content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(copied)


@pytest.mark.parametrize("name", ["golden.npz", "model.onnx"])
def test_a_file_that_the_manifest_does_not_list_is_missed(copied: Path, sign: Sign, name: str) -> None:
    content = read_json(copied)
    del content["files"][name]
    sign(copied, content)
    with pytest.raises(BundleError, match=f"lists no {name}"):
        open_bundle(copied)


@pytest.mark.parametrize("name", ["../outside", "..", ".", "", "a/b", "/etc/hostname", "a\\b", "x\0y", "\ud800", "~"])
@pytest.mark.parametrize("where", ["files", "artifacts"])
def test_a_file_name_that_leads_out_of_the_folder_is_refused(copied: Path, sign: Sign, name: str, where: str) -> None:
    data = (copied / "model.onnx").read_bytes()
    (copied.parent / "outside").write_bytes(data)  # its contents would pass
    content = read_json(copied)
    if where == "files":
        content["files"][name] = content["files"]["model.onnx"]
    else:
        content["artifacts"][0]["file"] = name
    sign(copied, content)
    with pytest.raises(BundleError, match="is not the name of a file in the folder"):
        open_bundle(copied)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_field_holds_no_other_error_escapes(copied: Path, sign: Sign, data: st.DataObject) -> None:
    original = (copied / "manifest.json").read_bytes()
    content = copy.deepcopy(json.loads(original))
    place = data.draw(
        st.sampled_from([content, content["artifacts"][0], content["files"], content["files"]["model.onnx"]])
    )
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON_VALUES)
    try:
        sign(copied, content)
        try:
            opened = open_bundle(copied)
            opened.golden()
        except BundleError:
            pass
    finally:
        (copied / "manifest.json").write_bytes(original)


# --- golden answers


def golden_bytes(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


X, Y = np.zeros((4, 3), np.float32), np.zeros((4, 2))


def npy_bytes(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"PK\x03\x04" + b"x" * 40, id="half a zip"),
        pytest.param(npy_bytes(X), id="npy"),
        pytest.param(golden_bytes(x=X), id="no y"),
        pytest.param(golden_bytes(x=X, y=Y.astype(np.float32)), id="y in float32"),
        pytest.param(golden_bytes(x=X.astype(np.float64), y=Y), id="x in float64"),
        pytest.param(golden_bytes(x=X[:3], y=Y), id="fewer x than y"),
        pytest.param(golden_bytes(x=X[:, :2], y=Y), id="too narrow"),
        pytest.param(golden_bytes(x=X[:0], y=Y[:0]), id="no rows"),
        pytest.param(golden_bytes(x=np.float32(1), y=np.float64(1)), id="scalars"),
        pytest.param(golden_bytes(x=np.array([None]), y=Y), id="pickled objects"),
    ],
)
def test_golden_answers_that_do_not_fit_are_refused(copied: Path, data: bytes) -> None:
    (copied / "golden.npz").write_bytes(data)
    write_manifest(copied, open_manifest(copied))
    with pytest.raises(BundleError, match=r"golden\.npz"):
        open_bundle(copied).golden()


def open_manifest(folder: Path) -> Any:
    """The manifest of a folder whose other files need not match it."""
    return relukan_deploy.bundle._parse(folder, (folder / "manifest.json").read_bytes())


# --- what is replaced


def write_simple(path: Path, source: Bundle, task: str) -> None:
    with replacing_bundle(path) as folder:
        for name, content in source.contents.items():
            (folder / name).write_bytes(content)
        write_manifest(folder, dataclasses.replace(source.manifest, created=task))


def test_a_file_in_the_way_is_left_alone(spec: KanSpec, tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("text")
    with pytest.raises(BundleError, match=r"exists and is not a bundle: it is left alone\. Choose another"):
        export(spec, file)
    assert file.read_text() == "text"


@pytest.mark.parametrize("manifest", [None, "{}", '{"name": "a web page"}', "[1]", "not JSON", ""])
def test_a_folder_that_is_no_bundle_is_left_alone(spec: KanSpec, tmp_path: Path, manifest: str | None) -> None:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.tex").write_text("text")
    if manifest is not None:  # other tools write a manifest.json too
        (folder / "manifest.json").write_text(manifest)
    with pytest.raises(BundleError, match="exists and is not a bundle: it is left alone"):
        export(spec, folder)
    assert (folder / "thesis.tex").read_text() == "text"
    assert [item.name for item in tmp_path.iterdir()] == ["precious"]


def test_an_empty_folder_becomes_the_bundle(spec: KanSpec, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    export(spec, tmp_path / "bundle")
    assert open_bundle(tmp_path / "bundle").manifest.widths == (3, 5, 2)


def test_a_damaged_bundle_can_be_exported_again(spec: KanSpec, copied: Path) -> None:
    (copied / "model.onnx").write_bytes(b"")
    export(spec, copied)
    assert open_bundle(copied).manifest.widths == (3, 5, 2)


def test_folders_on_the_way_are_made(spec: KanSpec, tmp_path: Path) -> None:
    export(spec, tmp_path / "a" / "b" / "bundle")
    assert open_bundle(tmp_path / "a" / "b" / "bundle").manifest.widths == (3, 5, 2)


def test_a_place_that_cannot_be_written_is_named(spec: KanSpec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(BundleError, match=r"file/bundle cannot be written \(.*file'\)"):
        export(spec, tmp_path / "file" / "bundle")


def test_through_a_link_its_target_is_replaced(classifier: KanSpec, copied: Path) -> None:
    link = copied.parent / "current"
    link.symlink_to("bundle")
    export(classifier, link)
    assert link.is_symlink()
    assert open_bundle(copied).manifest.widths == (4, 6, 3)
    assert sorted(item.name for item in copied.parent.iterdir()) == ["bundle", "current"]


def test_an_error_while_writing_leaves_the_old_bundle(copied: Path) -> None:
    before = {file.name: file.read_bytes() for file in copied.iterdir()}

    def fail() -> None:
        with replacing_bundle(copied) as folder:
            (folder / "model.onnx").write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert {file.name: file.read_bytes() for file in copied.iterdir()} == before
    assert [item.name for item in copied.parent.iterdir()] == ["bundle"]


def test_a_bundle_replaced_while_it_is_read_is_read_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_bundle(copied)
    read_checked, calls = relukan_deploy.bundle._read_checked, 0

    def replace_first(path: Path, entry: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 2:  # after one file of the old bundle was read
            other = dataclasses.replace(source, contents=dict.fromkeys(source.contents, b"new"))
            write_simple(copied, other, "later")
        return read_checked(path, entry)

    monkeypatch.setattr(relukan_deploy.bundle, "_read_checked", replace_first)
    opened = open_bundle(copied)
    assert opened.manifest.created == "later"
    assert set(opened.contents.values()) == {b"new"}


def test_readers_see_one_bundle_or_the_other(copied: Path) -> None:
    source = open_bundle(copied)
    written: dict[str, bytes] = {"a": b"a" * 1000, "b": b"b" * 3000}

    def write(name: str) -> None:
        write_simple(copied, dataclasses.replace(source, contents=dict.fromkeys(source.contents, written[name])), name)

    write("a")

    def write_in_turn() -> None:
        for turn in range(30):
            write("ba"[turn % 2])

    writer = threading.Thread(target=write_in_turn)
    writer.start()
    seen = []
    while writer.is_alive():
        opened = open_bundle(copied)
        seen.append((opened.manifest.created, set(opened.contents.values())))
    writer.join()
    assert seen
    assert all(contents == {written[name]} for name, contents in seen)
