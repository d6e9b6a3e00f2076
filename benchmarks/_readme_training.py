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
OURS = {
    "reference": "its training, run here",
    "trained": "**`fit`**",
    "fixed": "… intervals fixed",
    "refined": "… refined, by LBFGS",
}
# As training_speed.py names them.
PEERS = {"pykan": "pykan", "relu-kan": "the reference's own code"}
COMPILED = {"ours, compiled": "as long as one of `fit(compile=True)`", "ours": "as long as one without"}


def fitting(folder: Path) -> str:
    """The fitting table, and a sentence each on training speed and forgetting."""
    fitted, speed, forgot = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("fitting", "training_speed", "forgetting")
    )
    return f"{table(fitted['results'])}\n\n{paragraph(faster(speed['functions']), forgetting(forgot))}"


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row for each function, a column for each way to learn it: mean squared errors on rows never trained on."""
    lines = [["test MSE", *PUBLISHED.values(), *OURS.values()], ["---", *["---:"] * (len(PUBLISHED) + len(OURS))]]
    for each in results:
        published = [f"{each['published'][name]:.1e}" for name in PUBLISHED]
        lines.append([f"{each['formula']}, {each['widths']}", *published, *(error(each[name]) for name in OURS)])
    return rows_of(lines)


def error(found: dict[str, float]) -> str:
    return f"{found['median']:.1e} ({found['low']:.0e}–{found['high']:.0e})"


def faster(results: Sequence[dict[str, Any]]) -> str:
    """How long a training step of the others takes."""
    said = [
        f"{name} takes {' and '.join(f'{among(results, peer, ours)} {as_what}' for ours, as_what in COMPILED.items())}"
        for peer, name in PEERS.items()
    ]
    return f"On the paper's five functions for speed, a training step of {'; one of '.join(said)}."


def among(results: Sequence[dict[str, Any]], peer: str, ours: str) -> str:
    """As "5.1 to 12 ×"; the medians of the runs."""
    found = [statistics.median(each["over"][ours][peer]) for each in results]
    return f"{words.times(min(found)).removesuffix(' ×')} to {words.times(max(found))}"


def forgetting(found: dict[str, Any]) -> str:
    """What is left of four peaks after the fifth."""
    left = {each["contender"]: each["first four at the end"]["median"] for each in found["best"]}
    ours, usual = left["ReLU-KAN"], left["… both, as is usual"]
    theirs = found["MLP over ReLU-KAN"] * ours
    return (
        f"Of five peaks that are learnt one after the other, the first four have a mean squared error of {ours:.1e} at "
        f"the end if only the coefficients are trained, {usual:.1e} if bias and intervals are as well, and "
        f"{theirs:.1e} with the best MLP of as many parameters."
    )
