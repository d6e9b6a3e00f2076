"""How batches reach an engine, with an engine of numpy; tests/gpu has real ones."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, get_args

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from relukan_deploy.bundle import Artifact
from relukan_deploy.errors import BundleError, InputError
from relukan_deploy.runtime._engine import EngineRunner
from relukan_deploy.spec import KanSpec, Layout, Precision

DTYPES = {"fp32": np.float32, "tf32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


class Staging:
    """Host and device memory, both here. Its address is where it stands in `all`."""

    all: list[Staging] = []  # noqa: RUF012

    def __init__(self, device: Any, stream: Any, size: int) -> None:
        self._host, self.device = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        self.address = len(self.all)
        self.all.append(self)

    def host(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        part: NDArray[Any] = self._host[: int(np.prod(shape)) * dtype.itemsize].view(dtype)
        return part.reshape(shape)

    def to_device(self, size: int) -> None:
        self.device[:size] = self._host[:size]

    def to_host(self, size: int) -> None:
        self._host[:size] = self.device[:size]

    def close(self) -> None:
        pass


class Context:
    """Evaluates a network on what is in the device's memory, and refuses batches outside the profile."""

    def __init__(self, spec: KanSpec, artifact: Artifact) -> None:
        self.spec, self.artifact = spec, artifact
        self.dtype = np.dtype(DTYPES[artifact.precision])
        self.batches: list[int] = []
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "x"
        self.shape = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        last = self.artifact.layout == "batch-last"
        batch = self.shape[3] if last else self.shape[0]
        least, _, most = self.artifact.batch or (0, 0, 0)
        expected = (1, self.spec.in_features, 1, batch) if last else (batch, self.spec.in_features, 1)
        if not least <= batch <= most or self.shape != expected:
            return False
        self.batches.append(batch)
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        value = Staging.all[self.addresses["x"]].device[:size].view(self.dtype).astype(np.float64)
        rows = value.reshape(self.spec.in_features, batch).T if last else value.reshape(batch, -1)
        y = self.spec.evaluate(rows)
        written = np.ascontiguousarray(y.T if last else y).astype(self.dtype).reshape(-1).view(np.uint8)
        Staging.all[self.addresses["y"]].device[: written.size] = written
        return True


@dataclasses.dataclass
class Stream:
    handle: int = 0

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def fake_tensorrt(context: Context | None) -> Any:
    engine = context and types.SimpleNamespace(create_execution_context=lambda: context)
    runtime = types.SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
    logger = type("ILogger", (), {"Severity": types.SimpleNamespace(ERROR=1)})
    return types.SimpleNamespace(ILogger=logger, Runtime=lambda logger: runtime, __version__="99.0")


@pytest.fixture
def make_runner(spec: KanSpec, monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(
        batch: tuple[int, int, int] = (1, 4, 8), layout: Layout = "batch-last", precision: Precision = "fp32"
    ) -> tuple[EngineRunner, Context]:
        artifact = Artifact("model.engine", "tensorrt", precision, layout, "direct", 1e-5, batch=batch)
        context = Context(spec, artifact)
        device = types.SimpleNamespace(create_stream=Stream, set_current=lambda: None, name="a GPU of numpy")
        monkeypatch.setattr("relukan_deploy.runtime._engine.open_device", lambda: device)
        monkeypatch.setattr("relukan_deploy.runtime._engine.import_tensorrt", lambda *_: fake_tensorrt(context))
        monkeypatch.setattr("relukan_deploy.runtime._engine._Staging", Staging)
        return EngineRunner("tensorrt", b"plan", artifact, spec.in_features, spec.out_features), context

    return make


def rows(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 2, (count, 3)).astype(np.float32)


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("tf32", 1e-6), ("fp16", 5e-3), ("bf16", 4e-2)])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 29])
def test_answers_are_those_of_the_network(
    make_runner: Any, spec: KanSpec, layout: Layout, precision: Precision, tolerance: float, count: int
) -> None:
    runner, _ = make_runner(layout=layout, precision=precision)
    y = runner(rows(count))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, spec.evaluate(rows(count)), rtol=0, atol=tolerance)


def test_more_rows_than_the_largest_batch_are_cut(make_runner: Any) -> None:
    runner, context = make_runner((1, 4, 8))
    runner(rows(29))
    assert context.batches == [8, 8, 8, 5]


def test_fewer_rows_than_the_smallest_batch_are_filled_up(make_runner: Any, spec: KanSpec) -> None:
    runner, context = make_runner((4, 4, 8))
    np.testing.assert_allclose(runner(rows(10)), spec.evaluate(rows(10)), rtol=0, atol=1e-6)
    assert context.batches == [8, 4]


def test_no_rows_run_nothing(make_runner: Any) -> None:
    runner, context = make_runner()
    assert runner(np.empty((0, 3), np.float32)).shape == (0, 2)
    assert context.batches == []


@pytest.mark.parametrize("count", [1, 8])
def test_an_answer_is_not_overwritten_by_the_next(make_runner: Any, count: int) -> None:
    runner, _ = make_runner()
    first = runner(rows(count))
    kept = first.copy()
    runner(rows(count) + 1)
    np.testing.assert_array_equal(first, kept)


def test_a_wrong_width_is_refused_before_anything_runs(make_runner: Any) -> None:
    runner, context = make_runner()
    with pytest.raises(InputError, match=r"x must be \(batch, 3\), got \(2, 4\)"):
        runner(np.zeros((2, 4), np.float32))
    assert context.batches == []


def test_an_engine_that_fails_to_run_is_an_error(make_runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, context = make_runner()
    monkeypatch.setattr(context, "execute_async_v3", lambda stream: False)
    with pytest.raises(BundleError, match="tensorrt could not run a batch of 3"):
        runner(rows(3))


def test_an_engine_that_cannot_be_loaded_says_for_what_it_was_built(
    make_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, _ = make_runner()
    monkeypatch.setattr("relukan_deploy.runtime._engine.import_tensorrt", lambda *_: fake_tensorrt(None))
    artifact = dataclasses.replace(runner.artifact, details={"version": "10.3", "gpu": "NVIDIA L4"})
    message = (
        r"built by tensorrt 10\.3 for NVIDIA L4, and tensorrt 99\.0 on a GPU of numpy cannot load it: build it here"
    )
    with pytest.raises(BundleError, match=message):
        EngineRunner("tensorrt", b"plan", artifact, 3, 2)
