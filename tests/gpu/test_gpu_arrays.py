"""Arrays that are on a real GPU already: torch's, cupy's and others', on every kind of stream.

python -m pytest tests/gpu
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import pytest
from subjects import KINDS, OUT, TOLERANCES, Subject, make_subject, require_gpu, rows, stand_in

from relukan_deploy.errors import InputError
from relukan_deploy.runtime import load
from relukan_deploy.runtime._engine import EngineBackend
from relukan_deploy.runtime._lane import Lane
from relukan_deploy.spec import KanSpec, Layout

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")

SLEEP = 50_000_000  # cycles: about 25 ms
TORCH_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@pytest.fixture(autouse=True, scope="module")
def gpu() -> None:
    require_gpu()


@pytest.fixture(scope="module")
def torch() -> Any:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    return torch


@pytest.fixture(scope="module")
def cupy() -> Any:
    return pytest.importorskip("cupy")


@pytest.fixture(scope="module", params=itertools.product(KINDS, get_args(Layout)), ids=" ".join)
def subject(
    request: pytest.FixtureRequest, make_spec: Callable[..., KanSpec], tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    kind, layout = request.param
    return make_subject(kind, make_spec((8, 16, 4), seed=4), tmp_path_factory.mktemp("arrays"), layout=layout)


@pytest.fixture(scope="module")
def backend(subject: Subject) -> Iterator[EngineBackend]:
    backend = subject.open()
    yield backend
    backend.close()


@pytest.fixture
def slow() -> Iterator[tuple[Subject, EngineBackend]]:
    """An engine that takes about 1 ms, so that whoever does not wait for it comes too early."""
    subject = stand_in(spin=1_000_000)
    backend = subject.open()
    yield subject, backend
    backend.close()


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The addresses of x and y that reach the engine."""
    seen: list[tuple[int, int]] = []
    run = Lane.run_on_device

    def spy(lane: Lane, count: int, x: int, y: int, stream: int) -> None:
        seen.append((x, y))
        run(lane, count, x, y, stream)

    monkeypatch.setattr(Lane, "run_on_device", spy)
    return seen


def in_order(x: Any, subject: Subject) -> Any:
    """A tensor in the engine's memory order."""
    return x.t().contiguous().t() if subject.artifact.layout == "batch-last" else x.contiguous()


def on_host(y: Any) -> Any:
    return y.float().cpu().numpy()


# --- torch


@pytest.mark.parametrize("count", [1, 2, 7, 32, 33, 101])
def test_torch_tensors_are_answered(torch: Any, subject: Subject, backend: EngineBackend, count: int) -> None:
    for seed in range(4):
        x = rows(count, seed)
        y = backend.run_on_device(torch.from_numpy(x).cuda())
        assert y.dtype == torch.float32
        assert y.device.index == 0
        subject.check(on_host(y), x)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_halves_are_answered_in_halves(
    torch: Any, kind: Any, precision: Any, make_spec: Callable[..., KanSpec], tmp_path: Any
) -> None:
    subject = make_subject(kind, make_spec((8, 16, 4), seed=4), tmp_path, precision=precision)
    backend = subject.open()
    for given in (torch.float32, getattr(torch, TORCH_TYPES[precision])):
        x = torch.from_numpy(rows(9)).cuda().to(given)
        y = backend.run_on_device(x)
        assert y.dtype == getattr(torch, TORCH_TYPES[precision])
        expected = subject.evaluate(on_host(x).astype(np.float64))
        np.testing.assert_allclose(on_host(y), expected, rtol=0, atol=2 * TOLERANCES[precision])
    backend.close()


def test_a_tensor_that_suits_is_not_copied(
    torch: Any, subject: Subject, backend: EngineBackend, addresses: list[tuple[int, int]]
) -> None:
    x = in_order(torch.from_numpy(rows(9)).cuda(), subject)
    out = in_order(torch.empty(9, OUT, device="cuda"), subject)
    assert backend.run_on_device(x, out) is out
    assert addresses == [(x.data_ptr(), out.data_ptr())]
    subject.check(on_host(out), rows(9))


