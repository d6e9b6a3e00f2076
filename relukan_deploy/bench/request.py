"""What is to be measured, and its subjects: opened in this process, whichever it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from ..bundle import open_bundle
from ..errors import RelukanError
from ..spec import Precision
from .environment import describe
from .limits import Device, measure_peaks
from .results import Environment, Peaks, Skipped
from .subjects import Subject
from .subjects.bundles import bundle_subjects, shape_of

__all__ = ["Here", "Opened", "Request", "open_here"]


@dataclasses.dataclass(frozen=True)
class Request:
    """What one process measures.

    Attributes:
        bundle: its path.
        backends: of `relukan_deploy.runtime.BACKENDS`.
        peers: of `relukan_deploy.bench.peers.PEERS`.
        engines: that run peers, and a ReLU-KAN of our own in PyTorch; see `peer_subjects`. None, and neither is run.
        threads: of the CPU, for each subject.
        grid, order: of the network; see `shape_of`.
    """

    bundle: str
    backends: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    threads: int = 1
    grid: int | None = None
    order: int | None = None


class Opened(Protocol):
    """The subjects of a request, in this process or another one.

    Attributes:
        subjects, skipped: what can be timed, and what cannot, and why.
        environment: of the process.
    """

    subjects: Sequence[Subject]
    skipped: list[Skipped]
    environment: Environment

    def peaks(self, device: Device, precision: Precision) -> Peaks:
        """As `measure_peaks`, there.

        Raises:
            RelukanError: they cannot be measured there.
        """

    def close(self) -> None:
        """Frees everything; what has gone wrong until then is among `skipped`."""


class Here:
    """Subjects in this process."""

    def __init__(self, request: Request, subjects: Sequence[Subject], skipped: list[Skipped]) -> None:
        self.subjects = subjects
        self.skipped = skipped
        self.environment = describe("", request.threads)
        self._threads = request.threads

    def peaks(self, device: Device, precision: Precision) -> Peaks:
        return measure_peaks(device, precision, self._threads)

    def close(self) -> None:
        for subject in self.subjects:
            subject.close()


def open_here(request: Request) -> Here:
    """Opens the subjects in this process. What cannot be run here is skipped, with the reason.

    Raises:
        BundleError: the bundle is damaged.
    """
    bundle = open_bundle(request.bundle)
    subjects: list[Subject] = []
    skipped: list[Skipped] = []
    for backend in request.backends:
        try:
            subjects += bundle_subjects(bundle, backend, threads=request.threads)
        except RelukanError as error:
            skipped.append(Skipped(f"this network: {backend}", str(error)))
    if request.engines:
        try:
            from .subjects.torch_engines import peer_subjects

            shape, ours = shape_of(bundle, request.grid, request.order), not bundle.manifest.splines
            others, left_out = peer_subjects(
                shape, request.peers, threads=request.threads, engines=request.engines, ours=ours
            )
            subjects += others
            skipped += left_out
        except RelukanError as error:
            skipped.append(Skipped(", ".join(request.peers) or "this network: torch", str(error)))
    return Here(request, subjects, skipped)
