"""relukan-bench, as a person and as a program meet it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from relukan_deploy.bench import limits
from relukan_deploy.bench.environment import describe
from relukan_deploy.bench.results import Conditions, Contender, Results, Series, Split
from relukan_deploy.bench.stored import read, to_json
from relukan_deploy.bench.sweep import Effort, sweep
from relukan_deploy.bench.timing import Turn
from relukan_deploy.cli.bench import main

Capture = pytest.CaptureFixture[str]

BRIEF = ("--quick", "--batch", "1", "8")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a base install is, and without the seconds that measuring the machine's peaks takes."""
    for name in ("torch", "onnx", "plotly", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(limits, "_SECONDS", 0.01)


@pytest.fixture(scope="module")
def measured(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a short run on this machine."""
    path = tmp_path_factory.mktemp("measured") / "a.json"
    path.write_text(to_json(spun({"this network": 1e-4, "pykan": 2e-4})), encoding="utf-8")
    return path


class Spinning:
    """A subject whose calls take their time, as the processor's clock tells it: that of others does not count."""

    parameters = 1
    difference: float | None = None

    def __init__(self, network: str, seconds: float) -> None:
        self.contender = Contender(network, (2, 1), "torch")
        self._seconds = seconds

    def bytes_for(self, batch: int) -> int:
        return batch

    def prepare(self, batch: int) -> Turn:
        def spin() -> float:
            begin = time.thread_time()
            while time.thread_time() < begin + self._seconds:
                pass
            return time.thread_time() - begin

        return lambda count: [spin() for _ in range(count)]

    def split(self) -> Split | None:
        return None

    def release(self) -> None: ...

    def close(self) -> None: ...


def spun(seconds: dict[str, float]) -> Results:
    """Results of subjects that take so many seconds, measured on real clocks."""
    subjects = [Spinning(network, each) for network, each in seconds.items()]
    effort = Effort(runs=5, rounds=3, burst=1e-3, warm_up=1e-3)
    points = sweep(subjects, (1, 64), effort, memory=1 << 30)
    series = [Series(each.contender, 0, 1, None, found) for each, found in zip(subjects, points, strict=True)]
    place = dataclasses.replace(describe("relukan-bench bundle", 1), before=Conditions())  # however busy it is here
    return Results("bundle", (place,), tuple(series))


def failed(capsys: Capture, arguments: Sequence[object], code: int) -> str:
    """The last line on standard error."""
    try:
        left = main([str(each) for each in arguments])
    except SystemExit as usage:
        left = int(usage.code or 0)
    out, err = capsys.readouterr()
    assert left == code, err
    assert "Traceback" not in err
    assert out == ""
    return err.splitlines()[-1]


# --- measuring


def test_a_table_is_printed(bundle_path: Path, bare: None, capsys: Capture) -> None:
    assert main([str(bundle_path), *BRIEF]) == 0
    out, err = capsys.readouterr()
    assert "this network" in out
    assert "onnxruntime-cpu" in out
    assert re.search(r"^mlp: .*torch.*pip install 'relukan-deploy\[bench\]'", out, re.MULTILINE)
    assert f"relukan-bench {bundle_path} --quick --batch 1 8" in out.replace("\n", " ")
    assert err == ""


def test_json_is_all_there_is_on_standard_output(
    bundle_path: Path, bare: None, tmp_path: Path, capsys: Capture
) -> None:
    assert main([str(bundle_path), *BRIEF, "--json", "--threads", "2", "--runs", "3"]) == 0
    out, err = capsys.readouterr()
    (tmp_path / "a.json").write_text(out, encoding="utf-8")
    found = read(tmp_path / "a.json")
    assert [point.batch for point in found.series[0].points] == [1, 8]
    assert all(point.timing and len(point.timing.rounds) == 3 for each in found.series for point in each.points)
    (environment,) = found.environments
    assert environment.threads == 2
    assert environment.command == f"relukan-bench {bundle_path} --quick --batch 1 8 --json --threads 2 --runs 3"
    assert "this network" in err


def test_backends_are_chosen(bundle_path: Path, bare: None, capsys: Capture) -> None:
    assert main([str(bundle_path), *BRIEF, "--backend", "onnxruntime-cpu", "onnxruntime-cuda", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["contender"]["engine"] for each in found["series"]} >= {"onnxruntime-cpu"}
    skipped = {each["what"] for each in found["skipped"]}
    measured = {f"this network: {each['contender']['engine']}" for each in found["series"]}
    assert "this network: onnxruntime-cuda" in skipped | measured


def test_a_bundle_called_merge_is_reached_by_its_path(
    copied: Path, bare: None, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    copied.rename(copied.parent / "merge")
    monkeypatch.chdir(copied.parent)
    assert main(["./merge", *BRIEF]) == 0
    assert "this network" in capsys.readouterr().out


@pytest.mark.slow
def test_the_multilayer_perceptrons_are_always_there(bundle_path: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("torch")
    for package in ("plotly", "matplotlib"):
        pytest.importorskip(package)
    page, plot = tmp_path / "a.html", tmp_path / "a.png"
    assert main([str(bundle_path), *BRIEF, "--order", "4", "--json", "--html", str(page), "--plot", str(plot)]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    networks = {each["contender"]["network"] for each in found["series"]}
    assert networks == {"this network", "mlp, same widths", "mlp, same parameters"}
    assert err.splitlines()[-2:] == [f"→ {page}", f"→ {plot}"]
    assert page.read_text(encoding="utf-8").lstrip().startswith("<!")
    assert plot.read_bytes().startswith(b"\x89PNG")


# --- what is refused before anything is measured


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bundle", "--json", "--markdown"],
        ["bundle", "--backend", "cuda"],
        ["bundle", "--batch", "0"],
        ["bundle", "--batch", "many"],
        ["bundle", "--threads", "-1"],
        ["bundle", "--against", "pykan,torch"],
        ["merge"],
        ["compare", "a.json"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2


def test_an_unknown_network_is_told_the_known_ones(capsys: Capture) -> None:
    assert failed(capsys, ["bundle", "--against", "pykan,kan"], 2) == (
        "relukan-bench: error: argument --against: no network is called 'kan': "
        "choose from pykan, efficient-kan, fast-kan, relu-kan, mlp"
    )


def test_a_folder_that_is_no_bundle_is_2(tmp_path: Path, capsys: Capture) -> None:
    assert failed(capsys, [tmp_path], 2).startswith(f"relukan-bench: error: {tmp_path} is not a bundle")


def test_a_backend_without_a_file_is_2(bundle_path: Path, capsys: Capture) -> None:
    assert "has no tensorrt artifact" in failed(capsys, [bundle_path, "--backend", "tensorrt"], 2)


@pytest.mark.parametrize("option", ["--target", "--error"])
def test_options_of_equal_accuracy_need_it(bundle_path: Path, capsys: Capture, option: str) -> None:
    message = failed(capsys, [bundle_path, option, "0.5"], 2)
    assert message == f"relukan-bench: error: {option} is a matter of --equal-accuracy DATA"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("pykan=python", "--python pykan=PATH: it is not measured: measured are onnxruntime-cpu, mlp"),
        ("cuda=python", "--python cuda=python: 'cuda' is none of tensorrt, tensorrt-rtx,"),
        ("/nowhere/python", "/nowhere/python cannot be started (No such file or directory)"),
        ("mlp=/nowhere/python", "/nowhere/python cannot be started (No such file or directory)"),
        ("/with=sign/python", "/with=sign/python cannot be started (No such file or directory)"),
    ],
)
def test_an_interpreter_that_is_none_is_2(bundle_path: Path, capsys: Capture, given: str, expected: str) -> None:
    message = failed(capsys, [bundle_path, "--backend", "onnxruntime-cpu", "--python", given], 2)
    assert message.startswith(f"relukan-bench: error: {expected}")


@pytest.mark.parametrize(
    ("option", "name", "expected"),
    [
        ("--html", "a.txt", "must end in .html"),
        ("--plot", "a.jpg", "must end in .png"),
        ("--html", "none/a.html", "there is no folder"),
        ("--plot", "none/a.png", "there is no folder"),
        ("--html", "folder.html", "is a folder, expected the name of a file"),
    ],
)
@pytest.mark.parametrize("command", [[], ["merge"]])
def test_a_report_that_cannot_be_written_is_2_at_once(
    bundle_path: Path,
    measured: Path,
    tmp_path: Path,
    capsys: Capture,
    command: str,
    option: str,
    name: str,
    expected: str,
) -> None:
    (tmp_path / "folder.html").mkdir()
    what = [bundle_path] if command == "bench" else ["merge", measured]
    message = failed(capsys, [*what, option, tmp_path / name], 2)
    assert f"error: {option} {tmp_path / name}" in message
    assert expected in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_report_in_a_folder_that_cannot_be_written_is_2(bundle_path: Path, tmp_path: Path, capsys: Capture) -> None:
    tmp_path.chmod(0o500)
    assert "cannot be written" in failed(capsys, [bundle_path, "--html", tmp_path / "a.html"], 2)


@pytest.mark.parametrize(
    ("option", "name", "package"), [("--html", "a.html", "plotly"), ("--plot", "a.png", "matplotlib")]
)
def test_a_report_whose_package_is_missing_is_4_at_once(
    bundle_path: Path, tmp_path: Path, capsys: Capture, bare: None, option: str, name: str, package: str
) -> None:
    message = failed(capsys, [bundle_path, option, tmp_path / name], 4)
    assert f"needs the package {package!r}, which is not installed" in message


# --- merging


def test_a_single_file_is_printed_again(measured: Path, capsys: Capture) -> None:
    assert main(["merge", str(measured)]) == 0
    out, err = capsys.readouterr()
    assert "pykan" in out
    assert err == ""


def test_merged_results_are_results(measured: Path, tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / "b.json"
    other.write_text(measured.read_text().replace('"mlp', '"x').replace('"date": "2', '"date": "1'))
    assert main(["merge", str(measured), str(other), "--json"]) == 0
    (tmp_path / "both.json").write_text(capsys.readouterr().out, encoding="utf-8")
    found = read(tmp_path / "both.json")
    assert len(found.environments) == 2
    assert [each.environment for each in found.series] == [0, 0, 1, 1]


def test_markdown_is_all_there_is(measured: Path, capsys: Capture) -> None:
    assert main(["merge", str(measured), "--markdown"]) == 0
    out, err = capsys.readouterr()
    assert out.count("| --- |") or out.count("|---") or out.count("---:")
    assert err == ""


def test_reports_are_made_of_a_file(measured: Path, tmp_path: Path, capsys: Capture) -> None:
    for package in ("plotly", "matplotlib"):
        pytest.importorskip(package)
    assert main(["merge", str(measured), "--html", str(tmp_path / "a.html"), "--plot", str(tmp_path / "a.png")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.html", "a.png"}


def test_a_file_that_is_not_there_is_2(tmp_path: Path, measured: Path, capsys: Capture) -> None:
    message = failed(capsys, ["merge", measured, tmp_path / "none.json"], 2)
    assert message == f"relukan-bench merge: error: {tmp_path}/none.json cannot be read: No such file or directory"


# --- comparing

NAMES = ("this network", "pykan", "efficient-kan")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("before") / "old.json"
    path.write_text(to_json(spun(dict.fromkeys(NAMES, 2e-4))), encoding="utf-8")
    return path


def test_a_slowdown_of_30_percent_is_named_and_leaves_with_1(before: Path, tmp_path: Path, capsys: Capture) -> None:
    slower = spun({**dict.fromkeys(NAMES, 2e-4), "pykan": 2.6e-4})
    (tmp_path / "new.json").write_text(to_json(slower), encoding="utf-8")
    assert main(["compare", str(before), str(tmp_path / "new.json")]) == 1
    out, err = capsys.readouterr()
    named = [line for line in out.splitlines() if line.split(":")[0] in NAMES]
    assert sorted(line.split("  ")[0] for line in named) == ["pykan: torch, 1 row", "pykan: torch, 64 rows"]
    assert all(" 1.3" in line or " 1.2" in line for line in named)
    assert "2 of 6 times differ by more than noise" in out
    assert err.startswith(
        "relukan-bench compare: error: 2 of 6 times are slower by more than 5% and than noise, the most pykan"
    )


def test_without_a_change_it_is_silent_and_leaves_with_0(before: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "new.json").write_text(to_json(spun(dict.fromkeys(NAMES, 2e-4))), encoding="utf-8")
    assert main(["compare", str(before), str(tmp_path / "new.json")]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"None of 6 times differs by more than noise, which here is about \d+%\.\n", out)
    assert err == ""


def test_an_improvement_is_shown_and_leaves_with_0(before: Path, tmp_path: Path, capsys: Capture) -> None:
    faster = spun({**dict.fromkeys(NAMES, 2e-4), "this network": 1e-4})
    (tmp_path / "new.json").write_text(to_json(faster), encoding="utf-8")
    assert main(["compare", str(before), str(tmp_path / "new.json")]) == 0
    out, _ = capsys.readouterr()
    assert out.count("this network: torch") == 2
    assert "pykan" not in out


def test_a_wider_threshold_lets_a_slowdown_pass(before: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "new.json").write_text(to_json(spun(dict.fromkeys(NAMES, 2.6e-4))), encoding="utf-8")
    assert main(["compare", str(before), str(tmp_path / "new.json"), "--threshold", "0.5"]) == 0
    assert "6 of 6 times differ by more than noise" in capsys.readouterr().out


def test_differences_are_there_for_programs_too(before: Path, tmp_path: Path, capsys: Capture) -> None:
    slower = spun({**dict.fromkeys(NAMES[:2], 2e-4), "pykan": 2.6e-4})
    (tmp_path / "new.json").write_text(to_json(slower), encoding="utf-8")
    assert main(["compare", str(before), str(tmp_path / "new.json"), "--json"]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    regressions = [each for each in found["differences"] if each["is_regression"]]
    assert {(each["contender"]["network"], each["batch"]) for each in regressions} == {("pykan", 1), ("pykan", 64)}
    assert found["only_old"] == ["efficient-kan: torch, 1 row", "efficient-kan: torch, 64 rows"]
    assert "In the old file alone: efficient-kan: torch, 1 row" in err


def test_files_with_nothing_in_common_are_2(before: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "new.json").write_text(to_json(spun({"mlp, same widths": 1e-4})), encoding="utf-8")
    assert "no point in common" in failed(capsys, ["compare", before, tmp_path / "new.json"], 2)


@pytest.mark.parametrize("threshold", ["-1", "nan"])
def test_a_threshold_that_is_none_is_2(before: Path, capsys: Capture, threshold: str) -> None:
    assert "the threshold must be 0 or more" in failed(
        capsys, ["compare", before, before, f"--threshold={threshold}"], 2
    )


# --- as a program


def test_help_tells_of_all_three(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "relukan-bench merge FILE" in out
    assert "relukan-bench compare OLD NEW" in out
    assert "exit code 1" in out


RUN = "import sys\nfrom relukan_deploy.cli.bench import main\nsys.exit(main())"
WITHOUT = "for name in ('torch', 'onnx', 'plotly', 'matplotlib', 'polars', 'kan'): sys.modules[name] = None"


def program(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    code = RUN.replace("import sys\n", f"import sys\n{WITHOUT}\n")
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **options)


def test_a_base_install_measures_the_backends(bundle_path: Path) -> None:
    done = program(bundle_path, *BRIEF, "--json", stdout=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [each["contender"]["engine"] for each in found["series"]] == ["onnxruntime-cpu"] * 2
    assert "pip install 'relukan-deploy[bench]'" in found["skipped"][0]["why"]


def test_a_full_disk_is_1_and_no_traceback(measured: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = program("merge", measured, "--json", stdout=full)
    assert done.returncode == 1
    assert done.stderr.endswith("relukan-bench merge: error: [Errno 28] No space left on device\n")


def test_a_reader_that_has_seen_enough_is_no_traceback(measured: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = program("merge", measured, "--json", stdout=write_end)
    os.close(write_end)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_json_is_utf8_whatever_the_terminal_is(measured: Path, tmp_path: Path) -> None:
    text = measured.read_text(encoding="utf-8").replace('"pykan"', '"größer"')
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with (tmp_path / "b.json").open("w") as file:
        environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
        done = program("merge", tmp_path / "a.json", "--json", stdout=file, env=environment, errors="replace")
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "b.json") == read(tmp_path / "a.json")


def children(pid: int) -> set[int]:
    """The processes that one has started, and theirs."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found |= {int(path.parent.name)} | children(int(path.parent.name))
    return found


def waited(reached: Callable[[], object]) -> bool:
    for _ in range(600):
        if reached():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process_behind(bundle_path: Path, sent: signal.Signals) -> None:
    code = RUN.replace("import sys\n", f"import sys\n{WITHOUT}\n")
    command = [sys.executable, "-c", code, str(bundle_path), "--isolate", "--runs", "1000", "--batch", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert waited(lambda: len(children(process.pid)) == 3)  # our network in PyTorch, the backend, the MLPs
        started = children(process.pid)
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert err.endswith("relukan-bench: interrupted\n")
    assert waited(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


def test_jq_reads_what_is_piped_into_it(measured: Path) -> None:
    if not shutil.which("jq"):
        pytest.skip("no jq here")
    done = program("merge", measured, "--json", stdout=subprocess.PIPE)
    names = subprocess.run(
        ["jq", "-r", ".series[].contender.network"], input=done.stdout, capture_output=True, text=True, check=True
    )
    assert names.stdout.splitlines() == ["this network", "pykan"]
