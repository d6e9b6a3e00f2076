"""The benchmark of training steps: a small run of it, what it prints, and what it writes."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks import training_speed
from benchmarks._experiments import SPEED
from benchmarks.training_speed import EAGER, FAST, PEERS, PUBLISHED, PUBLISHED_NAMES, WIDE_PEERS
from relukan_deploy.training.loop import one_thread

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed: pip install '.[bench]'"
)


def result(*, over: dict[str, dict[str, list[float]]], **rest: Any) -> dict[str, Any]:
    names = dict.fromkeys([*over, *(name for each in over.values() for name in each)])
    return {"seconds": {name: {"p50": 1e-3} for name in names}, "over": over, **rest}


@pytest.mark.slow
def test_a_small_run_times_every_network_and_writes_table_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with one_thread():  # which it sets itself; others are to have theirs again
        training_speed.main(["--quick", "--json", str(tmp_path / "speed.json")])
    found = json.loads((tmp_path / "speed.json").read_text())
    (function,) = found["functions"]
    missing = {each["what"].split(": ")[1] for each in found["skipped"]}
    assert missing <= {FAST, "pykan"}  # for want of a compiler, or of the package
    assert (FAST in missing) == (shutil.which("g++") is None and not torch.cuda.is_available())
    assert set(function["seconds"]) == {FAST, EAGER, *PEERS} - missing
    assert set(found["wide"]["seconds"]) >= {EAGER, *WIDE_PEERS} - {"mlp"}
    for each in (function, found["wide"]):
        assert all(times["p50"] > 0 for times in each["seconds"].values())
        assert all(min(runs) > 0 for ratios in each["over"].values() for runs in ratios.values())
    printed = " ".join(capsys.readouterr().out.split())
    assert all(f"{each['what']}: {each['found']:.2f} ×" in printed for each in found["goals"])
    table = (tmp_path / "speed.md").read_text()
    assert all(f"\n| {name} | " in table for name in function["seconds"])
    assert all(
        f"| published: {name} | {PUBLISHED['f1'][index]:.2f} s |" in table for index, name in enumerate(PUBLISHED_NAMES)
    )
    assert "did not wait for the GPU" in table
    assert "</svg>" in (tmp_path / "speed.svg").read_text()


def test_every_function_has_its_published_seconds() -> None:
    assert list(PUBLISHED) == [target.name for target in SPEED]


def test_goals_are_reached_by_the_median_of_the_runs() -> None:
    function = result(
        name="f1", network=[1, 1], over={FAST: {"pykan": [4.9, 5.1, 9.0]}, EAGER: {"relu-kan": [0.5, 0.9, 2.0]}}
    )
    wide = result(network=[9, 1], over={EAGER: {"fast-kan": [1.0]}})
    found = list(training_speed.goals({"device": "cpu", "functions": [function], "wide": wide}))
    assert [(each["what"], each["found"], each["reached"]) for each in found] == [
        ("f1: pykan over ours, compiled", 5.1, True),
        ("f1: relu-kan over ours", 0.9, False),
        ("[9, 1]: fast-kan over ours", 1.0, True),
    ]
    found = list(training_speed.goals({"device": "cuda", "functions": [function], "wide": wide}))
    assert [(each["what"], each["reached"]) for each in found] == [("f1: pykan over ours, compiled", False)]


def test_without_a_compiler_ours_as_it_is_counts_and_peers_that_are_missing_do_not() -> None:
    function = result(name="f1", network=[1, 1], over={EAGER: {"pykan": [6.0]}})
    wide = result(network=[9, 1], over={EAGER: {}})
    (found,) = training_speed.goals({"device": "cpu", "functions": [function], "wide": wide})
    assert found["what"] == "f1: pykan over ours"
    assert found["reached"]
