"""What a step of training takes: forward, mean squared error, backward, Adam."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, MissingDeviceError, RelukanError
from .subjects import Shape, make_inputs
from .subjects.torch_calls import Captured, find_device, waiting
from .subjects.torch_subjects import TORCH_ENGINES, TorchEngine
from .timing import Turn, rotated

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["training_turns", "turns_on"]

_RATE = 1e-3
_MOST_INPUTS = 4  # each has a graph of its own


def training_turns(module: nn.Module, shape: Shape, batch: int, *, engine: TorchEngine) -> Turn:
    """Turns of training steps with so many rows, as `turns_on` has them; they learn a sine of their inputs' mean.

    Args:
        module: x ``(batch, in)`` to y ``(batch, out)``.
        shape: that it was built for.
        batch: rows of a step.
        engine: as for `turns_on`, which says what is raised too.
    """
    import torch

    examples = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in _examples(shape, batch)]
    return turns_on(module, examples, engine=engine)


def turns_on(
    module: nn.Module, examples: Sequence[tuple[Tensor, Tensor]], *, engine: TorchEngine, adam: bool = True
) -> Turn:
    """Turns of training steps on batches one after the other, on the GPU where there is one; each waits until done.

    Args:
        module: x ``(batch, in)`` to y ``(batch, out)``; it is trained in place, and moved to the GPU.
        examples: x ``(batch, in)`` and wanted y ``(batch, out)``, all of one size.
        engine: "torch" runs it as it is, "torch.compile" with forward and backward pass compiled into one
            function, "torch CUDA graph" as one graph, of what is compiled if it can be.
        adam: whether a step ends with Adam, the fused one; else with the gradient.

    Raises:
        InputError: the engine is another one.
        MissingDeviceError: CUDA graphs are asked for where there is no GPU.
        RelukanError: it cannot be compiled or captured.
    """
    if engine not in TORCH_ENGINES:
        raise InputError(f"a network is trained in one of {', '.join(TORCH_ENGINES)}, got {engine!r}")
    import torch

    device, graphs = find_device(), engine == "torch CUDA graph"
    if graphs and device == "cpu":
        raise MissingDeviceError("CUDA graphs need an NVIDIA GPU, and PyTorch finds none here")
    module.to(device).train()
    learnt = [each for each in module.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(learnt, lr=_RATE, capturable=graphs, fused=True)
    examples = [(x.to(device), y.to(device)) for x, y in examples]
    gradient = _gradient(module, examples[0], engine)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        gradient(x, y)
        if adam:
            optimizer.step()

    steps: list[Callable[[], object]] = [functools.partial(step, *example) for example in examples]
    if graphs:
        steps = [Captured(each).replay for each in steps]
    return rotated(waiting(steps) if device == "cuda" else steps)


def _gradient(
    module: nn.Module, example: tuple[Tensor, Tensor], engine: TorchEngine
) -> Callable[[Tensor, Tensor], object]:
    """What leaves the gradient of the mean squared error of answers to x, wanted y, in the parameters."""
    from ..training.gradient import CompiledGradient
    from ..training.loop import Method, Objective

    loss = Objective(module, Method(epochs=1, batch_size=len(example[0]), learning_rate=_RATE))

    def backward(x: Tensor, y: Tensor) -> None:
        loss(x, y).backward()

    if engine == "torch":
        return backward
    try:
        return CompiledGradient(loss, *example)
    except RelukanError:
        if engine == "torch.compile":
            raise
        return backward


def _examples(shape: Shape, batch: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Inputs ``(batch, in)``, and a period of a sine of the mean of each row as outputs ``(batch, out)``."""
    low, high = shape.domain.T
    for x in make_inputs(shape.domain, batch, most=_MOST_INPUTS):
        wave = np.sin(2 * np.pi * ((x - low) / (high - low)).mean(axis=1, keepdims=True))
        yield x, np.repeat(wave.astype(np.float32), shape.widths[-1], axis=1)
