"""The parts of the GPU benchmark, the most important first. What cannot be had is skipped by name."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from relukan_deploy.bench.limits import measure_peaks
from relukan_deploy.bench.peers import PEERS, build
from relukan_deploy.bench.results import B_SPLINES, OURS, Contender
from relukan_deploy.bench.startup import cold_starts
from relukan_deploy.bench.subjects import Subject
from relukan_deploy.bench.subjects.bundles import artifact_for, bundle_subjects, shape_of
from relukan_deploy.bench.subjects.engine_profile import layer_seconds
from relukan_deploy.bench.timing import Turn, sample, summarise
from relukan_deploy.bundle import Artifact, Bundle
from relukan_deploy.errors import RelukanError
from relukan_deploy.exporters.to_tensorrt import EngineOptions, build_engine
from relukan_deploy.lowering import ENGINE_FORM
from relukan_deploy.runtime._engine import EngineBackend
from relukan_deploy.runtime.load import open_backend
from relukan_deploy.spec import Form, Layout, Precision

from ._gpu_machine import PROFILE, Machine, Widths

if TYPE_CHECKING:
    from torch import nn

    from relukan_deploy.bench.subjects.torch_subjects import TorchEngine

__all__ = ["KINDS", "Part", "parts", "relu"]

SMALL, USUAL = (2, 5, 1), (4, 64, 64, 1)
KEY: tuple[Widths, ...] = (SMALL, USUAL)
OTHERS: tuple[Widths, ...] = ((64, 32, 10), (784, 64, 10), (1000, 1000, 1))
BATCHES = (1, 64, 1024, 65536)
LARGEST = BATCHES[-1]
TRAINED_ROWS = 1000
THREADS = (1, 2, 4, 8)
STARTS = 3
FORMS: tuple[Form, ...] = ("direct", "quadratic")  # of bumps

KINDS = (
    *("peaks", "calls", "compiled", "profile", "forms", "precisions"),
    *("training", "startup", "exports", "empty", "threads"),
)


@dataclasses.dataclass(frozen=True)
class Part:
    """Something to measure: of one of `KINDS`, and of what."""

    kind: str
    of: str
    run: Callable[[Machine], None]

    @property
    def name(self) -> str:
        return f"{self.kind} {self.of}".strip()


def parts() -> Iterator[Part]:
    """All of them, in the order in which they are worth their time."""

    def part(run: Callable[..., None], widths: Widths, *arguments: Any, of: str = "") -> Part:
        return Part(run.__name__, f"{list(widths)} {of}".strip(), lambda machine: run(machine, widths, *arguments))

    yield Part("peaks", "", peaks)
    yield from (part(calls, widths) for widths in KEY)
    yield from (part(compiled, widths, B_SPLINES, (1,), of="B-spline KANs") for widths in KEY)
    yield part(profile, USUAL)
    yield from (part(forms, widths) for widths in KEY)
    for widths, precision, layout in itertools.product(reversed(KEY), get_args(Precision), get_args(Layout)):
        yield part(precisions, widths, precision, layout, of=f"{precision} {layout}")
    yield from (part(calls, widths) for widths in OTHERS)
    yield from (part(training, widths, "torch", of="torch") for widths in KEY)
    yield part(startup, USUAL)
    yield from (part(exports, widths) for widths in KEY)
    yield part(training, SMALL, "torch CUDA graph", of="torch CUDA graph")
    yield Part("training", "as in the paper", training_speed)
    yield from (part(compiled, widths, tuple(PEERS), BATCHES) for widths in reversed(KEY))
    yield part(empty, SMALL)
    yield part(threads, USUAL)


# --- each part


def peaks(machine: Machine) -> None:
    """What this GPU does at most, in each precision."""
    for precision in get_args(Precision):
        try:
            machine.record.peaks.append(measure_peaks("gpu", precision))
        except RelukanError as error:
            machine.record.skip(f"the ideal limit, {precision}", str(error))
    machine.limit_others()


def calls(machine: Machine, widths: Widths) -> None:
    """Our network in fp32 in every engine, and it and the peers in PyTorch, eager and as CUDA graphs."""
    subjects: list[Subject] = []
    for flavour in machine.flavours:
        with skipping(machine, f"{list(widths)}: {flavour}"):
            subjects += bundle_subjects(machine.bundle(widths, flavour), flavour, threads=1)
    graph = machine.bundle(widths)
    with skipping(machine, "onnxruntime-cuda"):
        subjects += bundle_subjects(graph, "onnxruntime-cuda", threads=1)
    subjects += in_torch(machine, graph, tuple(PEERS), ("torch", "torch CUDA graph"))
    machine.measure(subjects, graph, BATCHES)


def compiled(machine: Machine, widths: Widths, peers: Sequence[str], batches: Sequence[int]) -> None:
    """Our network and peers, compiled by PyTorch, each batch size for itself."""
    graph = machine.bundle(widths)
    machine.measure(in_torch(machine, graph, peers, ("torch.compile",)), graph, batches)


def profile(machine: Machine, widths: Widths) -> None:
    """Which node of the engine costs how much, at the largest batch."""
    for flavour in machine.flavours:
        with skipping(machine, f"profile of {flavour}"):
            bundle = machine.bundle(widths, flavour)
            backend = open_backend(bundle, flavour, artifact_for(bundle, flavour))
            assert isinstance(backend, EngineBackend)
            found = layer_seconds(backend, LARGEST)
            backend.close()
            machine.record.rows["profile"].append(
                {
                    "engine": flavour,
                    "network": list(widths),
                    "batch": LARGEST,
                    "layers": [{"name": name, "seconds": seconds} for name, seconds in found.items()],
                }
            )


def forms(machine: Machine, widths: Widths) -> None:
    """Engines of both forms and layouts side by side: what ENGINE_FORM in lowering is to be."""
    subjects: list[Subject] = []
    for flavour in machine.flavours:
        for layout in get_args(Layout):
            for form in FORMS:
                with skipping(machine, f"{list(widths)}: {flavour}, {form} form, {layout}"):
                    subjects += machine.engine(widths, flavour, form, layout)
    machine.measure(subjects, machine.bundle(widths), BATCHES)


def precisions(machine: Machine, widths: Widths, precision: Precision, layout: Layout) -> None:
    """Engines of one precision and layout; ONNX Runtime on the GPU too, where it can."""
    for flavour in machine.flavours:
        with skipping(machine, f"{list(widths)}: {flavour}, {precision}, {layout}"):
            bundle = machine.bundle(widths, flavour, precision, layout)
            subjects = bundle_subjects(bundle, flavour, threads=1)
            with skipping(machine, "onnxruntime-cuda"):
                if precision != "tf32":  # whose graph is the fp32 one
                    subjects += bundle_subjects(bundle, "onnxruntime-cuda", threads=1)
            machine.measure(subjects, bundle, BATCHES)


def training(machine: Machine, widths: Widths, engine: TorchEngine) -> None:
    """Steps of training, of our network and the peers: forward, backward, Adam."""
    from relukan_deploy.bench.peers.ours import trained_like
    from relukan_deploy.bench.training import training_turns

    shape, effort = shape_of(machine.bundle(widths)), machine.effort
    networks: dict[str, nn.Module] = {OURS: trained_like(shape)}
    for peer in PEERS:
        with skipping(machine, peer):
            networks.update(build(peer, shape))
    turns: dict[str, Turn] = {}
    for name, module in networks.items():
        with skipping(machine, f"training {name}: {engine}"):
            machine.say(f"training {name}: {engine}")
            turns[name] = training_turns(module, shape, TRAINED_ROWS, engine=engine)
    if not turns:
        return
    found = sample(turns, rounds=effort.rounds, burst=effort.burst, warm_up=effort.warm_up, most=10 * effort.most)
    for name, rounds in found.items():
        times = dataclasses.asdict(summarise([rounds]))
        del times["rounds"]
        row = {"network": name, "widths": list(widths), "engine": engine, "batch": TRAINED_ROWS}
        machine.record.rows["training"].append({**row, **times})


def training_speed(machine: Machine) -> None:
    """The paper's table, in a process of its own: beside the other files, with its picture."""
    machine.say("training as in the paper")
    file = machine.record.folder / "training_speed.json"
    command = [sys.executable, "-m", "benchmarks.training_speed", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RelukanError(f"benchmarks.training_speed left with {done.returncode}: {done.stderr.strip()[-300:]}")


def startup(machine: Machine, widths: Widths) -> None:
    """Fresh processes up to the first answer."""
    for backend in (*machine.flavours, "onnxruntime-cuda"):
        with skipping(machine, f"startup of {backend}"):
            machine.say(f"starting processes: {backend}")
            flavour = next((flavour for flavour in machine.flavours if flavour == backend), None)
            machine.record.startups += cold_starts(machine.bundle(widths, flavour).path, [backend], runs=STARTS)


def exports(machine: Machine, widths: Widths) -> None:
    """The peers' own ONNX exports in the engines that run ours."""
    graph = machine.bundle(widths)
    machine.measure(in_torch(machine, graph, tuple(PEERS), (*machine.flavours, "onnxruntime-cuda")), graph, BATCHES)


def empty(machine: Machine, widths: Widths) -> None:
    """What an engine costs that does nothing: one Relu, as wide as the input."""
    subjects: list[Subject] = []
    features = widths[0]
    for flavour in machine.flavours:
        with skipping(machine, f"one Relu: {flavour}"):
            options = EngineOptions(batch=PROFILE)
            plan = build_engine(
                relu(features), in_features=features, layout="batch-last", precision="fp32", options=options,
                flavour=flavour,
            ).plan  # fmt: skip
            artifact = Artifact("relu.engine", flavour, "fp32", "batch-last", ENGINE_FORM, 0.0, batch=PROFILE)
            backend = EngineBackend(flavour, plan, artifact, features, features)
            contender = Contender("one Relu", (features, features), flavour, layout="batch-last")
            subjects += machine.with_graphs(contender, backend, np.tile((0.0, 1.0), (features, 1)))
    machine.measure(subjects, machine.bundle(widths), BATCHES)


def threads(machine: Machine, widths: Widths) -> None:
    """Calls a second of several threads, each with rows of its own in host memory."""
    for flavour in machine.flavours:
        with skipping(machine, f"threads: {flavour}"):
            bundle = machine.bundle(widths, flavour)
            backend = open_backend(bundle, flavour, artifact_for(bundle, flavour))
            for batch in (1, 1024):
                for count in THREADS:
                    rate = calls_a_second(backend.run, widths[0], batch, count, seconds=10 * machine.effort.warm_up)
                    row = {"engine": flavour, "network": list(widths), "batch": batch, "threads": count}
                    machine.record.rows["threads"].append({**row, "calls per second": rate})
            backend.close()


# --- what they share


class skipping:  # noqa: N801  reads as a statement
    """Records an error in the block as the reason why something was left out."""

    def __init__(self, machine: Machine, what: str) -> None:
        self._machine, self._what = machine, what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        said = str(error) if isinstance(error, RelukanError) else f"{type(error).__name__}: {error}"
        self._machine.record.skip(self._what, said)
        return True


def in_torch(machine: Machine, bundle: Bundle, peers: Sequence[str], engines: Sequence[str]) -> list[Subject]:
    """Our network and peers in engines of PyTorch, or the peers' exports in others."""
    with skipping(machine, ", ".join(engines)):
        from relukan_deploy.bench.subjects.torch_engines import peer_subjects

        machine.say(f"opening {', '.join(peers)} in {', '.join(engines)}")
        subjects, skipped = peer_subjects(shape_of(bundle), peers, threads=1, engines=engines)
        for each in skipped:
            machine.record.skip(f"{list(bundle.manifest.widths)}: {each.what}", each.why)
        return list(subjects)
    return []


def relu(features: int) -> bytes:
    """A graph that does nothing to inputs that are not negative."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, features, 1, "batch"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "empty", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    serialised: bytes = model.SerializeToString()
    return serialised


def calls_a_second(run: Callable[..., object], features: int, batch: int, count: int, *, seconds: float) -> float:
    done, start, stop = [0] * count, threading.Barrier(count + 1, timeout=60), threading.Event()

    def work(index: int) -> None:
        x = np.random.default_rng(index).uniform(0, 1, (batch, features)).astype(np.float32)
        for _ in range(20):
            run(x)
        start.wait()
        while not stop.is_set():
            run(x)
            done[index] += 1

    working = [threading.Thread(target=functools.partial(work, index)) for index in range(count)]
    for thread in working:
        thread.start()
    start.wait()
    begin, before = time.perf_counter(), sum(done)
    time.sleep(seconds)
    rate = (sum(done) - before) / (time.perf_counter() - begin)
    stop.set()
    for thread in working:
        thread.join()
    return rate
