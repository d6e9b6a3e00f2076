"""Results as tables for a README, in GitHub's flavour of Markdown."""

from __future__ import annotations

import re

from ..results import OURS, Environment, Results
from . import words
from .groups import Group, Line, groups

__all__ = ["escape", "to_markdown"]


def to_markdown(results: Results) -> str:
    """For each shape and machine a table of p50 by batch, and below it how it was measured."""
    found = groups(results)
    parts = []
    for group in found:
        if len(found) > 1:
            parts.append(f"**{escape(group.title)}**")
        parts += [_table(group), _caption(group)]
    parts += [_measured(environment) for environment in results.environments]
    return "\n\n".join(parts) + "\n"


def _table(group: Group) -> str:
    batches = group.batches
    rows = [["network", "run by", *(f"batch {batch}" for batch in batches)], ["---", "---", *["---:"] * len(batches)]]
    for line in group.lines:
        cells = [_cell(line, batch) for batch in batches]
        rows.append([escape(line.network), escape(line.way), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(line: Line, batch: int) -> str:
    timing = line.timing(batch)
    if timing is None:
        return "–"
    if batch in line.baseline:
        return f"**{words.duration(timing)}**"
    times = f" ({words.times(line.ratios[batch])})" if batch in line.ratios else ""
    return words.duration(timing) + times


def _caption(group: Group) -> str:
    said = ["p50 of one call"]
    if any(line.baseline and line.network == OURS for line in group.lines) and len(group.lines) > 1:
        said.append("in brackets, how many times as long as the bold one with the rows in the same place")
    if any(len(line.points) < len(group.batches) for line in group.lines):
        said.append("– was not measured")
    if any(timing.is_unsteady for line in group.lines for timing in line.timings):
        said.append(words.UNSTEADY_NOTE)
    return "; ".join(said) + "."


def _measured(environment: Environment) -> str:
    """One line: machine, threads, versions, command."""
    facts = [
        words.machine(environment),
        words.threads(environment.threads),
        words.versions(environment),
        environment.date[:10],
        *([words.commit(environment.commit)] if environment.commit else []),
    ]
    return f"Measured on {escape('; '.join(facts))}; with {_code(environment.command)}."


def escape(text: str) -> str:
    """Text that stays text, in a table too."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", plain)


def _code(text: str) -> str:
    """Text as code, whatever backticks it holds."""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if len(fence) > 1 else ""
    return fence + space + " ".join(text.split()) + space + fence
