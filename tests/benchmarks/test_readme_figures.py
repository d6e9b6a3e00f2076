"""The README's figures are those of the recorded results."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks import readme

TEXT = readme.README.read_text(encoding="utf-8")


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """The recorded results, to be changed."""
    return Path(shutil.copytree(readme.RECORDED, tmp_path / "results"))


def change(path: Path, how: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


def series_of(content: Any, network: str, engine: str, inputs: int) -> Any:
    (found,) = (
        each
        for each in content["series"]
        if (each["contender"]["network"], each["contender"]["engine"]) == (network, engine)
        and each["contender"]["widths"][0] == inputs
    )
    return found


def row_of(text: str, name: str) -> list[str]:
    """The cells of a line of the table, without its title."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_the_readme_has_what_was_recorded() -> None:
    assert readme.rewritten(TEXT, readme.RECORDED) == TEXT, "run: python -m benchmarks.readme"


def test_other_results_give_other_figures(recorded: Path) -> None:
    def slow_down(content: Any) -> None:
        point = series_of(content, "pykan", "torch", 2)["points"][0]
        point["timing"]["rounds"] = [[5 * seconds for seconds in run] for run in point["timing"]["rounds"]]

    before = row_of(TEXT, "pykan")
    change(recorded / "inference_cpu.json", slow_down)
    after = row_of(readme.rewritten(TEXT, recorded), "pykan")
    first, *others = (cell.removesuffix(" ×").split(" · ") for cell in before)
    changed = after[0].removesuffix(" ×").split(" · ")
    assert float(changed[0]) == pytest.approx(5 * float(first[0]), rel=0.05)
    assert changed[1:] == first[1:]
    assert [cell.removesuffix(" ×").split(" · ") for cell in after[1:]] == others


def test_imported_networks_have_their_own_figures(recorded: Path) -> None:
    def change_all(content: Any) -> None:
        for each in content["results"]:
            if (each["library"], each["network"], each["batch"]) == ("pykan", [2, 5, 1], 1):
                each["over this graph"]["ReLU-KAN"]["median"] = 99.0
                each["over this graph"]["its own export"] = {"median": 123.0, "low": 120.0, "high": 130.0}
                each["error"]["this graph"]["outside"] = 0.25

    change(recorded / "imported.json", change_all)
    text = readme.rewritten(TEXT, recorded)
    assert row_of(text, "pykan's own export")[0] == "123 × (120–130)"
    assert row_of(text, "pykan's own export")[1:] == row_of(TEXT, "pykan's own export")[1:]
    assert "to 99 × the graph's time" in " ".join(text.split())
    assert "to 123 × as long as it" in " ".join(text.split())
    assert "is 2.5e-01 for the graphs" in " ".join(text.split())


def test_a_network_that_was_not_measured_leaves_a_dash(recorded: Path) -> None:
    def skip(content: Any) -> None:
        for engine in ("torch", "torch.compile"):
            point = series_of(content, "fast-kan", engine, 2)["points"][0]
            point.update(timing=None, skipped="no compiler")
        content["series"] = [
            each
            for each in content["series"]
            if (each["contender"]["network"], each["contender"]["engine"]) != ("fast-kan", "onnxruntime-cpu")
        ]

    change(recorded / "inference_cpu.json", skip)
    first, second, *_ = row_of(readme.rewritten(TEXT, recorded), "fast-kan")
    assert first == "– · – · –"
    assert second.endswith(" · – ×")


def test_what_a_machine_is_called_stays_text(recorded: Path) -> None:
    def rename(content: Any) -> None:
        content["environments"][0]["processor"] = "<b>Fast|er_*</b>"

    change(recorded / "inference_cpu.json", rename)
    assert r"&lt;b&gt;Fast\|er\_\*&lt;/b&gt;" in readme.rewritten(TEXT, recorded)


def test_errors_under_load_are_not_hidden(recorded: Path) -> None:
    def fail(content: Any) -> None:
        content["errors"] = 7

    def lose(content: Any) -> None:
        content["reloading"][0]["faults"] = ["version 3 answered wrongly"]

    change(recorded / "soak.json", fail)
    change(recorded / "reload.json", lose)
    text = readme.rewritten(TEXT, recorded)
    assert "with 7 errors" in text
    assert "1 of" in text


def test_text_around_the_markers_stays(recorded: Path) -> None:
    (recorded / "inference_cpu.json").write_text((readme.RECORDED / "pykan_alone.json").read_text())
    before, _, rest = TEXT.partition(readme.BEGIN.format("inference"))
    after = rest.partition(readme.END.format("service"))[2]
    changed = readme.rewritten(TEXT, recorded)
    assert changed != TEXT
    assert changed.startswith(before)
    assert changed.endswith(after)


@pytest.mark.parametrize("text", [TEXT.replace(readme.END.format("service"), ""), TEXT + TEXT])
def test_a_marker_that_is_missing_or_doubled_is_said_so(text: str) -> None:
    with pytest.raises(SystemExit, match="each of these lines once"):
        readme.rewritten(text, readme.RECORDED)
