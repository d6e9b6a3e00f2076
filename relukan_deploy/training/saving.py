"""What training leaves on disk: the best network so far, and how to go on after an interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from .._files import replacing_file, sha256, state_path
from ..checkpoint import pickled, save
from ..errors import CheckpointError, InputError, RelukanError
from ..importers.own import MEANING
from ..model import ReLUKAN
from .course import Course
from .examples import Examples
from .memory import is_out_of_memory
from .options import Options
from .processes import Processes
from .record import Best, Record

__all__ = ["Saver"]

_FORMAT = "relukan-deploy training 1"
_LEAST_PAUSE = 1.0  # seconds between saves
_MOST_SHARE = 0.05  # of the time spent on them


class Saver:
    """Writes the best network and, for `resume`, the state of the training; of torchrun's processes, the first does.

    Args:
        out: the checkpoint. The state lies beside it, see `state_path`, until training is complete.
        options, examples: those of the training, without which a state is of no use.
        processes: that train together.
    """

    def __init__(self, out: Path, options: Options, examples: Examples, processes: Processes) -> None:
        self._out = out
        self._is_writer = processes.rank == 0
        self._options = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(options).items()
        }
        self._data = sha256(examples.x.tobytes() + examples.y.tobytes())
        self._meaning = {name: getattr(examples, name) for name in MEANING}
        self._written: ReLUKAN | None = None
        self._next = 0.0

    def write(self, course: Course, record: Record) -> None:
        """Writes both, unless that was done a moment ago.

        Raises:
            InputError: they cannot be written.
        """
        began = time.monotonic()
        if began < self._next or not self._is_writer:
            return
        header = {"format": _FORMAT, "options": self._options, "data": self._data}
        path = state_path(self._out)
        content = pickled({**header, "course": course.state(), "record": record.state()})
        with _telling(path), replacing_file(path) as written:
            written.write_bytes(content)
        self.write_best(record.best)
        now = time.monotonic()
        self._next = now + max(_LEAST_PAUSE, (now - began) / _MOST_SHARE)

    def write_best(self, best: Best) -> None:
        """Writes the checkpoint, unless the file already holds this network.

        Raises:
            InputError: it cannot be written.
        """
        if self._is_writer and best.model is not None and best.model is not self._written:
            with _telling(self._out):
                save(best.model, self._out, **self._meaning)
            self._written = best.model

    def complete(self) -> None:
        """Removes the state: there is nothing left to go on with."""
        if self._is_writer:
            state_path(self._out).unlink(missing_ok=True)

    def resume(self, course: Course, record: Record) -> None:
        """Takes both up where they were last written; where they never were, they remain as they are.

        Raises:
            CheckpointError: the state cannot be read.
            InputError: it is of other data, or of other options.
        """
        path = state_path(self._out)
        if not path.exists():
            return
        with _reading(path):
            with zipfile.ZipFile(path) as archive:
                # torch.load compares no checksums, and leaves a tensor undefined that is marked as a folder.
                if archive.testzip() is not None or any(entry.external_attr & 0x10 for entry in archive.infolist()):
                    raise ValueError("a checksum does not match, or a tensor is a folder")
            content = torch.load(path, map_location="cpu", weights_only=True)
            found, options, data = content["format"], dict(content["options"]), content["data"]
        if found != _FORMAT:
            raise CheckpointError(f"{path} is a {found!r}, this release reads {_FORMAT!r}: begin anew, without resume")
        for name, value in self._options.items():
            if options.get(name) != value:
                raise InputError(
                    f"{path} was begun with {name} {options.get(name)!r}, not {value!r}: "
                    "give the same again to go on, or begin anew, without resume"
                )
        if data != self._data:
            raise InputError(f"{path} was begun with other data: give the same to go on, or begin anew, without resume")
        with _reading(path):
            course.load(content["course"])
            record.load(content["record"])


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """In which whatever a damaged state leads to becomes a CheckpointError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, RelukanError) or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
            raise
        raise CheckpointError(f"{path} cannot be read: begin anew, without resume") from error


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
