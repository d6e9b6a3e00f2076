"""The reference implementation of ReLU-KAN (Qiu et al. 2024, arXiv:2406.02075, eq. 9 and 10).

    y_o = b_o + Σ_i Σ_j W_oij · [ r · ReLU(x_i − s_ij) · ReLU(e_ij − x_i) ]²      r = 4·grid²/(order+1)²

The sum over inputs and bumps is one Conv2d whose kernel is as large as its image. Inputs and
outputs keep a trailing axis of one, ``(batch, features, 1)``, as in the reference.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ReferenceReLUKAN", "ReferenceReLUKANLayer", "RowsReLUKAN"]


class ReferenceReLUKANLayer(nn.Module):
    """x ``(batch, in_features, 1)`` to y ``(batch, out_features, 1)``."""

    def __init__(self, in_features: int, out_features: int, *, grid: int = 5, order: int = 3) -> None:
        super().__init__()
        bumps = grid + order
        starts = torch.arange(-order, grid, dtype=torch.float64) / grid  # (K,)
        low = starts.repeat(in_features, 1)  # (in, K)
        dtype = torch.get_default_dtype()
        self.phase_low = nn.Parameter(low.to(dtype))
        self.phase_height = nn.Parameter((low + (order + 1) / grid).to(dtype))
        self.equal_size_conv = nn.Conv2d(1, out_features, (bumps, in_features))
        self.factor = 4 * grid**2 / (order + 1) ** 2

    def forward(self, x: Tensor) -> Tensor:
        in_features, bumps = self.phase_low.shape
        rising = torch.relu(x - self.phase_low)  # (batch, in, K)
        falling = torch.relu(self.phase_height - x)  # (batch, in, K)
        bump = rising * falling * self.factor
        bump = bump * bump
        # The numbers stay in (in, K) order under a (K, in) shape: that is how the weights were trained.
        # Sizes are asked of the shape; the reference's len() would freeze the batch size of an export.
        image = bump.reshape(bump.shape[0], 1, bumps, in_features)
        total: Tensor = self.equal_size_conv(image)  # (batch, out, 1, 1)
        return total.reshape(total.shape[0], -1, 1)


class ReferenceReLUKAN(nn.Module):
    """x ``(batch, widths[0], 1)`` to y ``(batch, widths[-1], 1)``."""

    def __init__(self, widths: Sequence[int], *, grid: int = 5, order: int = 3) -> None:
        super().__init__()
        pairs = itertools.pairwise(widths)
        self.rk_layers = nn.ModuleList(ReferenceReLUKANLayer(i, o, grid=grid, order=order) for i, o in pairs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.rk_layers:
            x = layer(x)
        return x


class RowsReLUKAN(ReferenceReLUKAN):
    """The same network on rows: x ``(batch, widths[0])`` to y ``(batch, widths[-1])``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unsqueeze(-1)).squeeze(-1)
