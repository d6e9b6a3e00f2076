"""Engines built for real by TensorRT-RTX, with no GPU, and everything that is refused."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from networks import LAYOUTS, random_network
from onnx import NodeProto, TensorProto, helper

from relukan_deploy.errors import BuildError, InputError, MissingDependencyError, MissingDeviceError
from relukan_deploy.exporters import to_tensorrt
from relukan_deploy.exporters.to_onnx import to_onnx
from relukan_deploy.exporters.to_tensorrt import Engine, EngineOptions, build_engine
from relukan_deploy.gpu import Gpu, find_gpu
from relukan_deploy.spec import Form, Layout, Precision

pytest.importorskip("tensorrt_rtx")

without_gpu = pytest.mark.skipif(find_gpu() is not None, reason="is about a machine with no GPU, and there is one")

MAGIC = b"vtrt"  # what a plan of TensorRT-RTX begins with
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16")
FORMS: tuple[Form, ...] = ("direct", "quadratic")


def build(
    model: bytes | None = None,
    *,
    layout: Layout = "batch-last",
    precision: Precision = "fp32",
    form: Form = "direct",
    **options: Any,
) -> Engine:
    model = model or to_onnx(random_network(0, [3, 4, 2]), layout=layout, form=form, precision=precision)
    options = {"flavour": "tensorrt-rtx", "in_features": 3, **options}
    return build_engine(model, layout=layout, precision=precision, **options)


def graph_of(*nodes: NodeProto) -> bytes:
    """A model from "x" to "y" of any nodes, unchecked."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 1, "batch"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    opset = helper.make_opsetid("", 13)
    data: bytes = helper.make_model(
        helper.make_graph(list(nodes), "g", [x], [y]), opset_imports=[opset], ir_version=8
    ).SerializeToString()
    return data


# --- engines


@pytest.mark.parametrize("batch", [(1, 64, 1024), (1, 1, 1)])
@pytest.mark.parametrize(("precision", "layout", "form"), list(itertools.product(PRECISIONS, LAYOUTS, FORMS)))
def test_every_precision_layout_and_form_builds(
    precision: Precision, layout: Layout, form: Form, batch: tuple[int, int, int]
) -> None:
    engine = build(layout=layout, precision=precision, form=form, options=EngineOptions(batch=batch))
    assert engine.plan.startswith(MAGIC)  # nothing before what TensorRT wrote
    assert (engine.flavour, engine.gpu) == ("tensorrt-rtx", None)
    assert engine.build_seconds > 0


def test_the_version_is_the_one_that_is_installed() -> None:
    import tensorrt_rtx

    assert build().version == tensorrt_rtx.__version__


@without_gpu
def test_no_flavour_takes_tensorrt_rtx_where_there_is_no_gpu() -> None:
    assert build(flavour=None).flavour == "tensorrt-rtx"


def test_no_flavour_takes_tensorrt_rtx_where_tensorrt_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_tensorrt, "find_gpu", lambda: Gpu("NVIDIA Test", "8.9", "13.0"))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    engine = build(flavour=None)
    assert (engine.flavour, engine.gpu) == ("tensorrt-rtx", None)  # it is for no GPU, whatever is beside it


