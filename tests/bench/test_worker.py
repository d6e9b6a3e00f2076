"""Subjects in another process: they answer as here, and whatever becomes of the process, the others go on."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from interpreters import empty_environment, script, worker_of

from relukan_deploy import __version__
from relukan_deploy.bench.remote import Worker
from relukan_deploy.bench.request import Request, open_here
from relukan_deploy.bench.results import Peaks
from relukan_deploy.bench.sweep import Effort, sweep
from relukan_deploy.errors import InputError, RelukanError

QUICK = Effort(runs=2, rounds=3, burst=1e-4, warm_up=0.0)
PLENTY = 1 << 30
NOTHING = Request("bundle")

Start = Callable[..., Worker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(subjects, classes)``: a worker with these subjects; see `worker_of`."""
    started: list[Worker] = []

    def start(subjects: str = "Spinning()", classes: str = "") -> Worker:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Worker(NOTHING, "spinning", worker_of(folder, subjects, classes)))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


def test_subjects_of_a_bundle_answer_from_another_process(bundle_path: Path) -> None:
    request = Request(str(bundle_path), backends=("onnxruntime-cpu",))
    here, there = open_here(request), Worker(request, "onnxruntime-cpu")
    try:
        assert [each.contender for each in there.subjects] == [each.contender for each in here.subjects]
        assert [each.parameters for each in there.subjects] == [each.parameters for each in here.subjects]
        assert [each.difference for each in there.subjects] == [each.difference for each in here.subjects]
        assert [each.bytes_for(64) for each in there.subjects] == [each.bytes_for(64) for each in here.subjects]
        assert there.environment.versions == here.environment.versions
        points = sweep([*here.subjects, *there.subjects], (1, 64), QUICK, memory=PLENTY)
    finally:
        here.close()
        there.close()
    for at_home, away in zip(points[:2], points[2:], strict=True):
        for one, other in zip(at_home, away, strict=True):
            assert one.timing is not None
            assert other.timing is not None
            assert [len(rounds) for rounds in other.timing.rounds] == [len(rounds) for rounds in one.timing.rounds]


def test_what_cannot_be_run_there_is_skipped_there(bundle_path: Path) -> None:
    worker = Worker(Request(str(bundle_path), backends=("tensorrt",)), "tensorrt")
    worker.close()
    assert worker.subjects == []
    assert [each.what for each in worker.skipped] == ["this network: tensorrt"]
    assert "has no tensorrt artifact" in worker.skipped[0].why


def test_the_machine_is_measured_there(start: Start) -> None:
    worker = start()
    peaks = worker.peaks("cpu", "fp32")
    assert isinstance(peaks, Peaks)
    assert (peaks.device, peaks.precision) == ("cpu", "fp32")
    with pytest.raises(RelukanError, match="bfloat16"):
        worker.peaks("cpu", "bf16")


def test_a_difference_that_preparing_finds_is_known_here(start: Start) -> None:
    (subject,) = start().subjects
    assert subject.difference is None
    subject.prepare(1)
    assert subject.difference == 1e-7


def test_times_of_numpy_cross_the_pipe(start: Start) -> None:
    numpys = """
        class Numpys(Spinning):
            def turn(self, count):
                import numpy
                return numpy.linspace(1, count, count)
    """
    (subject,) = start("Numpys()", numpys).subjects
    assert subject.prepare(1)(3) == [1.0, 2.0, 3.0]


