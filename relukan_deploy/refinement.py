"""Grid extension: `refine` copies a ReLU-KAN onto a finer grid, where training goes on.

As in section 2.4 of the KAN paper (Liu et al. 2024, arXiv:2404.19756), each edge of the finer network is the
least-squares best copy of the old edge. Bumps are no B-splines: sums of narrow ones do not give a wide one
exactly, whatever the grid, so the copy differs by some thousandths of an edge's range, and `Refined` tells by how much.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import cast

import torch
from torch import Tensor

from .errors import InputError
from .model import ReLUKAN, ReLUKANLayer

__all__ = ["Refined", "blocks", "even_rows", "inputs_of_layers", "layers_of", "range_of", "refine"]

_POINTS_PER_BUMP = 32  # at which the old and the new edges are compared
_SAMPLE_ROWS = 1024
# Rows are evaluated in blocks, so that the (rows, in, K) basis stays near this many numbers.
_BLOCK_ELEMENTS = 1 << 22


@dataclasses.dataclass(frozen=True, eq=False)
class Refined:
    """A network on a finer grid, and how far it is from the one it copies.

    Each difference is relative to the range, maximum minus minimum, of the old answers on the same rows. Of a layer it
    is the difference when both are given what reaches it in the old network.

    Attributes:
        model: the finer network, in the dtype and on the device of the old one.
        largest: of each layer, the largest difference.
        rms: of each layer, the root mean square of the differences.
        network_largest, network_rms: the same of the whole network.
    """

    model: ReLUKAN
    largest: tuple[float, ...]
    rms: tuple[float, ...]
    network_largest: float
    network_rms: float


@torch.no_grad()
def refine(model: ReLUKAN, grid: int, x: Tensor | None = None) -> Refined:
    """A network with a finer grid that starts as the least-squares best copy of the old one.

    The first layer's grid stays over its `input_range`. The grid of a hidden layer's input is laid over what reaches
    that input for the rows x; without them over wherever its bumps are, which is safe but spends bumps on values
    that may never come. The intervals are those of a new network, on the lattice; where they were trained, they
    train on from there.

    Args:
        model: the network; it is not changed.
        grid: the new number of grid intervals, above the old one.
        x: ``(rows, in)``, such as the rows the network is trained on. The residual is measured on them, or
            on 1024 rows spread evenly at random over the first layer's range.

    Raises:
        InputError: the grid is not finer, or x does not fit the network.
    """
    old = model.config["grid"]
    if isinstance(grid, bool) or not isinstance(grid, int) or grid <= old:
        raise InputError(f"grid must be a whole number above the network's own, {old}, got {grid!r}")
    rows = even_rows(model) if x is None else x
    reached = inputs_of_layers(model, rows)

    finer = copy.deepcopy(model)
    finer.config["grid"] = grid
    for index, layer in enumerate(layers_of(model)):
        domain = _domain(layer, None if x is None else reached[index]) if index else layer.input_range
        finer.layers[index] = _copy(layer, grid, domain)
    layers = zip(layers_of(model), layers_of(finer), reached, strict=False)
    differences = [_difference(_answers(before, x), _answers(after, x)) for before, after, x in layers]
    whole = _difference(reached[-1], inputs_of_layers(finer, rows)[-1])
    return Refined(finer, tuple(each[0] for each in differences), tuple(each[1] for each in differences), *whole)


@torch.no_grad()
def inputs_of_layers(model: ReLUKAN, x: Tensor) -> list[Tensor]:
    """What reaches each layer for the rows x ``(rows, in)``, and last the network's answers; float64, on the CPU.

    Raises:
        InputError: x is not ``(rows, in)``, has no rows, or is not finite.
    """
    if x.ndim != 2 or x.shape[1] != model.config["widths"][0] or not len(x):
        raise InputError(f"x must be (rows, {model.config['widths'][0]}) with at least one row, got {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        raise InputError("x must be finite, got NaN or infinity among the rows")
    network = copy.deepcopy(model).cpu().double().eval()
    widest = max(layers_of(network), key=lambda layer: layer.starts.numel())
    seen = [network.activations(rows) for rows in blocks(x.cpu().double(), widest)]
    return [torch.cat(parts) for parts in zip(*seen, strict=True)]


def even_rows(model: ReLUKAN) -> Tensor:
    """1024 rows ``(rows, in)``, always the same ones, spread evenly at random over the first layer's range."""
    first = layers_of(model)[0]
    size, generator = (_SAMPLE_ROWS, first.in_features), torch.Generator().manual_seed(0)
    low, high = range_of(first).unbind(1)
    return low + torch.rand(size, dtype=torch.float64, generator=generator) * (high - low)


