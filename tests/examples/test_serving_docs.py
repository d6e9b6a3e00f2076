"""docs/serving.md: its commands run, one after another, and its tables hold what there is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")

DOCS = Path(__file__).parent.parent.parent / "docs"
TEXT = (DOCS / "serving.md").read_text(encoding="utf-8")
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """Every command that is shown, and the output that is shown with it."""
    shown = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", "".join(blocks("console")), re.MULTILINE)
    return [(command, output.strip()) for command, output in shown]


def form(text: str) -> str:
    """A text without its numbers, of which only the count is compared."""
    return re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "0", text)


@pytest.fixture(scope="module")
def folder(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the page speaks of: a bundle, and a checkpoint that was trained again."""
    torch = pytest.importorskip("torch")
    from relukan_deploy import ReLUKAN, save

    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(bundle_path, folder / "model")
    torch.manual_seed(0)
    save(ReLUKAN([3, 5, 2], grid=5, order=3), folder / "retrained.pt")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Where the page's first command serves; on a free port instead of 8000."""
    command, _ = commands()[0]
    program = ["/bin/sh", "-c", f"exec {command} --http-port 0"]
    with subprocess.Popen(program, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = server.stdout.readline()
            yield ready.split("http://")[1].strip()
        finally:
            server.terminate()
    assert server.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_the_commands_run_and_print_what_is_shown(folder: Path, address: str) -> None:
    first, *others = [
        (command, output) for command, output in commands() if not command.startswith(("docker ", "tritonserver "))
    ]
    assert first[0] == "relukan-serve model"
    assert len(others) >= 4
    for command, shown in others:
        command = command.replace("localhost:8000", address).replace(
            "curl ", "curl --noproxy '*' -sS --fail-with-body "
        )
        done = subprocess.run(
            command, shell=True, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if shown:
            assert form(done.stdout.strip()) == form(shown)


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.split("\n")[0])
def test_the_python_runs(folder: Path, block: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_every_option_of_relukan_serve_is_there_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    from relukan_deploy.cli.serve import main

    with pytest.raises(SystemExit):
        main(["--help"])
    options = set(re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)) - {"--help", "--version"}
    (table,) = re.findall(r"\| option \|.*?\n\n", TEXT, re.DOTALL)
    first_column = " ".join(re.findall(r"^\|(.*?)\|", table, re.MULTILINE))
    assert sorted(re.findall(r"`(--[a-z-]+)`", first_column)) == sorted(options)


def test_every_metric_it_names_is_counted() -> None:
    from relukan_deploy.runtime.serving.metrics import Metrics

    exposed = set(re.findall(r"^# HELP (\S+)", Metrics().exposition().decode(), re.MULTILINE))
    (table,) = re.findall(r"\| metric \|.*?\n\n", TEXT, re.DOTALL)
    named = set(re.findall(r"`((?:nv|relukan)_\w+)`", table))
    assert named
    assert named <= exposed


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / name).exists(), name
