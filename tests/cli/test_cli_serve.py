"""relukan-serve, as a process: what it prints, how it ends, and what survives."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_tools import PROGRAM, Network, Process, as_json, ask, read_json, some_rows, wait_until

from relukan_deploy.cli.serve import main
from relukan_deploy.errors import MissingDependencyError
from relukan_deploy.spec import KanSpec

Capture = pytest.CaptureFixture[str]
MakeSpec = Callable[..., KanSpec]

X = some_rows(2, 3)


def assert_right(url: str, spec: KanSpec, path: str = "/v2/models/bundle/infer", **headers: str) -> None:
    y = read_json(ask(url + path, as_json(X), **headers))
    assert np.abs(y - spec.evaluate(X)).max() < 1e-5


class Load:
    """Clients in threads that ask all the time, each on one connection, and check every answer.

    Attributes:
        versions: of the answers, in the order of their arrival.
        lost: what went wrong.
        reconnected: how often a connection was gone before a request on it was answered.
    """

    def __init__(self, url: str, model: str, check: Callable[[str, Any, Any], None], clients: int = 8) -> None:
        self.versions: list[str] = []
        self.lost: list[str] = []
        self.reconnected = 0
        self._address = url.removeprefix("http://")
        self._path = f"/v2/models/{model}/infer"
        self._check = check
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,), daemon=True) for seed in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.versions)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self, seed: int) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        turn = 0
        while not self._stop.is_set():
            turn += 1
            x = some_rows(1 + turn % 3, 3, 1000 * seed + turn)
            try:
                connection.request("POST", self._path, json.dumps(as_json(x)))
                response = connection.getresponse()
                content = json.loads(response.read())
            except (ConnectionError, http.client.HTTPException):  # as any client has to, it asks again
                self.reconnected += 1
                connection.close()
                continue
            try:
                assert response.status == 200, content
                self._check(content["model_version"], x, read_json(content))
                self.versions.append(content["model_version"])
            except BaseException as error:
                self.lost.append(repr(error))
        connection.close()


@pytest.fixture(scope="module")
def server(bundle_path: Path) -> Iterator[Process]:
    with Process(bundle_path) as process:
        yield process


def ends(process: Process) -> tuple[int, str]:
    code = process.wait()
    return code, process.errors()


# --- one process


@pytest.mark.slow
def test_one_line_says_where_it_is(server: Process, spec: KanSpec) -> None:
    assert len(server.urls) == 1
    assert ask(server.url + "/v2/health/ready") == {"ready": True}
    assert_right(server.url, spec)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_answer_what_has_come_and_ends_it_with_0(
    bundle_path: Path, spec: KanSpec, number: signal.Signals
) -> None:
    answers: list[Any] = []
    with Process(bundle_path, "--max-delay", "2") as process:
        path = process.url + "/v2/models/bundle/infer"
        threads = [threading.Thread(target=lambda: answers.append(ask(path, as_json(X)))) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.7)  # they wait in the queue now, for two seconds
        assert answers == []
        process.send(number)
        process.send(number)  # impatience changes nothing
        code, errors = ends(process)
        for thread in threads:
            thread.join()
    assert code == 0, errors
    assert [np.abs(read_json(answer) - spec.evaluate(X)).max() < 1e-5 for answer in answers] == [True] * 4
    assert "Traceback" not in errors


@pytest.mark.slow
def test_names_ports_and_keys(bundle_path: Path, spec: KanSpec, tmp_path: Path, make_spec: MakeSpec) -> None:
    network = Network(tmp_path / "ferns", make_spec)
    keys = tmp_path / "keys"
    keys.write_text("first\n\n  second  \n")
    with Process(
        bundle_path, network.path, "--name", "a", "--name", "b", "--api-key-file", keys, "--metrics-port", 0
    ) as process:
        url, metrics = process.urls
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(url + "/v2/models/a")
        assert ask(url + "/v2/models/b", Authorization="Bearer second")["name"] == "b"
        assert_right(url, spec, "/v2/models/a/infer", Authorization="Bearer first")
        lines = fetch(metrics).splitlines()
        assert 'nv_inference_request_success{model="a",version="1"} 1.0' in lines
        assert 'nv_inference_request_success{model="b",version="1"} 0.0' in lines


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as response:
        text: str = response.read().decode()
        return text


@pytest.mark.slow
def test_replacing_a_bundle_under_load_loses_nothing(tmp_path: Path, make_spec: MakeSpec) -> None:
    network = Network(tmp_path / "ferns", make_spec)
    with Process(network.path) as process, Load(process.url, "ferns", network.check) as load:
        for _ in range(8):
            network.export()
            time.sleep(0.5)
        wait_until(lambda: load.versions[-1] == str(network.version))
    assert load.lost == []
    assert load.reconnected == 0
    assert set(load.versions) >= {"1", str(network.version)}


@pytest.mark.slow
def test_what_is_logged_says_what_and_why(tmp_path: Path, make_spec: MakeSpec) -> None:
    network = Network(tmp_path / "ferns", make_spec)
    with Process(network.path, "--host", "0.0.0.0") as process:
        warned = process.errors()
        network.export()
        url = process.url.replace("0.0.0.0", "127.0.0.1")
        wait_until(lambda: ask(url + "/v2/models/ferns")["versions"] == ["2"])
        with contextlib.suppress(urllib.error.HTTPError):
            ask(url + "/v2/models/ferns/infer", {})
        process.send(signal.SIGTERM)
        code, errors = ends(process)
    assert code == 0
    assert "WARNING whoever reaches 0.0.0.0 may ask: there is no --api-key-file" in warned
    assert "INFO ferns: version 2 is served, on onnxruntime-cpu" in errors
    assert "INFO SIGTERM: answering what has come, then ending" in errors


# --- several processes


@pytest.mark.slow
def test_workers_share_the_port_and_the_counts(bundle_path: Path, spec: KanSpec, tmp_path: Path) -> None:
    with Process(bundle_path, "--workers", 2, "--metrics-port", 0, environment={"TMPDIR": str(tmp_path)}) as process:
        url, metrics = process.urls
        (folder,) = tmp_path.glob("relukan-serve-*")
        for _ in range(40):  # each on a connection of its own, which either of them takes
            assert_right(url, spec)
        wait_until(lambda: 'nv_inference_count{model="bundle",version="1"} 80.0' in fetch(metrics).splitlines())
        assert 'nv_inference_request_success{model="bundle",version="1"} 40.0' in fetch(url + "/metrics").splitlines()
        (statistics,) = ask(url + "/v2/models/bundle/stats")["model_stats"]
        assert statistics["inference_stats"]["success"]["count"] == 40
        process.send(signal.SIGTERM)
        code, errors = ends(process)
    assert code == 0, errors
    assert not folder.exists()
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_its_counts_stay(tmp_path: Path, make_spec: MakeSpec) -> None:
    network = Network(tmp_path / "ferns", make_spec)
    with Process(network.path, "--workers", 2) as process, Load(process.url, "ferns", network.check) as load:
        first, _ = before = sorted(process.workers())
        os.kill(first, signal.SIGKILL)
        seen: set[int] = set()  # of one look, since a process that begins may be missed by the next

        def is_replaced() -> bool:
            seen.clear()
            seen.update(process.workers())
            return len(seen) == 2 and first not in seen

        wait_until(is_replaced)
        replaced = seen - set(before)
        wait_until(lambda: "running on" in process.errors())
        asked = len(load.versions)
        wait_until(lambda: len(load.versions) > asked + 200)
        answered = len(load.versions)
        (success,) = (
            float(line.split()[-1])
            for line in fetch(process.url + "/metrics").splitlines()
            if line.startswith("nv_inference_request_success{")
        )
    assert len(replaced) == 1
    assert load.lost == []
    assert load.reconnected <= 8  # the connections that the dead one had
    assert success >= answered


@pytest.mark.slow
def test_workers_replace_a_bundle_under_load(tmp_path: Path, make_spec: MakeSpec) -> None:
    network = Network(tmp_path / "ferns", make_spec)
    with Process(network.path, "--workers", 2) as process, Load(process.url, "ferns", network.check) as load:
        for _ in range(4):
            network.export()
            time.sleep(0.5)
        wait_until(lambda: set(load.versions[-50:]) == {str(network.version)})
    assert load.lost == []
    assert load.reconnected == 0


@pytest.mark.slow
def test_workers_end_with_the_process_above_them(bundle_path: Path) -> None:
    with Process(bundle_path, "--workers", 2) as process:
        workers = process.workers()
        process.send(signal.SIGKILL)
        process.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert len(workers) == 2


# --- how it fails


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_bundle_that_cannot_be_served_ends_it_with_one_line(copied: Path, workers: int) -> None:
    (copied / "model.onnx").write_bytes(b"damaged")
    with Process(copied, "--workers", workers, "--log-level", "error") as process:
        code, errors = ends(process)
    assert (code, process.urls) == (2, [])
    assert errors.startswith(f"relukan-serve: error: {copied / 'model.onnx'} has changed since it was written")
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_a_backend_that_is_not_here_ends_it_with_4(bundle_path: Path) -> None:
    with Process(bundle_path, "--backend", "onnxruntime-cuda", "--log-level", "error") as process:
        code, errors = ends(process)
    assert code == 4
    assert errors.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("package", ["uvicorn", "uvloop", "httptools", "starlette"])
def test_a_package_that_is_missing_is_named(bundle_path: Path, package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", code, str(bundle_path)], capture_output=True, text=True, check=False)
    missing = MissingDependencyError("Serving over HTTP", package, "serve")
    assert (done.returncode, done.stderr) == (4, f"relukan-serve: error: {missing}\n")


@pytest.mark.parametrize("option", ["--http-port", "--metrics-port"])
def test_a_port_in_use_is_told(bundle_path: Path, capsys: Capture, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([str(bundle_path), "--http-port", "0", option, str(port)]) == 2
    message = f"relukan-serve: error: cannot listen on 127.0.0.1 port {port} (Address already in use): choose another"
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_port_of_grpc_in_use_is_told_whatever_else_is_wrong(copied: Path) -> None:
    (copied / "model.onnx").write_bytes(b"damaged")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Process(copied, "--grpc-port", port, "--log-level", "error") as process:
            code, errors = ends(process)
    message = f"relukan-serve: error: gRPC cannot listen on 127.0.0.1 port {port}: choose another with --grpc-port\n"
    assert (code, "Traceback" in errors) == (2, False), errors
    assert errors.endswith(message)


def test_an_address_of_somebody_else_is_told(bundle_path: Path, capsys: Capture) -> None:
    assert main([str(bundle_path), "--http-port", "0", "--host", "192.0.2.1"]) == 2
    message = "cannot listen on 192.0.2.1 port 0 (Cannot assign requested address): choose another --host"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b", "--name", "c"], "--name is given 1 times for 2 bundles: give it once for each, or not at all"),
        (["a", "--name", "c", "--name", "d"], "--name is given 2 times for 1 bundles"),
        (["x/a", "y/a"], "x/a and y/a would both be served as 'a': tell them apart by --name"),
        (["a", "--api-key-file", "nothing"], "nothing cannot be read"),
        (["a", "--api-key-file", "empty"], "empty holds no key: write one a line"),
        (["a", "--api-key-file", "odd", "--http-port", "0"], "an API key must be printable ASCII"),
        (["a", "--name", "b/c", "--http-port", "0"], "'b/c' cannot be the name of a model in a URL"),
    ],
)
def test_what_cannot_be_served_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "odd").write_text("two words\n")
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a", "--http-port", "65536"],
        ["a", "--http-port", "-1"],
        ["a", "--workers", "0"],
        ["a", "--max-batch", "0"],
        ["a", "--max-delay", "-1"],
        ["a", "--max-delay", "nan"],
        ["a", "--max-delay", "inf"],
        ["a", "--threads", "all"],
        ["a", "--backend", "abacus"],
        ["a", "--out-of-domain", "ignore"],
        ["a", "--max-request-bytes", "0"],
    ],
)
def test_an_option_that_cannot_be_is_a_usage_error(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: relukan-serve" in capsys.readouterr().err
