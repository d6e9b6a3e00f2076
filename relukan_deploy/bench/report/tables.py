"""The words and tables of the page, as elements; so that what somebody else named stays text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from xml.etree.ElementTree import Element

from ..results import OURS, Accuracy, Data, Point, Results, Skipped, Startup
from ..timing import Timing
from . import words
from .groups import PLACES, Group, Line

__all__ = ["accuracies", "element", "environments", "figures", "left_out", "startups", "times"]

Child = Element | str | None


def element(tag: str, *children: Child, **attributes: str) -> Element:
    """An element with children and text. An attribute that is a word of Python ends in "_" ("class_")."""
    made = Element(tag, {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()})
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            made.append(child)
            last = child
        elif child and last is None:
            made.text = (made.text or "") + child
        elif child and last is not None:
            last.tail = (last.tail or "") + child
    return made


def times(group: Group, data: Data) -> Element:
    """The p50 of every line by batch, with how many times the baseline that is."""
    lines = [line for line in group.lines if line.data == data]
    batches = [batch for batch in group.batches if any(batch in line.points for line in lines)]
    head = element(
        "tr", element("th", "batch", scope="col"), *(element("th", f"{batch}", scope="col") for batch in batches)
    )
    bodies = [
        element(
            "tbody",
            element("tr", element("th", network, scope="rowgroup", colspan=str(len(batches) + 1))),
            *(
                element("tr", element("th", line.brief, scope="row"), *(_time(line, batch) for batch in batches))
                for line in lines
                if line.network == network
            ),
            class_="ours" if network == OURS else "other",
        )
        for network in dict.fromkeys(line.network for line in lines)
    ]
    caption = f"{group.title}: p50 of a call, {PLACES[data]}"
    if any(line.baseline for line in lines) and len(lines) > 1:
        caption += "; below it, how many times as long as the bold one that is"
    return _scrolling(caption, element("thead", head), *bodies)


def _time(line: Line, batch: int) -> Element:
    timing = line.timing(batch)
    if timing is None:
        return element("td", "–", class_="none")
    if batch in line.baseline:
        return element("td", element("b", words.duration(timing)))
    ratio = element("small", words.times(line.ratios[batch])) if batch in line.ratios else None
    return element("td", words.duration(timing), ratio)


Column = tuple[str, Callable[[Line, Point, Timing], str]]

_COLUMNS: tuple[Column, ...] = (
    ("p50", lambda line, point, timing: words.duration(timing)),
    ("p90", lambda line, point, timing: words.duration(timing.p90)),
    ("p99", lambda line, point, timing: words.duration(timing.p99)),
    ("mean (95 % interval)", lambda line, point, timing: words.mean(timing)),
    ("fastest", lambda line, point, timing: words.duration(timing.best)),
    ("spread", lambda line, point, timing: words.share(timing.spread)),
    ("calls", lambda line, point, timing: str(timing.calls)),
    ("rows/s", lambda line, point, timing: words.count(point.batch / timing.p50)),
    ("of the baseline (middle 80 %)", lambda line, point, timing: words.interval(line.ratios.get(point.batch))),
    ("to GPU + there + back", lambda line, point, timing: words.split(point)),
    ("times the limit", lambda line, point, timing: words.limit(point)),
    ("limit", lambda line, point, timing: words.duration(point.ideal.seconds) if point.ideal else ""),
    ("operations", lambda line, point, timing: words.count(point.ideal.flops) if point.ideal else ""),
    ("bytes", lambda line, point, timing: words.size(point.ideal.bytes) if point.ideal else ""),
)


def figures(group: Group) -> Element:
    """Every figure of every line."""
    rows = {
        line.number: [
            (str(point.batch), [text(line, point, point.timing) for _, text in _COLUMNS])
            for point in line.points.values()
            if point.timing
        ]
        for line in group.lines
    }
    kept = [number for number in range(len(_COLUMNS)) if any(row[number] for each in rows.values() for _, row in each)]
    head = element("tr", *(element("th", title, scope="col") for title in ("batch", *(_COLUMNS[i][0] for i in kept))))
    bodies = [
        element(
            "tbody",
            element("tr", element("th", line.name, _about(line), scope="rowgroup", colspan=str(len(kept) + 1))),
            *(
                element("tr", element("th", batch, scope="row"), *(element("td", row[i] or "–") for i in kept))
                for batch, row in rows[line.number]
            ),
        )
        for line in group.lines
    ]
    return _scrolling(f"{group.title}: all figures", element("thead", head), *bodies, kind="scroll tall")


def _about(line: Line) -> Element:
    series = line.series
    said = [words.widths(series.contender.widths), f"{series.parameters} parameters"]
    if series.difference is not None:
        said.append(f"largest difference from what it should compute {series.difference:.1e}")
    return element("small", ", ".join(said))


def startups(results: Results) -> Element:
    """Cold starts."""
    several = len(results.environments) > 1
    columns: dict[str, Callable[[Startup], str]] = {
        "backend": lambda each: each.engine,
        "environment": lambda each: str(each.environment + 1) if several else "",
        "file": lambda each: each.file,
        "size": lambda each: words.size(each.file_bytes),
        "built in": lambda each: "" if each.build_seconds is None else words.duration(each.build_seconds),
        "import": lambda each: words.duration(each.import_seconds),
        "load": lambda each: words.duration(each.load_seconds),
        "first answer": lambda each: words.duration(each.first_seconds),
        "all three": lambda each: words.duration(each.import_seconds + each.load_seconds + each.first_seconds),
        "memory": lambda each: words.size(each.host_bytes),
        "on the GPU": lambda each: "" if each.device_bytes is None else words.size(each.device_bytes),
    }
    rows = [[text(each) for text in columns.values()] for each in results.startups]
    return _plain_table("A fresh process, up to its first answer; medians", list(columns), rows)


def accuracies(results: Results) -> Element:
    """Networks trained on the same data."""
    batches = sorted({batch for each in results.accuracies for batch in each.seconds})
    columns: dict[str, Callable[[Accuracy], str]] = {
        "network": lambda each: each.network,
        "run by": lambda each: each.engine,
        "layers": lambda each: words.widths(each.widths),
        "parameters": lambda each: str(each.parameters),
        "error": lambda each: words.error(each.error),
        "training": lambda each: "" if each.train_seconds is None else words.duration(each.train_seconds),
    }
    rows = [
        [
            *(text(each) for text in columns.values()),
            *(words.duration(each.seconds[batch]) if batch in each.seconds else "" for batch in batches),
        ]
        for each in results.accuracies
    ]
    titles = [*columns, *(f"p50 at batch {batch}" for batch in batches)]
    levels = dict.fromkeys(words.error(each.compared_at) for each in results.accuracies)
    caption = f"The error is of rows that training never saw; they are compared at {words.join(list(levels))}"
    return _plain_table(caption, titles, rows)


def left_out(skipped: Sequence[Skipped]) -> Element:
    """What was not measured, and why."""
    rows = [[each.what, each.why] for each in skipped]
    return _plain_table("Asked for and not measured", ["what", "why"], rows, kind="scroll words")


def environments(results: Results) -> list[Element]:
    """For each environment its facts, and the command."""
    found = []
    for index, environment in enumerate(results.environments):
        facts = [
            element("div", element("dt", label), element("dd", fact))
            for label, fact in words.environment(environment)
            if label != "Command"
        ]
        title = element("h3", words.numbered("Environment", index, results))
        found.append(
            element(
                "div",
                title if len(results.environments) > 1 else None,
                element("pre", element("code", environment.command), tabindex="0", aria_label="Command"),
                element("dl", *facts),
                class_="environment",
            )
        )
    return found


def _plain_table(
    caption: str, titles: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "scroll"
) -> Element:
    """A table without empty columns, its rows named by their first cell."""
    kept = [index for index in range(len(titles)) if any(row[index] for row in rows)]
    head = element("tr", *(element("th", titles[index], scope="col") for index in kept))
    body = [
        element(
            "tr",
            *(element("td", row[index] or "–") if index else element("th", row[index], scope="row") for index in kept),
        )
        for row in rows
    ]
    return _scrolling(caption, element("thead", head), element("tbody", *body), kind=kind)


def _scrolling(caption: str, *parts: Element, kind: str = "scroll") -> Element:
    """A table in a box of its own, which scrolls where the table is wider than the page."""
    table = element("table", element("caption", element("span", caption)), *parts)
    return element("div", table, class_=kind, tabindex="0", role="region", aria_label=caption)
