"""Networks of pykan's own package, and state dicts with the shapes that it writes."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

needs_pykan = pytest.mark.skipif(
    importlib.util.find_spec("kan") is None, reason="pykan is not installed: pip install '.[bench]'"
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No output, no warnings, and the random states as they were: pykan seeds them."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def new_network(width: Sequence[Any], folder: Path | str = ".", **options: Any) -> Any:
    """A pykan network as its constructor leaves it, in float32; `folder` is for what its methods might save."""
    with quiet():
        from kan import KAN

        return KAN(width=list(width), auto_save=False, ckpt_path=str(folder), **options)


def scatter(model: Any, seed: int = 0) -> Any:
    """All that can be trained takes random values, some edges are masked, and knots become uneven."""
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if name.endswith("grid"):
            value = np.cumsum(rng.uniform(0.1, 1, shape), axis=1) - shape[1] / 4
        elif name.endswith("mask") and name.startswith("act_fun"):
            value = (rng.random(shape) < 0.8).astype(np.float64)
        elif name.startswith("symbolic_fun"):
            continue
        else:
            value = rng.normal(0.2, 0.6, shape)
        parameter.data = torch.from_numpy(value)
    return model


def answers(model: Any, x: Array) -> Array:
    """y ``(batch, out)`` of pykan's own code in float64."""
    model.save_act = False
    with torch.no_grad():
        y: Array = model.double()(torch.from_numpy(x)).numpy()
    return y


def rows(inputs: int, count: int = 200, seed: int = 1, reach: float = 3.0) -> Array:
    """Rows around zero, the last quarter far away."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-reach, reach, (count, inputs))
    x[-count // 4 :] = rng.uniform(-60, 60, (count - (count - count // 4), inputs))
    return x


def error(y: Array, expected: Array) -> float:
    """The largest difference, relative to its row's largest value or 1."""
    assert y.shape == expected.shape
    scale = np.maximum(1, np.abs(expected).max(axis=1, keepdims=True))
    return float((np.abs(y - expected) / scale).max())


def state_of(*widths: int, grid: int = 3, order: int = 3, sums: Sequence[int] | None = None) -> dict[str, Tensor]:
    """The state dict of a network without symbolic edges; `sums` where they are more than the outputs."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for n, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        count = sums[n] if sums else outputs
        knots = torch.linspace(-1 - 2 * order / grid, 1 + 2 * order / grid, grid + 2 * order + 1)
        state[f"act_fun.{n}.grid"] = knots.repeat(inputs, 1)
        state[f"act_fun.{n}.coef"] = torch.randn(inputs, count, grid + order, generator=generator)
        for key in ("mask", "scale_base", "scale_sp"):
            state[f"act_fun.{n}.{key}"] = torch.ones(inputs, count)
        state[f"symbolic_fun.{n}.mask"] = torch.zeros(count, inputs)
        state[f"symbolic_fun.{n}.affine"] = torch.zeros(count, inputs, 4)
        for kind, number in (("subnode", count), ("node", outputs)):
            state[f"{kind}_scale_{n}"], state[f"{kind}_bias_{n}"] = torch.ones(number), torch.zeros(number)
    return state


def config_of(
    *widths: int, arities: Sequence[Sequence[int]] = (), changed: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The configuration that model.saveckpt writes with such a state dict, as far as it is read."""
    arities = arities or [[]] * (len(widths) - 1)
    config: dict[str, Any] = {
        "width": [[widths[0], 0]] + [[n - len(a), len(a)] for n, a in zip(widths[1:], arities, strict=True)],
        "mult_arity": [[], *map(list, arities)],
        "base_fun_name": "silu",
        "symbolic_enabled": True,
    }
    for n, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        config[f"symbolic.funs_name.{n}"] = [["0"] * inputs for _ in range(outputs + sum(a - 1 for a in arities[n]))]
    return {**config, **(changed or {})}
