"""The Dockerfile, without Docker: linted, and its steps taken in a folder that plays the image."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
DOCKERFILE = REPOSITORY / "examples/docker/Dockerfile"
BUNDLE = "--from=bundle"


class Instruction(NamedTuple):
    name: str
    text: str


def instructions() -> list[Instruction]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Instruction(*line.split(" ", 1)) for line in joined.splitlines()]


def sole(name: str) -> str:
    (text,) = (instruction.text for instruction in instructions() if instruction.name == name)
    return text


def copied() -> list[list[str]]:
    """What is copied from this repository: sources and destination of each COPY."""
    return [i.text.split() for i in instructions() if i.name == "COPY" and not i.text.startswith("--from=")]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_it_copies_is_here_and_not_ignored() -> None:
    ignore = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    for *sources, _ in copied():
        for source in sources:
            assert (REPOSITORY / source).exists(), source
            assert f"!{source}" in ignore


def test_the_extras_it_speaks_of_are_the_projects() -> None:
    asked = {extra for extras in re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE.read_text()) for extra in extras.split(",")}
    offered = re.findall(r"^(\w+) = \[", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert asked
    assert asked <= set(offered)


def test_it_does_not_run_as_root() -> None:
    user, group = sole("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Path:
    """A folder with /src, /opt/venv and /models as the steps make them."""
    if sys.version_info < (3, 11):
        pytest.skip("constraints.txt is for Python 3.11 and later")
    root = tmp_path_factory.mktemp("image")
    source = root / "src"
    source.mkdir()
    for *names, _ in copied():
        for name in names:
            if (REPOSITORY / name).is_dir():
                shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(REPOSITORY / name, source)
    shutil.copytree(bundle_path, root / "models/model")
    steps = sole("RUN").replace("/opt/venv", str(root / "opt/venv")).replace("python -m", f"{sys.executable} -m")
    extras = re.findall(r"^EXTRAS=(.*)", sole("ARG"))[0]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        steps, shell=True, cwd=source, env=environment | {"EXTRAS": extras}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.mark.slow
def test_what_it_installs_serves_the_bundle_and_is_healthy(image: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [*json.loads(sole("ENTRYPOINT")), *json.loads(sole("CMD"))]
    check = json.loads(sole("HEALTHCHECK").split("CMD ")[1])
    for here in (command, check):
        here[0] = str(image / "opt/venv/bin" / here[0])
        for inside, outside in (("/models", f"{image}/models"), ("8000", port), ("0.0.0.0", "127.0.0.1")):
            here[1:] = [part.replace(inside, outside) for part in here[1:]]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    with subprocess.Popen(command, cwd=image, env=environment) as server:
        try:
            end = time.monotonic() + 60
            while subprocess.run(check, capture_output=True).returncode:
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < end, "it is not healthy"
                time.sleep(0.2)
        finally:
            server.terminate()
    assert server.returncode == 0
