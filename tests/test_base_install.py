"""The base install, in an environment of its own, serves a bundle: no torch, no onnx, no TensorRT."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relukan_deploy.bundle import open_bundle
from relukan_deploy.spec import KanSpec

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
VERSIONS = ("3.10", "3.11", "3.13")
PROJECT = ("pyproject.toml", "README.md", "LICENSE", "relukan_deploy")

ANSWER = """
import importlib.util, json, sys, warnings
import numpy as np
warnings.simplefilter("error")
import relukan_deploy
with np.load(sys.argv[2]) as table:
    x = np.stack([table[name] for name in ("width", "height", "depth")], axis=1)
runner = relukan_deploy.load(sys.argv[1])
here = [name for name in ("torch", "onnx", "tensorrt", "tensorrt_rtx", "polars") if importlib.util.find_spec(name)]
print(json.dumps({"backend": runner.backend, "y": runner(x).tolist(), "here": here, "from": relukan_deploy.__file__}))
"""


def find_python(version: str) -> str | None:
    """An interpreter of this version that can make environments."""
    candidates = sorted(glob.glob(str(Path.home() / ".pyenv" / "versions" / f"{version}.*" / "bin" / "python")))
    for candidate in (sys.executable, shutil.which(f"python{version}"), *candidates):
        if candidate is None:
            continue
        code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return candidate
    return None


def make_environment(python: str, folder: Path) -> None:
    """A virtual environment in `folder`/venv with the base install, or what pip said in `folder`/failed."""
    source = folder / "source"  # a copy, since a build leaves folders behind
    source.mkdir(parents=True)
    for name in PROJECT:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, source / name)
    subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True, capture_output=True)
    install = [str(folder / "venv/bin/python"), "-m", "pip", "install", "--disable-pip-version-check", str(source)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        (folder / "failed").write_text(done.stdout + done.stderr)


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One environment for each version that is here, made side by side, once for all workers of a run."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of the workers' own folders
    folder = shared / "base-install"
    with (shared / "base-install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other workers wait here
        if not folder.exists():
            folder.mkdir()
            pythons = [(python, folder / version) for version in VERSIONS if (python := find_python(version))]
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda pair: make_environment(*pair), pythons))
    return folder


@pytest.fixture(scope="module", params=VERSIONS)
def environment(request: pytest.FixtureRequest, environments: Path) -> Path:
    """The bin folder of an environment with the base install."""
    folder = environments / str(request.param)
    if not folder.exists():
        pytest.skip(f"no Python {request.param} here")
    assert not (folder / "failed").exists(), (folder / "failed").read_text()
    return folder / "venv" / "bin"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    x = np.random.default_rng(2).uniform(-0.5, 1.5, (20, 3)).astype(np.float32)
    np.savez(folder / "data.npz", depth=x[:, 2], height=x[:, 1], width=x[:, 0])
    (folder / "data.csv").write_text("width,height,depth\n0,1,0\n")
    return folder / "data.npz"


def run(environment: Path, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    # From a folder where the package is not, and without what this process was told to import.
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))}
    command = [str(environment / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=environment, env=clean)


def test_it_answers_as_the_reference(environment: Path, bundle_path: Path, table: Path, spec: KanSpec) -> None:
    done = run(environment, "python", "-c", ANSWER, bundle_path, table)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    with np.load(table) as columns:
        x = np.stack([columns[name] for name in spec.columns or ()], axis=1)
    np.testing.assert_allclose(found["y"], spec.evaluate(x), rtol=0, atol=1e-5)
    assert found["here"] == []
    assert Path(found["from"]).is_relative_to(environment.parent)


def test_relukan_verify_works(environment: Path, bundle_path: Path) -> None:
    done = run(environment, "relukan-verify", bundle_path, "--json")
    assert done.returncode == 0, done.stderr
    (check,) = json.loads(done.stdout)
    assert check["passed"]
    assert check["report"]["rows"] == len(open_bundle(bundle_path).golden()[0])


def test_relukan_predict_works_with_an_npz(environment: Path, bundle_path: Path, table: Path, spec: KanSpec) -> None:
    done = run(environment, "relukan-predict", bundle_path, table)
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    with np.load(table) as columns:
        x = np.stack([columns[name] for name in spec.columns or ()], axis=1)
    assert header == "mass,cost"
    found = np.array([row.split(",") for row in rows], np.float64)
    np.testing.assert_allclose(found, spec.evaluate(x), rtol=0, atol=1e-5)


def test_relukan_bench_times_the_backend_and_says_what_else_needs(environment: Path, bundle_path: Path) -> None:
    done = run(environment, "relukan-bench", bundle_path, "--quick", "--batch", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {series["contender"]["engine"] for series in found["series"]} == {"onnxruntime-cpu"}
    assert all(point["timing"] for series in found["series"] for point in series["points"])
    assert [each["what"] for each in found["skipped"]] == ["mlp", "distance from the limit, cpu, fp32"]
    assert all("pip install 'relukan-deploy[bench]'" in each["why"] for each in found["skipped"])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("relukan-predict", ("BUNDLE", "data.csv")), ("relukan-export", ("model.pt",)), ("relukan-train", ("data.csv",))],
)
def test_what_needs_more_says_what_to_install(
    environment: Path, bundle_path: Path, table: Path, name: str, arguments: tuple[str, ...]
) -> None:
    places = {"BUNDLE": bundle_path, "data.csv": table.with_suffix(".csv")}
    done = run(environment, name, *(places.get(argument, argument) for argument in arguments))
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith(f"{name}: error: ")
    assert "which is not installed. Install it with: pip install 'relukan-deploy[" in done.stderr
    assert "Traceback" not in done.stderr
