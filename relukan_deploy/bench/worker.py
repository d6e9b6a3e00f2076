"""A process that opens subjects and times them when it is their turn: `python -m relukan_deploy.bench.worker`.

It speaks JSON, one message a line: first it says its version; then it is given a `Request` and says what it
opened; then it is asked [method, subject, argument] and answers {"value": …} or {"error": …}. Rows never cross
the pipe: inputs are made here. It ends when its standard input does.

The pipe is out of reach for whatever is imported here: what that prints goes to standard error, and what it
reads is empty.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import IO, Any

import msgspec

from .. import __version__
from ..errors import RelukanError
from .request import Opened, Request, open_here
from .results import Contender, Environment, Skipped
from .timing import Turn

__all__ = ["Greeting", "Offer", "Offered", "main", "serve"]


@dataclasses.dataclass(frozen=True)
class Greeting:
    """What a worker says first, in every version."""

    version: str


@dataclasses.dataclass(frozen=True)
class Offered:
    """A subject of a worker, as the other side sees it."""

    contender: Contender
    parameters: int
    difference: float | None


@dataclasses.dataclass(frozen=True)
class Offer:
    """What a worker opened."""

    subjects: tuple[Offered, ...]
    skipped: tuple[Skipped, ...]
    environment: Environment


def main() -> None:
    with os.fdopen(os.dup(0), "rb") as asked, os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        sys.stdin, sys.stdout = os.fdopen(0), sys.stderr
        serve(asked, answers)


def serve(asked: IO[bytes], answers: IO[bytes]) -> None:
    """Answers until nothing more is asked."""
    _say(answers, Greeting(__version__))
    line = asked.readline()
    if not line:
        return
    opened = open_here(msgspec.json.decode(line, type=Request))
    offered = tuple(Offered(each.contender, each.parameters, each.difference) for each in opened.subjects)
    _say(answers, Offer(offered, tuple(opened.skipped), opened.environment))
    answer = _answering(opened)
    for line in asked:
        try:
            _say(answers, {"value": answer(*msgspec.json.decode(line))})
        except Exception as error:  # whatever a package raises, the other side should know
            kind = "" if isinstance(error, RelukanError) else f"{type(error).__name__}: "
            _say(answers, {"error": f"{kind}{error}".removesuffix(": ")})
    opened.close()


def _answering(opened: Opened) -> Callable[[str, int, Any], Any]:
    turns: dict[int, Turn] = {}

    def answer(method: str, index: int, argument: Any) -> Any:
        if method == "peaks":
            return opened.peaks(*argument)
        subject = opened.subjects[index]
        if method == "prepare":
            turns[index] = subject.prepare(argument)
            return subject.difference  # which preparing may have found
        if method == "turn":
            return [float(seconds) for seconds in turns[index](argument)]  # of numpy, perhaps
        if method == "release":
            turns.pop(index, None)
            return subject.release()
        if method == "split":
            return subject.split()
        return subject.bytes_for(argument)

    return answer


def _say(answers: IO[bytes], message: Any) -> None:
    answers.write(msgspec.json.encode(message) + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
