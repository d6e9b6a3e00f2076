"""Arrays that are on the GPU already, with torch tensors on a GPU of numpy; tests/gpu has real ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
from cuda_of_numpy import Engine, Gpu, fake_tensorrt
from numpy.typing import NDArray

from relukan_deploy.bundle import Artifact
from relukan_deploy.errors import InputError
from relukan_deploy.runtime import _arrays
from relukan_deploy.runtime._engine import EngineBackend
from relukan_deploy.spec import KanSpec, Layout, Precision

torch = pytest.importorskip("torch")

TORCH_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCES = {"fp32": 1e-6, "fp16": 5e-3, "bf16": 4e-2}


class HostTorch(_arrays._Torch):
    """torch, whose tensors in host memory lie on the GPU of numpy.

    Its operations do not wait for streams. So it keeps every tensor until the stream was waited for,
    where torch's allocator on a GPU gives memory away in the order of the stream.
    """

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.current = gpu.stream()
        self.numpy_gpu = gpu
        self.kept: list[Any] = []

    def gpu(self, array: Any) -> int | None:
        return 0

    def address(self, array: Any) -> int:
        self.kept.append(array)
        return super().address(array)

    def empty(self, rows: int, features: int, dtype: str, layout: Layout, gpu: int) -> Any:
        shape = (features, rows) if layout == "batch-last" else (rows, features)
        made = torch.full(shape, torch.nan, dtype=getattr(torch, dtype))
        return made.t() if layout == "batch-last" else made

    def assign(self, target: Any, source: Any) -> None:
        self.wait(0)
        target.copy_(source)

    def stream(self, gpu: int) -> int:
        return self.current.handle

    def wait(self, gpu: int) -> None:
        self.numpy_gpu.drain(self.current)
        self.kept.clear()


class Opened:
    """A backend, its engine, and the library whose current stream it is called on."""

    def __init__(self, gpu: Gpu, spec: KanSpec, layout: Layout, precision: Precision, batch: tuple[int, int, int]):
        self.gpu, self.layout, self.precision = gpu, layout, precision
        artifact = Artifact("model.engine", "tensorrt", precision, layout, "direct", 1e-5, batch=batch)
        with pytest.MonkeyPatch.context() as patched:

            def deserialise(logger: Any) -> Engine:
                self.engine = Engine(gpu, spec, artifact, logger)
                return self.engine

            patched.setattr("relukan_deploy.runtime._plan.import_tensorrt", lambda *_: fake_tensorrt(deserialise))
            self.backend = EngineBackend("tensorrt", b"plan", artifact, 3, 2)
        self.library = HostTorch(gpu)

    def __call__(self, x: Any, out: Any = None) -> Any:
        """The answers, after everything has been done."""
        y = self.backend.run_on_device(x, out)
        self.library.wait(0)
        return y

    def rows(self, count: int, seed: int = 0) -> Any:
        """Rows of the engine's type and in its memory order."""
        array = np.random.default_rng(seed).uniform(-1, 2, (count, 3))
        typed = torch.from_numpy(array).to(TORCH_TYPES[self.precision])
        return typed.t().contiguous().t() if self.layout == "batch-last" else typed


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    monkeypatch.setattr(Gpu, "alignment", 64)  # what torch gives on a host
    monkeypatch.setattr(_arrays, "_ALIGNMENT", 64)
    gpu = Gpu()
    gpu.install(monkeypatch)
    yield gpu
    assert gpu.faults == []
    assert gpu.live == set()
    assert gpu.stack == []


