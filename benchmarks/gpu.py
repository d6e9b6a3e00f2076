"""What a call costs on a GPU, beside a network that does nothing, with CUDA graphs and without.

    python -m benchmarks.gpu [--quick] [--json FILE]

Every TensorRT that is installed runs every network, and a Relu that is as wide as the network's input.
All contenders of a batch take turns in short bursts. Three times are taken of each call:

host     from rows in host memory to answers there, on the caller's clock
device   from x to y, both on the GPU, on the GPU's clock: CUDA events around the call, enqueued while
         the GPU is still busy with something else, so that Python's part does not count
call     the same, on the caller's clock: enqueuing it, and waiting for it

Results go to benchmarks/results/GPU-NAME/runtime.json.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from relukan_deploy._tensorrt import Flavour
from relukan_deploy.bundle import Artifact
from relukan_deploy.cli._command import run
from relukan_deploy.errors import MissingDependencyError, RelukanError
from relukan_deploy.exporters.to_onnx import to_onnx
from relukan_deploy.exporters.to_tensorrt import EngineOptions, build_engine
from relukan_deploy.gpu import Gpu, find_gpu, open_device
from relukan_deploy.lowering import ENGINE_FORM
from relukan_deploy.runtime._engine import EngineBackend

from ._networks import trained_like
from ._report import header, micro, new_console, print_header, write_json

NETWORKS = ((2, 5, 1), (4, 64, 64, 1), (64, 32, 10))
BATCHES = (1, 64, 1024, 65536)
THREADS = (1, 2, 4, 8)
THREADED = (4, 64, 64, 1)
PROFILE = (1, 64, 65536)
PACKAGES = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt_rtx_cu13", "cuda-core", "cuda-bindings", "numpy")
BUSY_BYTES = 256 << 20  # filling so many keeps a GPU busy for longer than enqueuing a call takes
CLOCKS = ("host", "device", "call")

Call = Callable[[], float]  # runs once, and gives the seconds that it took


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short run, with fewer calls")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there instead")
    raise SystemExit(run(parser, measure_all, arguments))


def measure_all(options: argparse.Namespace) -> None:
    open_device()
    gpu = find_gpu()
    assert gpu is not None
    console = new_console()
    values = header("gpu", [name for name in PACKAGES if is_installed(name)])
    values["machine"]["gpu"] = vars(gpu)
    print_header(console, values)
    console.print(f"{gpu.name}, compute capability {gpu.compute_capability}, CUDA {gpu.cuda}")
    results: list[dict[str, Any]] = []
    throughput: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for flavour in get_args(Flavour):
        try:
            measure_flavour(flavour, results, throughput, quick=options.quick)
        except RelukanError as error:  # it is not installed, or does not support this GPU
            skipped[flavour] = str(error)
            console.print(f"[bold]{flavour} is left out:[/bold] {error}")
    if not results:
        raise MissingDependencyError("Measuring engines", "tensorrt", "trt")
    print_results(console, results, throughput)
    path = options.json or Path(__file__).parent / "results" / slug(gpu) / "runtime.json"
    write_json(path, {**values, "profile": PROFILE, "results": results, "threads": throughput, "skipped": skipped})
    console.print(f"→ {path}")


def measure_flavour(flavour: Flavour, results: list[Any], throughput: list[Any], *, quick: bool) -> None:
    for widths in NETWORKS:
        backends = open_contenders(flavour, widths)
        for batch in BATCHES:
            x = np.random.default_rng(2).uniform(0, 1, (batch, widths[0])).astype(np.float32)
            calls = {name: calls_of(backend, x) for name, backend in backends.items()}
            times = {
                clock: sample({name: made[clock] for name, made in calls.items()}, rounds=5 if quick else 40)
                for clock in CLOCKS
            }
            results.append({"flavour": flavour, "network": list(widths), "batch": batch, "seconds": times})
        if widths == THREADED:
            backend = backends["network, graph"]
            throughput += [
                {
                    "flavour": flavour,
                    "network": list(widths),
                    "batch": batch,
                    "threads": count,
                    "calls per second": rate,
                }
                for batch in (1, 1024)
                for count, rate in threaded(backend, widths[0], batch, seconds=0.3 if quick else 3.0).items()
            ]
        for backend in backends.values():
            backend.close()


def open_contenders(flavour: Flavour, widths: Sequence[int]) -> dict[str, EngineBackend]:
    """The network and the Relu, with graphs and without. The network has answered correctly."""
    spec = trained_like(widths).spec()
    models = {
        "network": (to_onnx(spec, layout="batch-last", form=ENGINE_FORM), widths[-1]),
        "empty": (relu(widths[0]), widths[0]),
    }
    options = EngineOptions(batch=PROFILE)
    opened: dict[str, EngineBackend] = {}
    for name, (model, outputs) in models.items():
        plan = build_engine(
            model, in_features=widths[0], layout="batch-last", precision="fp32", options=options, flavour=flavour
        ).plan
        artifact = Artifact(f"{name}.engine", flavour, "fp32", "batch-last", ENGINE_FORM, 1e-5, batch=PROFILE)
        for graphs in (True, False):
            backend = EngineBackend(flavour, plan, artifact, widths[0], outputs, graphs=graphs)
            opened[f"{name}, {'graph' if graphs else 'no graph'}"] = backend
    x = np.random.default_rng(1).uniform(0, 1, (1000, widths[0])).astype(np.float32)
    for name, backend in opened.items():
        expected = spec.evaluate(x) if name.startswith("network") else x
        error = float(np.abs(backend.run(x) - expected).max()) / max(1.0, float(np.abs(expected).max()))
        if error > 1e-5:
            raise RelukanError(f"{flavour} answers {list(widths)} ({name}) wrongly, by {error:.2g}: nothing is timed")
    return opened


def relu(features: int) -> bytes:
    """A graph that does nothing to inputs that are not negative."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, features, 1, "batch"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "empty", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    serialised: bytes = model.SerializeToString()
    return serialised


