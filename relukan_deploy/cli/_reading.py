"""The options that say how a checkpoint is read, which export and verify share."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from ..checkpoint import Source
from ._command import count

__all__ = ["add_reading_options", "reading_options"]


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("for checkpoints of other libraries")
    group.add_argument(
        "--from", dest="source", choices=get_args(Source), help="whose checkpoint it is (default: seen by its keys)"
    )
    group.add_argument("--grid", type=int, help="of a reference ReLU-KAN whose intervals were trained")
    group.add_argument("--order", type=int, help="likewise")
    group.add_argument(
        "--mult-arity",
        type=count,
        metavar="COUNT",
        help="how many sums each multiplication node of a pykan state dict multiplies",
    )


def reading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given of them, as `load_checkpoint` takes it."""
    return {name: getattr(arguments, name) for name in ("source", "grid", "order", "mult_arity")}
