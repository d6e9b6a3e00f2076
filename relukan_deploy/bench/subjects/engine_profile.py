"""Which part of an engine takes how long."""

from __future__ import annotations

import collections
import statistics
from typing import cast

from ..._tensorrt import Flavour, import_tensorrt
from ...errors import RelukanError
from ...runtime._engine import EngineBackend

__all__ = ["layer_seconds"]

_ROUNDS = 20


def layer_seconds(backend: EngineBackend, batch: int) -> dict[str, float]:
    """Median seconds of each layer that TensorRT has made of the graph, in the order in which they run.

    A layer's name holds the names of the nodes that were fused into it. TensorRT waits after each to take
    its time: their sum is more than a call takes.

    Args:
        backend: the engine.
        batch: rows, within its profile.

    Raises:
        RelukanError: the engine does not tell.
    """
    trt = import_tensorrt(cast(Flavour, backend.name), "Profiling an engine")
    found: dict[str, list[float]] = collections.defaultdict(list)

    class Profiler(trt.IProfiler):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            found[layer_name].append(ms * 1e-3)

    profiler = Profiler()
    with backend.lane() as lane:
        context, handle = lane.context(batch, lane.x.device, lane.y.device), int(lane.stream.handle)
        context.profiler = profiler
        for _ in range(_ROUNDS + 1):
            if not context.execute_async_v3(handle):
                raise RelukanError(f"{backend.name} could not run {backend.artifact.file} while it is profiled")
            lane.stream.sync()
        del context  # before others run in its memory
    if not found:
        raise RelukanError(f"{backend.name} tells nothing about the layers of {backend.artifact.file}")
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}
