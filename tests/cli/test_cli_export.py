"""relukan-export, as a person and as a program meet it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from relukan_deploy.bundle import open_bundle
from relukan_deploy.checkpoint import save
from relukan_deploy.cli.export import main
from relukan_deploy.gpu import find_gpu
from relukan_deploy.model import ReLUKAN

without_gpu = pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """model.pt in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    torch.manual_seed(0)
    save(ReLUKAN([2, 4, 1]), "model.pt", columns=("a", "b"), targets=("c",))
    return Path("model.pt")


@pytest.fixture
def splines(model: Path) -> Path:
    """splines.pt beside model.pt: as efficient-kan wrote it, 2 → 5 → 1, with SiLU on each edge."""
    source = Path(__file__).parents[1] / "data" / "efficient_kan_2_5_1_g5k3_updated.pt"
    return Path(shutil.copy(source, "splines.pt"))


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command after some preparation, in a process of its own."""
    code = f"{program}\nimport sys\nfrom relukan_deploy.cli.export import main\nsys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


# --- what it prints


def test_it_ends_with_a_table(model: Path, capsys: Capture) -> None:
    assert main([str(model)]) == 0
    out, _ = capsys.readouterr()
    title, network, _, header, row, *_ = out.splitlines()
    assert title == "model.pt → model/"
    assert network == "2 → 4 → 1, regression"
    assert header.split() == ["artifact", "size", "precision", "error", "allowed", "verified"]
    (artifact,) = open_bundle("model").manifest.artifacts
    assert artifact.parity is not None
    size = round(Path("model/model.onnx").stat().st_size / 1000)
    error = f"{artifact.parity['error']:.1e}"
    assert row.split() == ["model.onnx", str(size), "kB", "fp32", error, "1e-05", "yes,", "onnxruntime-cpu"]


def test_it_tells_operators_layout_and_form(model: Path, capsys: Capture) -> None:
    main([str(model), "--layout", "batch-major"])
    out = capsys.readouterr().out
    operators = open_bundle("model").manifest.artifacts[0].details["operators"]
    listed = ", ".join(f"{count} {name}" for name, count in operators.items())
    assert f"model.onnx: {listed}; batch-major, direct form, opset 13" in out


def test_it_tells_what_bad_values_give(model: Path, capsys: Capture) -> None:
    main([str(model)])
    assert "model.onnx: a bad value in a row gives: nan → nan, +inf → " in capsys.readouterr().out


@needs_rtx
@without_gpu
def test_an_engine_that_was_not_verified_says_so_and_what_to_do(model: Path, capsys: Capture) -> None:
    assert main([str(model), "--trt"]) == 0
    out = capsys.readouterr().out
    (row,) = [line for line in out.splitlines() if line.startswith("model.engine ")]
    assert row.split()[-9:] == ["–", "1e-05", "no:", "no", "GPU", "here", "to", "run", "it"]
    assert "ahead of time, without a GPU; batches 1 to 1024, fastest at 64" in out
    assert out.splitlines()[-1] == "On the machine that will run it: relukan-verify model"


@pytest.mark.parametrize("name", ["[bold]", "[/x]", "a b", "x" * 120])
def test_a_path_is_printed_as_it_is(model: Path, capsys: Capture, name: str) -> None:
    assert main([str(model), "-o", name]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"model.pt → {name}/"


def test_json_is_all_there_is_on_standard_output(model: Path, capsys: Capture) -> None:
    assert main([str(model), "--json"]) == 0
    out, err = capsys.readouterr()
    content = json.loads(out)
    assert content.pop("bundle") == "model"
    written = json.loads(Path("model/manifest.json").read_text())
    for key in ("format", "schema_version", "manifest_sha256"):
        del written[key]
    assert content == written
    assert "model.onnx" in err


def test_without_json_nothing_is_on_standard_error(model: Path, capsys: Capture) -> None:
    main([str(model)])
    assert capsys.readouterr().err == ""


# --- what it does


def test_options_reach_the_bundle(model: Path) -> None:
    arguments = ["-o", "other", "--precision", "fp16", "--layout", "batch-major", "--tolerance", "0.25"]
    assert main([str(model), *arguments]) == 0
    (artifact,) = open_bundle("other").manifest.artifacts
    assert (artifact.precision, artifact.layout, artifact.tolerance) == ("fp16", "batch-major", 0.25)


@needs_rtx
def test_engine_options_reach_the_engine(model: Path) -> None:
    arguments = ["--trt", "--flavour", "tensorrt-rtx", "--precision", "tf32", "--batch", "2", "4", "16"]
    assert main([str(model), *arguments, "--workspace", "64M"]) == 0
    _, engine = open_bundle("model").manifest.artifacts
    assert (engine.kind, engine.precision, engine.batch) == ("tensorrt-rtx", "tf32", (2, 4, 16))
    assert engine.details["workspace"] == 64 * 1024**2


def test_data_is_compared_on_too(model: Path) -> None:
    np.savez("data.npz", a=np.ones(5), b=np.zeros(5))
    main([str(model), "--data", "data.npz"])
    bundle = open_bundle("model")
    parity = bundle.manifest.artifacts[0].parity
    assert parity is not None
    assert parity["rows"] == len(bundle.golden()[0]) + 5


def test_approximations_are_told_and_the_bound_reaches_them(splines: Path, capsys: Capture) -> None:
    assert main([str(splines), "--strict-ops", "--bound", "1e-5", "--tolerance", "1e-3"]) == 0
    (found,) = open_bundle("splines").manifest.approximations
    assert (found.function, found.edges, found.bound) == ("SiLU", 15, 1e-5)
    line = f"SiLU on 15 edges: {found.pieces} pieces of degree {found.degree}, within 1e-05 everywhere"
    out = capsys.readouterr().out
    assert f"{line} (measured {found.error:.1e})" in out
    assert "Sigmoid" not in out


def test_a_fifth_operator_is_told_with_how_to_avoid_it(splines: Path, capsys: Capture) -> None:
    assert main([str(splines)]) == 0
    assert "model.onnx: Sigmoid, a fifth operator, is for SiLU; --strict-ops avoids it" in capsys.readouterr().out


def test_a_model_repository_is_written_from_the_bundle(model: Path, capsys: Capture) -> None:
    assert main([str(model), "--triton", "models", "--batch", "1", "8", "32"]) == 0
    title, entry, *_ = capsys.readouterr().out.splitlines()
    assert (title, entry) == ("model.pt → model/", f"model → {Path.cwd()}/models/model/1/")
    assert open_bundle("model").manifest.artifacts[0].layout == "batch-major"
    assert Path("models/model/1/model.onnx").read_bytes() == Path("model/model.onnx").read_bytes()
    assert "max_batch_size: 32" in Path("models/model/config.pbtxt").read_text()


def test_options_reach_the_model_repository(model: Path, capsys: Capture) -> None:
    options = ["--name", "kan", "--triton-backend", "python", "--instances", "2", "--max-delay", "0.001"]
    for _ in range(2):
        assert main([str(model), "--triton", "models", *options, "--json"]) == 0
        entry = json.loads(capsys.readouterr().out)["triton"]
    assert Path(entry) == Path.cwd() / "models/kan/2"
    assert open_bundle(f"{entry}/bundle").manifest.artifacts[0].layout == "batch-last"
    config = Path("models/kan/config.pbtxt").read_text()
    assert "count: 2" in config
    assert "max_queue_delay_microseconds: 1000" in config


# --- exit codes


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["model.pt", "--precision", "int8"],
        ["model.pt", "--batch", "1", "2"],
        ["model.pt", "--workspace", "much"],
        ["model.pt", "--workspace", "inf"],
        ["model.pt", "--unknown"],
    ],
)
def test_wrong_usage_is_2(model: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.pt"], "nothing.pt is not there: expected a model file"),
        (["."], ". is a folder: expected a model file"),
        (["text.pt"], "text.pt cannot be read: it is not a PyTorch file, or is truncated"),
        (["other.pt"], "other.pt is not a checkpoint of relukan-deploy, the reference ReLU-KAN (relu_kan), pykan or"),
        (["model.pt", "--precision", "tf32"], "tf32 is a matter of the engine: add trt=True (--trt)"),
        (["model.pt", "--refittable"], "--refittable is a matter of the engine: add --trt"),
        (["model.pt", "--timing-cache", "x"], "--timing-cache is a matter of the engine: add --trt"),
        (["model.pt", "--batch", "4", "2", "8"], "batch needs 1 <= MIN <= OPT <= MAX, got 4 2 8"),
        (["model.pt", "--tolerance", "0"], "tolerance must be greater than 0, got 0.0"),
        (["model.pt", "--grid", "5"], "model.pt is a checkpoint of relukan-deploy, and --grid is a matter of relu_kan"),
        (["model.pt", "--bound", "1e-3"], "--bound is a matter of what is approximated: add --strict-ops for SiLU"),
        (["model.pt", "--strict-ops", "--bound", "0"], "bound must be greater than 0, got 0.0"),
        (["model.pt", "--approximate", "--bound", "-1"], "bound must be greater than 0, got -1.0"),
        (["model.pt", "-o", "folder"], "exists and is not a bundle: it is left alone. Choose another place with -o"),
        (["model.pt", "--data", "nothing.csv"], "nothing.csv is not there: expected a data file"),
        (["model.pt", "--triton-backend", "python"], "--triton-backend is a matter of Triton: add --triton REPO"),
        (["model.pt", "--max-delay", "0"], "--max-delay is a matter of Triton: add --triton REPO"),
        (["model.pt", "--triton", "models", "--instances", "0"], "instances must be at least 1, got 0"),
        (["model.pt", "--triton", "models", "--name", "a b"], "got 'a b': give --name"),
        (
            ["model.pt", "--triton", "models", "--layout", "batch-last"],
            "joins requests along axis 0, and batch-last has",
        ),
        (["model.pt", "--triton", "models", "-o", "models/kan"], "lie in one another"),
        (["model.pt", "--triton", ".", "--name", "folder"], "lie in one another"),
    ],
)
def test_bad_input_is_2_and_one_line(model: Path, capsys: Capture, arguments: list[str], message: str) -> None:
    Path("text.pt").write_text("text")
    torch.save({"weight": torch.zeros(2)}, "other.pt")
    Path("folder").mkdir()
    Path("folder/thesis.tex").touch()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("relukan-export: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert out == ""


def test_out_of_tolerance_is_3_and_leaves_the_old_bundle(model: Path, capsys: Capture) -> None:
    main([str(model)])
    before = files(Path("model"))
    assert main([str(model), "--tolerance", "1e-9"]) == 3
    err = capsys.readouterr().err
    assert "model.onnx on onnxruntime-cpu differs from the float64 reference by" in err
    assert "the worst input is [" in err
    assert files(Path("model")) == before


def test_out_of_tolerance_prints_no_json(model: Path, capsys: Capture) -> None:
    assert main([str(model), "--tolerance", "1e-9", "--json"]) == 3
    assert capsys.readouterr().out == ""


@without_gpu
def test_no_tensorrt_is_4_and_says_what_to_install(model: Path) -> None:
    done = run("import sys; sys.modules['tensorrt_rtx'] = None", str(model), "--trt")
    assert done.returncode == 4
    assert done.stderr == (
        "relukan-export: error: Building an engine needs the package 'tensorrt_rtx', which is not installed. "
        "Install it with: pip install 'relukan-deploy[rtx]'\n"
    )
    assert done.stdout == ""
    assert not Path("model").exists()


@pytest.mark.parametrize("package", ["torch", "onnx"])
def test_a_missing_package_is_4_and_says_what_to_install(model: Path, package: str) -> None:
    done = run(f"import sys; sys.modules['{package}'] = None", str(model))
    assert done.returncode == 4
    assert f"needs the package '{package}', which is not installed" in done.stderr
    assert "pip install 'relukan-deploy[export]'" in done.stderr
    assert "Traceback" not in done.stderr


@without_gpu
def test_no_gpu_for_tensorrt_is_4(model: Path) -> None:
    assert main([str(model), "--trt", "--flavour", "tensorrt"]) == 4


INTERRUPT = """
import signal, relukan_deploy.api, relukan_deploy._recipe
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it

def interrupted(*arguments, **options):
    signal.raise_signal(signal.SIGINT)

relukan_deploy.{function} = interrupted
"""


@pytest.mark.parametrize("function", ["_recipe.serialise", "api.write_manifest", "api.compare"])
def test_ctrl_c_is_130_and_leaves_the_old_bundle(model: Path, function: str) -> None:
    main([str(model)])
    before = files(Path("model"))
    done = run(INTERRUPT.format(function=function), str(model), "--precision", "fp16")
    assert done.returncode == 130
    assert done.stderr == "relukan-export: interrupted\n"
    assert files(Path("model")) == before
    assert sorted(item.name for item in Path().iterdir()) == ["model", "model.pt"]


def test_as_a_program_it_does_the_same(model: Path) -> None:
    done = run("", str(model), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["widths"] == [2, 4, 1]
    assert "model.onnx" in done.stderr


def test_a_bound_drawn_closer_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = Path(__file__).parents[1] / "data" / "pykan_4_2_1_1_g3k3_fit.pt"
    assert main([str(checkpoint), "-o", str(tmp_path / "b"), "--strict-ops", "--bound", "1e-5"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "that is closer than --bound 1e-05, for the answers to be within the tolerance" in shown
