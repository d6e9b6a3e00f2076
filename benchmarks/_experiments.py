"""What the training experiments share: the functions that are learnt, and how a result is written.

The functions are those of the ReLU-KAN paper (Qiu et al. 2024, arXiv:2406.02075): table 2, fitting, and table 1, speed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relukan_deploy._files import replacing_file

from ._report import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FITTING", "SPEED", "Target", "write"]


@dataclasses.dataclass(frozen=True)
class Target:
    """A function on [0, 1]ⁿ, and the network that the paper gives it.

    Attributes:
        name: short, and unlike the others' of its table.
        formula: as it is printed.
        widths: of the network, n first and 1 last.
        grid, order: of the network.
        function: y ``(rows, 1)`` for x ``(rows, n)``.
    """

    name: str
    formula: str
    widths: tuple[int, ...]
    grid: int
    order: int
    function: Callable[[Tensor], Tensor]

    def rows(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """x ``(count, n)``, uniform in [0, 1]ⁿ, and y ``(count, 1)``; float32, the same again for a seed."""
        x = torch.rand(count, self.widths[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        return x, self.function(x)


def _sum(x: Tensor) -> Tensor:
    return x.sum(dim=1, keepdim=True)


def _sine(x: Tensor) -> Tensor:
    return torch.sin(math.pi * x)


def _sine_of_sum(x: Tensor) -> Tensor:
    return torch.sin(math.pi * _sum(x))


def _exponential(x: Tensor) -> Tensor:
    return torch.exp(torch.sin(math.pi * x[:, :1]) + x[:, 1:].square())


FITTING: tuple[Target, ...] = (
    Target("sine", "sin πx", (1, 1), 5, 3, _sine),
    Target("fast sine", "sin 5πx + x", (1, 1), 5, 3, lambda x: torch.sin(5 * math.pi * x) + x),
    Target("parabola", "x² + x + 1", (1, 1), 5, 3, lambda x: x.square() + x + 1),
    Target("sine of a sum", "sin(πx₁ + πx₂)", (2, 5, 1), 5, 3, _sine_of_sum),
    Target("exponential", "exp(sin πx₁ + x₂²)", (2, 5, 1), 5, 3, _exponential),
    Target(
        "four inputs",
        "exp(sin(πx₁² + πx₂²) + sin(πx₃² + πx₄²))",
        (4, 2, 2, 1),
        5,
        3,
        lambda x: torch.exp(
            torch.sin(math.pi * _sum(x[:, :2].square())) + torch.sin(math.pi * _sum(x[:, 2:].square()))
        ),
    ),
)

SPEED: tuple[Target, ...] = (
    Target("f1", "sin πx", (1, 1), 5, 3, _sine),
    Target("f2", "sin(πx₁ + πx₂)", (2, 1), 5, 3, _sine_of_sum),
    Target(
        "f3",
        "arctan(x₁ + x₁x₂ + x₂²)",
        (2, 1, 1),
        5,
        3,
        lambda x: torch.arctan(x[:, :1] + x[:, :1] * x[:, 1:] + x[:, 1:].square()),
    ),
    Target("f4", "exp(sin πx₁ + x₂²)", (2, 5, 1), 5, 3, _exponential),
    Target(
        "f5",
        "exp(sin(x₁² + x₂²) + sin(x₃² + x₄²))",
        (4, 4, 2, 1),
        10,
        3,
        lambda x: torch.exp(torch.sin(_sum(x[:, :2].square())) + torch.sin(_sum(x[:, 2:].square()))),
    ),
)


def write(path: Path, values: dict[str, Any], table: str, figure: Figure) -> None:
    """Writes a result: its values as JSON and, beside that file and named as it is, the table and the picture.

    Args:
        path: the JSON file.
        values: written as `write_json` does.
        table: Markdown, written as .md.
        figure: written as .svg, in the same bytes again for the same figures.
    """
    import matplotlib

    write_json(path, values)
    with replacing_file(path.with_suffix(".md")) as written:
        written.write_text(table.rstrip("\n") + "\n", encoding="utf-8")
    # By default an SVG holds the time it was made and identifiers drawn by chance.
    with replacing_file(path.with_suffix(".svg")) as written, matplotlib.rc_context({"svg.hashsalt": "relukan-deploy"}):
        figure.savefig(written, format="svg", bbox_inches="tight", metadata={"Date": None})
