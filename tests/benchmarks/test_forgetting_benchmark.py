"""The forgetting experiment: its signal, how its networks learn, and a small run of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks import _experiments, forgetting
from benchmarks.forgetting import CONTENDERS, OURS, Contender, errors_of, learn, points, relu_kan, signal

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed: pip install '.[bench]'"
)


def contender(name: str) -> Contender:
    (found,) = (each for each in CONTENDERS if each.name == name)
    return found


def test_the_signal_is_the_papers() -> None:
    """Its code writes each fifth as exp(-25 x²/2) of x from -1 to 1."""
    fifth = np.exp(-(np.linspace(-1, 1, 1000) ** 2) / 2 * 25)
    x = torch.cat([torch.linspace(phase / 5, (phase + 1) / 5, 1000) for phase in range(5)])
    np.testing.assert_allclose(signal(x), np.tile(fifth, 5), atol=1e-5)


def test_errors_are_those_of_each_fifth() -> None:
    exact = signal(points()).squeeze(1)
    answers = torch.stack([exact, exact + torch.where(points().squeeze(1) < 0.2, 2.0, 0.0)])
    np.testing.assert_allclose(errors_of(answers), [[0] * 5, [4, 0, 0, 0, 0]], atol=1e-5)


def test_every_mlp_is_about_as_large_as_the_network() -> None:
    ours, *others = (each.parameters for each in CONTENDERS if each.name == OURS or each.name.startswith("MLP"))
    assert ours == 103
    assert len(others) == 4
    assert all(ours <= other <= 1.2 * ours for other in others)


def test_what_no_row_reaches_stays_exactly() -> None:
    """After the second phase no bump that lies in the first fifth alone has moved, if Adam began anew."""
    first, second, *_ = learn(contender("… new Adam in each phase"), 1e-2, 0, 20)
    inner = points().squeeze(1) < 0.2 - 4 / 100  # where no bump of the second fifth reaches
    assert torch.equal(first[inner], second[inner])
    assert not torch.allclose(first, second)


def test_weight_decay_moves_what_no_row_reaches() -> None:
    decaying = Contender("", relu_kan, decay=0.5, restart=True)
    first, second, *_ = learn(decaying, 1e-2, 0, 20)
    inner = points().squeeze(1) < 0.16
    assert second[inner].square().sum() < 0.9 * first[inner].square().sum()


def test_only_what_is_said_to_be_trained_is() -> None:
    counts = [
        Contender("", build).parameters
        for build in (relu_kan, lambda: relu_kan(bias=True), lambda: relu_kan(intervals=True))
    ]
    assert counts == [103, 104, 3 * 103]


def test_a_seed_gives_the_same_answers_again() -> None:
    state = torch.random.get_rng_state()
    one, two, other = (learn(contender(OURS), 1e-2, seed, 2) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.random.get_rng_state())


@needs_matplotlib
def test_the_best_learning_rate_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an MLP's rates the one that remembers best is compared, and the one that learns best is shown too."""

    def scripted(one: Contender, rate: float, seed: int, iterations: int) -> torch.Tensor:
        truth = signal(points()).squeeze(1)
        wrong = {OURS: 0.1, "MLP": rate}[one.name]  # on the first four fifths, at the end
        last = torch.where(points().squeeze(1) < 0.8, truth + wrong, truth + 1 - rate)
        return torch.stack([truth + 1 - rate] * 4 + [last])

    monkeypatch.setattr(
        forgetting, "CONTENDERS", (Contender(OURS, relu_kan), Contender("MLP", lambda: nn.Linear(1, 1), (0.5, 0.2)))
    )
    monkeypatch.setattr(forgetting, "learn", scripted)
    forgetting.main(["--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [each["learning rate"] for each in found["best"]] == [0.01, 0.2]
    assert found["MLP that learns best"]["learning rate"] == 0.5
    assert found["MLP over ReLU-KAN"] == pytest.approx(4, rel=1e-3)
    assert "NOT reached" in " ".join(capsys.readouterr().out.split())


@needs_matplotlib
@pytest.mark.slow
def test_a_run_writes_a_table_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forgetting.main(["--quick", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [each["contender"] for each in found["best"]] == [each.name for each in CONTENDERS]
    assert "at least 10 times: reached" in " ".join(capsys.readouterr().out.split())
    table = (tmp_path / "found.md").read_text(encoding="utf-8")
    assert sum(line.startswith("| ") for line in table.splitlines()) == len(CONTENDERS) + 3
    assert "after phase 5" in (tmp_path / "found.svg").read_text(encoding="utf-8")


@needs_matplotlib
def test_a_picture_is_the_same_file_again(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    def drawn(name: str) -> bytes:
        figure = Figure()
        figure.subplots().plot([1, 2], label="a")
        _experiments.write(tmp_path / f"{name}.json", {"a": 1}, "| a |", figure)
        return (tmp_path / f"{name}.svg").read_bytes()

    assert drawn("one") == drawn("two")
    assert (tmp_path / "one.md").read_text() == "| a |\n"
    assert json.loads((tmp_path / "one.json").read_text()) == {"a": 1}


def four(x: Any, factor: float) -> Any:
    return np.exp(np.sin(factor * (x[:, 0] ** 2 + x[:, 1] ** 2)) + np.sin(factor * (x[:, 2] ** 2 + x[:, 3] ** 2)))


FORMULAS: dict[str, Callable[[Any], Any]] = {
    "sin πx": lambda x: np.sin(np.pi * x[:, 0]),
    "sin 5πx + x": lambda x: np.sin(5 * np.pi * x[:, 0]) + x[:, 0],
    "x² + x + 1": lambda x: x[:, 0] ** 2 + x[:, 0] + 1,
    "sin(πx₁ + πx₂)": lambda x: np.sin(np.pi * x[:, 0] + np.pi * x[:, 1]),
    "arctan(x₁ + x₁x₂ + x₂²)": lambda x: np.arctan(x[:, 0] + x[:, 0] * x[:, 1] + x[:, 1] ** 2),
    "exp(sin πx₁ + x₂²)": lambda x: np.exp(np.sin(np.pi * x[:, 0]) + x[:, 1] ** 2),
    "exp(sin(πx₁² + πx₂²) + sin(πx₃² + πx₄²))": lambda x: four(x, np.pi),
    "exp(sin(x₁² + x₂²) + sin(x₃² + x₄²))": lambda x: four(x, 1),
}


@pytest.mark.parametrize("target", [*_experiments.FITTING, *_experiments.SPEED], ids=lambda each: each.formula)
def test_a_target_is_what_its_formula_says(target: _experiments.Target) -> None:
    x, y = target.rows(50, seed=3)
    assert x.shape == (50, target.widths[0])
    assert y.shape == (50, 1)
    assert x.dtype == y.dtype == torch.float32
    np.testing.assert_allclose(y[:, 0], FORMULAS[target.formula](x.double().numpy()), rtol=1e-5, atol=2e-6)
