"""The HTTP interface, request by request, in this process."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from serving_tools import Network, Rows, as_json, read_json, running, some_rows
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount

from relukan_deploy import __version__
from relukan_deploy.errors import BundleError, InputError, MissingDependencyError, RelukanError
from relukan_deploy.runtime.serving import asgi_app
from relukan_deploy.runtime.serving.app import build_app
from relukan_deploy.runtime.serving.metrics import Metrics
from relukan_deploy.runtime.serving.store import Store
from relukan_deploy.spec import KanSpec

MakeSpec = Callable[..., KanSpec]

X = some_rows(3, 3)
INFER = "/v2/models/shield/infer"
LIMIT = 4096


class Client:
    """Asks an application without a socket."""

    def __init__(self, app: Any, **headers: str) -> None:
        self.app = app
        self._headers = headers

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        (response,) = self.at_once((method, path, options))
        return response

    def at_once(self, *requests: tuple[str, str, dict[str, Any]]) -> list[httpx.Response]:
        """The answers to requests of which none waits for another."""

        async def ask() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://here", headers=self._headers) as client:
                asked = (client.request(method, path, **options) for method, path, options in requests)
                return list(await asyncio.gather(*asked))

        return asyncio.run(ask())

    def infer(self, x: Rows = X, **more: Any) -> httpx.Response:
        return self("POST", INFER, json=as_json(x, **more))


@contextmanager
def serving(bundles: Any, **options: Any) -> Iterator[Client]:
    """The application for these bundles, and its end."""
    app = asgi_app(bundles, poll_seconds=1e6, **options)
    client = Client(app)

    async def lifespan() -> None:
        async with app.router.lifespan_context(app):
            pass

    try:
        yield client
    finally:
        asyncio.run(lifespan())


@pytest.fixture(scope="module")
def client(bundle_path: Path) -> Iterator[Client]:
    with serving({"shield": bundle_path}, max_request_bytes=LIMIT) as client:
        yield client


def assert_right(response: httpx.Response, spec: KanSpec, x: Rows = X) -> None:
    assert response.status_code == 200, response.text
    assert np.abs(read_json(response.json()) - spec.evaluate(x)).max(initial=0) < 1e-5


def assert_error(response: httpx.Response, status: int, message: str) -> None:
    """The protocol's form of an error, with this in it."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json"), response.text
    content = response.json()
    assert list(content) == ["error"]
    assert message in content["error"]
    assert "\n" not in content["error"]


def compressed(body: bytes, encoding: str) -> bytes:
    if encoding == "gzip":
        return gzip.compress(body)
    return zlib.compress(body) if encoding == "deflate" else body


# --- what it tells


def test_it_tells_what_it_is(client: Client) -> None:
    told = client("GET", "/v2").json()
    assert (told["name"], told["version"]) == ("relukan-deploy", __version__)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/shield/ready", {"ready": True}),
        ("/v2/models/shield/versions/1/ready", {"ready": True}),
    ],
)
def test_it_lives_and_is_ready(client: Client, path: str, content: dict[str, bool]) -> None:
    response = client("GET", path)
    assert (response.status_code, response.json()) == (200, content)


@pytest.mark.parametrize("path", ["/v2/models/shield", "/v2/models/shield/versions/1"])
def test_a_model_tells_its_tensors(client: Client, path: str) -> None:
    assert client("GET", path).json() == {
        "name": "shield",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
    }


