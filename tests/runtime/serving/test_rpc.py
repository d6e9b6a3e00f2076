"""gRPC: the real tritonclient against a server in this process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from serving_tools import wait_until
import tritonclient.grpc as client_of
import tritonclient.grpc.aio as aio_client_of
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs
from tritonclient.utils import InferenceServerException

from relukan_deploy import __version__
from relukan_deploy.api import export
from relukan_deploy.errors import InputError, MissingDependencyError, RelukanError
from relukan_deploy.runtime.serving.metrics import Metrics
from relukan_deploy.runtime.serving.rpc import start_rpc
from relukan_deploy.runtime.serving.store import Options, Store
from relukan_deploy.spec import KanSpec

MakeSpec = Callable[..., KanSpec]
Client = Any  # tritonclient's, which has no types
Rows = NDArray[np.float32]

HELD_BACK = 60.0  # seconds that a request waits for company where a test wants it to wait


@dataclasses.dataclass
class Rpc:
    """A server and what is behind it."""

    loop: asyncio.AbstractEventLoop
    server: Any
    port: int
    store: Store
    metrics: Metrics

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self) -> Client:
        return client_of.InferenceServerClient(self.address)

    def await_pending(self, name: str, rows: int) -> None:
        """Waits until this many rows wait in the queue of a model."""
        wait_until(lambda: self.store.get(name).batcher.stats().pending == rows)


@contextlib.contextmanager
def serving(bundles: dict[str, Path], options: Options | None = None, **keywords: Any) -> Iterator[Rpc]:
    metrics = Metrics()
    store = Store(bundles, options, poll_seconds=3600, observer=metrics)
    metrics.refresh = store.observe
    store.open()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    try:
        server, port = run(start_rpc(store, metrics, host="127.0.0.1", **{"port": 0, **keywords}))
        try:
            yield Rpc(loop, server, port, store, metrics)
        finally:
            run(server.stop(0))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        store.close()


@pytest.fixture(scope="module")
def bundles(bundle_path: Path, classifier: KanSpec, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    plants = export(classifier, tmp_path_factory.mktemp("rpc") / "plants").path
    return {"shield": bundle_path, "plants": plants}


@pytest.fixture(scope="module")
def rpc(bundles: dict[str, Path]) -> Iterator[Rpc]:
    with serving(bundles) as rpc:
        yield rpc


@pytest.fixture(scope="module")
def client(rpc: Rpc) -> Iterator[Client]:
    with rpc.client() as client:
        yield client


def rows_of(count: int, width: int = 3, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).uniform(-0.5, 1.5, (count, width)).astype(np.float32)


def tensor(x: Rows) -> list[client_of.InferInput]:
    made = client_of.InferInput("x", x.shape, "FP32")
    made.set_data_from_numpy(x)
    return [made]


def ask(client: Client, x: Rows, model: str = "shield", **keywords: Any) -> Any:
    return client.infer(model, tensor(x), **keywords).as_numpy("y")


def stub_of(rpc: Rpc) -> tuple[grpc.Channel, Any]:
    channel = grpc.insecure_channel(rpc.address)
    return channel, stubs.GRPCInferenceServiceStub(channel)


# --- what is served


def test_it_lives_and_is_ready(client: Client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("shield", "1")


def test_metadata_of_the_server(client: Client) -> None:
    metadata = client.get_server_metadata()
    assert (metadata.name, metadata.version) == ("relukan-deploy", __version__)
    assert "classification" in metadata.extensions


def test_metadata_of_a_model(client: Client) -> None:
    metadata = client.get_model_metadata("plants", as_json=True)
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": ["-1", "3"]}]


def test_config_of_a_model(client: Client) -> None:
    config = client.get_model_config("shield").config
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("shield", 1024, [3])
    assert config.input[0].data_type == client_of.model_config_pb2.TYPE_FP32
    assert config.parameters["columns"].string_value == '["width", "height", "depth"]'


def test_the_repository_lists_every_model(client: Client) -> None:
    index = client.get_model_repository_index().models
    assert [(model.name, model.version, model.state) for model in index] == [
        ("shield", "1", "READY"),
        ("plants", "1", "READY"),
    ]


def test_statistics_count_requests_and_rows(bundles: dict[str, Path]) -> None:
    with serving(bundles) as rpc, rpc.client() as client:
        ask(client, rows_of(5))
        ask(client, rows_of(2))
        with pytest.raises(InferenceServerException):
            ask(client, rows_of(2, width=9))
        (of_model,) = client.get_inference_statistics("shield").model_stats
        names = [each.name for each in client.get_inference_statistics().model_stats]
    assert (of_model.inference_count, of_model.inference_stats.success.count) == (7, 2)
    assert of_model.inference_stats.fail.count == 1
    assert names == ["shield", "plants"]


# --- answers


@pytest.mark.parametrize("rows", [0, 1, 7, 5000])
def test_answers_are_the_networks(client: Client, spec: KanSpec, rows: int) -> None:
    x = rows_of(rows)
    y = ask(client, x)
    assert y.shape == (rows, 2)
    np.testing.assert_allclose(y, spec.evaluate(x), atol=1e-5)


def test_typed_contents_are_answered_alike(rpc: Rpc, client: Client) -> None:
    x = rows_of(3)
    request = pb.ModelInferRequest(model_name="shield", id="seven")
    request.inputs.add(name="x", datatype="FP32", shape=x.shape).contents.fp32_contents.extend(x.ravel().tolist())
    channel, stub = stub_of(rpc)
    with channel:
        response = stub.ModelInfer(request)
    assert (response.id, response.model_name, response.model_version) == ("seven", "shield", "1")
    y = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(3, 2)
    np.testing.assert_array_equal(y, ask(client, x))


def test_values_that_are_not_finite_are_answered(client: Client) -> None:
    assert ask(client, np.full((1, 3), np.nan, np.float32)).shape == (1, 2)


def test_classes_come_with_their_labels(client: Client, classifier: KanSpec) -> None:
    x = rows_of(2, width=4)
    wanted = [client_of.InferRequestedOutput("y", class_count=2)]
    y = ask(client, x, "plants", outputs=wanted)
    best = classifier.evaluate(x).argmax(axis=1)
    assert y.shape == (2, 2)
    for row, index in zip(y, best, strict=True):
        assert row[0].decode().split(":")[1:] == [str(index), ("fern", "moss", "oak")[index]]


def test_asyncio_clients_are_answered(rpc: Rpc, spec: KanSpec) -> None:
    async def main() -> list[Any]:
        async with aio_client_of.InferenceServerClient(rpc.address) as client:
            requests = [client.infer("shield", tensor(rows_of(1 + i % 3, seed=i))) for i in range(50)]
            return [result.as_numpy("y") for result in await asyncio.gather(*requests)]

    for i, y in enumerate(asyncio.run(main())):
        np.testing.assert_allclose(y, spec.evaluate(rows_of(1 + i % 3, seed=i)), atol=1e-5)


def test_compressed_requests_are_read(client: Client, spec: KanSpec) -> None:
    x = rows_of(50)
    np.testing.assert_allclose(ask(client, x, compression_algorithm="gzip"), spec.evaluate(x), atol=1e-5)


# --- refusals


@pytest.mark.parametrize(("model", "version"), [("nothing", ""), ("shield", "2"), ("shield", "x")])
def test_what_is_not_served_is_not_found(client: Client, model: str, version: str) -> None:
    with pytest.raises(InferenceServerException, match=r"there is no model 'nothing'|has no version") as caught:
        client.infer(model, tensor(rows_of(1)), model_version=version)
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.get_model_metadata(model, version)


def test_a_name_however_long_is_not_found(client: Client) -> None:
    with pytest.raises(InferenceServerException, match=r"there is no model 'ä.* is served here") as caught:
        client.get_model_metadata("ä" * 20_000)
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def _two_inputs(request: Any) -> None:
    request.inputs.add(name="x")


def _no_input(request: Any) -> None:
    del request.inputs[:]


def _two_contents(request: Any) -> None:
    request.inputs[0].contents.fp32_contents.extend([0.0] * 3)


def _two_raw(request: Any) -> None:
    request.raw_input_contents.append(b"")


def _too_short(request: Any) -> None:
    request.raw_input_contents[0] = b"\0" * 11


def _no_contents(request: Any) -> None:
    del request.raw_input_contents[:]


def _other_name(request: Any) -> None:
    request.inputs[0].name = "input"


def _other_type(request: Any) -> None:
    request.inputs[0].datatype = "FP64"


def _negative(request: Any) -> None:
    request.inputs[0].shape[0] = -1


def _huge(request: Any) -> None:
    request.inputs[0].shape[0] = 1 << 62


def _other_output(request: Any) -> None:
    request.outputs.add(name="z")


def _shared_memory(request: Any) -> None:
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"


def _other_count(request: Any) -> None:
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend([0.0] * 4)


def _many_classes(request: Any) -> None:
    request.inputs[0].shape[0] = 40_000
    request.raw_input_contents[0] = bytes(40_000 * 12)
    request.outputs.add(name="y").parameters["classification"].int64_param = 2


def _bad_timeout(request: Any) -> None:
    request.parameters["timeout"].string_param = "soon"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_two_inputs, "inputs must be one tensor, 'x', got 2"),
        (_no_input, "inputs must be one tensor, 'x', got 0"),
        (_two_contents, "and not in both"),
        (_two_raw, "and not in both"),
        (_too_short, "takes 12 bytes, got 11"),
        (_no_contents, "takes 12 bytes, got 0"),
        (_other_name, "the model's only input is 'x', got 'input'"),
        (_other_type, "must have the datatype FP32, got 'FP64'"),
        (_negative, r"must have the shape \[rows, 3\]"),
        (_huge, "takes .* bytes, got 12"),
        (_other_output, "the model's only output is 'y', got 'z'"),
        (_shared_memory, "is in shared memory"),
        (_other_count, "takes 12 bytes, got 16"),
        (_many_classes, "at most 65536 classes at once, not 2 for each of 40000 rows"),
        (_bad_timeout, "timeout must be a whole number of microseconds"),
    ],
)
def test_a_bad_request_is_an_invalid_argument(rpc: Rpc, spoil: Callable[[Any], None], message: str) -> None:
    request = pb.ModelInferRequest(model_name="shield", raw_input_contents=[rows_of(1).tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=(1, 3))
    spoil(request)
    channel, stub = stub_of(rpc)
    with channel, pytest.raises(grpc.RpcError, match=message) as caught:
        stub.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_message_that_is_too_large_is_refused(bundles: dict[str, Path], compression: str | None) -> None:
    with serving(bundles, max_request_bytes=10_000) as rpc, rpc.client() as client:
        assert len(ask(client, rows_of(700))) == 700
        with pytest.raises(InferenceServerException, match="larger than max") as caught:
            ask(client, np.zeros((1000, 3), np.float32), compression_algorithm=compression)
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("refused", ["SystemSharedMemoryStatus", "CudaSharedMemoryRegister", "TraceSetting"])
def test_what_is_not_there_is_unimplemented(rpc: Rpc, refused: str) -> None:
    channel, stub = stub_of(rpc)
    with channel, pytest.raises(grpc.RpcError) as caught:
        getattr(stub, refused)(getattr(pb, f"{refused}Request")())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_error_of_the_model_is_internal_and_tells_nothing(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(rows: Rows) -> Rows:
        raise RuntimeError("a secret")

    with serving(bundles) as rpc, rpc.client() as client:
        monkeypatch.setattr(rpc.store.get("shield").runner, "run", fail)
        with pytest.raises(InferenceServerException, match="its log says what") as caught:
            ask(client, rows_of(1))
        assert ask(client, rows_of(1, width=4), "plants").shape == (1, 3)
    assert caught.value.status() == "StatusCode.INTERNAL"


def test_a_fault_of_the_backend_is_internal_and_told(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(rows: Rows) -> Rows:
        raise RelukanError("the device is lost")

    with serving(bundles) as rpc, rpc.client() as client:
        monkeypatch.setattr(rpc.store.get("shield").runner, "run", fail)
        with pytest.raises(InferenceServerException, match="the device is lost") as caught:
            ask(client, rows_of(1))
        failures = [each for each in rpc.metrics.samples() if each.labels.get("reason") == "BACKEND"]
    assert caught.value.status() == "StatusCode.INTERNAL"
    assert "the device is lost" in caplog.text
    assert [each.value for each in failures] == [1]


# --- keys


@pytest.fixture(scope="module")
def locked(bundles: dict[str, Path]) -> Iterator[Client]:
    with serving(bundles, api_keys=["first", "second"]) as rpc, rpc.client() as client:
        yield client


def test_probes_need_no_key(locked: Client) -> None:
    assert locked.is_server_live()
    assert locked.is_server_ready()


@pytest.mark.parametrize("headers", [None, {"authorization": "Bearer third"}, {"authorization": "first"}])
def test_without_a_key_nothing_is_answered(locked: Client, headers: dict[str, str] | None) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: ask(locked, rows_of(1), headers=headers),
        lambda: locked.get_model_metadata("shield", headers=headers),
        lambda: locked.get_model_repository_index(headers=headers),
        lambda: locked.load_model("shield", headers=headers),
    ]
    for call in calls:
        with pytest.raises(InferenceServerException, match="an API key is needed") as caught:
            call()
        assert caught.value.status() == "StatusCode.UNAUTHENTICATED"


@pytest.mark.parametrize("key", ["first", "second"])
def test_any_key_opens(locked: Client, key: str) -> None:
    assert ask(locked, rows_of(1), headers={"authorization": f"Bearer {key}"}).shape == (1, 2)


def test_a_stream_needs_a_key(locked: Client) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    locked.start_stream(lambda result, error: answers.put(error))
    error = answers.get(timeout=30)
    locked.stop_stream()
    assert error.status() == "StatusCode.UNAUTHENTICATED"


# --- waiting


def test_a_full_queue_is_unavailable(bundles: dict[str, Path]) -> None:
    with serving(bundles, Options(max_delay=HELD_BACK, max_queue=4)) as rpc, rpc.client() as client:
        first = client.async_infer("shield", tensor(rows_of(3)), lambda result, error: None)
        rpc.await_pending("shield", 3)
        with pytest.raises(InferenceServerException, match="2 more rows do not fit") as caught:
            ask(client, rows_of(2))
        first.cancel()
    assert caught.value.status() == "StatusCode.UNAVAILABLE"


@pytest.mark.parametrize("limit", [{"client_timeout": 0.5}, {"timeout": 500_000}])
def test_a_deadline_reaches_the_queue(bundles: dict[str, Path], limit: dict[str, Any]) -> None:
    with serving(bundles, Options(max_delay=HELD_BACK)) as rpc, rpc.client() as client:
        with pytest.raises(InferenceServerException) as caught:
            ask(client, rows_of(1), **limit)
        rpc.await_pending("shield", 0)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_what_a_client_cancels_leaves_the_queue(bundles: dict[str, Path]) -> None:
    with serving(bundles, Options(max_delay=HELD_BACK)) as rpc, rpc.client() as client:
        call = client.async_infer("shield", tensor(rows_of(2)), lambda result, error: None)
        rpc.await_pending("shield", 2)
        call.cancel()
        rpc.await_pending("shield", 0)
        assert rpc.store.get("shield").batcher.stats().cancelled == 1


def test_what_was_accepted_is_answered_when_the_server_stops(bundles: dict[str, Path]) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with serving(bundles, Options(max_delay=1.0)) as rpc, rpc.client() as client:
        client.async_infer("shield", tensor(rows_of(2)), lambda result, error: answers.put((result, error)))
        rpc.await_pending("shield", 2)
        asyncio.run_coroutine_threadsafe(rpc.server.stop(30), rpc.loop).result(60)
        result, error = answers.get(timeout=30)
    assert error is None
    assert result.as_numpy("y").shape == (2, 2)


# --- streams


class Stream:
    """A client's stream, and what it is told."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.answers: queue.Queue[Any] = queue.Queue()

    def __enter__(self) -> Stream:
        self.client.start_stream(lambda result, error: self.answers.put((result, error)))
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_stream(cancel_requests=True)

    def send(self, x: Rows, **keywords: Any) -> None:
        self.client.async_stream_infer("shield", tensor(x), **keywords)

    def receive(self) -> tuple[Any, Any]:
        answer: tuple[Any, Any] = self.answers.get(timeout=60)
        return answer


