"""The README's code runs, as it stands there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with the data.csv that the README speaks of."""
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, (200, 2))
    y = np.exp(np.sin(np.pi * x[:, 0]) + x[:, 1] ** 2)
    lines = ["a,b,y", *(f"{a:.6f},{b:.6f},{value:.6f}" for (a, b), value in zip(x, y, strict=True))]
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@contextlib.contextmanager
def serving(command: list[str], folder: Path) -> Iterator[str]:
    """Runs a server on a free port, and gives its address."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    server = subprocess.Popen(
        [*command, "--http-port", "0"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        ready = next(line for line in server.stdout if "is ready" in line)
        yield ready.rpartition("//")[2].strip()
    finally:
        server.terminate()
        server.communicate(timeout=60)


def run(command: list[str], folder: Path) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_commands_run_one_after_another(folder: Path) -> None:
    commands = [
        line[2:]
        for block in blocks("console")
        for line in block.splitlines()
        if line.startswith(("$ relukan-", "$ curl"))
    ]
    serve, ask = (next(command for command in commands if name in command) for name in ("relukan-serve", "curl"))
    for command in commands:
        if command not in (serve, ask):
            run(shlex.split(command), folder)
    assert (folder / "model" / "model.engine").is_file()
    assert (folder / "report.html").is_file()
    with serving(shlex.split(serve), folder) as url:
        answer = json.loads(run(shlex.split(ask.replace("localhost:8000", url)), folder))
    (block,) = (block for block in blocks("console") if "curl" in block)
    shown = json.loads(block.splitlines()[-1])
    shown["outputs"][0]["data"] = answer["outputs"][0]["data"]  # which depend on the training
    assert answer == shown


@pytest.mark.slow
def test_the_python_runs(folder: Path) -> None:
    printed = [run([sys.executable, "-W", "error", "-c", block], folder) for block in blocks("python")]
    assert "(1000, 1)" in printed[0]
    assert "1000 requests in" in printed[1]


def test_every_make_target_it_names_exists() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", README.read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_folder_and_file_it_names_exists() -> None:
    text = README.read_text(encoding="utf-8")
    for name in re.findall(r"^\| `([\w/]+/)`", text, re.MULTILINE) + re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (README.parent / name).exists(), name
