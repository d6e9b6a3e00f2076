"""ReLU-KAN in PyTorch: `ReLUKANLayer` and `ReLUKAN`.

The basis and the two normalisations are those of Qiu et al. 2024 (arXiv:2406.02075): the
bump of eq. 9, and its reference implementation, which keeps the initial factor while the
intervals train. Where the reference runs one Conv2d over the whole basis, this is one matrix
product over in·K, the same numbers at a tenth of the time.

Other powers than 2 are HRKAN's basis (So and Yung 2024, arXiv:2409.14248). `power` is the m of its paper; its
code takes an `order`, raises to that and squares the result, so it computes m = 2 · order.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import InputError
from .spec import MOST_POWER, KanSpec, LayerSpec

__all__ = ["Initialization", "Normalization", "ReLUKAN", "ReLUKANLayer"]

Initialization = Literal["reference", "linear"]
Normalization = Literal["fixed", "peak"]

# What batch normalisation gives has mean 0 and deviation 1 at first: two deviations each way fill the next grid.
_HIDDEN_RANGE = (-2.0, 2.0)


class ReLUKANLayer(nn.Module):
    """One ReLU-KAN layer, x ``(..., in_features)`` to y ``(..., out_features)``.

        y_o = bias_o + Σ_i Σ_j weight_oij · [ n_ij · ReLU(e_ij − x_i) · ReLU(x_i − s_ij) ]^power

    with K = grid + order bumps j on each input, on the lattice s_j = (j − order)/grid,
    e_j = s_j + (order + 1)/grid at initialisation, so that the grid spans [0, 1].

    Args:
        in_features: number of inputs.
        out_features: number of outputs.
        grid: number of grid intervals on [0, 1].
        order: how many intervals a bump reaches beyond its own.
        normalization: the factor n. "fixed" is 4·grid²/(order+1)², a constant, as in the
            reference implementation. "peak" is 4/(e−s)², the papers' 16/(e−s)⁴ under the
            square, or (2/(e−s))^2m under the m: every bump peaks at 1 however training moves s and e. They agree at
            initialisation.
        power: m, 1 to 8; the smoothness of a bump: it has m − 1 continuous derivatives.
        train_intervals: whether s and e are parameters (the reference's `train_se`) or buffers.
        input_range: ``(in_features, 2)``, the minimum and maximum of each input; inputs are
            mapped from there to [0, 1] first. None leaves them as they are.

    Raises:
        InputError: a size or option is out of range.
    """

    starts: Tensor
    ends: Tensor
    input_range: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        grid: int = 5,
        order: int = 3,
        normalization: Normalization = "fixed",
        power: int = 2,
        train_intervals: bool = True,
        input_range: Tensor | Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        _check_at_least("in_features", in_features, 1)
        _check_at_least("out_features", out_features, 1)
        _check_at_least("grid", grid, 1)
        _check_at_least("order", order, 0)
        _check_at_least("power", power, 1)
        if power > MOST_POWER:
            raise InputError(f"power must be at most {MOST_POWER}, got {power}")
        if normalization not in get_args(Normalization):
            raise InputError(f"normalization must be one of {get_args(Normalization)}, got {normalization!r}")
        self.in_features = in_features
        self.out_features = out_features
        self.grid = grid
        self.order = order
        self.normalization: Normalization = normalization
        self.power = power
        self.train_intervals = train_intervals

        steps = torch.arange(-order, grid, dtype=torch.float64)
        starts = (steps / grid).expand(in_features, -1)  # (in, K)
        ends = ((steps + order + 1) / grid).expand(in_features, -1)  # (in, K)
        for name, value in (("starts", starts), ("ends", ends)):
            value = value.to(torch.get_default_dtype(), copy=True).contiguous()
            if train_intervals:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.register_buffer("input_range", _as_range(input_range, in_features))
        self.weight = nn.Parameter(torch.empty(out_features, in_features, grid + order))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weight and bias uniformly within ±1/√(in·K), as the reference's Conv2d does."""
        bound = (self.in_features * (self.grid + self.order)) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    @torch.no_grad()
    def reset_linear(self) -> None:
        """Makes every edge nearly a straight line, zero in the middle of [0, 1], and every bias zero.

        Slopes are uniform within ±√(3/in), so that the outputs spread as much as the inputs do. The random bumps of
        `reset_parameters` make rough edges instead, and layers of them lose what the first one saw.
        """
        # Bumps weighted with their centres add up to x · (the sum of the bumps), which is (order + 1) times their
        # mean height, 4^m · B(m + 1, m + 1).
        total = (self.order + 1) * 4**self.power / (math.comb(2 * self.power, self.power) * (2 * self.power + 1))
        slopes = torch.empty(self.out_features, self.in_features, 1).uniform_(-1, 1) * (3 / self.in_features) ** 0.5
        self.weight.copy_(slopes.to(self.weight) * ((self.starts + self.ends - 1) / 2) / total)
        self.bias.zero_()

    def normalizer(self) -> Tensor | float:
        """n, a number for "fixed" and ``(in, K)`` for "peak"."""
        if self.normalization == "fixed":
            return 4 * self.grid**2 / (self.order + 1) ** 2
        width = self.ends - self.starts
        # A crossed bump is zero through its ReLUs; the clamp keeps 0 · (1/0) from becoming NaN.
        return 4 / width.square().clamp_min(1e-12)

    def basis(self, x: Tensor) -> Tensor:
        """The bumps ``(..., in_features, K)`` at x ``(..., in_features)``."""
        if self.input_range is not None:
            low, high = self.input_range.unbind(1)
            x = (x - low) / (high - low)
        x = x.unsqueeze(-1)  # (..., in, 1)
        rising = functional.relu(x - self.starts)  # (..., in, K)
        falling = functional.relu(self.ends - x)  # (..., in, K)
        return (rising * falling * self.normalizer()) ** self.power

    def forward(self, x: Tensor) -> Tensor:
        """y ``(..., out_features)`` for x ``(..., in_features)``."""
        return functional.linear(self.basis(x).flatten(-2), self.weight.flatten(1), self.bias)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, grid={self.grid}, order={self.order}, "
            f"normalization={self.normalization!r}, power={self.power}, train_intervals={self.train_intervals}"
        )

    def spec(self) -> LayerSpec:
        """This layer in float64, with `input_range` and the normalisation folded in."""
        with torch.no_grad():
            starts, ends = self.starts.double(), self.ends.double()
            height = self.weight.double()
            if self.normalization == "fixed":
                height = height * (float(self.normalizer()) * (ends - starts).square() / 4) ** self.power
            if self.input_range is not None:
                low, high = self.input_range.double().unsqueeze(-1).unbind(1)  # (in, 1) each
                starts, ends = low + starts * (high - low), low + ends * (high - low)
            tensors = {"starts": starts, "ends": ends, "coefficients": height, "bias": self.bias.double()}
        return LayerSpec(**{name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}, power=self.power)


