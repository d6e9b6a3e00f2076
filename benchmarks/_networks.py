"""ReLU-KANs with the weights that timing needs: those of a network whose intervals were trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from relukan_deploy import ReLUKAN
from relukan_deploy.bench.peers import ours
from relukan_deploy.bench.subjects import Shape

__all__ = ["trained_like"]


def trained_like(widths: Sequence[int], grid: int = 5, order: int = 3) -> ReLUKAN:
    """The same network every time, on inputs in and around [0, 1]; see `ours.trained_like`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ours.trained_like(Shape(tuple(widths), grid, order, np.tile((0.0, 1.0), (widths[0], 1))))
