"""The colours: seen on their ground, and told apart by everybody."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from relukan_deploy.bench.report.styles import DARK, LIGHT, colours

Array = NDArray[np.float64]

GROUNDS = {"light": "#ffffff", "dark": "#15181e"}  # of the cards that the charts are on

# Machado, Oliveira and Fernandes (2009), severity 1.0: what somebody sees of linear RGB.
SEEN = {
    "everything": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> Array:
    """sRGB, IEC 61966-2-1, to linear RGB in 0…1."""
    value = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.asarray(np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4))


def lab(rgb: Array) -> Array:
    """CIE 1976 L*a*b* under D65."""
    ratio = XYZ @ rgb / np.array([0.9505, 1.0, 1.089])
    root = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


@pytest.mark.parametrize(("palette", "ground"), [(LIGHT, GROUNDS["light"]), (DARK, GROUNDS["dark"])])
def test_every_colour_stands_out_from_its_ground(palette: tuple[str, ...], ground: str) -> None:
    for colour in palette:
        low, high = sorted(float(XYZ[1] @ linear(each)) for each in (colour, ground))
        assert (high + 0.05) / (low + 0.05) >= 3.0, colour


@pytest.mark.parametrize("eyes", SEEN)
@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_every_two_colours_are_told_apart(palette: tuple[str, ...], eyes: str) -> None:
    seen = [lab(np.clip(np.asarray(SEEN[eyes]) @ linear(colour), 0, 1)) for colour in palette]
    for (one, first), (other, second) in itertools.combinations(zip(palette, seen, strict=True), 2):
        assert np.linalg.norm(first - second) > 20, (one, other)


def test_a_network_has_its_colour_whoever_else_is_there() -> None:
    assert colours(["this network", "fast-kan"])["fast-kan"] == colours(["pykan", "fast-kan", "relu-kan"])["fast-kan"]
    assert colours(["this network"]) == {"this network": 0}


def test_a_network_that_nobody_knows_has_a_free_colour() -> None:
    found = colours(["this network", "pykan", "another", "a third"])
    assert len(set(found.values())) == 4


def test_there_may_be_more_networks_than_colours() -> None:
    assert set(colours([f"network {number}" for number in range(30)]).values()) <= set(range(len(LIGHT)))
