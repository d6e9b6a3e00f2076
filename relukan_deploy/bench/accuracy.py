"""Equal accuracy: networks trained on the same data, their test errors, and how fast each of them answers.

What is trained, and on what, is in fitting.py. A network is timed on the CPU in what runs it the fastest: ours
in ONNX Runtime, as a bundle; another in PyTorch or, exported, in ONNX Runtime. All take turns in one sweep.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..api import export
from ..bundle import Bundle
from ..errors import InputError, MissingDependencyError, RelukanError
from ..runtime import load
from ..table import Table
from .peers import PEERS
from .results import OURS, Accuracy, Point, Skipped
from .subjects import Subject
from .subjects.bundles import bundle_subjects
from .subjects.exports import in_onnxruntime_cpu
from .subjects.networks import Inputs, Network
from .subjects.torch_calls import find_device, set_up
from .subjects.torch_subjects import in_torch
from .sweep import Effort, sweep

if TYPE_CHECKING:
    from .fitting import Rows, Trained

__all__ = ["BATCHES", "STEPS", "equal_accuracy"]

BATCHES = (1, 1024)
STEPS = 2000

_MLP, _BACKEND = "mlp", "onnxruntime-cpu"
_EFFORT = Effort(runs=1)

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class _Candidate:
    """A network and what runs it; `seconds` of its training, if it was trained here."""

    family: str
    error: float
    seconds: float | None
    subjects: Sequence[Subject]


def equal_accuracy(
    data: str | Path | Table,
    target: str | Sequence[str] | None,
    bundle: Bundle,
    *,
    against: Sequence[str] = (),
    error: float | None = None,
    grid: int = 5,
    order: int = 3,
    threads: int = 1,
    memory: int = 4 << 30,
    steps: int = STEPS,
    say: Say = lambda doing: None,
) -> tuple[list[Accuracy], list[Skipped]]:
    """Trains our network, a multilayer perceptron and the peers in several sizes; their test errors and times.

    Args:
        data: a .csv, .parquet or .npz file, see `read_table`, or such a table already read.
        target: the column to predict, or several; None for the bundle's, or, where it names none, the table's.
        bundle: takes part as it is, if it is for the same columns and targets.
        against: names of `PEERS`.
        error: at which the networks are compared: 1 − R², or the share of wrong classes. None takes the
            bundle's own on the test rows; without the bundle, the best that every family reaches.
        grid, order: of the KANs.
        threads: of the CPU, for each call that is timed. Training has one.
        memory: bytes that a call may take.
        steps: of the optimiser, for each network.
        say: told what is being done.

    Returns:
        A record for each network, the bundle's first; and what could not be trained or timed.

    Raises:
        TableError: the data, or a column of it, cannot be used.
        InputError: an option is out of range.
        MissingDependencyError: torch is not installed.
    """
    _check_options(against, error, steps)
    try:
        from . import fitting
    except ImportError as missing:
        raise MissingDependencyError("Training for equal accuracy", missing.name or "torch", "bench") from missing
    rows = fitting.read_rows(data, target, bundle.manifest)
    skipped: list[Skipped] = []
    candidates: list[_Candidate] = []
    try:
        with _noting(skipped, f"{bundle.path.name} itself, at equal accuracy"):
            candidates.append(_of_bundle(bundle, rows, threads))
        own = candidates[0].error if candidates else None
        ours = () if bundle.manifest.splines else (OURS,)  # splines are what `against` trains
        for family in dict.fromkeys((*ours, _MLP, *against)):
            with _noting(skipped, f"{family} at equal accuracy"):
                for trained in fitting.train_family(family, rows, grid=grid, order=order, steps=steps, say=say):
                    candidates.append(_of_trained(trained, threads))
        say("timing all of them")
        found = _timed(candidates, memory, skipped)
    finally:
        for candidate in candidates:
            for subject in candidate.subjects:
                subject.close()
    return _compared(found, own if error is None else error), skipped


def _check_options(against: Sequence[str], error: float | None, steps: int) -> None:
    unknown = set(against) - PEERS.keys()
    if unknown:
        raise InputError(f"no peer is called {min(unknown)!r}: choose from {', '.join(PEERS)}")
    if error is not None and not 0 <= error < math.inf:
        raise InputError(f"the error must be a number from 0, got {error:g}")
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")


@contextlib.contextmanager
def _noting(skipped: list[Skipped], what: str) -> Iterator[None]:
    """What cannot be done in here is skipped, with the reason."""
    try:
        yield
    except (RelukanError, RuntimeError) as error:  # the latter of PyTorch: no memory, say
        skipped.append(Skipped(what, (str(error).strip().splitlines() or [type(error).__name__])[0]))


def _of_bundle(bundle: Bundle, rows: Rows, threads: int) -> _Candidate:
    """A bundle as it is.

    Raises:
        InputError: it is for other data.
        RelukanError: it cannot be run.
    """
    manifest, examples = bundle.manifest, rows.examples
    for what, own, given in (
        ("targets", manifest.targets, examples.targets),
        ("columns", manifest.columns, examples.columns),
        ("classes", manifest.labels, examples.labels),
    ):
        if own is not None and own != given:
            raise InputError(
                f"its {what} are {', '.join(own)}, those of {examples.name} {', '.join(given or ['numbers'])}"
            )
    ends = examples.x.shape[1], examples.outputs, examples.task
    if (manifest.in_features, manifest.out_features, manifest.task) != ends:
        raise InputError(f"it is not for {examples.name}, a {ends[2]} with {ends[0]} inputs and {ends[1]} outputs")
    subjects = _through_bundle(bundle, threads)
    return _Candidate(OURS, rows.error(load(bundle, backend=_BACKEND)(examples.x[rows.test])), None, subjects)


def _of_trained(trained: Trained, threads: int) -> _Candidate:
    """A network that was trained here.

    Raises:
        RelukanError: it cannot be run.
    """
    from ..model import ReLUKAN

    if isinstance(trained.module, ReLUKAN):
        with tempfile.TemporaryDirectory() as folder:
            subjects = _through_bundle(export(trained.module, Path(folder, "trained")), threads)
    else:
        subjects = _through_torch(trained, threads)
    return _Candidate(trained.family, trained.error, trained.seconds, subjects)


def _through_bundle(bundle: Bundle, threads: int) -> list[Subject]:
    return _from_rows(bundle_subjects(bundle, _BACKEND, threads=threads))


def _through_torch(trained: Trained, threads: int) -> list[Subject]:
    """In PyTorch, unless it has a GPU to run on, and, where it can be exported, in ONNX Runtime."""
    network = Network(trained.family, trained.module, trained.shape, Inputs(trained.shape.domain))
    set_up(threads)
    subjects: list[Subject] = in_torch(network, "torch") if find_device() == "cpu" else []
    try:
        subjects += in_onnxruntime_cpu(network, threads)
    except RelukanError:
        if not subjects:
            raise
    return _from_rows(subjects)


def _from_rows(subjects: Iterable[Subject]) -> list[Subject]:
    """Those that take rows and give rows, as a caller has them."""
    return [subject for subject in subjects if subject.contender.data == "host"]


def _timed(candidates: Sequence[_Candidate], memory: int, skipped: list[Skipped]) -> list[Accuracy]:
    """A record of each candidate that could be timed, in what ran it the fastest; none is compared yet."""
    subjects = [subject for candidate in candidates for subject in candidate.subjects]
    points = iter(sweep(subjects, BATCHES, _EFFORT, memory=memory))
    found = []
    for candidate in candidates:
        ways = [(subject, next(points)) for subject in candidate.subjects]
        best, times = min(ways, key=lambda way: math.prod(_seconds(way[1]).get(batch, math.inf) for batch in BATCHES))
        seconds = _seconds(times)
        contender = best.contender
        if not seconds:
            name = f"{candidate.family} {list(contender.widths)}, at equal accuracy"
            skipped.append(Skipped(name, times[0].skipped or "it was not measured"))
            continue
        found.append(
            Accuracy(
                network=candidate.family,
                widths=contender.widths,
                parameters=best.parameters,
                engine=contender.engine,
                environment=0,
                error=candidate.error,
                train_seconds=candidate.seconds,
                seconds=seconds,
                compared_at=math.inf,
            )
        )
    return found


def _seconds(points: Iterable[Point]) -> dict[int, float]:
    return {point.batch: point.timing.p50 for point in points if point.timing}


def _compared(found: Sequence[Accuracy], error: float | None) -> list[Accuracy]:
    """The records with the error at which they are compared: None takes the best that every family reaches."""
    best: dict[str, float] = {}
    for each in found:
        best[each.network] = min(each.error, best.get(each.network, math.inf))
    level = max(best.values(), default=0.0) if error is None else error
    return [dataclasses.replace(each, compared_at=level) for each in found]
