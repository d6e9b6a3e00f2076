"""The benchmark of servers: its figures, and the load behind them."""

from __future__ import annotations

import http.server
import shutil
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks import serving
from benchmarks._wrk import Load, require_wrk, run_wrk

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="there is no wrk: apt-get install wrk")


def test_without_wrk_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="apt-get install wrk"):
        require_wrk()


def test_rates_are_compared_with_tritons_of_the_same_round() -> None:
    def load(requests: int, errors: int = 0) -> Load:
        return Load(requests=requests, seconds=2.0, p50=0.001, p99=0.002, errors=errors)

    own, triton = [load(400), load(100, errors=2), load(300)], [load(200), load(200), load(100)]
    found = serving.row(serving.ONE, 8, {(serving.ONE, 8): own, (serving.TRITON, 8): triton})
    assert (found["rate"], found["errors"]) == (150, 2)
    assert found["of Triton"] == {"median": 2, "low": 0.5, "high": 3}


def test_without_triton_there_is_nothing_to_compare_with() -> None:
    load = Load(requests=400, seconds=2.0, p50=0.001, p99=0.002, errors=0)
    assert serving.row(serving.ONE, 8, {(serving.ONE, 8): [load]})["of Triton"] is None


@needs_wrk
@pytest.mark.slow
def test_wrk_posts_the_body_and_counts_what_is_answered_with_an_error() -> None:
    bodies: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(500 if len(bodies) == 3 else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    ticks: list[int] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        body = '{"data": [1.5]}'
        url = f"http://127.0.0.1:{server.server_port}/"
        load = run_wrk(url, body, clients=2, seconds=1, meanwhile=lambda: ticks.append(1), every=0.1)
        server.shutdown()
        thread.join()
    assert set(bodies) == {body.encode()}
    assert 3 <= load.requests <= len(bodies)
    assert load.errors == 1
    assert 0 < load.p50 <= load.p99
    assert ticks
