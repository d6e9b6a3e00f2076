"""The README's figures of imported networks: our graphs of them beside their own exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from relukan_deploy.bench.report import words

from ._ratios import spread, times
from ._readme_text import paragraph, rows_of
from ._report import micro

__all__ = ["imported"]

Json = list[dict[str, Any]]

# As imported.py names them.
OUR_GRAPH, THEIR_EXPORT, STRICT, RELU_KAN = "this graph", "its own export", "this graph, --strict-ops", "ReLU-KAN"
ROWS = {THEIR_EXPORT: "{}'s own export", STRICT: "this graph with `--strict-ops`"}


def imported(folder: Path) -> str:
    """A row for each graph, a column for each shape and batch size; fitted networks alone."""
    found: Json = json.loads((folder / "imported.json").read_text(encoding="utf-8"))["results"]
    fitted, rough = ([each for each in found if each["weights"] == weights] for weights in ("fitted", "random"))
    columns = list(dict.fromkeys((tuple(each["network"]), each["batch"]) for each in fitted))
    lines = [
        ["", *(f"{list(widths)}, batch {batch}" for widths, batch in columns)],
        ["---", *["---:"] * len(columns)],
    ]
    for library in dict.fromkeys(each["library"] for each in fitted):
        own = {(tuple(each["network"]), each["batch"]): each for each in fitted if each["library"] == library}
        cells = [f"**{micro(own[place]['seconds'][OUR_GRAPH]['p50'])} µs**" for place in columns]
        lines.append([f"**this graph of {library}'s network**", *cells])
        for name, title in ROWS.items():
            lines.append([title.format(library), *(over_ours(own[place], name) for place in columns)])
    return f"{rows_of(lines)}\n\n{paragraph(beside(fitted, rough), wrong(found))}"


def over_ours(result: dict[str, Any], name: str) -> str:
    found = result["over this graph"][name]
    runs = [found["low"], found["median"], found["high"]]
    return f"{times(runs)} ({spread(runs)})"


def beside(fitted: Json, rough: Json) -> str:
    """A ReLU-KAN instead, and the same with coefficients that no training leaves."""
    return (
        f"A ReLU-KAN of the same shape takes {among(fitted, RELU_KAN)} the graph's time. With random coefficients, "
        f"rougher than any that were trained, the libraries' exports take {among(rough, THEIR_EXPORT)} as long as it."
    )


def among(results: Json, name: str) -> str:
    """As "0.45 to 0.62 ×"."""
    found = [each["over this graph"][name]["median"] for each in results]
    return f"{words.times(min(found)).removesuffix(' ×')} to {words.times(max(found))}"


def wrong(results: Json) -> str:
    ours, theirs = (
        max(error for each in results for error in each["error"][name].values()) for name in (OUR_GRAPH, THEIR_EXPORT)
    )
    return (
        "The largest difference from the float64 reference, relative to max(1, max\\|y\\|), in the domain and up to "
        f"ten times as far out, is {ours:.1e} for the graphs and {theirs:.1e} for the exports."
    )
