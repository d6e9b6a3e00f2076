"""Pruning: `prune` takes out of a ReLU-KAN what hardly changes its answers.

What counts is how much something varies: the deviation, over the rows given, of an edge's or a bump's contribution
to an output, beside that of the largest edge into the same output. What is taken out leaves its mean behind, in the
bias, so that a constant goes without any change.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import cast

import torch
from torch import Tensor, nn

from .errors import InputError
from .model import ReLUKAN, ReLUKANLayer
from .refinement import blocks, even_rows, inputs_of_layers, layers_of, range_of
from .training.loop import score_of

__all__ = ["Pruned", "prune"]

_ROUNDING = 1e-7  # what varies less than this, relatively, is taken for constant
_POINTS = 257  # on an input's interval, where there are no rows


@dataclasses.dataclass(frozen=True, eq=False)
class Pruned:
    """A smaller network, and what went.

    Attributes:
        model: the smaller network, in the dtype and on the device of the old one.
        inputs: the inputs that no longer matter, from 0. They stay as columns.
        nodes: for each hidden layer, the nodes that went, numbered as in the old network.
        bumps: for each layer, how many bumps could contribute before, and how many can now.
        change: of the answers: root mean square over rows and outputs, each output relative to its deviation.
        score: before and after, accuracy or R²; None without y.
    """

    model: ReLUKAN
    inputs: tuple[int, ...]
    nodes: tuple[tuple[int, ...], ...]
    bumps: tuple[tuple[int, int], ...]
    change: float
    score: tuple[float, float] | None


@torch.no_grad()
def prune(model: ReLUKAN, threshold: float, x: Tensor | None = None, y: Tensor | None = None) -> Pruned:
    """A network without the hidden nodes, and with zero weights for the bumps and inputs, that hardly contribute.

    The lowered graph is smaller by the nodes, and by the bumps that every input of a layer has lost. Training can go
    on from the result; what is zero then may grow again.

    Args:
        model: the network; it is not changed.
        threshold: from 0, where only what is constant goes, to below 1: the smallest contribution that is kept,
            relative to the largest edge into the same output. 0.01 to 0.05 is usual.
        x: ``(rows, in)``, such as the rows the network is trained on. What lies where no row comes goes too. None
            takes the inputs as spread evenly over the first layer's range, and hidden values over the
            interval that the edges into them can add up to: more careful, as most of it is never reached.
        y: the answers to x, for the score: numbers ``(rows,)`` or ``(rows, out)``, or classes ``(rows,)``.

    Raises:
        InputError: the threshold is out of range, or x or y does not fit the network.
    """
    if not 0 <= threshold < 1:
        raise InputError(f"threshold must be at least 0 and below 1, got {threshold}")
    if y is not None and (x is None or len(y) != len(x)):
        raise InputError(f"y must have a row for each row of x, got {len(y)} and {'no x' if x is None else len(x)}")
    rows = even_rows(model) if x is None else x
    reached = inputs_of_layers(model, rows)
    answers = reached.pop()
    if x is None:
        reached = _intervals(model)

    smaller, kept = copy.deepcopy(model), torch.arange(model.config["widths"][-1])
    nodes: list[Tensor] = [kept]  # those that stay: the outputs, then the last layer's inputs, and on to the front
    for index, layer in reversed(list(enumerate(layers_of(smaller)))):
        _select(layer, 0, kept, "weight", "bias")
        kept = _drop_bumps(layer, reached[index], threshold)
        if index:
            kept = kept if len(kept) else torch.arange(1)  # a layer has at least one input
            _select(layer, 1, kept, "weight")
            _select(layer, 0, kept, "starts", "ends", "input_range")
            if smaller.norms:
                _select(smaller.norms[index - 1], 0, kept, "weight", "bias", "running_mean", "running_var")
        nodes.append(kept)
    nodes.reverse()
    _set_widths(smaller, [model.config["widths"][0], *(len(each) for each in nodes[1:])])
    after = inputs_of_layers(smaller, rows)[-1]
    gone = [
        tuple(sorted({*range(width)} - {*stay.tolist()}))
        for width, stay in zip(model.config["widths"], nodes, strict=True)
    ]
    return Pruned(
        model=smaller,
        inputs=gone[0],
        nodes=tuple(gone[1:-1]),
        bumps=tuple(zip(_live(model), _live(smaller), strict=True)),
        change=_change(answers, after),
        score=None if y is None else (_score(answers, y), _score(after, y)),
    )


def _drop_bumps(layer: ReLUKANLayer, x: Tensor, threshold: float) -> Tensor:
    """Sets the weights of bumps that hardly contribute to zero; returns the inputs that have bumps left.

    Args:
        layer: it is changed.
        x: ``(rows, in)``, what reaches it.
        threshold: see `prune`.
    """
    exact = copy.deepcopy(layer).cpu().double()
    mean, covariance = _moments(exact, x)
    weight = exact.weight  # (out, in, K)
    variance = (torch.einsum("oik,ikl->oil", weight, covariance) * weight).sum(2)  # (out, in), of the edges
    edges = variance.clamp_min(0).sqrt()
    single = weight.abs() * covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()  # (out, in, K)
    least = max(threshold, _ROUNDING) * edges.amax(1, keepdim=True)  # (out, 1)
    keep = (edges > least).any(0)[:, None] & (single > least[:, :, None]).any(0)  # (in, K)
    layer.bias.add_(torch.einsum("oik,ik->o", weight, mean * ~keep).to(layer.bias))
    layer.weight.mul_(keep.to(layer.weight))
    return keep.any(1).nonzero()[:, 0]


def _moments(layer: ReLUKANLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean ``(in, K)`` of each input's bumps over the rows, and their covariance ``(in, K, K)``."""
    first = second = torch.zeros((), dtype=torch.float64)
    for rows in blocks(x, layer):
        basis = layer.basis(rows)  # (rows, in, K)
        first = first + basis.sum(0)
        second = second + torch.einsum("nik,nil->ikl", basis, basis)
    mean = first / len(x)
    return mean, second / len(x) - mean[:, :, None] * mean[:, None, :]


