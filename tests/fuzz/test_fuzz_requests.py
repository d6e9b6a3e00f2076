"""Ten thousand damaged request bodies, and as many damaged heads: no crash, no hang, no answer that is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import os
import random
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import GROWTH, MUTATIONS, damaged, rounds, with_another_value

from relukan_deploy.runtime import asgi_app
from relukan_deploy.spec import KanSpec

pytestmark = pytest.mark.slow

PATIENCE = 0.1  # seconds
ROWS = np.random.default_rng(0).uniform(-0.5, 1.5, (4, 3)).astype(np.float32)


def request_json(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [4, 3], "data": ROWS.tolist()}
    return {
        "id": "7",
        "inputs": [tensor],
        "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
        "parameters": {"timeout": 5_000_000},
        **changes,
    }


def request_binary() -> tuple[bytes, int]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [4, 3], "parameters": {"binary_data_size": ROWS.nbytes}}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + ROWS.tobytes(), len(head)


def body_and_headers(chance: random.Random) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """A damaged request, in one of the forms that clients send."""
    kind = chance.randrange(5)
    if kind == 0:
        return damaged(json.dumps(request_json()).encode(), chance), []
    if kind == 1:
        return json.dumps(with_another_value(request_json(), chance)).encode(), []
    if kind == 2:
        whole, length = request_binary()
        return damaged(whole, chance), [(b"inference-header-content-length", str(length).encode())]
    if kind == 3:
        whole, length = request_binary()
        stated = damaged(str(length).encode(), chance)
        return whole, [(b"inference-header-content-length", stated)]
    packed = damaged(gzip.compress(json.dumps(request_json()).encode()), chance)
    return packed, [(b"content-encoding", chance.choice((b"gzip", b"deflate", b"br", b"")))]


async def ask(app: Any, body: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[int, Any]:
    """What the application answers: the status, and the body's JSON, or None where it is binary."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v2/models/bundle/infer",
        "raw_path": b"/v2/models/bundle/infer",
        "query_string": b"",
        "headers": headers,
        "http_version": "1.1",
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "root_path": "",
    }
    messages: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    await app(scope, receive, send)
    answer = b"".join(message.get("body", b"") for message in messages)
    is_json = dict(messages[0]["headers"])[b"content-type"] == b"application/json"
    return messages[0]["status"], json.loads(answer) if is_json else None


def test_a_damaged_body_is_refused_in_the_protocols_form_or_answered_rightly(bundle_path: Path, spec: KanSpec) -> None:
    app = asgi_app({"bundle": bundle_path})
    answered = 0

    async def run() -> None:
        nonlocal answered
        for chance in rounds(4):
            body, headers = body_and_headers(chance)
            status, content = await asyncio.wait_for(ask(app, body, headers), 30)
            if status != 200:
                assert status in (400, 413, 415, 503), (content, body)  # 503: a timeout of a microsecond
                assert list(content or {}) == ["error"], (content, body)
                continue
            answered += 1
            if content and not headers:  # JSON both ways: an independent reading of what was asked
                asked = np.array(json.loads(body)["inputs"][0]["data"], np.float64).astype(np.float32).reshape(-1, 3)
                (output,) = content["outputs"]
                if output["datatype"] == "FP32":
                    y = np.array(output["data"], np.float32).reshape(-1, 2)
                    np.testing.assert_allclose(y, spec.evaluate(asked), rtol=0, atol=1e-5)

    asyncio.run(run())
    assert answered > 500


@contextlib.contextmanager
def serving(bundle: Path) -> Iterator[tuple[int, int]]:
    """Runs relukan-serve, and gives its port and its process."""
    command = [str(Path(sys.executable).parent / "relukan-serve"), str(bundle), "--name", "bundle", "--http-port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        ready = next(line for line in server.stdout if "is ready" in line)
        yield int(ready.rpartition(":")[2]), server.pid
        assert server.poll() is None
    finally:
        server.terminate()
        server.communicate(timeout=60)


def resident_bytes_of(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def exchange(port: int, raw: bytes) -> bytes:
    """What the server sends back at once. It may rightly wait for more, or close the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        # Gone at once afterwards, instead of keeping ten thousand ports busy for a minute.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(ConnectionError):
            connection.sendall(raw)
            connection.settimeout(PATIENCE)
            with contextlib.suppress(TimeoutError):
                return connection.recv(65536)
        return b""


def test_a_damaged_head_never_stops_the_server(bundle_path: Path) -> None:
    body = json.dumps(request_json()).encode()
    head = (
        f"POST /v2/models/bundle/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        "content-type: application/json\r\naccept-encoding: gzip\r\nauthorization: Bearer x\r\n"
        "inference-header-content-length: 0\r\ntransfer-encoding: identity\r\nexpect: 100-continue\r\n\r\n"
    ).encode()
    whole = head.replace(b"transfer-encoding: identity\r\nexpect: 100-continue\r\n", b"").replace(
        b"inference-header-content-length: 0\r\n", b""
    )
    heads = (damaged(head, random.Random(index)) + body for index in range(MUTATIONS))
    with serving(bundle_path) as (port, process), ThreadPoolExecutor(16) as clients:
        statuses: Counter[bytes] = Counter()
        before = 0
        for half in (itertools.islice(heads, MUTATIONS // 2), heads):
            before = resident_bytes_of(process)
            statuses.update(answer[9:12] for answer in clients.map(lambda raw: exchange(port, raw), half))
        assert resident_bytes_of(process) - before < GROWTH
        assert statuses[b"500"] == 0
        assert statuses[b"400"] > MUTATIONS / 20  # it was asked, and did answer
        assert exchange(port, whole + body).startswith(b"HTTP/1.1 200")
