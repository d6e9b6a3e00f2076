"""How long a fresh process takes to its first answer, and how much memory it then holds."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..bundle import Bundle, open_bundle
from ..errors import RelukanError
from ..runtime._cuda import Cuda
from .results import Startup
from .subjects.bundles import artifact_for

__all__ = ["FirstAnswer", "cold_starts", "first_answer"]

_MARK = "relukan-first-answer"  # of the line that counts: a Python may print others as it starts, packages too

# Says how long it took, and stays until its standard input ends, so that what it holds can be seen.
_CHILD = """
import json, sys, time
begin = time.perf_counter()
import relukan_deploy
imported = time.perf_counter()
from relukan_deploy.errors import RelukanError
path, backend, mark = sys.argv[1:]
begun = time.perf_counter()
try:
    runner = relukan_deploy.load(path, backend=backend)
    loaded = time.perf_counter()
    import numpy  # which loading has imported
    x = numpy.full((1, runner.in_features), 0.5, dtype=numpy.float32)
    asked = time.perf_counter()
    answer = runner(x)
    answered = time.perf_counter()
except RelukanError as error:
    sys.exit(str(error))
if not numpy.isfinite(answer).all():
    sys.exit(f"the first answer is {answer}")
try:
    with open("/proc/self/status") as file:
        most = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
except OSError:  # not Linux, where getrusage tells what the parent held when it started this process, if that is more
    import resource
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(mark, json.dumps([imported - begin, loaded - begun, answered - asked, most]), flush=True)
sys.stdin.read()
"""


@dataclasses.dataclass(frozen=True)
class FirstAnswer:
    """One fresh process, in seconds and bytes.

    Attributes:
        import_seconds: `import relukan_deploy`.
        load_seconds: `load`, its own imports and golden inputs included.
        first_seconds: the first answer after that.
        process_seconds: from starting the process until it has said so.
        host_bytes: its largest resident size.
        device_bytes: what the GPU has less while it stays; None on a CPU.
    """

    import_seconds: float
    load_seconds: float
    first_seconds: float
    process_seconds: float
    host_bytes: int
    device_bytes: int | None


def cold_starts(
    path: str | Path, backends: Sequence[str], *, runs: int = 5, python: str = sys.executable
) -> list[Startup]:
    """For each backend the medians of several fresh processes, after one that is not counted.

    That one brings the files into the disk's cache: a server that starts again finds them there.

    Args:
        path: the bundle.
        backends: in `relukan_deploy.runtime.BACKENDS`.
        runs: processes of each.
        python: the interpreter.

    Returns:
        One for each backend; of environment 0.

    Raises:
        BundleError: the bundle is damaged.
        InputError: it has nothing for a backend.
        RelukanError: the process failed; its own message is passed on.
    """
    bundle = open_bundle(path)
    return [_cold_start(bundle, backend, runs, python) for backend in backends]


def first_answer(path: str | Path, backend: str, *, python: str = sys.executable) -> FirstAnswer:
    """Starts a process that loads a bundle and answers one row.

    Raises:
        RelukanError: the process failed; its own message is passed on.
    """
    with _gpu(backend) as cuda:
        before = cuda.free_bytes() if cuda else 0
        begin = time.perf_counter()
        with _said_by([python, "-c", _CHILD, str(path), backend, _MARK]) as line:
            taken = time.perf_counter() - begin
            device = before - cuda.free_bytes() if cuda else None
            imported, loaded, answered, most = json.loads(line)
    return FirstAnswer(imported, loaded, answered, taken, most, device)


def _cold_start(bundle: Bundle, backend: str, runs: int, python: str) -> Startup:
    artifact = artifact_for(bundle, backend)
    found = [first_answer(bundle.path, backend, python=python) for _ in range(runs + 1)][1:]
    device = [each.device_bytes for each in found if each.device_bytes is not None]
    return Startup(
        engine=backend,
        environment=0,
        file=artifact.file,
        file_bytes=len(bundle.contents[artifact.file]),
        build_seconds=artifact.details.get("build_seconds"),
        import_seconds=statistics.median(each.import_seconds for each in found),
        load_seconds=statistics.median(each.load_seconds for each in found),
        first_seconds=statistics.median(each.first_seconds for each in found),
        host_bytes=int(statistics.median(each.host_bytes for each in found)),
        device_bytes=int(statistics.median(device)) if device else None,
    )


@contextlib.contextmanager
def _gpu(backend: str) -> Iterator[Cuda | None]:
    """The GPU that a backend takes memory of, current, where this process can ask it."""
    try:
        cuda = None if backend in ("auto", "onnxruntime-cpu") else Cuda()
    except RelukanError:
        cuda = None
    with cuda or contextlib.nullcontext():
        yield cuda


@contextlib.contextmanager
def _said_by(command: Sequence[str]) -> Iterator[str]:
    """What a process says after the mark, which lives until the block ends.

    Raises:
        RelukanError: it ended without one.
    """
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith(_MARK)), None)
        if line is None:
            code = process.wait()
            errors.seek(0)
            reason = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
            raise RelukanError(f"a fresh process of {command[0]} left with exit code {code}: {reason}")
        yield line.removeprefix(_MARK)
