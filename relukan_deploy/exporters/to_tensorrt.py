"""An ONNX graph as a TensorRT engine, by TensorRT 8.6 to 11 or TensorRT-RTX through one code path.

`tensorrt` needs the target GPU to build, and its engines are tied to that GPU and its version.
`tensorrt_rtx` builds ahead of time on any machine; the engine finishes compiling on the GPU it
first runs on. What differs between versions is asked of the module itself, not of its number:

- strongly typed networks (from 9.1): the graph's own types decide. Before, the precision flags.
- the explicit-batch flag: needed before 10, ignored after.
- progress monitors: from 10.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .._files import replacing_file
from .._tensorrt import Flavour, import_tensorrt, make_logger
from ..errors import BuildError, InputError, MissingDependencyError, MissingDeviceError
from ..gpu import Gpu, find_gpu
from ..spec import Layout, Precision

__all__ = ["Engine", "EngineOptions", "Progress", "build_engine"]

logger = logging.getLogger("relukan_deploy.exporters")

Progress = Callable[[str, int, int], None]
"""Called with a phase of the build, the steps done, and the steps in all."""


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        batch: the optimisation profile: smallest, most frequent and largest batch, in rows.
        workspace: device memory that building and running may use, in bytes; None leaves
            TensorRT its default.
        refittable: weights can be replaced without a rebuild.
        version_compatible: later TensorRT versions can run the engine too.
        hardware_compatible: any GPU from Ampere on can run the engine.
        timing_cache: file that keeps kernel timings between builds; None chooses one by
            TensorRT version and GPU under the user's cache folder.
    """

    batch: tuple[int, int, int] = (1, 64, 1024)
    workspace: int | None = None
    refittable: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if len(self.batch) != 3 or not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise InputError(f"batch needs 1 <= MIN <= OPT <= MAX, got {' '.join(map(str, self.batch))}")
        if self.workspace is not None and self.workspace < 1:
            raise InputError(f"workspace must be at least 1 byte, got {self.workspace}")


@dataclasses.dataclass(frozen=True)
class Engine:
    """A built engine.

    Attributes:
        plan: the serialised engine, nothing added, as `trtexec --loadEngine` reads it.
        flavour, version: what built it.
        gpu: the GPU it was built on and for; None for one built ahead of time.
        build_seconds: time in the builder.
    """

    plan: bytes
    flavour: Flavour
    version: str
    gpu: Gpu | None
    build_seconds: float


