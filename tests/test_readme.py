"""The README's code runs, as it stands there."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parent.parent / "README.md"
DATA = README.parent / "tests" / "data"
TRAINED = "from kan import KAN\n\nmodel = KAN(width=[2, 5, 1], auto_save=False)\n"  # what a user of pykan has


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with the data.csv and the checkpoints that the README speaks of."""
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, (200, 2))
    y = np.exp(np.sin(np.pi * x[:, 0]) + x[:, 1] ** 2)
    lines = ["a,b,y", *(f"{a:.6f},{b:.6f},{value:.6f}" for (a, b), value in zip(x, y, strict=True))]
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    shutil.copy(DATA / "pykan_2_5_1_g5k3_fit.pt", tmp_path / "mark_state")
    shutil.copy(DATA / "pykan_2_5_1_g5k3_fit_config.yml", tmp_path / "mark_config.yml")
    shutil.copy(DATA / "efficient_kan_2_5_1_g5k3_updated.pt", tmp_path / "efficient_kan.pt")
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
    for bundle in ("model", "mark", "efficient_kan"):
        assert (folder / bundle / "model.engine").is_file()
    assert (folder / "report.html").is_file()
    with serving(shlex.split(serve), folder) as url:
        answer = json.loads(run(shlex.split(ask.replace("localhost:8000", url)), folder))
    (block,) = (block for block in blocks("console") if "curl" in block)
    shown = json.loads(block.splitlines()[-1])
    shown["outputs"][0]["data"] = answer["outputs"][0]["data"]  # which depend on the training
    assert answer == shown


@pytest.mark.slow
def test_the_python_runs(folder: Path) -> None:
    ours = [block for block in blocks("python") if "saveckpt" not in block]
    printed = [run([sys.executable, "-W", "error", "-c", block], folder) for block in ours]
    assert "(1000, 1)" in printed[0]
    assert "1000 requests in" in printed[1]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("kan") is None, reason="pykan is not installed: pip install '.[bench]'")
def test_four_lines_take_a_network_of_pykan_to_its_engine(tmp_path: Path) -> None:
    (block,) = (block for block in blocks("python") if "saveckpt" in block)
    assert len([line for line in block.splitlines() if line]) == 4
    asked = "import numpy as np, torch\nx = np.random.default_rng(0).uniform(-1, 1, (9, 2)).astype(np.float32)\n"
    compared = "print(np.abs(runner(x) - model(torch.from_numpy(x)).detach().numpy()).max())"
    printed = run([sys.executable, "-c", TRAINED + block + asked + compared], tmp_path)
    assert float(printed) < 1e-5
    assert (tmp_path / "mark" / "model.engine").is_file()


def test_every_make_target_it_names_exists() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", README.read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_folder_and_file_it_names_exists() -> None:
    text = README.read_text(encoding="utf-8")
    for name in re.findall(r"^\| `([\w/]+/)`", text, re.MULTILINE) + re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (README.parent / name).exists(), name
