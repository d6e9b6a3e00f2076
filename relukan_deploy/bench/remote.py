"""Subjects in other processes, of this Python or another one: the side that asks. See worker.py."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import msgspec

from .. import __version__
from ..errors import InputError, RelukanError
from ..spec import Precision
from .limits import Device
from .request import Request
from .results import Environment, Peaks, Skipped, Split
from .subjects import Subject
from .timing import Turn
from .worker import Greeting, Offer, Offered

__all__ = ["Worker"]

_MODULE = "relukan_deploy.bench.worker"
_PATIENCE = 2.0  # seconds that a worker has to end by itself
_MOST_BANNER = 100  # lines
_LAST_BYTES, _LAST_LINES = 4096, 3  # of standard error, that are told of one that died


class Worker:
    """A process with the subjects of a request; see `Opened`.

    One that dies later is no error: its subjects fail, and what ended it is among `skipped`.

    Args:
        request: what it opens.
        name: what it is for, in messages.
        python: its interpreter.

    Raises:
        InputError: the interpreter cannot be started, or has no relukan-deploy, or another version of it.
        RelukanError: it died while it opened the subjects.
    """

    environment: Environment

    def __init__(self, request: Request, name: str, python: str = sys.executable) -> None:
        self.subjects: Sequence[Subject] = ()
        self.skipped: list[Skipped] = []
        self._name = name
        self._dead: str | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        try:
            # A session of its own: what it starts can be ended with it, and Ctrl-C is for this process.
            self._process = subprocess.Popen(
                [python, "-m", _MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            raise InputError(
                f"{python} cannot be started ({error.strerror}): expected the path of a Python interpreter, "
                "such as that of a virtual environment, venv/bin/python"
            ) from error
        try:
            self._greet(python)
            offer = msgspec.json.decode(self._say(request), type=Offer)
        except BaseException:
            self.close()
            raise
        self.subjects = [_Remote(self, index, offered) for index, offered in enumerate(offer.subjects)]
        self.skipped += offer.skipped
        self.environment = offer.environment

    def ask(self, method: str, index: int, argument: Any = None) -> Any:
        """What the worker answers.

        Raises:
            RelukanError: it says why not, or has died.
        """
        answer = msgspec.json.decode(self._say([method, index, argument]))
        if "error" in answer:
            raise RelukanError(answer["error"])
        return answer["value"]

    def peaks(self, device: Device, precision: Precision) -> Peaks:
        return msgspec.convert(self.ask("peaks", 0, [device, precision]), Peaks)

    def close(self) -> None:
        """Ends the process and whatever it has started."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        self._errors.close()

    def _greet(self, python: str) -> None:
        install = f"Install it there: {python} -m pip install 'relukan-deploy[bench]=={__version__}'"
        try:
            version = self._version()
        except RelukanError as error:
            raise InputError(f"{python} has no relukan-deploy that can measure: {error}. {install}") from error
        if version is None:
            raise InputError(f"{python} is no Python with relukan-deploy. {install}")
        if version != __version__:
            raise InputError(f"{python} has relukan-deploy {version}, and this is {__version__}. {install}")

    def _version(self) -> str | None:
        """What the worker says first, after what its Python may print as it starts."""
        for _ in range(_MOST_BANNER):
            with contextlib.suppress(msgspec.DecodeError):
                return msgspec.json.decode(self._hear(), type=Greeting).version
        return None

    def _say(self, message: Any) -> bytes:
        """Says something, and gives the answer.

        Raises:
            RelukanError: the process has died.
        """
        if self._dead:
            raise RelukanError(self._dead)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # why, is told below
            self._process.stdin.write(msgspec.json.encode(message) + b"\n")
            self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> bytes:
        assert self._process.stdout is not None
        try:
            line = self._process.stdout.readline()
        except BaseException:
            self._dead = "it was interrupted"  # and what it says next would answer another question
            raise
        if not line.endswith(b"\n"):
            self._dead = f"its process {self._end()}"
            last = self._last_words()
            self.skipped.append(Skipped(self._name, f"{self._dead}; its last words: {last}" if last else self._dead))
            raise RelukanError(f"{self._dead}: {last}" if last else self._dead)
        return line

    def _end(self) -> str:
        """How the process has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        code = self._process.returncode
        if code is None:
            return "answers no more"
        if code >= 0:
            return f"ended with exit code {code}"
        return f"was ended by {signal.Signals(-code).name}" + (", perhaps for want of memory" if code == -9 else "")

    def _last_words(self) -> str:
        """The end of what it wrote to standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _LAST_BYTES))
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        return " / ".join([line.strip() for line in lines if line.strip()][-_LAST_LINES:])


class _Remote:
    """A subject of a worker, as a `Subject` here."""

    def __init__(self, worker: Worker, index: int, offered: Offered) -> None:
        self.contender = offered.contender
        self.parameters = offered.parameters
        self.difference = offered.difference
        self._worker, self._index = worker, index

    def bytes_for(self, batch: int) -> int:
        return int(self._worker.ask("bytes_for", self._index, batch))

    def prepare(self, batch: int) -> Turn:
        self.difference = self._worker.ask("prepare", self._index, batch)
        return functools.partial(self._worker.ask, "turn", self._index)

    def split(self) -> Split | None:
        return msgspec.convert(self._worker.ask("split", self._index), Split | None)

    def release(self) -> None:
        with contextlib.suppress(RelukanError):  # where it has died, there is nothing to free
            self._worker.ask("release", self._index)

    def close(self) -> None:
        """The process is closed, all at once."""
