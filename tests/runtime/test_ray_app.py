"""`ray_app` without a cluster; tests/cluster has one."""

from __future__ import annotations

import asyncio
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from relukan_deploy.bundle import open_bundle
from relukan_deploy.errors import MissingDependencyError, ServiceClosed
from relukan_deploy.runtime import asgi_app, ray_app
from relukan_deploy.runtime.ray_serve import _Replica


class Served(_Replica):
    """A replica as `serve.ingress` makes it: callable as the application is."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, *arguments: Any) -> None:
        await self.app(*arguments)


def test_without_ray_it_says_how_to_install_it(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError) as caught:
        ray_app(bundle_path)
    assert str(caught.value) == str(MissingDependencyError("relukan_deploy.runtime.ray_app", "ray", "ray"))


def test_a_replica_serves_what_was_opened_elsewhere(copied: Path) -> None:
    sent = pickle.dumps({"one": open_bundle(copied)})  # as Ray does
    shutil.rmtree(copied)

    async def check() -> None:
        app = asgi_app(pickle.loads(sent))
        async with app.router.lifespan_context(app):
            await Served(app).check_health()

    asyncio.run(check())


def test_a_replica_is_healthy_until_a_model_of_it_has_died(bundle_path: Path) -> None:
    async def check() -> None:
        app = asgi_app(bundle_path)
        replica = Served(app)
        async with app.router.lifespan_context(app):
            await replica.check_health()
        with pytest.raises(ServiceClosed, match="/v2/health/ready is 503"):  # the models are closed by now
            await replica.check_health()

    asyncio.run(check())
