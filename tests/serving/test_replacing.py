"""A server under load whose model is replaced, and whose process is killed: no wrong answer, none lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
from geventhttpclient.response import HTTPConnectionClosed
from tritonclient.utils import InferenceServerException

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks._clients import Clients
from benchmarks._servers import MISSING_TRITON, Server, find_triton, relukan_serve, tritonserver
from relukan_deploy.api import export
from relukan_deploy.exporters.to_triton import TritonBackend, TritonOptions, to_triton
from relukan_deploy.spec import KanSpec

pytestmark = pytest.mark.slow

SECONDS = 90  # for what takes a few on a machine with nothing else to do

POLL = ("--model-control-mode", "poll", "--repository-poll-secs", "1")
needs_triton = pytest.mark.skipif(find_triton() is None, reason=MISSING_TRITON)


def publish(spec: KanSpec, folder: Path, backend: TritonBackend | None) -> None:
    """Makes a network the newest version of the model "kan", for Triton's backend or for relukan-serve."""
    bundle = export(spec, folder / "kan", layout="batch-major" if backend == "onnxruntime" else "batch-last")
    if backend:
        to_triton(bundle, TritonOptions(folder / "models", backend=backend), batch=(1, 16, 256))


@contextlib.contextmanager
def started(folder: Path, backend: TritonBackend | None, *options: str) -> Iterator[Server]:
    """A server of what was published. What it prints is shown if the test fails."""
    with (
        tritonserver(folder / "models", *options) if backend else relukan_serve(str(folder / "kan"), *options) as server
    ):
        try:
            yield server
        finally:
            print(server.output())


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        pytest.param("onnxruntime", POLL, marks=needs_triton, id="Triton, onnxruntime"),
        pytest.param("python", POLL, marks=needs_triton, id="Triton, python"),
        pytest.param(None, (), id="relukan-serve"),
        pytest.param(None, ("--workers", "2"), id="relukan-serve, 2 workers"),
    ],
)
def test_new_versions_come_with_no_answer_lost_and_none_wrong(
    make_spec: Callable[..., KanSpec], tmp_path: Path, backend: TritonBackend | None, options: tuple[str, ...]
) -> None:
    specs = [make_spec((4, 6, 3), seed=seed) for seed in range(3)]
    publish(specs[0], tmp_path, backend)
    with started(tmp_path, backend, *options) as server:
        with Clients(server, "kan", specs) as clients:
            clients.wait_for(1, SECONDS)
            for version, spec in enumerate(specs[1:], start=2):
                publish(spec, tmp_path, backend)
                clients.wait_for(version, SECONDS)
        print(clients.faults)
    assert clients.faults == []
    assert clients.answered > 50


def kill_children(server: Server) -> set[int]:
    killed = server.children()
    assert killed
    for each in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    return killed


def answers_rightly(server: Server, spec: KanSpec) -> bool:
    """Whether one row is answered; a wrong answer fails the test."""
    x = np.zeros((1, 4), np.float32)
    tensor = tritonclient.http.InferInput("x", [1, 4], "FP32").set_data_from_numpy(x)
    try:
        with tritonclient.http.InferenceServerClient(server.http) as client:
            y = client.infer("kan", [tensor]).as_numpy("y")
    except (InferenceServerException, HTTPConnectionClosed, OSError):
        return False
    assert np.abs(y - spec.evaluate(x)).max() < 1e-5
    return True


@needs_triton
@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_triton_tells_that_a_backend_was_killed_and_loads_it_anew(
    make_spec: Callable[..., KanSpec], tmp_path: Path, backend: TritonBackend
) -> None:
    spec = make_spec((4, 6, 3))
    publish(spec, tmp_path, backend)
    with started(tmp_path, backend, "--model-control-mode", "explicit", "--load-model", "kan") as server:
        assert answers_rightly(server, spec)
        kill_children(server)
        assert not answers_rightly(server, spec)
        with tritonclient.http.InferenceServerClient(server.http, network_timeout=SECONDS) as client:
            client.unload_model("kan")
            client.load_model("kan")
        assert answers_rightly(server, spec)


def test_a_killed_worker_is_replaced(make_spec: Callable[..., KanSpec], tmp_path: Path) -> None:
    spec = make_spec((4, 6, 3))
    publish(spec, tmp_path, None)
    with started(tmp_path, None, "--workers", "2") as server:
        killed = kill_children(server)
        deadline = time.monotonic() + SECONDS
        while not answers_rightly(server, spec):
            assert time.monotonic() < deadline, "it did not come back"
            time.sleep(0.1)
        assert server.process.poll() is None
        assert server.children() - killed
