"""torch.compile, asked for one function at a time, and its failures in one line."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from typing import Any

from .errors import RelukanError

__all__ = ["compiled", "first_line"]


def compiled(function: Callable[..., Any], *arguments: Any, guarded: bool = True) -> Callable[..., Any]:
    """The function compiled by torch.compile for arguments of these shapes. It has run once.

    Args:
        guarded: whether each call looks if anything has changed that the code depends on, as `torch.compile` does. It
            takes some 40 µs. Without, shapes, dtypes and whatever the function reads have to stay as they are.

    Raises:
        RelukanError: it cannot be compiled, for want of a C++ compiler say.
    """
    import torch

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    # PyTorch counts what it compiled by code object, and falls back to eager beyond a few: each gets its own.
    own = types.FunctionType(call.__code__.replace(), call.__globals__, "call", None, call.__closure__)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            skip = None if guarded else getattr(torch.compiler, "skip_all_guards_unsafe", None)  # not in older ones
            options: dict[str, Any] | None = {"guard_filter_fn": skip} if skip else None
            fast: Callable[..., Any] = torch.compile(own, dynamic=False, options=options)
            fast(*arguments)
    except Exception as error:  # of torch._dynamo, of a backend, of a compiler
        raise RelukanError(f"torch.compile failed: {first_line(error)}") from error
    return fast


def first_line(error: BaseException) -> str:
    """What an error says, as far as it is one line: PyTorch adds advice and a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
