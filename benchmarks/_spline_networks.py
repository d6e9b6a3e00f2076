"""Networks of pykan and of efficient-kan as training leaves them: knots adapted to the data, coefficients fitted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relukan_deploy.bench.peers import pykan
from relukan_deploy.bench.peers.efficient_kan import EfficientKAN, EfficientKANLayer

__all__ = ["Library", "Peer", "Weights", "trained", "update_grid"]

Library = Literal["pykan", "efficient-kan"]
Weights = Literal["fitted", "random"]

GRID, ORDER = 5, 3
_ROWS = 1000
_GRID_EPS = 0.02  # how much of the knots is uniform, in both libraries
_MARGIN = 0.01  # by which efficient-kan's knots reach beyond the data


@dataclasses.dataclass(frozen=True, eq=False)
class Peer:
    """A trained network.

    Attributes:
        library, widths, weights: as for `trained`.
        state: its state dict, as its library would save it.
        module: the same network, x ``(batch, in)`` to y ``(batch, out)``, as fast as its library makes it.
    """

    library: Library
    widths: tuple[int, ...]
    weights: Weights
    state: Mapping[str, Tensor]
    module: nn.Module


def trained(library: Library, widths: Sequence[int], weights: Weights, *, steps: int = 60) -> Peer:
    """A network with G=5 and order 3, the same one every time.

    Its inputs are normally distributed, so that the knots, at quantiles of them, come to lie unevenly.

    Args:
        library: whose it is.
        widths: features before, between and after the layers.
        weights: "fitted" to a smooth function by so many steps of Adam; or "random", spline coefficients
            drawn from a normal distribution of variance 1: rougher than anything that is trained.
        steps: of "fitted".
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = 0.4 * torch.randn(_ROWS, widths[0])
        y = torch.exp(torch.sin(torch.pi * x[:, :1]) + (x[:, 1:] ** 2).sum(dim=1, keepdim=True) / 2)
        model: Any = _MAKE[library](widths)
        for _ in range(2):
            if weights == "random":
                _randomise(model)
            _UPDATE_GRID[library](model, x)
            if weights == "fitted":
                _fit(model, x, y, steps // 2)
        if weights == "random":
            _randomise(model)
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    module: nn.Module = pykan.fast(model) if library == "pykan" else model.eval()
    return Peer(library, tuple(widths), weights, state, module)


def _fit(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _randomise(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith((".coef", ".spline_weight")):
            nn.init.normal_(parameter.data)


@torch.no_grad()
def update_grid(model: EfficientKAN, x: Tensor) -> None:
    """Moves all knots to where the data are, layer by layer, as efficient-kan's `update_grid` does."""
    for layer in model.layers:
        assert isinstance(layer, EfficientKANLayer)
        splines = torch.einsum("bik,oik->ibo", layer.basis(x), layer.spline_weight)  # (in, batch, out)
        layer.grid.copy_(_adapted(x, GRID, layer.order))
        basis = layer.basis(x).transpose(0, 1)  # (in, batch, K)
        layer.spline_weight.copy_(torch.linalg.lstsq(basis, splines, driver="gelsd").solution.permute(2, 0, 1))
        x = layer(x)


def _adapted(x: Tensor, grid: int, order: int) -> Tensor:
    """The knots ``(in, grid + 2·order + 1)`` at quantiles of x, a little drawn towards uniform ones."""
    x = x.sort(dim=0).values
    places = torch.linspace(0, len(x) - 1, grid + 1, dtype=torch.int64)
    step = (x[-1] - x[0] + 2 * _MARGIN) / grid  # (in,)
    uniform = x[0] - _MARGIN + step * torch.arange(grid + 1)[:, None]
    knots = _GRID_EPS * uniform + (1 - _GRID_EPS) * x[places]  # (grid + 1, in)
    beyond = step * torch.arange(1, order + 1)[:, None]
    return torch.cat([knots[0] - beyond.flip(0), knots, knots[-1] + beyond]).T


_MAKE: Mapping[Library, Callable[[Sequence[int]], Any]] = {
    "pykan": lambda widths: pykan.original(widths, grid=GRID, order=ORDER).speed(),
    "efficient-kan": lambda widths: EfficientKAN(widths, grid=GRID, order=ORDER),
}
_UPDATE_GRID: Mapping[Library, Callable[[Any, Tensor], None]] = {
    "pykan": lambda model, x: model.update_grid_from_samples(x),
    "efficient-kan": update_grid,
}
