"""Results as JSON: written, read and checked, joined."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..errors import InputError
from .results import SCHEMA_VERSION, Accuracy, Results, Series, Startup

__all__ = ["merge", "read", "to_json"]

Item = TypeVar("Item")
Placed = TypeVar("Placed", Series, Startup, Accuracy)

# A list of numbers, which is easier to read in one line. No string of JSON has a line's end in it.
_NUMBERS = re.compile(r"\[\n([^][{}\"]*)\]")
_AGAIN = "Measure again: relukan-bench BUNDLE --json > FILE"


def to_json(results: Results) -> str:
    """The results as text; floats keep all their digits.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(msgspec.to_builtins(results, str_keys=True), ensure_ascii=False, allow_nan=False, indent=1)
    text = _NUMBERS.sub(lambda numbers: f"[{' '.join(numbers[1].split())}]", text)
    return text.encode("utf-8", "replace").decode()  # a path may hold bytes that are no text


def read(path: str | Path) -> Results:
    """The results in a file.

    Raises:
        InputError: it cannot be read, is damaged, is something else, or was written by a later release.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    try:
        content = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"{path} is not JSON, or only the beginning of it: {error}. {_AGAIN}") from error
    if not isinstance(content, dict) or not {"schema", "series", "environments"} <= content.keys():
        raise InputError(f"{path} is JSON, but not what relukan-bench wrote. {_AGAIN}")
    if content["schema"] != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {content['schema']!r}, this release reads {SCHEMA_VERSION}: "
            "upgrade relukan-deploy: pip install -U relukan-deploy"
        )
    try:
        results = msgspec.json.decode(data, type=Results)
        _check(results)
    except ValueError as error:  # msgspec's errors are too
        raise InputError(f"{path} is damaged: {error}. {_AGAIN}") from error
    return results


def merge(several: Sequence[Results]) -> Results:
    """All of them as one.

    What stands in two of them alike, down to the second it was measured in, is kept once: it is the same
    measurement, met again in a file that was merged before. Series of different environments stay apart.

    Raises:
        InputError: there are none.
    """
    if not several:
        raise InputError("there is nothing to merge, expected at least one file")
    environments = _unique([environment for results in several for environment in results.environments])

    def placed(results: Results, items: Sequence[Placed]) -> list[Placed]:
        places = [environments.index(environment) for environment in results.environments]
        return [dataclasses.replace(item, environment=places[item.environment]) for item in items]

    def all_of(items: Any) -> tuple[Any, ...]:
        return tuple(_unique(itertools.chain.from_iterable(items)))

    return Results(
        bundle=", ".join(_unique(itertools.chain(*(results.bundle.split(", ") for results in several)))),
        environments=tuple(environments),
        series=all_of(placed(results, results.series) for results in several),
        startups=all_of(placed(results, results.startups) for results in several),
        accuracies=all_of(placed(results, results.accuracies) for results in several),
        skipped=all_of(results.skipped for results in several),
    )


def _check(results: Results) -> None:
    """Raises ValueError where the fields, each of the right type, make no sense together."""
    items: tuple[Series | Startup | Accuracy, ...] = (*results.series, *results.startups, *results.accuracies)
    if not all(0 <= item.environment < len(results.environments) for item in items):
        raise ValueError(f"something was measured in an environment that is missing, of {len(results.environments)}")
    for series in results.series:
        for point in series.points:
            timing = point.timing
            if point.batch < 1 or not (timing or point.skipped):
                raise ValueError(f"{series.contender.name} has no time at {point.batch} rows, and no reason")
            if timing and not (timing.rounds and all(timing.rounds)):
                raise ValueError(f"{series.contender.name} has no rounds at {point.batch} rows")
            if timing and min(timing.p50, *itertools.chain(*timing.rounds)) <= 0:
                raise ValueError(f"{series.contender.name} takes no time at {point.batch} rows")


def _unique(items: Iterable[Item]) -> list[Item]:
    """Each once, in order. By equality, since what holds a dict cannot be hashed."""
    found: list[Item] = []
    for item in items:
        if item not in found:
            found.append(item)
    return found