@pytest.fixture
def make(gpu: Gpu, spec: KanSpec, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    opened: list[Opened] = []

    def make(
        layout: Layout = "batch-last", precision: Precision = "fp32", batch: tuple[int, int, int] = (1, 4, 8)
    ) -> Opened:
        opened.append(Opened(gpu, spec, layout, precision, batch))
        monkeypatch.setattr(_arrays, "_torch", lambda: opened[-1].library)
        return opened[-1]

    yield make
    for each in opened:
        each.backend.close()


def assert_answers(y: Any, x: Any, spec: KanSpec, precision: str = "fp32") -> None:
    expected: NDArray[Any] = spec.evaluate(x.to(torch.float64).numpy())
    np.testing.assert_allclose(y.to(torch.float64).numpy(), expected, rtol=0, atol=TOLERANCES[precision])


# --- answers


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("precision", list(TORCH_TYPES))
@pytest.mark.parametrize("count", [1, 2, 5, 8, 9, 29])
def test_answers_are_those_of_the_network_in_the_engines_type(
    make: Any, spec: KanSpec, layout: Layout, precision: Precision, count: int
) -> None:
    opened = make(layout, precision)
    for seed in range(4):
        x = opened.rows(count, seed)
        y = opened(x)
        assert y.dtype == TORCH_TYPES[precision]
        assert tuple(y.shape) == (count, 2)
        assert_answers(y, x, spec, precision)


@pytest.mark.parametrize("layout", get_args(Layout))
def test_what_suits_the_engine_is_not_copied(make: Any, layout: Layout) -> None:
    opened = make(layout)
    x = opened.rows(5)
    y = opened(x)
    assert opened.engine.ran == [(x.data_ptr(), y.data_ptr())]
    assert (y.t() if layout == "batch-last" else y).is_contiguous()


def strange(x: Any) -> dict[str, Any]:
    """The same numbers as x, otherwise typed or laid out."""
    wide = torch.zeros(2 * len(x), 6)
    wide[::2, ::2] = x
    shifted = torch.cat([torch.zeros(1), x.flatten()])[1:].reshape(x.shape)
    return {
        "rows in order": x.contiguous(),
        "columns in order": x.t().contiguous().t(),
        "every second row and column": wide[::2, ::2],
        "at an odd address": shifted,
        "float64": x.double(),
        "with a gradient": x.clone().requires_grad_(),
    }


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("kind", list(strange(torch.zeros(5, 3))))
def test_what_does_not_suit_is_converted(make: Any, spec: KanSpec, layout: Layout, kind: str) -> None:
    opened = make(layout)
    x = opened.rows(5)
    y = opened(strange(x)[kind])
    assert not y.requires_grad
    assert_answers(y, x, spec)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_fewer_rows_than_the_smallest_batch_are_filled_up(make: Any, spec: KanSpec, count: int) -> None:
    opened = make(batch=(8, 8, 16))
    x = opened.rows(count)
    assert_answers(opened(x), x, spec)


def test_no_rows_run_nothing(make: Any) -> None:
    opened = make()
    assert tuple(opened(opened.rows(0)).shape) == (0, 2)
    assert opened.engine.ran == []


# --- out


@pytest.mark.parametrize("layout", get_args(Layout))
def test_an_out_that_suits_is_written_to_directly(make: Any, spec: KanSpec, layout: Layout) -> None:
    opened = make(layout)
    x = opened.rows(5)
    out = opened.library.empty(5, 2, "float32", layout, 0)
    assert opened(x, out) is out
    assert opened.engine.ran == [(x.data_ptr(), out.data_ptr())]
    assert_answers(out, x, spec)


@pytest.mark.parametrize("count", [5, 20])
@pytest.mark.parametrize(
    "out",
    [torch.zeros(20, 2), torch.zeros(2, 20).t(), torch.zeros(20, 2, dtype=torch.float64), torch.zeros(20, 4)[:, ::2]],
)
def test_any_other_out_is_written_to_too(make: Any, spec: KanSpec, out: Any, count: int) -> None:
    opened = make()
    x = opened.rows(count)
    part = out[:count]
    assert opened(x, part) is part
    assert_answers(part, x, spec)


# --- streams


def test_what_the_current_stream_holds_comes_first(make: Any, spec: KanSpec, gpu: Gpu) -> None:
    opened = make()
    x, late = opened.rows(4), opened.rows(4, seed=9)
    for _ in range(3):
        x.zero_()
        gpu.enqueue(opened.library.current.handle, lambda: [x.copy_(late)])
        y = opened.backend.run_on_device(x)
        gpu.run_ahead()
        opened.library.wait(0)
        assert_answers(y, late, spec)


def test_what_the_current_stream_is_given_afterwards_waits(make: Any, spec: KanSpec, gpu: Gpu) -> None:
    opened = make()
    x = opened.rows(4)
    before = x.clone()
    for _ in range(3):
        x.copy_(before)
        y = opened.backend.run_on_device(x)
        gpu.enqueue(opened.library.current.handle, lambda: [x.zero_()])
        opened.library.wait(0)
        assert_answers(y, before, spec)


def test_a_call_does_not_wait_for_the_gpu(make: Any) -> None:
    opened = make()
    opened.backend.run_on_device(opened.rows(4))
    assert opened.engine.ran == []


def test_calls_on_several_streams_share_a_lane_in_order(make: Any, spec: KanSpec, gpu: Gpu) -> None:
    opened = make()
    asked = []
    for seed in range(6):
        opened.library.current = gpu.stream()
        x = opened.rows(4, seed)
        asked.append((opened.library.current, x, opened.backend.run_on_device(x)))
    for stream, x, y in reversed(asked):
        gpu.drain(stream)
        assert_answers(y, x, spec)


def test_host_arrays_and_device_arrays_share_a_backend(make: Any, spec: KanSpec) -> None:
    opened = make()
    x = opened.rows(4)
    for _ in range(3):
        y = opened.backend.run_on_device(x)
        np.testing.assert_allclose(opened.backend.run(x.numpy()), spec.evaluate(x.numpy()), rtol=0, atol=1e-6)
        opened.library.wait(0)
        assert_answers(y, x, spec)


def test_a_stream_that_somebody_captures_is_refused(make: Any) -> None:
    opened = make()
    opened.library.current.captured = []
    with pytest.raises(InputError, match="being captured into a graph"):
        opened.backend.run_on_device(opened.rows(4))


# --- graphs


def test_arrays_that_come_again_are_one_launch(make: Any, gpu: Gpu) -> None:
    opened = make()
    x, out = opened.rows(4), opened.library.empty(4, 2, "float32", "batch-last", 0)
    opened(x, out)
    assert gpu.calls["cuStreamBeginCapture"] == 0  # they may never come again
    opened(x, out)
    assert gpu.calls["cuStreamBeginCapture"] == 1
    gpu.calls.clear()
    opened.backend.run_on_device(x, out)
    assert gpu.calls["cuGraphLaunch"] == 1
    assert set(gpu.calls) == {
        "cuCtxPushCurrent",
        "cuStreamIsCapturing",
        "cuEventRecord",
        "cuStreamWaitEvent",
        "cuGraphLaunch",
        "cuCtxPopCurrent",
    }


def test_old_graphs_are_freed(make: Any, spec: KanSpec, gpu: Gpu) -> None:
    opened = make()
    out = opened.library.empty(4, 2, "float32", "batch-last", 0)
    arrays = [opened.rows(4, seed) for seed in range(40)]
    sizes = []
    for x in arrays:
        for _ in range(3):
            assert_answers(opened(x, out), x, spec)
        sizes.append(len(gpu.live))
    assert max(sizes) == sizes[15] == sizes[-1]


def test_arrays_that_come_often_keep_their_graph(make: Any, gpu: Gpu) -> None:
    opened = make()
    x, out = opened.rows(4), opened.library.empty(4, 2, "float32", "batch-last", 0)
    others = [opened.rows(4, seed) for seed in range(40)]
    opened(x, out)
    for other in others:
        opened(x, out)
        opened(other, out)
    assert gpu.calls["cuStreamBeginCapture"] == 1


# --- what cannot be answered


@pytest.mark.parametrize("shape", [(5, 2), (5, 4), (3,), (5, 3, 1), ()])
def test_another_shape_is_refused_with_both_named(make: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as raised:
        make()(torch.zeros(shape))
    assert str(raised.value) == f"x must be (batch, 3), got {shape}"


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool, torch.complex64])
def test_what_are_no_floats_is_refused(make: Any, dtype: Any) -> None:
    with pytest.raises(InputError, match="x must hold floating-point numbers, got dtype torch"):
        make()(torch.zeros(5, 3, dtype=dtype))


