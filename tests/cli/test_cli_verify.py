"""relukan-verify, as a person and as a program meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relukan_deploy.api import export
from relukan_deploy.bundle import open_bundle, write_manifest
from relukan_deploy.checkpoint import save
from relukan_deploy.cli.verify import main
from relukan_deploy.gpu import find_gpu
from relukan_deploy.model import ReLUKAN
from relukan_deploy.spec import KanSpec

without_gpu = pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def lie(folder: Path, by: float = 1e-3) -> None:
    """Signs golden answers that are off."""
    bundle = open_bundle(folder)
    x, y = bundle.golden()
    np.savez(folder / "golden.npz", x=x, y=y + by)
    write_manifest(folder, bundle.manifest)


@without_gpu
def test_each_artifact_has_a_line(engine_bundle_path: Path, capsys: Capture) -> None:
    assert main([str(engine_bundle_path)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == f"{engine_bundle_path}: 3 → 5 → 2, regression"
    graph, engine = (line.split() for line in lines[3:5])
    assert (graph[0], graph[-2:]) == ("model.onnx", ["yes,", "onnxruntime-cpu"])
    assert (engine[0], engine[-7:]) == ("model.engine", ["no:", "no", "GPU", "here", "to", "run", "it"])
    assert err == ""


def test_a_classification_has_its_class_agreement(classifier: KanSpec, tmp_path: Path, capsys: Capture) -> None:
    export(classifier, tmp_path / "bundle")
    assert main([str(tmp_path / "bundle")]) == 0
    out = capsys.readouterr().out
    assert "4 → 6 → 3, classification into 3 classes" in out
    assert "same class" in out
    assert "100.00%" in out


@without_gpu
def test_json_is_all_there_is_on_standard_output(engine_bundle_path: Path, capsys: Capture) -> None:
    assert main([str(engine_bundle_path), "--json"]) == 0
    out, err = capsys.readouterr()
    graph, engine = json.loads(out)
    assert (graph["artifact"], graph["backend"], graph["passed"]) == ("model.onnx", "onnxruntime-cpu", True)
    assert graph["report"]["error"] <= 1e-5
    assert (engine["artifact"], engine["passed"], engine["reason"]) == ("model.engine", False, "no GPU here to run it")
    assert "model.onnx" in err


@pytest.mark.parametrize("name", ["[bold]", "[/x]"])
def test_a_path_is_printed_as_it_is(copied: Path, capsys: Capture, name: str) -> None:
    folder = copied.parent / f"copy{name}"
    folder.parent.mkdir(exist_ok=True)  # the slash of [/x] is one of folders
    copied.rename(folder)
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"{folder}: ")


@pytest.mark.parametrize("arguments", [[], ["bundle", "--tolerance", "x"], ["bundle", "--unknown"]])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2


def test_a_folder_that_is_no_bundle_is_2(tmp_path: Path, capsys: Capture) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"relukan-verify: error: {tmp_path} is not a bundle")


def test_a_changed_byte_is_2(copied: Path, capsys: Capture) -> None:
    data = bytearray((copied / "model.onnx").read_bytes())
    data[100] ^= 1
    (copied / "model.onnx").write_bytes(data)
    assert main([str(copied)]) == 2
    assert "model.onnx has changed since it was written: its SHA-256 differs. Export" in capsys.readouterr().err


def test_a_wrong_answer_is_3(copied: Path, capsys: Capture) -> None:
    lie(copied)
    assert main([str(copied)]) == 3
    out, err = capsys.readouterr()
    assert err.startswith(
        "relukan-verify: error: model.onnx on onnxruntime-cpu differs from the float64 reference by 0.00"
    )
    assert "more than allowed, onnxruntime-cpu" in out


def test_a_wrong_answer_is_in_the_json(copied: Path, capsys: Capture) -> None:
    lie(copied)
    assert main([str(copied), "--json"]) == 3
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["passed"] is False
    assert entry["report"]["error"] > entry["report"]["tolerance"]


def test_a_tighter_tolerance_is_3(bundle_path: Path) -> None:
    assert main([str(bundle_path), "--tolerance", "1e-9"]) == 3


def test_a_wider_tolerance_is_0(copied: Path) -> None:
    lie(copied)
    assert main([str(copied), "--tolerance", "0.5"]) == 0


@without_gpu
def test_nothing_that_runs_here_is_4(
    engine_bundle_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    import relukan_deploy.api

    def open_engine_alone(path: Path) -> Any:
        bundle = open_bundle(path)
        artifacts = tuple(artifact for artifact in bundle.manifest.artifacts if artifact.kind != "onnx")
        object.__setattr__(bundle.manifest, "artifacts", artifacts)
        return bundle

    monkeypatch.setattr(relukan_deploy.api, "open_bundle", open_engine_alone)
    assert main([str(engine_bundle_path)]) == 4
    assert "could be run here, so nothing was verified" in capsys.readouterr().err


@pytest.fixture
def from_checkpoint(tmp_path: Path) -> Path:
    """bundle, beside the model.pt it was exported from and a table."""
    save(ReLUKAN([2, 3, 1]), tmp_path / "model.pt", columns=("a", "b"))
    np.savez(tmp_path / "data.npz", b=np.linspace(-1, 2, 20), other=np.zeros(20), a=np.linspace(0, 1, 20))
    return export(tmp_path / "model.pt", tmp_path / "bundle").path


def test_data_is_compared_on_too(from_checkpoint: Path, capsys: Capture) -> None:
    folder = from_checkpoint.parent
    arguments = ["--data", str(folder / "data.npz"), "--checkpoint", str(folder / "model.pt"), "--json"]
    assert main([str(from_checkpoint), *arguments]) == 0
    (check,) = json.loads(capsys.readouterr().out)
    assert check["report"]["rows"] == len(open_bundle(from_checkpoint).golden()[0]) + 20


def test_data_without_the_checkpoint_is_2(from_checkpoint: Path, capsys: Capture) -> None:
    assert main([str(from_checkpoint), "--data", str(from_checkpoint.parent / "data.npz")]) == 2
    assert "comparing on data needs the checkpoint too" in capsys.readouterr().err


def test_another_checkpoint_is_2(from_checkpoint: Path, capsys: Capture) -> None:
    other = from_checkpoint.parent / "other.pt"
    save(ReLUKAN([2, 3, 1]), other)
    assert main([str(from_checkpoint), "--checkpoint", str(other)]) == 2
    assert "other.pt is not the checkpoint that" in capsys.readouterr().err


def test_as_a_program_it_needs_neither_torch_nor_onnx_nor_tensorrt(engine_bundle_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'tensorrt', 'tensorrt_rtx', 'polars'): sys.modules[name] = None\n"
        "from relukan_deploy.cli.verify import main\n"
        "sys.exit(main())"
    )
    command = [sys.executable, "-c", code, str(engine_bundle_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["passed"]
