"""The HTTP server: the Open Inference Protocol as an ASGI application.

Starlette routes. What it routes inference to is a bare ASGI callable that reads a request in one pass
and answers with two messages, since around a network of some microseconds everything else counts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import DeadlineExceeded, InputError, NotReady, QueueFull, RelukanError, ServiceClosed, UnknownModel
from . import page
from .bodies import Disconnected, compress, read_body
from .describe import (
    LOAD_TAKES_NOTHING,
    load_failure,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
    unload_refusal,
)
from .keys import Keys
from .metrics import CONTENT_TYPE, Metrics
from .oip import TooLarge, read_request, write_response
from .store import Store

__all__ = ["build_app"]

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]

logger = logging.getLogger("relukan_deploy.serving")

_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_SMALL = 1 << 20  # bytes, of a body that is no inference request
_UNLOCKED = ("/", "/v2/health/live", "/v2/health/ready")  # what needs no key


def build_app(
    store: Store,
    metrics: Metrics,
    *,
    api_keys: Iterable[str] = (),
    max_request_bytes: int = 64 << 20,
    lifespan: Lifespan | None = None,
) -> Starlette:
    """An application that serves the models of a store, opened already or not.

    Args:
        metrics: where requests are counted.
        api_keys: one of which every request has to bring, as ``Authorization: Bearer KEY``, if there are any.
            The page and /v2/health need none.
        max_request_bytes: of a body, before and after it is decompressed.
        lifespan: Starlette's.

    Raises:
        InputError: a limit or a key that cannot be.
    """
    keys = Keys(api_keys)
    if max_request_bytes < 1:
        raise InputError(f"max_request_bytes must be at least 1, got {max_request_bytes}")
    infer = _Infer(store, metrics, max_request_bytes)
    endpoints = _Endpoints(store, metrics)
    model, version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    routes = [
        Route(f"{model}/infer", infer, methods=["POST"]),
        Route(f"{version}/infer", infer, methods=["POST"]),
        Route("/v2", endpoints.server),
        Route("/v2/health/live", endpoints.live),
        Route("/v2/health/ready", endpoints.ready),
        Route("/v2/models/stats", endpoints.statistics),
    ]
    for path in (model, version):
        routes += [
            Route(path, endpoints.metadata),
            Route(f"{path}/ready", endpoints.ready),
            Route(f"{path}/config", endpoints.config),
            Route(f"{path}/stats", endpoints.statistics),
        ]
    routes += [
        Route("/v2/repository/index", endpoints.index, methods=["POST"]),
        Route("/v2/repository/models/{name}/load", endpoints.load, methods=["POST"]),
        Route("/v2/repository/models/{name}/unload", endpoints.unload, methods=["POST"]),
        Route("/metrics", endpoints.metrics),
        *page.routes(store, metrics),
    ]
    for kind in ("systemsharedmemory", "cudasharedmemory"):
        routes += [
            Route(f"/v2/{kind}/status", endpoints.no_regions),
            Route(f"/v2/{kind}/region/{{region}}/status", endpoints.no_regions),
            Route(f"/v2/{kind}/region/{{region}}/register", endpoints.unsupported, methods=["POST"]),
            Route(f"/v2/{kind}/region/{{region}}/unregister", endpoints.unsupported, methods=["POST"]),
            Route(f"/v2/{kind}/unregister", endpoints.unsupported, methods=["POST"]),
        ]
    for path in ("/v2/logging", "/v2/trace/setting", f"{model}/trace/setting"):
        routes.append(Route(path, endpoints.unsupported, methods=["GET", "POST"]))
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_Lock, keys=keys)] if keys else [],
        exception_handlers={HTTPException: _refuse, **dict.fromkeys(_STATUS, _refuse), Exception: _apologise},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


class _Infer:
    """Answers inference requests."""

    def __init__(self, store: Store, metrics: Metrics, limit: int) -> None:
        self._store = store
        self._metrics = metrics
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        name, version = scope["path_params"]["name"], scope["path_params"].get("version")
        model = self._store.get(name, version)
        length = encoding = header_length = accepted = None
        for header, value in scope["headers"]:
            if header == b"content-length":
                length = value
            elif header == b"content-encoding":
                encoding = value
            elif header == b"inference-header-content-length":
                header_length = value
            elif header == b"accept-encoding":
                accepted = value
        try:
            body = await read_body(receive, self._limit, length, encoding)
            request = read_request(body, model.manifest.in_features, _header_length(header_length))
            answer = await self._store.infer(model, request.x, version=version, timeout=request.timeout)
            model = answer.model
            body, json_length = write_response(name, model.version, request, answer.y, model.manifest.labels)
        except Disconnected:
            return
        except BaseException as error:
            self._metrics.failed(name, model.version, error)
            raise
        headers = [_JSON if json_length is None else _BINARY]
        if json_length is not None:
            headers.append((b"inference-header-content-length", b"%d" % json_length))
        if accepted is not None:
            body, encoded = await compress(body, accepted)
            if encoded is not None:
                headers.append((b"content-encoding", encoded))
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._metrics.answered(name, model.version, time.perf_counter() - began)


def _header_length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise InputError("Inference-Header-Content-Length must be the number of bytes of the JSON")
    return int(value)


class _Endpoints:
    """Everything but inference."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics

    async def server(self, request: Request) -> Response:
        return _json(server_metadata())

    async def live(self, request: Request) -> Response:
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        """Of one model, or, without a name, of all."""
        ready = self._store.ready(**request.path_params)
        if not ready and request.path_params:
            self._store.get(**request.path_params)  # which says why, if it is not there
        return _json({"ready": ready}, 200 if ready else 503)

    async def metadata(self, request: Request) -> Response:
        return _json(model_metadata(self._store.get(**request.path_params)))

    async def config(self, request: Request) -> Response:
        return _json(model_config(self._store.get(**request.path_params), self._store.options))

    async def statistics(self, request: Request) -> Response:
        """Of one model, or, without a name, of all."""
        models = [self._store.get(**request.path_params)] if request.path_params else self._store.models()
        totals = await run_in_threadpool(self._metrics.totals)
        of_models = [model_statistics(model, totals.get((model.name, model.version), {})) for model in models]
        return _json({"model_stats": of_models})

    async def index(self, request: Request) -> Response:
        content = await _read_object(request)
        return _json(repository_index(self._store, ready=content.get("ready") is True))

    async def load(self, request: Request) -> Response:
        """Looks for a new version of a model now, rather than at the next poll."""
        content = await _read_object(request)
        if content.get("parameters"):
            raise InputError(LOAD_TAKES_NOTHING)
        name = request.path_params["name"]
        try:
            await run_in_threadpool(self._store.reload, name)
        except (UnknownModel, NotReady, ServiceClosed):
            raise
        except RelukanError as error:
            raise HTTPException(400, load_failure(name, error)) from error
        return _json({})

    async def unload(self, request: Request) -> Response:
        name = self._store.get(request.path_params["name"]).name
        raise HTTPException(501, unload_refusal(name))

    async def metrics(self, request: Request) -> Response:
        return Response(await run_in_threadpool(self._metrics.exposition), headers={"content-type": CONTENT_TYPE})

    async def no_regions(self, request: Request) -> Response:
        return _json([])

    async def unsupported(self, request: Request) -> Response:
        raise HTTPException(501, f"this server has no {request.url.path.split('/v2/', 1)[1].split('/', 1)[0]}")


