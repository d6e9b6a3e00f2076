"""The charts of the page, as Plotly takes them: traces with the numbers as they were measured.

Colours, fonts and sizes are the page's, which knows whether it is dark, small or printed. A trace's `meta` says
what it needs for them, and for its entry in the legend.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from ..results import B_SPLINES, OURS, Accuracy, Data, Point, Results
from . import words
from .axes import across, by_batch, categories, logarithmic, plain, reaching
from .groups import EAGER, PLACES, Group, Line
from .styles import DASHES, MARKERS, OTHER_MARKER, Marker, colours

__all__ = ["Chart", "accuracy", "latency", "limit", "speed_up", "splits", "throughput"]

Trace = dict[str, Any]

_BOUNDS = {"launch": "circle", "memory": "square", "arithmetic": "diamond"}
_GPU_COLOURS = {"to the GPU": 1, "on the GPU": 0, "back": 3, "the rest of the call": 5}


@dataclasses.dataclass(frozen=True)
class Chart:
    """What one chart can show.

    Attributes:
        label: what it shows, where there is a choice.
        traces, layout: Plotly's.
    """

    label: str
    traces: list[Trace]
    layout: dict[str, Any]


def latency(group: Group) -> list[Chart]:
    """Time of a call against batch, of every line; the bars reach to p99."""
    traces = []
    for line, trace in _lines(group):
        trace["y"] = [timing.p50 for timing in line.timings]
        trace["error_y"] = reaching([0.0 for _ in line.timings], [timing.p99 - timing.p50 for timing in line.timings])
        traces.append(trace)
    return _one(traces, by_batch(group.batches, logarithmic("time of a call, p50", traces, words.time_mark)))


def throughput(group: Group) -> list[Chart]:
    """Rows a second against batch, of every line."""
    traces = []
    for line, trace in _lines(group):
        trace["y"] = [point.rows_per_second for point in line.points.values()]
        traces.append(trace)
    return _one(traces, by_batch(group.batches, logarithmic("rows a second", traces, words.count_mark)))


def limit(group: Group) -> list[Chart]:
    """How many times the ideal fused network's time a call takes; the marker says what bounds that."""
    traces = []
    for line, trace in _lines(group):
        known = {batch: point for batch, point in line.points.items() if point.ideal and point.timing}
        if not known:
            continue
        trace["x"] = list(known)
        trace["y"] = [line.p50(batch) / point.ideal.seconds for batch, point in known.items() if point.ideal]
        trace["hovertext"] = [_at_limit(line, point) for point in known.values()]
        bounds = [_BOUNDS[point.ideal.bound_by] for point in known.values() if point.ideal]
        trace["marker"] = {"symbol": bounds, "size": 9}
        traces.append(trace)
    layout = by_batch(group.batches, logarithmic("times the limit", traces, words.times_mark, least=1.0))
    return _one(traces, {**layout, "shapes": [across(1.0)]})


def speed_up(group: Group) -> list[Chart]:
    """For each place of the rows, how many times as long the other networks take, at each batch."""
    found = []
    for data in group.places:
        traces = [trace for network in group.networks if network != OURS for trace in _bars(group, network, data)]
        if traces:
            y = logarithmic("times as long as this network", traces, words.times_mark, of="customdata")
            layout = {"xaxis": categories(group.batches), "yaxis": y, "barmode": "group", "shapes": [across(1.0)]}
            found.append(Chart(PLACES[data].capitalize(), traces, layout))
    return found


def splits(group: Group) -> list[Chart]:
    """For each line that was taken apart on the GPU, where the time of a call goes."""
    found = []
    for line in group.lines:
        points = [point for point in line.points.values() if point.split]
        parts = [_parts(point) for point in points]
        traces = [_stacked(name, points, parts) for name in _GPU_COLOURS if any(part[name] for part in parts)]
        if traces:
            share = {"title": {"text": "part of the call"}, "tickformat": ".0%", "range": [0, 1]}
            layout = {"barmode": "stack", "xaxis": categories([point.batch for point in points]), "yaxis": share}
            found.append(Chart(line.name, traces, layout))
    return found


def _stacked(name: str, points: Sequence[Point], parts: Sequence[dict[str, float]]) -> Trace:
    """One part of the calls at each batch: its share as the height, its seconds as `customdata`."""
    return {
        "type": "bar",
        "name": name,
        "x": [str(point.batch) for point in points],
        "y": [part[name] / sum(part.values()) for part in parts],
        "customdata": [part[name] for part in parts],
        "hoverinfo": "text",
        "hovertext": [
            f"<b>{name}</b>: {words.duration(part[name])}<br>batch {point.batch}, p50 {_p50(point)}"
            for point, part in zip(points, parts, strict=True)
        ],
        "meta": {"key": name, "label": name, "colour": _GPU_COLOURS[name], "visible": True},
    }


def accuracy(results: Results) -> list[Chart]:
    """Error against latency of networks that were trained on the same data, for each batch."""
    found = []
    places = dict.fromkeys(each.environment for each in results.accuracies)
    numbers = colours(each.network for each in results.accuracies)
    for place in places:
        here = [each for each in results.accuracies if each.environment == place]
        for batch in sorted({batch for each in here for batch in each.seconds}):
            shown = [each for each in here if batch in each.seconds]
            traces = [
                _trained([each for each in shown if each.network == network], batch, numbers[network])
                for network in dict.fromkeys(each.network for each in shown)
            ]
            label = f"Batch {batch}" + (f", {words.numbered('environment', place, results)}" if len(places) > 1 else "")
            levels = [across(level) for level in dict.fromkeys(each.compared_at for each in shown)]
            x = logarithmic("time of a call, p50", traces, words.time_mark, of="x")
            y = logarithmic("error", traces, "{:.3g}".format)
            found.append(Chart(label, traces, {"xaxis": x, "yaxis": y, "shapes": levels}))
    return found


