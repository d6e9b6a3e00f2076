"""How calls reach an engine, on a GPU of numpy; tests/gpu has real ones."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import numpy as np
import pytest
from cuda_of_numpy import Engine, Gpu, Graph, Stream, fake_tensorrt
from numpy.typing import NDArray

from relukan_deploy.bundle import Artifact
from relukan_deploy.errors import BundleError, InputError, RelukanError
from relukan_deploy.lowering import lower
from relukan_deploy.runtime._engine import EngineBackend
from relukan_deploy.runtime._graphs import buckets, cut
from relukan_deploy.spec import KanSpec, Layout, Precision


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """A GPU that has no fault at the end, and nothing left on it, and is current nowhere."""
    gpu = Gpu()
    gpu.install(monkeypatch)
    yield gpu
    gc.collect()
    assert gpu.faults == []
    assert gpu.live == set()
    assert gpu.stack == []


@dataclasses.dataclass
class Opened:
    backend: EngineBackend
    engines: list[Engine]

    @property
    def engine(self) -> Engine:
        return self.engines[0]


Open = Callable[..., Opened]


@pytest.fixture
def make(gpu: Gpu, spec: KanSpec, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens a backend around engines of numpy, and closes it at the end."""
    opened: list[Opened] = []

    def make(
        batch: tuple[int, int, int] = (1, 4, 8),
        layout: Layout = "batch-last",
        precision: Precision = "fp32",
        *,
        graphs: bool = True,
        prepare: Callable[[Engine], None] = lambda engine: None,
    ) -> Opened:
        artifact = Artifact("model.engine", "tensorrt", precision, layout, "direct", 1e-5, batch=batch)
        engines: list[Engine] = []

        def deserialise(logger: Any) -> Engine:
            engines.append(Engine(gpu, spec, artifact, logger))
            prepare(engines[-1])
            return engines[-1]

        monkeypatch.setattr("relukan_deploy.runtime._plan.import_tensorrt", lambda *_: fake_tensorrt(deserialise))
        backend = EngineBackend("tensorrt", b"plan", artifact, 3, 2, graphs=graphs)
        opened.append(Opened(backend, engines))
        return opened[-1]

    yield make
    for each in opened:
        each.backend.close()


def rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 2, (count, 3)).astype(np.float32)


# --- batch sizes


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [(1, 8, (1, 2, 4, 8)), (1, 1, (1,)), (1, 6, (1, 2, 4, 6)), (3, 12, (3, 4, 8, 12)), (5, 5, (5,)), (4, 4, (4,))],
)
def test_buckets_are_powers_of_two_and_the_limits_of_the_profile(least: int, most: int, expected: Any) -> None:
    assert buckets(least, most) == expected


LIMITS = [(1, 1), (1, 1024), (1, 65536), (7, 7), (8, 32), (300, 5000)]


@pytest.mark.parametrize(("least", "most"), LIMITS)
def test_parts_follow_one_another_and_are_filled_up_to_a_bucket(least: int, most: int) -> None:
    sizes = buckets(least, most)
    for count in (0, 1, 2, 7, 255, 256, 257, 600, 1023, 1024, 1025, 33000, 70000):
        end = 0
        for part, size in cut(count, sizes):
            assert part.start == end < part.stop
            assert size in sizes
            assert part.stop - part.start <= size
            end = part.stop
        assert end == count


@pytest.mark.parametrize(("least", "most"), LIMITS)
def test_no_part_is_filled_up_by_more_than_256_rows_or_a_quarter(least: int, most: int) -> None:
    for count in range(1, 3000, 7):
        for part, size in cut(count, buckets(least, most)):
            taken = part.stop - part.start
            assert size == least or size - taken <= max(256, taken // 4)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [1]), (3, [4]), (200, [256]), (600, [512, 128]), (800, [1024]), (1025, [1024, 1]), (33000, [32768, 256])],
)
def test_which_batches_are_run(count: int, expected: list[int]) -> None:
    assert [size for _, size in cut(count, buckets(1, 65536))] == expected


