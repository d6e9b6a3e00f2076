"""A B-spline KAN evaluated as efficient-kan does: the whole basis first, then one matrix product.

    y_o = Σ_i base_oi · SiLU(x_i) + Σ_i Σ_j scaler_oi · spline_oij · B_ij(x_i)

B are B-splines of the given order by the recursion of Cox and de Boor (de Boor, A Practical Guide
to Splines, ch. IX), on knots that reach `order` intervals beyond the domain on each side.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["EfficientKAN", "EfficientKANLayer"]


class EfficientKANLayer(nn.Module):
    """x ``(batch, in_features)`` to y ``(batch, out_features)``.

    Args:
        in_features: number of inputs.
        out_features: number of outputs.
        grid: number of knot intervals within `domain`.
        order: degree of the splines.
        domain: where the uniform knots begin and end; a state dict brings its own knots.
    """

    grid: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        grid: int = 5,
        order: int = 3,
        domain: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        self.order = order
        low, high = domain
        step = (high - low) / grid
        knots = low + step * torch.arange(-order, grid + order + 1, dtype=torch.get_default_dtype())
        self.register_buffer("grid", knots.repeat(in_features, 1))  # (in, grid + 2·order + 1)
        # Plain draws stand in for the original's least-squares start: they cost the same to evaluate.
        bound = in_features**-0.5
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.spline_weight = nn.Parameter(0.1 * torch.randn(out_features, in_features, grid + order))
        self.spline_scaler = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))

    def basis(self, x: Tensor) -> Tensor:
        """The B-splines ``(batch, in, grid + order)`` at x ``(batch, in)``."""
        knots = self.grid
        x = x.unsqueeze(-1)  # (batch, in, 1)
        basis = ((x >= knots[:, :-1]) & (x < knots[:, 1:])).to(x.dtype)  # degree 0
        for degree in range(1, self.order + 1):
            first, last = knots[:, : -degree - 1], knots[:, degree + 1 :]  # support of each new spline
            rising = (x - first) / (knots[:, degree:-1] - first) * basis[:, :, :-1]
            falling = (last - x) / (last - knots[:, 1:-degree]) * basis[:, :, 1:]
            basis = rising + falling  # (batch, in, grid + 2·order − degree)
        return basis.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.spline_weight * self.spline_scaler.unsqueeze(-1)  # (out, in, K)
        base = functional.linear(functional.silu(x), self.base_weight)
        return base + functional.linear(self.basis(x).flatten(1), weight.flatten(1))


class EfficientKAN(nn.Module):
    """x ``(batch, widths[0])`` to y ``(batch, widths[-1])``; arguments as for `EfficientKANLayer`."""

    def __init__(self, widths: Sequence[int], *, grid: int = 5, order: int = 3) -> None:
        super().__init__()
        pairs = itertools.pairwise(widths)
        self.layers = nn.ModuleList(EfficientKANLayer(i, o, grid=grid, order=order) for i, o in pairs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x
