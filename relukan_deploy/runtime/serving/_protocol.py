"""HTTP/1.1 as uvicorn reads it, with what it leaves out: an end to the head of a request, and to waiting for it."""

from __future__ import annotations

import asyncio
import http

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

__all__ = ["Protocol"]

_LONGEST_HEAD = 64 << 10  # bytes of the first line and the headers, or of trailers
_PATIENCE = 30.0  # seconds that a head may take to arrive


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, for a server that anybody reaches.

    A head that is too long gets 431: at the latest one of three times the limit, and none below it. One that
    is not complete in time ends its connection. Who asks for an upgrade, as some clients do with their first
    request, is answered as if without.
    """

    _in_head = False  # from the first byte of a request to the end of its headers
    _read_since = 0  # bytes since what was last read of a body
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._timer = self.loop.call_later(_PATIENCE, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        for start in range(0, len(data), _LONGEST_HEAD):
            self._read(data[start : start + _LONGEST_HEAD])
            if self.transport.is_closing():
                break
        if not self._in_head:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(_PATIENCE, self.transport.close)

    def _read(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self.parser.get_method() == b"CONNECT":
                self._refuse(http.HTTPStatus.NOT_IMPLEMENTED)
            else:
                self._read(self._without_upgrade() + data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(http.HTTPStatus.BAD_REQUEST)
            return
        self._read_since += len(data)
        if self._read_since > 2 * _LONGEST_HEAD:  # the first part of which may have ended a body
            self._refuse(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _without_upgrade(self) -> bytes:
        """The head of a request for an upgrade, to be read again: the parser leaves out its body."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        self.parser = httptools.HttpRequestParser(self)
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._read_since = True, 0

    def on_headers_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._in_head = False
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._read_since = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._read_since = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _refuse(self, status: http.HTTPStatus) -> None:
        body = b'{"error":"%s"}' % status.phrase.encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