def test_a_stream_answers_in_order(rpc: Rpc, spec: KanSpec) -> None:
    sizes = [1 + 97 * (i % 5) for i in range(600)]  # more than are in flight at once
    with rpc.client() as client, Stream(client) as stream:
        for i, size in enumerate(sizes):
            stream.send(rows_of(size, seed=i), request_id=str(i))
        for i, size in enumerate(sizes):
            result, error = stream.receive()
            assert error is None
            assert result.get_response().id == str(i)
            np.testing.assert_allclose(result.as_numpy("y"), spec.evaluate(rows_of(size, seed=i)), atol=1e-5)


def test_a_bad_request_of_a_stream_fails_alone(rpc: Rpc) -> None:
    with rpc.client() as client, Stream(client) as stream:
        stream.send(rows_of(1))
        stream.send(rows_of(1, width=5))
        stream.send(rows_of(1))
        outcomes = [stream.receive() for _ in range(3)]
    assert [error is None for _, error in outcomes] == [True, False, True]
    assert "must have the shape [rows, 3]" in str(outcomes[1][1])


def test_an_error_of_a_stream_names_its_request(rpc: Rpc) -> None:
    request = pb.ModelInferRequest(model_name="nothing", id="seven")
    channel, stub = stub_of(rpc)
    with channel:
        (response,) = stub.ModelStreamInfer(iter([request]))
    assert response.error_message.startswith("there is no model 'nothing'")
    assert (response.infer_response.id, response.infer_response.model_name) == ("seven", "nothing")


