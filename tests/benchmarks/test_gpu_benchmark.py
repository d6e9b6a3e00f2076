"""What of the GPU benchmark needs no GPU: all of it but the times, on a GPU of numpy."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed
sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from cuda_of_numpy import Engine, fake_tensorrt
from cuda_of_numpy import Gpu as FakeGpu
from networks import bump_layers

from benchmarks import _gpu_machine, _gpu_parts, gpu
from benchmarks._gpu_machine import Machine, network
from benchmarks._gpu_parts import KINDS, Part, parts
from benchmarks._gpu_record import Goal, Record, goals_of
from benchmarks._report import new_console
from relukan_deploy.bench import stored
from relukan_deploy.bench.results import Contender, Environment, Ideal, Peaks, Point, Results, Series
from relukan_deploy.bench.timing import summarise
from relukan_deploy.bundle import Artifact
from relukan_deploy.errors import MissingDependencyError, RelukanError
from relukan_deploy.exporters import to_tensorrt
from relukan_deploy.gpu import Gpu, find_gpu

HERE = Environment("python -m benchmarks.gpu", "2025-01-01", None, "a processor", 2, 1, "x86_64", "Linux", None, {}, 1)


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_leaves_with_4(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--quick"]):
        with pytest.raises(SystemExit) as left:
            gpu.main(arguments)
        assert left.value.code == 4
        assert "python -m benchmarks.gpu: error: an engine runs on an NVIDIA GPU" in capsys.readouterr().err


def test_less_time_than_the_report_takes_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        gpu.main(["--minutes", "0.2"])
    assert left.value.code == 2
    assert "--minutes must be more than 0.3, got 0.2" in capsys.readouterr().err


def test_results_lie_in_a_folder_named_after_the_gpu() -> None:
    assert gpu.slug(Gpu("NVIDIA GeForce RTX 4090 (24 GB)", "8.9", "13.0")) == "nvidia-geforce-rtx-4090-24-gb"


def test_the_empty_network_gives_back_what_it_is_given() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(_gpu_parts.relu(4), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).random((1, 4, 1, 7), np.float32)
    np.testing.assert_array_equal(session.run(["y"], {"x": x})[0], x)


def test_the_networks_are_the_same_every_time_and_none_of_their_bumps_is_dead() -> None:
    one, other = network((4, 64, 64, 1)), network((4, 64, 64, 1))
    for layer, again in zip(bump_layers(one), bump_layers(other), strict=True):
        np.testing.assert_array_equal(layer.coefficients, again.coefficients)
        assert layer.live.all()
    assert one.widths == (4, 64, 64, 1)


# --- the parts and their time


def test_every_kind_has_parts_with_names_of_their_own() -> None:
    every = list(parts())
    assert {part.kind for part in every} == set(KINDS)
    assert len({part.name for part in every}) == len(every)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(_gpu_machine, "require_an_answer", refuse)
    return Machine(Record(tmp_path / "results", HERE), tmp_path, gpu.QUICK, say=lambda doing: None)


def refuse(flavour: str) -> None:
    raise RelukanError("it crashes here")


def test_a_part_that_fails_is_skipped_by_name_and_the_others_go_on(machine: Machine, capsys: Any) -> None:
    ran: list[str] = []

    def fail(machine: Machine) -> None:
        raise RelukanError("it is too small")

    def crash(machine: Machine) -> None:
        raise RuntimeError("CUDA error\nadvice")

    wanted = [Part("calls", "a", fail), Part("calls", "b", crash), Part("calls", "c", lambda machine: ran.append("c"))]
    gpu.measure(new_console(), machine, wanted, time.monotonic() + 1000)
    assert ran == ["c"]
    found = {each.what: each.why for each in machine.record.skipped}
    assert found["calls a"] == "it is too small"
    assert found["calls b"] == "RuntimeError: CUDA error"
    assert found["tensorrt-rtx"] == "it crashes here"
    written = stored.read(machine.record.folder / "results.json")
    assert set(written.skipped) == set(machine.record.skipped)
    assert "calls c" in capsys.readouterr().out


def test_what_there_is_no_time_for_is_skipped_by_name(machine: Machine) -> None:
    gpu.measure(new_console(), machine, [Part("calls", "a", lambda machine: None)], time.monotonic() + 4)
    assert [(each.what, each.why) for each in machine.record.skipped][-1] == ("calls a", "the time was up")


def test_a_part_that_does_not_end_is_left_with_all_that_was_found(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    gone = threading.Event()

    def leave(code: int) -> None:
        left.append(code)
        gone.set()

    def find(machine: Machine) -> None:
        machine.record.add(series((2, 5, 1), "tensorrt", {1: 1e-5}))

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 0.0)
    wanted = [Part("calls", "a", find), Part("calls", "b", lambda machine: hang(gone)), Part("calls", "c", find)]
    gpu.measure(new_console(), machine, wanted, time.monotonic() + 0.5)
    assert left == [0]
    written = stored.read(machine.record.folder / "results.json")
    assert len(written.series) == 1
    assert {each.what for each in written.skipped if each.why == "the time was up"} == {"calls b", "calls c"}
    assert (machine.record.folder / "report.html").is_file()


def hang(until: threading.Event) -> None:
    assert until.wait(timeout=60)


# --- what was found


def series(
    widths: tuple[int, ...],
    engine: str,
    seconds: dict[int, float],
    network: str = "this network",
    ideal: float | None = None,
    **options: Any,
) -> Series:
    contender = Contender(network, widths, engine, **{"data": "device", "cuda_graph": True, **options})
    limit = None if ideal is None else Ideal(1, 1, ideal, "memory")
    points = (Point(batch, summarise([[[each] * 3] * 3]), ideal=limit) for batch, each in seconds.items())
    return Series(contender, 0, 1, None, tuple(points))


def test_batches_of_one_contender_are_joined_and_none_is_taken_twice(tmp_path: Path) -> None:
    record = Record(tmp_path, HERE)
    record.add(series((2, 5, 1), "tensorrt", {1: 1.0}))
    record.add(series((2, 5, 1), "tensorrt", {1: 2.0, 64: 3.0}))
    record.add(series((2, 5, 1), "tensorrt", {1: 4.0}, precision="fp16"))
    first, second = record.series
    assert [(point.batch, point.timing and point.timing.p50) for point in first.points] == [(1, 1.0), (64, 3.0)]
    assert record.has(first.contender, (1, 64))
    assert not record.has(second.contender, (1, 64))


def test_another_pythons_findings_are_kept(tmp_path: Path) -> None:
    other = Record(tmp_path / "other", dataclasses.replace(HERE, date="2025-01-02"))
    other.add(series((2, 5, 1), "tensorrt", {1: 1.0}))
    other.rows["parity"].append({"backend": "tensorrt"})
    other.write()
    record = Record(tmp_path / "own", HERE, [tmp_path / "other", tmp_path / "none"])
    assert not record.is_empty
    record.add(series((2, 5, 1), "torch", {1: 2.0}))
    record.write()
    written = stored.read(tmp_path / "own" / "results.json")
    assert [(each.contender.engine, each.environment) for each in written.series] == [("torch", 0), ("tensorrt", 1)]
    assert json.loads((tmp_path / "own" / "parity.json").read_text())["parity"] == [{"backend": "tensorrt"}]


def test_another_python_measures_the_engines_in_half_of_the_time(tmp_path: Path, capsys: Any) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nexit 4\n')
    python.chmod(0o755)
    gpu.elsewhere(new_console(), str(python), tmp_path / "other", minutes=4.0, quick=True)
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith(f"-m benchmarks.gpu --out {tmp_path}/other --minutes 4 --part calls forms ")
    assert "peaks" not in asked
    assert asked.endswith(" --quick\n")
    assert "left with exit code 4" in capsys.readouterr().out


def test_what_another_python_measured_gets_its_limit_from_this_ones_peaks(machine: Machine) -> None:
    found = (series((2, 5, 1), "tensorrt", {1: 1e-5}), series((2, 2), "tensorrt", {1: 1e-5}, "one Relu"))
    machine.record.others = [Results("", (HERE,), found)]
    machine.record.peaks.append(Peaks("gpu", "fp32", 1e30, 1e30, launch_seconds=2.0))
    machine.limit_others()
    ours, other = machine.record.results().series
    assert ours.points[0].ideal is not None
    assert ours.points[0].ideal.seconds == 2.0
    assert other.points[0].ideal is None


SMALL, USUAL = (2, 5, 1), (4, 64, 64, 1)


def test_the_numbers_to_reach_are_compared_with_the_fastest_engine_on_the_device() -> None:
    found = (
        series(SMALL, "tensorrt", {1: 11e-6}),
        series(SMALL, "tensorrt-rtx", {1: 10e-6}),
        series(SMALL, "tensorrt", {1: 1e-6}, cuda_graph=False),
        series(SMALL, "tensorrt", {1: 1e-6}, precision="fp16"),
        series(SMALL, "tensorrt", {1: 1e-6}, data="host"),
        series(SMALL, "torch CUDA graph", {1: 1e-6}),
        series(SMALL, "torch", {1: 450e-6}, "pykan", cuda_graph=False),
        series(SMALL, "torch.compile", {1: 100e-6}, "pykan", cuda_graph=False),
        series(SMALL, "torch.compile", {1: 60e-6}, "efficient-kan", cuda_graph=False),
        series(SMALL, "torch.compile", {1: 5e-6}, "mlp, same widths", cuda_graph=False),
        series(USUAL, "tensorrt", {1: 21e-6, 65536: 60e-6}, ideal=4e-6),
    )
    goals = goals_of(Results("", (HERE,), found))
    assert [(goal.found and round(goal.found, 6), goal.limit, goal.is_reached) for goal in goals] == [
        *((10.0, 12, True), (21.0, 20, False)),
        *((45.0, 50, False), (6.0, 5, True)),
        *((None, 50, None), (None, 5, None)),
        (15.0, 10, False),
    ]


@pytest.mark.parametrize(
    ("goal", "text"),
    [
        (Goal("a call", 12, 10.44, unit=" µs"), "a call: 10.4 µs, at most 12 µs: reached"),
        (Goal("a ratio", 50, 45.0, at_least=True), "a ratio: 45, at least 50: NOT reached"),
        (Goal("a ratio", 50, None, at_least=True), "a ratio: at least 50: not measured"),
    ],
)
def test_a_goal_says_whether_it_is_reached(goal: Goal, text: str) -> None:
    assert str(goal) == text


# --- the whole way, on a GPU of numpy


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """A GPU and a TensorRT-RTX of numpy: an engine's plan says what it was built from."""
    fake = FakeGpu()
    fake.install(monkeypatch)
    plans: list[tuple[Any, Artifact]] = []

    def build(model: bytes, **options: Any) -> to_tensorrt.Engine:
        widths = next(each for each in WIDTHS if each[0] == options["in_features"])
        profile = options["options"].batch
        artifact = Artifact("", "tensorrt-rtx", options["precision"], options["layout"], "direct", 1.0, batch=profile)
        plans.append((network(widths), artifact))
        return to_tensorrt.Engine(str(len(plans) - 1).encode(), "tensorrt-rtx", "99.0", None, 0.5)

    def open_plan(plan: bytes, logger: Any) -> Engine:
        return Engine(fake, *plans[int(plan)], logger)

    module = fake_tensorrt(lambda logger: None)
    module.Runtime = lambda logger: argparse.Namespace(deserialize_cuda_engine=lambda plan: open_plan(plan, logger))
    for where in ("runtime._plan", "bench.subjects.engine_profile"):
        monkeypatch.setattr(f"relukan_deploy.{where}.import_tensorrt", lambda *_: module)
    for where in ("relukan_deploy._recipe", "benchmarks._gpu_machine", "benchmarks._gpu_parts"):
        monkeypatch.setattr(f"{where}.build_engine", build)
    monkeypatch.setattr("relukan_deploy.bench.subjects.gpu_clock._BUSY_BYTES", 1024)
    yield fake
    gc.collect()
    assert fake.faults == []
    assert fake.live == set()


