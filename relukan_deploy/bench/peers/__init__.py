"""Other networks of the same size, to be timed beside ours: `build("efficient-kan", shape)`.

pykan comes from its package. The others are written anew from their mathematics, so that they can be
timed without theirs: each has the parameter names of the implementation it stands for, loads its state
dicts, does the same tensor operations in its forward pass, and is tested against the original.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...errors import InputError, MissingDependencyError
from ..subjects import Shape

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["PEERS", "build"]


def build(name: str, shape: Shape) -> dict[str, nn.Module]:
    """The networks that a name of `PEERS` stands for, each from x ``(batch, in)`` to y ``(batch, out)``.

    They are float32, on the CPU, in eval(), and have the weights that they start training with, the same
    ones every time. The grids of the first layers of B-spline KANs span the domain.

    Raises:
        InputError: no peer has this name, or this one does not come in this shape.
        MissingDependencyError: torch, or the peer's package, is not installed.
    """
    if name not in PEERS:
        raise InputError(f"no peer is called {name!r}: choose from {', '.join(PEERS)}")
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(f"Timing {name}", "torch", "bench") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {network: module.eval() for network, module in PEERS[name](shape).items()}


def _pykan(shape: Shape) -> dict[str, nn.Module]:
    from .pykan import pykan

    model = pykan(shape.widths, grid=shape.grid, order=shape.order)
    model.act_fun[0].grid.data.copy_(_knots(shape))  # type: ignore[index, union-attr]
    return {"pykan": model}


def _efficient_kan(shape: Shape) -> dict[str, nn.Module]:
    from .efficient_kan import EfficientKAN

    model = EfficientKAN(shape.widths, grid=shape.grid, order=shape.order)
    model.layers[0].grid.copy_(_knots(shape))  # type: ignore[operator]
    return {"efficient-kan": model}


def _fast_kan(shape: Shape) -> dict[str, nn.Module]:
    from .fast_kan import FastKAN

    if shape.grid + shape.order < 2:
        raise InputError(f"fast-kan needs two basis functions or more, got grid {shape.grid} and order {shape.order}")
    return {"fast-kan": FastKAN(shape.widths, bumps=shape.grid + shape.order)}


def _relu_kan(shape: Shape) -> dict[str, nn.Module]:
    from .relu_kan import RowsReLUKAN

    return {"relu-kan": RowsReLUKAN(shape.widths, grid=shape.grid, order=shape.order)}


def _mlp(shape: Shape) -> dict[str, nn.Module]:
    from .mlp import MLP, widths_for

    basis = shape.grid + shape.order
    ours = sum(o + i * basis * o for i, o in itertools.pairwise(shape.widths))
    return {"mlp, same widths": MLP(shape.widths), "mlp, same parameters": MLP(widths_for(shape.widths, ours))}


PEERS: dict[str, Callable[[Shape], dict[str, nn.Module]]] = {
    "pykan": _pykan,
    "efficient-kan": _efficient_kan,
    "fast-kan": _fast_kan,
    "relu-kan": _relu_kan,
    "mlp": _mlp,
}
"""By name, what makes its networks. The plain multilayer perceptron comes in two sizes: of the same widths, and of
the number of parameters that is nearest to that of our weights and biases."""


def _knots(shape: Shape) -> Tensor:
    """Uniform knots ``(in, grid + 2·order + 1)`` over the domain, and `order` intervals beyond it on each side."""
    import torch

    low, high = torch.from_numpy(shape.domain).unsqueeze(-1).unbind(1)  # (in, 1) each
    steps = torch.arange(-shape.order, shape.grid + shape.order + 1, dtype=torch.float64)
    return low + (high - low) / shape.grid * steps
