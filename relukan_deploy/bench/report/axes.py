"""Parts of charts as Plotly takes them: axes with readable marks, and text that it takes for nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Axis", "across", "by_batch", "categories", "logarithmic", "plain", "reaching"]

Axis = dict[str, Any]

_BATCH = "batch: rows of a call"
_MARKS = ((6.0, (1.0,)), (1.2, (1.0, 2.0, 5.0)), (-1.0, (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)))
"""Marks of each decade of an axis that spans more decades than the first number."""


def by_batch(batches: Sequence[int], y: Axis) -> dict[str, Axis]:
    """Both axes of a chart against batch."""
    names = [str(batch) for batch in batches]
    x = {"type": "log", "title": {"text": _BATCH}, "tickvals": batches, "ticktext": names}
    return {"xaxis": x, "yaxis": y}


def categories(batches: Sequence[int]) -> Axis:
    """An axis with a place for each batch, in order."""
    names = [str(batch) for batch in batches]
    order = {"categoryorder": "array", "categoryarray": names}
    return {"type": "category", "title": {"text": _BATCH}, "tickvals": names, "ticktext": names, **order}


def logarithmic(
    title: str,
    traces: Sequence[dict[str, Any]],
    write: Callable[[float], str],
    *,
    of: str = "y",
    least: float | None = None,
) -> Axis:
    """A logarithmic axis, with marks as close as its values' span allows; a linear one where a value is zero.

    Args:
        write: how its marks are written.
        of: where the traces have the values.
        least: a value that it shows whatever the others are.
    """
    values = [value for trace in traces for value in trace[of]] + ([least] if least else [])
    if min(values, default=1.0) <= 0:
        return {"title": {"text": title}, "rangemode": "tozero"}
    low, high = (math.log10(end) for end in (min(values, default=1.0), max(values, default=1.0)))
    steps = next(steps for span, steps in _MARKS if high - low > span)
    marks = [step * 10.0**decade for decade in range(math.floor(low) - 1, math.ceil(high) + 2) for step in steps]
    axis = {"type": "log", "title": {"text": title}, "tickvals": marks, "ticktext": [write(mark) for mark in marks]}
    if least is None:
        return axis
    margin = 0.05 * max(high - low, 0.3)
    return {**axis, "range": [low - margin, high + margin]}


def reaching(down: list[float], up: list[float]) -> dict[str, Any]:
    """Thin bars from each point, so far down and up."""
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1, "width": 0}


def across(height: float) -> dict[str, Any]:
    """A line across the whole chart."""
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height}


def plain(text: str) -> str:
    """Text that Plotly shows as it is, though it knows some tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
