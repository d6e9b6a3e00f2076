"""docs/benchmarks.md says what is so: its JSON can be read, its commands are known."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import pytest

from relukan_deploy.bench.stored import read
from relukan_deploy.cli.bench import main

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ relukan-bench (.*)", TEXT, re.MULTILINE)


def test_the_example_is_what_is_read(tmp_path: Path) -> None:
    (block,) = re.findall(r"```jsonc\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "example.json"
    path.write_text(re.sub(r"\s//.*", "", block))
    results = read(path)
    (series,) = results.series
    (point,) = series.points
    assert point.timing is not None
    assert point.timing.best <= point.timing.p50 <= point.timing.p90 <= point.timing.p99
    assert results.environments[series.environment].peaks


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the bundle or the file, which is not there; an option that does not exist would end it earlier."""
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)) == 2


@pytest.mark.parametrize("command", ["", "merge", "compare"])
def test_every_option_is_told(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    listed = set(re.findall(r"^ +(?:\[)?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)) - {"--version"}
    assert "--json" in listed
    assert [option for option in listed if f"`{option}" not in TEXT and f" {option} " not in TEXT] == []


def test_every_make_target_and_page_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", TEXT):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / name).exists(), name
