"""A bundle's backends as subjects: on the CPU, and engines on a GPU of numpy; tests/gpu has a real one."""

from __future__ import annotations

import dataclasses
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from networks import BUMP_FORMS, spline_network

sys.path.insert(0, str(Path(__file__).parents[2] / "runtime"))

from cuda_of_numpy import Engine, Gpu, fake_tensorrt

from relukan_deploy.api import export
from relukan_deploy.bench.results import Contender, Split
from relukan_deploy.bench.subjects import Subject
from relukan_deploy.bench.subjects.bound import bound_calls
from relukan_deploy.bench.subjects.bundles import bundle_subjects, engine_subjects, parameters_of, shape_of
from relukan_deploy.bench.subjects.engine_profile import layer_seconds
from relukan_deploy.bundle import Artifact, Bundle, open_bundle
from relukan_deploy.errors import InputError, MissingDeviceError, ParityError, RelukanError
from relukan_deploy.gpu import find_gpu
from relukan_deploy.lowering import lower
from relukan_deploy.runtime._engine import EngineBackend
from relukan_deploy.runtime._lane import REMEMBERED
from relukan_deploy.runtime.runner import Runner, from_graph, to_graph
from relukan_deploy.spec import Form, KanSpec, Layout, Precision

DOMAIN = np.array([[-0.5, 1.5], [0.0, 1.0], [2.0, 3.0]])
MOST = 8


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """A GPU that has no fault at the end, and nothing left on it, and is current nowhere."""
    monkeypatch.setattr("relukan_deploy.bench.subjects.gpu_clock._BUSY_BYTES", 1024)
    gpu = Gpu()
    gpu.install(monkeypatch)
    yield gpu
    gc.collect()
    assert gpu.faults == []
    assert gpu.live == set()
    assert gpu.stack == []


Made = tuple[list[Subject], list[Engine]]


@pytest.fixture
def make(gpu: Gpu, spec: KanSpec, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Made]]:
    """Subjects of an engine from three inputs to two answers, closed at the end; and the engine of each backend."""
    opened: list[Subject] = []

    def make(layout: Layout = "batch-last", precision: Precision = "fp32", least: int = 1) -> Made:
        artifact = Artifact("model.engine", "tensorrt", precision, layout, "direct", 1e-5, batch=(least, 4, MOST))
        engines: list[Engine] = []

        def deserialise(logger: Any) -> Engine:
            engines.append(Engine(gpu, spec, artifact, logger))
            return engines[-1]

        monkeypatch.setattr("relukan_deploy.runtime._plan.import_tensorrt", lambda *_: fake_tensorrt(deserialise))
        subjects = engine_subjects(
            Contender("a network", (3, 5, 2), "tensorrt", precision, layout),
            lambda graphs: EngineBackend("tensorrt", b"plan", artifact, 3, 2, graphs=graphs),
            DOMAIN,
            parameters=77,
            difference=1e-7,
        )
        opened.extend(subjects)
        return subjects, engines

    yield make
    for subject in opened:
        subject.close()


def of(subjects: list[Subject], data: str, *, graph: bool) -> Subject:
    (found,) = (each for each in subjects if (each.contender.data, each.contender.cuda_graph) == (data, graph))
    return found


# --- engines


def test_an_engine_is_run_from_host_and_device_with_graphs_and_without(make: Callable[..., Made]) -> None:
    subjects, _ = make()
    assert [(each.contender.data, each.contender.cuda_graph) for each in subjects] == [
        *(("host", True), ("device", True), ("host", False), ("device", False))
    ]
    assert {(each.contender.network, each.parameters, each.difference) for each in subjects} == {
        ("a network", 77, 1e-7)
    }


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("data", ["host", "device"])
def test_a_turn_makes_so_many_calls(make: Callable[..., Made], data: str, graph: bool) -> None:
    subjects, engines = make()
    turn = of(subjects, data, graph=graph).prepare(4)
    turn(3)
    ran = engines[0 if graph else 1].ran
    before = len(ran)
    assert len(turn(5)) == 5
    assert len(ran) == before + 5


