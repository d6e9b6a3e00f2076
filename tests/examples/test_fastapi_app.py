"""The FastAPI example, behind a real server."""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from serving_tools import wait_until

from relukan_deploy.api import export
from relukan_deploy.spec import KanSpec

EXAMPLE = Path(__file__).parent.parent.parent / "examples/fastapi_app.py"

MakeApp = Callable[..., FastAPI]
ROW = {"width": 0.1, "height": 0.2, "depth": 0.3}


@pytest.fixture(scope="module")
def make_app() -> MakeApp:
    make: MakeApp = runpy.run_path(str(EXAMPLE))["make_app"]
    return make


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[httpx.Client]:
    """A client of the app behind uvicorn, in a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client(make_app: MakeApp, bundle_path: Path) -> Iterator[httpx.Client]:
    with serving(make_app(bundle_path)) as client:
        yield client


def test_it_answers_as_the_reference(client: httpx.Client, spec: KanSpec) -> None:
    x = np.random.default_rng(3).uniform(-0.5, 1.2, (20, 3)).astype(np.float32)
    rows = [dict(zip(ROW, row, strict=True)) for row in x.tolist()]
    answers = client.post("/predict", json=rows).raise_for_status().json()
    y = np.array([[answer["mass"], answer["cost"]] for answer in answers])
    np.testing.assert_allclose(y, spec.evaluate(x), rtol=0, atol=1e-5)


def test_the_classes_of_a_classification_are_named(make_app: MakeApp, classifier: KanSpec, tmp_path: Path) -> None:
    row = {f"x{index}": 0.1 * index for index in range(4)}
    with serving(make_app(export(classifier, tmp_path / "bundle").path)) as client:
        (answer,) = client.post("/predict", json=[row]).raise_for_status().json()
    assert list(answer) == ["fern", "moss", "oak"]


def test_a_missing_column_is_named(client: httpx.Client) -> None:
    response = client.post("/predict", json=[ROW, {"width": 0.1, "depth": 0.3}])
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", 1, "height"]


def test_a_bad_row_gets_the_message_of_the_runner(client: httpx.Client) -> None:
    response = client.post("/predict", json=[ROW, ROW | {"height": "nan"}])
    assert response.status_code == 422
    assert response.json() == {"detail": "row 1 has height = nan, expected a finite number"}


def test_no_rows_are_a_bad_request_too(client: httpx.Client) -> None:
    assert client.post("/predict", json=[]).status_code == 422


def test_it_is_ready_as_soon_as_it_answers(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ready", "backend": "onnxruntime-cpu"}


def test_values_outside_the_domain_are_counted_by_column(make_app: MakeApp, bundle_path: Path) -> None:
    with serving(make_app(bundle_path)) as client:
        client.post("/predict", json=[ROW, ROW | {"depth": 9.0}]).raise_for_status()
        stats = client.get("/stats").json()
    assert stats["rows"] == 2
    assert stats["outside"] == {"width": 0, "height": 0, "depth": 1}


@pytest.mark.slow
def test_a_full_queue_is_503_and_says_when_to_come_again(make_app: MakeApp, bundle_path: Path) -> None:
    with serving(make_app(bundle_path, max_queue=1, max_delay=5.0)) as client, ThreadPoolExecutor(1) as pool:
        waits = pool.submit(client.post, "/predict", json=[ROW])
        wait_until(lambda: client.get("/stats").json()["batcher"]["pending"] == 1)
        refused = client.post("/predict", json=[ROW])
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert waits.result().status_code == 200


@pytest.mark.slow
def test_the_command_in_its_docstring_starts_it(bundle_path: Path) -> None:
    (command,) = re.findall(r"^\$ RELUKAN_BUNDLE=model (.*)$", EXAMPLE.read_text(), re.MULTILINE)
    environment = os.environ | {"RELUKAN_BUNDLE": str(bundle_path)}
    program = [sys.executable, "-m", *shlex.split(command), "--port", "0"]
    with subprocess.Popen(
        program, cwd=EXAMPLE.parent.parent, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            url = next(found[0] for line in lines if (found := re.findall(r"running on (http://\S+)", line)))
            assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
        finally:
            process.terminate()
    assert process.returncode in (0, -15)
