"""One suite for every server: the Open Inference Protocol as tritonclient, NVIDIA's own, speaks it.

It runs on real Triton too, so that what relukan-serve has to do is not this project's opinion.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks._servers import MISSING_TRITON, Server, find_triton, relukan_serve, tritonserver
from relukan_deploy.api import export
from relukan_deploy.exporters.to_triton import TritonBackend, TritonOptions, to_triton
from relukan_deploy.spec import KanSpec

pytestmark = pytest.mark.slow

Rows = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Served:
    """A model on a server.

    Attributes:
        server: the process.
        model: its name there.
        spec: the network, whose float64 answers are the right ones.
    """

    server: Server
    model: str
    spec: KanSpec


@pytest.fixture(scope="session")
def triton(classifier: KanSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Triton with the classifier under the name of each backend. It completes no config by itself."""
    if find_triton() is None:
        pytest.skip(MISSING_TRITON)
    folder = tmp_path_factory.mktemp("triton")
    bundle = export(classifier, folder / "plants", layout="batch-major")
    backends: tuple[TritonBackend, ...] = ("onnxruntime", "python")
    for backend in backends:
        to_triton(bundle, TritonOptions(folder / "models", name=backend, backend=backend), batch=(1, 16, 256))
    with tritonserver(folder / "models", "--disable-auto-complete-config") as server:
        yield server