class _Lock:
    """Lets those pass who bring a key."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app if scope["type"] == "lifespan" or self._opens(scope) else self._refuse
        await app(scope, receive, send)

    def _opens(self, scope: Scope) -> bool:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        return path in _UNLOCKED or self._keys.fit(dict(scope["headers"]).get(b"authorization"))

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _json({"error": Keys.REFUSAL}, 401, {"www-authenticate": "Bearer"})(scope, receive, send)


# What was raised on purpose, for a caller to read; the first that an error is an instance of. Triton answers
# with the same codes.
_STATUS: dict[type[RelukanError], int] = {
    UnknownModel: 404,
    TooLarge: 413,
    InputError: 400,
    QueueFull: 503,
    DeadlineExceeded: 503,
    NotReady: 503,
    ServiceClosed: 503,
    RelukanError: 500,
}


async def _refuse(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        status = next(status for kind, status in _STATUS.items() if isinstance(error, kind))
        if status == 500:
            logger.error("%s: %s", request.url.path, error, exc_info=error)
        headers = {} if status != 503 or isinstance(error, DeadlineExceeded) else {"retry-after": "1"}
        return _json({"error": str(error)}, status, headers)
    message = error.detail
    if error.status_code == 404:
        message = f"there is no {request.url.path} here"
    elif error.status_code == 405:
        message = f"{request.url.path} does not take {request.method}"
    return _json({"error": message}, error.status_code, error.headers)


async def _apologise(request: Request, error: Exception) -> Response:
    """Starlette raises the error again after this, and the server logs it."""
    return _json({"error": "something went wrong in the server; its log says what"}, 500)


def _json(content: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(orjson.dumps(content), status, headers, "application/json")


async def _read_object(request: Request) -> dict[str, Any]:
    """The JSON object in a body; an empty body is an empty one."""
    try:
        body = await read_body(
            request.receive,
            _SMALL,
            *(
                value.encode() if value else None
                for value in map(request.headers.get, ("content-length", "content-encoding"))
            ),
        )
        content = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise InputError(f"the request is not JSON: {error}") from None
    if type(content) is not dict:
        raise InputError("the request must be a JSON object")
    return content