class ReLUKAN(nn.Module):
    """A stack of `ReLUKANLayer`, x ``(..., widths[0])`` to y ``(..., widths[-1])``.

    Args:
        widths: features before, between and after the layers, at least two numbers.
        grid, order, normalization, power, train_intervals: as for `ReLUKANLayer`, for every layer.
        batch_norm: normalise what each hidden layer gives, and span the next grid over [-2, 2]: activations
            cannot leave the grids, as they do in deep networks without it. It is part of the constants in `spec`.
            As always with it: train() and batches of two rows or more to train, eval() to use the network.
        initialization: of the weights. "reference" is random, as in the reference implementation; "linear" begins
            with edges that are nearly straight, which deep networks learn better from, and a single layer at zero.
        input_range: for the first layer, ``(widths[0], 2)``.

    Raises:
        InputError: a size or option is out of range.
    """

    def __init__(
        self,
        widths: Sequence[int],
        grid: int = 5,
        order: int = 3,
        *,
        normalization: Normalization = "fixed",
        power: int = 2,
        train_intervals: bool = True,
        batch_norm: bool = False,
        initialization: Initialization = "reference",
        input_range: Tensor | Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        if initialization not in get_args(Initialization):
            raise InputError(f"initialization must be one of {get_args(Initialization)}, got {initialization!r}")
        widths = tuple(widths)
        if len(widths) < 2:
            raise InputError(f"widths needs at least an input and an output size, got {list(widths)}")
        self.config: dict[str, Any] = {
            "widths": list(widths),
            "grid": grid,
            "order": order,
            "normalization": normalization,
            "power": power,
            "train_intervals": train_intervals,
            "batch_norm": batch_norm,
        }
        layers = [
            ReLUKANLayer(
                in_features,
                out_features,
                grid=grid,
                order=order,
                normalization=normalization,
                power=power,
                train_intervals=train_intervals,
                input_range=([_HIDDEN_RANGE] * in_features if batch_norm else None) if index else input_range,
            )
            for index, (in_features, out_features) in enumerate(itertools.pairwise(widths))
        ]
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in (widths[1:-1] if batch_norm else ()))
        if initialization == "linear":
            for layer in layers:
                layer.reset_linear()
            if len(layers) == 1:  # linear in its weights, so that zero is the best place to begin
                nn.init.zeros_(layers[0].weight)
        for layer in layers[:-1]:
            nn.init.constant_(layer.bias, 0.5)  # hidden activations begin in the middle of the next grid

    def forward(self, x: Tensor) -> Tensor:
        """y ``(..., widths[-1])`` for x ``(..., widths[0])``."""
        return self.activations(x)[-1]

    def activations(self, x: Tensor) -> list[Tensor]:
        """What reaches each layer, ``(..., widths[i])`` for layer i, and last the answers to x."""
        reached = [x]
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index < len(self.norms):
                x = self.norms[index](x.reshape(-1, x.shape[-1])).view_as(x)
            reached.append(x)
        return reached

    def _layers(self) -> Iterable[ReLUKANLayer]:
        return self.layers  # type: ignore[return-value]  # nn.ModuleList forgets what it holds

    @torch.no_grad()
    def dead_inputs(self, x: Tensor) -> tuple[float, ...]:
        """For each layer, the fraction of (row, input) pairs of x ``(..., widths[0])`` that no live bump reaches.

        There the layer is constant and no gradient passes. A bump is live where s < e and it has a weight.
        """
        training = self.training
        self.eval()  # what is looked at must not move the normalisation's statistics
        shares = []
        for layer, values in zip(self._layers(), self.activations(x), strict=False):
            reached = ((layer.basis(values) > 0) & layer.weight.any(dim=0)).any(dim=-1)
            shares.append(1 - float(reached.double().mean()))
        self.train(training)
        return tuple(shares)

    def refine(self, grid: int, x: Tensor | None = None) -> ReLUKAN:
        """A network on a finer grid, at first the best copy of this one: the `model` of `relukan_deploy.refine`."""
        from .refinement import refine

        return refine(self, grid, x).model

    def spec(self, **meaning: Any) -> KanSpec:
        """The network in eval() as a `KanSpec`; keyword arguments (task, columns, …) are passed on to it."""
        layers = [layer.spec() for layer in self._layers()]
        for index, norm in enumerate(self.norms):
            layers[index] = _folded(layers[index], cast(nn.BatchNorm1d, norm))
        return KanSpec(layers=tuple(layers), **meaning)


def _folded(layer: LayerSpec, norm: nn.BatchNorm1d) -> LayerSpec:
    """The layer with the normalisation of its outputs in its own numbers: it is linear in them."""
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    weight, bias, mean, variance = (cast(Tensor, each).detach().double().cpu() for each in tensors)
    gain = weight * (variance + norm.eps).rsqrt()  # (out,)
    return dataclasses.replace(
        layer,
        coefficients=layer.coefficients * gain[:, None, None].numpy(),
        bias=(layer.bias - mean.numpy()) * gain.numpy() + bias.numpy(),
    )


def _check_at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _as_range(value: Tensor | Sequence[Sequence[float]] | None, in_features: int) -> Tensor | None:
    if value is None:
        return None
    result = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone()
    if result.shape != (in_features, 2):
        raise InputError(f"input_range must be ({in_features}, 2): minimum and maximum, got {tuple(result.shape)}")
    usable = (result[:, 0] < result[:, 1]) & result.isfinite().all(dim=1)
    if not bool(usable.all()):
        worst = int((~usable).nonzero()[0])
        raise InputError(
            f"input_range needs minimum < maximum, both finite, got {result[worst].tolist()} for input {worst}"
        )
    return result
