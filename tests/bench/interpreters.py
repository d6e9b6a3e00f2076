"""Stand-ins for another Python: scripts that are started as one, and made by the test."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

__all__ = ["empty_environment", "script", "worker_of"]

_WORKER = """
import relukan_deploy.bench.worker as worker
from relukan_deploy.bench.environment import describe
from relukan_deploy.bench.request import Here
from relukan_deploy.bench.results import Contender

class Spinning:
    parameters, difference = 7, None

    def __init__(self, network="spinning"):
        self.contender = Contender(network, (2, 1), "torch")

    def bytes_for(self, batch):
        return 8 * batch

    def prepare(self, batch):
        self.difference = 1e-7
        return self.turn

    def turn(self, count):
        return [1e-5] * count

    def split(self):
        return None

    def release(self):
        pass

    def close(self):
        pass

print("a banner, as some environments have one", flush=True)

def open_here(request):
    exec({classes!r}, globals())
    return Here(request, [{subjects}], [])

worker.open_here = open_here
worker.main()
"""


def script(path: Path, text: str) -> str:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def worker_of(folder: Path, subjects: str, classes: str = "") -> str:
    """What is started as an interpreter is a worker of this Python, with these subjects instead of a request's.

    Args:
        subjects: their expressions, of `Spinning` and its subclasses.
        classes: the source of the subclasses.
    """
    source = folder / "worker.py"
    source.write_text(_WORKER.format(subjects=subjects, classes=textwrap.dedent(classes)))
    return script(folder / "python", f'exec "{sys.executable}" "{source}"')


def empty_environment(folder: Path) -> Path:
    """The Python of a virtual environment with nothing in it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin" / "python"