def _intervals(model: ReLUKAN) -> list[Tensor]:
    """For each layer, values ``(points, in)`` evenly over where its inputs can be, as far as there are bumps."""
    network = copy.deepcopy(model).cpu().double().eval()
    low, high = range_of(layers_of(network)[0]).unbind(1)
    result = []
    for index, layer in enumerate(layers_of(network)):
        result.append(low + torch.linspace(0, 1, _POINTS, dtype=torch.float64)[:, None] * (high - low))
        if index + 1 == len(network.layers):
            break
        bounds = layer.bias.repeat(2, 1)  # (2, out)
        for position, bumps in enumerate(layer.basis(result[-1]).unbind(1)):
            edges = bumps @ layer.weight[:, position].T  # (points, out)
            bounds += torch.stack([edges.amin(0), edges.amax(0)])
        if network.norms:
            bounds = network.norms[index](bounds)
        support = torch.from_numpy(layers_of(network)[index + 1].spec().domain.copy())
        begin, end = torch.where(support[:, :1] < support[:, 1:], support, bounds.T).unbind(1)
        low = torch.maximum(bounds.amin(0), begin)
        high = torch.maximum(torch.minimum(bounds.amax(0), end), low)
    return result


def _select(module: nn.Module, axis: int, kept: Tensor, *names: str) -> None:
    """Keeps some of the slices of a module's tensors, parameters and buffers, along an axis."""
    for name in names:
        old = getattr(module, name)
        if old is None:
            continue
        new = old.detach().index_select(axis, kept.to(old.device))
        setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _set_widths(model: ReLUKAN, widths: list[int]) -> None:
    model.config["widths"] = widths
    for layer, inputs, outputs in zip(layers_of(model), widths, widths[1:], strict=False):
        layer.in_features, layer.out_features = inputs, outputs
    for norm, width in zip(model.norms, widths[1:], strict=False):
        cast(nn.BatchNorm1d, norm).num_features = width


def _live(model: ReLUKAN) -> list[int]:
    return [int(layer.spec().live.sum()) for layer in layers_of(model)]


def _change(before: Tensor, after: Tensor) -> float:
    deviation = before.std(0, correction=0)
    return float(((after - before) / torch.where(deviation > 0, deviation, 1)).square().mean().sqrt())


def _score(answers: Tensor, y: Tensor) -> float:
    y = y.cpu()
    return score_of(answers, y.double().reshape(answers.shape) if y.is_floating_point() else y)
