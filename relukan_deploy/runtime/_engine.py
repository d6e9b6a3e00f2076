"""What the two TensorRT backends share: calls from any thread, on host memory or on the GPU's."""

from __future__ import annotations

import contextlib
import functools
import logging
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._tensorrt import Flavour
from ..bundle import Artifact
from ..errors import InputError, RelukanError
from ._arrays import Arrays
from ._cuda import Cuda
from ._graphs import buckets, cut
from ._lane import Lane, Lanes
from ._plan import Plan
from .runner import Rows, element_dtype

__all__ = ["EngineBackend"]

logger = logging.getLogger("relukan_deploy.runtime")

_LANES = 4  # calls at a time; Python's own part of a call leaves more with nothing to do


class EngineBackend:
    """A `Backend` around a TensorRT engine.

    A call copies to the GPU, runs and copies back, as one CUDA graph from the second call of its batch
    size on. The first one of a size takes longer, and meanwhile CUDA refuses what synchronises the
    whole device, on any thread: so send the sizes that are expected before the traffic starts.

    Args:
        name: of the TensorRT.
        plan: the serialised engine.
        artifact: the engine in its bundle.
        in_features, out_features: sizes of a row in and out.
        graphs: False makes no graphs, to see what they bring.
        constants: in the place of the engine's own.

    Raises:
        MissingDependencyError, MissingDeviceError: TensorRT, cuda-core or a GPU is missing.
        BundleError: the engine is for another TensorRT or GPU.
        InputError: there are constants, and the engine does not take them.

    Attributes:
        artifact, in_features, out_features: as given.
        cuda: the GPU.
        sizes: the batch sizes that are run, ascending; other batches are cut and filled up to them.
        lane_bytes: memory on the GPU that each call at a time takes.
    """

    def __init__(
        self,
        name: Flavour,
        plan: bytes,
        artifact: Artifact,
        in_features: int,
        out_features: int,
        *,
        graphs: bool = True,
        constants: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> None:
        assert artifact.batch is not None  # engines always have a profile
        self.name: str = name
        self._again = functools.partial(EngineBackend, name, plan, artifact, in_features, out_features, graphs=graphs)
        self.artifact = artifact
        self.in_features = in_features
        self.out_features = out_features
        self.sizes = buckets(artifact.batch[0], artifact.batch[2])
        self.cuda = cuda = Cuda()
        with cuda:
            opened = Plan(name, plan, artifact, in_features, out_features, cuda)
            if constants is not None:
                opened.refit(constants)
        row_bytes = (in_features + out_features) * element_dtype(artifact.precision).itemsize
        self.lane_bytes = opened.scratch_bytes + artifact.batch[2] * row_bytes
        self._arrays = Arrays(artifact, in_features, out_features, cuda.device.device_id)
        complain = _Complaints(name) if graphs else None
        make = functools.partial(_make_lane, cuda, opened, artifact, in_features, out_features, complain)
        self._lanes = Lanes(make, _LANES, f"this runner of {artifact.file} is closed: load the bundle again")
        # Also when nobody refers to it any more, and before Python ends: graphs first, then what they use.
        self._close = weakref.finalize(self, _close, cuda, self._lanes, opened)

    def run(self, rows: Rows) -> Rows:
        result = np.empty((len(rows), self.out_features), np.float32)
        lane = self._lanes.take()
        try:
            with self.cuda:
                for part, size in cut(len(rows), self.sizes):
                    lane.run(rows[part], result[part], size)
        finally:
            self._lanes.give(lane)
        return result

    def run_on_device(self, x: Any, out: Any = None) -> Any:
        """y ``(batch, out)`` on the GPU, for x ``(batch, in)`` there.

        Work is enqueued on the current stream of x's library, as the library's own operations are, and
        the call does not wait for it. Nothing is copied where x is of the engine's type (float32, or
        float16 or bfloat16) and in its memory order: for a batch-last engine x.T is contiguous, for a
        batch-major one x is. y is of that type and in that order too. A batch that comes again at the
        same addresses is replayed as a CUDA graph.

        Args:
            x: of torch or cupy; or another library's with `__dlpack__` or `__cuda_array_interface__`,
                which is taken through cupy or torch, and waited for.
            out: where to write y, an array of the same library. None makes one.

        Raises:
            InputError: x or out is of another shape, not of floats, or not on this GPU; their library
                lacks the engine's type; somebody captures the stream; or the runner is closed.
        """
        return self._arrays.answer(x, out, self.enqueue)

    def enqueue(self, rows: int, x: int, y: int, stream: int) -> None:
        """Runs a batch that fits the profile from address x to address y, in its turn on a stream. Does not wait.

        Raises:
            InputError: somebody captures the stream, or the runner is closed.
        """
        with self.cuda:
            if self.cuda.is_capturing(stream):
                raise InputError(
                    "the current stream is being captured into a graph, and the engine replays a graph of its own: "
                    "call it outside the capture"
                )
            lane = self._lanes.take()
            try:
                lane.run_on_device(rows, x, y, stream)
            finally:
                self._lanes.give(lane)

    @contextlib.contextmanager
    def lane(self) -> Iterator[Lane]:
        """A lane for the calling thread alone, with the GPU current: for who looks at single steps of a call."""
        lane = self._lanes.take()
        try:
            with self.cuda:
                yield lane
        finally:
            self._lanes.give(lane)

    def with_constants(self, constants: Mapping[str, NDArray[np.float64]]) -> EngineBackend:
        return self._again(constants=constants)

    def close(self) -> None:
        self._close()


class _Complaints:
    """Says each reason why there are no graphs once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._said: set[str] = set()

    def __call__(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            logger.warning("%s runs without a CUDA graph, and calls take longer: %s", self._name, reason)


def _make_lane(cuda: Cuda, *arguments: Any) -> Lane:
    with cuda:
        try:
            return Lane(cuda, *arguments)
        except RelukanError:
            raise
        except Exception as error:  # cuda-core's own errors
            raise RelukanError(f"{cuda.device.name} has no room for another call: {error}") from error


def _close(cuda: Cuda, lanes: Lanes, plan: Plan) -> None:
    with cuda:
        lanes.close()
        plan.close()
