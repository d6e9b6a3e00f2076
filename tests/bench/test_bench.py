"""The whole measurement as one call, in this process and in several."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from interpreters import empty_environment, script, worker_of

from relukan_deploy import __version__
from relukan_deploy.bench import limits
from relukan_deploy.bench.bench import BATCHES, Pythons, backends_of, bench, engines_for
from relukan_deploy.bench.request import Request
from relukan_deploy.bench.stored import read, to_json
from relukan_deploy.bench.sweep import Effort
from relukan_deploy.bundle import open_bundle
from relukan_deploy.errors import InputError, MissingDeviceError
from relukan_deploy.gpu import find_gpu

without_gpu = pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")

BRIEF = Effort(runs=2, rounds=3, burst=1e-4, warm_up=1e-3)
CPU = ("onnxruntime-cpu",)


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine does at most is not the point here."""
    monkeypatch.setattr(limits, "_SECONDS", 0.01)
    monkeypatch.setattr(limits, "_CPU_MATRIX", 64)
    monkeypatch.setattr(limits, "_CPU_COPY", 1 << 20)


def test_batches_are_the_powers_of_four_up_to_65536() -> None:
    assert BATCHES == (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


def test_a_grid_that_does_not_fit_is_refused_before_anything_is_measured(bundle_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(InputError, match="--grid 99 --order 3"):
        bench(Request(str(bundle_path), CPU, grid=99), (1,), BRIEF, say=said.append)
    assert said == []


def test_a_backend_alone(bundle_path: Path, tmp_path: Path) -> None:
    said: list[str] = []
    request = Request(str(bundle_path), CPU)
    found = bench(request, (1, 64), BRIEF, starts=1, command="relukan-bench x", say=said.append)
    assert found.bundle == bundle_path.name
    assert [each.contender.data for each in found.series] == ["host", "bound"]
    for series in found.series:
        assert series.difference is not None
        assert series.difference < 1e-5
        assert [point.batch for point in series.points] == [1, 64]
        assert all(point.timing and len(point.timing.rounds) == 2 for point in series.points)
        assert all(point.ideal and point.ideal.seconds > 0 for point in series.points)
    (environment,) = found.environments
    assert (environment.command, environment.threads) == ("relukan-bench x", 1)
    assert environment.versions["relukan-deploy"] == __version__
    assert environment.before.load is not None
    assert environment.after.load is not None
    assert [(each.device, each.precision) for each in environment.peaks] == [("cpu", "fp32")]
    (startup,) = found.startups
    assert (startup.engine, startup.file, startup.environment) == ("onnxruntime-cpu", "model.onnx", 0)
    assert found.skipped == ()
    assert "run 2 of 2: 64 rows" in said
    (tmp_path / "a.json").write_text(to_json(found))
    assert read(tmp_path / "a.json") == found


@pytest.mark.slow
def test_peers_beside_it(bundle_path: Path) -> None:
    pytest.importorskip("torch")
    request = Request(str(bundle_path), CPU, ("mlp",), ("torch",))
    found = bench(request, (1,), BRIEF, starts=0)
    networks = {(each.contender.network, each.contender.engine) for each in found.series}
    assert networks == {
        ("this network", "onnxruntime-cpu"),
        ("this network", "torch"),
        ("mlp, same widths", "torch"),
        ("mlp, same parameters", "torch"),
    }
    assert all(point.timing for each in found.series for point in each.points)
    assert all(bool(each.points[0].ideal) == (each.contender.network == "this network") for each in found.series)


def test_without_torch_and_onnx_the_backends_are_measured_all_the_same(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "onnx"):
        monkeypatch.setitem(sys.modules, name, None)
    found = bench(Request(str(bundle_path), CPU, ("mlp",), ("torch",)), (1,), BRIEF, starts=0)
    assert len(found.series) == 2
    assert [each.what for each in found.skipped] == ["mlp", "distance from the limit, cpu, fp32"]
    assert all("Install it with: pip install 'relukan-deploy[bench]'" in each.why for each in found.skipped)
    assert found.environments[0].peaks == ()


@without_gpu
def test_an_engine_that_cannot_run_here_is_skipped(engine_bundle_path: Path) -> None:
    found = bench(Request(str(engine_bundle_path), ("tensorrt-rtx", *CPU)), (1,), BRIEF, starts=1)
    assert {each.contender.engine for each in found.series} == {"onnxruntime-cpu"}
    assert [each.what for each in found.skipped] == ["this network: tensorrt-rtx"]
    assert [each.engine for each in found.startups] == ["onnxruntime-cpu"]


@without_gpu
def test_nothing_that_runs_here_is_an_error_with_the_reasons(engine_bundle_path: Path) -> None:
    with pytest.raises(MissingDeviceError, match=r"nothing of .* could be run here: this network: tensorrt-rtx: .*GPU"):
        bench(Request(str(engine_bundle_path), ("tensorrt-rtx",)), (1,), BRIEF)


def test_a_backend_that_the_bundle_has_nothing_for_is_an_error(bundle_path: Path) -> None:
    with pytest.raises(InputError, match="has no tensorrt artifact for the backend tensorrt"):
        bench(Request(str(bundle_path), ("tensorrt",)), (1,), BRIEF)


@without_gpu
def test_the_backends_of_a_bundle_are_those_with_a_file(bundle_path: Path, engine_bundle_path: Path) -> None:
    assert backends_of(open_bundle(bundle_path)) == CPU
    assert backends_of(open_bundle(engine_bundle_path)) == ("tensorrt-rtx", *CPU)


@without_gpu
def test_on_a_cpu_peers_run_in_pytorch_and_onnx_runtime() -> None:
    assert engines_for(("tensorrt", "onnxruntime-cpu")) == ("torch", "torch.compile", "onnxruntime-cpu")


# --- other processes


def test_in_a_process_of_its_own_it_is_the_same_environment(bundle_path: Path) -> None:
    pythons = Pythons(isolate=True)
    found = bench(Request(str(bundle_path), CPU), (1,), BRIEF, pythons=pythons, starts=0)
    assert [each.environment for each in found.series] == [0, 0]
    assert all(point.timing for each in found.series for point in each.points)


def test_the_same_python_by_another_name_is_the_same_environment(bundle_path: Path, tmp_path: Path) -> None:
    python = script(tmp_path / "python", f'exec "{sys.executable}" "$@"')
    pythons = Pythons(named={"onnxruntime-cpu": python})
    found = bench(Request(str(bundle_path), CPU), (1,), BRIEF, pythons=pythons, starts=0)
    assert len(found.environments) == 1
    assert len(found.series) == 2


def test_versions_are_those_of_the_process_that_measured(bundle_path: Path, tmp_path: Path) -> None:
    classes = """
        import dataclasses
        def describe(command, threads, _describe=describe):
            return dataclasses.replace(_describe(command, threads), versions={"torch": "0.1"})
        import relukan_deploy.bench.request
        relukan_deploy.bench.request.describe = describe
    """
    python = worker_of(tmp_path, "Spinning('pykan')", classes)
    request = Request(str(bundle_path), CPU, ("pykan",), ("torch",))
    found = bench(request, (1, 64), BRIEF, pythons=Pythons(named={"pykan": python}), starts=0)
    (pykan,) = [each for each in found.series if each.contender.network == "pykan"]
    assert found.environments[pykan.environment].versions == {"torch": "0.1"}
    assert [found.environments[each.environment].versions["python"] for each in found.series if each is not pykan]
    assert len({environment.date for environment in found.environments}) == 1


def test_a_process_that_dies_is_skipped_and_the_rest_is_measured(bundle_path: Path, tmp_path: Path) -> None:
    classes = """
        import os
        class Dying(Spinning):
            def prepare(self, batch):
                os.abort()
    """
    pythons = Pythons(named={"pykan": worker_of(tmp_path, "Dying('pykan')", classes)})
    request = Request(str(bundle_path), CPU, ("pykan",), ("onnxruntime-cpu",))
    found = bench(request, (1,), BRIEF, pythons=pythons, starts=0)
    assert [each.what for each in found.skipped] == ["pykan"]
    assert found.skipped[0].why.startswith("its process was ended by SIGABRT")
    assert all(bool(each.points[0].timing) == (each.contender.network != "pykan") for each in found.series)


def test_a_process_that_dies_as_it_opens_is_skipped(bundle_path: Path, tmp_path: Path) -> None:
    python = script(tmp_path / "python", f'echo \'{{"version": "{__version__}"}}\'; echo no driver >&2; exit 3')
    request = Request(str(bundle_path), CPU, ("pykan",), ())
    found = bench(request, (1,), BRIEF, pythons=Pythons(named={"pykan": python}), starts=0)
    assert [(each.what, each.why) for each in found.skipped] == [
        ("pykan", "its process ended with exit code 3: no driver")
    ]
    assert len(found.series) == 2


def test_a_python_that_cannot_take_part_ends_it_before_anything_is_measured(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    python = str(empty_environment(tmp_path / "venv"))
    said: list[str] = []
    with pytest.raises(InputError, match=r"Install it there: .*/venv/bin/python -m pip install"):
        bench(Request(str(bundle_path), CPU), (1,), BRIEF, pythons=Pythons(python), say=said.append)
    assert said == ["opening onnxruntime-cpu"]


# --- who runs what where

REQUEST = Request("b", ("tensorrt", "onnxruntime-cpu"), ("pykan", "mlp"), ("torch", "torch.compile"))


def parts(pythons: Pythons, request: Request = REQUEST) -> list[tuple[str, str | None, tuple[str, ...], bool]]:
    """Of each process the name, the interpreter, what it measures, and whether it runs PyTorch."""
    return [
        (name, python, (*part.backends, *part.peers), bool(part.engines))
        for name, python, part in pythons.parts(request)
    ]


def test_everything_is_measured_in_this_process_unless_something_else_is_asked() -> None:
    everything = "this network, tensorrt, onnxruntime-cpu, pykan, mlp"
    assert parts(Pythons()) == [(everything, None, ("tensorrt", "onnxruntime-cpu", "pykan", "mlp"), True)]
    assert parts(Pythons("/p")) == [(everything, "/p", ("tensorrt", "onnxruntime-cpu", "pykan", "mlp"), True)]


def test_what_has_an_interpreter_is_measured_there_once() -> None:
    assert parts(Pythons(named={"tensorrt": "/t", "pykan": "/k"})) == [
        ("this network, onnxruntime-cpu, mlp", None, ("onnxruntime-cpu", "mlp"), True),
        ("tensorrt", "/t", ("tensorrt",), False),
        ("pykan", "/k", ("pykan",), True),
    ]
    assert parts(Pythons("/p", {"tensorrt": "/t", "pykan": "/t"})) == [
        ("this network, onnxruntime-cpu, mlp", "/p", ("onnxruntime-cpu", "mlp"), True),
        ("tensorrt, pykan", "/t", ("tensorrt", "pykan"), True),
    ]


def test_isolated_each_has_a_process_of_its_own() -> None:
    assert parts(Pythons(named={"tensorrt": "/t", "pykan": "/t"}, isolate=True)) == [
        ("this network", sys.executable, (), True),
        ("tensorrt", "/t", ("tensorrt",), False),
        ("onnxruntime-cpu", sys.executable, ("onnxruntime-cpu",), False),
        ("pykan", "/t", ("pykan",), True),
        ("mlp", sys.executable, ("mlp",), True),
    ]


def test_backends_alone_need_no_pytorch() -> None:
    alone = dataclasses.replace(REQUEST, peers=(), engines=())
    assert parts(Pythons(), alone) == [("tensorrt, onnxruntime-cpu", None, ("tensorrt", "onnxruntime-cpu"), False)]


@pytest.mark.parametrize(
    ("name", "reason"), [("relu-kan", "it is not measured"), ("cuda", "there is no such backend or peer")]
)
def test_an_interpreter_for_what_is_not_measured_is_an_error(name: str, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        parts(Pythons(named={name: "/p"}))
    assert str(caught.value) == (f"--python {name}=PATH: {reason}: measured are tensorrt, onnxruntime-cpu, pykan, mlp")
