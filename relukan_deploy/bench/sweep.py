"""Every subject over every batch size, several runs long."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from ..errors import RelukanError
from .results import Point, Split
from .subjects import Subject
from .timing import Rounds, Turn, sample, summarise

__all__ = ["Effort", "sweep"]


class _TooSlow(RelukanError):  # noqa: N818  never raised to a caller
    """A call takes longer than is measured."""


class _Failed(Exception):  # noqa: N818
    """A subject failed while it had its turn; its error is the cause."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long is measured.

    Attributes:
        runs: how often everything is measured from the beginning; what changes within minutes
            shows between them.
        rounds: turns of each contender at each batch, in each run.
        burst, warm_up: seconds; see `sample`.
        most: seconds for the rounds of one batch in one run, about.
        longest: seconds; batches where a call takes longer are skipped.
    """

    runs: int = 5
    rounds: int = 9
    burst: float = 0.005
    warm_up: float = 0.05
    most: float = 10.0
    longest: float = 1.0

    def sample(self, turns: Mapping[str, Turn], run: int) -> Mapping[str, Rounds]:
        """The rounds of each contender in a run, the first being 0; see `timing.sample`."""
        return sample(turns, rounds=self.rounds, burst=self.burst, warm_up=self.warm_up, most=self.most, seed=run)


def sweep(
    subjects: Sequence[Subject],
    batches: Sequence[int],
    effort: Effort,
    *,
    memory: int,
    say: Callable[[str], None] = lambda doing: None,
) -> list[tuple[Point, ...]]:
    """For each subject its points, one for each batch, ascending.

    All subjects take turns at a batch size. One that cannot be run there is skipped, with the reason; where
    it fails in a later run, the runs before count.

    Args:
        memory: bytes that the subjects may take at a batch size, together.
        say: told what is being done.
    """
    batches = sorted(set(batches))
    found = _Sweep(subjects, batches, effort, memory)
    for run in range(effort.runs):
        for batch in batches:
            say(f"run {run + 1} of {effort.runs}: {batch} {'row' if batch == 1 else 'rows'}")
            found.measure(run, batch)
    return [tuple(found.point(index, batch) for batch in batches) for index in range(len(subjects))]


class _Sweep:
    """What has been found so far, by subject and batch."""

    def __init__(self, subjects: Sequence[Subject], batches: Sequence[int], effort: Effort, memory: int) -> None:
        self._subjects, self._batches, self._effort, self._memory = subjects, batches, effort, memory
        self._taken: dict[tuple[int, int], list[Rounds]] = defaultdict(list)
        self._splits: dict[tuple[int, int], Split | None] = {}
        self._skipped: dict[tuple[int, int], str] = {}

    def measure(self, run: int, batch: int) -> None:
        """One batch size in one run."""
        turns: dict[int, Turn] = {}
        try:
            self._prepare(turns, batch)
            for index, rounds in self._sample(turns, run, batch).items():
                self._taken[index, batch].append(rounds)
                if (index, batch) not in self._splits:
                    self._splits[index, batch] = self._split(index)
        finally:
            for index in turns:
                self._subjects[index].release()

    def point(self, index: int, batch: int) -> Point:
        place = index, batch
        if place not in self._taken:
            return Point(batch, skipped=self._skipped[place])
        return Point(batch, summarise(self._taken[place]), split=self._splits[place])

    def _prepare(self, turns: dict[int, Turn], batch: int) -> None:
        """Adds the turns of every subject that can be run."""
        left = self._memory
        for index, subject in enumerate(self._subjects):
            if (index, batch) in self._skipped:
                continue
            try:
                turns[index] = _prepared(subject, batch, left, self._effort.longest)
                left -= subject.bytes_for(batch)
            except Exception as error:  # a peer's package may raise anything, and the others go on
                self._skip(index, batch, error)

    def _sample(self, turns: dict[int, Turn], run: int, batch: int) -> dict[int, Rounds]:
        """The rounds of each; one that fails loses its turns, and the others begin anew."""
        while turns:
            named = {str(index): _failing_as(index, turn) for index, turn in turns.items()}
            try:
                found = self._effort.sample(named, run)
            except _Failed as failed:
                del turns[failed.index]
                self._skip(failed.index, batch, failed.__cause__)
            else:
                return {int(name): rounds for name, rounds in found.items()}
        return {}

    def _split(self, index: int) -> Split | None:
        try:
            return self._subjects[index].split()
        except Exception:  # the times are known all the same
            return None

    def _skip(self, index: int, batch: int, error: BaseException | None) -> None:
        said = (str(error).strip().splitlines() or [""])[0]
        if not isinstance(error, RelukanError):
            said = f"{type(error).__name__}: {said}".removesuffix(": ")
        for each in self._batches:
            if each == batch or (each > batch and isinstance(error, _TooSlow)):
                self._skipped[index, each] = said
        self._subjects[index].release()


def _prepared(subject: Subject, batch: int, memory: int, longest: float) -> Turn:
    """The subject's turns.

    Raises:
        RelukanError: it cannot be run with so many rows, or should not.
    """
    needed = subject.bytes_for(batch)
    if needed > memory:
        raise RelukanError(f"a call takes about {needed / 1e9:.1f} GB, and {memory / 1e9:.1f} may be used")
    turn = subject.prepare(batch)
    turn(1)  # compiles, allocates, captures
    seconds = turn(1)[0]
    if seconds > longest:
        raise _TooSlow(f"a call with {batch} rows takes {seconds:.3g} s, more than {longest:g} s")
    return turn


def _failing_as(index: int, turn: Turn) -> Turn:
    def failing(count: int) -> Sequence[float]:
        try:
            return turn(count)
        except Exception as error:
            raise _Failed(index) from error

    return failing
