"""Every subject over every batch size, several runs long."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence

from ..errors import RelukanError
from .results import Point, Split
from .subjects import Subject
from .timing import Rounds, Turn, sample, summarise

__all__ = ["Effort", "sweep"]


class _TooSlow(RelukanError):  # noqa: N818  never raised to a caller
    """A call takes longer than is measured."""


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


def sweep(
    subjects: Sequence[Subject],
    batches: Sequence[int],
    effort: Effort,
    *,
    memory: int,
    say: Callable[[str], None] = lambda doing: None,
) -> list[tuple[Point, ...]]:
    """For each subject its points, one for each batch, ascending.

    All subjects take turns at a batch size. One that cannot be run there is skipped, with the reason.

    Args:
        memory: bytes that a call may take.
        say: told what is being done.
    """
    batches = sorted(set(batches))
    taken: dict[tuple[int, int], list[Rounds]] = defaultdict(list)
    splits: dict[tuple[int, int], Split | None] = {}
    skipped: dict[tuple[int, int], str] = {}
    for run in range(effort.runs):
        for batch in batches:
            say(f"run {run + 1} of {effort.runs}: {batch} {'row' if batch == 1 else 'rows'}")
            turns: dict[int, Turn] = {}
            try:
                for index, subject in enumerate(subjects):
                    if (index, batch) in skipped:
                        continue
                    try:
                        turns[index] = _prepared(subject, batch, memory, effort.longest)
                    except (RelukanError, MemoryError) as error:
                        subject.release()
                        skipped[index, batch] = str(error) or "out of memory"
                        if isinstance(error, _TooSlow):
                            skipped |= {(index, larger): str(error) for larger in batches if larger > batch}
                if not turns:
                    continue
                found = sample(
                    {str(index): turn for index, turn in turns.items()},
                    rounds=effort.rounds,
                    burst=effort.burst,
                    warm_up=effort.warm_up,
                    most=effort.most,
                    seed=run,
                )
                for index in turns:
                    taken[index, batch].append(found[str(index)])
                    if (index, batch) not in splits:
                        splits[index, batch] = subjects[index].split()
            finally:
                for index in turns:
                    subjects[index].release()
    return [
        tuple(
            Point(batch, summarise(taken[index, batch]), split=splits[index, batch])
            if (index, batch) in taken
            else Point(batch, skipped=skipped[index, batch])
            for batch in batches
        )
        for index in range(len(subjects))
    ]


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
        raise _TooSlow(f"a call with {batch} rows takes {seconds:.1f} s, more than {longest:g}")
    return turn
