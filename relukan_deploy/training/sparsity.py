"""What keeps few edges at work: the L1 norm of a KAN's edges, and the entropy of their shares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["penalty"]

# Below these nothing is left to take away, and the gradient of the entropy would become infinite.
_LEAST_NORM = 1e-8
_LEAST_SHARE = 1e-6


def penalty(layers: Iterable[Any], reached: Iterable[Tensor], l1: float, entropy: float) -> Tensor:
    """l1 · Σ |Φ| + entropy · Σ S(Φ), summed over the layers: eqs. 2.17 to 2.20 of the KAN paper (arXiv:2404.19756).

    |φ| of an edge is the mean of its absolute values over the rows, |Φ| of a layer the sum of those of its edges,
    and S(Φ) the entropy of the shares |φ| / |Φ|, in nats.

    Args:
        layers: of `ReLUKANLayer`.
        reached: what reaches each layer, ``(rows, in)``.
        l1, entropy: how much each counts.
    """
    terms = []
    for layer, x in zip(layers, reached, strict=True):
        edges = torch.einsum("nik,oik->noi", layer.basis(x), layer.weight).abs().mean(0)  # (out, in)
        norm = edges.sum()
        share = edges / norm.clamp_min(_LEAST_NORM)
        terms.append(l1 * norm - entropy * (share * share.clamp_min(_LEAST_SHARE).log()).sum())
    return torch.stack(terms).sum()
