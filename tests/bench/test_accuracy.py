"""Equal accuracy: what is trained on what, the errors, and who is the fastest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import r2_score

from relukan_deploy import export, fit, load
from relukan_deploy.bench import accuracy, fitting
from relukan_deploy.bench.accuracy import equal_accuracy
from relukan_deploy.bench.results import Accuracy, Skipped
from relukan_deploy.bench.sweep import Effort
from relukan_deploy.bundle import Bundle, Manifest
from relukan_deploy.errors import InputError, TableError
from relukan_deploy.table import Table, table_of

ROWS = 120


def columns(rows: int = ROWS, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Two inputs and a smooth function of them."""
    x = np.random.default_rng(seed).uniform(-3, 5, (rows, 2))
    return {"a": x[:, 0], "b": x[:, 1], "y": 100 * np.sin(x[:, 0]) + 20 * x[:, 1] + 7}


def regression(rows: int = ROWS) -> Table:
    return table_of("regression", columns(rows))


def classification() -> Table:
    values = columns()
    return table_of("classification", {**values, "y": np.where(values["y"] > 7, "high", "low")})


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Fewer and smaller networks than people need, timed shortly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "_HIDDEN", (2, 3))
        patch.setattr(fitting, "_MLP_HIDDEN", (2, 3))
        patch.setattr(accuracy, "_EFFORT", Effort(runs=1, rounds=3, burst=0.0005, warm_up=0.0))
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    result = fit(regression(), hidden=(3,), epochs=3)
    return export(result, tmp_path_factory.mktemp("bundles") / "model")


def manifest_for_nothing(bundle: Bundle) -> Manifest:
    return dataclasses.replace(bundle.manifest, columns=None, targets=("none",), labels=None)


def train(family: str, rows: fitting.Rows, steps: int = 12) -> list[fitting.Trained]:
    return fitting.train_family(family, rows, grid=4, order=2, steps=steps, say=lambda doing: None)


# --- rows


def test_test_rows_are_those_that_relukan_train_holds_out(bundle: Bundle) -> None:
    for table in (regression(), classification()):
        rows = fitting.read_rows(table, None, manifest_for_nothing(bundle))
        np.testing.assert_array_equal(rows.test, fit(table, epochs=1, hidden=()).validation_rows)


def test_each_row_has_one_use(bundle: Bundle) -> None:
    rows = fitting.read_rows(regression(), None, bundle.manifest)
    parts = [rows.training, rows.validation, rows.test]
    assert [len(part) for part in parts] == [77, 19, 24]
    assert sorted(np.concatenate(parts)) == list(range(ROWS))


def test_inputs_and_targets_are_scaled_by_the_training_rows(bundle: Bundle) -> None:
    rows = fitting.read_rows(regression(), None, bundle.manifest)
    x, y = rows.x[rows.training], rows.y[rows.training].double()
    assert (x.amin(dim=0).tolist(), x.amax(dim=0).tolist()) == ([0, 0], [1, 1])
    assert float(y.mean()) == pytest.approx(0, abs=1e-6)
    assert float(y.std(correction=0)) == pytest.approx(1)


@pytest.mark.parametrize("family", ["this network", "mlp", "relu-kan"])
def test_nothing_about_the_test_rows_changes_what_is_trained(bundle: Bundle, family: str) -> None:
    test = fitting.read_rows(regression(), None, bundle.manifest).test
    changed = columns()
    for values in changed.values():
        values[test] = 1000
    states = []
    for table in (regression(), table_of("changed", changed)):
        rows = fitting.read_rows(table, None, bundle.manifest)
        states.append([trained.module.state_dict() for trained in train(family, rows)])
    for before, after in zip(*states, strict=True):
        for name, value in before.items():
            assert torch.equal(value, after[name]), name


def test_too_few_rows_are_refused(bundle: Bundle) -> None:
    with pytest.raises(TableError, match="needs at least 50 rows, got 40"):
        fitting.read_rows(regression(40), None, bundle.manifest)


# --- training


def test_the_error_is_that_of_the_network_that_is_given(bundle: Bundle) -> None:
    rows = fitting.read_rows(regression(), None, bundle.manifest)
    for trained in train("mlp", rows):
        x = 2 * rows.x[rows.test] - 1
        expected = 1 - r2_score(rows.y[rows.test].numpy(), trained.module(x).detach().numpy())
        assert trained.error == pytest.approx(expected, rel=1e-5)


