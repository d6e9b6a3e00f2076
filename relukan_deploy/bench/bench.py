"""`bench`: everything that is measured of a bundle, as one call."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..bundle import Bundle, open_bundle
from ..errors import InputError, MissingDeviceError, RelukanError
from ..gpu import find_gpu
from ..runtime import BACKENDS
from ..spec import Precision
from .environment import available_bytes, conditions, describe
from .limits import Device, with_ideals
from .peers import PEERS
from .remote import Worker
from .request import Opened, Request, open_here
from .results import OURS, Contender, Environment, Peaks, Results, Series, Skipped, Startup
from .startup import cold_starts
from .subjects import Subject
from .subjects.bundles import artifact_for, shape_of
from .sweep import Effort, sweep

__all__ = ["BATCHES", "FULL", "QUICK", "Pythons", "backends_of", "bench", "engines_for"]

BATCHES = tuple(4**exponent for exponent in range(9))  # 1 to 65536
FULL = Effort()
QUICK = Effort(runs=2, rounds=5, burst=0.002, warm_up=0.02, most=3.0, longest=0.3)

_STARTS = 5  # processes of each backend that are timed up to their first answer

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Pythons:
    """Which interpreter runs what, in which processes.

    Attributes:
        default: for whatever has none of its own; None is this process.
        named: by backend or peer.
        isolate: gives each backend and each peer a process of its own.
    """

    default: str | None = None
    named: Mapping[str, str] = dataclasses.field(default_factory=dict)
    isolate: bool = False

    def parts(self, request: Request) -> Iterator[tuple[str, str | None, Request]]:
        """For each process what it is for, its interpreter or None for this process, and what it measures.

        Our own network in PyTorch runs where the peers do that have no interpreter of their own.

        Raises:
            InputError: an interpreter is named for what is not measured.
        """
        measured = (*request.backends, *request.peers)
        for name in self.named:
            if name not in measured:
                known = "it is not measured" if name in (*BACKENDS, *PEERS) else "there is no such backend or peer"
                raise InputError(f"--python {name}=PATH: {known}: measured are {', '.join(measured)}")
        groups: dict[str | None, list[str]] = {}
        for name in (*((OURS,) if request.engines else ()), *measured):
            python = self.named.get(name, self.default)
            groups.setdefault(f"{name} {python}" if self.isolate else python, []).append(name)
        for names in groups.values():
            python = self.named.get(names[0], self.default) or (sys.executable if self.isolate else None)
            peers = tuple(name for name in request.peers if name in names)
            yield (
                ", ".join(names),
                python,
                dataclasses.replace(
                    request,
                    backends=tuple(name for name in request.backends if name in names),
                    peers=peers,
                    engines=request.engines if peers or OURS in names else (),
                ),
            )


def bench(
    request: Request,
    batches: Sequence[int] = BATCHES,
    effort: Effort = FULL,
    *,
    pythons: Pythons = Pythons(),
    starts: int = _STARTS,
    command: str = "",
    say: Say = lambda doing: None,
) -> Results:
    """Measures a bundle's backends and other networks of its shape, on this machine.

    Args:
        batches: rows of a call.
        starts: fresh processes of each backend that are timed up to their first answer; 0 for none.
        command: what was typed.
        say: told what is being done.

    Raises:
        BundleError: the bundle is damaged.
        InputError: there is no such backend, peer or engine, the bundle has another grid, or an interpreter
            cannot take part.
        MissingDeviceError: nothing could be run here.
    """
    bundle = open_bundle(request.bundle)
    for backend in request.backends:
        artifact_for(bundle, backend)
    if request.grid is not None:
        shape_of(bundle, request.grid, request.order)  # refused at once, not listed as left out at the end
    here = describe(command, request.threads)
    skipped: list[Skipped] = []
    with contextlib.ExitStack() as stack:
        opened: list[tuple[Opened, str]] = []
        for name, python, part in pythons.parts(request):
            say(f"opening {name}")
            try:
                one: Opened = Worker(part, name, python) if python else open_here(part)
            except InputError:
                raise
            except RelukanError as error:  # a process that died
                skipped.append(Skipped(name, str(error)))
                continue
            stack.callback(one.close)
            opened.append((one, python or sys.executable))
        members, environments = _members(here, opened)
        if not members:
            reasons = [*skipped, *(each for one, _ in opened for each in one.skipped)]
            said = "; ".join(f"{each.what}: {each.why}" for each in reasons)
            raise MissingDeviceError(f"nothing of {bundle.path} could be run here: {said}")
        say("measuring what this machine does at most")
        peaks = _peaks(members, [one for one, _ in opened], skipped)
        memory = available_bytes() // 2
        points = sweep([member.subject for member in members], batches, effort, memory=memory, say=say)
    series = [
        Series(member.contender, member.place, member.subject.parameters, member.subject.difference, timed)
        for member, timed in zip(members, points, strict=True)
    ]
    skipped = [*(each for one, _ in opened for each in one.skipped), *skipped]
    startups = list(_startups(bundle, members, starts, skipped, say))
    after = conditions()
    return Results(
        bundle=bundle.path.resolve().name,
        environments=tuple(dataclasses.replace(each, after=after, peaks=tuple(peaks)) for each in environments),
        series=tuple(with_ideals(series, bundle, peaks)),
        startups=tuple(startups),
        skipped=tuple(skipped),
    )


def backends_of(bundle: Bundle) -> tuple[str, ...]:
    """The backends that a bundle has an artifact for; without a GPU not the one that runs its graph there."""
    kinds = {artifact.kind for artifact in bundle.manifest.artifacts}
    known = [name for name, (kind, _) in BACKENDS.items() if kind in kinds]
    return tuple(name for name in known if name != "onnxruntime-cuda" or find_gpu())


def engines_for(backends: Sequence[str]) -> tuple[str, ...]:
    """What peers run in beside these backends: PyTorch in every way there is here, and the same engines as ours."""
    if find_gpu():
        return ("torch", "torch.compile", "torch CUDA graph", *backends)
    return ("torch", "torch.compile", *(name for name in backends if name == "onnxruntime-cpu"))


class _Member(NamedTuple):
    """A subject that takes part, the place of its environment, and its interpreter."""

    subject: Subject
    place: int
    python: str

    @property
    def contender(self) -> Contender:
        return self.subject.contender


def _members(here: Environment, opened: Iterable[tuple[Opened, str]]) -> tuple[list[_Member], list[Environment]]:
    """Every subject once: each process with peers has opened our network in PyTorch too."""
    members: dict[Contender, _Member] = {}
    environments: list[Environment] = []
    for one, python in opened:
        there = one.environment
        own = dataclasses.replace(here, commit=there.commit, versions=there.versions, gpu=here.gpu or there.gpu)
        for subject in one.subjects:
            if subject.contender in members:
                continue
            if own not in environments:
                environments.append(own)
            members[subject.contender] = _Member(subject, environments.index(own), python)
    return list(members.values()), environments


def _peaks(members: Iterable[_Member], opened: Sequence[Opened], skipped: list[Skipped]) -> list[Peaks]:
    """Of each device and precision that our network runs on and in, by the first process that can."""
    gpu = any(one.environment.gpu for one in opened)
    ours = [member.contender for member in members if member.contender.network == OURS]
    wanted: dict[tuple[Device, Precision], None] = {}
    for contender in ours:
        wanted["gpu" if gpu and contender.engine != "onnxruntime-cpu" else "cpu", contender.precision] = None
    found = []
    for device, precision in wanted:
        why = ""
        for one in opened:
            try:
                found.append(one.peaks(device, precision))
                break
            except RelukanError as error:
                why = str(error)
        else:
            skipped.append(Skipped(f"distance from the limit, {device}, {precision}", why))
    return found


def _startups(
    bundle: Bundle, members: Iterable[_Member], starts: int, skipped: list[Skipped], say: Say
) -> Iterator[Startup]:
    """Of each backend, in the interpreter that ran it."""
    backends = {
        member.contender.engine: member
        for member in members
        if member.contender.network == OURS and member.contender.engine in BACKENDS
    }
    for backend, member in backends.items() if starts else ():
        say(f"starting processes with {backend}")
        try:
            (startup,) = cold_starts(bundle.path, [backend], runs=starts, python=member.python)
            yield dataclasses.replace(startup, environment=member.place)
        except RelukanError as error:
            skipped.append(Skipped(f"cold start, {backend}", str(error)))
