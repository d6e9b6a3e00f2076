"""Resuming: a training that was interrupted ends as one that was not."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from relukan_deploy.errors import CheckpointError, InputError
from relukan_deploy.train import Epoch, FitResult, fit

OPTIONS: dict[str, Any] = {"hidden": (4,), "epochs": 12, "seed": 3, "device": "cpu"}


class PowerCut(BaseException):
    """What no training expects."""


def problem() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x = np.random.default_rng(0).uniform(0, 1, (80, 2))
    return x, np.sin(6 * x[:, 0]) + x[:, 1]


def interrupted(path: Path, after: int, **options: Any) -> None:
    def stop(epoch: Epoch) -> None:
        if epoch.number > after:
            raise PowerCut

    with pytest.raises(PowerCut):
        fit(*problem(), **{**OPTIONS, **options}, out=path, progress=stop)


def weights(result: FitResult) -> list[NDArray[np.float32]]:
    return [value.numpy() for value in result.model.state_dict().values()]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "lbfgs", "epochs": 4},
        {"grid": (3, 5, 8)},
        {"hidden": (4, 3), "batch_norm": True},
        {"batch_size": 16, "micro_batch": 5, "l1": 1e-3, "entropy": 1e-3},
    ],
)
@pytest.mark.parametrize("after", [1, 3])
def test_the_result_is_that_of_a_training_without_interruption(
    options: dict[str, Any], after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relukan_deploy.training.saving._LEAST_PAUSE", 0.0)
    monkeypatch.setattr("relukan_deploy.training.saving._MOST_SHARE", 1e9)
    expected = fit(*problem(), **{**OPTIONS, **options})
    interrupted(tmp_path / "m.pt", after, **options)
    result = fit(*problem(), **{**OPTIONS, **options}, out=tmp_path / "m.pt", resume=True)
    assert result.history == expected.history
    assert (result.best_epoch, result.score) == (expected.best_epoch, expected.score)
    assert all(np.array_equal(a, b) for a, b in zip(weights(result), weights(expected), strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]  # and nothing left to resume


def test_it_goes_on_and_does_not_begin_anew(tmp_path: Path) -> None:
    interrupted(tmp_path / "m.pt", 2)
    seen: list[int] = []
    result = fit(*problem(), **OPTIONS, out=tmp_path / "m.pt", resume=True, progress=lambda e: seen.append(e.number))
    assert seen[0] > 1
    assert seen[-1] == len(result.history) == 12


def test_with_nothing_to_resume_training_begins(tmp_path: Path) -> None:
    result = fit(*problem(), **OPTIONS, out=tmp_path / "m.pt", resume=True)
    assert result.history == fit(*problem(), **OPTIONS).history


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"grid": 6}, r"begun with grids \[5\], not \[6\]: give the same again to go on"),
        ({"seed": 4}, "with seed 3, not 4"),
    ],
)
def test_other_options_are_refused(options: dict[str, Any], expected: str, tmp_path: Path) -> None:
    interrupted(tmp_path / "m.pt", 1)
    with pytest.raises(InputError, match=expected):
        fit(*problem(), **{**OPTIONS, **options}, out=tmp_path / "m.pt", resume=True)


def test_other_data_are_refused(tmp_path: Path) -> None:
    interrupted(tmp_path / "m.pt", 1)
    x, y = problem()
    y[7] += 1e-3
    with pytest.raises(InputError, match=r"m\.pt\.resume was begun with other data: give the same to go on"):
        fit(x, y, **OPTIONS, out=tmp_path / "m.pt", resume=True)


@pytest.mark.parametrize("content", [b"", b"no state", b"PK\x03\x04"])
def test_a_damaged_state_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.pt.resume").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.pt\.resume cannot be read: begin anew, without resume"):
        fit(*problem(), **OPTIONS, out=tmp_path / "m.pt", resume=True)


def test_a_state_with_a_wrong_bit_in_any_tensor_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path / "m.pt", 1)
    path = tmp_path / "m.pt.resume"
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        places = [
            whole.index(archive.read(entry), entry.header_offset + 30 + len(entry.filename))
            for entry in archive.infolist()
            if "/data/" in entry.filename
        ]
    assert len(places) > 20
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match="cannot be read: begin anew"):
            fit(*problem(), **OPTIONS, out=tmp_path / "m.pt", resume=True)


@pytest.mark.parametrize("name", ["course", "record", "options"])
@pytest.mark.parametrize("content", [1, [[]], {"stage": 7}])
def test_a_state_that_holds_something_else_is_refused(name: str, content: object, tmp_path: Path) -> None:
    interrupted(tmp_path / "m.pt", 1)
    path = tmp_path / "m.pt.resume"
    torch.save({**torch.load(path, weights_only=True), name: content}, path)
    with pytest.raises((CheckpointError, InputError), match=r"m\.pt\.resume"):
        fit(*problem(), **OPTIONS, out=tmp_path / "m.pt", resume=True)


def test_numbers_of_numpy_can_be_resumed(tmp_path: Path) -> None:
    options = {"learning_rate": np.float64(0.01), "epochs": np.int64(12)}
    interrupted(tmp_path / "m.pt", 1, **options)
    result = fit(*problem(), **{**OPTIONS, **options}, out=tmp_path / "m.pt", resume=True)
    assert len(result.history) == 12


def test_resuming_needs_a_checkpoint() -> None:
    with pytest.raises(InputError, match="resume needs out"):
        fit(*problem(), **OPTIONS, resume=True)
