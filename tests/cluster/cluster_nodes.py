"""A Ray cluster of two nodes on this machine, in a network where nothing else is.

Ray and its HAProxy listen on every interface. `make test-ray` therefore starts pytest with a network,
processes and mounts of its own, which end when it does, however it does. In there each node has its
own once more: killing its first process takes away everything that runs on it, at once.
"""

from __future__ import annotations

import csv
import io
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

BIN = Path(sys.executable).parent
TOOLS = ("ip", "mount", "nsenter", "unshare")


def why_not() -> str | None:
    """Why there can be no cluster here, or None."""
    if not (BIN / "ray").exists():
        return "Ray is not installed in this environment: make test-ray"
    if [name for _, name in socket.if_nameindex()] != ["lo"] or os.getuid() != 0:
        return "Ray would listen on the networks of this machine: make test-ray"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"{missing[0]} is not installed on this machine" if missing else None


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def run(command: list[str], environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


class Node:
    """Namespaces with a network device, connected to ours.

    Attributes:
        address: of the node.
        inside: what to put before a command to have it run there.
    """

    def __init__(self, number: int) -> None:
        self.address, gateway = f"10.0.{number}.2", f"10.0.{number}.1"
        namespaces = ["--net", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"]
        self._first = subprocess.Popen(["unshare", *namespaces, "sleep", "infinity"])
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children")
        wait_until(lambda: bool(children.read_text()), 10, "a node")
        process = children.read_text().strip()
        self.inside = ["nsenter", "--target", process, "--net", "--pid", "--mount"]
        run(["ip", "link", "add", f"to{number}", "type", "veth", "peer", "name", "device", "netns", process])
        for prefix, device, address in (([], f"to{number}", gateway), (self.inside, "device", self.address)):
            run([*prefix, "ip", "address", "add", f"{address}/24", "dev", device])
            run([*prefix, "ip", "link", "set", device, "up"])
        run([*self.inside, "ip", "link", "set", "lo", "up"])
        run([*self.inside, "ip", "route", "add", "default", "via", gateway])

    def kill(self) -> None:
        self._first.kill()
        self._first.wait()


class Cluster:
    """Two nodes that run Ray. The second cannot see the folder of files.

    Args:
        folder: an empty one with a short name, for what Ray keeps.
        files: where bundles and services are.
    """

    def __init__(self, folder: Path, files: Path) -> None:
        self.files = files
        self.nodes: list[Node] = []
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",  # of 30, how long a replica outlives its end
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
            "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_TMPDIR": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_timeout_ms": "3000",  # of 10 000, five times in a row: then a node is given up
        }

    def start(self) -> None:
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")  # the nodes reach each other through us
        self._join(["--head", "--port", "6379", "--include-dashboard", "false"])
        self.join()

    def join(self) -> None:
        """Adds a node, which cannot see the folder of files."""
        self._join(["--address", f"{self.nodes[0].address}:6379"])

    def _join(self, arguments: list[str]) -> None:
        node = Node(len(self.nodes) + 1)
        self.nodes.append(node)
        if len(self.nodes) > 1:
            run([*node.inside, "mount", "-t", "tmpfs", "none", str(self.files)])
        # Room for three replicas, and hardly any shared memory.
        limits = ["--num-cpus", "3", "--object-store-memory", "100000000"]
        command = ["ray", "start", *arguments, "--node-ip-address", node.address, *limits]
        run([*node.inside, *command], self._environment)

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes]

    def run(self, *command: str) -> None:
        """Runs a command on the first node, in the folder of files. Raises AssertionError with what it says."""
        address = f"RAY_ADDRESS={self.nodes[0].address}:6379"
        run([*self.nodes[0].inside, "env", "--chdir", str(self.files), address, *command], self._environment)

    def replicas(self) -> int:
        """How many replicas the first node's HAProxy has found to answer."""
        with urllib.request.urlopen(f"http://{self.nodes[0].address}:8404/stats;csv", timeout=5) as response:
            rows = list(csv.DictReader(io.StringIO(response.read().decode())))
        return sum(row["svname"].startswith("SERVE_REPLICA") and row["status"].startswith("UP") for row in rows)

    def close(self) -> None:
        for node in self.nodes:
            node.kill()