def test_tensors_of_other_orders_and_types_are_answered_alike(
    torch: Any, subject: Subject, backend: EngineBackend
) -> None:
    x = torch.from_numpy(rows(9)).cuda()
    wide = torch.zeros(18, 16, device="cuda")
    wide[::2, ::2] = x
    shifted = torch.cat([x.new_zeros(1), x.flatten()])[1:].reshape(x.shape)
    for other in (x, x.t().contiguous().t(), wide[::2, ::2], shifted, x.double(), x.clone().requires_grad_()):
        for _ in range(3):
            y = backend.run_on_device(other)
            assert not y.requires_grad
            subject.check(on_host(y), rows(9))


def test_any_out_is_written_to(torch: Any, subject: Subject, backend: EngineBackend) -> None:
    x = torch.from_numpy(rows(40)).cuda()
    for out in (
        torch.empty(40, OUT, device="cuda"),
        torch.empty(OUT, 40, device="cuda").t(),
        torch.empty(40, OUT, device="cuda", dtype=torch.float64),
        torch.empty(80, 8, device="cuda")[::2, ::2],
    ):
        for count in (9, 40):
            assert backend.run_on_device(x[:count], out[:count]).data_ptr() == out.data_ptr()
            subject.check(on_host(out[:count]), rows(40)[:count])


def test_the_memory_of_an_answer_is_nobody_elses(torch: Any, subject: Subject, backend: EngineBackend) -> None:
    x = torch.from_numpy(rows(9)).cuda()
    kept = [backend.run_on_device(x + step) for step in range(5)]
    for step, y in enumerate(kept):
        subject.check(on_host(y), on_host(x + step))


# --- streams


def streams(torch: Any) -> list[Any]:
    return [torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream(priority=-1)]


@pytest.mark.parametrize("which", range(3), ids=["default", "another", "a fast one"])
def test_what_the_current_stream_holds_comes_first(
    torch: Any, subject: Subject, backend: EngineBackend, which: int
) -> None:
    late = torch.from_numpy(rows(9)).cuda()
    x = in_order(torch.full_like(late, 0.25), subject)
    torch.cuda.synchronize()
    with torch.cuda.stream(streams(torch)[which]):
        for turn in range(4):
            x.fill_(0.25 * turn)
            torch.cuda._sleep(SLEEP)
            x.copy_(late)
            y = backend.run_on_device(x)
            torch.cuda.current_stream().synchronize()
            subject.check(on_host(y), rows(9))


@pytest.mark.parametrize("which", range(3), ids=["default", "another", "a fast one"])
def test_what_the_current_stream_is_given_afterwards_waits(
    torch: Any, slow: tuple[Subject, EngineBackend], which: int
) -> None:
    subject, backend = slow
    given = torch.from_numpy(rows(9)).cuda()
    x = in_order(torch.empty_like(given), subject)
    torch.cuda.synchronize()
    with torch.cuda.stream(streams(torch)[which]):
        for _ in range(4):
            x.copy_(given)
            y = backend.run_on_device(x)
            x.fill_(torch.nan)
            read = y.clone()
            y.fill_(torch.nan)
            torch.cuda.current_stream().synchronize()
            subject.check(on_host(read), rows(9))


def test_a_call_does_not_wait_for_the_gpu(torch: Any, slow: tuple[Subject, EngineBackend]) -> None:
    subject, backend = slow
    x = in_order(torch.from_numpy(rows(9)).cuda(), subject)
    for _ in range(3):
        backend.run_on_device(x)
    torch.cuda.synchronize()
    torch.cuda._sleep(20 * SLEEP)
    y = backend.run_on_device(x)
    assert not torch.cuda.current_stream().query()  # it is still asleep
    subject.check(on_host(y), rows(9))


def test_threads_with_streams_of_their_own_get_their_own_answers(
    torch: Any, subject: Subject, backend: EngineBackend
) -> None:
    faults: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for turn in range(50):
                    x = rows(1 + turn % 32, seed=1000 * thread + turn)
                    subject.check(on_host(backend.run_on_device(torch.from_numpy(x).cuda())), x)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_one_thread_on_many_streams_gets_every_answer(torch: Any, slow: tuple[Subject, EngineBackend]) -> None:
    subject, backend = slow
    asked = []
    for seed in range(40):
        with torch.cuda.stream(torch.cuda.Stream()):
            x = torch.from_numpy(rows(9, seed)).cuda()
            asked.append((x, backend.run_on_device(x)))
    torch.cuda.synchronize()
    for seed, (_, y) in enumerate(asked):
        subject.check(on_host(y), rows(9, seed))


