"""Our own network in PyTorch, with the weights that timing needs."""

from __future__ import annotations

import numpy as np
import torch

from ...model import ReLUKAN
from ..subjects import Shape

__all__ = ["trained_like"]


def trained_like(shape: Shape) -> ReLUKAN:
    """A ReLU-KAN on the shape's domain, with random weights, in eval().

    Its s and e differ from input to input, as training leaves them. Fresh ones are the same on every
    input, and would be stored once: that is not the graph of a trained network.
    """
    unit = np.array_equal(shape.domain, np.tile((0.0, 1.0), (len(shape.domain), 1)))
    ranges = None if unit else torch.from_numpy(shape.domain).float()
    model = ReLUKAN(shape.widths, shape.grid, shape.order, input_range=ranges)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".starts", ".ends")):
                parameter.add_(torch.randn_like(parameter), alpha=0.1 / shape.grid)
    return model.eval()