# --- answers


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("tf32", 1e-6), ("fp16", 5e-3), ("bf16", 4e-2)])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 29])
def test_answers_are_those_of_the_network_the_first_time_and_replayed(
    make: Open, spec: KanSpec, layout: Layout, precision: Precision, tolerance: float, count: int
) -> None:
    backend = make(layout=layout, precision=precision).backend
    for seed in range(3):
        y = backend.run(rows(count, seed))
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, spec.evaluate(rows(count, seed)), rtol=0, atol=tolerance)


@pytest.mark.parametrize("layout", get_args(Layout))
def test_a_batch_is_answered_the_same_with_graphs_and_without(make: Open, layout: Layout) -> None:
    with_graphs, without = make(layout=layout).backend, make(layout=layout, graphs=False).backend
    for count in (*range(1, 18), 5, 3, 1):
        np.testing.assert_array_equal(with_graphs.run(rows(count)), without.run(rows(count)))


def test_fewer_rows_than_the_smallest_batch_are_filled_up(make: Open, spec: KanSpec) -> None:
    opened = make((4, 4, 8))
    np.testing.assert_allclose(opened.backend.run(rows(2)), spec.evaluate(rows(2)), rtol=0, atol=1e-6)
    assert {shape[3] for shape in opened.engine.enqueued} == {4}


def test_what_a_batch_is_filled_up_with_is_not_what_somebody_sent_before(make: Open, monkeypatch: Any) -> None:
    opened = make()
    seen: list[NDArray[Any]] = []
    evaluate = opened.engine.spec.evaluate

    def see(spec: KanSpec, x: NDArray[Any]) -> NDArray[np.float64]:
        seen.append(x)
        return evaluate(x)

    monkeypatch.setattr(KanSpec, "evaluate", see)
    opened.backend.run(np.full((8, 3), 7, np.float32))
    opened.backend.run(np.full((5, 3), 2, np.float32))
    assert seen[-1].shape == (8, 3)
    np.testing.assert_array_equal(seen[-1][5:], 0)


def test_no_rows_run_nothing(make: Open) -> None:
    opened = make()
    assert opened.backend.run(np.empty((0, 3), np.float32)).shape == (0, 2)
    assert opened.engine.enqueued == []


@pytest.mark.parametrize("count", [1, 8])
def test_an_answer_is_not_overwritten_by_the_next(make: Open, count: int) -> None:
    backend = make().backend
    first = backend.run(rows(count))
    kept = first.copy()
    backend.run(rows(count, seed=1))
    np.testing.assert_array_equal(first, kept)


def test_rows_of_any_memory_order_are_answered_alike(make: Open) -> None:
    backend = make().backend
    expected = backend.run(rows(7))
    for other in (np.asfortranarray(rows(7)), rows(7)[::-1].copy()[::-1], np.repeat(rows(7), 2, axis=0)[::2]):
        np.testing.assert_array_equal(backend.run(other), expected)


# --- graphs


def test_from_the_second_call_on_a_call_is_one_launch(make: Open, gpu: Gpu) -> None:
    backend = make().backend
    backend.run(rows(4))
    gpu.calls.clear()
    backend.run(rows(4))
    assert gpu.calls == {"cuCtxPushCurrent": 1, "cuGraphLaunch": 1, "cuCtxPopCurrent": 1}


def test_batches_of_one_bucket_share_a_graph(make: Open, gpu: Gpu) -> None:
    backend = make().backend
    for count in (5, 6, 7, 8):
        backend.run(rows(count))
    assert gpu.calls["cuGraphInstantiate"] == 1


def test_nothing_is_made_on_the_gpu_once_a_batch_size_is_known(make: Open, gpu: Gpu) -> None:
    backend = make().backend
    backend.run(rows(4))
    before = set(gpu.live)
    for _ in range(20):
        backend.run(rows(4))
    assert gpu.live == before


def test_without_graphs_none_is_captured(make: Open, gpu: Gpu) -> None:
    backend = make(graphs=False).backend
    backend.run(rows(4))
    backend.run(rows(4))
    assert gpu.calls["cuStreamBeginCapture"] == 0


def uncapturable(engine: Engine) -> None:
    engine.capturable = False