def test_rows_do_not_cross_the_pipe(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = heard = 0
    say, hear = Worker._say, Worker._hear

    def counting_say(self: Worker, message: object) -> bytes:
        nonlocal said
        said += len(repr(message))
        return say(self, message)

    def counting_hear(self: Worker) -> bytes:
        nonlocal heard
        line = hear(self)
        heard += len(line)
        return line

    worker = Worker(Request(str(bundle_path), backends=("onnxruntime-cpu",)), "onnxruntime-cpu")
    monkeypatch.setattr(Worker, "_say", counting_say)
    monkeypatch.setattr(Worker, "_hear", counting_hear)
    turn = worker.subjects[0].prepare(65536)
    turn(2)
    worker.close()
    assert said < 200
    assert heard < 200


def test_prints_and_reads_of_packages_do_not_break_the_protocol(start: Start) -> None:
    chatty = """
        import os, subprocess, sys
        print("importing")
        class Chatty(Spinning):
            def turn(self, count):
                print("turning", flush=True)
                os.write(1, b"from C\\n")
                subprocess.run(["echo", "from a process"], check=True)
                assert subprocess.run(["cat"], capture_output=True, check=True).stdout == b""
                assert sys.stdin.read() == ""
                return [1e-5] * count
    """
    (subject,) = start("Chatty()", chatty).subjects
    turn = subject.prepare(1)
    assert turn(2) == turn(2) == [1e-5, 1e-5]


# --- what goes wrong there


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("raise RelukanError('it has no room')", "it has no room"),
        ("raise MemoryError", "MemoryError"),
        ("raise RuntimeError('an illegal address')", "RuntimeError: an illegal address"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_an_error_there_is_an_error_here_and_the_process_goes_on(start: Start, statement: str, expected: str) -> None:
    failing = f"""
        from relukan_deploy.errors import RelukanError
        class Failing(Spinning):
            def prepare(self, batch):
                {statement}
    """
    first, second = start("Failing(), Spinning('other')", failing).subjects
    with pytest.raises(RelukanError) as caught:
        first.prepare(1)
    assert str(caught.value) == expected
    assert second.prepare(1)(1) == [1e-5]


DEATHS = [
    ("os.kill(os.getpid(), 9)", "its process was ended by SIGKILL, perhaps for want of memory"),
    ("ctypes.string_at(0)", "its process was ended by SIGSEGV"),
    ("os.abort()", "its process was ended by SIGABRT"),
    ("os._exit(5)", "its process ended with exit code 5"),
]


@pytest.mark.parametrize(("statement", "expected"), DEATHS)
def test_one_that_dies_is_skipped_with_its_last_words_and_the_others_go_on(
    start: Start, statement: str, expected: str
) -> None:
    dying = f"""
        import ctypes, os, sys
        class Dying(Spinning):
            def prepare(self, batch):
                if batch == 8:
                    print("\\nfirst\\n\\nthe arena is full", "very", "full", sep="\\n", file=sys.stderr, flush=True)
                    {statement}
                return super().prepare(batch)
    """
    worker, others = start("Dying()", dying), start()
    points, fine = sweep([*worker.subjects, *others.subjects], (1, 8, 64), QUICK, memory=PLENTY)
    assert points[0].timing is not None
    assert points[1].skipped == f"{expected}: the arena is full / very / full"
    assert points[2].skipped == expected
    assert all(point.timing and len(point.timing.rounds) == 2 for point in fine)
    (skipped,) = worker.skipped
    assert skipped.what == "spinning"
    assert skipped.why == f"{expected}; its last words: the arena is full / very / full"
    assert others.skipped == []


def test_one_that_is_killed_in_the_middle_of_a_turn_is_skipped(start: Start) -> None:
    killed = """
        import os
        class Killed(Spinning):
            turns = 0
            def turn(self, count):
                self.turns += 1
                if self.turns == 6:
                    os.kill(os.getpid(), 9)
                return super().turn(count)
    """
    worker, others = start("Killed()", killed), start()
    points, fine = sweep([*worker.subjects, *others.subjects], (1, 8), QUICK, memory=PLENTY)
    assert {point.skipped for point in points} == {"its process was ended by SIGKILL, perhaps for want of memory"}
    assert all(point.timing for point in fine)


def test_one_that_dies_while_it_opens_says_so(tmp_path: Path) -> None:
    python = script(tmp_path / "python", f'echo \'{{"version": "{__version__}"}}\'; echo no driver >&2; kill -9 $$')
    with pytest.raises(RelukanError) as caught:
        Worker(NOTHING, "tensorrt", python)
    assert not isinstance(caught.value, InputError)
    assert str(caught.value) == "its process was ended by SIGKILL, perhaps for want of memory: no driver"


# --- interpreters that cannot take part


def refused(python: str) -> str:
    with pytest.raises(InputError) as caught:
        Worker(NOTHING, "pykan", python)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "reason"), [("nothing/python", "No such file or directory"), ("", "Permission denied")]
)
def test_what_cannot_be_started(tmp_path: Path, name: str, reason: str) -> None:
    assert refused(f"{tmp_path}/{name}") == (
        f"{tmp_path}/{name} cannot be started ({reason}): expected the path of a Python interpreter, "
        "such as that of a virtual environment, venv/bin/python"
    )