@pytest.mark.parametrize("data", ["host", "device"])
def test_with_graphs_a_warm_call_is_one_launch_and_without_there_is_none(
    make: Callable[..., Made], gpu: Gpu, data: str
) -> None:
    subjects, _ = make()
    for graph in (True, False):
        turn = of(subjects, data, graph=graph).prepare(4)
        turn(3)
        gpu.calls.clear()
        turn(40)
        assert gpu.calls["cuGraphLaunch"] == (40 if graph else 0)


def test_no_call_on_the_device_copies_or_captures_anything(make: Callable[..., Made], gpu: Gpu) -> None:
    subjects, _ = make()
    turn = of(subjects, "device", graph=True).prepare(4)
    gpu.calls.clear()
    turn(3 * REMEMBERED)
    assert gpu.calls["cuMemcpyAsync"] == gpu.calls["cuStreamBeginCapture"] == 0


def test_inputs_on_the_device_take_turns_and_are_no_more_than_there_are_graphs_for(make: Callable[..., Made]) -> None:
    subjects, engines = make()
    turn = of(subjects, "device", graph=True).prepare(4)
    engines[0].ran.clear()
    count = REMEMBERED - 1  # and one for the split
    turn(2 * count)
    assert len(set(engines[0].ran)) == count
    assert engines[0].ran[:count] == engines[0].ran[count:]


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("precision", get_args(Precision))
def test_what_is_on_the_device_lies_in_the_domain(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, layout: Layout, precision: Precision
) -> None:
    subjects, _ = make(layout, precision)
    seen: list[Any] = []
    evaluate = KanSpec.evaluate

    def see(spec: KanSpec, x: Any) -> Any:
        seen.append(np.array(x))
        return evaluate(spec, x)

    monkeypatch.setattr(KanSpec, "evaluate", see)
    of(subjects, "device", graph=False).prepare(4)(2)
    x = np.concatenate(seen)
    low, high = x.min(axis=0), x.max(axis=0)
    assert ((DOMAIN[:, 0] - 1e-2 <= low) & (high <= DOMAIN[:, 1] + 1e-2)).all()
    assert (high - low > 0.5).all()


@pytest.mark.parametrize("batch", [1, 9])
def test_a_batch_on_the_device_that_the_engine_was_not_built_for_is_refused(
    make: Callable[..., Made], batch: int
) -> None:
    subjects, _ = make(least=2)
    with pytest.raises(RelukanError, match=f"built for 2 to 8 rows of data on the device, got {batch}"):
        of(subjects, "device", graph=True).prepare(batch)


