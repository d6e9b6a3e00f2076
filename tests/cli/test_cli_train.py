"""relukan-train, as a person meets it."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars
import pytest

from relukan_deploy.checkpoint import load_checkpoint
from relukan_deploy.cli.train import _line, _parser, main
from relukan_deploy.train import Epoch, fit

PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it
from relukan_deploy.cli.train import main
sys.exit(main())
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).uniform(size=(100, 2)).round(4)
    kind = np.where(x[:, 0] > x[:, 1], "above", "below")
    polars.DataFrame({"width": x[:, 0], "height": x[:, 1], "area": x[:, 0] * x[:, 1], "kind": kind}).write_csv("s.csv")
    return Path("s.csv")


def test_the_last_column_is_learnt_by_default(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(data), "--hidden", "4", "--epochs", "30", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == (
        "s.csv: 100 rows. Target: 'kind' (by default; see --target). "
        "Task: classification (by its values; see --task)"
    )  # fmt: skip
    assert len(lines) <= 14
    assert lines[-3].startswith("accuracy ")
    assert " on 20 held-out rows (epoch " in lines[-3]
    assert lines[-2:] == ["Wrote s.pt", "Next: relukan-export s.pt --trt"]
    assert load_checkpoint("s.pt").labels == ("above", "below")


def test_every_option_reaches_fit(data: Path) -> None:
    command = (
        "s.csv -o m/a.pt --target area --target height --columns width --task regression --hidden 3 2 "
        "--grid 4,7 --order 2 --normalization peak --fixed-intervals --batch-norm --epochs 2 --batch-size 50 --lr 0.01 "
        "--patience 2 --validation 0.3 --seed 3 --device cpu --quiet"
    )
    assert main(command.split()) == 0
    expected = fit(
        "s.csv",
        ["area", "height"],
        columns=["width"],
        task="regression",
        hidden=(3, 2),
        grid=[4, 7],
        order=2,
        normalization="peak",
        train_intervals=False,
        batch_norm=True,
        epochs=2,
        batch_size=50,
        learning_rate=0.01,
        patience=2,
        validation=0.3,
        seed=3,
        device="cpu",
    )
    written = load_checkpoint("m/a.pt")
    assert (written.columns, written.targets) == (("width",), ("area", "height"))
    assert written.model.config == expected.model.config
    for key, value in expected.model.state_dict().items():
        assert np.array_equal(written.model.state_dict()[key], value)


def test_a_dying_layer_is_named_with_its_share_of_dead_inputs() -> None:
    alive, dying = (Epoch(3, 0.5, 0.6, 0.25, 0.75, dead) for dead in ((0.0, 0.001), (0.0, 0.5, 0.1)))
    assert _line(alive) == "epoch 3: loss 0.5, held-out score 0.2500, best 0.7500"
    assert _line(dying).endswith(", best 0.7500, layer 1: 50% dead")


def test_defaults_are_those_of_fit() -> None:
    arguments = vars(_parser().parse_args(["data.csv"]))
    arguments["hidden"] = tuple(arguments["hidden"])
    defaults = inspect.signature(fit).parameters
    assert {name: arguments[name] for name in set(defaults) - {"data", "progress"}} == {
        name: defaults[name].default for name in set(defaults) - {"data", "progress"}
    }


def test_quiet_prints_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(data), "--hidden", "--epochs", "2", "-q"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["no.csv"], 2, "relukan-train: error: no.csv is not there: expected a data file\n"),
        (
            ["s.csv", "--target", "aera"],
            2,
            "relukan-train: error: s.csv: there is no column 'aera': did you mean 'area'?\n",
        ),
        (
            ["s.csv", "-q", "--target", "area"],
            2,
            "relukan-train: error: s.csv: column 'kind' has 'above' on line 2: expected a number\n",
        ),
        (
            ["s.csv", "-q", "--grid", "9,5"],
            2,
            "relukan-train: error: grid must be a whole number, or several, each above",
        ),
        (["s.csv", "-q", "--validation", "2"], 2, "relukan-train: error: validation must be a fraction of the rows"),
    ],
)
def test_errors_are_one_line(
    data: Path, arguments: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    assert capsys.readouterr().err.startswith(expected)


def test_a_grid_that_is_no_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["s.csv", "--grid", "5,fine"])
    assert "expected whole numbers like 5 or 5,10,20, got '5,fine'" in capsys.readouterr().err


def test_ctrl_c_before_the_first_epoch(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("relukan_deploy.fit", interrupted)
    assert main([str(data)]) == 130
    assert "Stopped in the first epoch: nothing was written\n" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to another process is a Unix signal")
def test_ctrl_c_leaves_the_best_checkpoint(data: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "s.csv", "--target", "area", "--columns", "width", "height"]
    limits = ["--epochs", "10000000", "--patience", "10000000", "--hidden", "4", "--device", "cpu"]
    with subprocess.Popen([*command, *limits], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not Path("s.pt").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The best network so far, " in err
    assert err.splitlines()[-2].endswith(" is in s.pt; the same command with --resume goes on")
    assert err.splitlines()[-1] == "relukan-train: interrupted"
    assert load_checkpoint("s.pt").targets == ("area",)
    assert sorted(os.listdir()) == ["s.csv", "s.pt", "s.pt.resume"]  # and nothing half written
