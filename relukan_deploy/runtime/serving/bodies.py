"""Bodies of requests and answers: read within a limit, decompressed within the same, and compressed."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException

__all__ = ["Disconnected", "compress", "read_body"]

_PATIENCE = 60.0  # seconds that a body may take to arrive
_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_WORTH_COMPRESSING = 1 << 10  # bytes


class Disconnected(HTTPException):
    """The client has gone before its request was complete, and will not read the answer."""

    def __init__(self) -> None:
        super().__init__(400, "the body ends too early")


async def read_body(
    receive: Callable[[], Awaitable[Any]], limit: int, length: bytes | None = None, encoding: bytes | None = None
) -> bytes:
    """The body of a request as it was before it was encoded.

    Args:
        receive: ASGI's.
        limit: bytes that the body may have, before and after it is decompressed.
        length, encoding: its Content-Length and Content-Encoding.

    Raises:
        HTTPException: 413 it is too large, 415 nothing here decodes it, 400 it is damaged, 408 it does not arrive.
        Disconnected: it never will.
    """
    if length is not None and length.isdigit() and (len(length) > 18 or int(length) > limit):
        raise _too_large(limit)
    body = await _arrival(receive, limit)
    if len(body) > limit:
        raise _too_large(limit)
    if encoding is None:
        return body
    name = encoding.decode("latin-1").strip().lower()
    if name in ("", "identity"):
        return body
    if name not in _WINDOW:
        raise HTTPException(
            415,
            f"the content encoding {name[:40]!r} is not known here: send gzip or deflate",
            {"accept-encoding": "gzip, deflate"},
        )
    return await asyncio.to_thread(_decompress, body, name, limit)


async def _arrival(receive: Callable[[], Awaitable[Any]], limit: int) -> bytes:
    """A body as it comes, within the patience there is."""
    # Not asyncio.wait_for, whose task of its own takes longer than a small body.
    task, late = asyncio.current_task(), False
    assert task is not None

    def give_up() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(_PATIENCE, give_up)
    try:
        return await _whole(receive, limit)
    except asyncio.CancelledError:
        if not late:
            raise
        getattr(task, "uncancel", int)()  # since Python 3.11 a task counts them
        raise HTTPException(408, f"the body did not arrive within {_PATIENCE:g} seconds") from None
    finally:
        timer.cancel()


async def _whole(receive: Callable[[], Awaitable[Any]], limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while size <= limit:
        message = await receive()
        if message["type"] != "http.request":
            raise Disconnected
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if not message.get("more_body"):
            break
    return b"".join(parts)


def _decompress(body: bytes, encoding: str, limit: int) -> bytes:
    decompressor = zlib.decompressobj(_WINDOW[encoding])
    try:
        content = decompressor.decompress(body, limit + 1)
    except zlib.error as error:
        raise HTTPException(400, f"the body is not {encoding}, as its Content-Encoding says: {error}") from None
    if len(content) > limit:
        raise _too_large(limit)
    if not decompressor.eof or decompressor.unused_data:
        raise HTTPException(400, f"the body is not one whole {encoding} stream, as its Content-Encoding says")
    return content


def _too_large(limit: int) -> HTTPException:
    return HTTPException(
        413, f"the body is larger than the {limit} bytes that are allowed here: send fewer rows at a time"
    )


async def compress(body: bytes, accepted: bytes) -> tuple[bytes, bytes | None]:
    """The body, compressed if that is worth it and the client's Accept-Encoding allows it, and its encoding."""
    if len(body) < _WORTH_COMPRESSING:
        return body, None
    for name, encode in ((b"gzip", _gzip), (b"deflate", _deflate)):
        if _accepts(accepted.lower(), name):
            return await asyncio.to_thread(encode, body), name
    return body, None


def _accepts(accepted: bytes, name: bytes) -> bool:
    for offer in accepted.split(b","):
        encoding, _, weight = offer.partition(b";")
        if encoding.strip() == name:
            return weight.strip().rstrip(b"0.") != b"q="  # a weight of zero refuses it
    return False


def _gzip(body: bytes) -> bytes:
    return gzip.compress(body, compresslevel=1, mtime=0)


def _deflate(body: bytes) -> bytes:
    return zlib.compress(body, 1)
