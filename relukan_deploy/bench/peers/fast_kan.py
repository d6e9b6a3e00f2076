"""FastKAN: Gaussian bumps in the place of B-splines (Li 2024, arXiv:2405.06721).

    z = LayerNorm(x)
    y_o = b_o + Σ_i base_oi · SiLU(x_i) + Σ_i Σ_j spline_oij · exp(−((z_i − g_j) / h)²)

with K centres g_j evenly from −2 to 2, and h the distance between two of them. A layer with a
single input has no LayerNorm, which would leave nothing of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FastKAN", "FastKANLayer"]

_LOW, _HIGH = -2.0, 2.0


class _Gaussians(nn.Module):
    """z ``(batch, in)`` to its bumps ``(batch, in, K)``."""

    def __init__(self, bumps: int) -> None:
        super().__init__()
        self.width = (_HIGH - _LOW) / (bumps - 1)
        self.grid = nn.Parameter(torch.linspace(_LOW, _HIGH, bumps), requires_grad=False)

    def forward(self, z: Tensor) -> Tensor:
        return torch.exp(-(((z.unsqueeze(-1) - self.grid) / self.width) ** 2))


class FastKANLayer(nn.Module):
    """x ``(batch, in_features)`` to y ``(batch, out_features)``, with `bumps` Gaussians on each input, at least 2."""

    def __init__(self, in_features: int, out_features: int, *, bumps: int = 8) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(in_features) if in_features > 1 else None
        self.rbf = _Gaussians(bumps)
        self.spline_linear = nn.Linear(in_features * bumps, out_features, bias=False)
        nn.init.trunc_normal_(self.spline_linear.weight, std=0.1)
        self.base_linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        basis = self.rbf(x if self.layernorm is None else self.layernorm(x))  # (batch, in, K)
        y: Tensor = self.spline_linear(basis.flatten(1)) + self.base_linear(functional.silu(x))
        return y


class FastKAN(nn.Module):
    """x ``(batch, widths[0])`` to y ``(batch, widths[-1])``; `bumps` as for `FastKANLayer`."""

    def __init__(self, widths: Sequence[int], *, bumps: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FastKANLayer(i, o, bumps=bumps) for i, o in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x
