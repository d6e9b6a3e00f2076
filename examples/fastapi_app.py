"""A bundle inside a FastAPI service of one's own; its requests are answered in joint batches.

$ RELUKAN_BUNDLE=model uvicorn --app-dir examples --factory fastapi_app:make_app
"""

import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import Field, create_model

from relukan_deploy.bundle import open_bundle
from relukan_deploy.errors import DeadlineExceeded, InputError, QueueFull, ServiceClosed
from relukan_deploy.runtime import Batcher, load

ANSWERS = {InputError: 422, QueueFull: 503, ServiceClosed: 503, DeadlineExceeded: 504}


def make_app(path: str | Path | None = None, *, max_delay: float = 0.0, max_queue: int = 65536) -> FastAPI:
    """The service of the bundle at `path`, or where RELUKAN_BUNDLE says; see `Batcher` for the limits."""
    bundle = open_bundle(path or os.environ["RELUKAN_BUNDLE"])
    manifest = bundle.manifest
    runner = load(bundle, nonfinite="raise")  # has answered its golden inputs when the port is opened
    batcher = Batcher(runner, max_delay=max_delay, max_queue=max_queue)
    inputs = manifest.columns or tuple(f"x{index}" for index in range(manifest.in_features))
    outputs = manifest.labels or manifest.targets or tuple(f"y{index}" for index in range(manifest.out_features))
    # A column may have any name, so it is the alias of a field that has a plain one.
    fields: dict[str, Any] = {f"x{index}": (float, Field(alias=name)) for index, name in enumerate(inputs)}
    row_type = create_model("Row", **fields)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await batcher.aclose()  # what waits is answered
        runner.close()

    app = FastAPI(title=bundle.path.name, lifespan=lifespan)

    @app.post("/predict")
    async def predict(rows: list[row_type]) -> list[dict[str, float]]:  # type: ignore[valid-type]
        y = await batcher([list(dict(row).values()) for row in rows], timeout=10.0)
        return [dict(zip(outputs, answer, strict=True)) for answer in y.tolist()]

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ready", "backend": runner.backend}

    @app.get("/stats")
    async def stats() -> dict[str, Any]:
        asked = runner.stats()
        domain = {"outside": asked.outside, "nonfinite": asked.nonfinite}
        counted = {name: dict(zip(inputs, counts, strict=True)) for name, counts in domain.items()}
        return {"rows": asked.rows, **counted, "batcher": dataclasses.asdict(batcher.stats())}

    async def refuse(_: Request, error: Exception) -> JSONResponse:
        status = next(status for kind, status in ANSWERS.items() if isinstance(error, kind))
        return JSONResponse({"detail": str(error)}, status, {"Retry-After": "1"} if status == 503 else None)

    for kind in ANSWERS:
        app.add_exception_handler(kind, refuse)
    return app