def test_a_model_tells_how_it_is_batched_and_what_a_row_means(bundle_path: Path) -> None:
    with serving({"shield": bundle_path}, max_batch=64, max_delay=0.002) as client:
        config = client("GET", "/v2/models/shield/config").json()
    assert config["max_batch_size"] == 64
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 2000}
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
    assert config["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}]
    meaning = {name: json.loads(value["string_value"]) for name, value in config["parameters"].items()}
    assert meaning == {"task": "regression", "columns": ["width", "height", "depth"], "targets": ["mass", "cost"]}


@pytest.mark.parametrize("body", [b"", b"{}", b'{"ready": true}', b'{"ready": false}'])
def test_the_index_lists_what_is_served(client: Client, body: bytes) -> None:
    index = client("POST", "/v2/repository/index", content=body).json()
    assert index == [{"name": "shield", "version": "1", "state": "READY", "reason": ""}]


@pytest.mark.parametrize("kind", ["systemsharedmemory", "cudasharedmemory"])
def test_there_is_no_shared_memory(client: Client, kind: str) -> None:
    assert client("GET", f"/v2/{kind}/status").json() == []
    assert client("GET", f"/v2/{kind}/region/r/status").json() == []
    for path in ("region/r/register", "region/r/unregister", "unregister"):
        assert_error(client("POST", f"/v2/{kind}/{path}"), 501, f"this server has no {kind}")


@pytest.mark.parametrize("path", ["/v2/logging", "/v2/trace/setting", "/v2/models/shield/trace/setting"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_there_are_no_settings_to_change(client: Client, path: str, method: str) -> None:
    assert_error(client(method, path), 501, "this server has no")


def test_what_is_still_being_opened_lives_and_is_not_ready(bundle_path: Path) -> None:
    client = Client(build_app(Store({"shield": bundle_path}), Metrics()))
    assert client("GET", "/v2/health/live").status_code == 200
    ready = client("GET", "/v2/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"ready": False})
    assert client("POST", "/v2/repository/index").json()[0]["state"] == "LOADING"
    assert client("POST", "/v2/repository/index", json={"ready": True}).json() == []
    for response in (client.infer(), client("GET", "/v2/models/shield/ready")):
        assert_error(response, 503, "model 'shield' is still being opened")
        assert response.headers["retry-after"] == "1"


# --- answers


@pytest.mark.parametrize("path", [INFER, "/v2/models/shield/versions/1/infer"])
def test_it_answers(client: Client, spec: KanSpec, path: str) -> None:
    response = client("POST", path, json=as_json(X, id="mine"))
    assert_right(response, spec)
    told = response.json()
    assert (told["model_name"], told["model_version"], told["id"]) == ("shield", "1", "mine")


@pytest.mark.parametrize("rows", [0, 1, 40])
def test_any_number_of_rows_is_answered(client: Client, spec: KanSpec, rows: int) -> None:
    x = some_rows(rows, 3)
    assert_right(client.infer(x), spec, x)


def test_tensors_travel_as_bytes(client: Client, spec: KanSpec) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [3, 3], "parameters": {"binary_data_size": 36}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    response = client("POST", INFER, content=header + X.tobytes(), headers=headers)
    length = int(response.headers["inference-header-content-length"])
    (output,) = json.loads(response.content[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 24}
    y = np.frombuffer(response.content[length:], "<f4").reshape(output["shape"])
    assert np.abs(y - spec.evaluate(X)).max() < 1e-5


@pytest.mark.parametrize("encoding", ["gzip", "GZip", "deflate", "identity", ""])
def test_requests_may_be_compressed(client: Client, spec: KanSpec, encoding: str) -> None:
    body = compressed(json.dumps(as_json(X)).encode(), encoding.lower())
    assert_right(client("POST", INFER, content=body, headers={"Content-Encoding": encoding}), spec)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("br;q=1.0, deflate;q=0.5, GZIP;q=0.1", "gzip"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip; q=0.000", None),
        ("br, identity", None),
        ("", None),
    ],
)
def test_large_answers_are_compressed_for_who_takes_them(
    client: Client, spec: KanSpec, accepted: str, encoding: str | None
) -> None:
    x = some_rows(64, 3)  # its answer is larger than 1 KiB
    body = gzip.compress(json.dumps(as_json(x)).encode())
    headers = {"Accept-Encoding": accepted, "Content-Encoding": "gzip"}
    response = client("POST", INFER, content=body, headers=headers)
    assert response.headers.get("content-encoding") == encoding
    assert_right(response, spec, x)


def test_classes_are_labelled(classifier: KanSpec, tmp_path: Path) -> None:
    from relukan_deploy.api import export

    x = some_rows(2, 4)
    wanted = [{"name": "y", "parameters": {"classification": 1}}]
    with serving(export(classifier, tmp_path / "plants").path) as client:
        (output,) = client("POST", "/v2/models/plants/infer", json=as_json(x, outputs=wanted)).json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 1])
    best = classifier.evaluate(x).argmax(axis=1)
    assert [each.split(":")[1:] for each in output["data"]] == [
        [str(index), ("fern", "moss", "oak")[index]] for index in best
    ]


def test_everybody_gets_their_own_answer(client: Client, spec: KanSpec) -> None:
    asked = [some_rows(1 + seed % 5, 3, seed) for seed in range(200)]
    answers = client.at_once(*(("POST", INFER, {"json": as_json(x)}) for x in asked))
    for x, response in zip(asked, answers, strict=True):
        assert_right(response, spec, x)


def test_several_bundles_are_served_side_by_side(
    bundle_path: Path, spec: KanSpec, tmp_path: Path, make_spec: MakeSpec
) -> None:
    network = Network(tmp_path / "ferns", make_spec)
    with serving({"shield": bundle_path, "ferns": network.path}) as client:
        assert_right(client.infer(), spec)
        network.check("1", X, read_json(client("POST", "/v2/models/ferns/infer", json=as_json(X)).json()))


# --- what it refuses


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/v2/models/moss/infer", 404, "there is no model 'moss': 'shield' is served here"),
        ("POST", "/v2/models/shield/versions/2/infer", 404, "no version '2': version 1 is served here"),
        ("GET", "/v2/models/moss", 404, "there is no model 'moss'"),
        ("GET", "/v2/models/moss/ready", 404, "there is no model 'moss'"),
        ("GET", "/v2/models/shield/versions/2/ready", 404, "no version '2'"),
        ("GET", "/v2/models/moss/config", 404, "there is no model 'moss'"),
        ("GET", "/v2/models/moss/stats", 404, "there is no model 'moss'"),
        ("POST", "/v2/repository/models/moss/load", 404, "there is no model 'moss'"),
        ("POST", "/v2/repository/models/moss/unload", 404, "there is no model 'moss'"),
        ("GET", "/v3", 404, "there is no /v3 here"),
        ("GET", "/v2/", 404, "there is no /v2/ here"),
        ("GET", INFER, 405, f"{INFER} does not take GET"),
        ("DELETE", "/v2", 405, "/v2 does not take DELETE"),
        ("POST", "/v2/repository/models/shield/unload", 501, "end the server instead"),
    ],
)
def test_what_is_not_there_is_told_so(client: Client, method: str, path: str, status: int, message: str) -> None:
    response = client(method, path, json=as_json(X)) if method == "POST" else client(method, path)
    assert_error(response, status, message)


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"{", {}, 400, "the request is not JSON"),
        (json.dumps(as_json(some_rows(1, 4))).encode(), {}, 400, "the shape [rows, 3], got [1, 4]"),
        (b"{}", {"Inference-Header-Content-Length": "-1"}, 400, "must be the number of bytes of the JSON"),
        (b"{}", {"Inference-Header-Content-Length": "1_0"}, 400, "must be the number of bytes of the JSON"),
        (b"{}", {"Inference-Header-Content-Length": "9" * 99}, 400, "must be the number of bytes of the JSON"),
        (b"{}", {"Inference-Header-Content-Length": "3"}, 400, "3 bytes long, the whole body is 2"),
        (b"{}", {"Content-Encoding": "br"}, 415, "'br' is not known here: send gzip or deflate"),
        (b"{}", {"Content-Encoding": "gzip, gzip"}, 415, "is not known here"),
        (b"{}", {"Content-Encoding": "gzip"}, 400, "the body is not gzip"),
        (gzip.compress(b"{}", mtime=0)[:-4], {"Content-Encoding": "gzip"}, 400, "not one whole gzip stream"),
        (gzip.compress(b"{}", mtime=0) + b"more", {"Content-Encoding": "gzip"}, 400, "not one whole gzip stream"),
        (zlib.compress(b"{}")[:-4], {"Content-Encoding": "deflate"}, 400, "not one whole deflate stream"),
        (b" " * (LIMIT + 1), {}, 413, f"larger than the {LIMIT} bytes"),
    ],
)
def test_a_wrong_body_is_told_so(
    client: Client, spec: KanSpec, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    response = client("POST", INFER, content=body, headers=headers)
    assert_error(response, status, message)
    assert ("accept-encoding" in response.headers) == (status == 415)
    assert_right(client.infer(), spec)


def test_a_body_that_says_it_is_too_large_is_not_read(client: Client) -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("it was read")

    headers = [(b"content-length", b"%d" % (LIMIT + 1))]
    assert ask_bare(client.app, receive, headers) == 413


def test_a_body_that_becomes_too_large_is_not_read_to_its_end(client: Client) -> None:
    received = 0

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": b" " * 1024, "more_body": True}

    assert ask_bare(client.app, receive, []) == 413
    assert received == LIMIT // 1024 + 1


def test_a_client_that_goes_away_is_no_failure(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    messages: Iterator[dict[str, Any]] = iter(
        [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> dict[str, Any]:
        return next(messages)

    assert ask_bare(client.app, receive, []) is None
    assert caplog.records == []


def test_a_client_that_goes_away_from_elsewhere_is_no_failure(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    assert ask_bare(client.app, receive, [], "/v2/repository/index") == 400  # which nobody reads
    assert caplog.records == []


def ask_bare(app: Any, receive: Any, headers: list[tuple[bytes, bytes]], path: str = INFER) -> int | None:
    """The status of the answer to an inference request whose body comes like this, or None without one."""
    status = None

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "query_string": b"", "headers": headers}
    asyncio.run(app(scope, receive, send))
    return status


@pytest.mark.parametrize("arrived", [[], [{"type": "http.request", "body": b"{", "more_body": True}]])
def test_a_body_that_does_not_arrive_is_not_waited_for(
    client: Client, monkeypatch: pytest.MonkeyPatch, arrived: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr("relukan_deploy.runtime.serving.bodies._PATIENCE", 0.05)
    messages = iter(arrived)

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    assert ask_bare(client.app, receive, []) == 408


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_is_small_only_while_compressed_is_not_unpacked(bundle_path: Path, encoding: str) -> None:
    bomb = compressed(b" " * (256 << 20), encoding)
    with serving({"shield": bundle_path}, max_request_bytes=1 << 20) as client:
        tracemalloc.start()
        response = client("POST", INFER, content=bomb, headers={"Content-Encoding": encoding})
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert_error(response, 413, "larger than the 1048576 bytes")
    assert peak < 16 << 20


def test_ten_thousand_odd_headers_are_answered_and_leave_nothing_behind(client: Client) -> None:
    generator = random.Random(0)
    body = json.dumps(as_json(X)).encode()
    good = {
        b"content-length": [b"%d" % len(body), b"0", b"%d" % LIMIT, b"-1", b"9" * 5000],
        b"content-encoding": [b"gzip", b"deflate", b"identity", b"br", b"gzip, gzip"],
        b"inference-header-content-length": [b"%d" % len(body), b"0", b"1e3", b"9" * 5000],
        b"accept-encoding": [b"gzip", b"deflate;q=0.5, *", b"gzip;q=0", b",;=,"],
        b"authorization": [b"Bearer", b"Basic \xff"],
        b"host": [b"", b"here"],
    }

    def odd_headers() -> list[tuple[bytes, bytes]]:
        headers = []
        for _ in range(generator.randint(0, 6)):
            name = generator.choice(list(good))
            value = bytearray(generator.choice(good[name]))
            for _ in range(generator.randint(0, 3)):
                value.insert(generator.randint(0, len(value)), generator.randrange(256))
            headers.append((name, bytes(value)))
        return headers

    statuses = asyncio.run(ask_often(client.app, body, [odd_headers() for _ in range(9000)]))
    tracemalloc.start()
    statuses |= asyncio.run(ask_often(client.app, body, [odd_headers() for _ in range(1000)]))
    left, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert statuses == {200, 400, 413, 415}
    assert left < 1 << 18


async def ask_often(app: Any, body: bytes, requests: list[list[tuple[bytes, bytes]]]) -> set[int]:
    """The statuses of the answers to an inference request under these headers."""
    statuses: set[int] = set()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.add(message["status"])

    for headers in requests:
        scope = {
            "type": "http",
            "method": "POST",
            "path": INFER,
            "root_path": "",
            "query_string": b"",
            "headers": headers,
        }
        await app(scope, receive, send)
    return statuses


def test_bytes_that_are_hardly_http_leave_the_server_well(bundle_path: Path, spec: KanSpec) -> None:
    generator = random.Random(0)
    body = json.dumps(as_json(X)).encode()
    good = b"POST %s HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n%s" % (INFER.encode(), len(body), body)
    with running(asgi_app({"shield": bundle_path})) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        for _ in range(300):
            sent = bytearray(good)
            for _ in range(generator.randint(1, 8)):
                sent[generator.randrange(len(sent))] = generator.randrange(256)
            with socket.create_connection(address, timeout=30) as connection:
                connection.sendall(sent[: generator.randint(1, len(sent))])
                connection.shutdown(socket.SHUT_WR)
                with suppress(ConnectionError):
                    connection.recv(1 << 16)
        assert_right(httpx.post(url + INFER, json=as_json(X)), spec)


def test_a_full_queue_and_a_deadline_say_when_to_come_again(bundle_path: Path, spec: KanSpec) -> None:
    with serving({"shield": bundle_path}, max_queue=3, max_delay=0.2) as client:
        answered, full = client.at_once(*(("POST", INFER, {"json": as_json(X)}) for _ in range(2)))
        late = client.infer(parameters={"timeout": 1000})
    assert_right(answered, spec)
    assert_error(full, 503, "more rows do not fit")
    assert full.headers["retry-after"] == "1"
    assert_error(late, 503, "not answered within 0.001 s")
    assert "retry-after" not in late.headers


def test_a_long_deadline_is_none(client: Client, spec: KanSpec) -> None:
    assert_right(client.infer(parameters={"timeout": (1 << 63) - 1}), spec)


@pytest.mark.parametrize(
    ("policy", "value", "message"),
    [({"out_of_domain": "raise"}, 99.0, "height = 99, outside the domain"), ({"nonfinite": "raise"}, np.nan, "finite")],
)
def test_a_row_that_the_policy_refuses_fails_alone(
    bundle_path: Path, spec: KanSpec, policy: Any, value: float, message: str
) -> None:
    x = np.full((1, 3), 0.4, np.float32)
    bad = x.copy()
    bad[0, 1] = value
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
    header = json.dumps({"inputs": [tensor]}).encode()
    request = {
        "content": header + bad.tobytes(),
        "headers": {"Inference-Header-Content-Length": str(len(header))},
    }
    with serving({"shield": bundle_path}, **policy) as client:
        good = ("POST", INFER, {"json": as_json(x)})
        first, refused, last = client.at_once(good, ("POST", INFER, request), good)
    assert_error(refused, 400, message)
    assert_right(first, spec, x)
    assert_right(last, spec, x)


def test_what_nobody_thought_of_is_500_and_says_nothing(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: object, rows: object) -> None:
        raise RuntimeError("secret of the house")

    with serving({"shield": bundle_path}) as client:
        monkeypatch.setattr("relukan_deploy.runtime.runner.Runner.run", fail)
        assert_error(client.infer(), 500, "something went wrong in the server; its log says what")


def test_a_fault_of_the_backend_is_500_and_told(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: object, rows: object) -> None:
        raise RelukanError("the device is lost")

    with serving({"shield": bundle_path}) as client:
        monkeypatch.setattr("relukan_deploy.runtime.runner.Runner.run", fail)
        assert_error(client.infer(), 500, "the device is lost")
    assert "the device is lost" in caplog.text


def test_json_without_end_is_too_large(bundle_path: Path) -> None:
    with serving({"shield": bundle_path}) as client:
        body = gzip.compress(b"[" + b"[]," * (3 << 20) + b"[]]", 1)
        response = client("POST", INFER, content=body, headers={"Content-Encoding": "gzip"})
    assert_error(response, 413, "send the tensor in the binary form")


def test_after_the_end_it_says_so(bundle_path: Path) -> None:
    with serving({"shield": bundle_path}) as client:
        pass
    assert_error(client.infer(), 503, "closed")
    assert client("GET", "/v2/health/ready").status_code == 503


# --- new versions


def test_a_new_version_is_loaded_when_asked(tmp_path: Path, make_spec: MakeSpec) -> None:
    network = Network(tmp_path / "shield", make_spec)
    with serving(network.path) as client:
        network.export()
        assert client.infer().json()["model_version"] == "1"
        assert client("POST", "/v2/repository/models/shield/load", json={}).json() == {}
        told = client.infer().json()
    assert told["model_version"] == "2"
    network.check("2", X, read_json(told))


def test_a_version_that_cannot_be_loaded_is_told_why(copied: Path, spec: KanSpec) -> None:
    with serving({"shield": copied}) as client:
        (copied / "model.onnx").write_bytes(b"damaged")
        response = client("POST", "/v2/repository/models/shield/load")
        assert_error(response, 400, "the new version of model 'shield' cannot be served: ")
        assert "has changed since it was written" in response.json()["error"]
        assert_right(client.infer(), spec)


def test_a_configuration_is_not_taken(client: Client) -> None:
    body = {"parameters": {"config": "{}"}}
    assert_error(client("POST", "/v2/repository/models/shield/load", json=body), 400, "send no config and no files")


@pytest.mark.parametrize("body", [b"{", b"[]", b"[" * 100_000])
def test_a_load_that_makes_no_sense_is_told_so(client: Client, body: bytes) -> None:
    assert_error(client("POST", "/v2/repository/models/shield/load", content=body), 400, "JSON")


# --- keys


KEYS = ("first", "second-%$")


@pytest.fixture(scope="module")
def locked(bundle_path: Path) -> Iterator[Client]:
    with serving({"shield": bundle_path}, api_keys=KEYS) as client:
        yield client


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/"])
def test_health_and_the_page_need_no_key(locked: Client, path: str) -> None:
    assert locked("GET", path).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v2", "/metrics", "/v2/models/shield", "/nothing", "/v2/health/ready/", "/v2/health"]
)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer third"},
        {"Authorization": "Bearer firs"},
        {"Authorization": "Bearer first second-%$"},
        {"Authorization": "first"},
        {"Authorization": "Basic first"},
    ],
)
def test_everything_else_does(locked: Client, path: str, headers: dict[str, str]) -> None:
    response = locked("GET", path, headers=headers)
    assert_error(response, 401, "an API key is needed here: send it as Authorization: Bearer KEY")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("value", ["Bearer first", "bearer second-%$", "BEARER   first "])
def test_a_key_opens(locked: Client, spec: KanSpec, value: str) -> None:
    assert_right(locked("POST", INFER, json=as_json(X), headers={"Authorization": value}), spec)


def test_an_inference_without_a_key_is_not_even_read(locked: Client) -> None:
    assert_error(locked("POST", INFER, content=b"{"), 401, "an API key is needed here")


# --- as an application


def test_it_mounts_into_fastapi(bundle_path: Path, spec: KanSpec) -> None:
    inner = asgi_app({"shield": bundle_path}, api_keys=["key"])
    outer = FastAPI()

    @outer.get("/mine")
    def mine() -> str:
        return "mine"

    outer.mount("/kan", inner)
    with running(outer) as url, httpx.Client(base_url=url) as client:
        assert client.get("/mine").json() == "mine"
        assert client.get("/kan/v2/health/ready").json() == {"ready": True}
        assert client.post(f"/kan{INFER}", json=as_json(X)).status_code == 401
        client.headers["Authorization"] = "Bearer key"
        assert_right(client.post(f"/kan{INFER}", json=as_json(X)), spec)
        assert "nv_inference_count" in client.get("/kan/metrics").text
        assert_error(client.get("/kan/v3"), 404, "there is no /kan/v3 here")
        assert_error(client.post("/kan/v2/logging"), 501, "this server has no logging")


def test_it_mounts_into_starlette_beside_another(bundle_path: Path, spec: KanSpec) -> None:
    first, second = asgi_app(bundle_path), asgi_app({"shield": bundle_path})
    with (
        running(Starlette(routes=[Mount("/a", first), Mount("/b", second)])) as url,
        httpx.Client(base_url=url) as client,
    ):
        assert client.post(f"/a{INFER}", json=as_json(X)).status_code == 404
        assert_right(client.post(f"/a/v2/models/{bundle_path.name}/infer", json=as_json(X)), spec)
        assert_right(client.post(f"/b{INFER}", json=as_json(X)), spec)


def test_its_lifespan_answers_what_was_accepted_and_closes(bundle_path: Path, spec: KanSpec) -> None:
    app = asgi_app({"shield": bundle_path}, max_delay=0.3)
    with running(app) as url, httpx.Client(base_url=url) as client:
        assert_right(client.post(INFER, json=as_json(X)), spec)
    assert_error(Client(app).infer(), 503, "closed")


def test_middleware_of_the_users_own_sees_inference(bundle_path: Path) -> None:
    app = asgi_app({"shield": bundle_path})
    app.add_middleware(GZipMiddleware, minimum_size=1)
    assert Client(app).infer().headers["content-encoding"] == "gzip"


def test_a_bundle_that_cannot_be_served_is_refused_before_there_is_an_application(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        asgi_app(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_request_bytes": 0}, "max_request_bytes must be at least 1, got 0"),
        ({"api_keys": "s3cret"}, "a list of strings, got one string"),
        ({"api_keys": [""]}, "an API key must be printable ASCII"),
        ({"api_keys": ["two words"]}, "an API key must be printable ASCII"),
        ({"api_keys": ["schlüssel"]}, "an API key must be printable ASCII"),
        ({"poll_seconds": 0}, "poll_seconds must be greater than 0"),
        ({"max_batch": 0}, "max_batch"),
        ({"backend": "abacus"}, "backend must be auto"),
        ({"nonfinite": "ignore"}, "nonfinite must be count, raise"),
    ],
)
def test_an_option_that_cannot_be_is_refused(bundle_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        asgi_app(bundle_path, **options)


@pytest.mark.parametrize("package", ["starlette", "orjson", "prometheus_client"])
def test_a_missing_package_is_named(bundle_path: Path, package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from relukan_deploy.errors import MissingDependencyError\n"
        "from relukan_deploy.runtime.serving import asgi_app\n"
        "try:\n    asgi_app(sys.argv[1])\n"
        "except MissingDependencyError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(MissingDependencyError("Serving over HTTP", package, "serve"))
