"""HTTP/1.1 byte by byte: what has an end, and what is answered though it asks for something else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from relukan_deploy.runtime.serving._protocol import Protocol

LIMIT = 64 << 10


async def echo(scope: Any, receive: Any, send: Callable[[Any], Any]) -> None:
    """Answers with the method, the path and the body."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer = b"%s %s %s" % (scope["method"].encode(), scope["raw_path"][:9], body[:9])
    headers = [(b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def answers(*parts: bytes, pause: float = 0.0) -> bytes:
    """What comes back until the server ends the connection, on which these come one after another."""

    async def ask() -> bytes:
        config = Config(echo, http=Protocol, ws="none", lifespan="off", log_config=None)
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(lambda: Protocol(config, state, {}), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
            answer = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            await writer.wait_closed()
        return answer

    return asyncio.run(ask())


def request(
    body: bytes = b"", *headers: bytes, path: bytes = b"/a", method: bytes = b"POST", last: bool = True
) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (method, path), b"Host: here", b"Content-Length: %d" % len(body), *headers]
    if last:
        lines.append(b"Connection: close")
    return b"\r\n".join([*lines, b"", body])


UPGRADE = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")


def assert_answered(answer: bytes, *bodies: bytes) -> None:
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 200 OK") == len(bodies)
    assert [part.rpartition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 ")[1:]] == list(bodies)


def test_requests_on_one_connection_are_answered() -> None:
    assert_answered(answers(request(b"one", last=False), request(b"two")), b"POST /a one", b"POST /a two")


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_request_may_come_in_parts(size: int) -> None:
    whole = request(b"one", last=False) + request(b"two", *UPGRADE, last=False) + request(b"three")
    parts = [whole[start : start + size] for start in range(0, len(whole), size)]
    assert_answered(answers(*parts), b"POST /a one", b"POST /a two", b"POST /a three")


def test_who_asks_for_an_upgrade_is_answered_without() -> None:
    answer = answers(request(b"one", *UPGRADE, last=False), request(b"two"))
    assert_answered(answer, b"POST /a one", b"POST /a two")


def test_there_is_no_tunnel() -> None:
    answer = answers(request(method=b"CONNECT", path=b"here:80"))
    assert answer.startswith(b"HTTP/1.1 501 ")
    assert answer.endswith(b'{"error":"Not Implemented"}')


def test_what_is_no_http_is_told_so() -> None:
    assert answers(b"\0" * 10).endswith(b'{"error":"Bad Request"}')


def test_a_large_body_is_no_large_head() -> None:
    body = bytes(10 * LIMIT)
    assert_answered(answers(request(body, last=False), request(b"two")), b"POST /a " + bytes(9), b"POST /a two")


def test_a_long_head_is_answered_if_it_is_not_too_long() -> None:
    long = b"X: " + b"x" * (LIMIT - 200)
    answer = answers(request(bytes(LIMIT), long, last=False), request(b"two", long))
    assert_answered(answer, b"POST /a " + bytes(9), b"POST /a two")


@pytest.mark.parametrize(
    "endless",
    [
        b"POST /",
        b"POST / HTTP/1.1\r\nX: ",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;",
    ],
    ids=["url", "header", "trailer", "extension"],
)
def test_what_does_not_end_is_refused(endless: bytes) -> None:
    # As long as is read at most, since what is left unread would reset the connection.
    answer = answers(endless.ljust(2 * LIMIT + 1, b"a"))
    assert answer.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("part", [b"", b"POST / HTTP/1.1\r\nHost:", request(b"one", last=False) + b"POST"])
def test_a_head_that_does_not_arrive_ends_the_connection(monkeypatch: pytest.MonkeyPatch, part: bytes) -> None:
    monkeypatch.setattr("relukan_deploy.runtime.serving._protocol._PATIENCE", 0.1)
    assert answers(part).count(b"HTTP/1.1 ") == part.count(b"one")


def test_a_body_may_take_longer_than_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relukan_deploy.runtime.serving._protocol._PATIENCE", 0.5)
    head, body = request(b"one")[:-3], b"one"
    assert_answered(answers(head, body, pause=1.0), b"POST /a one")