def test_a_python_without_this_package_is_told_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # away from the repository, where any Python finds the package
    monkeypatch.delenv("PYTHONPATH", raising=False)
    python = empty_environment(tmp_path / "venv")
    message = refused(str(python))
    assert message.startswith(f"{python} has no relukan-deploy that can measure: its process ended with exit code 1: ")
    assert "No module named 'relukan_deploy'" in message
    assert message.endswith(f". Install it there: {python} -m pip install 'relukan-deploy[bench]=={__version__}'")


def test_a_python_with_another_version_is_told_both(tmp_path: Path) -> None:
    python = script(tmp_path / "python", 'echo \'{"version": "0.0.7"}\'; cat > /dev/null')
    assert refused(python) == (
        f"{python} has relukan-deploy 0.0.7, and this is {__version__}. "
        f"Install it there: {python} -m pip install 'relukan-deploy[bench]=={__version__}'"
    )


@pytest.mark.parametrize("text", ["echo hello", "echo '{}'", "true"])
def test_what_says_something_else_and_ends_is_no_python_with_this_package(tmp_path: Path, text: str) -> None:
    python = script(tmp_path / "python", text)
    assert refused(python).startswith(f"{python} has no relukan-deploy that can measure: its process ended")


def test_what_says_something_else_for_ever_is_no_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relukan_deploy.bench.remote._PATIENCE", 0.1)
    python = script(tmp_path / "python", "exec yes")
    assert refused(python).startswith(f"{python} is no Python with relukan-deploy. Install it there: ")


# --- the end


def gone(pid: int) -> bool:
    """Whether a process ends within a few seconds."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_closing_ends_the_process_and_what_it_started(start: Start) -> None:
    parent = """
        import subprocess
        class Parent(Spinning):
            def prepare(self, batch):
                self.difference = float(subprocess.Popen(["sleep", "600"]).pid)
                return self.turn
    """
    worker = start("Parent()", parent)
    (subject,) = worker.subjects
    subject.prepare(1)
    worker.close()
    assert subject.difference is not None
    assert gone(int(subject.difference))
    assert worker._process.returncode == 0


def test_closing_one_that_is_busy_kills_it(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = """
        import time
        class Busy(Spinning):
            def turn(self, count):
                time.sleep(600)
    """
    worker = start("Busy()", busy)
    turn = worker.subjects[0].prepare(1)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("relukan_deploy.bench.remote._PATIENCE", 0.1)
    before = signal.signal(signal.SIGALRM, interrupted)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    with pytest.raises(KeyboardInterrupt):
        turn(1)
    signal.signal(signal.SIGALRM, before)
    worker.subjects[0].release()  # as a sweep does, which must not wait for the answer
    worker.close()
    assert worker._process.returncode == -9


def test_a_worker_ends_when_the_one_who_asks_has_gone(tmp_path: Path) -> None:
    python = worker_of(tmp_path, "Spinning()")
    code = (
        "import os, sys\n"
        "from relukan_deploy.bench.remote import Worker\n"
        "from relukan_deploy.bench.request import Request\n"
        "worker = Worker(Request('bundle'), 'spinning', sys.argv[1])\n"
        "print(worker._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    read, write = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", code, python],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)],
    )
    os.close(write)
    with os.fdopen(read) as said:
        started = int(said.readline())
    os.waitpid(pid, 0)
    assert gone(started)
