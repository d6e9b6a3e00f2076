"""docs/training.md: what it shows runs, and what it names is there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from relukan_deploy.cli.train import main

PAGE = Path(__file__).parent.parent / "docs" / "training.md"
TEXT = PAGE.read_text(encoding="utf-8")
MAKEFILE = (PAGE.parent.parent / "Makefile").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


COMMANDS = [line[2:] for block in blocks("console") for line in block.splitlines() if not line.startswith("$ pip")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with the data.csv that the page speaks of."""
    x = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    table = np.column_stack([x, np.exp(np.sin(np.pi * x[:, 0]) + x[:, 1] ** 2)])
    np.savetxt(tmp_path / "data.csv", table, delimiter=",", header="a,b,y", comments="", fmt="%.6f")
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    found = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=os.environ | found, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr  # what relukan-train says is of the second kind


@pytest.mark.slow
@pytest.mark.parametrize("command", [each for each in COMMANDS if not each.startswith("torchrun")])
def test_every_command_runs(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    name, *arguments = shlex.split(command)
    assert name == "relukan-train"
    assert main(arguments) == 0
    assert Path(arguments[arguments.index("-o") + 1]).is_file()
    if "--plot" in arguments:
        assert Path("edges.png").is_file()
        assert Path("edges-training.png").is_file()


@pytest.mark.slow
def test_several_processes_train_together(folder: Path) -> None:
    (command,) = (each for each in COMMANDS if each.startswith("torchrun"))
    assert run(shlex.split(command), folder).count("Wrote model.pt") == 1


@pytest.mark.slow
def test_the_python_runs_from_top_to_bottom(folder: Path) -> None:
    printed = run([sys.executable, "-W", "error", "-c", "\n".join(blocks("python"))], folder)
    before, after = map(float, re.findall(r"R² before and after: \(([\d.]+), ([\d.]+)\)", printed)[0])
    assert 0.9 < after <= before
    assert float(re.findall(r"differs by ([\d.e-]+)", printed)[0]) < 0.01  # some thousandths
    assert re.search(r"nodes that went: \(\(\d", printed)  # some did
    assert (folder / "smaller.pt").is_file()


@pytest.mark.slow
def test_a_micro_batch_takes_the_part_of_the_memory_that_it_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (command,) = (each for each in COMMANDS if "--micro-batch" in each)
    for each in (command, command.replace(" --micro-batch 30", "")):
        assert main(shlex.split(each)[1:]) == 0
    small, large = map(float, re.findall(r"([\d.]+) MB of memory", capsys.readouterr().err))
    assert small < large / 5  # of which the weights are a part


def test_every_option_it_names_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    offered = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out)) | {"--nproc-per-node", "--no-python"}
    named = set(re.findall(r"--[a-z0-9][a-z0-9-]+", TEXT))
    assert {"--optimizer", "--resume", "--micro-batch", "--plot", "--l1", "--amp"} <= named
    assert named <= offered


def test_make_experiments_runs_the_scripts_that_it_names() -> None:
    assert "`make experiments`" in TEXT
    (commands,) = re.findall(r"^experiments:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    run_by_make = set(re.findall(r"-m benchmarks\.(\w+) --json", commands))
    assert run_by_make == set(re.findall(r"benchmarks\.(\w+)", TEXT))