def test_no_room_on_the_device_is_an_error_of_ours_and_leaves_nothing(
    make: Callable[..., Made], gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects, _ = make()
    subject = of(subjects, "device", graph=False)
    left = 3

    def allocate(size: int, *, stream: Any, allocate: Any = gpu.allocate) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise MemoryError("no room")
        return allocate(size, stream=stream)

    before = set(gpu.live)
    with monkeypatch.context() as full:
        full.setattr(gpu, "allocate", allocate)
        with pytest.raises(RelukanError, match="a GPU of numpy has no room for 4 rows: no room"):
            subject.prepare(4)
    subject.release()
    assert {type(thing).__name__ for thing in gpu.live - before} <= {"Memory"}  # pinned, of a Staging that failed
    gpu.live &= before


@pytest.mark.parametrize("graph", [True, False])
def test_the_split_is_that_of_events_around_copy_network_and_copy(make: Callable[..., Made], graph: bool) -> None:
    subjects, _ = make()
    host, device = (of(subjects, data, graph=graph) for data in ("host", "device"))
    host.prepare(8)
    assert host.split() == Split(pytest.approx(1e-3), pytest.approx(1e-3), pytest.approx(1e-3))  # type: ignore[arg-type]
    device.prepare(8)
    assert device.split() == Split(0, pytest.approx(1e-3), 0)  # type: ignore[arg-type]


def test_graphs_are_kept_while_splits_are_looked_at(make: Callable[..., Made], gpu: Gpu) -> None:
    subjects, _ = make()
    host, device = (of(subjects, data, graph=True) for data in ("host", "device"))
    host.prepare(8)(2)
    turn = device.prepare(8)
    host.split()
    gpu.calls.clear()
    device.split()
    turn(2 * REMEMBERED)
    assert gpu.calls["cuStreamBeginCapture"] == 0


def test_the_split_of_a_batch_in_parts_is_that_of_all_parts(make: Callable[..., Made]) -> None:
    subjects, _ = make()
    host = of(subjects, "host", graph=True)
    host.prepare(3 * MOST)
    split = host.split()
    assert split is not None
    assert split.compute == pytest.approx(3e-3)


def test_other_batches_can_be_prepared_one_after_another(make: Callable[..., Made], gpu: Gpu) -> None:
    subjects, _ = make()
    subject = of(subjects, "device", graph=True)
    for batch in (1, 8, 2, 1):
        subject.prepare(batch)(1)
    subject.release()
    before = set(gpu.live)
    subject.prepare(4)
    subject.release()
    assert {type(thing).__name__ for thing in gpu.live - before} <= {"Graph"}


def test_a_backend_is_there_until_the_last_of_its_subjects_is_closed(make: Callable[..., Made]) -> None:
    subjects, _ = make()
    host, device = (of(subjects, data, graph=True) for data in ("host", "device"))
    host.close()
    host.close()
    assert len(device.prepare(4)(2)) == 2


def test_memory_on_the_gpu_is_counted_as_what_a_call_takes_once_for_each_backend(make: Callable[..., Made]) -> None:
    subjects, _ = make()
    lane = Engine.device_memory_size_v2 + MOST * (3 + 2) * 4
    for graph in (True, False):
        host, device = (of(subjects, data, graph=graph).bytes_for(8) for data in ("host", "device"))
        assert host == device + lane


def test_layers_tell_their_seconds(make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch) -> None:
    make()  # and with it a TensorRT
    monkeypatch.setattr(
        "relukan_deploy.bench.subjects.engine_profile.import_tensorrt", lambda *_: fake_tensorrt(lambda _: None)
    )
    artifact = Artifact("model.engine", "tensorrt", "fp32", "batch-last", "direct", 1e-5, batch=(1, 4, MOST))
    backend = EngineBackend("tensorrt", b"plan", artifact, 3, 2)
    assert layer_seconds(backend, 4) == {"all of it": 1.5e-3}
    assert backend.run(np.ones((4, 3), np.float32)).shape == (4, 2)


# --- bundles


@pytest.fixture(scope="module")
def bundle(bundle_path: Path) -> Bundle:
    return open_bundle(bundle_path)


def test_a_graph_on_the_cpu_is_called_and_run_alone(bundle: Bundle) -> None:
    host, bound = bundle_subjects(bundle, "onnxruntime-cpu", threads=1)
    assert host.contender == Contender("this network", (3, 5, 2), "onnxruntime-cpu", "fp32", "batch-last", "host")
    assert bound.contender == Contender("this network", (3, 5, 2), "onnxruntime-cpu", "fp32", "batch-last", "bound")
    assert host.split() is bound.split() is None


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("layout", get_args(Layout))
def test_every_way_on_the_cpu_takes_turns_at_any_batch(
    spec: KanSpec, tmp_path: Path, layout: Layout, precision: Precision
) -> None:
    opened = export(spec, tmp_path / "bundle", layout=layout, precision=precision)
    for subject in bundle_subjects(opened, "onnxruntime-cpu", threads=1):
        assert subject.contender.precision == precision
        assert subject.difference is not None
        assert 0 < subject.difference <= opened.manifest.artifacts[0].tolerance
        for batch in (1, 40):
            assert len(subject.prepare(batch)(70)) == 70
        subject.release()
        subject.close()
        subject.close()


def test_a_call_goes_through_the_runners_checks(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(Runner, "__call__", lambda self, x: asked.append(x))
    bundle_subjects(bundle, "onnxruntime-cpu", threads=1)[0].prepare(5)(70)
    assert {x.shape for x in asked} == {(5, 3)}
    assert len({x.ctypes.data for x in asked}) > 32
    for x in asked:
        assert all(low <= value <= high for row in x for value, (low, high) in zip(row, intervals(bundle), strict=True))


def intervals(bundle: Bundle) -> list[tuple[float, float]]:
    return [(float(np.float32(low)), float(np.float32(high))) for low, high in filter(None, bundle.manifest.domain)]


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_bound_runs_read_their_own_input(spec: KanSpec, tmp_path: Path, layout: Layout, precision: Precision) -> None:
    import onnxruntime

    opened = export(spec, tmp_path / "bundle", layout=layout, precision=precision)
    session = onnxruntime.InferenceSession(opened.contents["model.onnx"], providers=["CPUExecutionProvider"])
    rows = [np.random.default_rng(seed).random((7, 3), np.float32) for seed in range(3)]
    shape = (1, 2, 1, 7) if layout == "batch-last" else (7, 2, 1)
    calls = bound_calls(session, [to_graph(x, layout, precision) for x in rows], shape)
    for x, call in zip(rows, calls, strict=True):
        np.testing.assert_allclose(from_graph(call(), layout, precision), spec.evaluate(x), rtol=0, atol=5e-3)


def test_an_engine_in_a_bundle_is_called_through_the_runners_checks(
    gpu: Gpu, spec: KanSpec, engine_bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_bundle(engine_bundle_path)
    artifact = opened.manifest.artifacts[1]
    make = fake_tensorrt(lambda logger: Engine(gpu, spec, artifact, logger))
    monkeypatch.setattr("relukan_deploy.runtime._plan.import_tensorrt", lambda *_: make)
    subjects = bundle_subjects(opened, "tensorrt-rtx", threads=1)
    assert len(subjects) == 4
    assert all(each.difference is not None and each.difference < 1e-5 for each in subjects)
    asked: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr(Runner, "__call__", lambda self, x: asked.append(x))
        of(subjects, "host", graph=True).prepare(5)(7)
    assert len(asked) == 7
    for subject in subjects:
        subject.prepare(5)(3)
        subject.close()


def test_an_engine_that_answers_wrongly_is_not_timed(
    gpu: Gpu, spec: KanSpec, engine_bundle_path: Path, monkeypatch: pytest.MonkeyPatch, make_spec: Any
) -> None:
    opened = open_bundle(engine_bundle_path)
    other = make_spec((3, 5, 2), seed=9)
    make = fake_tensorrt(lambda logger: Engine(gpu, other, opened.manifest.artifacts[1], logger))
    monkeypatch.setattr("relukan_deploy.runtime._plan.import_tensorrt", lambda *_: make)
    with pytest.raises(ParityError, match=r"model\.engine on tensorrt-rtx differs"):
        bundle_subjects(opened, "tensorrt-rtx", threads=1)


def test_a_backend_that_the_bundle_has_nothing_for_says_so(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="has no tensorrt artifact for the backend tensorrt"):
        bundle_subjects(bundle, "tensorrt", threads=1)


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
def test_without_a_gpu_an_engine_says_so(engine_bundle_path: Path) -> None:
    with pytest.raises(MissingDeviceError, match="an engine runs on an NVIDIA GPU"):
        bundle_subjects(open_bundle(engine_bundle_path), "tensorrt-rtx", threads=1)


# --- what a bundle tells


def learnt(spec: KanSpec) -> int:
    """What is left of the network's numbers: a crossed bump is dropped where no other input fills its place."""
    return sum(8 * layer.in_features * (layer.out_features + 2) + layer.out_features for layer in spec.layers)


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("form", BUMP_FORMS)
def test_the_networks_numbers_are_counted_in_either_form(
    bundle: Bundle, spec: KanSpec, layout: Layout, form: Form
) -> None:
    assert parameters_of(reshaped(bundle, spec, layout, form)) == learnt(spec)


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("form", BUMP_FORMS)
def test_the_grid_is_what_the_order_leaves_of_the_bumps(
    bundle: Bundle, spec: KanSpec, layout: Layout, form: Form
) -> None:
    shape = shape_of(reshaped(bundle, spec, layout, form))
    assert (shape.widths, shape.grid, shape.order) == ((3, 5, 2), 5, 3)
    np.testing.assert_array_equal(shape.domain, spec.domain)
    assert (shape_of(bundle, order=1).grid, shape_of(bundle, 2, 6).order) == (7, 6)


@pytest.mark.parametrize(("grid", "order"), [(5, 2), (9, 3), (None, 8), (None, -1), (0, 8)])
def test_a_grid_and_an_order_that_make_another_number_of_bumps_are_refused(
    bundle: Bundle, grid: int | None, order: int
) -> None:
    with pytest.raises(InputError, match=r"has 8 bumps on each input, which are grid \+ order: got --grid"):
        shape_of(bundle, grid, order)


@pytest.fixture(scope="module")
def splines(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of B-splines of degree 2 on 4 intervals, in a form that has other features."""
    spec = spline_network(0, [3, 5, 2], grid=4, degree=2)
    return export(spec, tmp_path_factory.mktemp("splines") / "bundle")


def test_splines_tell_their_grid_and_their_order(splines: Bundle) -> None:
    shape = shape_of(splines)
    assert (shape.widths, shape.grid, shape.order) == ((3, 5, 2), 4, 2)
    assert (shape_of(splines, 4).order, shape_of(splines, order=2).grid) == (2, 4)


@pytest.mark.parametrize(("grid", "order"), [(5, None), (None, 3), (3, 3), (5, 1)])
def test_a_grid_or_an_order_that_the_splines_have_not_is_refused(
    splines: Bundle, grid: int | None, order: int | None
) -> None:
    with pytest.raises(
        InputError, match=r"has 6 splines of order 2 on each input, which are grid \+ order: got --grid"
    ):
        shape_of(splines, grid, order)


def test_the_numbers_of_splines_are_weights_biases_and_knots(splines: Bundle) -> None:
    assert parameters_of(splines) == (3 * 5 * 7 + 5 + 3 * 9) + (5 * 2 * 7 + 2 + 5 * 9)


def test_splines_are_timed_in_onnx_runtime(splines: Bundle) -> None:
    subjects = bundle_subjects(splines, "onnxruntime-cpu", threads=1)
    for subject in subjects:
        assert len(subject.prepare(4)(3)) == 3
        assert subject.bytes_for(64) > 0
        subject.close()
    assert [each.contender.data for each in subjects] == ["host", "bound"]


def test_an_input_that_never_matters_is_given_numbers_from_0_to_1(bundle: Bundle) -> None:
    manifest = dataclasses.replace(bundle.manifest, domain=(None, *bundle.manifest.domain[1:]))
    shape = shape_of(dataclasses.replace(bundle, manifest=manifest))
    np.testing.assert_array_equal(shape.domain[0], [0, 1])


def reshaped(bundle: Bundle, spec: KanSpec, layout: Layout, form: Form) -> Bundle:
    """The bundle, as if its graph had been written so."""
    graph = lower(spec, layout=layout, form=form, precision="fp32")
    shapes = {name: array.shape for name, array in graph.constants.items()}
    artifact = dataclasses.replace(bundle.manifest.artifacts[0], layout=layout, form=form, constants=shapes)
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, artifacts=(artifact,)))


def test_cuda_core_offers_what_the_gpus_clock_uses() -> None:
    from cuda import core

    for owner, names in (
        (core.Device, ("create_event", "allocate")),
        (core.Event, ("is_done", "sync", "close", "__sub__")),
        (core.Stream, ("record", "sync")),
        (core.Buffer, ("fill", "handle", "close")),
    ):
        assert all(hasattr(owner, name) for name in names)
    assert core.EventOptions(timing_enabled=True).timing_enabled


def test_tensorrt_rtx_offers_what_the_profile_uses() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    assert hasattr(trt.IExecutionContext, "profiler")
    assert hasattr(trt.IProfiler, "report_layer_time")
