"""A plain multilayer perceptron of the same widths: what a KAN of that shape competes with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from torch import nn

__all__ = ["mlp"]


def mlp(widths: Sequence[int], *, activation: Literal["silu", "relu"] = "silu") -> nn.Sequential:
    """x ``(batch, widths[0])`` to y ``(batch, widths[-1])``, linear layers with `activation` between them."""
    modules: list[nn.Module] = []
    for in_features, out_features in itertools.pairwise(widths):
        modules += [nn.Linear(in_features, out_features), nn.SiLU() if activation == "silu" else nn.ReLU()]
    return nn.Sequential(*modules[:-1])
