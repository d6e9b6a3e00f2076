"""Latency against batch, as a picture for a README or a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import InputError, MissingDependencyError
from ...plotting import write_figure
from ..results import Results
from . import words
from .groups import Group, Line, groups, machines
from .styles import DASHES, LIGHT, MARKERS, OTHER_MARKER, colours

__all__ = ["write_plot"]

_PANEL = (10.0, 5.4)  # inches
_INK, _DIM, _GRID = "#14171c", "#5a6270", "#e2e5ea"
_LABEL_HEIGHT = 0.047  # of a panel
_DECADES = {1e-6: "1 µs", 1e-5: "10 µs", 1e-4: "100 µs", 1e-3: "1 ms", 1e-2: "10 ms", 1e-1: "100 ms", 1.0: "1 s"}


def write_plot(results: Results, path: str | Path) -> None:
    """Writes a PNG: for each shape and machine, p50 of a call against batch.

    Where there are many lines it shows those that the page shows first.

    Raises:
        InputError: the name does not end in .png, or nothing was measured.
        MissingDependencyError: Matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} does not end in .png, and no other picture is written")
    found = [group for group in groups(results) if group.batches]
    if not found:
        raise InputError("nothing was measured, so there is nothing to plot; see what was skipped, and why")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("A plot", "matplotlib", "bench") from error

    columns = min(2, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows), dpi=160, layout="constrained", facecolor="white")
    for index, group in enumerate(found):
        title = f"{results.bundle}: {group.title}" if len(found) == 1 else group.title
        _draw(figure.add_subplot(rows, columns, index + 1), group, title)
    measured = [f"{words.machine(each)}; {words.threads(each.threads)}" for each in machines(results)]
    unsteady = any(timing.is_unsteady for group in found for line in group.chosen() for timing in line.timings)
    note = [words.UNSTEADY_NOTE.replace(f"{words.UNSTEADY} unsteady", "hollow")] if unsteady else []
    figure.supxlabel(_plain("\n".join([*measured, *note])), color=_DIM, fontsize=8)
    write_figure(figure, path)


def _draw(axes: Any, group: Group, title: str) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

    lines = [line for line in group.chosen() if line.points]
    numbers = colours(group.networks)
    for line in lines:
        x, y = list(line.points), [line.p50(batch) for batch in line.points]
        style = {
            "color": LIGHT[numbers[line.network]],
            "linewidth": 2.8 if line.baseline else 1.4,
            "zorder": 4 if line.baseline else 3,
        }
        axes.plot(x, y, DASHES[line.data].matplotlib, **style)
        marker = MARKERS.get(line.series.contender.engine, OTHER_MARKER).matplotlib
        for batch, seconds, timing in zip(x, y, line.timings, strict=True):
            face = "white" if timing.is_unsteady else style["color"]
            axes.plot([batch], [seconds], marker, **style, markersize=5.5, markerfacecolor=face, markeredgewidth=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.02, y=0.06)
    axes.xaxis.set_major_locator(FixedLocator(group.batches))
    axes.xaxis.set_major_formatter(FixedFormatter([str(batch) for batch in group.batches]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(FixedLocator(list(_DECADES)))
    axes.yaxis.set_major_formatter(FixedFormatter(list(_DECADES.values())))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("rows of a call (batch)", color=_DIM)
    axes.set_ylabel("time of a call, p50", color=_DIM)
    axes.set_title(_plain(title), loc="left", color=_INK, fontsize=12, fontweight="bold")
    axes.grid(which="major", color=_GRID, linewidth=0.8)
    axes.tick_params(which="both", colors=_DIM, length=0)
    axes.spines[:].set_visible(False)
    _label(axes, lines, [LIGHT[numbers[line.network]] for line in lines])


def _label(axes: Any, lines: list[Line], inks: list[str]) -> None:
    """Names each line to the right of the panel, as near to its end as the others leave room."""
    to_panel = axes.transData + axes.transAxes.inverted()
    ends = [(max(line.points), line.p50(max(line.points))) for line in lines]
    heights = _apart([float(to_panel.transform(end)[1]) for end in ends], _LABEL_HEIGHT)
    for line, ink, end, height in zip(lines, inks, ends, heights, strict=True):
        axes.annotate(
            _plain(line.name),
            end,
            (1.03, height),
            textcoords="axes fraction",
            va="center",
            annotation_clip=False,
            color=ink,
            fontsize=9,
            fontweight="bold" if line.baseline else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": ink,
                "alpha": 0.4,
                "linewidth": 0.8,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 4,
            },
        )


def _apart(wanted: list[float], distance: float) -> list[float]:
    """Positions in the same order, at least `distance` apart, as near as they can be to what is wanted.

    Those that would overlap become a stack around the middle of what they want; stacks that meet are joined.
    """
    stacks: list[list[int]] = []
    order = sorted(range(len(wanted)), key=wanted.__getitem__)

    def bottom(stack: list[int]) -> float:
        middle = sum(wanted[index] for index in stack) / len(stack)
        return middle - distance * (len(stack) - 1) / 2

    for index in order:
        stacks.append([index])
        while len(stacks) > 1 and bottom(stacks[-1]) < bottom(stacks[-2]) + distance * len(stacks[-2]):
            last = stacks.pop()
            stacks[-1] += last
    placed = dict.fromkeys(order, 0.0)
    for stack in stacks:
        placed |= {index: bottom(stack) + distance * number for number, index in enumerate(stack)}
    return [placed[index] for index in range(len(wanted))]


def _plain(text: str) -> str:
    """Text that Matplotlib does not take for mathematics; a path may hold bytes that are no text."""
    return text.encode("utf-8", "replace").decode().replace("$", r"\$")
