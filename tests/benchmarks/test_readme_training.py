"""What the README says of training is what the experiments recorded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks._readme_training import fitting


def spread(median: float) -> dict[str, float]:
    return {"median": median, "low": median / 2, "high": 3 * median}


def fitted(formula: str, widths: list[int], published: float, found: float) -> dict[str, Any]:
    return {
        "formula": formula,
        "widths": widths,
        "published": {"KAN": 100 * published, "trained": published, "fixed": 2 * published},
        "reference": spread(4 * found),
        "trained": spread(found),
        "fixed": spread(2 * found),
        "refined": spread(found / 10),
    }


def timed(compiled: float, plain: float) -> dict[str, Any]:
    def over(pykan: float) -> dict[str, list[float]]:
        return {"pykan": [pykan, pykan, 99.0], "relu-kan": [pykan / 4] * 3}

    return {"over": {"ours, compiled": over(compiled), "ours": over(plain)}}


@pytest.fixture
def text(tmp_path: Path) -> str:
    recorded: dict[str, Any] = {
        "fitting": {"results": [fitted("sin πx", [1, 1], 6e-6, 2e-6), fitted("exp", [2, 5, 1], 3e-4, 1e-4)]},
        "training_speed": {"functions": [timed(8, 3), timed(24, 4)]},
        "forgetting": {
            "best": [
                {"contender": "ReLU-KAN", "first four at the end": spread(1.2e-5)},
                {"contender": "… both, as is usual", "first four at the end": spread(5.9e-3)},
            ],
            "MLP over ReLU-KAN": 321.0,
        },
    }
    for name, content in recorded.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return fitting(tmp_path)


def test_published_errors_stand_beside_ours(text: str) -> None:
    head, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")
    )
    first, second = (dict(zip(head, row, strict=True)) for row in rows)
    assert first == {
        "test MSE": "sin πx, [1, 1]",
        "KAN, published": "6.0e-04",
        "ReLU-KAN, published": "6.0e-06",
        "… intervals fixed, published": "1.2e-05",
        "its training, run here": "8.0e-06 (4e-06–2e-05)",
        "**`fit`**": "2.0e-06 (1e-06–6e-06)",
        "… intervals fixed": "4.0e-06 (2e-06–1e-05)",
        "… refined, by LBFGS": "2.0e-07 (1e-07–6e-07)",
    }
    assert second["test MSE"] == "exp, [2, 5, 1]"
    assert second["**`fit`**"] == "1.0e-04 (5e-05–3e-04)"


def test_speed_is_the_range_over_the_functions_of_the_medians(text: str) -> None:
    said = " ".join(text.split())
    assert "of pykan takes 8.0 to 24 × as long as one of `fit(compile=True)` and 3.0 to 4.0 × as long as one" in said
    assert "; one of the reference's own code takes 2.0 to 6.0 × as long as one" in said


def test_forgetting_is_beside_the_best_mlp(text: str) -> None:
    said = " ".join(text.split())
    assert "error of 1.2e-05 at the end if only the coefficients are trained, 5.9e-03 if bias and intervals" in said
    assert "and 3.9e-03 with the best MLP" in said  # 321 times the first
