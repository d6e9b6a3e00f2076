"""Several processes that serve on one socket, and the one above, which starts, replaces and ends them.

A worker that dies is replaced. Each of the first has to become ready: if one cannot, its error is the
server's. The process above opens no bundle itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType

from prometheus_client.multiprocess import mark_process_dead

from ...errors import RelukanError
from .metrics import Metrics, exposition, shared_registry
from .server import Settings, announce, listen, log_to_stderr, run_server, serving_metrics

__all__ = ["supervise"]

logger = logging.getLogger("relukan_deploy.serving")

_PAUSE = 1.0  # seconds before a worker is replaced that did not become ready


def supervise(settings: Settings, sock: socket.socket) -> None:
    """Serves with `settings.workers` processes until a signal, and then until they have ended.

    Raises:
        RelukanError: what one of the first workers raised instead of becoming ready.
        InputError: a port cannot be had.
    """
    if settings.grpc_port is not None:  # every worker binds it, which would also let it share a stranger's
        with listen(settings.host, settings.grpc_port) as probe:
            settings = dataclasses.replace(settings, grpc_port=probe.getsockname()[1])
    with (
        sock,
        _shared_folder() as folder,
        serving_metrics(settings, lambda: exposition(shared_registry(folder))) as metrics_url,
    ):
        _Supervisor(
            settings, sock, folder, lambda: announce(settings.host, sock, settings.grpc_port, metrics_url)
        ).run()


@contextlib.contextmanager
def _shared_folder() -> Iterator[str]:
    """A folder for the counts of all workers, which find it in their environment."""
    folder = tempfile.mkdtemp(prefix="relukan-serve-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield folder
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        shutil.rmtree(folder, ignore_errors=True)


@dataclasses.dataclass
class _Worker:
    process: SpawnProcess
    ready: bool = False


class _Supervisor:
    """Keeps as many workers running as there should be.

    Each has a pipe, through which it says once that it is ready, or why it cannot be, and whose end
    is its own end.
    """

    def __init__(self, settings: Settings, sock: socket.socket, folder: str, all_ready: Callable[[], None]) -> None:
        self._settings = settings
        self._sock = sock
        self._folder = folder
        self._all_ready = all_ready
        self._workers: dict[Connection, _Worker] = {}
        self._announced = False
        self._ending = False
        self._failure: RelukanError | None = None

    def run(self) -> None:
        """Until a signal, and then until every worker has ended."""
        before = {number: signal.signal(number, self._end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            for index in range(self._settings.workers):
                self._start(at_once=index == 0)  # who asks early is answered by one that is not ready, as it should be
            while self._workers:
                for pipe in wait(list(self._workers)):
                    assert isinstance(pipe, Connection)
                    self._hear(pipe)
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._failure is not None:
            raise self._failure

    def _start(self, *, at_once: bool = False) -> None:
        pipe, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(self._settings, self._sock, theirs, at_once), name="relukan-serve worker"
        )
        # Ctrl-C reaches a worker too, and finds it in the middle of its imports: blocked here, it stays so there.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()
        self._workers[pipe] = _Worker(process)
        if self._ending:  # the signal came while it was not among them
            process.terminate()

    def _end(self, number: int = 0, frame: FrameType | None = None) -> None:
        self._ending = True
        for worker in self._workers.values():
            worker.process.terminate()

    def _hear(self, pipe: Connection) -> None:
        worker = self._workers[pipe]
        try:
            failure: tuple[type[RelukanError], str] | None = pipe.recv()
        except EOFError:
            self._bury(pipe)
            return
        if failure is None:
            worker.ready = True
            if not self._announced and all(each.ready for each in self._workers.values()):
                self._announced = True
                self._all_ready()
            return
        kind, message = failure
        if self._announced:
            logger.error("a worker cannot serve: %s", message)
            return
        self._failure = kind.__new__(kind, message)  # as it was, whatever its own arguments were
        self._end()

    def _bury(self, pipe: Connection) -> None:
        """Replaces a worker that has ended, unless all shall."""
        worker = self._workers.pop(pipe)
        worker.process.join()
        # What it serves no longer counts; what it has done still does.
        mark_process_dead(worker.process.pid, self._folder)  # type: ignore[no-untyped-call]
        if self._ending:
            return
        ended = f"worker {worker.process.pid} has ended with code {worker.process.exitcode}"
        if not worker.ready and not self._announced:
            self._failure = RelukanError(f"{ended} before it was ready: see its messages above")
            self._end()
            return
        logger.error("%s, another one takes its place", ended)
        if not worker.ready:
            time.sleep(_PAUSE)
        if not self._ending:
            self._start()


def _work(settings: Settings, sock: socket.socket, pipe: Connection, at_once: bool) -> None:
    """A worker."""
    log_to_stderr(settings.log_level)
    threading.Thread(target=_end_with_parent, name="relukan-orphan", daemon=True).start()
    try:
        run_server(settings, sock, Metrics(), lambda grpc_port: pipe.send(None), at_once=at_once)
    except RelukanError as error:
        pipe.send((type(error), str(error)))
        sys.exit(error.exit_code)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
