"""Load from `wrk`, which asks from C and so leaves the machine to the server."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["Load", "require_wrk", "run_wrk"]

# What wrk prints for people cuts its figures; this prints them whole. Times are in microseconds.
_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [[%s]]

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\nRESULT {"requests": %%d, "microseconds": %%d, "p50": %%d, "p99": %%d, "errors": %%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
"""


@dataclasses.dataclass(frozen=True)
class Load:
    """What `wrk` saw.

    Attributes:
        requests: how many were answered, in `seconds`.
        p50, p99: of the time to an answer, in seconds.
        errors: answers with a status of 400 or more, broken connections and requests not answered.
    """

    requests: int
    seconds: float
    p50: float
    p99: float
    errors: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def require_wrk() -> None:
    """Leaves with a message where wrk is not installed."""
    if shutil.which("wrk") is None:
        raise SystemExit("this needs wrk: apt-get install wrk, or https://github.com/wg/wrk")


def run_wrk(
    url: str,
    body: str,
    *,
    clients: int,
    seconds: int,
    meanwhile: Callable[[], object] = lambda: None,
    every: float = 1.0,
) -> Load:
    """Posts `body` for a while on `clients` connections, each of which asks again once it was answered.

    Args:
        url: where to.
        body: JSON.
        clients: connections.
        seconds: how long.
        meanwhile: called every `every` seconds.

    Raises:
        RuntimeError: wrk failed, with what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "post.lua")
        script.write_text(_SCRIPT % body, encoding="utf-8")
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script), url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                output = _output(process, meanwhile, every)
            finally:
                process.kill()
    _, found, result = output.partition("RESULT ")
    if not found or process.returncode:
        raise RuntimeError(f"wrk ended with {process.returncode}: {output}")
    told = json.loads(result)
    return Load(
        requests=told["requests"],
        seconds=told["microseconds"] * 1e-6,
        p50=told["p50"] * 1e-6,
        p99=told["p99"] * 1e-6,
        errors=told["errors"],
    )


def _output(process: subprocess.Popen[str], meanwhile: Callable[[], object], every: float) -> str:
    while True:
        try:
            return process.communicate(timeout=every)[0]
        except subprocess.TimeoutExpired:
            meanwhile()
