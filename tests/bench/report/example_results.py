"""Results as a benchmark leaves them, of machines that do not exist, for the tests of the reports.

The times follow a cost for a call and one for a row, with scatter; nobody measured them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from relukan_deploy.bench.results import (
    Accuracy,
    Conditions,
    Contender,
    Data,
    Environment,
    Gpu,
    Ideal,
    Peaks,
    Point,
    Results,
    Series,
    Skipped,
    Split,
    Startup,
)
from relukan_deploy.bench.timing import Timing, summarise
from relukan_deploy.spec import Precision

BATCHES = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
OURS = "this network"
HOSTILE = "</script><script>alert(1)</script>"
SHAPE = (4, 64, 64, 1)

# Seconds for a call and for a row in PyTorch, by network.
PEERS: dict[str, tuple[float, float]] = {
    "pykan": (1000e-6, 85e-6),
    "efficient-kan": (400e-6, 21e-6),
    "fast-kan": (220e-6, 5.6e-6),
    "relu-kan": (380e-6, 6e-6),
    "mlp, same widths": (38e-6, 0.21e-6),
    "mlp, same parameters": (40e-6, 1.1e-6),
}
# What an engine makes of them: a factor for a call, and one for a row.
ENGINES: dict[tuple[str, Data], tuple[float, float]] = {
    ("torch", "host"): (1.0, 1.0),
    ("torch.compile", "host"): (0.35, 0.4),
    ("onnxruntime-cpu", "host"): (0.15, 0.8),
    ("onnxruntime-cpu", "bound"): (0.13, 0.75),
}
GPU_ENGINES: dict[tuple[str, Data], tuple[float, float]] = {
    ("torch", "host"): (1.1, 0.002),
    ("torch", "device"): (1.0, 0.0015),
    ("torch.compile", "device"): (0.3, 0.0008),
    ("torch CUDA graph", "device"): (0.05, 0.0015),
    ("onnxruntime-cuda", "host"): (0.2, 0.002),
    ("tensorrt", "host"): (0.04, 0.0012),
    ("tensorrt", "device"): (0.025, 0.0006),
}


def timing(seconds: float, *, seed: int, runs: int = 5, rounds: int = 9, unsteady: bool = False) -> Timing:
    """Figures of calls that take about so long."""
    generator = np.random.default_rng(seed)
    scatter = 0.35 if unsteady else 0.03
    taken = seconds * np.exp(generator.normal(0, scatter, (runs, rounds, 1)))
    calls = taken * np.exp(np.abs(generator.normal(0, 0.02, (runs, rounds, 6))))
    return summarise(calls.tolist())


def series(
    contender: Contender,
    launch: float,
    row: float,
    *,
    environment: int = 0,
    batches: Sequence[int] = BATCHES,
    longest: float = 1.0,
    peaks: Peaks | None = None,
) -> Series:
    """A contender whose calls take `launch` and `row` for each row; longer than `longest` is skipped."""
    seed = sum(map(ord, contender.name)) + environment
    points: list[Point] = []
    for batch in batches:
        seconds = launch + row * batch
        if points and points[-1].skipped:
            points.append(Point(batch, skipped=points[-1].skipped))
            continue
        if seconds > longest:
            points.append(
                Point(batch, skipped=f"a call with {batch} rows takes {seconds:.1f} s, more than {longest:g}")
            )
            continue
        points.append(
            Point(
                batch,
                timing(seconds, seed=seed + batch, unsteady=(seed + batch) % 23 == 0),
                split=split(contender, batch, seconds),
                ideal=ideal(peaks, batch) if peaks else None,
            )
        )
    parameters = {"mlp, same widths": 4545, "mlp, same parameters": 35_413}.get(contender.network, 35_457)
    return Series(contender, environment, parameters, 3.1e-7, tuple(points))


def split(contender: Contender, batch: int, seconds: float) -> Split | None:
    if not contender.engine.startswith("tensorrt"):
        return None
    if contender.data == "device":
        return Split(0.0, 0.9 * seconds, 0.0)
    part = 0.2 + 0.2 * batch / (batch + 4096)
    return Split(part * seconds, (0.9 - 1.3 * part) * seconds, 0.3 * part * seconds)


def ideal(peaks: Peaks, batch: int) -> Ideal:
    flops, moved = 70_000.0 * batch, 142_000.0 + 20.0 * batch
    costs = {
        "arithmetic": flops / peaks.flops_per_second,
        "memory": moved / peaks.bytes_per_second,
        "launch": peaks.launch_seconds,
    }
    bound = max(costs, key=costs.__getitem__)
    return Ideal(flops, moved, costs[bound], bound)  # type: ignore[arg-type]


CPU_PEAKS = Peaks("cpu", "fp32", 71e9, 12e9, 2.2e-6)
GPU_PEAKS = Peaks("gpu", "fp32", 48e12, 3.1e12, 2.4e-6)


def environment(*, gpu: bool = False, command: str = "relukan-bench model", threads: int = 1) -> Environment:
    return Environment(
        command=command,
        date="2026-03-14T15:09:26+00:00",
        commit="0123456789abcdef0123456789abcdef01234567+",
        processor="Example 9000 48-Core Processor",
        cores=16 if gpu else 2,
        memory_bytes=137_438_953_472 if gpu else 25_276_502_016,
        architecture="x86_64",
        system="Linux 6.1.0",
        gpu=Gpu("Example GPU 80GB", "9.0", "13.0", "580.65.06", 85_899_345_920) if gpu else None,
        versions={"python": "3.11.9", "relukan-deploy": "0.1.0", "numpy": "2.4.6", "onnxruntime": "1.32.0"}
        | {"torch": "2.13.0", "pykan": "0.2.8"}
        | ({"tensorrt": "11.1.0"} if gpu else {}),
        threads=threads,
        before=Conditions(load=0.3, cpu_mhz=2450.0, gpu_mhz=1980.0, gpu_celsius=41.0, gpu_watts=92.0)
        if gpu
        else Conditions(load=0.3, cpu_mhz=2450.0),
        after=Conditions(load=1.2, cpu_mhz=2600.0, gpu_mhz=1755.0, gpu_celsius=63.0, gpu_watts=488.0)
        if gpu
        else Conditions(load=1.2, cpu_mhz=2600.0),
        peaks=(CPU_PEAKS, GPU_PEAKS) if gpu else (CPU_PEAKS,),
    )


def ours_on_cpu(shape: tuple[int, ...] = SHAPE, **options: object) -> list[Series]:
    costs: dict[tuple[str, Data], tuple[float, float]] = {
        ("onnxruntime-cpu", "host"): (15e-6, 1.24e-6),
        ("onnxruntime-cpu", "bound"): (12.6e-6, 1.22e-6),
        ("torch", "host"): (210e-6, 6.1e-6),
        ("torch.compile", "host"): (55e-6, 2.9e-6),
    }
    return [
        series(
            Contender(OURS, shape, engine, layout=None if "torch" in engine else "batch-last", data=data),
            *cost,
            peaks=None if "torch" in engine else CPU_PEAKS,
            **options,  # type: ignore[arg-type]
        )
        for (engine, data), cost in costs.items()
    ]


def peers(
    engines: Mapping[tuple[str, Data], tuple[float, float]],
    shape: tuple[int, ...] = SHAPE,
    *,
    names: Sequence[str] = tuple(PEERS),
    environment: int = 0,
) -> list[Series]:
    found = []
    for network in names:
        launch, row = PEERS.get(network, PEERS["pykan"])
        widths = (shape[0], *(3 * each for each in shape[1:-1]), shape[-1]) if "parameters" in network else shape
        for (engine, data), (call, each) in engines.items():
            contender = Contender(network, widths, engine, data=data, cuda_graph=engine == "tensorrt")
            found.append(series(contender, launch * call, row * each, environment=environment))
    return found


def startups(*, gpu: bool = False) -> tuple[Startup, ...]:
    cpu = Startup("onnxruntime-cpu", 0, "model.onnx", 151_000, None, 0.011, 0.19, 0.0009, 92_000_000, None)
    if not gpu:
        return (cpu,)
    return (
        cpu,
        Startup("tensorrt", 0, "model.engine", 812_000, 7.4, 0.011, 1.31, 0.0021, 910_000_000, 412_000_000),
        Startup("tensorrt-rtx", 0, "model-rtx.engine", 455_000, 0.14, 0.011, 0.77, 0.0034, 610_000_000, 302_000_000),
    )


def accuracies() -> tuple[Accuracy, ...]:
    rows = [
        (OURS, (4, 8, 1), 361, "onnxruntime-cpu", 3.2e-4, None, {1: 9e-6, 1024: 160e-6}),
        ("pykan", (4, 8, 1), 720, "torch", 2.9e-4, 61.0, {1: 800e-6, 1024: 9e-3}),
        ("efficient-kan", (4, 8, 1), 360, "torch", 3.6e-4, 33.0, {1: 350e-6, 1024: 3e-3}),
        ("mlp, same parameters", (4, 59, 1), 355, "onnxruntime-cpu", 9.1e-3, 12.0, {1: 6e-6, 1024: 90e-6}),
        ("mlp, same parameters", (4, 64, 64, 1), 4545, "onnxruntime-cpu", 4.0e-4, 19.0, {1: 7e-6, 1024: 210e-6}),
    ]
    return tuple(
        Accuracy(network, widths, parameters, engine, 0, error, trained, seconds, 5e-4)
        for network, widths, parameters, engine, error, trained, seconds in rows
    )


def cpu_results() -> Results:
    """A run on a CPU with every peer: 28 series, some unsteady, some skipped."""
    return Results(
        bundle="model",
        environments=(
            environment(
                command="relukan-bench model --against pykan,efficient-kan,fast-kan,relu-kan,mlp --html report.html"
            ),
        ),
        series=(*ours_on_cpu(), *peers(ENGINES)),
        startups=startups(),
        accuracies=accuracies(),
        skipped=(
            Skipped("tensorrt", "there is no GPU here: the driver's library libcuda.so.1 is missing"),
            Skipped("relu-kan: onnxruntime-cpu", "its export has a fixed batch size"),
        ),
    )


def gpu_results() -> Results:
    """A run on a GPU, and of a second Python on the same machine: every precision, CUDA graphs, splits, ideals."""
    precisions: dict[Precision, float] = {"fp32": 1.0, "tf32": 0.8, "fp16": 0.55, "bf16": 0.56}
    data: tuple[Data, ...] = ("host", "device")
    ours = [
        series(
            Contender(OURS, SHAPE, engine, precision, "batch-last", place, graph),
            (26e-6 if place == "host" else 9e-6) * (1.0 if graph else 1.7) * (1 + slower),
            (6e-9 if place == "host" else 3e-9) * faster,
            environment=number,
            peaks=GPU_PEAKS,
        )
        for number, engine, slower in ((0, "tensorrt", 0.0), (1, "tensorrt-rtx", 0.1))
        for precision, faster in precisions.items()
        for place in data
        for graph in (True, False)
    ]
    return Results(
        bundle="model",
        environments=(
            environment(gpu=True, command="relukan-bench merge a.json b.json --html report.html"),
            dataclasses.replace(
                environment(gpu=True), command="relukan-bench model --python /opt/rtx/bin/python", gpu=None
            ),
        ),
        series=(*ours_on_cpu(), *ours, *peers(GPU_ENGINES)),
        startups=startups(gpu=True),
        skipped=(Skipped("onnxruntime-cuda", "the package 'onnxruntime-gpu' is not installed"),),
    )


def small_results() -> Results:
    """A bundle alone, at three batches: what most people run."""
    return Results(
        bundle="model",
        environments=(environment(),),
        series=tuple(ours_on_cpu(batches=(1, 64, 1024))[:2]),
        startups=startups(),
    )


def hostile_results() -> Results:
    """Names that would like to be code."""
    base = cpu_results()
    names = [HOSTILE, "[bold]pykan[/bold] | `x` *y* _z_", "a\"b'c&amp;<b>d</b>%{x}$e$"]
    return dataclasses.replace(
        base,
        bundle=HOSTILE,
        environments=(dataclasses.replace(base.environments[0], command=f"relukan-bench '{HOSTILE}' [/]"),),
        series=(*base.series[:4], *peers(ENGINES, names=names)),
        skipped=(Skipped(HOSTILE, "[red]because[/red] <i>so</i> \\[x]"),),
    )


def several_results() -> Results:
    """Two networks, each on two machines."""
    shapes = ((2, 5, 1), SHAPE)
    made = [
        each
        for number in (0, 1)
        for shape in shapes
        for each in (
            *ours_on_cpu(shape, environment=number),
            *peers(ENGINES, shape, names=("pykan", "mlp, same parameters"), environment=number),
        )
    ]
    return Results(
        bundle="small, large",
        environments=(environment(), dataclasses.replace(environment(), processor="Other 7 Processor", cores=8)),
        series=tuple(made),
    )
