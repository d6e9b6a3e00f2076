"""The results of a benchmark, as they are printed, drawn, and written to JSON.

    Results ─┬─ environments   where and how it was measured: one for each process that measured
             ├─ series         a network and one way to run it: its times over the batch sizes
             ├─ startups       how long a fresh process takes to its first answer
             ├─ accuracies     networks trained on the same data: error and latency
             └─ skipped        what was asked for and not measured, and why

Several files are joined by joining these lists (`merge`). Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from ..spec import Layout, Precision
from .timing import Timing

__all__ = [
    "B_SPLINES",
    "OURS",
    "SCHEMA_VERSION",
    "Accuracy",
    "Conditions",
    "Contender",
    "Data",
    "Environment",
    "Gpu",
    "Ideal",
    "Peaks",
    "Point",
    "Results",
    "Series",
    "Skipped",
    "Split",
    "Startup",
]

SCHEMA_VERSION = 1

OURS = "this network"
"""What the bundle's own network is called; others have the names of their implementations."""

B_SPLINES = ("pykan", "efficient-kan")
"""The networks that ReLU-KAN takes the place of."""

Data = Literal["host", "bound", "device"]
"""Where the rows lie before a call and the answers after it.

host    in host memory, as a caller has them: checks, layout and copies to a GPU and back included
bound   in host memory, in the graph's own buffers and layout: the graph alone
device  on the GPU
"""


@dataclasses.dataclass(frozen=True)
class Contender:
    """A network and one way to run it: what is equal in two files that are compared.

    Attributes:
        network: `OURS`, or the peer's name.
        widths: features before, between and after its layers.
        engine: what runs it: a backend of `relukan_deploy.runtime.BACKENDS`, "torch" (eager),
            "torch.compile" or "torch CUDA graph".
        precision: of its tensors.
        layout: of its graph, for our own.
        data: where rows and answers lie.
        cuda_graph: whether a call is replayed as one CUDA graph.
    """

    network: str
    widths: tuple[int, ...]
    engine: str
    precision: Precision = "fp32"
    layout: Layout | None = None
    data: Data = "host"
    cuda_graph: bool = False

    @property
    def way(self) -> str:
        """How it is run, for people: "tensorrt, fp16, data on the device, no CUDA graph"."""
        parts = [self.engine]
        if self.precision != "fp32":
            parts.append(self.precision)
        if self.layout == "batch-major":
            parts.append(self.layout)
        if self.data != "host":
            parts.append("graph alone" if self.data == "bound" else "data on the device")
        if self.engine.startswith("tensorrt") and not self.cuda_graph:
            parts.append("no CUDA graph")
        return ", ".join(parts)

    @property
    def name(self) -> str:
        return f"{self.network}: {self.way}"


@dataclasses.dataclass(frozen=True)
class Split:
    """Where the time of a call on a GPU goes, by CUDA events: medians in seconds.

    Attributes:
        to_device: copying rows to the GPU; 0 where they are there.
        compute: the network.
        to_host: copying answers back; 0 where they stay.
    """

    to_device: float
    compute: float
    to_host: float


@dataclasses.dataclass(frozen=True)
class Ideal:
    """What the fused network would cost at this batch at least, on this machine.

    Attributes:
        flops: floating-point operations.
        bytes: rows and weights read once, answers written once.
        seconds: the longest of flops at the measured peak, bytes at the measured bandwidth, and a launch.
        bound_by: which of them it is.
    """

    flops: float
    bytes: float
    seconds: float
    bound_by: Literal["arithmetic", "memory", "launch"]


@dataclasses.dataclass(frozen=True)
class Point:
    """One batch size of a series.

    Attributes:
        batch: rows of a call.
        timing: the times of a call; None where it was skipped.
        skipped: why it was not measured.
        split: on a GPU, where the time goes.
        ideal: of our own network, where the machine's peaks are known.
    """

    batch: int
    timing: Timing | None = None
    skipped: str | None = None
    split: Split | None = None
    ideal: Ideal | None = None

    @property
    def rows_per_second(self) -> float | None:
        return self.batch / self.timing.p50 if self.timing else None