@pytest.fixture(scope="session")
def own(classifier: KanSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """relukan-serve with the classifier under the name of its folder, plants."""
    bundle = export(classifier, tmp_path_factory.mktemp("own") / "plants")
    with relukan_serve(str(bundle.path)) as server:
        yield server


@pytest.fixture(params=["Triton, onnxruntime", "Triton, python", "relukan-serve"])
def served(request: pytest.FixtureRequest, classifier: KanSpec) -> Iterator[Served]:
    """The classifier on each server. What the server prints meanwhile is shown if the test fails."""
    backend = request.param.removeprefix("Triton, ")
    if backend == request.param:
        found = Served(request.getfixturevalue("own"), "plants", classifier)
    else:
        found = Served(request.getfixturevalue("triton"), backend, classifier)
    before = len(found.server.output())
    yield found
    print(found.server.output()[before:])


@pytest.fixture(params=["http", "grpc"])
def api(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"tritonclient.{request.param}")


@pytest.fixture
def client(api: ModuleType, served: Served) -> Iterator[Any]:
    with connect(api, served) as connected:
        yield connected


def connect(api: ModuleType, served: Served) -> Any:
    return api.InferenceServerClient(served.server.grpc if "grpc" in api.__name__ else served.server.http)


def some_rows(count: int, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).uniform(-0.8, 1.2, (count, 4)).astype(np.float32)


def tensor(api: ModuleType, x: NDArray[Any], name: str = "x", datatype: str = "FP32", **options: Any) -> Any:
    return api.InferInput(name, list(x.shape), datatype).set_data_from_numpy(x, **options)


def assert_right(served: Served, x: Rows, y: Rows | None) -> None:
    expected = served.spec.evaluate(x)
    assert y is not None
    assert y.dtype == np.float32
    assert y.shape == expected.shape
    assert np.abs(y - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def as_dict(api: ModuleType, ask: Callable[..., Any], *arguments: str) -> Any:
    """An answer about a model, in the form that HTTP gives it."""
    return ask(*arguments, as_json=True) if api is tritonclient.grpc else ask(*arguments)


# --- what is there


def test_it_lives_and_is_ready(served: Served, client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(served.model)
    assert client.is_model_ready(served.model, "1")


def test_a_model_that_is_not_there_is_not_ready(client: Any) -> None:
    assert not client.is_model_ready("nothing")


def test_it_says_what_it_can_do(api: ModuleType, client: Any) -> None:
    told = as_dict(api, client.get_server_metadata)
    assert told["name"]
    assert told["version"]
    assert {"binary_tensor_data", "classification", "statistics"} <= set(told["extensions"])


def test_a_model_tells_its_tensors(api: ModuleType, served: Served, client: Any) -> None:
    told = as_dict(api, client.get_model_metadata, served.model)
    ((x,), (y,)) = (told["inputs"], told["outputs"])
    assert (told["name"], told["versions"]) == (served.model, ["1"])
    assert (x["name"], x["datatype"], list(map(int, x["shape"]))) == ("x", "FP32", [-1, 4])
    assert (y["name"], y["datatype"], list(map(int, y["shape"]))) == ("y", "FP32", [-1, 3])


def test_a_model_tells_its_configuration(api: ModuleType, served: Served, client: Any) -> None:
    told = as_dict(api, client.get_model_config, served.model)
    config = told["config"] if api is tritonclient.grpc else told
    assert config["name"] == served.model
    assert config["max_batch_size"] >= 256
    (x,), (y,) = config["input"], config["output"]
    assert (x["name"], x["data_type"], list(map(int, x["dims"]))) == ("x", "TYPE_FP32", [4])
    assert (y["name"], y["data_type"], list(map(int, y["dims"]))) == ("y", "TYPE_FP32", [3])
    assert "dynamic_batching" in config


def test_the_index_lists_the_model(api: ModuleType, served: Served, client: Any) -> None:
    told = as_dict(api, client.get_model_repository_index)
    models = told["models"] if api is tritonclient.grpc else told
    (entry,) = [each for each in models if each["name"] == served.model]
    assert (entry["version"], entry["state"]) == ("1", "READY")


# --- answers


@pytest.mark.parametrize("rows", [1, 2, 17, 256])
def test_it_answers_as_the_reference_does(api: ModuleType, served: Served, client: Any, rows: int) -> None:
    x = some_rows(rows)
    answer = client.infer(served.model, [tensor(api, x)])
    assert_right(served, x, answer.as_numpy("y"))


@pytest.mark.parametrize("sent", ["binary", "JSON"])
@pytest.mark.parametrize("answered", ["binary", "JSON"])
def test_tensors_are_binary_or_json(served: Served, sent: str, answered: str) -> None:
    api, x = tritonclient.http, some_rows(5)
    output = api.InferRequestedOutput("y", binary_data=answered == "binary")
    with connect(api, served) as client:
        answer = client.infer(served.model, [tensor(api, x, binary_data=sent == "binary")], outputs=[output])
    assert_right(served, x, answer.as_numpy("y"))
    (described,) = answer.get_response()["outputs"]
    assert ("data" in described) == (answered == "JSON")


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_bodies_are_compressed_both_ways(served: Served, algorithm: str) -> None:
    api, x = tritonclient.http, some_rows(100)
    options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    with connect(api, served) as client:
        answer = client.infer(served.model, [tensor(api, x)], **options)
    assert_right(served, x, answer.as_numpy("y"))


def test_messages_are_compressed(served: Served) -> None:
    api, x = tritonclient.grpc, some_rows(100)
    with connect(api, served) as client:
        answer = client.infer(served.model, [tensor(api, x)], compression_algorithm="gzip")
    assert_right(served, x, answer.as_numpy("y"))


def test_a_request_gets_its_own_id_back(api: ModuleType, served: Served, client: Any) -> None:
    answer = client.infer(served.model, [tensor(api, some_rows(1))], request_id="mine")
    told = answer.get_response(as_json=True) if api is tritonclient.grpc else answer.get_response()
    assert told["id"] == "mine"


def test_a_version_can_be_asked_for(api: ModuleType, served: Served, client: Any) -> None:
    answer = client.infer(served.model, [tensor(api, some_rows(1))], model_version="1")
    told = answer.get_response(as_json=True) if api is tritonclient.grpc else answer.get_response()
    assert (told["model_name"], told["model_version"]) == (served.model, "1")


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_classes_are_named_best_first(api: ModuleType, served: Served, client: Any, classes: int) -> None:
    x = some_rows(6)
    output = api.InferRequestedOutput("y", class_count=classes)
    found = client.infer(served.model, [tensor(api, x)], outputs=[output]).as_numpy("y")
    logits = served.spec.evaluate(x)
    assert found.shape == (6, classes)
    for row, expected in zip(found, logits, strict=True):
        best = np.argsort(-expected)[:classes]
        parts = [each.decode().split(":") for each in row]
        assert [(int(index), label) for _, index, label in parts] == [
            (index, ("fern", "moss", "oak")[index]) for index in best
        ]
        assert np.allclose([float(value) for value, _, _ in parts], expected[best], atol=1e-4)


def test_a_bad_row_leaves_its_neighbours_right(api: ModuleType, served: Served, client: Any) -> None:
    x = some_rows(3)
    bad = x.copy()
    bad[1] = np.nan
    y = client.infer(served.model, [tensor(api, bad)]).as_numpy("y")
    assert_right(served, x[[0, 2]], y[[0, 2]])
    assert np.isnan(y[1]).any()


# --- requests that cannot be answered

Ask = Callable[[ModuleType, Any, str], Any]
WRONG: dict[str, tuple[Ask, str]] = {
    "another model": (lambda api, client, model: client.infer("nothing", [tensor(api, some_rows(1))]), "unknown"),
    "another version": (
        lambda api, client, model: client.infer(model, [tensor(api, some_rows(1))], model_version="9"),
        "unknown",
    ),
    "metadata of another model": (lambda api, client, model: client.get_model_metadata("nothing"), "unknown"),
    "configuration of another model": (lambda api, client, model: client.get_model_config("nothing"), "unknown"),
    "another input": (lambda api, client, model: client.infer(model, [tensor(api, some_rows(1), name="z")]), "bad"),
    "no input": (lambda api, client, model: client.infer(model, []), "bad"),
    "another output": (
        lambda api, client, model: client.infer(
            model, [tensor(api, some_rows(1))], outputs=[api.InferRequestedOutput("z")]
        ),
        "bad",
    ),
    "too wide a row": (
        lambda api, client, model: client.infer(model, [tensor(api, np.zeros((1, 5), np.float32))]),
        "bad",
    ),
    "no batch axis": (lambda api, client, model: client.infer(model, [tensor(api, np.zeros(4, np.float32))]), "bad"),
    "another axis": (
        lambda api, client, model: client.infer(model, [tensor(api, np.zeros((1, 4, 1), np.float32))]),
        "bad",
    ),
    "another type": (
        lambda api, client, model: client.infer(model, [tensor(api, np.zeros((1, 4)), datatype="FP64")]),
        "bad",
    ),
}
STATUS = {"unknown": ("404", "StatusCode.NOT_FOUND"), "bad": ("400", "StatusCode.INVALID_ARGUMENT")}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_told_so(api: ModuleType, served: Served, client: Any, case: str) -> None:
    ask, status = WRONG[case]
    with pytest.raises(InferenceServerException) as told:
        ask(api, client, served.model)
    assert told.value.status() in STATUS[status]
    assert told.value.message()
    x = some_rows(2)
    assert_right(served, x, client.infer(served.model, [tensor(api, x)]).as_numpy("y"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"inputs": 1}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, -4], "data": [1, 2, 3, 4]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, "4"]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}]}',
    ],
)
def test_a_body_that_makes_no_sense_is_answered_with_the_protocols_error(served: Served, body: bytes) -> None:
    url = f"http://{served.server.http}/v2/models/{served.model}/infer"
    with pytest.raises(urllib.error.HTTPError) as told:
        urllib.request.urlopen(urllib.request.Request(url, data=body, method="POST"), timeout=30)
    with told.value:
        # Triton calls some of these its own fault.
        assert told.value.code in ((400, 500) if served.model != "plants" else (400,))
        assert json.loads(told.value.read())["error"]


