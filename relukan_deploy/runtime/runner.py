"""`Runner`, a network ready to answer, and `Backend`, what computes it.

A `Protocol` for backends and not a base class: they share no state, only the steps at the end of
this file, from the caller's rows to the graph's layout and type and back.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..bundle import Artifact, Bundle
from ..errors import InputError, ParityError
from ..lowering import constants_like
from ..parity import Domain, ParityReport, compare, golden_inputs
from ..spec import KanSpec, Layout, Precision, Task
from ._arrays import is_on_gpu
from .guard import Guard, Limits, Rows, Stats, limits_of

if TYPE_CHECKING:
    from ..checkpoint import Source
    from ..model import ReLUKAN
    from ..train import FitResult

__all__ = ["Backend", "Rows", "Runner", "as_rows", "check_answers", "element_dtype", "from_graph", "parts", "to_graph"]


class Backend(Protocol):
    """What computes the network: one class per backend file. Thread-safe.

    Frees what it holds when it is closed, or when nobody refers to it any more.

    Attributes:
        name: its name in `relukan_deploy.runtime.BACKENDS`.
    """

    name: str

    def run(self, rows: Rows) -> Rows:
        """y ``(batch, out)``, an array of its own, for rows ``(batch, in)`` in any memory order, none included."""

    def with_constants(self, constants: Mapping[str, NDArray[np.float64]]) -> Backend:
        """Another backend with these constants in the place of the graph's. This one stays as it is.

        Raises:
            InputError: the artifact was not built for that.
        """

    def close(self) -> None:
        """Frees what is held on a device. Calls that other threads have begun are finished first."""


class Runner:
    """A network ready to answer: what `load` gives. Any number of threads may call it.

    Attributes:
        backend: the name of what computes it, in `relukan_deploy.runtime.BACKENDS`.
        artifact: what it runs.
        in_features, out_features: sizes of a row in and out.
    """

    def __init__(self, backend: Backend, bundle: Bundle, artifact: Artifact, guard: Guard) -> None:
        self.backend = backend.name
        self.artifact = artifact
        self.in_features = bundle.manifest.in_features
        self.out_features = bundle.manifest.out_features
        self._bundle = bundle
        self._guard = guard
        # Replaced as one, so that nobody gets the weights of one network and the domain of another.
        self._running: tuple[Backend, Limits] | None = (backend, limits_of(bundle.manifest.domain))
        self._changing = threading.Lock()  # held to refit or close

    def __call__(self, x: Any, out: Any = None) -> Any:
        """y ``(batch, out)``, an array of its own, for x ``(batch, in)``. Any number of rows, none included.

        In host memory y is a float32 numpy array; other real dtypes of x than float32 are converted.

        An engine also takes what is on its GPU already: arrays of torch or cupy, and others that have
        DLPack or `__cuda_array_interface__`. y is then an array of the same library, and both may still
        be in the making: the engine works on the library's current stream. Nothing is copied where x
        has the artifact's dtype and, for its layout, the right memory order: "batch-last" wants x.T
        contiguous, "batch-major" x. The guard does not look at such rows, it would have to wait for them.

        Args:
            x: the rows.
            out: on the GPU, where to write y instead of into a new array.

        Raises:
            InputError: x is not ``(batch, in)`` numbers, a policy of `load` refuses a value in it, or is
                to look at values that are on the GPU; or the runner is closed.
        """
        if type(x) is not np.ndarray and is_on_gpu(x):
            return self._run_on_device(x, out)
        if out is not None:
            raise InputError("out is for arrays on the GPU, and x is in host memory: leave it out")
        return self.run(self.admit(x))

    def admit(self, x: ArrayLike) -> Rows:
        """x as rows ``(batch, in)`` float32 that `run` takes. Raises InputError as a call does.

        The first half of a call. Rows that were admitted one by one can be run together.
        """
        rows = as_rows(x, self.in_features)
        if self._guard.refuses:
            _, limits = self._running or self._closed()
            self._guard.inspect(rows, limits)
        return rows

    def run(self, rows: Rows) -> Rows:
        """The answers ``(batch, out)`` to admitted rows ``(batch, in)``: the second half of a call."""
        backend, limits = self._running or self._closed()
        inside = not self._guard.refuses and self._guard.inspect(rows, limits)  # admitted rows were inspected
        if self._guard.clips and not inside:
            rows = np.clip(rows, limits[0][:1], limits[1][:1])
        y = backend.run(rows)
        self._guard.answered(len(rows))
        return y

    def stats(self) -> Stats:
        """How many rows were answered, and how many values lay outside the domain or were not finite."""
        return self._guard.stats()

    def refit(
        self,
        model: str | Path | ReLUKAN | FitResult | KanSpec,
        *,
        source: Source | None = None,
        grid: int | None = None,
        order: int | None = None,
        mult_arity: int | None = None,
    ) -> None:
        """Takes the weights of a retrained network, without building anything anew.

        The new weights answer golden inputs of their own before any call gets them. A call sees the old
        network or the new one, never a mixture. The bundle on the disk stays as it is.

        Args:
            model: a checkpoint file, or a network: a `ReLUKAN`, a `KanSpec`, or what `fit` gave.
            source, grid, order, mult_arity: as for `load_checkpoint`.

        Raises:
            CheckpointError: the file cannot be read.
            InputError: the network has another shape or meaning than this one, its constants have no
                place in the graph, or the engine was built without --refittable.
            ParityError: golden inputs are answered wrongly with the new weights; the old stay.
            MissingDependencyError: the extra "export" is not installed.
        """
        if self._running is None:
            self._closed()
        spec = _read(model, source=source, grid=grid, order=order, mult_arity=mult_arity)
        _check_same_network(spec, self._bundle)
        artifact = self.artifact
        if not artifact.constants:
            raise InputError(
                f"the manifest of {self._bundle.path} does not name its constants: export the network anew"
            )
        constants = constants_like(
            spec,
            artifact.constants,
            layout=artifact.layout,
            form=artifact.form,
            precision=artifact.precision,
            **self._bundle.manifest.approximating,
        )
        x = golden_inputs(spec, precision=artifact.precision)
        y = spec.evaluate(x)
        with self._changing:
            backend, _ = self._running or self._closed()
            refitted = backend.with_constants(constants)
            report = check_answers(refitted, artifact, x, y, domain=spec.intervals, task=spec.task)
            try:
                report.require(f"{artifact.file} with new weights")
            except ParityError as error:
                raise ParityError(
                    f"{error}. Export the network anew, which may take another form of the graph"
                ) from error
            self._running = refitted, limits_of(spec.intervals)

    def _run_on_device(self, x: Any, out: Any) -> Any:
        backend, _ = self._running or self._closed()
        run_on_device = getattr(backend, "run_on_device", None)  # which only engines have
        if run_on_device is None:
            raise InputError(f"x is on the GPU, and {self.backend} answers what is in host memory: copy it there first")
        if self._guard.refuses or self._guard.clips:
            raise InputError(
                "x is on the GPU, where its values are not inspected: load the bundle with out_of_domain='count' "
                "and nonfinite='count', or give x in host memory"
            )
        y = run_on_device(x, out)
        self._guard.answered(len(y))
        return y

    def _closed(self) -> NoReturn:
        raise InputError(f"this runner of {self.artifact.file} is closed: load the bundle again")

    def close(self) -> None:
        """Frees what the runner holds on its device. Closing it again does nothing."""
        with self._changing:
            running, self._running = self._running, None
        if running is not None:
            running[0].close()


def _read(model: str | Path | ReLUKAN | FitResult | KanSpec, **reading: Any) -> KanSpec:
    if isinstance(model, (str, Path)):
        from ..checkpoint import load_checkpoint

        return load_checkpoint(model, **reading).spec()
    return model if isinstance(model, KanSpec) else model.spec()


def _check_same_network(spec: KanSpec, bundle: Bundle) -> None:
    """Raises InputError where callers would be told something else by the new network."""
    manifest = bundle.manifest
    for name in ("widths", "task", "columns", "targets", "labels"):
        new, old = getattr(spec, name), getattr(manifest, name)
        if new != old:
            raise InputError(
                f"the new network has {name} {new}, and {bundle.path} has {old}: export it with relukan-export instead"
            )


def check_answers(
    backend: Backend, artifact: Artifact, x: Rows, y: NDArray[np.float64], *, domain: Domain, task: Task
) -> ParityReport:
    """Compares a backend's answers to x ``(rows, in)`` with the right ones y ``(rows, out)``, in few batches."""
    tolerance, batches = artifact.tolerance, [32, len(x)]
    return compare(backend.run, x, y, domain=domain, tolerance=tolerance, task=task, batches=batches)