def build_engine(
    model: bytes,
    *,
    in_features: int,
    layout: Layout,
    precision: Precision,
    options: EngineOptions | None = None,
    flavour: Flavour | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Builds an engine from a serialised ONNX model written by to_onnx.py.

    Args:
        model: the ONNX model.
        in_features: number of inputs.
        layout, precision: as the model was written; "tf32" also lets the engine use TF32.
        options: defaults to `EngineOptions()`.
        flavour: which TensorRT; None takes `tensorrt` where it and a GPU are there, else
            `tensorrt_rtx`.
        progress: told how far the build is, where the version can tell.

    Raises:
        MissingDependencyError, MissingDeviceError: the flavour, or the GPU it needs, is not there.
        InputError: the flavour or version cannot honour an option.
        BuildError: parsing or building failed; the message holds everything TensorRT said.
    """
    options = options or EngineOptions()
    gpu = find_gpu()
    flavour, trt = _choose(flavour, gpu)
    if flavour == "tensorrt-rtx":
        gpu = None  # such an engine is not for the GPU it happens to be built beside
    refuse = _refusal(trt, flavour, precision, options)
    if refuse:
        raise InputError(f"{flavour} {trt.__version__} cannot honour {refuse}")

    log = make_logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt))
    parser = _parse(trt, network, log, model, f"{flavour} {trt.__version__}")
    config = builder.create_builder_config()
    _configure(trt, config, precision, options)
    profile = builder.create_optimization_profile()
    rows = [(1, in_features, 1, n) if layout == "batch-last" else (n, in_features, 1) for n in options.batch]
    profile.set_shape("x", *rows)
    config.add_optimization_profile(profile)
    monitor = _make_monitor(trt, progress) if progress and hasattr(trt, "IProgressMonitor") else None
    if monitor:
        config.progress_monitor = monitor
    cache = _TimingCache(trt, config, options.timing_cache, gpu) if flavour == "tensorrt" else None

    begin = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - begin
    del parser  # not before: it owns the weights that the network refers to
    if monitor and monitor.stopped_by:
        raise monitor.stopped_by
    if plan is None:
        raise _failure(f"{flavour} {trt.__version__}", options, log.errors)
    if cache:
        cache.save()
    return Engine(bytes(plan), flavour, trt.__version__, gpu, seconds)


def _parse(trt: ModuleType, network: Any, log: Any, model: bytes, who: str) -> Any:
    """Fills the network, and gives the parser, whose memory the network uses."""
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        errors = [_describe_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        raise BuildError(f"{who} cannot parse the graph:\n" + "\n".join(errors))
    return parser


def _failure(who: str, options: EngineOptions, messages: list[str]) -> BaseException:
    """What to raise when there is no engine."""
    if any("canceled by user" in message for message in messages):
        return KeyboardInterrupt()  # Ctrl-C, caught by TensorRT's bindings and not by our monitor
    text = f"{who} could not build the engine:\n" + "\n".join(messages)
    if options.refittable and find_gpu() is None:
        return MissingDeviceError(f"a refittable engine is built only where there is a GPU, and none was found. {text}")
    return BuildError(text)


def _choose(flavour: Flavour | None, gpu: Gpu | None) -> tuple[Flavour, ModuleType]:
    if flavour is None:
        if gpu:
            try:
                return "tensorrt", import_tensorrt("tensorrt", "Building an engine")
            except MissingDependencyError:
                pass
        return "tensorrt-rtx", import_tensorrt("tensorrt-rtx", "Building an engine")
    module = import_tensorrt(flavour, "Building an engine")
    if flavour == "tensorrt" and gpu is None:
        raise MissingDeviceError(
            "tensorrt builds an engine on the GPU it is for, and no GPU was found here: "
            "run this on the target machine, or build ahead of time with tensorrt-rtx"
        )
    return flavour, module


def _refusal(trt: ModuleType, flavour: Flavour, precision: Precision, options: EngineOptions) -> str | None:
    """The option that cannot be honoured, and why."""
    rtx = flavour == "tensorrt-rtx"
    if options.version_compatible and (rtx or not hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE")):
        return "--version-compatible: its engines run with the version that built them"
    if options.hardware_compatible and (rtx or not hasattr(trt, "HardwareCompatibilityLevel")):
        why = "its engines run on every GPU it supports" if rtx else "that came with TensorRT 8.6"
        return f"--hardware-compatible: {why}"
    if options.timing_cache and rtx:
        return "--timing-cache: it keeps none, since it times no kernels while building"
    if precision == "bf16" and not (_strongly_typed(trt) or hasattr(trt.BuilderFlag, "BF16")):
        return "--precision bf16: that came with TensorRT 9"
    return None


def _strongly_typed(trt: ModuleType) -> bool:
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def _network_flags(trt: ModuleType) -> int:
    known = trt.NetworkDefinitionCreationFlag
    flags = 1 << int(known.STRONGLY_TYPED) if _strongly_typed(trt) else 0
    if trt.__version__.startswith(("8.", "9.")):  # TensorRT-RTX, which has no such flag, is at 1
        flags |= 1 << int(known.EXPLICIT_BATCH)
    return flags


def _configure(trt: ModuleType, config: Any, precision: Precision, options: EngineOptions) -> None:
    flag = trt.BuilderFlag
    (config.set_flag if precision == "tf32" else config.clear_flag)(flag.TF32)  # on by default
    if not _strongly_typed(trt) and precision in ("fp16", "bf16"):
        config.set_flag(flag.FP16 if precision == "fp16" else flag.BF16)  # allows it; layers may stay in fp32
    if options.refittable:
        config.set_flag(flag.REFIT)
    if options.version_compatible:
        config.set_flag(flag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    # What a runtime needs to replay a batch as a CUDA graph, with a context for each batch size.
    if hasattr(flag, "REQUIRE_USER_ALLOCATION"):  # TensorRT-RTX
        config.set_flag(flag.REQUIRE_USER_ALLOCATION)
    if hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806"):  # from 10 on it is always so
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    # Nothing in these graphs gains from cuBLAS or cuDNN, and without them an engine needs neither.
    sources = config.get_tactic_sources()
    for name in ("CUBLAS", "CUBLAS_LT", "CUDNN"):
        if hasattr(trt.TacticSource, name):
            sources &= ~(1 << int(getattr(trt.TacticSource, name)))
    config.set_tactic_sources(sources)


def _make_monitor(trt: ModuleType, progress: Progress) -> Any:
    """Passes on how far the build is, and stops it at an exception, which TensorRT would swallow."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}
            self.stopped_by: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return self.stopped_by is None

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self.steps[phase_name])

        def _tell(self, phase_name: str, done: int) -> None:
            try:
                progress(phase_name, done, self.steps[phase_name])
            except BaseException as error:
                self.stopped_by = error

    return Monitor()


def _describe_parser_error(error: Any) -> str:
    """One error of NVIDIA's parser, with its node where the version tells it."""
    text = str(error.desc()).strip()
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    if error.node() < 0:
        return f"  {text}"
    return f"  node {error.node()}{f' {name!r}' if name else ''}{f' ({operator})' if operator else ''}: {text}"


class _TimingCache:
    """Kernel timings kept between builds, one file for each TensorRT version and GPU."""

    def __init__(self, trt: ModuleType, config: Any, path: Path | None, gpu: Gpu | None) -> None:
        if path is None:
            key = re.sub(r"[^A-Za-z0-9.]+", "-", f"{trt.__version__}-{gpu.name if gpu else 'none'}")
            home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            path = home / "relukan-deploy" / f"tensorrt-{key}.timing"
        self.path = path
        self.config = config
        kept = config.create_timing_cache(path.read_bytes()) if path.is_file() else None
        if kept is None or not config.set_timing_cache(kept, False):  # none yet, damaged, or another GPU's
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def save(self) -> None:
        cache = self.config.get_timing_cache()
        if cache is None:
            return
        try:
            with replacing_file(self.path) as written:
                written.write_bytes(bytes(cache.serialize()))
        except OSError as error:  # the engine is built, and worth more than the cache
            logger.warning("the timing cache %s is not kept: %s", self.path, error)
