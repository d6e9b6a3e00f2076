"""How a figure of edges is laid out and drawn: sizes, colours, and one panel after another.

Places are reckoned in inches, so that a panel looks the same in every figure and nothing has to be moved apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._edges import EdgeLayer, edges_of, even_rows

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["BLUE", "DIM", "INK", "ORANGE", "TEXT", "draw_edges", "quieten"]

# Blue and orange differ for every kind of colour blindness; the greys differ in lightness.
BLUE, ORANGE, INK, DIM, _PALE, _BARS = "#1448c8", "#e0700a", "#14171c", "#5a6270", "#9aa1ad", "#cfd4dc"

# In points: type, and the lines of a constant and of the strongest edge.
TEXT, _SMALL = 8.0, 6.5
_THIN, _THICK = 0.5, 3.0

# In inches.
_CELL = (1.75, 1.6)
_INSIDE = (0.44, 0.42, 0.1, 0.24)  # of a cell, around its panel: left, bottom, right, top
_LEAST_WIDTH = 3 * _CELL[0]  # of all cells of a row
_MARGIN, _INDENT, _HEADING, _FOOTER = 0.12, 0.17, 0.46, 0.5

_POINTS = 401  # of a curve, beside the places where its pieces meet
_BINS = 16
_STRIP = 0.2  # of a panel's height, for the histogram


def draw_edges(figure: Figure, layers: Sequence[EdgeLayer]) -> None:
    """Fills an empty figure, which takes the size that it needs."""
    columns = max(layer.columns for layer in layers)
    cell = (max(_CELL[0], _LEAST_WIDTH / columns), _CELL[1] * (1.5 if columns == 1 else 1))
    heights = [_HEADING + -(-len(layer.shown) // layer.columns) * cell[1] for layer in layers]
    figure.set_size_inches(2 * _MARGIN + columns * cell[0], 2 * _MARGIN + sum(heights) + _FOOTER)
    top = figure.get_figheight() - _MARGIN
    for number, (layer, height) in enumerate(zip(layers, heights, strict=True)):
        _draw_heading(figure, layer, number, top)
        for place, (source, target) in enumerate(layer.shown):
            row, column = divmod(place, layer.columns)
            corner = (_MARGIN + column * cell[0], top - _HEADING - (row + 1) * cell[1])
            axes = _add_panel(figure, corner, cell)
            room = (cell[0] - _INSIDE[0] - _INSIDE[2], cell[1] - _INSIDE[1] - _INSIDE[3])
            _draw_edge(axes, layer, source, target, room)
            _name(axes, layer.inputs[source], layer.outputs[target], room[0])
        top -= height
    _draw_legend(figure, layers[0].rows is not None)


def quieten(axes: Axes, size: float) -> None:
    """Two thin axes, and ticks with labels of `size` points."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=_PALE, linewidth=0.6)
    axes.tick_params(which="both", color=_PALE, labelcolor=DIM, labelsize=size, length=2, width=0.6, pad=2)


def _draw_heading(figure: Figure, layer: EdgeLayer, number: int, top: float) -> None:
    """The layer's title, and how many of its edges are there, from `top` downwards."""
    width, height = figure.get_size_inches()
    hidden = layer.strength.size - len(layer.shown)
    note = f"{layer.strength.size} edge{'s' * (layer.strength.size > 1)}"
    note = f"the {len(layer.shown)} strongest of {note}; {hidden} are not shown" if hidden else note
    place = {"x": _INDENT / width, "va": "top"}
    title = f"Layer {number}: {layer.spec.in_features} → {layer.spec.out_features}"
    figure.text(y=(top - 0.12) / height, s=title, color=INK, fontsize=10, fontweight="bold", **place)
    figure.text(y=(top - 0.31) / height, s=note, color=DIM, fontsize=TEXT, **place)


def _add_panel(figure: Figure, corner: tuple[float, float], cell: tuple[float, float]) -> Axes:
    width, height = figure.get_size_inches()
    left, bottom, right, top = _INSIDE
    x, y = corner[0] + left, corner[1] + bottom
    return figure.add_axes((x / width, y / height, (cell[0] - left - right) / width, (cell[1] - bottom - top) / height))


