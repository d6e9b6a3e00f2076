"""The main finding in plain sentences, and what was not found out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..results import OURS, Accuracy, Data, Results, Skipped
from . import words
from .groups import PLACES, Group

__all__ = ["accuracy_finding", "finding", "left_out"]


def finding(group: Group) -> list[list[str]]:
    """The main finding in plain sentences, for each place of the rows that a caller knows."""
    return [found for data in group.places if data != "bound" and (found := _finding(group, data))]


def _finding(group: Group, data: Data) -> list[str]:
    found = {batch: line for batch in group.batches if (line := group.baseline(data, batch))}
    if not found:
        return []
    times = {batch: timing for batch, line in found.items() if (timing := line.timing(batch))}
    least, most = min(times), max(times, key=lambda batch: batch / times[batch].p50)
    rows = "one row" if least == 1 else f"{least} rows"
    said = f"With {PLACES[data]}, this network answers {rows} in {words.duration(times[least])} ({found[least].brief})"
    fastest = group.fastest(OURS, data, least)
    if fastest and fastest.number != found[least].number and (timing := fastest.timing(least)):
        said += f", or {words.duration(timing)} ({fastest.brief})"
    if len(found) > 1:
        said += f"; the most is {words.count(most / times[most].p50)} rows a second, at batch {most}"
        if found[most].number != found[least].number:
            said += f" ({found[most].brief})"
    sentences = [f"{said}."]
    others = {batch: ratios for batch in found if (ratios := _others(group, data, batch))}
    if others:
        large = max(others, key=lambda batch: (len(others[batch]), batch))
        first = min(others)
        each = "the fastest way found to run each other network"
        sentences.append(f"At batch {first} {each} takes {words.join(others[first])} as long.")
        if large != first:
            sentences.append(f"At batch {large} it takes {words.join(others[large])}.")
    return sentences


def _others(group: Group, data: Data, batch: int) -> list[str]:
    """How many times as long the other networks take, each at its fastest."""
    lines = [group.fastest(network, data, batch) for network in group.networks if network != OURS]
    return [f"{words.times(line.ratios[batch])} ({line.network})" for line in lines if line and batch in line.ratios]


def accuracy_finding(results: Results) -> list[str]:
    """Of the networks trained on the same data, the fastest of each kind that reaches the error."""
    together: dict[tuple[int, float], list[Accuracy]] = {}
    for each in results.accuracies:
        together.setdefault((each.environment, each.compared_at), []).append(each)
    return [sentence for (_, level), several in together.items() for sentence in _fastest(several, level)]


def _fastest(several: Sequence[Accuracy], level: float) -> Iterator[str]:
    reaching = [each for each in several if each.error <= level]
    for batch in sorted({batch for each in reaching for batch in each.seconds}):
        timed = sorted((each for each in reaching if batch in each.seconds), key=lambda each: each.seconds[batch])
        found: dict[str, Accuracy] = {}
        for each in timed:
            found.setdefault(each.network, each)
        times = [
            f"{words.duration(each.seconds[batch])} ({each.network}, {words.widths(each.widths)})"
            for each in found.values()
        ]
        yield f"With an error of at most {words.error(level)}, the fastest at batch {batch}: {words.join(times)}."
    best = {each.network: each.error for each in sorted(several, key=lambda each: -each.error)}
    missing = [f"{network} (the best has {words.error(error)})" for network, error in best.items() if error > level]
    if missing:
        yield f"None so accurate was found of {words.join(missing)}."


def left_out(results: Results, found: Sequence[Group]) -> list[Skipped]:
    """Everything that was not measured: what the results list, and the batches that a series lacks."""
    listed = list(results.skipped)
    for group in found:
        shape = f" ({group.title})" if len(found) > 1 else ""
        for line in group.lines:
            reasons: dict[str, list[str]] = {}
            for point in line.series.points:
                if point.skipped:
                    reasons.setdefault(point.skipped, []).append(str(point.batch))
            listed += [
                Skipped(f"{line.name}, batch {words.join(batches)}{shape}", why) for why, batches in reasons.items()
            ]
    return listed
