"""Colours, lines and markers of the charts: colour is the network, marker what runs it, dash where the rows lie.

The colours differ for people with each kind of colour blindness, and stand out from their ground at 3 : 1 at
least (WCAG 1.4.11); tests compute both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ..results import OURS, Data

__all__ = ["DARK", "DASHES", "LIGHT", "MARKERS", "OTHER_MARKER", "Dash", "Marker", "colours"]

LIGHT = ("#1448c8", "#e0700a", "#c653c8", "#1f9d72", "#6b5600", "#78849c", "#7a1f3d")
"""On white; `DARK` on black, in the same order."""

DARK = ("#4d88ff", "#e07b1f", "#d98be6", "#2fdc9c", "#f5d442", "#99a3b1", "#cf3158")

_ORDER = (
    *(OURS, "pykan", "efficient-kan", "fast-kan", "relu-kan"),
    *("mlp, same widths", "mlp, same parameters"),
)


@dataclasses.dataclass(frozen=True)
class Marker:
    """One sign: its names in Plotly and Matplotlib, and as an SVG path around the origin, 8 wide."""

    plotly: str
    matplotlib: str
    path: str


MARKERS = {
    "onnxruntime-cpu": Marker("circle", "o", "M-4,0A4,4 0 1 1 4,0A4,4 0 1 1 -4,0Z"),
    "onnxruntime-cuda": Marker("hexagon", "h", "M0,-4.5L4,-2.2V2.2L0,4.5L-4,2.2V-2.2Z"),
    "tensorrt": Marker("diamond", "D", "M0,-5L5,0L0,5L-5,0Z"),
    "tensorrt-rtx": Marker("triangle-up", "^", "M0,-4.6L4.6,3.6H-4.6Z"),
    "torch": Marker("square", "s", "M-3.7,-3.7H3.7V3.7H-3.7Z"),
    "torch.compile": Marker("triangle-down", "v", "M0,4.6L4.6,-3.6H-4.6Z"),
    "torch CUDA graph": Marker("cross", "P", "M-1.5,-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5V-1.5H-1.5Z"),
}
"""By engine; of one that is not here, `OTHER_MARKER`."""

OTHER_MARKER = Marker("x", "X", "M-4,-2L-2,-4L0,-2L2,-4L4,-2L2,0L4,2L2,4L0,2L-2,4L-4,2L-2,0Z")


@dataclasses.dataclass(frozen=True)
class Dash:
    """One kind of line: its names in Plotly and Matplotlib, and as SVG's stroke-dasharray."""

    plotly: str
    matplotlib: str
    svg: str


DASHES: dict[Data, Dash] = {
    "host": Dash("solid", "-", "none"),
    "bound": Dash("dot", ":", "2 2.5"),
    "device": Dash("dash", "--", "6 3"),
}


def colours(networks: Iterable[str]) -> dict[str, int]:
    """For each network the number of its colour: its own where it is known, else one that is free, in turns."""
    names = list(dict.fromkeys(networks))
    found = {name: _ORDER.index(name) for name in names if name in _ORDER}
    free = [number for number in range(len(LIGHT)) if number not in found.values()] or list(range(1, len(LIGHT)))
    others = [name for name in names if name not in _ORDER]
    return found | {name: free[index % len(free)] for index, name in enumerate(others)}