def blocks(x: Tensor, layer: ReLUKANLayer) -> tuple[Tensor, ...]:
    """The rows x in blocks whose basis in a layer is not too large."""
    return torch.split(x, max(1, _BLOCK_ELEMENTS // layer.starts.numel()))


def layers_of(model: ReLUKAN) -> list[ReLUKANLayer]:
    return [cast(ReLUKANLayer, layer) for layer in model.layers]


def range_of(layer: ReLUKANLayer) -> Tensor:
    """``(in, 2)``: what the layer maps to [0, 1]."""
    if layer.input_range is None:
        return torch.tensor([[0.0, 1.0]], dtype=torch.float64).repeat(layer.in_features, 1)
    return layer.input_range.cpu().double()


def _domain(layer: ReLUKANLayer, reached: Tensor | None) -> Tensor:
    """``(in, 2)``: where an input's bumps are, or the part of it that is reached; its old range if that is nothing."""
    support = torch.from_numpy(layer.spec().domain.copy())
    domain = torch.where(support[:, :1] < support[:, 1:], support, range_of(layer))
    if reached is None:
        return domain
    low, high = torch.maximum(domain[:, 0], reached.amin(0)), torch.minimum(domain[:, 1], reached.amax(0))
    varies = high - low > 1e-3 * (domain[:, 1] - domain[:, 0])
    return torch.where(varies[:, None], torch.stack([low, high], dim=1), domain)


def _copy(layer: ReLUKANLayer, grid: int, domain: Tensor | None) -> ReLUKANLayer:
    """A layer with `grid` intervals over the domain, None for [0, 1], each edge the best copy of the old one."""
    old = copy.deepcopy(layer).cpu().double()
    with torch.random.fork_rng(devices=[]):  # the first weights are overwritten: they are not worth random numbers
        new = ReLUKANLayer(
            layer.in_features,
            layer.out_features,
            grid=grid,
            order=layer.order,
            normalization=layer.normalization,
            power=layer.power,
            train_intervals=layer.train_intervals,
            input_range=domain,
        )
        new = new.to(layer.weight).train(layer.training)
        lattice = ReLUKANLayer(1, 1, grid=grid, order=layer.order, normalization=layer.normalization, power=layer.power)
    points = _POINTS_PER_BUMP * max(new.starts.shape[1], old.starts.shape[1])
    middles = ((torch.arange(points, dtype=torch.float64) + 0.5) / points)[:, None]
    # In coordinates of the new grid all inputs have the same bumps, so one solution serves them all.
    design = lattice.to(layer.weight.dtype).double().basis(middles)[:, 0]  # (points, new K)
    low, high = range_of(new).unbind(1)
    wanted = old.basis(low + middles * (high - low))  # (points, in, K)
    moved = torch.linalg.lstsq(design, wanted.flatten(1)).solution.unflatten(1, wanted.shape[1:])  # (new K, in, K)
    new.weight.copy_(torch.einsum("pik,oik->oip", moved, old.weight))
    new.bias.copy_(old.bias)
    return new


def _answers(layer: ReLUKANLayer, x: Tensor) -> Tensor:
    network = copy.deepcopy(layer).cpu().double()
    return torch.cat([network(rows) for rows in blocks(x, network)])


def _difference(before: Tensor, after: Tensor) -> tuple[float, float]:
    """The largest and the root mean square difference, relative to the range of what was there before."""
    spread = float(before.max() - before.min()) or 1.0
    difference = before - after
    return float(difference.abs().max()) / spread, float(difference.square().mean().sqrt()) / spread