def test_device_calls_and_host_calls_mix(torch: Any, subject: Subject, backend: EngineBackend) -> None:
    x = torch.from_numpy(rows(9)).cuda()
    for seed in range(20):
        y = backend.run_on_device(x)
        subject.check(backend.run(rows(5, seed)), rows(5, seed))
        subject.check(on_host(y), rows(9))


def test_a_call_within_somebodys_capture_is_refused(torch: Any, subject: Subject, backend: EngineBackend) -> None:
    x = torch.from_numpy(rows(9)).cuda()
    backend.run_on_device(x)
    torch.cuda.synchronize()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        x.clone()  # torch warns of a capture without anything in it
        with pytest.raises(InputError, match="captured into a graph"):
            backend.run_on_device(x)
    subject.check(on_host(backend.run_on_device(x)), rows(9))


# --- memory


def test_arrays_may_be_dropped_at_once(torch: Any, slow: tuple[Subject, EngineBackend]) -> None:
    subject, backend = slow
    answers = []
    for seed in range(60):
        x = torch.from_numpy(rows(32, seed)).cuda().double()  # so that it is converted, too
        answers.append(backend.run_on_device(x))
        del x
        for _ in range(20):  # takes the memory that has just been given back
            torch.full((32, 8), torch.nan, device="cuda")
            torch.full((32, 8), torch.nan, device="cuda", dtype=torch.float64)
    torch.cuda.synchronize()
    for seed, y in enumerate(answers):
        subject.check(on_host(y), rows(32, seed))


def test_steady_calls_take_no_memory(torch: Any, subject: Subject, backend: EngineBackend) -> None:
    x = in_order(torch.from_numpy(rows(9)).cuda(), subject)
    out = in_order(torch.empty(9, OUT, device="cuda"), subject)
    for _ in range(5):
        backend.run_on_device(x, out)
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    for _ in range(2000):
        backend.run_on_device(x, out)
    torch.cuda.synchronize()
    assert torch.cuda.mem_get_info()[0] >= before


def test_many_different_arrays_take_no_more_memory_than_few(
    torch: Any, subject: Subject, backend: EngineBackend
) -> None:
    def use(count: int) -> int:
        for size in range(count):
            arrays = [torch.from_numpy(rows(1 + size % 32, seed)).cuda() for seed in range(3)]
            for x in arrays * 3:
                backend.run_on_device(x)
        torch.cuda.synchronize()
        return int(torch.cuda.mem_get_info()[0])

    settled = use(200)
    assert use(400) >= settled - (8 << 20)


# --- cupy


@pytest.mark.parametrize("count", [1, 7, 32, 33, 101])
def test_cupy_arrays_are_answered(cupy: Any, subject: Subject, backend: EngineBackend, count: int) -> None:
    for order, dtype in itertools.product("CF", ("float32", "float64", "float16")):
        x = cupy.asarray(rows(count).astype(dtype), order=order)
        for _ in range(3):
            y = backend.run_on_device(x)
            assert isinstance(y, cupy.ndarray)
            assert y.dtype == np.float32
            subject.check(cupy.asnumpy(y), rows(count).astype(dtype))


def test_a_cupy_array_that_suits_is_not_copied(
    cupy: Any, subject: Subject, backend: EngineBackend, addresses: list[tuple[int, int]]
) -> None:
    order = "F" if subject.artifact.layout == "batch-last" else "C"
    x, out = cupy.asarray(rows(9), order=order), cupy.empty((9, OUT), np.float32, order=order)
    assert backend.run_on_device(x, out) is out
    assert addresses == [(x.data.ptr, out.data.ptr)]
    subject.check(cupy.asnumpy(out), rows(9))


