"""Servers to talk to in tests: an application on a real socket, and relukan-serve as a process."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray

from relukan_deploy.api import export
from relukan_deploy.spec import KanSpec

Rows = NDArray[np.float32]

PROGRAM = "import sys; from relukan_deploy.cli.serve import main; sys.exit(main())"
PATIENCE = 60.0  # seconds, on a busy machine


def some_rows(count: int, columns: int, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).uniform(-0.8, 1.2, (count, columns)).astype(np.float32)


def as_json(x: Rows, **more: Any) -> dict[str, Any]:
    """An inference request."""
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    return {"inputs": [tensor], **more}


def read_json(content: dict[str, Any]) -> Rows:
    """What an inference response answers."""
    (output,) = content["outputs"]
    assert (output["name"], output["datatype"]) == ("y", "FP32")
    y: Rows = np.array(output["data"], np.float32).reshape(output["shape"])
    return y


def ask(url: str, body: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
    """A GET, or a POST of a body, over a connection of its own. Raises urllib's HTTPError for other codes than 200."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=PATIENCE) as response:
        content: dict[str, Any] = json.loads(response.read())
        return content


@contextlib.contextmanager
def running(app: Any) -> Iterator[str]:
    """An application on a real server in a thread; gives its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


def wait_until(condition: Any) -> None:
    """Fails when it is not so within a time that no machine needs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


class Network:
    """A bundle of which the next version is another network, so that an answer shows its version.

    Attributes:
        path: of the bundle.
        version: the newest.
    """

    def __init__(self, path: Path, make_spec: Callable[..., KanSpec]) -> None:
        self.path = path
        self.version = 0
        self._specs = [make_spec((3, 4, 2), seed=seed) for seed in (11, 12)]
        self.export()

    def export(self) -> None:
        """Writes the next version."""
        self.version += 1
        export(self._specs[self.version % 2], self.path)

    def check(self, version: str, x: Rows, y: Rows) -> None:
        """Fails unless y is what this version answers to x."""
        expected = self._specs[int(version) % 2].evaluate(x)
        assert y.shape == expected.shape
        assert np.abs(y - expected).max(initial=0) < 1e-5


class Process:
    """relukan-serve, started with `arguments` on a free port, and ready unless it has ended.

    Attributes:
        urls: of what it serves, in the order of its one line of output.
    """

    def __init__(self, *arguments: object, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-c", PROGRAM, "--http-port", "0", *map(str, arguments)]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        self._errors: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.urls = line.removeprefix("relukan-serve is ready:").split()
        self.url = self.urls[0] if self.urls else ""

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit code."""
        code = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def errors(self) -> str:
        """What it has printed to standard error since the last call."""
        lines = []
        with contextlib.suppress(queue.Empty):
            while True:
                lines.append(self._errors.get_nowait())
        return "".join(lines)

    def workers(self) -> list[int]:
        """The processes that serve, where there are several."""
        found = []
        for pid in subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True).stdout.split():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as file:
                if "spawn_main" in file.read():
                    found.append(int(pid))
        return found

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(PATIENCE)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._process.stdout.close()
        self._process.stderr.close()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors.put(line)
