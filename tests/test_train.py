"""Training: what `fit` returns, writes and refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score, r2_score

from relukan_deploy.checkpoint import load_checkpoint
from relukan_deploy.errors import InputError, MissingDeviceError, TableError
from relukan_deploy.train import Epoch, FitResult, fit
from relukan_deploy.training.course import Measured

SMALL: dict[str, Any] = {"hidden": (), "epochs": 2, "device": "cpu"}


def inputs(rows: int = 60, columns: int = 3) -> NDArray[np.float64]:
    return np.random.default_rng(0).uniform(-2, 3, (rows, columns))


def answers(result: FitResult, x: NDArray[Any]) -> NDArray[np.float64]:
    """The saved function by its float64 reference, which shares no code with training."""
    return result.model.spec().evaluate(x)


def weights(result: FitResult) -> list[NDArray[np.float32]]:
    return [value.numpy() for value in result.model.state_dict().values()]


# --- what comes out


def test_the_score_of_a_classification_is_its_accuracy() -> None:
    x, y = inputs(200), inputs(200)[:, 0] > 0.5
    result = fit(x, y, hidden=(4,), epochs=5, device="cpu")
    held_out = result.validation_rows
    assert (result.task, result.score_name, result.labels) == ("classification", "accuracy", ("False", "True"))
    assert result.score == pytest.approx(accuracy_score(y[held_out], answers(result, x[held_out]).argmax(axis=1)))


def test_the_score_of_a_regression_is_r2_in_the_targets_own_units() -> None:
    x = inputs(200)
    y = np.stack([1000 + 300 * np.sin(x[:, 0]), 1e-3 * x[:, 1] ** 2], axis=1)
    result = fit(x, y, hidden=(6,), epochs=30, device="cpu")
    held_out = result.validation_rows
    assert (result.task, result.score_name, result.targets) == ("regression", "R²", ("y0", "y1"))
    assert result.score == pytest.approx(r2_score(y[held_out], answers(result, x[held_out])), abs=1e-4)
    assert result.score > 0.9


def test_the_history_holds_every_epoch_and_the_best() -> None:
    seen: list[Epoch] = []
    result = fit(inputs(), inputs()[:, 0], hidden=(), epochs=6, device="cpu", progress=seen.append)
    assert tuple(seen) == result.history
    assert [epoch.number for epoch in seen] == [1, 2, 3, 4, 5, 6]
    assert [epoch.best for epoch in seen] == np.maximum.accumulate([epoch.score for epoch in seen]).tolist()
    assert result.history[result.best_epoch - 1].score == result.score == seen[-1].best


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_an_epoch_with_any_number_that_is_not_finite_has_diverged(number: float) -> None:
    sound = Measured(loss=0.5, held_out_loss=0.4, score=0.9)
    assert sound.is_finite
    assert not sound._replace(loss=number).is_finite
    assert not sound._replace(held_out_loss=number).is_finite  # where a classification still has a score
    assert not sound._replace(score=number).is_finite


def test_training_stops_when_patience_is_spent() -> None:
    x = inputs(40)
    noise = np.random.default_rng(1).normal(size=40)
    result = fit(x, noise, hidden=(16,), epochs=500, patience=4, learning_rate=0.02, device="cpu")
    assert len(result.history) == result.best_epoch + 4 < 500


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_the_same_seed_gives_the_same_weights(task: str) -> None:
    x = inputs()
    y = x[:, 0] if task == "regression" else x[:, 0] > 0
    first, second, other = (fit(x, y, hidden=(4,), epochs=3, seed=seed, device="cpu") for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    assert not np.array_equal(weights(first)[-1], weights(other)[-1])


def test_the_callers_random_numbers_and_threads_are_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    fit(inputs(), inputs()[:, 0], **SMALL)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_each_class_is_held_out_in_proportion() -> None:
    y = np.repeat(["rare", "common", "usual", "single"], [10, 100, 50, 1])
    result = fit(inputs(161), y, **SMALL)
    held_out = dict(zip(*np.unique(y[result.validation_rows], return_counts=True), strict=True))
    assert held_out == {"rare": 2, "common": 20, "usual": 10}
    assert result.labels == ("common", "rare", "single", "usual")


def test_the_input_range_is_that_of_the_training_rows() -> None:
    x = inputs(100)
    x[:, 1], x[:, 2] = 7.0, 1e9  # constants
    result = fit(x, x[:, 0], **SMALL)
    training = np.delete(np.arange(100), result.validation_rows)
    expected = [[x[training, 0].min(), x[training, 0].max()], [6.5, 7.5], [0.99e9, 1.01e9]]
    assert np.array_equal(result.model.layers[0].input_range, np.array(expected, np.float32))  # type: ignore[arg-type]
    assert np.isfinite(answers(result, x)).all()


def test_options_reach_the_network() -> None:
    result = fit(
        inputs(),
        inputs()[:, 0],
        hidden=(3, 2),
        grid=4,
        order=2,
        normalization="peak",
        power=3,
        train_intervals=False,
        batch_norm=True,
        epochs=1,
    )
    assert result.model.config == {
        "widths": [3, 3, 2, 1],
        "grid": 4,
        "order": 2,
        "normalization": "peak",
        "power": 3,
        "train_intervals": False,
        "batch_norm": True,
    }


def test_finer_grids_go_on_from_the_coarse_one() -> None:
    x = np.linspace(0, 1, 400)[:, np.newaxis]
    y = np.sin(5 * np.pi * x[:, 0]) + x[:, 0]  # which five intervals are too few for
    options: dict[str, Any] = {"hidden": (), "learning_rate": 0.02, "device": "cpu"}
    coarse, finer = (fit(x, y, grid=grid, epochs=20, **options) for grid in (5, [5, 20]))
    assert finer.model.config["grid"] == 20
    assert len(finer.history) == 20
    assert finer.history[9].score < coarse.score < finer.history[10].score < 1  # a copy is no fresh start
    assert 1 - finer.score < 0.2 * (1 - coarse.score)


def test_each_grid_has_its_share_of_the_epochs_and_patience_of_its_own() -> None:
    x = inputs(60)
    result = fit(x, np.random.default_rng(0).normal(size=60), hidden=(4,), grid=(2, 3, 4), epochs=30, patience=1)
    assert 3 < len(result.history) < 30  # there is nothing to learn
    assert len(fit(x, x[:, 0], hidden=(), grid=(2, 3, 4), epochs=7, device="cpu").history) == 7


def test_the_history_tells_what_share_of_each_layers_inputs_is_dead() -> None:
    x = inputs(200)
    result = fit(x, x[:, 0], hidden=(4, 4), epochs=1, device="cpu")
    held_out = torch.from_numpy(x[result.validation_rows]).float()
    assert result.history[0].dead == pytest.approx(result.model.dead_inputs(held_out))
    x[result.validation_rows] = 99  # no bump is there
    assert fit(x, x[:, 1], hidden=(4, 4), epochs=1, device="cpu").history[0].dead[0] == 1


def test_a_row_left_over_joins_the_last_batch() -> None:
    x = inputs(61)  # 49 to train on
    result = fit(x, x[:, 0], hidden=(4,), batch_norm=True, batch_size=16, epochs=2, device="cpu")
    assert np.isfinite(result.score)


def test_batch_normalisation_is_scored_and_saved_as_it_will_be_used(tmp_path: Path) -> None:
    x = inputs(200)
    y = np.sin(x[:, 0])
    result = fit(x, y, hidden=(6,), batch_norm=True, epochs=20, device="cpu", out=tmp_path / "model.pt")
    held_out = result.validation_rows
    assert result.score == pytest.approx(r2_score(y[held_out], answers(result, x[held_out])), abs=1e-5)
    assert result.score > 0.8
    rows = torch.from_numpy(x).float()
    model = load_checkpoint(tmp_path / "model.pt").model
    assert torch.equal(model(rows), result.model(rows))
    assert not model.training


@pytest.mark.slow
def test_five_layers_live_at_a_high_learning_rate_with_batch_normalisation() -> None:
    x, y = load_digits(return_X_y=True)
    plain, normalised = (
        fit(x, y, hidden=(16,) * 4, batch_norm=each, learning_rate=0.01, epochs=12, device="cpu")
        for each in (False, True)
    )
    assert plain.score < 0.5
    assert max(plain.history[-1].dead) > 0.9
    assert normalised.score > 0.9
    assert max(normalised.history[-1].dead) < 0.1


@pytest.mark.slow
def test_five_layers_learn_digits_and_the_papers_function_of_four_inputs_by_default() -> None:
    x, y = load_digits(return_X_y=True)
    assert fit(x, y, hidden=(16,) * 4, epochs=30, device="cpu").score > 0.95
    x = np.random.default_rng(0).uniform(0, 1, (1000, 4))
    squares = np.pi * x**2
    y = np.exp(np.sin(squares[:, 0] + squares[:, 1]) + np.sin(squares[:, 2] + squares[:, 3]))
    assert fit(x, y, hidden=(8,) * 4, device="cpu").score > 0.99


def test_fixed_intervals_stay() -> None:
    for trained in (True, False):
        layer = fit(inputs(), inputs()[:, 0], train_intervals=trained, **SMALL).model.layers[0]
        lattice = np.tile(np.arange(-3, 5, dtype=np.float32) / 5, (3, 1))
        assert np.allclose(layer.starts.detach(), lattice, atol=1e-6) != trained  # type: ignore[operator]


# --- files and columns


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_a_file_and_its_arrays_train_the_same_network(tmp_path: Path, kind: str) -> None:
    x = inputs().astype(np.float32)
    y = x[:, 0] * x[:, 1]
    columns = {"x0": x[:, 0], "x1": x[:, 1], "x2": x[:, 2], "y": y}
    path = tmp_path / f"data.{kind}"
    if kind == "npz":
        np.savez(path, x=x, y=y)
    elif kind == "csv":
        polars.DataFrame(columns).write_csv(path)
    else:
        polars.DataFrame(columns).write_parquet(path)
    from_file, from_arrays = fit(path, **SMALL), fit(x, y, **SMALL)
    assert (from_file.columns, from_file.targets) == (("x0", "x1", "x2"), ("y",))
    assert from_arrays.columns is None
    assert all(np.allclose(a, b) for a, b in zip(weights(from_file), weights(from_arrays), strict=True))


def test_targets_and_columns_are_chosen_by_name(tmp_path: Path) -> None:
    x = inputs()
    path = tmp_path / "data.csv"
    names = ["a", "b", "c"]
    polars.DataFrame(x, schema=names).with_columns(note=polars.lit("text")).write_csv(path)
    result = fit(path, ["a", "b"], columns=["c"], **SMALL)
    assert (result.columns, result.targets, result.model.config["widths"]) == (("c",), ("a", "b"), [1, 2])


def test_the_checkpoint_is_the_result(tmp_path: Path) -> None:
    out = tmp_path / "models" / "model.pt"
    x = inputs(200)
    result = fit(x, x[:, 0] > 0, columns=["a", "b", "c"], out=out, epochs=4, device="cpu")
    checkpoint = load_checkpoint(out)
    assert result.path == out
    assert (checkpoint.task, checkpoint.columns) == ("classification", ("a", "b", "c"))
    assert (checkpoint.targets, checkpoint.labels) == (("y",), ("False", "True"))
    assert np.array_equal(checkpoint.spec().evaluate(x), answers(result, x))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ZeroDivisionError])
def test_the_best_network_is_written_when_training_is_cut_short(tmp_path: Path, stop: type[BaseException]) -> None:
    epochs: list[Epoch] = []

    def after_epoch(epoch: Epoch) -> None:
        epochs.append(epoch)
        if epoch.number == 5:
            raise stop

    x = inputs(200)
    y = np.sin(x[:, 0])
    with pytest.raises(stop):
        fit(x, y, hidden=(), epochs=100, device="cpu", out=tmp_path / "model.pt", progress=after_epoch)
    whole = fit(x, y, hidden=(), epochs=100, device="cpu")
    held_out = whole.validation_rows
    written = load_checkpoint(tmp_path / "model.pt").spec().evaluate(x[held_out])
    assert r2_score(y[held_out], written[:, 0]) == pytest.approx(epochs[-1].best, abs=1e-5)


# --- what is refused


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"task": "ranking"}, r"task must be one of \('regression', 'classification'\) or None, got 'ranking'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"validation": 1.0}, r"validation must be a fraction of the rows between 0 and 1, got 1\.0"),
        ({"learning_rate": 0.0}, r"learning_rate must be greater than 0, got 0\.0"),
        ({"epochs": 2.5}, r"epochs must be a whole number, got 2\.5"),
        ({"epochs": None}, "epochs must be a whole number, got None"),
        ({"batch_size": math.nan}, "batch_size must be a whole number, got nan"),
        ({"l1": "0.1"}, "l1 must be a number, got '0.1'"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"amp": 1}, "amp must be True or False, got 1"),
        ({"hidden": 5}, r"hidden must be the widths of the hidden layers, such as \(64,\), got 5"),
        ({"batch_norm": True, "validation": 0.999}, "a step needs 2 rows, 2 for each process, and has 1: choose"),
        ({"batch_norm": True, "batch_size": 1}, "batch_norm needs at least 2 rows at a time, got batch_size 1"),
        ({"hidden": (0,)}, "out_features must be a whole number of at least 1, got 0"),
        ({"device": "toaster"}, "device must be 'auto', 'cpu' or 'cuda', got 'toaster'"),
        ({"columns": ["a"]}, "columns must name all 3 inputs, got 1 names"),
        ({"learning_rate": 1e30}, r"training diverged in its first epoch: try a learning rate below 1e\+30"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        fit(inputs(), inputs()[:, 0], **options)


@pytest.mark.parametrize("grid", [(), (5, 5), (5, 3), (5, 7.5)])
def test_grids_that_do_not_rise_are_refused(grid: Any) -> None:
    with pytest.raises(InputError, match="grid must be a whole number, or several, each above the one before, got"):
        fit(inputs(), inputs()[:, 0], grid=grid)


def test_more_grids_than_epochs_are_refused() -> None:
    with pytest.raises(InputError, match="3 grids need as many epochs or more, got 2"):
        fit(inputs(), inputs()[:, 0], grid=(5, 6, 7), epochs=2)


def test_out_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: expected a file to write the checkpoint to"):
        fit(inputs(), inputs()[:, 0], out=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/model\.pt cannot be written: "):
        fit(inputs(), inputs()[:, 0], out=tmp_path / "file" / "model.pt", **SMALL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_cuda_without_a_gpu() -> None:
    with pytest.raises(MissingDeviceError, match="choose the device 'cpu' or 'auto'"):
        fit(inputs(), inputs()[:, 0], device="cuda")


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (inputs(), np.full(60, 1.5), r"the arrays: the target 'y' is 1\.5 in every row: there is nothing to learn"),
        (inputs(), np.array(["a"] * 60), r"the arrays: the target 'y' has one class, 'a', in every row"),
        (inputs(), np.arange(59), "columns must have the same number of rows, got 60 in 'x0' and 59 in 'y'"),
        (inputs(9), inputs(9)[:, 0], "the arrays: training needs at least 10 rows, got 9"),
        (inputs()[:, 0], inputs()[:, 0], r"x must be \(rows, in\), got \(60,\)"),
        (np.full((60, 1), np.nan), np.arange(60), "the arrays: column 'x0' has NaN in row 1"),
        (np.tile([[-3e38], [3e38]], (30, 1)), np.arange(60), "input number 0 runs from -3e.38 to 3e.38, too wide"),
        (inputs(), None, r"arrays need a target: fit\(x, y\)"),
    ],
)
def test_arrays_that_cannot_be_used(x: Any, y: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        fit(x, y)


@pytest.mark.parametrize(
    ("target", "options", "expected"),
    [
        ("d", {}, "there is no column 'd': its columns are 'a', 'b', 'c'"),
        ("c", {"columns": ["a", "c"]}, "'c' is both an input and a target: leave it out of one"),
        ("c", {"columns": ["a", "a"]}, "'a' is named more than once among the columns: name it once"),
        (["a", "b", "c"], {}, "there must be an input column and a target, got a, b, c"),
        (["a", "b"], {"task": "classification"}, "a classification has one target, got 2: a, b"),
        ("c", {"task": "classification"}, "'c' has 60 different values in 60 rows: expected classes that repeat"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path: Path, target: Any, options: dict[str, Any], expected: str) -> None:
    polars.DataFrame(inputs(), schema=["a", "b", "c"]).write_csv(tmp_path / "data.csv")
    with pytest.raises(InputError, match=expected):
        fit(tmp_path / "data.csv", target, **options)


def test_a_text_target_cannot_be_a_regression(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b\n" + "1,x\n2,y\n" * 10)
    with pytest.raises(TableError, match="column 'b' has 'x' on line 2: expected a number"):
        fit(tmp_path / "data.csv", task="regression")


# --- what it is worth


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_digits_reach_97_percent_by_default(seed: int) -> None:
    x, y = load_digits(return_X_y=True)
    assert fit(x, y, seed=seed, device="cpu").score >= 0.97


@pytest.mark.slow
def test_diabetes_is_learnt_about_as_well_as_by_ridge_regression() -> None:
    x, y = load_diabetes(return_X_y=True)
    result = fit(x, y, device="cpu")
    training = np.delete(np.arange(len(x)), result.validation_rows)
    ridge = Ridge(alpha=0.1).fit(x[training], y[training])
    assert result.score > ridge.score(x[result.validation_rows], y[result.validation_rows]) - 0.05


@pytest.mark.slow
def test_a_product_of_functions_is_learnt() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (1000, 2))
    assert fit(x, np.sin(3 * x[:, 0]) * np.exp(x[:, 1]), hidden=(8,), device="cpu").score > 0.99


def test_the_data_is_not_overwritten_by_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("a,y\n" + "\n".join(f"{row},{row * row}" for row in range(40)))
    before = path.read_bytes()
    with pytest.raises(InputError, match="is the data itself"):
        fit(path, out=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("option", "value"), [("seed", -1), ("seed", 2**64), ("device", "meta"), ("device", "mps")])
def test_a_seed_or_device_there_is_not_is_refused(option: str, value: Any) -> None:
    x = np.linspace(0, 1, 40).reshape(-1, 1)
    with pytest.raises(InputError, match=f"{option} must be"):
        fit(x, x[:, 0], **{option: value})


def test_what_fit_gives_can_be_exported_with_its_labels(tmp_path: Path) -> None:
    x = np.linspace(0, 1, 40).reshape(-1, 1)
    result = fit(x, np.where(x[:, 0] > 0.5, "high", "low"), epochs=1)
    assert result.spec().labels == ("high", "low")
