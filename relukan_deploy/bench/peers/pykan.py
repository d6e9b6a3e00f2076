"""pykan, from its own package (Liu et al. 2024, arXiv:2404.19756), at its fastest."""

from __future__ import annotations

import contextlib
import io
import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...errors import InputError, MissingDependencyError

__all__ = ["fast", "original", "pykan"]


def pykan(widths: Sequence[int], *, grid: int, order: int) -> nn.Module:
    """x ``(batch, widths[0])`` to y ``(batch, widths[-1])``: `KAN(...)`, made `fast`. Raises as `original` does."""
    return fast(original(widths, grid=grid, order=order))


def original(widths: Sequence[int], *, grid: int, order: int) -> Any:
    """A `kan.KAN` as its package makes it, which writes no files; always the same one.

    Raises:
        MissingDependencyError: pykan, or a package that it imports, is not installed.
        InputError: the order is 0, for which it has no splines.
    """
    if order < 1:
        raise InputError(f"pykan has splines of order 1 and more, got order {order}")
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        try:
            from kan import KAN
        except ImportError as error:
            package = "pykan" if error.name in (None, "kan") else error.name
            raise MissingDependencyError("Timing pykan", package, "bench") from error
        # The list is its own to change; the folder is for what it might save.
        return KAN(width=list(widths), grid=grid, k=order, seed=0, auto_save=False, ckpt_path=folder)


def fast(model: Any) -> nn.Module:
    """The same model, changed by `model.speed().eval()`.

    The symbolic branch, which `speed()` turns off, is removed, and its record of the inputs' order is a
    buffer that moves to the GPU with the parameters. Neither changes what is computed.
    """
    model.symbolic_fun = nn.ModuleList()
    order_of_inputs: Tensor = model.input_id
    del model.input_id
    model.register_buffer("input_id", order_of_inputs, persistent=False)
    sped_up: nn.Module = model.speed().eval()
    return sped_up


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No output, no warnings, and numpy's and Python's random states as they were: pykan seeds them."""
    states = random.getstate(), np.random.get_state()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