def test_any_cupy_out_is_written_to(cupy: Any, subject: Subject, backend: EngineBackend) -> None:
    for out in (cupy.empty((40, OUT)), cupy.empty((40, OUT), np.float32, order="F"), cupy.empty((80, 8))[::2, ::2]):
        assert backend.run_on_device(cupy.asarray(rows(40)), out) is out
        subject.check(cupy.asnumpy(out), rows(40))


SPIN = r'extern "C" __global__ void spin(long long n) { long long t = clock64(); while (clock64() - t < n) {} }'


def test_cupys_current_stream_is_waited_for_and_waits(cupy: Any, slow: tuple[Subject, EngineBackend]) -> None:
    subject, backend = slow
    spin = cupy.RawKernel(SPIN, "spin")
    late = cupy.asarray(rows(9))
    for stream in (cupy.cuda.Stream.null, cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream()):
        with stream:
            for _ in range(4):
                x = cupy.zeros((9, 8), np.float32, order="F")
                spin((1,), (1,), (SLEEP,))
                x[...] = late
                y = backend.run_on_device(x)
                x.fill(cupy.nan)
                read = y.copy()
                y.fill(cupy.nan)
                stream.synchronize()
                subject.check(cupy.asnumpy(read), rows(9))


def test_torch_and_cupy_do_not_mix_in_one_call(torch: Any, cupy: Any, backend: EngineBackend) -> None:
    with pytest.raises(InputError, match="out must be an array of torch, as x is, got one of cupy"):
        backend.run_on_device(torch.zeros(5, 8, device="cuda"), cupy.zeros((5, OUT), np.float32))


# --- other libraries


class ForeignDlpack:
    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


class ForeignInterface:
    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    @property
    def __cuda_array_interface__(self) -> Any:
        return self.tensor.__cuda_array_interface__


@pytest.mark.parametrize("wrap", [ForeignDlpack, ForeignInterface])
def test_another_librarys_arrays_are_taken_over_and_waited_for(
    torch: Any, subject: Subject, backend: EngineBackend, wrap: Any
) -> None:
    if wrap is ForeignInterface:
        pytest.importorskip("cupy")
    x, out = torch.from_numpy(rows(9)).cuda(), torch.empty(9, OUT, device="cuda")
    torch.cuda.synchronize()
    target = wrap(out)
    assert backend.run_on_device(wrap(x), target) is target
    with torch.cuda.stream(torch.cuda.Stream()):  # which waits for nothing
        subject.check(on_host(out), rows(9))
    y = backend.run_on_device(wrap(x))
    subject.check(on_host(torch.from_dlpack(y)), rows(9))


# --- what cannot be answered


@pytest.mark.parametrize("shape", [(5, 7), (5, 9), (8,), (5, 8, 1)])
def test_another_shape_is_refused(torch: Any, backend: EngineBackend, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"x must be \(batch, 8\), got "):
        backend.run_on_device(torch.zeros(shape, device="cuda"))


def test_whole_numbers_are_refused(torch: Any, backend: EngineBackend) -> None:
    with pytest.raises(InputError, match=r"x must hold floating-point numbers, got dtype torch\.int32"):
        backend.run_on_device(torch.zeros(5, 8, device="cuda", dtype=torch.int32))


def test_a_tensor_in_host_memory_is_refused_beside_one_on_the_gpu(torch: Any, backend: EngineBackend) -> None:
    with pytest.raises(InputError, match="out is in host memory"):
        backend.run_on_device(torch.zeros(5, 8, device="cuda"), torch.zeros(5, OUT))


def test_another_gpu_is_refused(torch: Any, backend: EngineBackend) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    with pytest.raises(InputError, match="x is on GPU 1, and the engine runs on GPU 0"):
        backend.run_on_device(torch.zeros(5, 8, device="cuda:1"))


# --- through a runner


def test_a_runner_takes_tensors_and_arrays(torch: Any, subject: Subject) -> None:
    if subject.bundle is None:
        pytest.skip("the stand-in has no bundle")
    runner = load(subject.bundle, backend=subject.artifact.kind)
    y = runner(torch.from_numpy(rows(9)).cuda())
    assert isinstance(y, torch.Tensor)
    subject.check(on_host(y), rows(9))
    subject.check(runner(rows(9)), rows(9))
    subject.check(runner(torch.from_numpy(rows(9))), rows(9))
    runner.close()
