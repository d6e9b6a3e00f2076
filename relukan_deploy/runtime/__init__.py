"""Running a bundle: `load` gives a `Runner`, `Batcher` joins many callers, `asgi_app` and `ray_app` serve over HTTP.

What goes beyond `load` is imported when it is first used: it needs asyncio, and further packages.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .guard import Stats
from .load import BACKENDS, load
from .runner import Runner

if TYPE_CHECKING:
    from .batching import Batcher, BatcherStats
    from .ray_serve import ray_app
    from .serving import asgi_app

__all__ = ["BACKENDS", "Batcher", "BatcherStats", "Runner", "Stats", "asgi_app", "load", "ray_app"]

_HOMES = {"Batcher": "batching", "BatcherStats": "batching", "asgi_app": "serving", "ray_app": "ray_serve"}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value