def test_no_flavour_takes_tensorrt_where_it_and_a_gpu_are(monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = SimpleNamespace(Runtime=object)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    assert to_tensorrt._choose(None, Gpu("NVIDIA Test", "8.9", "13.0")) == ("tensorrt", fake)


def test_progress_goes_from_nothing_to_all_of_each_phase() -> None:
    calls: list[tuple[str, int, int]] = []
    build(progress=lambda phase, done, steps: calls.append((phase, done, steps)))
    phases = {phase for phase, _, _ in calls}
    assert phases
    for phase in phases:
        told = [(done, steps) for each, done, steps in calls if each == phase]
        assert told[0][0] == 0
        assert told[-1][0] == told[-1][1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_in_the_progress_stops_the_build_and_comes_out(error: type[BaseException]) -> None:
    def progress(phase: str, done: int, steps: int) -> None:
        if done:
            raise error

    with pytest.raises(error):
        build(progress=progress)


# --- graphs that cannot be built


def test_every_parser_error_is_shown_with_its_node() -> None:
    nodes = [helper.make_node("Foo", ["x"], ["a"], name="one"), helper.make_node("Bar", ["a"], ["y"], name="two")]
    with pytest.raises(BuildError, match=r"tensorrt-rtx \S+ cannot parse the graph:") as caught:
        build(graph_of(*nodes))
    _, *errors = str(caught.value).splitlines()
    assert [error.partition(": ")[0] for error in errors] == ["  node 0 'one' (Foo)", "  node 1 'two' (Bar)"]
    assert all("Plugin not found" in error for error in errors)


def test_an_attribute_that_is_not_supported_is_shown_with_its_node() -> None:
    node = helper.make_node("Pad", ["x"], ["y"], mode="strange", name="padding")
    with pytest.raises(BuildError, match=r"node 0 'padding' \(Pad\): "):
        build(graph_of(node))


def test_an_input_that_nothing_gives_is_shown_with_its_node() -> None:
    node = helper.make_node("Conv", ["x", "weight"], ["y"], name="sum")
    with pytest.raises(BuildError, match=r"node 0 'sum' \(Conv\): .*Node input was not registered"):
        build(graph_of(node))


def test_bytes_that_are_no_graph_are_said_to_be_unreadable() -> None:
    with pytest.raises(BuildError, match=r"cannot parse the graph:\n  .*Failed to parse the ONNX model"):
        build(b"garbage")


def test_what_the_builder_says_is_in_the_error() -> None:
    with pytest.raises(BuildError, match=r"could not build the engine:\n.*profile has min=4.* but tensor has 3"):
        build(in_features=4)


def test_a_workspace_that_is_too_small_is_said_to_be() -> None:
    with pytest.raises(BuildError, match="no tactics to implement the operation within workspace limit"):
        build(options=EngineOptions(workspace=1))


def test_a_workspace_that_is_large_enough_is_accepted() -> None:
    assert build(options=EngineOptions(workspace=1 << 30)).plan.startswith(MAGIC)


# --- options that cannot be honoured


@pytest.mark.parametrize(
    ("option", "flag"),
    [
        ({"version_compatible": True}, "--version-compatible: its engines run with the version that built them"),
        ({"hardware_compatible": True}, "--hardware-compatible: its engines run on every GPU it supports"),
        ({"timing_cache": Path("cache")}, "--timing-cache: it keeps none"),
    ],
)
def test_an_option_that_tensorrt_rtx_cannot_honour_is_refused(option: dict[str, Any], flag: str) -> None:
    with pytest.raises(InputError, match=rf"tensorrt-rtx \S+ cannot honour {re.escape(flag)}"):
        build(options=EngineOptions(**option))


@without_gpu
def test_a_refittable_engine_without_a_gpu_says_that_the_gpu_is_missing() -> None:
    with pytest.raises(MissingDeviceError, match="a refittable engine is built only where there is a GPU, and none was found"):
        build(options=EngineOptions(refittable=True))


@pytest.mark.parametrize("batch", [(0, 1, 2), (2, 1, 3), (1, 4, 3), (1, 2), (1, 2, 3, 4), (-1, 1, 1)])
def test_a_batch_profile_out_of_order_is_refused_as_given(batch: Any) -> None:
    given = " ".join(map(str, batch))
    with pytest.raises(InputError, match=f"^batch needs 1 <= MIN <= OPT <= MAX, got {given}$"):
        EngineOptions(batch=batch)


@pytest.mark.parametrize("workspace", [0, -5])
def test_a_workspace_of_no_bytes_is_refused(workspace: int) -> None:
    with pytest.raises(InputError, match=f"workspace must be at least 1 byte, got {workspace}"):
        EngineOptions(workspace=workspace)


# --- packages and GPUs that are missing


@pytest.mark.parametrize(
    ("flavour", "package", "extra"), [("tensorrt", "tensorrt", "trt"), ("tensorrt-rtx", "tensorrt_rtx", "rtx")]
)
def test_a_flavour_that_is_not_installed_is_named_with_what_installs_it(
    flavour: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = (
        f"Building an engine needs the package '{package}', which is not installed. "
        f"Install it with: pip install 'relukan-deploy[{extra}]'"
    )
    with pytest.raises(MissingDependencyError, match=f"^{re.escape(message)}$"):
        build(flavour=flavour)


def test_an_empty_placeholder_package_counts_as_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace())
    with pytest.raises(MissingDependencyError, match=r"pip install 'relukan-deploy\[trt\]'"):
        build(flavour="tensorrt")


@without_gpu
def test_tensorrt_without_a_gpu_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(Runtime=object))
    with pytest.raises(MissingDeviceError, match=r"no GPU was found here.* or build ahead of time with tensorrt-rtx"):
        build(flavour="tensorrt")


# --- versions of TensorRT that cannot be installed here, as far as their names tell them apart


def old_tensorrt(
    version: str = "8.6.0", *, builder_flags: tuple[str, ...] = (), network_flags: tuple[str, ...] = ()
) -> Any:
    """Only the names that a version has."""
    flags = {name: number for number, name in enumerate(builder_flags)}
    return SimpleNamespace(
        __version__=version,
        BuilderFlag=SimpleNamespace(**flags),
        NetworkDefinitionCreationFlag=SimpleNamespace(**{name: number for number, name in enumerate(network_flags)}),
    )


@pytest.mark.parametrize(
    ("version", "flags", "expected"),
    [
        ("8.6.0", ("EXPLICIT_BATCH",), 0b1),
        ("9.3.0", ("EXPLICIT_BATCH", "STRONGLY_TYPED"), 0b11),
        ("10.0.1", ("EXPLICIT_BATCH", "STRONGLY_TYPED"), 0b10),
        ("11.0.0", ("OTHER", "PREFER", "STRONGLY_TYPED"), 0b100),
    ],
)
def test_networks_are_strongly_typed_where_the_version_can(
    version: str, flags: tuple[str, ...], expected: int
) -> None:
    assert to_tensorrt._network_flags(old_tensorrt(version, network_flags=flags)) == expected


def test_bf16_is_refused_where_the_version_has_none() -> None:
    old = old_tensorrt(builder_flags=("FP16",), network_flags=("EXPLICIT_BATCH",))
    assert to_tensorrt._refusal(old, "tensorrt", "bf16", EngineOptions()) == (
        "--precision bf16: that came with TensorRT 9"
    )
    assert to_tensorrt._refusal(old, "tensorrt", "fp16", EngineOptions()) is None


@pytest.mark.parametrize(
    ("option", "flag"),
    [("version_compatible", "--version-compatible"), ("hardware_compatible", "--hardware-compatible")],
)
def test_compatibility_is_refused_where_the_version_has_none(option: str, flag: str) -> None:
    old = old_tensorrt(network_flags=("EXPLICIT_BATCH",))
    refused = to_tensorrt._refusal(old, "tensorrt", "fp32", EngineOptions(**{option: True}))  # type: ignore[arg-type]
    assert refused is not None
    assert refused.startswith(flag)
