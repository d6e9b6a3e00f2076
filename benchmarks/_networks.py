"""ReLU-KANs with the weights that timing needs: those of a network whose intervals were trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from relukan_deploy import ReLUKAN

__all__ = ["trained_like"]


def trained_like(widths: Sequence[int], grid: int = 5, order: int = 3) -> ReLUKAN:
    """A network whose s and e differ from input to input, as training leaves them.

    Fresh ones are the same on every input; the exporter then stores them once, which is not the
    graph of a trained network.
    """
    torch.manual_seed(0)
    model = ReLUKAN(widths, grid, order)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".starts", ".ends")):
                parameter.add_(torch.randn_like(parameter), alpha=0.1 / grid)
    return model.eval()
