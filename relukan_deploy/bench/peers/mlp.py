"""A plain multilayer perceptron: what a KAN competes with, of its widths or of its number of parameters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from torch import nn

__all__ = ["MLP", "widths_for"]


class MLP(nn.Sequential):
    """x ``(batch, widths[0])`` to y ``(batch, widths[-1])``, linear layers with `activation` between them."""

    def __init__(self, widths: Sequence[int], *, activation: Literal["silu", "relu"] = "silu") -> None:
        modules: list[nn.Module] = []
        for in_features, out_features in itertools.pairwise(widths):
            modules += [nn.Linear(in_features, out_features), nn.SiLU() if activation == "silu" else nn.ReLU()]
        super().__init__(*modules[:-1])
        self.widths = tuple(widths)


def widths_for(widths: Sequence[int], parameters: int) -> tuple[int, ...]:
    """Widths whose hidden ones are scaled alike, so that an MLP of them has the nearest number of parameters.

    Where there is no hidden layer, it gets one.
    """
    first, *hidden, last = widths
    hidden = hidden or [1]
    widest = max(hidden)
    best = nearest = None
    for wide in itertools.count(1):
        scaled = (first, *(max(1, round(width * wide / widest)) for width in hidden), last)
        count = sum(i * o + o for i, o in itertools.pairwise(scaled))
        if nearest is not None and abs(count - parameters) > nearest:
            break
        best, nearest = scaled, abs(count - parameters)
    assert best is not None
    return best
