"""The picture: a PNG with something on it, or an error."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import example_results as examples
import numpy as np
import pytest
from numpy.typing import NDArray

from relukan_deploy.bench.report.plot import write_plot
from relukan_deploy.bench.report.styles import LIGHT
from relukan_deploy.bench.results import Results
from relukan_deploy.errors import InputError, MissingDependencyError


def pixels(path: Path) -> NDArray[np.uint8]:
    """``(height, width, 3)``"""
    from matplotlib.image import imread

    return np.asarray(np.round(imread(path)[..., :3] * 255), np.uint8)


def drawn(picture: NDArray[np.uint8], colour: str) -> int:
    """How many pixels have this colour."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((picture == wanted).all(axis=2).sum())


def test_every_network_is_drawn_in_its_colour(tmp_path: Path) -> None:
    write_plot(examples.cpu_results(), tmp_path / "plot.png")
    picture = pixels(tmp_path / "plot.png")
    assert picture.shape == (864, 1600, 3)
    for colour in LIGHT:
        assert drawn(picture, colour) > 500, colour


def test_a_network_that_is_not_there_is_not_drawn(tmp_path: Path) -> None:
    write_plot(examples.small_results(), tmp_path / "plot.png")
    picture = pixels(tmp_path / "plot.png")
    assert drawn(picture, LIGHT[0]) > 500
    assert drawn(picture, LIGHT[1]) == 0


def test_each_shape_and_machine_has_a_panel(tmp_path: Path) -> None:
    write_plot(examples.several_results(), tmp_path / "plot.png")
    assert pixels(tmp_path / "plot.png").shape == (1728, 3200, 3)


def test_names_are_not_mathematics(tmp_path: Path) -> None:
    write_plot(examples.hostile_results(), tmp_path / "plot.png")  # $e$ and %{x}; a warning would be an error
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_name_may_hold_what_no_font_has_and_what_is_no_text(tmp_path: Path) -> None:
    write_plot(dataclasses.replace(examples.small_results(), bundle="日本 \udcff"), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["plot.svg", "plot", "plot.png.txt"])
def test_another_kind_of_picture_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not end in \.png"):
        write_plot(examples.small_results(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing was measured"):
        write_plot(Results("model", (examples.environment(),), ()), tmp_path / "plot.png")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'relukan-deploy\[bench\]'"):
        write_plot(examples.small_results(), tmp_path / "plot.png")
    assert list(tmp_path.iterdir()) == []
