"""The benchmark of fitting: a small run of it, what it prints, and what it writes."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks import fitting
from benchmarks._experiments import FITTING, Target
from benchmarks.fitting import FIXED, PUBLISHED, REFERENCE, REFINED, TITLES, TRAINED
from relukan_deploy.bench.peers.relu_kan import RowsReLUKAN
from relukan_deploy.refinement import layers_of
from relukan_deploy.train import fit
from relukan_deploy.training.loop import one_thread

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed: pip install '.[bench]'"
)


def result(name: str, published: float, trained: tuple[float, float], refined: tuple[float, float]) -> dict[str, Any]:
    """Errors and seconds of a function, as far as goals look at them."""
    ways = {way: {"median": found[0], "seconds": found[1]} for way, found in ((TRAINED, trained), (REFINED, refined))}
    return {"name": name, "published": {TRAINED: published}, **ways}


@pytest.mark.slow
def test_a_small_run_trains_in_every_way_and_writes_table_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with one_thread():  # which it sets itself; others are to have theirs again
        fitting.main(["--quick", "--json", str(tmp_path / "fitting.json")])
    found = json.loads((tmp_path / "fitting.json").read_text())
    table = (tmp_path / "fitting.md").read_text()
    assert [each["name"] for each in found["results"]] == list(PUBLISHED)
    for each in found["results"]:
        assert all(len(each[way]["errors"]) == fitting.QUICK.seeds for way in TITLES)
        assert all(each[way]["median"] == statistics.median(each[way]["errors"]) > 0 for way in TITLES)
        assert f"\n| {each['formula']} {each['widths']} | {each['published']['KAN']:.2e} | " in table
        # Forty iterations of LBFGS are worth more than a hundred steps of fit, and those more than the reference's.
        assert each[REFINED]["median"] < each[TRAINED]["median"] < each[REFERENCE]["median"]
    assert "its code trains [4, 2, 2, 1] with 5" in table
    assert "</svg>" in (tmp_path / "fitting.svg").read_text()
    assert " ".join(capsys.readouterr().out.split()).count("NOT reached") == len(fitting.GOALS)


def test_every_function_has_its_published_errors() -> None:
    assert list(PUBLISHED) == [target.name for target in FITTING]


@pytest.mark.parametrize("target", FITTING[2:], ids=lambda target: target.name)
def test_what_stands_for_the_reference_learns_as_its_own_code_does(target: Target) -> None:
    torch.manual_seed(0)
    ours = fitting.reference_network(target)
    theirs = RowsReLUKAN(target.widths, grid=target.grid, order=target.order)
    for layer, own in zip(theirs.rk_layers, layers_of(ours), strict=True):
        conv = layer.equal_size_conv
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        # Drawn from the same interval, and read in the same order: the numbers of its image lie as (in, K).
        assert float(own.weight.detach().abs().max()) <= conv.weight.shape[1:].numel() ** -0.5
        conv.weight.data.copy_(own.weight.detach().reshape(conv.weight.shape))
        conv.bias.data.copy_(own.bias.detach())
    x, y = target.rows(100, seed=0)
    for model in (ours, theirs):
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(30):
            optimizer.zero_grad()
            functional.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-3)


def test_lbfgs_has_to_be_ten_times_better_and_no_slower() -> None:
    results = [
        result("as good", 1.0, (1.0, 5.0), (0.11, 1.0)),
        result("worse", 1.0, (1.1, 5.0), (0.1, 5.0)),
        result("slower", 1.0, (0.5, 5.0), (0.01, 5.1)),
    ]
    assert {goal["what"]: goal["reached"] for goal in fitting.goals(results)} == {
        TRAINED: ["as good", "slower"],
        REFINED: ["worse"],
    }


def test_ours_is_trained_with_the_usual_options(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def watched(*arrays: Any, **options: Any) -> Any:
        given.append(options)
        return fit(*arrays, **options)

    monkeypatch.setattr(fitting, "fit", watched)
    fitting.measure(FITTING[0], fitting.Effort(seeds=1, steps=50, lbfgs_epochs=2))
    plain, fixed, refined = given
    allowed = {"hidden", "grid", "order", "validation", "epochs", "patience", "seed", "device"}
    assert set(plain) == allowed
    assert fixed == plain | {"train_intervals": False}
    assert refined == plain | {"grid": (3, 5), "optimizer": "lbfgs", "epochs": 2, "patience": 2}
    assert set(TITLES) == {REFERENCE, TRAINED, FIXED, REFINED}
