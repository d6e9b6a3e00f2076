"""Clients that ask over HTTP until they are told to stop, and ask again when that fails.

    python cluster_clients.py TABLE.npz CLIENTS ADDRESS...

The table has rows x ``(n, in)`` and, for each version of the bundle "model", answers y1, y2, …
``(n, out)``. Every answer is compared with those of the version that it says it comes from. Each
client goes on to the next address when one fails it. The first line of output says that all clients
have been answered; the last, written once the standard input has ended, is a `Seen` as JSON.
"""

from __future__ import annotations

import collections
import dataclasses
import http.client
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

BEGUN = "all clients have been answered\n"
PATIENCE = 60.0  # seconds after which a request counts as lost
TOLERANCE = 1e-5  # of float32, relative to max(1, max|y|)


@dataclasses.dataclass
class Seen:
    """What the clients have seen.

    Attributes:
        answered: by the version that answered.
        failed: tries that were made again, by what happened.
        wrong: answers that were not those of their version.
        lost: requests that were never answered.
        slowest: seconds that a request took, tries included.
        seconds: how long all this went on.
    """

    answered: dict[str, int]
    failed: dict[str, int]
    wrong: int
    lost: int
    slowest: float
    seconds: float


class Clients:
    """The clients in a process of their own, for as long as the block lasts; then `seen` is there."""

    seen: Seen

    def __init__(self, table: Path, clients: int, addresses: Sequence[str]) -> None:
        self._command = [sys.executable, __file__, str(table), str(clients), *addresses]

    def __enter__(self) -> Clients:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != BEGUN:
            self._process.communicate()
            raise AssertionError("not all clients were answered; above is what they say")
        return self

    def __exit__(self, failed: type[BaseException] | None, *more: object) -> None:
        try:
            output = self._process.communicate(timeout=PATIENCE + 30)[0]
        finally:
            self._process.kill()
        if failed is None:
            assert self._process.returncode == 0
            self.seen = Seen(**json.loads(output))


class Client:
    """One client, which has one request under way at a time."""

    def __init__(self, number: int, table: dict[str, Any], addresses: Sequence[str], stop: threading.Event) -> None:
        self.answered: collections.Counter[str] = collections.Counter()
        self.failed: collections.Counter[str] = collections.Counter()
        self.wrong = self.lost = 0
        self.slowest = 0.0
        self.begun = threading.Event()
        self._random = random.Random(number)
        self._table = table
        self._addresses = collections.deque(addresses)
        self._addresses.rotate(number)
        self._stop = stop
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        while not self._stop.is_set():
            index = self._random.randrange(len(self._table["x"]))
            began = time.monotonic()
            answer = self._ask_until_answered(self._table["x"][index].tolist(), began + PATIENCE)
            self.slowest = max(self.slowest, time.monotonic() - began)
            if answer is None:
                self.lost += 1
                continue
            version, y = answer
            self.answered[version] += 1
            expected = self._table[f"y{version}"]
            self.wrong += bool(np.abs(y - expected[index]).max() > TOLERANCE * max(1.0, np.abs(expected).max()))
            self.begun.set()

    def _ask_until_answered(self, row: list[float], until: float) -> tuple[str, list[float]] | None:
        pause = 0.05
        while time.monotonic() < until:
            try:
                return self._ask(row)
            except (OSError, http.client.HTTPException) as error:
                self.failed[f"{self._addresses[0]} {type(error).__name__}: {error}"] += 1
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._addresses.rotate()
            time.sleep(pause * self._random.uniform(0.5, 1.5))
            pause = min(2 * pause, 1.0)
        return None

    def _ask(self, row: list[float]) -> tuple[str, list[float]]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._addresses[0], 8000, timeout=5)
        x = {"name": "x", "shape": [1, len(row)], "datatype": "FP32", "data": row}
        self._connection.request("POST", "/v2/models/model/infer", json.dumps({"inputs": [x]}))
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise http.client.HTTPException(f"{response.status} {body[:100]!r}")
        content = json.loads(body)
        return content["model_version"], content["outputs"][0]["data"]


def main(table_path: str, count: str, *addresses: str) -> None:
    with np.load(table_path) as arrays:
        table = dict(arrays)
    stop = threading.Event()
    clients = [Client(number, table, addresses, stop) for number in range(int(count))]
    began = time.monotonic()
    with ThreadPoolExecutor(len(clients)) as pool:
        runs = [pool.submit(client.run) for client in clients]
        if all(client.begun.wait(PATIENCE) for client in clients):
            print(BEGUN, end="", flush=True)
            sys.stdin.read()
        stop.set()
    for run in runs:
        run.result()
    seen = Seen(
        answered=dict(sum((client.answered for client in clients), collections.Counter())),
        failed=dict(sum((client.failed for client in clients), collections.Counter())),
        wrong=sum(client.wrong for client in clients),
        lost=sum(client.lost for client in clients),
        slowest=max(client.slowest for client in clients),
        seconds=time.monotonic() - began,
    )
    print(json.dumps(dataclasses.asdict(seen)))


if __name__ == "__main__":
    main(*sys.argv[1:])
