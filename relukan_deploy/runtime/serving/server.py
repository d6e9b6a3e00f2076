"""What `relukan-serve` runs: sockets, one server or several, and their end.

The server listens first and opens the bundles then, so that it is seen to live while it is not yet
ready. Told to stop, it accepts nothing new, answers what has come, and closes the bundles.
"""

from __future__ import annotations

import asyncio
import dataclasses
import http.server
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
import uvloop

from ...errors import InputError, ServiceClosed
from ._protocol import Protocol
from .app import build_app
from .metrics import CONTENT_TYPE, Metrics
from .store import Options, Store

__all__ = ["Ready", "Settings", "announce", "listen", "log_to_stderr", "run_server", "serve", "serving_metrics"]

logger = logging.getLogger("relukan_deploy.serving")

Ready = Callable[[int | None], None]
"""What is called when every bundle is ready: with gRPC's port."""

_IDLE = 75  # seconds that a connection is kept without a request: longer than proxies keep theirs
_PATIENCE = 25  # seconds for what has come to be answered; Kubernetes kills after 30


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `relukan-serve` was asked for.

    Attributes:
        bundles: folders by the names under which they are served.
        options: how they are opened and batched.
        host: the address to listen on.
        http_port, grpc_port, metrics_port: 0 for any that is free, None for none; without a port of
            their own the metrics are at /metrics with all else.
        workers: processes.
        api_keys, max_request_bytes: as in `asgi_app`.
        log_level: a name of logging's.
    """

    bundles: Mapping[str, Path]
    options: Options = dataclasses.field(default_factory=Options)
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int | None = None
    metrics_port: int | None = None
    workers: int = 1
    api_keys: tuple[str, ...] = ()
    max_request_bytes: int = 64 << 20
    log_level: str = "info"


def serve(settings: Settings) -> None:
    """Serves until a SIGTERM or SIGINT, and then until what has come is answered.

    Prints one line when every bundle is ready: the URLs.

    Raises:
        InputError: a port cannot be had.
        RelukanError: a bundle cannot be served.
    """
    sock = listen(settings.host, settings.http_port)
    if settings.workers > 1:
        from .workers import supervise

        supervise(settings, sock)
        return
    metrics = Metrics()
    with sock, serving_metrics(settings, metrics.exposition) as metrics_url:
        run_server(settings, sock, metrics, lambda grpc_port: announce(settings.host, sock, grpc_port, metrics_url))


def run_server(
    settings: Settings, sock: socket.socket, metrics: Metrics, ready: Ready, *, at_once: bool = True
) -> None:
    """Serves on a socket that listens, in this process, until a signal. Calls `ready` when it is.

    Unless `at_once`, it accepts nothing before, for where another process does.
    """
    uvloop.run(_run_server(settings, sock, metrics, ready, at_once))


async def _run_server(settings: Settings, sock: socket.socket, metrics: Metrics, ready: Ready, at_once: bool) -> None:
    store = Store(settings.bundles, settings.options, observer=metrics)
    metrics.refresh = store.observe
    app = build_app(store, metrics, api_keys=settings.api_keys, max_request_bytes=settings.max_request_bytes)
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=settings.log_level == "debug",
        server_header=False,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=_PATIENCE,
    )
    opening = asyncio.create_task(asyncio.to_thread(store.open))
    try:
        if not at_once:
            await opening
        rpc, grpc_port = await _start_rpc(settings, store, metrics)
        server = _Server(config, rpc)
        reporting = asyncio.create_task(_report(opening, server, lambda: ready(grpc_port)))
        await server.serve(sockets=[sock])
    finally:
        early = not opening.done()
        await asyncio.to_thread(store.close)
        await asyncio.gather(opening, return_exceptions=True)  # what it says is said below, unless something else is
    try:
        await reporting
    except ServiceClosed:
        if not early:
            raise


async def _report(opening: asyncio.Task[None], server: _Server, ready: Callable[[], None]) -> None:
    """Says when all is ready; ends the server if a bundle cannot be opened."""
    try:
        await opening
    except BaseException:
        server.should_exit = True
        raise
    await server.listening.wait()
    ready()


async def _start_rpc(settings: Settings, store: Store, metrics: Metrics) -> tuple[Any, int | None]:
    if settings.grpc_port is None:
        return None, None
    from .rpc import start_rpc

    return await start_rpc(
        store,
        metrics,
        host=settings.host,
        port=settings.grpc_port,
        api_keys=settings.api_keys,
        max_request_bytes=settings.max_request_bytes,
        reuse_port=settings.workers > 1,
    )


class _Server(uvicorn.Server):
    """A server that ends quietly after a signal, and a gRPC server with it.

    uvicorn's own raises the signal again at its end, so that the process would not end with 0, and drops
    what is not answered at a second Ctrl-C, as which that of a terminal comes to a worker.

    Attributes:
        listening: set when requests are accepted and a signal ends the server.
    """

    def __init__(self, config: uvicorn.Config, rpc: Any) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._rpc = rpc

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            logger.info("%s: answering what has come, then ending", signal.Signals(sig).name)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ends = [super().shutdown(sockets)]
        if self._rpc is not None:
            ends.append(self._rpc.stop(_PATIENCE))
        await asyncio.gather(*ends)


def log_to_stderr(level: str) -> None:
    """Sends what is logged, uvicorn's included, to standard error."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=level.upper())
    if level != "debug":
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        InputError: it cannot; the message says why.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = str(error.strerror).partition(" (while ")[0]  # behind it comes the address once more
        raise InputError(f"cannot listen on {host} port {port} ({reason}): choose another --host or port") from error


def _url(host: str, port: int, scheme: str = "http") -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def announce(host: str, sock: socket.socket, grpc_port: int | None, metrics_url: str | None) -> None:
    """Says on standard output where everything is, for people and for who started the server."""
    places = [_url(host, sock.getsockname()[1])]
    if grpc_port is not None:
        places.append(_url(host, grpc_port, "grpc"))
    if metrics_url is not None:
        places.append(metrics_url)
    print("relukan-serve is ready:", *places, flush=True)


@contextmanager
def serving_metrics(settings: Settings, exposition: Callable[[], bytes]) -> Iterator[str | None]:
    """Answers every request on the port for metrics, if there is one, from a thread. Gives its URL.

    Raises:
        InputError: the port cannot be had.
    """
    if settings.metrics_port is None:
        yield None
        return

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10  # seconds, for a client that sends nothing

        def do_GET(self) -> None:
            body = exposition()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  http.server's name
            logger.debug(format, *arguments)

    with listen(settings.host, settings.metrics_port) as sock:
        server = http.server.ThreadingHTTPServer(sock.getsockname()[:2], Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = sock
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, name="relukan-metrics", daemon=True).start()
        try:
            yield _url(settings.host, sock.getsockname()[1]) + "/metrics"
        finally:
            server.shutdown()