def test_every_answer_of_a_stream_is_final(rpc: Rpc) -> None:
    with rpc.client() as client, Stream(client) as stream:
        stream.send(rows_of(1), enable_empty_final_response=True)
        result, _ = stream.receive()
    assert result.get_response().parameters["triton_final_response"].bool_param


def test_requests_of_one_stream_share_a_batch(bundles: dict[str, Path]) -> None:
    with serving(bundles, Options(max_delay=HELD_BACK, max_batch=8)) as rpc, rpc.client() as client:
        with Stream(client) as stream:
            for _ in range(8):
                stream.send(rows_of(1))
            assert all(stream.receive()[1] is None for _ in range(8))
        assert rpc.store.get("shield").batcher.stats().batches == 1


def test_a_stream_that_is_cancelled_leaves_the_queue(bundles: dict[str, Path]) -> None:
    with serving(bundles, Options(max_delay=HELD_BACK)) as rpc, rpc.client() as client:
        with Stream(client) as stream:
            for _ in range(300):  # more than are in flight at once
                stream.send(rows_of(1))
            wait_until(lambda: rpc.store.get("shield").batcher.stats().pending > 200)
        rpc.await_pending("shield", 0)


def test_a_message_of_a_stream_that_is_too_large_ends_it(bundles: dict[str, Path]) -> None:
    with serving(bundles, max_request_bytes=10_000) as rpc, rpc.client() as client, Stream(client) as stream:
        stream.send(rows_of(1))
        assert stream.receive()[1] is None
        stream.send(rows_of(5000))
        _, error = stream.receive()
        assert error.status() == "StatusCode.RESOURCE_EXHAUSTED"