WIDTHS = ((2, 3, 1), (4, 3, 1))


def test_every_part_finds_what_it_is_for(fake: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_rtx(flavour: str) -> None:
        if flavour != "tensorrt-rtx":
            raise RelukanError("it is not installed")

    def peaks(device: Any, precision: Any) -> Peaks:
        return Peaks("gpu", precision, 1e12, 1e12, 1e-5)

    small, usual = WIDTHS
    monkeypatch.setattr(_gpu_machine, "require_an_answer", only_rtx)
    monkeypatch.setattr(_gpu_machine, "PROFILE", (1, 2, 64))
    monkeypatch.setattr(_gpu_parts, "PROFILE", (1, 2, 64))
    for name, value in {
        "SMALL": small,
        "USUAL": usual,
        "KEY": (usual,),
        "OTHERS": (small,),
        "Precision": Literal["fp32", "bf16"],
        "BATCHES": (1, 64),
        "LARGEST": 64,
        "PEERS": ("mlp",),
        "B_SPLINES": ("mlp",),
        "THREADS": (2,),
        "measure_peaks": peaks,
    }.items():
        monkeypatch.setattr(_gpu_parts, name, value)
    record = Record(tmp_path / "results", HERE)
    effort = dataclasses.replace(gpu.QUICK, rounds=1, burst=0.0, warm_up=0.0005, most=0.01)
    machine = Machine(record, tmp_path, effort, say=lambda doing: None)
    wanted = [part for part in parts() if part.kind not in ("compiled", "training", "startup")]
    gpu.measure(new_console(), machine, wanted, time.monotonic() + 1000)

    found = stored.read(record.folder / "results.json")
    ours = [each.contender for each in found.series if each.contender.network == "this network"]
    for precision in ("fp32", "bf16"):
        for layout in ("batch-last", "batch-major"):
            kept = [one for one in ours if (one.precision, one.layout, one.widths) == (precision, layout, usual)]
            assert {(one.data, one.cuda_graph) for one in kept if one.engine == "tensorrt-rtx"} == {
                *((data, graph) for data in ("host", "device") for graph in (True, False))
            }
    forms = {each.contender.network for each in found.series} & {"direct form", "quadratic form"}
    assert len(forms) == 2
    assert {each.contender.network for each in found.series} >= {"mlp, same widths", "one Relu"}
    fast = next(each for each in found.series if each.contender.engine == "tensorrt-rtx")
    assert [point.batch for point in fast.points] == [1, 64]
    assert all(point.split and point.ideal for point in fast.points)
    assert {each["precision"] for each in record.rows["parity"] if each["passed"]} == {"fp32", "bf16"}
    assert record.rows["profile"][0]["layers"] == [{"name": "all of it", "seconds": 1.5e-3}]
    assert record.rows["threads"][0]["calls per second"] > 0
    assert not [each for each in record.skipped if each.what.startswith(("calls", "forms", "precisions", "profile"))]
    assert (record.folder / "report.html").stat().st_size > 1000


def test_nothing_that_runs_is_a_missing_dependency(
    fake: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "open_device", lambda: fake)
    monkeypatch.setattr(gpu, "find_gpu", lambda: Gpu("a GPU of numpy", "9.0", "13.0"))
    monkeypatch.setattr(_gpu_machine, "require_an_answer", refuse)
    monkeypatch.setattr(gpu, "parts", lambda: iter(()))
    options = argparse.Namespace(minutes=8, quick=True, part=None, python=None, out=tmp_path)
    with pytest.raises(MissingDependencyError):
        gpu.measure_all(options)
