"""The README's figures of training: the paper's fitting table beside ours, its speed, and what is forgotten."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relukan_deploy.bench.report import words

from ._readme_text import paragraph, rows_of

__all__ = ["fitting"]

# As fitting.py names them.
PUBLISHED = {"KAN": "KAN, published", "trained": "ReLU-KAN, published", "fixed": "… intervals fixed, published"}
OURS = {"trained": "**`fit`**", "fixed": "… intervals fixed", "refined": "… refined, by LBFGS"}
# As training_speed.py names them.
PEERS = {"pykan": "pykan", "relu-kan": "the reference's own code"}
COMPILED = {"ours, compiled": "one of `fit(compile=True)`", "ours": "one without"}


def fitting(folder: Path) -> str:
    """The fitting table, and a sentence each on training speed and forgetting."""
    fitted, speed, forgot = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("fitting", "training_speed", "forgetting")
    )
    return f"{table(fitted['results'])}\n\n{paragraph(faster(speed['functions']), forgetting(forgot))}"


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row for each network, a column for each function: mean squared errors on rows never trained on."""
    lines = [
        ["test MSE", *(f"{each['formula']} {each['widths']}" for each in results)],
        ["---", *["---:"] * len(results)],
        *([title, *(f"{each['published'][name]:.1e}" for each in results)] for name, title in PUBLISHED.items()),
    ]
    for name, title in OURS.items():
        lines.append([title, *(error(each[name]) for each in results)])
    return rows_of(lines)


def error(found: dict[str, float]) -> str:
    return f"{found['median']:.1e} ({found['low']:.0e}–{found['high']:.0e})"


def faster(results: Sequence[dict[str, Any]]) -> str:
    """How long a training step of the others takes."""
    said = []
    for peer, name in PEERS.items():
        beside = [f"{among(results, peer, ours)} as long as {as_what}" for ours, as_what in COMPILED.items()]
        said.append(f"a training step of {name} takes {' and '.join(beside)}")
    return f"On the paper's five functions for speed, {words.join(said)}."


def among(results: Sequence[dict[str, Any]], peer: str, ours: str) -> str:
    """As "5.1 to 12 ×"; the medians of the runs."""
    found = [statistics.median(each["over"][ours][peer]) for each in results]
    return f"{words.times(min(found)).removesuffix(' ×')} to {words.times(max(found))}"


def forgetting(found: dict[str, Any]) -> str:
    """What is left of four peaks after the fifth."""
    ours = found["best"][0]["first four at the end"]["median"]
    return (
        f"Of five peaks that are learnt one after the other, the first four have a mean squared error of {ours:.1e} at "
        f"the end, and {found['MLP over ReLU-KAN']:,.0f} times that with the best MLP of as many parameters."
    )
