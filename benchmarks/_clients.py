"""Clients that hold every answer against the network that should have given it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray

from relukan_deploy.spec import KanSpec

from ._servers import Server

__all__ = ["Clients"]

_TOLERANCE = 1e-4
_MOST_ROWS = 30


class Clients:
    """Four threads, two of HTTP and two of gRPC, that ask without a pause. A context manager.

    Attributes:
        answered: requests that were answered rightly.
        newest: the largest version that has answered.
        faults: what went wrong: an answer that is not its version's, or an exception, which ends its thread.
    """

    def __init__(self, server: Server, model: str, specs: Sequence[KanSpec]) -> None:
        """Version n of the model is the n-th network, counted from 1; after the last comes the first again."""
        self.answered = 0
        self.newest = 0
        self.faults: list[str] = []
        self._model = model
        self._specs = specs
        self._lock = threading.Lock()
        self._stop = threading.Event()
        sides = [(tritonclient.http, server.http), (tritonclient.grpc, server.grpc)]
        self._threads = [
            threading.Thread(target=self._ask_on, args=(api, address, seed))
            for seed, (api, address) in enumerate(sides * 2)
        ]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, version: int, seconds: float) -> None:
        """Returns once a version has answered, or something went wrong.

        Raises:
            TimeoutError: it did not answer in time.
        """
        deadline = time.monotonic() + seconds
        while self.newest < version and not self.faults:
            if time.monotonic() > deadline:
                raise TimeoutError(f"version {version} has not answered in {seconds} s, {self.newest} is the newest")
            time.sleep(0.02)

    def _ask_on(self, api: ModuleType, address: str, seed: int) -> None:
        generator = np.random.default_rng(seed)
        inputs = self._specs[0].in_features
        try:
            with api.InferenceServerClient(address) as client:
                while not self._stop.is_set():
                    rows = int(generator.integers(1, _MOST_ROWS + 1))
                    x = generator.uniform(-0.8, 1.2, (rows, inputs)).astype(np.float32)
                    tensor = api.InferInput("x", [rows, inputs], "FP32").set_data_from_numpy(x)
                    answer = client.infer(self._model, [tensor])
                    grpc = api is tritonclient.grpc
                    told = answer.get_response(as_json=True) if grpc else answer.get_response()
                    self._compare(x, answer.as_numpy("y"), int(told["model_version"]))
        except BaseException as error:
            with self._lock:
                self.faults.append(f"{api.__name__}: {error!r}")

    def _compare(self, x: NDArray[np.float32], y: NDArray[np.float32], version: int) -> None:
        expected = self._specs[(version - 1) % len(self._specs)].evaluate(x)
        right = y.shape == expected.shape and bool(np.abs(y - expected).max() <= _TOLERANCE)
        with self._lock:
            self.newest = max(self.newest, version)
            if right:
                self.answered += 1
            else:
                self.faults.append(f"version {version} answered wrongly")
