"""Bundles on a Ray cluster: `ray_app` gives the application that Ray Serve deploys.

    1. Where the application is built, every bundle is opened, which checks it, and its files are read.
    2. They travel inside the application: the nodes need this package, and no file of the bundle.
    3. Each replica serves them as they were opened, and takes requests once each model has answered its
       golden inputs.

Nothing changes under a running replica. A retrained bundle is a new application: Ray starts its
replicas, sends requests to those that are ready, and lets the old ones finish.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle import Bundle, open_bundle
from ..errors import MissingDependencyError, ServiceClosed

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.applications import Starlette

__all__ = ["ray_app"]

logger = logging.getLogger("relukan_deploy.serving")

_MOST_ONGOING = 1024  # requests in one replica. Ray's own limit of 5 would leave nothing to join into batches.


def ray_app(
    bundles: str | Path | Bundle | Mapping[str, str | Path | Bundle],
    *,
    replicas: int | tuple[int, int] = (1, 4),
    target_ongoing_requests: float = 8.0,
    deployment: Mapping[str, Any] | None = None,
    **options: Any,
) -> Application:
    """An application for Ray Serve that answers what `relukan-serve` answers, on as many nodes as there are.

    With ``app = ray_app("model")`` in service.py, ``serve run service:app`` runs it; see docs/ray.md.

    What decides about the speed is read when Ray itself starts, so nothing here can set it:
    ``RAY_SERVE_ENABLE_HA_PROXY=1`` and ``RAY_SERVE_THROUGHPUT_OPTIMIZED=1`` belong into the environment
    of ``ray start`` on every node, and of what deploys. Without them the answers are the same, but
    Ray's default proxy passes on a tenth as many requests, and each replica logs a warning. With
    them every node listens on all its interfaces.

    Args:
        bundles: one, served under its folder's name, or several by name. Their contents become part of
            the application: they may be some tens of MB, and the nodes never see the folders.
        replicas: how many, or the fewest and the most between which Ray scales. Each takes one CPU.
        target_ongoing_requests: how many requests, waiting ones included, a replica should have at a
            time; Ray scales by it. A replica with 8 is about as busy as it can be.
        deployment: further arguments of `ray.serve.deployment`, such as
            ``{"ray_actor_options": {"num_gpus": 1}}``. An "autoscaling_config" among them adds to what
            the two above say.
        options: those of `relukan_deploy.runtime.asgi_app`. `api_keys` too become part of the application.

    Raises:
        MissingDependencyError: Ray is not installed.
        BundleError: a bundle is damaged.
        TypeError: there is no such option.
        ValueError: Ray refuses the replicas or an argument of the deployment.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise MissingDependencyError("relukan_deploy.runtime.ray_app", "ray", "ray") from error
    from .serving import asgi_app
    from .serving.store import by_name

    inspect.signature(asgi_app).bind(bundles, **options)  # what is misspelt fails here, not on a node
    opened = {name: open_bundle(source) for name, source in by_name(bundles).items()}

    def build() -> Starlette:
        """Called by each replica as it starts."""
        if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
            logger.warning("Ray runs without RAY_SERVE_ENABLE_HA_PROXY=1: its default proxy passes on a tenth as much")
        return asgi_app(opened, **options)

    arguments = {"name": "relukan", "max_ongoing_requests": _MOST_ONGOING, **(deployment or {})}
    if isinstance(replicas, int):
        arguments["num_replicas"] = replicas
    else:
        fewest, most = replicas
        scaling = {"min_replicas": fewest, "max_replicas": most, "target_ongoing_requests": target_ongoing_requests}
        arguments["autoscaling_config"] = scaling | arguments.get("autoscaling_config", {})
    return serve.deployment(**arguments)(serve.ingress(build)(_Replica)).bind()


class _Replica:
    """What Ray calls besides the application, which `serve.ingress` makes callable here."""

    async def check_health(self) -> None:
        """Called by Ray now and then. A replica that raises again and again is replaced.

        Raises:
            ServiceClosed: a model of it has died.
        """
        status = None

        async def receive() -> dict[str, Any]:
            return {"type": "http.request"}

        async def send(message: Mapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)

        scope = {"type": "http", "method": "GET", "path": "/v2/health/ready", "query_string": b"", "headers": []}
        await self(scope, receive, send)  # type: ignore[operator]
        if status != 200:
            raise ServiceClosed(f"a model of this replica does not answer any more: /v2/health/ready is {status}")