def _trained(networks: Sequence[Accuracy], batch: int, colour: int) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(networks[0].network),
        "x": [each.seconds[batch] for each in networks],
        "y": [each.error for each in networks],
        "marker": {"symbol": [_marker(each.engine).plotly for each in networks], "size": 12},
        "hoverinfo": "text",
        "hovertext": [
            f"<b>{plain(each.network)}</b>, {words.widths(each.widths)}<br>{plain(each.engine)}, batch {batch}<br>"
            f"error {words.error(each.error)}, {words.duration(each.seconds[batch])}<br>{each.parameters} parameters"
            for each in networks
        ],
        "meta": {"key": networks[0].network, "label": networks[0].network, "colour": colour, "visible": True},
    }


def _lines(group: Group) -> Iterable[tuple[Line, Trace]]:
    """Every line of a group, and a trace for it that lacks heights."""
    numbers = colours(group.networks)
    chosen = {line.number for line in group.chosen()}
    for line in group.lines:
        if not line.points:
            continue
        marker, dash = _marker(line.series.contender.engine), DASHES[line.data]
        yield (
            line,
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(line.name),
                "x": list(line.points),
                "hoverinfo": "text",
                "hovertext": [_at(line, batch) for batch in line.points],
                "line": {"dash": dash.plotly, "width": 3 if line.baseline else 1.75},
                "marker": {
                    "symbol": [marker.plotly + ("-open" if timing.is_unsteady else "") for timing in line.timings],
                    "size": 9 if line.baseline else 8,
                },
                "meta": {
                    "key": str(line.number),
                    "group": line.network,
                    "label": line.way,
                    "colour": numbers[line.network],
                    "visible": line.number in chosen,
                    "marker": marker.path,
                    "dash": dash.svg,
                },
            },
        )


def _bars(group: Group, network: str, data: Data) -> Iterable[Trace]:
    """A network's fastest way at each batch, and PyTorch as it is where it is a B-spline KAN."""
    at = {batch: line for batch in group.batches if (line := group.fastest(network, data, batch))}
    best = {batch: line for batch, line in at.items() if batch in line.ratios}
    eager = next((line for line in group.of(network, data) if line.brief == EAGER), None)
    splines = network in B_SPLINES
    ways = [(f"{network}: the fastest way", best, "")]
    if splines and eager and eager.ratios and any(line != eager for line in best.values()):
        ways.insert(0, (f"{network}: {eager.brief}", dict.fromkeys(eager.ratios, eager), "/"))
    for name, lines, pattern in ways:
        if not lines:
            continue
        ratios = [line.ratios[batch] for batch, line in lines.items()]
        yield {
            "type": "bar",
            "name": plain(name),
            "x": [str(batch) for batch in lines],
            "base": 1.0,  # so that what is faster than ours points down
            "y": [ratio.median - 1.0 for ratio in ratios],
            "customdata": [ratio.median for ratio in ratios],
            "error_y": reaching(
                [ratio.median - ratio.low for ratio in ratios], [ratio.high - ratio.median for ratio in ratios]
            ),
            "hoverinfo": "text",
            "hovertext": [_at(line, batch) for batch, line in lines.items()],
            "marker": {"pattern": {"shape": pattern, "size": 6}},
            "meta": {
                "key": name,
                "label": name,
                "colour": colours(group.networks)[network],
                "visible": splines or not any(each in B_SPLINES for each in group.networks),
                "pattern": bool(pattern),
            },
        }


def _at(line: Line, batch: int) -> str:
    """What the pointer is told about a point."""
    timing = line.timing(batch)
    assert timing is not None
    said = [
        f"<b>{plain(line.name)}</b>",
        f"batch {batch}: p50 {words.duration(timing)}",
        f"p90 {words.duration(timing.p90)}, p99 {words.duration(timing.p99)}",
        f"mean {words.mean(timing)}",
        f"{words.count(batch / timing.p50)} rows/s",
    ]
    if batch in line.ratios:
        said.append("the baseline" if batch in line.baseline else f"{words.interval(line.ratios[batch])} as long")
    if timing.is_unsteady:
        said.append(f"unsteady: spread {words.share(timing.spread)}")
    return "<br>".join(said)


def _at_limit(line: Line, point: Point) -> str:
    assert point.ideal is not None
    return "<br>".join(
        [
            f"<b>{plain(line.name)}</b>",
            f"batch {point.batch}: {words.limit(point)}",
            f"p50 {_p50(point)}, at least {words.duration(point.ideal.seconds)}",
            f"{words.count(point.ideal.flops)} operations, {words.size(point.ideal.bytes)}",
        ]
    )


def _p50(point: Point) -> str:
    return words.duration(point.timing) if point.timing else "unknown"


def _parts(point: Point) -> dict[str, float]:
    """Seconds of each part of a call; the rest is what p50 has beyond the three."""
    assert point.split is not None
    measured = (point.split.to_device, point.split.compute, point.split.to_host)
    rest = max(0.0, (point.timing.p50 if point.timing else 0.0) - sum(measured))
    return dict(zip(_GPU_COLOURS, (*measured, rest), strict=True))


def _marker(engine: str) -> Marker:
    return MARKERS.get(engine, OTHER_MARKER)


def _one(traces: list[Trace], layout: dict[str, Any]) -> list[Chart]:
    return [Chart("", traces, layout)] if traces else []
