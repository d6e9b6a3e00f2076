"""Results as one page that needs nothing from elsewhere.

Plotly's library, the script and the figures are in the page, and its policy forbids every request. What
somebody else named is written as text: in the tables by ElementTree, in the figures by escapes that neither
HTML nor Plotly reads as markup.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from ..._files import replacing_file
from ...errors import InputError, MissingDependencyError
from ..results import B_SPLINES, Results
from . import charts, tables, words
from .charts import Chart
from .finding import accuracy_finding, finding, left_out
from .groups import Group, groups, machines
from .styles import DARK, LIGHT
from .tables import element

__all__ = ["write_page"]

_TEMPLATE = Path(__file__).with_name("page.html")


@dataclasses.dataclass(frozen=True)
class _Section:
    """A part of the page.

    Attributes:
        name: in the page's addresses.
        note: how to read it.
        charts: what its chart can show, for each group; none where it has no chart.
        parts: what stands below.
    """

    name: str
    title: str
    note: str
    charts: list[list[Chart]] = dataclasses.field(default_factory=list)
    parts: list[Element] = dataclasses.field(default_factory=list)


def write_page(results: Results, path: str | Path) -> None:
    """Writes the page.

    Raises:
        InputError: the name does not end in .html.
        MissingDependencyError: Plotly is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path} does not end in .html, and no other page is written")
    page = _page(results)
    with replacing_file(path) as written:
        written.write_bytes(page.encode("utf-8", "replace"))  # a path may hold bytes that are no text


def _page(results: Results) -> str:
    """The template with everything in its places."""
    template, plotly = _TEMPLATE.read_text(encoding="utf-8"), _plotly()
    script = template.rpartition("<script>")[2].partition("</script>")[0]
    found = groups(results)
    sections = [each for each in _sections(results, found) if any(each.charts) or each.parts]
    data = {
        "groups": [group.title for group in found],
        "charts": {
            each.name: [[dataclasses.asdict(chart) for chart in choice] for choice in each.charts]
            for each in sections
            if any(each.charts)
        },
    }
    policy = _policy(plotly, script)
    contents = (element("li", element("a", each.title, href=f"#{each.name}")) for each in sections)
    places = {
        "title": _markup(element("title", f"{results.bundle}, measured by relukan-bench")),
        "policy": _markup(element("meta", http_equiv="Content-Security-Policy", content=policy)),
        "light": _colours(LIGHT),
        "dark": _colours(DARK),
        "summary": _markup(*_summary(results, found)),
        "contents": _markup(*contents),
        "sections": _markup(*map(_section, sections)),
        "figures": _escaped(data),
        "plotly": plotly,
    }
    return re.sub("@@([a-z]+)@@", lambda place: places[place[1]], template)


def _sections(results: Results, found: list[Group]) -> list[_Section]:
    networks = {network for group in found for network in group.networks}
    others = "B-spline KANs" if networks.intersection(B_SPLINES) else "other networks"
    skipped = left_out(results, found)
    return [
        _Section(
            "latency",
            "Latency",
            "How long one call takes, by its rows. Thin bars reach from p50 to p99; hollow markers were unsteady.",
            [charts.latency(group) for group in found],
            [tables.times(group, data) for group in found for data in group.places],
        ),
        _Section(
            "throughput", "Throughput", "Rows a second, by the rows of a call.", list(map(charts.throughput, found))
        ),
        _Section(
            "speed-up",
            f"Speed-up over {others}",
            "How many times as long as this network another one takes, with the rows in the same place. Below 1 × it "
            "is the faster one.",
            list(map(charts.speed_up, found)),
        ),
        _Section(
            "limit",
            "Distance from the limit",
            "How many times as long a call takes as the ideal network would, fused into one kernel that runs at this "
            "machine's measured peaks. What bounds the ideal there: ● the launch, ■ memory, ◆ arithmetic.",
            list(map(charts.limit, found)),
        ),
        _Section(
            "split",
            "Where the time goes on the GPU",
            "Parts of a call by CUDA events: medians. The rest is what p50 has beyond them.",
            list(map(charts.splits, found)),
        ),
        _Section(
            "accuracy",
            "Accuracy against latency",
            "Networks trained on the same data; lower left is better. The line is the error they are compared at.",
            [charts.accuracy(results)] * max(1, len(found)) if results.accuracies else [],
            [
                *(element("p", _unbroken(sentence)) for sentence in accuracy_finding(results)),
                *([tables.accuracies(results)] if results.accuracies else []),
            ],
        ),
        _Section(
            "start",
            "Cold start",
            "What a new process takes to its first answer.",
            parts=[tables.startups(results)] if results.startups else [],
        ),
        _Section("figures", "All figures", words.UNSTEADY_NOTE + ".", parts=list(map(tables.figures, found))),
        _Section("skipped", "Not measured", "", parts=[tables.left_out(skipped)] if skipped else []),
        _Section("how", "How it was measured", "", parts=tables.environments(results)),
    ]


def _section(section: _Section) -> Element:
    head = [element("h2", section.title)]
    if section.note:
        head.append(element("p", section.note, class_="note"))
    if any(section.charts):
        label = f"{section.title}, as a chart. {section.note} The figures are in the tables."
        head += [
            element("select", class_="choice", aria_label=f"{section.title}: what is shown", hidden="hidden"),
            element(
                "figure",
                element("div", class_="chart", role="img", aria_label=label),
                element("div", class_="legend"),
                data_chart=section.name,
            ),
            element("p", "Nothing of this was measured here.", class_="nothing", hidden="hidden"),
        ]
    return element("section", element("div", *head, class_="together"), *section.parts, id=section.name)


def _summary(results: Results, found: list[Group]) -> list[Element]:
    """What was measured, where, and what was found."""
    measured = [f"{words.machine(each)}; {words.threads(each.threads)}" for each in machines(results)]
    parts = [element("h1", results.bundle), *(element("p", line, class_="dim") for line in measured)]
    for group in found:
        if len(found) > 1:
            parts.append(element("h3", group.title))
        else:
            parts.insert(1, element("p", group.title, class_="shape"))
        for first, *rest in finding(group) or [["Nothing of this network was measured."]]:
            parts += [element("p", _unbroken(first), class_="lead")]
            parts += [element("p", _unbroken(sentence)) for sentence in rest]
    timings = [timing for group in found for line in group.lines for timing in line.timings]
    unsteady = sum(timing.is_unsteady for timing in timings)
    if unsteady:
        parts.append(
            element(
                "p",
                f"{unsteady} of {len(timings)} times were unsteady; they are marked {words.UNSTEADY}.",
                class_="dim",
            )
        )
    return parts


def _unbroken(sentence: str) -> str:
    """A sentence whose numbers keep their units beside them."""
    return re.sub(r"(?<=\d) (?=×|[mµn]?s\b)", "\u00a0", sentence)


def _plotly() -> str:
    """Plotly's library, with what would end the script or hide its end written otherwise."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingDependencyError("The page", "plotly", "bench") from error
    library: str = get_plotlyjs()
    return library.replace("\r", "").replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _policy(*scripts: str) -> str:
    """Nothing but these scripts, the icon, and styles, which Plotly makes as it goes."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _colours(palette: tuple[str, ...]) -> str:
    return " ".join(f"--c{number}: {colour};" for number, colour in enumerate(palette))


def _escaped(data: Any) -> str:
    """JSON that HTML cannot take for markup. Floats keep all their digits."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _markup(*elements: Element) -> str:
    return "\n".join(ElementTree.tostring(each, encoding="unicode", method="html") for each in elements)