def as_rows(x: ArrayLike, in_features: int) -> Rows:
    """x as ``(batch, in)`` float32, not copied where it already is.

    Raises:
        InputError: it has another shape, or is not made of real numbers.
    """
    if type(x) is np.ndarray and x.dtype == np.float32 and x.ndim == 2 and x.shape[1] == in_features:
        return x  # the usual case, in a fifth of a microsecond
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of different lengths; a tensor with a gradient
        raise InputError(f"x must be (batch, {in_features}) numbers: {error}") from error
    if array.dtype != np.float32:
        if array.dtype.kind not in "fiu":
            raise InputError(f"x must hold real numbers (float32), got dtype {array.dtype}")
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN stay what they are
            array = array.astype(np.float32)
    if array.ndim != 2 or array.shape[1] != in_features:
        hint = f"; for a single row use x.reshape(1, {in_features})" if array.shape == (in_features,) else ""
        raise InputError(f"x must be (batch, {in_features}), got {array.shape}{hint}")
    return array


def parts(rows: int, most: int) -> Iterator[slice]:
    """Cuts `rows` into as few parts of at most `most` as it takes, of nearly the same size."""
    count = -(-rows // most)
    edges = [rows * index // count for index in range(count + 1)] if count else [0]
    return (slice(begin, end) for begin, end in itertools.pairwise(edges))


def element_dtype(precision: Precision) -> np.dtype[Any]:
    """The dtype of the graph's input and output in memory; bfloat16 as its bits, in uint16."""
    return np.dtype({"fp16": np.float16, "bf16": np.uint16}.get(precision, np.float32))


def to_graph(rows: Rows, layout: Layout, precision: Precision) -> NDArray[Any]:
    """Rows ``(batch, in)`` as the graph's input: its layout and type, contiguous."""
    if precision == "fp16":
        with np.errstate(over="ignore"):  # too large becomes infinite, which is far outside the domain
            typed: NDArray[Any] = rows.astype(np.float16)
    elif precision == "bf16":
        typed = _to_bfloat16(rows)
    else:
        typed = rows
    if layout == "batch-last":
        return np.ascontiguousarray(typed.T)[np.newaxis, :, np.newaxis, :]  # (1, in, 1, batch)
    return np.ascontiguousarray(typed)[:, :, np.newaxis]  # (batch, in, 1)


def from_graph(y: NDArray[Any], layout: Layout, precision: Precision) -> Rows:
    """The graph's output as rows ``(batch, out)`` float32."""
    rows = y[0, :, 0, :].T if layout == "batch-last" else y[:, :, 0]
    if precision == "bf16":
        rows = _from_bfloat16(rows)
    return np.ascontiguousarray(rows, dtype=np.float32)


def _to_bfloat16(rows: Rows) -> NDArray[np.uint16]:
    """Rounds to nearest, ties to even, as IEEE 754 does. NaN stays NaN."""
    bits = np.ascontiguousarray(rows).view(np.uint32)
    with np.errstate(over="ignore"):
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(rows), 0x7FC0, rounded).astype(np.uint16)


def _from_bfloat16(bits: NDArray[np.uint16]) -> Rows:
    return (bits.astype(np.uint32) << 16).view(np.float32)