def _draw_edge(axes: Axes, layer: EdgeLayer, source: int, target: int, room: tuple[float, float]) -> None:
    """The edge from an input to an output, over what is below it, in a panel of so many inches."""
    values = None if layer.rows is None else layer.rows[:, source]
    low, high = even_rows(layer.spec)[[0, -1], source]
    begin, end = low, high  # where rows come
    if values is not None:
        begin, end = values.min(), values.max()
        low, high = min(low, np.quantile(values, 0.01)), max(high, np.quantile(values, 0.99))
    breaks = layer.spec.breaks[source]
    x = np.concatenate([np.linspace(low, high, _POINTS), breaks, [begin, end]])
    x = np.unique(x[(x >= low) & (x <= high)])
    y = edges_of(layer.spec, source).evaluate(x[:, np.newaxis])[:, target]
    y[~np.isfinite(y)] = np.nan
    inside = (x >= begin) & (x <= end)
    weight = _THIN + (_THICK - _THIN) * float(layer.strength[source, target])
    if values is not None:
        axes.plot(x, y, color=_PALE, linewidth=_THIN, zorder=2)
        ends = (max(low, begin), min(high, end)) if begin < end else (low, high)
        counts, edges = np.histogram(values, _BINS, ends)
        heights = counts / max(counts.max(), 1) * (_STRIP - 0.02)
        axes.stairs(heights, edges, fill=True, color=_BARS, transform=axes.get_xaxis_transform(), zorder=1)
    axes.plot(x[inside], y[inside], color=BLUE, linewidth=weight, solid_capstyle="round", zorder=3)
    axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    _set_ticks(axes.xaxis, low, high, room[0] / 0.6)
    bottom, top = _heights(y, inside)
    _set_ticks(axes.yaxis, bottom, top, room[1] / 0.3)
    axes.set_ylim(bottom if values is None else bottom - (top - bottom) * _STRIP / (1 - _STRIP), top)
    quieten(axes, _SMALL)


def _heights(y: NDArray[np.float64], inside: NDArray[np.bool_]) -> tuple[float, float]:
    """What an edge gives where rows come is seen in full; what it gives elsewhere, as far as half as much again."""
    known = np.isfinite(y)
    every = y[known] if known.any() else np.zeros(1)
    for part in (y[inside & known], every):
        span = float(np.ptp(part)) if part.size else 0.0
        if span > 1e-9 * np.abs(every).max():  # more than rounding
            low, high = max(part.min() - span / 2, every.min()), min(part.max() + span / 2, every.max())
            return float(low - 0.05 * span), float(high + 0.05 * span)
    half = abs(float(every[0])) / 2 or 0.5
    return every[0] - half, every[0] + half


def _set_ticks(axis: Axis, low: float, high: float, most: float) -> None:
    """Ticks at round numbers, in `most` steps at most, and written out: a common factor would have no place."""
    from matplotlib.ticker import MaxNLocator

    ticks = [tick for tick in MaxNLocator(int(most), steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
    axis.set_ticks(ticks, [_written(tick) for tick in ticks])


def _written(number: float) -> str:
    digits, _, exponent = f"{number + 0:.6g}".partition("e")  # + 0: no tick is at minus zero
    return (f"{digits}e{int(exponent)}" if exponent else digits).replace("-", "−")


def _name(axes: Axes, source: str, target: str, width: float) -> None:
    """The input below its axis, and the output at the head of the other one."""
    room = 72 * (width + 2 * _INSIDE[2])
    style: dict[str, Any] = {"color": INK, "fontsize": TEXT, "parse_math": False}
    axes.set_xlabel(_fitting(source, room), labelpad=2, **style)
    axes.set_title(f"→ {_fitting(target, room - 2 * TEXT)}", loc="left", pad=3, **style)


def _fitting(name: str, width: float) -> str:
    """The name in one line of at most `width` points, without its middle if need be."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    def points(text: str) -> float:
        return float(text_to_path.get_text_width_height_descent(text, font, False)[0])

    font = FontProperties(size=TEXT)
    name = shortened = " ".join(name.encode("utf-8", "replace").decode().split())
    kept = len(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")
        while kept > 2 and (wide := points(shortened)) > width:
            kept = min(kept - 1, int(kept * width / wide) + 1)
            shortened = f"{name[: (kept + 1) // 2].rstrip()}…{name[len(name) - kept // 2 :].lstrip()}"
    return shortened


def _draw_legend(figure: Figure, with_data: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    width, height = figure.get_size_inches()
    over = "the rows" if with_data else "the interval"
    signs: list[Artist] = [
        Line2D([], [], color=BLUE, linewidth=_THIN + (_THICK - _THIN) * strength, label=label)
        for strength, label in ((1, "the layer's strongest"), (0.5, "half as strong"), (0, "constant"))
    ]
    if with_data:
        signs += [Patch(color=_BARS, label="rows"), Line2D([], [], color=_PALE, linewidth=_THIN, label="no rows here")]
    figure.legend(
        handles=signs,
        loc="lower left",
        bbox_to_anchor=(_INDENT / width, _MARGIN / height),
        ncols=len(signs),
        title=f"Line weight is strength: the standard deviation over {over}",
        title_fontproperties={"size": TEXT},
        alignment="left",
        frameon=False,
        fontsize=TEXT,
        labelcolor=DIM,
        handlelength=1.4,
        columnspacing=1.2,
        borderpad=0,
        borderaxespad=0,
    )
