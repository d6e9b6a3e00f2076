"""`ray_app` without a cluster; tests/cluster has one."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from relukan_deploy.bundle import open_bundle
from relukan_deploy.errors import MissingDependencyError, ServiceClosed
from relukan_deploy.runtime import asgi_app, ray_app
from relukan_deploy.runtime.ray_serve import _read, _Replica, _write


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


def test_bundles_arrive_as_they_were(bundle_path: Path, tmp_path: Path) -> None:
    written = _write({"one": _read(bundle_path), "two/three": _read(bundle_path)}, tmp_path)
    assert list(written) == ["one", "two/three"]
    sent = open_bundle(bundle_path)
    for path in written.values():
        arrived = open_bundle(path)
        assert (arrived.manifest, arrived.contents) == (sent.manifest, sent.contents)


def test_a_replica_is_healthy_until_a_model_of_it_has_died(bundle_path: Path) -> None:
    async def check() -> None:
        app = asgi_app(bundle_path)
        replica = Served(app)
        async with app.router.lifespan_context(app):
            await replica.check_health()
        with pytest.raises(ServiceClosed, match="/v2/health/ready is 503"):  # the models are closed by now
            await replica.check_health()

    asyncio.run(check())