@pytest.mark.parametrize(("where", "text"), [(1, "on GPU 1"), (None, "in host memory")])
def test_another_device_is_refused(make: Any, where: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = make()
    monkeypatch.setattr(opened.library, "gpu", lambda array: where)
    with pytest.raises(InputError, match=f"x is {text}, and the engine runs on GPU 0: move it there first"):
        opened(opened.rows(4))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.zeros(5, 3), r"out must be \(batch, 2\), got \(5, 3\)"),
        (torch.zeros(4, 2), r"out must be \(5, 2\), got \(4, 2\)"),
        (torch.zeros(5, 2, dtype=torch.int32), "out must hold floating-point numbers"),
        (np.zeros((5, 2), np.float32), r"out is in host memory \(ndarray\), expected an array on the GPU"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(make: Any, out: Any, message: str) -> None:
    opened = make()
    with pytest.raises(InputError, match=message):
        opened(opened.rows(5), out)


def test_a_type_that_the_library_lacks_is_named(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = make(precision="bf16")
    monkeypatch.setattr(opened.library, "types", ("float32", "float16"))
    with pytest.raises(InputError, match="the engine computes in bfloat16, which torch has not"):
        opened(opened.rows(4))


def test_a_closed_backend_says_so(make: Any) -> None:
    opened = make()
    opened.backend.close()
    with pytest.raises(InputError, match="is closed: load the bundle again"):
        opened(opened.rows(4))


# --- which arrays are on a GPU


class WithInterface:
    __cuda_array_interface__: dict[str, Any] = {}  # noqa: RUF012


class WithDlpack:
    def __init__(self, device: int) -> None:
        self.device = device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.zeros((1, 3)), False),
        ([[1.0, 2.0]], False),
        (torch.zeros(1, 3), False),
        (torch.zeros(1, 3, requires_grad=True), False),
        (1.0, False),
        (WithInterface(), True),
        (WithDlpack(2), True),
        (WithDlpack(13), True),
        (WithDlpack(1), False),
        (WithDlpack(3), False),
    ],
    ids=[
        "numpy",
        "a list",
        "torch",
        "torch with a gradient",
        "a number",
        "interface",
        "GPU",
        "managed",
        "CPU",
        "pinned",
    ],
)
def test_an_array_on_a_gpu_is_known_by_its_interface(x: Any, expected: bool) -> None:
    assert _arrays.is_on_gpu(x) is expected


def test_an_array_of_a_library_that_nothing_here_takes_over_is_refused(make: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="x is a WithInterface, which takes cupy: pip install it, or use torch"):
        make()(WithInterface())
