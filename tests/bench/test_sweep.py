"""The sweep on subjects that do what they are told, failures included."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import pytest

from relukan_deploy.bench.results import Contender, Split
from relukan_deploy.bench.sweep import Effort, sweep
from relukan_deploy.bench.timing import Turn, timed
from relukan_deploy.errors import RelukanError

QUICK = Effort(runs=2, rounds=3, burst=1e-4, warm_up=0.0)
PLENTY = 1 << 30


class Told:
    """A subject whose calls take 2 µs for each row, as far as it says.

    Args:
        fails: an error for a batch size, raised at the turn of that number (0 is `prepare`).
    """

    parameters = 1
    difference: float | None = None

    def __init__(
        self,
        name: str = "a",
        *,
        seconds: float = 2e-6,
        each: int = 0,
        fails: dict[int, tuple[int, Exception]] | None = None,
    ) -> None:
        self.contender = Contender(name, (2, 1), "torch")
        self.log: list[str] = []
        self._seconds, self._each, self._fails = seconds, each, fails or {}
        self._turns = 0

    def bytes_for(self, batch: int) -> int:
        return self._each * batch

    def prepare(self, batch: int) -> Turn:
        self.log.append(f"prepare {batch}")
        self._turns = 0

        def turn(count: int) -> Sequence[float]:
            self._fail(batch)
            return [self._seconds * batch] * count

        self._fail(batch)
        return turn

    def split(self) -> Split | None:
        return Split(1.0, 2.0, 3.0) if self.contender.network == "gpu" else None

    def release(self) -> None:
        self.log.append("release")

    def close(self) -> None:
        self.log.append("close")

    def _fail(self, batch: int) -> None:
        at, error = self._fails.get(batch, (-1, Exception()))
        if at == self._turns:
            raise error
        self._turns += 1


def test_every_subject_has_a_point_for_every_batch_in_ascending_order() -> None:
    subjects = [Told("a"), Told("b", seconds=4e-6)]
    one, other = sweep(subjects, (8, 1, 8), QUICK, memory=PLENTY)
    assert [point.batch for point in one] == [1, 8]
    assert [point.timing.p50 for point in one if point.timing] == pytest.approx([2e-6, 16e-6])
    assert [point.timing.p50 for point in other if point.timing] == pytest.approx([4e-6, 32e-6])


def test_each_run_measures_every_batch_anew() -> None:
    subject = Told()
    ((first, _),) = sweep([subject], (1, 8), QUICK, memory=PLENTY)
    assert first.timing is not None
    assert [len(rounds) for rounds in first.timing.rounds] == [3, 3]
    assert subject.log == ["prepare 1", "release", "prepare 8", "release"] * 2


def test_subjects_of_a_batch_have_equal_rounds_however_slow_one_is() -> None:
    subjects = [Told("a"), Told("b", seconds=0.4)]
    (fast,), (slow,) = sweep(subjects, (1,), dataclasses.replace(QUICK, rounds=9, most=2.0), memory=PLENTY)
    assert fast.timing is not None
    assert slow.timing is not None
    assert [len(rounds) for rounds in fast.timing.rounds] == [len(rounds) for rounds in slow.timing.rounds] == [4, 4]


def test_real_calls_are_timed() -> None:
    class Sleeper(Told):
        def prepare(self, batch: int) -> Turn:
            return timed(lambda: time.sleep(0.001))

    ((point,),) = sweep([Sleeper()], (1,), QUICK, memory=PLENTY)
    assert point.timing is not None
    assert point.timing.best >= 0.001


def test_the_split_of_a_gpu_is_kept() -> None:
    (one,), (other,) = sweep([Told("gpu"), Told("cpu")], (1,), QUICK, memory=PLENTY)
    assert one.split == Split(1.0, 2.0, 3.0)
    assert other.split is None


def test_it_says_what_it_does() -> None:
    said: list[str] = []
    sweep([Told()], (1, 8), QUICK, memory=PLENTY, say=said.append)
    assert said == ["run 1 of 2: 1 row", "run 1 of 2: 8 rows", "run 2 of 2: 1 row", "run 2 of 2: 8 rows"]


def test_no_subjects_have_no_points() -> None:
    assert sweep([], (1,), QUICK, memory=PLENTY) == []


# --- what is skipped


def test_batches_that_need_too_much_memory_are_skipped() -> None:
    subject = Told(each=1 << 20)
    ((small, large),) = sweep([subject], (1, 2048), QUICK, memory=PLENTY)
    assert small.timing is not None
    assert large.skipped == "a call takes about 2.1 GB, and 1.1 may be used"
    assert "prepare 2048" not in subject.log


def test_memory_is_shared_by_the_subjects_of_a_batch() -> None:
    subjects = [Told("a", each=600 << 20), Told("b", each=600 << 20), Told("c", each=1)]
    (one,), (other,), (third,) = sweep(subjects, (1,), QUICK, memory=PLENTY)
    assert one.timing is not None
    assert other.skipped == "a call takes about 0.6 GB, and 0.4 may be used"
    assert third.timing is not None


def test_beyond_a_batch_that_is_too_slow_none_is_tried() -> None:
    subject = Told(seconds=0.3)
    ((one, four, large),) = sweep([subject], (1, 4, 16), QUICK, memory=PLENTY)
    assert one.timing is not None
    assert four.skipped == large.skipped == "a call with 4 rows takes 1.2 s, more than 1 s"
    assert "prepare 16" not in subject.log


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RelukanError("PyTorch has no room\nfor it"), "PyTorch has no room"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("an illegal memory access"), "RuntimeError: an illegal memory access"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
@pytest.mark.parametrize("at", [0, 1, 3, 6])
def test_a_subject_that_fails_is_skipped_and_the_others_go_on(error: Exception, expected: str, at: int) -> None:
    failing, other = Told("a", fails={8: (at, error)}), Told("b")
    points, others = sweep([failing, other], (1, 8, 64), QUICK, memory=PLENTY)
    assert [point.skipped for point in points] == [None, expected, None]
    assert all(point.timing and len(point.timing.rounds) == 2 for point in others)
    assert failing.log.count("prepare 8") == 1
    assert failing.log.index("release", failing.log.index("prepare 8")) == failing.log.index("prepare 8") + 1


def test_where_a_later_run_fails_the_runs_before_count() -> None:
    class Dying(Told):
        def prepare(self, batch: int) -> Turn:
            if self.log:
                raise RelukanError("its process has died")
            return super().prepare(batch)

    ((point,),) = sweep([Dying()], (1,), QUICK, memory=PLENTY)
    assert point.timing is not None
    assert len(point.timing.rounds) == 1


def test_a_split_that_fails_leaves_the_times() -> None:
    class Unsplit(Told):
        def split(self) -> Split | None:
            raise RuntimeError("an event has no time")

    ((point,),) = sweep([Unsplit()], (1,), QUICK, memory=PLENTY)
    assert point.timing is not None
    assert point.split is None


def test_an_interrupt_releases_what_was_prepared() -> None:
    def interrupted(count: int) -> Sequence[float]:
        raise KeyboardInterrupt

    class Interrupted(Told):
        def prepare(self, batch: int) -> Turn:
            self.log.append("prepare")
            return interrupted

    first, second = Told("a"), Interrupted("b")
    with pytest.raises(KeyboardInterrupt):
        sweep([first, second], (1,), QUICK, memory=PLENTY)
    assert first.log == ["prepare 1", "release"]