def calls_of(backend: EngineBackend, x: NDArray[np.float32]) -> dict[str, Call]:
    """One call on each clock, for a batch."""
    from cuda.core import EventOptions

    cuda = backend.cuda
    with cuda:
        stream = cuda.device.create_stream()
        begin, end = (cuda.device.create_event(EventOptions(timing_enabled=True)) for _ in range(2))
        busy = cuda.device.allocate(BUSY_BYTES, stream=stream)
        given = cuda.device.allocate(x.nbytes, stream=stream)
        made = cuda.device.allocate(len(x) * backend.out_features * 4, stream=stream)
        given.fill(0, stream=stream)
        stream.sync()
    arguments = len(x), int(given.handle), int(made.handle), int(stream.handle)

    def on_gpus_clock() -> float:
        with cuda:
            busy.fill(0, stream=stream)
            stream.record(begin)
            backend.enqueue(*arguments)
            stream.record(end)
            end.sync()
            return float(end - begin) / 1e3  # from milliseconds

    def enqueued_and_waited_for() -> None:
        backend.enqueue(*arguments)
        stream.sync()

    return {
        "host": timed(lambda: backend.run(x)),
        "device": on_gpus_clock,
        "call": timed(enqueued_and_waited_for),
    }


def timed(call: Callable[[], object]) -> Call:
    def run() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return run


def sample(calls: Mapping[str, Call], *, rounds: int, burst: float = 0.02) -> dict[str, dict[str, float]]:
    """p50, p99, the best and the number of calls of each contender, interleaved in bursts of `burst` seconds.

    The first two calls of a burst are not counted: they bring code, data and the GPU's clocks back.
    """
    for call in calls.values():
        for _ in range(20):
            call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                calls[name]()
                calls[name]()
                stop = time.perf_counter() + burst
                taken[name].append(calls[name]())
                while time.perf_counter() < stop:
                    taken[name].append(calls[name]())
            gc.collect()
    finally:
        gc.enable()
    return {
        name: {
            "p50": float(np.percentile(times, 50)),
            "p99": float(np.percentile(times, 99)),
            "best": min(times),
            "calls": len(times),
        }
        for name, times in taken.items()
    }


def threaded(backend: EngineBackend, in_features: int, batch: int, *, seconds: float) -> dict[int, float]:
    """Calls a second of so many threads, each with rows of its own in host memory."""
    rates = {}
    for count in THREADS:
        done = [0] * count
        start, stop = threading.Barrier(count + 1), threading.Event()

        def work(
            index: int, done: list[int] = done, start: threading.Barrier = start, stop: threading.Event = stop
        ) -> None:
            x = np.random.default_rng(index).uniform(0, 1, (batch, in_features)).astype(np.float32)
            for _ in range(20):
                backend.run(x)
            start.wait()
            while not stop.is_set():
                backend.run(x)
                done[index] += 1

        threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
        for thread in threads:
            thread.start()
        start.wait()
        begin, before = time.perf_counter(), sum(done)
        time.sleep(seconds)
        rates[count] = (sum(done) - before) / (time.perf_counter() - begin)
        stop.set()
        for thread in threads:
            thread.join()
    return rates


def print_results(console: Console, results: Sequence[Any], throughput: Sequence[Any]) -> None:
    table = Table(
        "TensorRT", "network", "batch", "clock", "graph", "no graph", "empty, graph", "graph - empty",
        title="p50 (p99) of one call, µs",
    )  # fmt: skip
    for result in results:
        for clock in CLOCKS:
            times = result["seconds"][clock]
            cells = [
                f"{micro(times[name]['p50'])} ({micro(times[name]['p99'])})"
                for name in ("network, graph", "network, no graph", "empty, graph")
            ]
            more = (times["network, graph"]["p50"] - times["empty, graph"]["p50"]) * 1e6
            table.add_row(
                result["flavour"], str(result["network"]), str(result["batch"]), clock, *cells, f"{more:+.1f}"
            )
    console.print(table)
    table = Table("TensorRT", "batch", "threads", "calls/s", title=f"{list(THREADED)}, host to host")
    for row in throughput:
        table.add_row(row["flavour"], str(row["batch"]), str(row["threads"]), f"{row['calls per second']:,.0f}")
    console.print(table)


def is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def slug(gpu: Gpu) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")


if __name__ == "__main__":
    main()
