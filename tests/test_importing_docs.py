"""docs/importing.md: what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relukan_deploy.cli.export import main

PAGE = Path(__file__).parent.parent / "docs" / "importing.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_every_option_it_names_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    offered = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    named = set(re.findall(r"`[^`\n]*?(--[a-z-]+)", TEXT))
    assert {"--strict-ops", "--approximate", "--bound", "--from", "--mult-arity"} <= named
    assert named <= offered


def test_its_errors_are_of_every_spline_network_that_tests_keep() -> None:
    named = set(re.findall(r"^\| `(\w+\.pt)`", TEXT, re.MULTILINE))
    kept = {path.name for path in (PAGE.parent.parent / "tests/data").glob("*.pt")}
    assert named == {name for name in kept if not name.startswith("relu_kan")}


def test_nothing_it_shows_is_out_of_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = PAGE.parent.parent / "tests/data/pykan_2_5_1_g5k3_fit.pt"
    assert main([str(file), "-o", str(tmp_path / "bundle"), "--strict-ops"]) == 0
    (shown,) = re.findall(r"^SiLU on .*$", TEXT, re.MULTILINE)
    assert shown in " ".join(capsys.readouterr().out.split())