@dataclasses.dataclass(frozen=True)
class Series:
    """A contender over the batch sizes.

    Attributes:
        contender: what was run.
        environment: index into `Results.environments`.
        parameters: numbers that the network learns.
        difference: the largest difference from what it should compute, relative to max(1, max|y|),
            found before anything was timed; None where there was nothing to compare with.
        points: by batch size, ascending.
    """

    contender: Contender
    environment: int
    parameters: int
    difference: float | None
    points: tuple[Point, ...]


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The GPU. `compute_capability` is "9.0"; `cuda` the newest version that the driver supports."""

    name: str
    compute_capability: str
    cuda: str
    driver: str | None = None
    memory_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What else is true of the machine at one moment; None is unknown.

    Attributes:
        load: processes that ran or wanted to, over the last minute.
        cpu_mhz: clock of the fastest core.
        cpu_celsius: the hottest sensor.
        gpu_mhz, gpu_memory_mhz: clocks.
        gpu_celsius, gpu_watts: of the GPU.
    """

    load: float | None = None
    cpu_mhz: float | None = None
    cpu_celsius: float | None = None
    gpu_mhz: float | None = None
    gpu_memory_mhz: float | None = None
    gpu_celsius: float | None = None
    gpu_watts: float | None = None


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What the machine does at most, measured.

    Attributes:
        device: "cpu" with the threads of the run, or "gpu".
        precision: of the matrix product.
        flops_per_second: of a large matrix product.
        bytes_per_second: of a large copy, read and written bytes together.
        launch_seconds: of a graph with one operator on one number.
    """

    device: Literal["cpu", "gpu"]
    precision: Precision
    flops_per_second: float
    bytes_per_second: float
    launch_seconds: float


@dataclasses.dataclass(frozen=True)
class Environment:
    """A process that measured, and its machine.

    Attributes:
        command: what was typed.
        date: UTC, ISO 8601.
        commit: of the project, where it is a checkout; with "+" where files differ from it.
        processor, cores, memory_bytes, architecture, system: of the machine.
        gpu: the first GPU, or None.
        versions: of Python and the packages that took part.
        threads: of the CPU, for each contender.
        before, after: the machine at both ends of the measurement.
        peaks: by device and precision.
    """

    command: str
    date: str
    commit: str | None
    processor: str
    cores: int
    memory_bytes: int
    architecture: str
    system: str
    gpu: Gpu | None
    versions: dict[str, str]
    threads: int
    before: Conditions = Conditions()
    after: Conditions = Conditions()
    peaks: tuple[Peaks, ...] = ()


@dataclasses.dataclass(frozen=True)
class Startup:
    """A fresh process up to its first answer: medians of several, in seconds.

    Attributes:
        engine: a backend.
        environment: index into `Results.environments`.
        file: the artifact that it runs.
        file_bytes: its size.
        build_seconds: how long building it took; None for a graph.
        import_seconds: `import relukan_deploy`.
        load_seconds: `load`, golden inputs included.
        first_seconds: the first answer after that.
        host_bytes: the largest resident size of the process.
        device_bytes: what the GPU has less afterwards; None on a CPU.
    """

    engine: str
    environment: int
    file: str
    file_bytes: int
    build_seconds: float | None
    import_seconds: float
    load_seconds: float
    first_seconds: float
    host_bytes: int
    device_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """One network trained on the given data.

    Attributes:
        network, widths, parameters, engine: as in `Contender` and `Series`.
        environment: index into `Results.environments`.
        error: on rows that training never saw: 1 − R² of a regression, the share of wrong classes of
            a classification.
        train_seconds: how long training took; None for the bundle itself.
        seconds: p50 of a call, by batch size.
        compared_at: the error at which networks of the same data are compared.
    """

    network: str
    widths: tuple[int, ...]
    parameters: int
    engine: str
    environment: int
    error: float
    train_seconds: float | None
    seconds: dict[int, float]
    compared_at: float


@dataclasses.dataclass(frozen=True)
class Skipped:
    """What was asked for and not measured, and why."""

    what: str
    why: str


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything one or several runs found. `bundle` is the name of the bundle's folder."""

    bundle: str
    environments: tuple[Environment, ...]
    series: tuple[Series, ...]
    startups: tuple[Startup, ...] = ()
    accuracies: tuple[Accuracy, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    schema: int = SCHEMA_VERSION
