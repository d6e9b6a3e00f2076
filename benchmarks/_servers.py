"""Real servers as processes of this machine, for measurements here and for tests/serving/."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["MISSING_TRITON", "Server", "find_triton", "relukan_serve", "tritonserver"]

ROOT = Path(__file__).parent.parent
MISSING_TRITON = "there is no tritonserver: run make .venv-triton/.ready"
_START_SECONDS = 120  # on a busy machine


@dataclasses.dataclass(frozen=True)
class Server:
    """A server that is ready.

    Attributes:
        http, grpc: its addresses, ``host:port``.
        process: its first process, which leads a session of its own.
        log: what it and its children print.
    """

    http: str
    grpc: str
    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def children(self) -> set[int]:
        """The processes below the first."""
        parents = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        found = {self.process.pid}
        while more := {child for child, parent in parents.items() if parent in found} - found:
            found |= more
        return found - {self.process.pid}

    def resident(self) -> int:
        """Memory of all its processes, in bytes; what they share is counted for each."""
        total = 0
        for process in {self.process.pid, *self.children()}:
            with contextlib.suppress(OSError):
                pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
                total += pages * os.sysconf("SC_PAGE_SIZE")
        return total


def find_triton() -> Path | None:
    """The site-packages that hold a tritonserver, or None."""
    ready = ROOT / ".venv-triton" / ".ready"
    return next(ready.parent.glob("lib/python3.*/site-packages"), None) if ready.exists() else None


@contextlib.contextmanager
def tritonserver(repository: Path, *options: str) -> Iterator[Server]:
    """NVIDIA's Triton on a model repository, on loopback.

    The wheel's server has the Python backend alone; `triton/backends/` stands in for the others.
    """
    packages = find_triton()
    if packages is None:
        raise FileNotFoundError(MISSING_TRITON)
    triton = packages / "pytriton" / "tritonserver"
    with tempfile.TemporaryDirectory() as name:
        backends = Path(name, "backends")  # copies, since it refuses links that lead elsewhere
        shutil.copytree(ROOT / "benchmarks" / "triton" / "backends", backends)
        shutil.copytree(triton / "backends" / "python", backends / "python")
        version = packages.parent.name.removeprefix("python")
        shutil.copy(triton / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
        environment = {
            "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
            "PATH": f"{packages.parents[2] / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }
        command = [str(triton / "bin" / "tritonserver"), "--model-repository", str(repository)]
        command += ["--backend-directory", str(backends), "--allow-metrics", "false", "--exit-timeout-secs", "2"]
        command += ["--http-address", "127.0.0.1", "--grpc-address", "127.0.0.1", *options]
        prefix = Path(name).name  # servers of one machine would else share their shared memory
        command += ["--backend-config", f"python,shm-region-prefix-name={prefix}"]
        try:
            with _started(command, environment, Path(name, "log")) as server:
                yield server
        finally:
            for left in Path("/dev/shm").glob(f"{prefix}*"):
                left.unlink(missing_ok=True)


@contextlib.contextmanager
def relukan_serve(*arguments: str) -> Iterator[Server]:
    """This project's own server, on loopback; `arguments` are bundles and options."""
    code = "import sys; from relukan_deploy.cli.serve import main; sys.exit(main())"
    with (
        tempfile.TemporaryDirectory() as name,
        # One worker is ready before the others; then it says that all are.
        _started([sys.executable, "-c", code, *arguments], {}, Path(name, "log"), "relukan-serve is ready") as server,
    ):
        yield server


@contextlib.contextmanager
def _started(command: list[str], environment: Mapping[str, str], log: Path, announcement: str = "") -> Iterator[Server]:
    """Starts a server on two free ports, waits until it is ready, and ends it with all its children."""
    http, grpc = _free_ports(2)
    command = [*command, "--http-port", str(http), "--grpc-port", str(grpc)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=output, stderr=output, start_new_session=True
        )
    server = Server(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", process, log)
    try:
        _wait_until_ready(server, announcement)
        yield server
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(server: Server, announcement: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{server.http}/v2/health/ready", timeout=5):
            if announcement in server.output():
                return
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start (exit code {server.process.poll()}):\n{server.output()}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
