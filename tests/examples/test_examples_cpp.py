"""The C++ programs: compiled by the README's own commands, and what they answer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from headers import find_onnxruntime_headers
from numpy.typing import NDArray

from relukan_deploy._tensorrt import Flavour
from relukan_deploy.api import export
from relukan_deploy.errors import MissingDependencyError, MissingDeviceError
from relukan_deploy.runtime import load
from relukan_deploy.spec import KanSpec

CPP = Path(__file__).parent.parent.parent / "examples/cpp"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++ to compile the C++ examples with"),
]


def compile_as_the_readme_says(program: str, folder: Path, library: str | None = None, **roots: Path) -> Path:
    """Runs the line of the README that compiles `program`, warnings being errors, and gives the executable."""
    (line,) = re.findall(rf"^\$ (g\+\+ .* -o {program})$", (CPP / "README.md").read_text(), re.MULTILINE)
    line = line.replace(f"-o {program}", f"-Wall -Wextra -Wno-deprecated-declarations -Werror -o {folder}/{program}")
    if library:
        line = line.replace("-lnvinfer", f"-l{library}")
    environment = os.environ | {name: str(root) for name, root in roots.items()}
    done = subprocess.run(line, shell=True, cwd=CPP, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / program


def run(program: Path, model: Path, rows: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, model], input=rows, capture_output=True, text=True, timeout=60)


def golden(bundle: Path) -> tuple[str, NDArray[np.float64]]:
    """The golden inputs as lines of text, and the reference's answers."""
    arrays = np.load(bundle / "golden.npz")
    return "".join(",".join(repr(float(value)) for value in row) + "\n" for row in arrays["x"]), arrays["y"]


def parse(lines: str) -> NDArray[np.float64]:
    return np.array([[float(cell) for cell in line.split(",")] for line in lines.splitlines()])


@pytest.fixture(scope="module")
def onnxruntime_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnxruntime

    headers = find_onnxruntime_headers(tmp_path_factory.mktemp("headers"))
    if isinstance(headers, str):
        pytest.skip(headers)
    root = tmp_path_factory.mktemp("onnxruntime")
    (root / "include").symlink_to(headers)
    (root / "lib").mkdir()
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (root / "lib" / name).symlink_to(library)
    return compile_as_the_readme_says("relukan-onnxruntime", tmp_path_factory.mktemp("program"), ONNXRUNTIME_ROOT=root)


def test_onnxruntime_gives_the_golden_answers(onnxruntime_program: Path, bundle_path: Path) -> None:
    rows, y = golden(bundle_path)
    done = run(onnxruntime_program, bundle_path / "model.onnx", rows)
    assert done.returncode == 0, done.stderr
    assert np.abs(parse(done.stdout) - y).max() < 1e-5 * max(1, np.abs(y).max())


def test_onnxruntime_gives_nothing_for_no_rows(onnxruntime_program: Path, bundle_path: Path) -> None:
    done = run(onnxruntime_program, bundle_path / "model.onnx", "")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("row", ["0.1,0.2", "0.1,0.2,0.3,0.4", "0.1,two,0.3", "0.1,,0.3"])
def test_onnxruntime_names_the_row_that_does_not_fit(onnxruntime_program: Path, bundle_path: Path, row: str) -> None:
    done = run(onnxruntime_program, bundle_path / "model.onnx", f"0.1,0.2,0.3\n{row}\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"row 2 is '{row}', expected 3 numbers" in done.stderr


def test_onnxruntime_names_a_model_that_is_not_there(onnxruntime_program: Path, tmp_path: Path) -> None:
    done = run(onnxruntime_program, tmp_path / "absent.onnx", "")
    assert done.returncode == 1
    assert "absent.onnx" in done.stderr


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    flavour: Flavour = request.param
    return flavour


@pytest.fixture(scope="module")
def tensorrt_program(flavour: Flavour, tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = {"tensorrt": "nvinfer", "tensorrt-rtx": "tensorrt_rtx"}[flavour]
    needed = {
        "TENSORRT_ROOT": ("include/NvInfer.h", f"lib/lib{library}.so"),
        "CUDA_HOME": ("include/cuda_runtime_api.h", "lib64/libcudart.so"),
    }
    roots = {variable: Path(os.environ.get(variable) or "/nowhere") for variable in needed}
    for variable, files in needed.items():
        for file in files:
            if not (roots[variable] / file).exists():
                pytest.skip(f"{file} is not here: set {variable}")
    return compile_as_the_readme_says("relukan-tensorrt", tmp_path_factory.mktemp("program"), library, **roots)


def test_tensorrt_names_an_engine_that_is_not_there(tensorrt_program: Path, tmp_path: Path) -> None:
    done = run(tensorrt_program, tmp_path / "absent.engine", "")
    assert done.returncode == 1
    assert "absent.engine cannot be read" in done.stderr


def test_tensorrt_refuses_what_is_no_engine(tensorrt_program: Path, bundle_path: Path) -> None:
    done = run(tensorrt_program, bundle_path / "golden.npz", "")
    assert done.returncode == 1
    assert "golden.npz was not built for this TensorRT" in done.stderr or "TensorRT found no GPU" in done.stderr


def test_tensorrt_gives_the_golden_answers(
    tensorrt_program: Path, flavour: Flavour, spec: KanSpec, tmp_path: Path
) -> None:
    try:
        bundle = export(spec, tmp_path / "bundle", trt=True, flavour=flavour).path
        load(bundle, backend=flavour).close()
    except (MissingDeviceError, MissingDependencyError) as error:
        pytest.skip(f"nothing here runs an engine of {flavour}: {error}")
    rows, y = golden(bundle)
    done = run(tensorrt_program, bundle / "model.engine", rows)
    assert done.returncode == 0, done.stderr
    assert np.abs(parse(done.stdout) - y).max() < 1e-5 * max(1, np.abs(y).max())