def test_json_is_read_without_a_content_type_and_with_rows_nested_or_not(served: Served) -> None:
    x = some_rows(2)
    url = f"http://{served.server.http}/v2/models/{served.model}/infer"
    for data in (x.tolist(), x.ravel().tolist()):
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4], "data": data}]}
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=30) as answer:
            (y,) = json.loads(answer.read())["outputs"]
        assert (y["name"], y["datatype"], y["shape"]) == ("y", "FP32", [2, 3])
        assert_right(served, x, np.array(y["data"], np.float32).reshape(y["shape"]))


# --- many at once


def test_statistics_count_rows_and_batches(api: ModuleType, served: Served, client: Any) -> None:
    def count() -> tuple[int, int, int]:
        (stats,) = as_dict(api, client.get_inference_statistics, served.model)["model_stats"]
        success = stats["inference_stats"]["success"]
        counts = stats.get("inference_count", 0), stats.get("execution_count", 0), success.get("count", 0)
        return int(counts[0]), int(counts[1]), int(counts[2])  # gRPC's JSON leaves out a zero

    before = settled(count)
    for rows in (3, 4):
        client.infer(served.model, [tensor(api, some_rows(rows))])
    rows, batches, requests = (now - then for now, then in zip(settled(count), before, strict=True))
    assert (rows, batches, requests) == (7, 2, 2)


def settled(count: Callable[[], tuple[int, int, int]]) -> tuple[int, int, int]:
    """What is counted once it has stayed the same for a while: Triton counts after it has answered."""
    seen, now = None, count()
    while now != seen:
        time.sleep(0.1)
        seen, now = now, count()
    return now


def test_threads_get_their_own_answers(api: ModuleType, served: Served) -> None:
    wrong: list[str] = []

    def ask(seed: int) -> None:
        generator = np.random.default_rng(seed)
        try:
            with connect(api, served) as client:
                for turn in range(20):
                    x = some_rows(int(generator.integers(1, 40)), seed=1000 * seed + turn)
                    assert_right(served, x, client.infer(served.model, [tensor(api, x)]).as_numpy("y"))
        except BaseException as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", ["http", "grpc"])
def test_tasks_get_their_own_answers(served: Served, name: str) -> None:
    api = importlib.import_module(f"tritonclient.{name}.aio")

    async def ask(client: Any, seed: int) -> None:
        x = some_rows(1 + seed % 7, seed)
        assert_right(served, x, (await client.infer(served.model, [tensor(api, x)])).as_numpy("y"))

    async def ask_all() -> None:
        async with connect(api, served) as client:
            assert await client.is_server_ready()
            for begin in range(0, 300, 100):
                await asyncio.gather(*(ask(client, seed) for seed in range(begin, begin + 100)))
            with pytest.raises(InferenceServerException):
                await client.infer("nothing", [tensor(api, some_rows(1))])

    asyncio.run(ask_all())
