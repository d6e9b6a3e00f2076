"""What is timed on a real GPU: engines, their parts, fresh processes, and what the GPU does at most.

python -m pytest tests/gpu
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from subjects import IN, KINDS, OUT, Subject, make_subject, require_gpu, rows, stand_in

from relukan_deploy.bench.limits import measure_peaks
from relukan_deploy.bench.results import Contender
from relukan_deploy.bench.startup import cold_starts
from relukan_deploy.bench.subjects import Subject as Timed
from relukan_deploy.bench.subjects.bundles import bundle_subjects, engine_subjects
from relukan_deploy.bench.subjects.engine_profile import layer_seconds
from relukan_deploy.errors import RelukanError
from relukan_deploy.runtime._cuda import Cuda
from relukan_deploy.runtime._engine import EngineBackend
from relukan_deploy.spec import KanSpec, Layout, Precision

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")  # of whichever TensorRT is here

DOMAIN = np.tile((-0.5, 1.5), (IN, 1))


@pytest.fixture(autouse=True, scope="module")
def gpu() -> None:
    require_gpu()


@pytest.fixture(scope="module", params=itertools.product(KINDS, get_args(Layout)), ids=" ".join)
def subject(
    request: pytest.FixtureRequest, make_spec: Callable[..., KanSpec], tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    kind, layout = request.param
    return make_subject(kind, make_spec((8, 16, 4), seed=4), tmp_path_factory.mktemp("bench"), layout=layout)


@pytest.fixture
def timed(subject: Subject) -> Iterator[list[Timed]]:
    found = subjects_of(subject)
    yield found
    for each in found:
        each.close()


def subjects_of(subject: Subject) -> list[Timed]:
    contender = Contender("this network", (IN, 16, OUT), "tensorrt", "fp32", subject.artifact.layout)
    return engine_subjects(contender, lambda graphs: subject.open(graphs=graphs), DOMAIN, parameters=1, difference=None)


def free_bytes() -> int:
    with Cuda() as cuda:
        cuda.device.sync()
        return cuda.free_bytes()


# --- engines


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_every_way_makes_the_calls_it_is_asked_for(timed: list[Timed], batch: int) -> None:
    for each in timed:
        turn = each.prepare(batch)
        seconds = turn(50)
        assert len(seconds) == 50
        assert min(seconds) > 0
        each.release()


def test_the_split_has_copies_for_the_host_alone(timed: list[Timed]) -> None:
    for each in timed:
        each.prepare(32)
        split = each.split()
        assert split is not None
        assert split.compute > 0
        copies = (split.to_device, split.to_host)
        assert min(copies) > 0 if each.contender.data == "host" else copies == (0, 0)
        each.release()


def test_the_split_is_on_the_gpus_clock() -> None:
    slow, fast = subjects_of(stand_in(spin=10_000_000)), subjects_of(stand_in())  # about 5 ms, and next to nothing
    for one, other in zip(slow, fast, strict=True):
        found = []
        for each in (one, other):
            each.prepare(8)
            split = each.split()
            assert split is not None
            found.append(split.compute)
            each.close()
        assert found[0] > 10 * found[1]


def test_a_call_on_the_device_waits_for_the_answers() -> None:
    slow, fast = subjects_of(stand_in(spin=10_000_000)), subjects_of(stand_in())
    for one, other in zip(slow, fast, strict=True):
        assert min(one.prepare(8)(5)) > 2 * min(other.prepare(8)(5))
        one.close()
        other.close()


def test_answers_are_right_after_everything_was_timed(subject: Subject) -> None:
    backend = subject.open()
    contender = Contender("this network", (IN, 16, OUT), "tensorrt", "fp32", subject.artifact.layout)
    timed = engine_subjects(contender, lambda graphs: backend, DOMAIN, parameters=1, difference=None)
    for each in timed:
        each.prepare(8)(40)
        each.split()
        each.release()
    subject.check(backend.run(rows(8)), rows(8))
    for each in timed:
        each.close()


def test_released_memory_is_free_again(subject: Subject) -> None:
    def use() -> int:
        for each in subjects_of(subject):
            for batch in (1, 32):
                each.prepare(batch)(20)
                each.split()
            each.release()
            each.close()
        return free_bytes()

    settled = [use() for _ in range(4)][-1]
    assert [use() for _ in range(6)][-1] >= settled


def test_an_engine_tells_what_its_layers_take(subject: Subject) -> None:
    if subject.bundle is None:
        pytest.skip("the stand-in has no layers")
    backend = subject.open()
    found = layer_seconds(backend, 32)
    assert found
    assert min(found.values()) >= 0
    assert sum(found.values()) > 0
    subject.check(backend.run(rows(9)), rows(9))
    backend.close()


def test_a_bundle_is_checked_and_called_as_a_user_calls_it(subject: Subject) -> None:
    if subject.bundle is None:
        pytest.skip("the stand-in is in no bundle")
    timed = bundle_subjects(subject.bundle, subject.artifact.kind, threads=1)
    assert len(timed) == 4
    for each in timed:
        assert each.difference is not None
        assert each.difference <= subject.tolerance
        assert len(each.prepare(5)(30)) == 30
        each.close()


def test_onnx_runtime_on_the_gpu_is_called_from_the_host(bundle_path: Path) -> None:
    from relukan_deploy.bundle import open_bundle

    try:
        (timed,) = bundle_subjects(open_bundle(bundle_path), "onnxruntime-cuda", threads=1)
    except RelukanError as error:
        pytest.skip(f"ONNX Runtime cannot use this GPU: {error}")
    assert len(timed.prepare(5)(30)) == 30
    timed.close()


# --- processes and peaks


def test_a_fresh_process_takes_memory_of_the_gpu(subject: Subject) -> None:
    if subject.bundle is None:
        pytest.skip("the stand-in is in no bundle")
    (found,) = cold_starts(subject.bundle.path, [subject.artifact.kind], runs=1)
    assert found.device_bytes is not None
    assert found.device_bytes > 1 << 20
    assert found.build_seconds is not None


@pytest.mark.parametrize("precision", get_args(Precision))
def test_the_gpu_has_peaks(precision: Precision) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    found = measure_peaks("gpu", precision)
    assert (found.device, found.precision) == ("gpu", precision)
    assert found.flops_per_second > 1e11
    assert found.bytes_per_second > 1e10
    assert 0 < found.launch_seconds < 1e-2


def test_peaks_leave_pytorchs_precision_as_it_was() -> None:
    torch: Any = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    before = torch.get_float32_matmul_precision()
    measure_peaks("gpu", "tf32")
    assert torch.get_float32_matmul_precision() == before


def test_a_backend_lends_a_lane_with_the_gpu_current(subject: Subject) -> None:
    backend = subject.open()
    assert isinstance(backend, EngineBackend)
    with backend.lane() as lane:
        lane.compute(8, lane.x.device, lane.y.device)
        lane.stream.sync()
    subject.check(backend.run(rows(3)), rows(3))
    backend.close()
