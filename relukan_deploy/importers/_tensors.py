"""What may stand where a file should hold a tensor."""

from __future__ import annotations

__all__ = ["describe", "is_plain"]


def is_plain(value: object) -> bool:
    """Whether this is a dense tensor of floating-point numbers, in memory."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


def describe(value: object) -> str:
    """What it is, for a message: its dtype where it is a tensor, else its type."""
    return str(getattr(value, "dtype", type(value).__name__))