def test_an_engine_that_says_it_cannot_be_captured_runs_without(
    make: Open, spec: KanSpec, gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    backend = make(prepare=uncapturable).backend
    for count in (3, 3, 8):
        np.testing.assert_allclose(backend.run(rows(count)), spec.evaluate(rows(count)), rtol=0, atol=1e-6)
    assert gpu.calls["cuStreamBeginCapture"] == 0
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "tensorrt runs without a CUDA graph" in record.getMessage()
    assert "tensorrt says of model.engine that it cannot be captured" in record.getMessage()


def test_a_capture_that_fails_is_told_once_and_not_tried_again(
    make: Open, spec: KanSpec, gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.refused.add("capture")
    backend = make().backend
    for _ in range(3):
        np.testing.assert_allclose(backend.run(rows(3)), spec.evaluate(rows(3)), rtol=0, atol=1e-6)
    backend.run(rows(8))
    assert gpu.calls["cuStreamBeginCapture"] == 2  # one for each bucket
    assert len(caplog.records) == 1
    assert "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" in caplog.text


def test_a_capture_in_which_the_engine_fails_leaves_nothing_behind(make: Open, spec: KanSpec, gpu: Gpu) -> None:
    opened = make(prepare=lambda engine: setattr(engine, "fails_captured", True))
    for _ in range(3):
        np.testing.assert_allclose(opened.backend.run(rows(3)), spec.evaluate(rows(3)), rtol=0, atol=1e-6)
    assert not any(isinstance(thing, Graph) for thing in gpu.live)


def test_a_first_run_that_fails_is_tried_again(make: Open, spec: KanSpec) -> None:
    opened = make()
    opened.engine.fails = True
    with pytest.raises(RelukanError, match=r"tensorrt could not run model\.engine: it went wrong"):
        opened.backend.run(rows(3))
    opened.engine.fails = False
    np.testing.assert_allclose(opened.backend.run(rows(3)), spec.evaluate(rows(3)), rtol=0, atol=1e-6)


# --- whose GPU it is


def test_what_was_current_in_the_thread_is_current_after_a_call(make: Open, gpu: Gpu) -> None:
    gpu.stack.append(42)
    opened = make()
    opened.backend.run(rows(9))
    opened.engine.fails = True
    with pytest.raises(RelukanError, match="could not run"):
        opened.backend.run(rows(4))
    opened.backend.close()
    assert gpu.stack == [42]
    gpu.stack.clear()


def test_a_driver_that_fails_is_an_error_of_ours(make: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import driver

    backend = make().backend
    backend.run(rows(1))
    monkeypatch.setattr(driver, "cuGraphLaunch", lambda *_: (driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,))
    with pytest.raises(RelukanError, match="the GPU's driver says CUDA_ERROR_ILLEGAL_ADDRESS"):
        backend.run(rows(1))


def test_no_room_for_a_lane_is_an_error_of_ours(make: Open, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make().backend
    with monkeypatch.context() as full:
        full.setattr(gpu, "create_event", lambda: 1 / 0)
        with pytest.raises(RelukanError, match="a GPU of numpy has no room for another call: division by zero"):
            backend.run(rows(1))
    gpu.live.clear()  # the real ones free themselves
    assert backend.run(rows(1)).shape == (1, 2)


# --- threads


def ask_for_ever(backend: EngineBackend) -> None:
    while True:
        backend.run(rows(1))


def test_every_thread_gets_its_own_answers(make: Open, spec: KanSpec, gpu: Gpu) -> None:
    backend = make().backend

    def ask(seed: int) -> None:
        count = 1 + seed % 11
        np.testing.assert_allclose(backend.run(rows(count, seed)), spec.evaluate(rows(count, seed)), rtol=0, atol=1e-6)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(ask, range(300)))


def test_calls_beyond_the_lanes_wait_for_one(make: Open, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make().backend
    inside, together, go = itertools.count(1), threading.Barrier(5), threading.Event()
    synced = Stream.sync

    def sync(stream: Stream) -> None:
        next(inside)
        if not go.is_set():
            together.wait(timeout=60)
            go.wait(timeout=60)
        synced(stream)

    monkeypatch.setattr(Stream, "sync", sync)
    with ThreadPoolExecutor(9) as threads:
        asked = [threads.submit(backend.run, rows(1)) for _ in range(9)]
        together.wait(timeout=60)  # four calls are waiting for the GPU
        assert next(inside) == 5  # and no other has got that far
        go.set()
        for each in asked:
            assert each.result(timeout=60).shape == (1, 2)


def test_closing_waits_for_calls_under_way(make: Open, spec: KanSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make().backend
    inside, go = threading.Event(), threading.Event()
    synced = Stream.sync

    def sync(stream: Stream) -> None:
        inside.set()
        go.wait(timeout=60)
        synced(stream)

    monkeypatch.setattr(Stream, "sync", sync)
    with ThreadPoolExecutor(2) as threads:
        asked = threads.submit(backend.run, rows(3))
        assert inside.wait(timeout=60)
        closed = threads.submit(backend.close)
        with pytest.raises(InputError, match="is closed"):  # it refuses from the beginning
            ask_for_ever(backend)
        assert not closed.done()
        go.set()
        np.testing.assert_allclose(asked.result(timeout=60), spec.evaluate(rows(3)), rtol=0, atol=1e-6)
        closed.result(timeout=60)


# --- the end


def test_a_closed_backend_says_so(make: Open) -> None:
    backend = make().backend
    backend.close()
    backend.close()
    with pytest.raises(InputError, match=r"model\.engine is closed: load the bundle again"):
        backend.run(rows(1))


def test_dropping_the_last_reference_frees_everything(make: Open, gpu: Gpu) -> None:
    opened = make()
    opened.backend.run(rows(3))
    assert gpu.live
    del opened.backend
    assert gpu.live == set()
    opened.backend = make().backend  # for the fixture to close


def test_an_engine_that_cannot_be_loaded_says_for_what_it_was_built(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relukan_deploy.runtime._plan.import_tensorrt", lambda *_: fake_tensorrt(lambda logger: None))
    details = {"version": "10.3", "gpu": "NVIDIA L4"}
    artifact = Artifact("model.engine", "tensorrt", "fp32", "batch-last", "direct", 1e-5, (1, 4, 8), details=details)
    message = (
        r"built by tensorrt 10\.3 for NVIDIA L4, and tensorrt 99\.0 on a GPU of numpy cannot load it: build it here"
    )
    with pytest.raises(BundleError, match=message):
        EngineBackend("tensorrt", b"plan", artifact, 3, 2)


# --- other weights


@pytest.fixture
def constants(spec: KanSpec) -> dict[str, NDArray[np.float64]]:
    return dict(lower(spec, layout="batch-last", form="direct", precision="fp32").constants)


def refittable(constants: dict[str, NDArray[np.float64]]) -> Callable[[Engine], None]:
    def prepare(engine: Engine) -> None:
        engine.refittable = True
        engine.weights = {name: np.zeros(array.shape, engine.dtype) for name, array in constants.items()}

    return prepare


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_new_weights_go_into_another_engine(
    make: Open, constants: dict[str, NDArray[np.float64]], precision: Precision
) -> None:
    opened = make(precision=precision, prepare=refittable(constants))
    other = opened.backend.with_constants(constants)
    first, second = opened.engines
    assert all((array == 0).all() for array in first.weights.values())
    for name, array in constants.items():
        np.testing.assert_array_equal(second.weights[name], array.astype(second.dtype))
    assert other.run(rows(3)).shape == opened.backend.run(rows(3)).shape
    other.close()


def test_an_engine_that_is_not_refittable_says_how_to_make_one(
    make: Open, constants: dict[str, NDArray[np.float64]]
) -> None:
    with pytest.raises(InputError, match=r"export it again with relukan-export --trt --refittable"):
        make().backend.with_constants(constants)


def test_constants_that_an_engine_wants_and_does_not_get_are_named(
    make: Open, constants: dict[str, NDArray[np.float64]]
) -> None:
    backend = make(prepare=refittable(constants)).backend
    missing = {name: array for name, array in constants.items() if name not in ("layer0/ends", "layer1/weight")}
    with pytest.raises(InputError, match="does not take the new weights for layer0/ends, layer1/weight"):
        backend.with_constants(missing)


def test_constants_of_another_size_are_named(make: Open, constants: dict[str, NDArray[np.float64]]) -> None:
    backend = make(prepare=refittable(constants)).backend
    with pytest.raises(InputError, match="does not take the new weights for layer0/bias"):
        backend.with_constants({**constants, "layer0/bias": np.zeros(99)})


def test_a_constant_that_the_engine_has_folded_away_is_passed_over(
    make: Open, constants: dict[str, NDArray[np.float64]]
) -> None:
    fewer = {name: array for name, array in constants.items() if name != "minus_one"}
    make(prepare=refittable(fewer)).backend.with_constants(constants).close()


# --- what the installed packages offer is what is used


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cuDevicePrimaryCtxRetain", ["dev"]),
        ("cuCtxPushCurrent", ["ctx"]),
        ("cuCtxPopCurrent", []),
        ("cuCtxGetCurrent", []),
        ("cuCtxSetCurrent", ["ctx"]),
        ("cuMemGetInfo", []),
        ("cuMemcpyAsync", ["dst", "src", "ByteCount", "hStream"]),
        ("cuEventRecord", ["hEvent", "hStream"]),
        ("cuStreamWaitEvent", ["hStream", "hEvent", "Flags"]),
        ("cuStreamIsCapturing", ["hStream"]),
        ("cuStreamBeginCapture", ["hStream", "mode"]),
        ("cuStreamEndCapture", ["hStream"]),
        ("cuGraphInstantiate", ["hGraph", "flags"]),
        ("cuGraphDestroy", ["hGraph"]),
        ("cuGraphLaunch", ["hGraphExec", "hStream"]),
        ("cuGraphExecDestroy", ["hGraphExec"]),
    ],
)
def test_the_drivers_functions_take_what_they_are_given(name: str, parameters: list[str]) -> None:
    from cuda.bindings import driver

    assert list(inspect.signature(getattr(driver, name)).parameters) == parameters
    fake = getattr(Gpu, name, None)
    assert fake is None or len(inspect.signature(fake).parameters) == len(parameters) + 1


def test_cuda_core_offers_what_is_used() -> None:
    from cuda import core

    assert list(inspect.signature(core.LegacyPinnedMemoryResource.allocate).parameters)[1] == "size"
    assert list(inspect.signature(core.Device.allocate).parameters)[1:] == ["size", "stream"]
    for owner, names in (
        (core.Device, ("create_stream", "create_event", "device_id", "name", "set_current")),
        (core.Stream, ("handle", "sync", "close")),
        (core.Event, ("handle", "close")),
        (core.Buffer, ("handle", "close")),
    ):
        assert all(hasattr(owner, name) for name in names)
    assert core.StreamOptions().nonblocking
    assert not core.EventOptions().timing_enabled


def test_tensorrt_rtx_offers_what_is_used() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    for owner, names in (
        (trt.Runtime, ("deserialize_cuda_engine", "engine_host_code_allowed")),
        (trt.ICudaEngine, ("create_execution_context", "create_runtime_config", "device_memory_size_v2", "refittable")),
        (
            trt.IRuntimeConfig,
            ("create_runtime_cache", "set_runtime_cache", "set_execution_context_allocation_strategy"),
        ),
        (trt.IRuntimeConfig, ("dynamic_shapes_kernel_specialization_strategy",)),
        (trt.DynamicShapesKernelSpecializationStrategy, ("EAGER", "LAZY")),
        (trt.ExecutionContextAllocationStrategy, ("USER_MANAGED",)),
        (trt.IExecutionContext, ("set_device_memory", "set_input_shape", "set_tensor_address")),
        (trt.IExecutionContext, ("execute_async_v3", "is_stream_capturable")),
        (trt.Refitter, ("get_all_weights", "set_named_weights", "refit_cuda_engine")),
        (trt.DataType, ("FLOAT", "HALF", "BF16")),
    ):
        assert all(hasattr(owner, name) for name in names), owner


@pytest.mark.parametrize("type_", ["FLOAT", "HALF", "BF16"])
def test_tensorrt_rtx_takes_weights_by_their_address(type_: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    array = np.arange(5, dtype=np.float32 if type_ == "FLOAT" else np.uint16)
    weights = trt.Weights(getattr(trt.DataType, type_), array.ctypes.data, array.size)
    assert (weights.size, weights.nbytes) == (array.size, array.nbytes)
