"""Serving bundles over the network, in the Open Inference Protocol: `asgi_app`, and what `relukan-serve` runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...bundle import Bundle
from ...errors import MissingDependencyError
from ..guard import Nonfinite, OutOfDomain

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["asgi_app", "needing_packages"]


@contextmanager
def needing_packages() -> Iterator[None]:
    """Around imports: raises MissingDependencyError for a package that the extra "serve" would install."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise MissingDependencyError("Serving over HTTP", package, "serve") from error


def asgi_app(
    bundles: str | Path | Bundle | Mapping[str, str | Path | Bundle],
    *,
    backend: str = "auto",
    threads: int | Literal["auto"] = 1,
    max_batch: int = 1024,
    max_delay: float = 0.0,
    max_queue: int = 65536,
    out_of_domain: OutOfDomain = "count",
    nonfinite: Nonfinite = "count",
    api_keys: Sequence[str] = (),
    max_request_bytes: int = 64 << 20,
    poll_seconds: float = 1.0,
) -> Starlette:
    """An application that serves bundles, to be run by any ASGI server or mounted into another one.

    The bundles are open, and have answered their golden inputs, when it returns. As an application
    of its own it answers what it has accepted and closes them when the server ends; mounted into
    another, which does not tell it so, it keeps them until the process ends. Make it in the process
    that serves: in one forked later, as by ``gunicorn --preload``, nothing looks for new versions.

    Args:
        bundles: one, served under its folder's name, or several by name. Of folders new versions are
            picked up; what `open_bundle` gave is served as it is.
        backend, threads, out_of_domain, nonfinite: as in `relukan_deploy.load`.
        max_batch, max_delay, max_queue: rows, seconds and rows, as in `Batcher`.
        api_keys: if any, every request but those to /v2/health and / has to bring one of them, as
            ``Authorization: Bearer KEY``.
        max_request_bytes: of a request's body, before and after it is decompressed.
        poll_seconds: how often to look for new versions.

    Raises:
        MissingDependencyError: the extra "serve" is not installed.
        RelukanError: what `relukan_deploy.load` raises; InputError for an option that cannot be.
    """
    with needing_packages():
        from starlette.concurrency import run_in_threadpool

        from .app import build_app
        from .metrics import Metrics
        from .store import Options, Store, by_name
    options = Options(backend, threads, max_batch, max_delay, max_queue, out_of_domain, nonfinite)
    metrics = Metrics()
    store = Store(by_name(bundles), options, poll_seconds=poll_seconds, observer=metrics)
    metrics.refresh = store.observe

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(store.close)

    app = build_app(store, metrics, api_keys=api_keys, max_request_bytes=max_request_bytes, lifespan=lifespan)
    store.open()
    return app