# --- the repository


@pytest.fixture
def replaceable(copied: Path) -> Iterator[tuple[Client, Path]]:
    with serving({"shield": copied}) as rpc, rpc.client() as client:
        yield client, copied


def test_loading_takes_up_a_new_version(replaceable: tuple[Client, Path], make_spec: MakeSpec) -> None:
    client, path = replaceable
    newer = make_spec((3, 5, 2), seed=9)
    export(newer, path)
    client.load_model("shield")
    assert client.get_model_metadata("shield").versions == ["2"]
    np.testing.assert_allclose(ask(client, rows_of(4)), newer.evaluate(rows_of(4)), atol=1e-5)


def test_loading_what_cannot_be_served_fails_and_the_old_stays(replaceable: tuple[Client, Path]) -> None:
    client, path = replaceable
    (path / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(InferenceServerException, match=r"cannot be served: .*SHA-256 differs") as caught:
        client.load_model("shield")
    assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"
    assert ask(client, rows_of(1)).shape == (1, 2)


def test_loading_takes_no_config(client: Client) -> None:
    with pytest.raises(InferenceServerException, match="send no config") as caught:
        client.load_model("shield", config="{}")
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_unloading_is_refused(client: Client) -> None:
    with pytest.raises(InferenceServerException, match="is served as long as the server runs") as caught:
        client.unload_model("shield")
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


# --- ports, and what it needs


def test_servers_share_a_port_if_asked_to(bundles: dict[str, Path]) -> None:
    with serving(bundles, reuse_port=True) as first, serving(bundles, port=first.port, reuse_port=True) as second:
        assert second.port == first.port


def test_a_port_that_is_taken_is_an_error(rpc: Rpc, bundles: dict[str, Path]) -> None:
    with (
        pytest.raises(InputError, match=f"cannot listen on 127.0.0.1 port {rpc.port}"),
        serving(bundles, port=rpc.port),
    ):
        pass


def test_without_tritonclient_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    monkeypatch.delitem(sys.modules, "relukan_deploy.runtime.serving.rpc")
    with pytest.raises(MissingDependencyError, match=r"pip install 'relukan-deploy\[grpc\]'"):
        importlib.import_module("relukan_deploy.runtime.serving.rpc")