def test_the_error_of_a_classification_is_the_share_of_wrong_classes(bundle: Bundle) -> None:
    rows = fitting.read_rows(classification(), None, manifest_for_nothing(bundle))
    for trained in train("this network", rows):
        x = 2 * rows.x[rows.test] - 1
        wrong = trained.module(x).argmax(dim=1) != rows.y[rows.test]
        assert trained.error == pytest.approx(float(wrong.double().mean()))


def test_networks_learn(bundle: Bundle) -> None:
    rows = fitting.read_rows(regression(), None, bundle.manifest)
    few, many = (train("this network", rows, steps)[0].error for steps in (4, 400))
    assert many < few / 4


def test_training_leaves_the_callers_threads_and_random_numbers_alone(bundle: Bundle) -> None:
    rows = fitting.read_rows(regression(), None, bundle.manifest)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    train("this network", rows, 4)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_a_peer_that_does_not_come_in_this_shape_says_so(bundle: Bundle) -> None:
    rows = fitting.read_rows(regression(), None, bundle.manifest)
    with pytest.raises(InputError, match="fast-kan needs two basis functions"):
        fitting.train_family("fast-kan", rows, grid=1, order=0, steps=1, say=lambda doing: None)


# --- the whole


@pytest.fixture(scope="module")
def measured(bundle: Bundle) -> tuple[list[Accuracy], list[Skipped]]:
    return equal_accuracy(regression(), None, bundle, against=["relu-kan"], grid=4, order=2, steps=12)


def test_every_network_of_every_family_is_timed(measured: tuple[list[Accuracy], list[Skipped]]) -> None:
    own, *others = measured[0]
    assert (own.network, own.widths, own.train_seconds) == ("this network", (2, 3, 1), None)
    assert [(each.network, each.widths) for each in others] == [
        *(("this network", (2, hidden, 1)) for hidden in (2, 3)),
        *(("mlp", (2, hidden, hidden, 1)) for hidden in (2, 3)),
        *(("relu-kan", (2, hidden, 1)) for hidden in (2, 3)),
    ]
    assert all(each.seconds.keys() == {1, 1024} and min(each.seconds.values()) > 0 for each in measured[0])
    assert all(each.train_seconds for each in others)


def test_they_are_compared_at_the_bundles_own_error(
    measured: tuple[list[Accuracy], list[Skipped]], bundle: Bundle
) -> None:
    rows = fitting.read_rows(regression(), None, bundle.manifest)
    values = columns()
    x = np.stack([values["a"], values["b"]], axis=1)[rows.test].astype(np.float32)
    expected = 1 - r2_score(values["y"][rows.test], load(bundle)(x))
    assert measured[0][0].error == pytest.approx(expected, rel=1e-5)
    assert {each.compared_at for each in measured[0]} == {measured[0][0].error}


def test_an_error_of_ones_own_is_what_they_are_compared_at(bundle: Bundle) -> None:
    found, skipped = equal_accuracy(regression(), None, bundle, error=0.0, steps=4)
    assert {each.compared_at for each in found} == {0.0}
    assert {each.network for each in found} == {"this network", "mlp"}  # though they do not reach it
    assert skipped == []


def test_a_bundle_for_other_data_does_not_take_part(bundle: Bundle) -> None:
    values = columns()
    other = table_of("other", {"a": values["a"], "c": values["b"], "y": values["y"]})
    found, skipped = equal_accuracy(other, None, bundle, steps=4)
    assert skipped[0].what == "model itself, at equal accuracy"
    assert skipped[0].why == "its columns are a, b, those of other a, c"
    best = {family: min(each.error for each in found if each.network == family) for family in ("this network", "mlp")}
    assert {each.compared_at for each in found} == {max(best.values())}  # which both reach
    assert len(skipped) == 1


def test_another_target_is_another_task(bundle: Bundle) -> None:
    found, skipped = equal_accuracy(regression(), "b", bundle, steps=4)
    assert skipped[0].why == "its targets are y, those of regression b"
    assert {each.widths[-1] for each in found} == {1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": ["tan"]}, "no peer is called 'tan': choose from pykan"),
        ({"error": -1.0}, "the error must be a number from 0, got -1"),
        ({"error": math.nan}, "the error must be a number from 0, got nan"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_options_that_cannot_be_used_are_refused(bundle: Bundle, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        equal_accuracy(regression(), None, bundle, **options)  # type: ignore[arg-type]
